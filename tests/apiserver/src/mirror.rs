//! Everything that the server has, as its watches say it.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures::StreamExt;
use kube::{Api, Client, api::DynamicObject, runtime::watcher};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weir_api::{Resource, resource};
use weir_client::{ObjectKey, Observed, observe};

use crate::api_resource;

/// Longer than anything takes on a busy machine: what takes longer hangs.
const HANGS: Duration = Duration::from_mins(1);

#[derive(Default)]
struct State {
    /// By `plural/namespace/name`.
    objects: BTreeMap<String, Value>,
    changes: usize,
    /// Kinds that have been listed.
    synced: usize,
}

/// The objects of all kinds. Clones are one mirror.
#[derive(Clone, Default)]
pub struct Mirror {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
}

impl Mirror {
    /// Follows all kinds until `stop`; returns once each was listed.
    pub(crate) async fn start(client: &Client, stop: &CancellationToken) -> Self {
        let mirror = Self::default();
        let rows: Vec<_> = resource::resources().iter().filter(|row| is_followed(row)).collect();
        for row in &rows {
            let following = mirror.clone().follow(row, client.clone());
            let stop = stop.clone();
            tokio::spawn(async move { stop.run_until_cancelled(following).await });
        }
        mirror.wait_until("all kinds are listed", |mirror| mirror.lock().synced == rows.len()).await;
        mirror
    }

    async fn follow(self, row: &'static Resource, client: Client) {
        let api: Api<DynamicObject> = Api::all_with(client, &api_resource(row));
        let mut steps = pin!(observe(api, watcher::Config::default()));
        let path = |key: &ObjectKey| format!("{}/{}/{}", row.plural, key.namespace, key.name);
        while let Some(step) = steps.next().await {
            let mut state = self.lock();
            let changed = match step {
                Observed::Applied(object) => {
                    let value = serde_json::to_value(&object).expect("JSON");
                    let before = state.objects.insert(path(&ObjectKey::of(&object.metadata)), value.clone());
                    before.as_ref() != Some(&value)
                }
                Observed::Gone { key, .. } => state.objects.remove(&path(&key)).is_some(),
                Observed::Synced => {
                    state.synced += 1;
                    false
                }
                Observed::Listing => false,
            };
            state.changes += usize::from(changed && row.plural != "events");
            drop(state);
            self.changed.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding it")
    }

    /// The object `plural/namespace/name`.
    pub fn get(&self, key: &str) -> Option<Value> {
        self.lock().objects.get(key).cloned()
    }

    /// All objects whose key begins so: `pods/`, `pods/namespace/`.
    pub fn list(&self, prefix: &str) -> Vec<Value> {
        let state = self.lock();
        let found = state.objects.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        found.map(|(_, object)| object.clone()).collect()
    }

    /// How often something changed; Events are left out.
    pub fn changes(&self) -> usize {
        self.lock().changes
    }

    /// Sees every change from now on.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Waits until the cluster is as `holds` says.
    ///
    /// # Panics
    /// With `why` when it hangs.
    pub async fn wait_until(&self, why: &str, holds: impl Fn(&Self) -> bool) {
        let mut changed = self.subscribe();
        let wait = async {
            while !holds(self) {
                changed.changed().await.expect("the sender lives as long as self");
            }
        };
        assert!(tokio::time::timeout(HANGS, wait).await.is_ok(), "never came true: {why}");
    }
}

/// Views of other kinds' objects and what is not stored are left out.
fn is_followed(row: &Resource) -> bool {
    let own = row.storage.is_some_and(|storage| (storage.group, storage.plural) == (row.group, row.plural));
    own && row.allows("watch")
}
