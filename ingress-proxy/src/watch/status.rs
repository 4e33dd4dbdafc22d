//! `status.loadBalancer`: where an Ingress can be reached.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use k8s_openapi::api::networking::v1::Ingress;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use tokio::sync::watch;

use crate::compile::{ObjectKey, Snapshot};

/// A status that was written is not written again for so long: its echo may still be under way.
const ECHO: Duration = Duration::from_secs(5);
/// The wait after a failed write, before everything that is still wrong is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Writes statuses in the background; only where they differ from what is wanted, and only while this replica leads.
pub(crate) struct Publisher {
    addresses: Vec<String>,
    claimed: BTreeSet<ObjectKey>,
    /// The Ingresses whose status is wrong.
    wrong: watch::Sender<BTreeSet<ObjectKey>>,
}

impl Publisher {
    pub(crate) fn start(client: Client, addresses: Vec<String>, leads: watch::Receiver<bool>) -> Self {
        let body = body(&addresses);
        let (publisher, lists) = Self::new(addresses);
        if !publisher.addresses.is_empty() {
            tokio::spawn(write_all(client, body, lists, leads));
        }
        publisher
    }

    /// And the Ingresses whose status is to be written.
    pub(super) fn new(addresses: Vec<String>) -> (Self, watch::Receiver<BTreeSet<ObjectKey>>) {
        let (wrong, lists) = watch::channel(BTreeSet::new());
        (Self { addresses, claimed: BTreeSet::new(), wrong }, lists)
    }

    /// These Ingresses are ours now, or no more.
    pub(super) fn claim(&mut self, snapshot: &Snapshot, ingresses: BTreeMap<ObjectKey, bool>) {
        let mut looked_at = BTreeSet::new();
        for (key, is_ours) in ingresses {
            if is_ours {
                self.claimed.insert(key.clone());
            } else {
                self.claimed.remove(&key);
            }
            looked_at.insert(key);
        }
        self.publish(snapshot, &looked_at);
    }

    /// Publishes where it is needed: the status of these Ingresses may have changed.
    pub(super) fn publish(&self, snapshot: &Snapshot, ingresses: &BTreeSet<ObjectKey>) {
        if self.addresses.is_empty() {
            return;
        }
        let is_wrong = |key: &ObjectKey| {
            let ingress = snapshot.ingresses.get(key).filter(|_| self.claimed.contains(key));
            ingress.is_some_and(|ingress| ingress.published != self.addresses)
        };
        self.wrong.send_if_modified(|wrong| {
            let mut modified = false;
            for key in ingresses {
                modified |= if is_wrong(key) { wrong.insert(key.clone()) } else { wrong.remove(key) };
            }
            modified
        });
    }
}

fn body(addresses: &[String]) -> serde_json::Value {
    let entries: Vec<_> = addresses
        .iter()
        .map(|address| match address.parse::<IpAddr>() {
            Ok(_) => serde_json::json!({ "ip": address }),
            Err(_) => serde_json::json!({ "hostname": address }),
        })
        .collect();
    serde_json::json!({ "status": { "loadBalancer": { "ingress": entries } } })
}

/// What is wrong while another leads is looked at when this replica does. Ends when the publisher is dropped, or when this
/// replica will never lead.
async fn write_all(
    client: Client,
    body: serde_json::Value,
    mut lists: watch::Receiver<BTreeSet<ObjectKey>>,
    mut leads: watch::Receiver<bool>,
) {
    let mut written: HashMap<ObjectKey, Instant> = HashMap::new();
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        let list = lists.borrow_and_update().clone();
        written.retain(|_, when| when.elapsed() < ECHO);
        let mut failed = false;
        for key in list {
            if written.contains_key(&key) {
                continue;
            }
            if !*leads.borrow() {
                break;
            }
            let api = Api::<Ingress>::namespaced(client.clone(), &key.namespace);
            match api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&body)).await {
                Ok(_) => {
                    written.insert(key, Instant::now());
                }
                Err(kube::Error::Api(status)) if status.code == 404 => {} // it is gone, so is the need
                Err(error) => {
                    tracing::warn!(ingress = %key, %error, "cannot publish the status, trying again");
                    failed = true;
                }
            }
        }
        let again = async {
            if failed {
                tokio::time::sleep(RETRY).await;
                lists.has_changed().map(drop)
            } else {
                lists.changed().await
            }
        };
        tokio::select! {
            gone = again => if gone.is_err() { return },
            () = lost(&mut leads) => written.clear(),
        }
    }
}

/// Waits until this replica leads no more.
async fn lost(leads: &mut watch::Receiver<bool>) {
    // One that stands in no election leads for good.
    if leads.wait_for(|leads| !*leads).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn addresses_and_names_have_their_own_fields() {
        let body = super::body(&["192.0.2.1".to_owned(), "lb.example".to_owned()]);
        assert_eq!(
            body["status"]["loadBalancer"]["ingress"],
            serde_json::json!([{ "ip": "192.0.2.1" }, { "hostname": "lb.example" }])
        );
    }
}
