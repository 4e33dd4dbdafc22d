//! Where the other nodes are: what tunnels to them need, and which node ports are theirs.

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
pub(super) struct Peers {
    ids: HashMap<Box<str>, NodeId>,
    /// Every address that a node says it has.
    addresses: HashMap<NodeId, Vec<IpAddr>>,
}

impl Peers {
    /// The number of a node that an endpoint is on.
    pub(super) fn id(&mut self, name: Option<&str>) -> NodeId {
        let Some(name) = name else { return NodeId::NONE };
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = NodeId(self.ids.len() as u32);
        self.ids.insert(name.into(), id);
        id
    }

    /// Takes over what a Node says of its addresses, or that it is gone. True when that is news.
    pub(super) fn put(&mut self, node: &Node, present: bool, all: &mut Vec<NodeAddresses>) -> bool {
        let id = self.id(Some(&node.name_any()));
        let index = id.0 as usize;
        if all.len() <= index {
            all.resize(index + 1, NodeAddresses::default());
        }
        let (found, every) = if present {
            (internal(node), of_kinds(node, &["InternalIP", "ExternalIP"]).collect())
        } else {
            (NodeAddresses::default(), Vec::new())
        };
        let known = self.addresses.entry(id).or_default();
        let news = *known != every || all[index] != found;
        *known = every;
        all[index] = found;
        news
    }

    /// Forgets where all nodes but these are. True when that is news.
    pub(super) fn forget_others(&mut self, seen: &BTreeSet<Box<str>>, all: &mut [NodeAddresses]) -> bool {
        let mut news = false;
        for (_, id) in self.ids.iter().filter(|(name, _)| !seen.contains(*name)) {
            news |= self.addresses.remove(id).is_some_and(|every| !every.is_empty());
            if let Some(addresses) = all.get_mut(id.0 as usize) {
                *addresses = NodeAddresses::default();
            }
        }
        news
    }

    /// All addresses of all nodes: what packets of theirs come from, and their node ports are on.
    pub(super) fn addresses(&self) -> BTreeSet<IpAddr> {
        self.addresses.values().flatten().copied().collect()
    }
}

fn of_kinds<'a>(node: &'a Node, kinds: &'a [&str]) -> impl Iterator<Item = IpAddr> + 'a {
    let status = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let wanted = status.iter().filter(|address| kinds.contains(&&*address.type_));
    wanted.filter_map(|address| address.address.parse().ok())
}

/// The first internal address of each family: what a kubelet registers, and where tunnels lead.
fn internal(node: &Node) -> NodeAddresses {
    let mut found = NodeAddresses::default();
    for address in of_kinds(node, &["InternalIP"]) {
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
        assert_eq!(peers.addresses().len(), 4, "all of them are its own");
        assert!(peers.put(&object, false, &mut all), "it is gone");
        assert_eq!(peers.addresses().len(), 0);
        assert_eq!(peers.id(None), NodeId::NONE);
    }
}
