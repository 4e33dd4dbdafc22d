//! Gives each node its part of the cluster's pod addresses, as `spec.podCIDR`.
//!
//! One worker: two allocations at once could give out the same range. The ranges in use are read from the nodes
//! themselves, so nothing is to be kept or repaired, and a deleted node's range is free at once. The lowest free
//! range is given, so that the ranges stay together.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use weir_client::{EventKind, ObjectKey, Outcome, Queue, QueueMetrics, object_reference, run_workers};

use crate::error::{Error, Trying};
use crate::freshness::{Freshness, STALE_RECHECK};
use crate::shared::{Shared, Watches};

/// Ranges a cluster may be divided into: upstream allows 16 bits between the two prefix lengths.
const BITS_MAX: u8 = 16;

/// An address range: its first address and its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    first: IpAddr,
    prefix: u8,
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        let width = width(address);
        (prefix <= width).then(|| {
            let first = number(address) & !low_bits(width - prefix);
            Self { first: address_of(first, address), prefix }
        })
    }

    fn overlaps(&self, other: &Self) -> bool {
        let width = width(self.first);
        let shorter = self.prefix.min(other.prefix);
        width == self::width(other.first)
            && (number(self.first) ^ number(other.first)) & !low_bits(width - shorter) == 0
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn address_of(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

fn low_bits(count: u8) -> u128 {
    1_u128.checked_shl(count.into()).map_or(u128::MAX, |bit| bit - 1)
}

/// The cluster's range and how it is divided.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ranges {
    cluster: Range,
    node_prefix: u8,
}

impl Ranges {
    pub(crate) fn new(cluster: &str, node_prefix: u8) -> Result<Self, Error> {
        let invalid = || Error::ClusterCidr { value: cluster.to_owned() };
        let range = Range::parse(cluster).ok_or_else(invalid)?;
        let max = width(range.first).min(range.prefix.saturating_add(BITS_MAX));
        if !(range.prefix..=max).contains(&node_prefix) {
            let cluster = range.to_string();
            return Err(Error::NodeMask { size: node_prefix, cluster, min: range.prefix, max });
        }
        Ok(Self { cluster: range, node_prefix })
    }

    /// The lowest range that overlaps none in use; `None` when all are taken.
    fn free(&self, used: &BTreeSet<Range>) -> Option<Range> {
        let step = low_bits(width(self.cluster.first) - self.node_prefix) + 1;
        let count = 1_u128 << (self.node_prefix - self.cluster.prefix);
        (0..count)
            .map(|index| {
                let first = address_of(number(self.cluster.first) + index * step, self.cluster.first);
                Range { first, prefix: self.node_prefix }
            })
            .find(|candidate| {
                // Most are of the same size and found at once; the rest were given by other means.
                !used.contains(candidate) && !used.iter().any(|used| used.overlaps(candidate))
            })
    }
}

/// The controller.
pub(crate) struct Ipam {
    shared: Arc<Shared>,
    queue: Arc<Queue<ObjectKey>>,
    ranges: Ranges,
    /// One key for all: any write that does not show yet could have taken the range found free.
    freshness: Freshness,
}

impl Ipam {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        watches: &mut Watches,
        metrics: &QueueMetrics,
        ranges: Ranges,
    ) -> Self {
        let queue = Arc::new(Queue::new("node-ipam", metrics));
        let wake = queue.clone();
        watches.nodes.on_change(move |change| {
            if change.new.is_some_and(|node| range_of(node).is_none()) {
                wake.add(change.key.clone());
            }
        });
        Self { shared: shared.clone(), queue, ranges, freshness: Freshness::default() }
    }

    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let queue = self.queue.clone();
        run_workers(queue, 1, shutdown, |key| self.reconcile(key)).await;
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, Error> {
        let all = ObjectKey::default();
        if !self.freshness.is_fresh(&all, |mark| self.shared.nodes.has_seen(mark), |_| false) {
            // The write shows within a round trip; the node waits for its range meanwhile.
            return Ok(Outcome::Again);
        }
        let Some(node) = self.shared.nodes.get(&key).filter(|node| range_of(node).is_none()) else {
            return Ok(Outcome::Done);
        };
        if node.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let used = self.shared.nodes.all().iter().filter_map(|node| range_of(node)).collect();
        let Some(range) = self.ranges.free(&used) else {
            let (node_name, cluster) = (key.name.clone(), self.ranges.cluster.to_string());
            let text = format!("Node {node_name} status is now: CIDRNotAvailable");
            let object = object_reference::<Node>(&node.metadata);
            self.shared.recorder.record(object, EventKind::Normal, "CIDRNotAvailable", text);
            return Err(Error::RangesExhausted { node: node_name, size: self.ranges.node_prefix, cluster });
        };
        let range = range.to_string();
        let patch = json!({
            "metadata": { "uid": node.uid(), "resourceVersion": node.resource_version() },
            "spec": { "podCIDR": range, "podCIDRs": [range] },
        });
        let api: Api<Node> = Api::all(self.shared.client.clone());
        let result = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        let written = result.trying("give a pod range to node", &key)?;
        tracing::info!(node = %key, range, "pod range assigned");
        self.freshness.wrote(&all, self.shared.nodes.mark(written.metadata.resource_version.as_deref()));
        Ok(Outcome::After(STALE_RECHECK))
    }
}

fn range_of(node: &Node) -> Option<Range> {
    Range::parse(node.spec.as_ref()?.pod_cidr.as_deref()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Range {
        Range::parse(text).expect("is a range")
    }

    fn free(cluster: &str, prefix: u8, used: &[&str]) -> Option<String> {
        let ranges = Ranges::new(cluster, prefix).expect("is possible");
        ranges.free(&used.iter().map(|text| range(text)).collect()).map(|range| range.to_string())
    }

    #[test]
    fn the_lowest_free_range_is_given() {
        assert_eq!(free("10.244.0.0/16", 24, &[]).as_deref(), Some("10.244.0.0/24"));
        assert_eq!(free("10.244.0.0/16", 24, &["10.244.0.0/24"]).as_deref(), Some("10.244.1.0/24"));
        assert_eq!(
            free("10.244.0.0/16", 24, &["10.244.0.0/24", "10.244.2.0/24"]).as_deref(),
            Some("10.244.1.0/24")
        );
        assert_eq!(free("10.0.0.0/23", 24, &["10.0.0.0/24", "10.0.1.0/24"]), None);
    }

    #[test]
    fn ranges_of_other_sizes_are_respected() {
        assert_eq!(free("10.244.0.0/16", 24, &["10.244.0.0/22"]).as_deref(), Some("10.244.4.0/24"));
        assert_eq!(free("10.244.0.0/16", 24, &["10.244.0.128/25"]).as_deref(), Some("10.244.1.0/24"));
        assert_eq!(free("10.244.0.0/16", 24, &["192.168.0.0/16"]).as_deref(), Some("10.244.0.0/24"));
    }

    #[test]
    fn ipv6_ranges_are_divided_the_same_way() {
        assert_eq!(free("fd00::/48", 64, &["fd00::/64"]).as_deref(), Some("fd00:0:0:1::/64"));
    }

    #[test]
    fn settings_that_cannot_be_are_refused() {
        assert!(matches!(Ranges::new("10.244.0.0", 24), Err(Error::ClusterCidr { .. })));
        assert!(matches!(Ranges::new("10.244.0.0/33", 24), Err(Error::ClusterCidr { .. })));
        assert!(matches!(Ranges::new("10.244.0.0/16", 8), Err(Error::NodeMask { min: 16, max: 32, .. })));
        assert!(matches!(Ranges::new("fd00::/48", 80), Err(Error::NodeMask { max: 64, .. })));
    }
}
