//! Where the other nodes are: what tunnels to them need.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;

use crate::plan::model::{NodeAddresses, NodeId};

/// Numbers for the names of nodes, given out as slices and Nodes name them. A name keeps its number, so that endpoints may hold
/// it; a cluster that renames its nodes for years grows this by some bytes a name.
#[derive(Debug, Default)]
pub(super) struct Peers(HashMap<Box<str>, NodeId>);

impl Peers {
    /// The number of a node that an endpoint is on.
    pub(super) fn id(&mut self, name: Option<&str>) -> NodeId {
        let Some(name) = name else { return NodeId::NONE };
        if let Some(id) = self.0.get(name) {
            return *id;
        }
        let id = NodeId(self.0.len() as u32);
        self.0.insert(name.into(), id);
        id
    }

    /// Takes over what a Node says of its addresses, or that it is gone. True when that is news.
    pub(super) fn put(&mut self, node: &Node, present: bool, all: &mut Vec<NodeAddresses>) -> bool {
        let index = self.id(Some(&node.name_any())).0 as usize;
        if all.len() <= index {
            all.resize(index + 1, NodeAddresses::default());
        }
        let found = if present { addresses(node) } else { NodeAddresses::default() };
        std::mem::replace(&mut all[index], found) != found
    }

    /// Forgets where all nodes but these are. True when that is news.
    pub(super) fn forget_others(&self, seen: &BTreeSet<Box<str>>, all: &mut [NodeAddresses]) -> bool {
        let mut news = false;
        for (_, id) in self.0.iter().filter(|(name, _)| !seen.contains(*name)) {
            if let Some(addresses) = all.get_mut(id.0 as usize) {
                news |= std::mem::take(addresses) != NodeAddresses::default();
            }
        }
        news
    }
}

/// All nodes that are somewhere.
pub(super) fn known(all: &[NodeAddresses]) -> BTreeSet<IpAddr> {
    all.iter().flatten().flatten().copied().collect()
}

/// The first internal address of each family: what a kubelet registers, and its packets come from.
fn addresses(node: &Node) -> NodeAddresses {
    let status = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let internal = status.iter().filter(|address| address.type_ == "InternalIP");
    let mut found = NodeAddresses::default();
    for address in internal.filter_map(|address| address.address.parse::<IpAddr>().ok()) {
        found[usize::from(!address.is_ipv4())].get_or_insert(address);
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(addresses: &serde_json::Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n1"}, "status": {"addresses": addresses}}))
            .unwrap()
    }

    #[test]
    fn a_node_is_at_its_first_internal_address_of_each_family() {
        let (mut peers, mut all) = (Peers::default(), Vec::new());
        assert_eq!(peers.id(Some("n0")), NodeId(0));
        let object = node(&json!([
            {"type": "Hostname", "address": "n1"}, {"type": "ExternalIP", "address": "203.0.113.1"},
            {"type": "InternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "192.0.2.2"},
            {"type": "InternalIP", "address": "fd00::1"},
        ]));
        assert!(peers.put(&object, true, &mut all));
        assert!(!peers.put(&object, true, &mut all), "no news");
        let expected = ["192.0.2.1", "fd00::1"].map(|text| text.parse().ok());
        assert_eq!((peers.id(Some("n1")), all[1]), (NodeId(1), expected));
        assert_eq!(known(&all).len(), 2);
        assert!(peers.put(&object, false, &mut all), "it is gone");
        assert_eq!(known(&all).len(), 0);
        assert_eq!(peers.id(None), NodeId::NONE);
    }
}
