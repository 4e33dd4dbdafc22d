//! The kinds that the API server serves, as discovery tells. So a kind that is new there needs no word here.

use std::sync::Arc;
use std::time::Duration;

use kube::core::discovery::{ApiResource, Scope, verbs};
use kube::discovery::ApiCapabilities;
use kube::{Client, Discovery};

/// First pause after discovery failed; it doubles.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// A kind whose objects can be listed, watched and deleted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kind {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
}

/// All such kinds.
pub(crate) type Kinds = Arc<Vec<Kind>>;

/// Asks until there is an answer.
pub(crate) async fn discover(client: &Client) -> Kinds {
    let mut pause = RETRY_MIN;
    loop {
        match Discovery::new(client.clone()).run().await {
            Ok(discovery) => {
                let resources = discovery.groups().flat_map(kube::discovery::ApiGroup::recommended_resources);
                return Arc::new(resources.filter_map(usable).collect());
            }
            Err(error) => tracing::warn!(%error, "discovery failed, retrying"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

fn usable((resource, capabilities): (ApiResource, ApiCapabilities)) -> Option<Kind> {
    let all = [verbs::LIST, verbs::WATCH, verbs::DELETE];
    let namespaced = capabilities.scope == Scope::Namespaced;
    all.iter().all(|verb| capabilities.supports_operation(verb)).then_some(Kind { resource, namespaced })
}
