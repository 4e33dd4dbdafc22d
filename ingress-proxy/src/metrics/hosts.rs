//! Requests by host.
//!
//! Hosts of rules have series of their own, up to a bound; those beyond share one. A wildcard is one host, whatever
//! clients ask for below it, so that none of them can make a series. An alias counts as the host whose rules it has.
//!
//! **Cost.** A request adds to one counter, which its target knows.

use std::sync::{Arc, Mutex, OnceLock};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::{CLASSES, class_of};
use crate::shared::{Shared, lock};
use crate::table::HostPattern;

/// Hosts with series of their own; those beyond share the host `other`.
const MAX_LABELLED_HOSTS: usize = 1_000;
/// The host of those beyond the bound.
const OTHER: &str = "other";

/// Responses by class, in the order of [`CLASSES`].
pub(crate) type ByClass = [u64; CLASSES.len()];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct HostLabels {
    host: String,
    class: &'static str,
}

/// The series of all hosts.
#[derive(Debug, Clone)]
pub(crate) struct Hosts {
    family: Family<HostLabels, Counter>,
    known: Arc<Mutex<Known>>,
    /// Of requests that no rule matched.
    pub(crate) unmatched: Arc<HostMetrics>,
}

#[derive(Debug, Default)]
struct Known {
    hosts: Shared<String, Arc<HostMetrics>>,
    /// Counted for hosts that are not there any more.
    gone: ByClass,
}

/// One host's counters. A class that never occurs makes no series.
#[derive(Debug)]
pub(crate) struct HostMetrics {
    host: String,
    responses: [OnceLock<Counter>; CLASSES.len()],
    family: Family<HostLabels, Counter>,
}

impl Hosts {
    pub(super) fn new(family: Family<HostLabels, Counter>) -> Self {
        let unmatched = Arc::new(HostMetrics::new(String::new(), &family));
        Self { family, known: Arc::default(), unmatched }
    }

    /// The counters of a host or, at the bound, those that all others share: until the host is compiled again, even if there
    /// is room before. They are kept from the first [`Hosts::hold`] to the last [`Hosts::release`].
    pub(crate) fn of(&self, host: &HostPattern) -> Arc<HostMetrics> {
        let hosts = &mut lock(&self.known).hosts.0;
        let host = host.to_string();
        let has_own = hosts.contains_key(&host) || hosts.len() < MAX_LABELLED_HOSTS;
        let host = if has_own { host } else { OTHER.to_owned() };
        let new = |host: &String| (Arc::new(HostMetrics::new(host.clone(), &self.family)), 0);
        Arc::clone(&hosts.entry(host).or_insert_with_key(new).0)
    }

    pub(crate) fn hold(&self, metrics: &HostMetrics) {
        lock(&self.known).hosts.hold(&metrics.host);
    }

    pub(crate) fn release(&self, metrics: &HostMetrics) {
        let mut known = lock(&self.known);
        if let Some(gone) = known.hosts.release(&metrics.host) {
            add(&mut known.gone, gone.counts());
            for class in CLASSES {
                self.family.remove(&HostLabels { host: gone.host.clone(), class });
            }
        }
    }

    /// All requests so far, those of hosts that are gone included: it never falls.
    pub(crate) fn totals(&self) -> ByClass {
        let known = lock(&self.known);
        let mut totals = known.gone;
        let hosts = known.hosts.0.values().map(|(metrics, _)| metrics);
        hosts.chain([&self.unmatched]).for_each(|metrics| add(&mut totals, metrics.counts()));
        totals
    }
}

impl HostMetrics {
    fn new(host: String, family: &Family<HostLabels, Counter>) -> Self {
        Self { host, responses: Default::default(), family: family.clone() }
    }

    /// Counts a finished request; `status` is 0 when the client got none.
    pub(crate) fn finished(&self, status: u16) {
        let class = class_of(status);
        let labels = || HostLabels { host: self.host.clone(), class: CLASSES[class] };
        self.responses[class].get_or_init(|| self.family.get_or_create(&labels()).clone()).inc();
    }

    fn counts(&self) -> ByClass {
        std::array::from_fn(|class| self.responses[class].get().map_or(0, Counter::get))
    }
}

fn add(sum: &mut ByClass, more: ByClass) {
    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(number: usize) -> HostPattern {
        HostPattern::Exact(format!("{number}.example"))
    }

    #[test]
    fn hosts_beyond_the_bound_share_a_series() {
        let hosts = Hosts::new(Family::default());
        let kept: Vec<Arc<HostMetrics>> = (0..MAX_LABELLED_HOSTS + 2).map(|n| hosts.of(&host(n))).collect();
        for metrics in &kept {
            hosts.hold(metrics);
        }
        assert_eq!(kept[MAX_LABELLED_HOSTS - 1].host, "999.example");
        assert!(Arc::ptr_eq(&kept[MAX_LABELLED_HOSTS], &kept[MAX_LABELLED_HOSTS + 1]));
        assert_eq!(kept[MAX_LABELLED_HOSTS].host, OTHER);
        assert_eq!(lock(&hosts.known).hosts.0.len(), MAX_LABELLED_HOSTS + 1);
        for metrics in &kept {
            hosts.release(metrics);
        }
        assert!(lock(&hosts.known).hosts.0.is_empty());
    }

    #[test]
    fn the_total_never_falls_and_series_go_with_their_hosts() {
        let hosts = Hosts::new(Family::default());
        let metrics = hosts.of(&HostPattern::Wildcard("example".to_owned()));
        hosts.hold(&metrics);
        for status in [200, 204, 404, 503, 0] {
            metrics.finished(status);
        }
        hosts.unmatched.finished(404);
        let totals = [1, 0, 2, 0, 2, 1];
        assert_eq!(hosts.totals(), totals);
        let labels = HostLabels { host: "*.example".to_owned(), class: "2xx" };
        assert_eq!(hosts.family.get(&labels).map(|counter| counter.get()), Some(2));
        hosts.release(&metrics);
        assert_eq!(hosts.totals(), totals);
        assert!(hosts.family.get(&labels).is_none());
    }
}
