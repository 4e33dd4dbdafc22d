//! The watch of one kind as a stream that can be followed without looking back.
//!
//! kube's watcher lists again when it must, and leaves it to the reader to find out what vanished meanwhile.
//! Here that is found out, at the price of the keys, so that whoever follows the stream sees every object come and go.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use futures::{Stream, StreamExt, future, stream};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use crate::ObjectKey;

/// First pause after a failed list or watch. Short, because at start the API server is a moment behind.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// Longest pause after failed lists or watches.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// One step of a watch.
#[derive(Clone, Debug)]
pub enum Observed<K> {
    /// A list begins; what it finds follows as `Applied`.
    Listing,
    /// The object is as given; it may have been so before.
    Applied(K),
    /// The object is no more.
    Gone {
        /// Which object.
        key: ObjectKey,
        /// The resource version of the deletion, if the watch said it.
        revision: Option<String>,
    },
    /// The list is complete, and so is what was reported.
    Synced,
}

/// Follows a kind for ever. Failures are logged and retried with backoff (50 ms to 10 s).
pub fn observe<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = Observed<K>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watch(api, config)
        .backoff(Retry::default())
        .scan(Known::default(), |known, event| future::ready(Some(known.step(event))))
        .flat_map(stream::iter)
}

/// The keys of what has been reported and not yet reported gone.
#[derive(Debug, Default)]
struct Known {
    all: BTreeSet<ObjectKey>,
    listed: BTreeSet<ObjectKey>,
}

impl Known {
    fn step<K: Resource>(&mut self, event: watcher::Result<Event<K>>) -> Vec<Observed<K>> {
        match event {
            Err(error) => {
                tracing::warn!(kind = std::any::type_name::<K>(), %error, "watch failed, retrying");
                Vec::new()
            }
            Ok(Event::Init) => {
                self.listed.clear();
                vec![Observed::Listing]
            }
            Ok(Event::InitApply(object)) => {
                let key = ObjectKey::of(object.meta());
                self.all.insert(key.clone());
                self.listed.insert(key);
                vec![Observed::Applied(object)]
            }
            Ok(Event::InitDone) => {
                let listed = std::mem::take(&mut self.listed);
                let vanished = self.all.difference(&listed);
                let mut steps: Vec<_> =
                    vanished.map(|key| Observed::Gone { key: key.clone(), revision: None }).collect();
                steps.push(Observed::Synced);
                self.all = listed;
                steps
            }
            Ok(Event::Apply(object)) => {
                self.all.insert(ObjectKey::of(object.meta()));
                vec![Observed::Applied(object)]
            }
            Ok(Event::Delete(object)) => {
                let key = ObjectKey::of(object.meta());
                self.all.remove(&key);
                vec![Observed::Gone { key, revision: object.meta().resource_version.clone() }]
            }
        }
    }
}

/// Doubling pauses between failed attempts; the first success starts over.
#[derive(Debug, Default)]
struct Retry {
    next: Option<Duration>,
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.next.unwrap_or(RETRY_MIN);
        self.next = Some((pause * 2).min(RETRY_MAX));
        Some(pause)
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.next = None;
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn object(name: &str) -> ConfigMap {
        let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
        ConfigMap { metadata, ..ConfigMap::default() }
    }

    #[test]
    fn what_a_second_list_lacks_is_gone() {
        let mut known = Known::default();
        for event in [Event::Init, Event::InitApply(object("a")), Event::InitApply(object("b"))] {
            known.step(Ok(event));
        }
        known.step::<ConfigMap>(Ok(Event::InitDone));
        known.step(Ok(Event::Apply(object("c"))));
        for event in [Event::Init, Event::InitApply(object("b"))] {
            known.step(Ok(event));
        }
        let gone: Vec<_> = known
            .step::<ConfigMap>(Ok(Event::InitDone))
            .into_iter()
            .filter_map(|step| match step {
                Observed::Gone { key, .. } => Some(key.name),
                _ => None,
            })
            .collect();
        assert_eq!(gone, ["a", "c"]);
    }

    #[test]
    fn retries_double_up_to_a_bound_and_start_over() {
        let mut retry = Retry::default();
        let pauses: Vec<_> = retry.by_ref().take(9).map(|pause| pause.as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 6400, 10_000]);
        retry.reset();
        assert_eq!(retry.next(), Some(RETRY_MIN));
    }
}
