//! Keeps a `ServiceAccount` `default` in each namespace: pods that name none run as it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use tokio_util::sync::CancellationToken;
use weir_client::{ObjectKey, Outcome, Queue, QueueMetrics, is_already_exists, run_workers};

use crate::error::{Error, Trying};
use crate::namespace::is_terminating;
use crate::shared::{Shared, Watches};

/// The account's name.
const NAME: &str = "default";

/// The controller.
pub(crate) struct ServiceAccounts {
    shared: Arc<Shared>,
    queue: Arc<Queue<ObjectKey>>,
}

impl ServiceAccounts {
    pub(crate) fn new(shared: &Arc<Shared>, watches: &mut Watches, metrics: &QueueMetrics) -> Self {
        let queue = Arc::new(Queue::new("serviceaccount", metrics));
        let wake = queue.clone();
        watches.namespaces.on_change(move |change| {
            if change.new.is_some() {
                wake.add(change.key.clone());
            }
        });
        let wake = queue.clone();
        watches.service_accounts.on_change(move |change| {
            if change.new.is_none() && change.key.name == NAME {
                wake.add(ObjectKey::cluster(&change.key.namespace));
            }
        });
        Self { shared: shared.clone(), queue }
    }

    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let queue = self.queue.clone();
        run_workers(queue, 1, shutdown, |key| self.reconcile(key)).await;
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, Error> {
        let namespace = self.shared.namespaces.get(&key);
        let alive = namespace.is_some_and(|namespace| !is_terminating(&namespace));
        let account = ObjectKey::new(&key.name, NAME);
        if !alive || self.shared.service_accounts.get(&account).is_some() {
            return Ok(Outcome::Done);
        }
        let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
        let new = ServiceAccount { metadata, ..ServiceAccount::default() };
        let api: Api<ServiceAccount> = Api::namespaced(self.shared.client.clone(), &key.name);
        match api.create(&PostParams::default(), &new).await {
            Err(error) if is_already_exists(&error) => Ok(Outcome::Done),
            other => other.map(|_| Outcome::Done).trying("create ServiceAccount", &account),
        }
    }
}
