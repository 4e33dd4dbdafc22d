//! Which ports of the node are services', and so guarded against its processes: part of the books.

use std::collections::{BTreeMap, BTreeSet};

use weir_dataplane_ebpf::Frontend;

use super::{
    model::{FrontendAddress, NodePort},
    step::Step,
};

/// Frontends by port, and what the map holds.
#[derive(Clone, Debug, Default)]
pub(super) struct NodePorts {
    frontends: BTreeMap<NodePort, u32>,
    guarded: BTreeSet<NodePort>,
}

impl NodePorts {
    /// What the map holds.
    pub(super) fn guarded(&self) -> &BTreeSet<NodePort> {
        &self.guarded
    }

    /// Takes in a guard that is in the map already.
    pub(super) fn adopt(&mut self, port: NodePort) {
        self.guarded.insert(port);
    }

    /// Takes in a frontend that is in the maps already.
    pub(super) fn adopt_frontend(&mut self, address: FrontendAddress, value: &Frontend) {
        if is_node_port(value) {
            *self.frontends.entry(address.into()).or_default() += 1;
        }
    }

    /// How many ports are services'.
    pub(super) fn used(&self) -> u32 {
        self.frontends.len() as u32
    }

    /// A frontend changes from `old` to `new`; nothing is one that does not exist.
    pub(super) fn change(
        &mut self,
        address: FrontendAddress,
        old: Option<&Frontend>,
        new: Option<&Frontend>,
        steps: &mut Vec<Step>,
    ) {
        let port = NodePort::from(address);
        match (old.is_some_and(is_node_port), new.is_some_and(is_node_port)) {
            (false, true) => {
                *self.frontends.entry(port).or_default() += 1;
                if self.guarded.insert(port) {
                    steps.push(Step::WriteNodePort { port });
                }
            }
            (true, false) => {
                let Some(count) = self.frontends.get_mut(&port) else { return };
                *count -= 1;
                if *count == 0 {
                    self.frontends.remove(&port);
                    if self.guarded.remove(&port) {
                        steps.push(Step::RemoveNodePort { port });
                    }
                }
            }
            _ => {}
        }
    }

    /// Makes the map say what the frontends do, after both were adopted.
    pub(super) fn sweep(&mut self, steps: &mut Vec<Step>) {
        let wanted: BTreeSet<NodePort> = self.frontends.keys().copied().collect();
        steps.extend(wanted.difference(&self.guarded).map(|port| Step::WriteNodePort { port: *port }));
        steps.extend(self.guarded.difference(&wanted).map(|port| Step::RemoveNodePort { port: *port }));
        self.guarded = wanted;
    }
}

fn is_node_port(value: &Frontend) -> bool {
    value.flags & Frontend::FLAG_NODE_PORT != 0
}
