//! What the maps say once for all frontends that share it: part of the books.
//!
//! A port of the node is guarded against its processes while a frontend has it, and an address is known as a cluster IP while
//! it has one. Both are written with the first of their frontends and removed with the last.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weir_dataplane_ebpf::Frontend;

use super::{
    model::{FrontendAddress, NodePort},
    step::Step,
};

/// Something that frontends share.
pub(super) trait Mark: Copy + Ord {
    /// What a frontend has of it.
    fn of(address: FrontendAddress, value: &Frontend) -> Option<Self>;
    /// Makes the map say that there is such a frontend.
    fn write(self) -> Step;
    /// And that there is none.
    fn remove(self) -> Step;
}

/// A port of the node that is services', and so no process's.
impl Mark for NodePort {
    fn of(address: FrontendAddress, value: &Frontend) -> Option<Self> {
        (value.flags & Frontend::FLAG_NODE_PORT != 0).then(|| address.into())
    }

    fn write(self) -> Step {
        Step::WriteNodePort { port: self }
    }

    fn remove(self) -> Step {
        Step::RemoveNodePort { port: self }
    }
}

/// A cluster IP, whose other ports are refused.
impl Mark for IpAddr {
    fn of(address: FrontendAddress, value: &Frontend) -> Option<Self> {
        (value.flags & Frontend::FLAG_CLUSTER_IP != 0).then_some(address.address)
    }

    fn write(self) -> Step {
        Step::WriteClusterIp { address: self }
    }

    fn remove(self) -> Step {
        Step::RemoveClusterIp { address: self }
    }
}

/// How many frontends share each mark, and what the map holds.
#[derive(Clone, Debug)]
pub(super) struct Marks<M> {
    frontends: BTreeMap<M, u32>,
    written: BTreeSet<M>,
}

impl<M> Default for Marks<M> {
    fn default() -> Self {
        Self { frontends: BTreeMap::new(), written: BTreeSet::new() }
    }
}

impl<M: Mark> Marks<M> {
    /// What the map holds.
    pub(super) fn written(&self) -> &BTreeSet<M> {
        &self.written
    }

    /// Takes in what is in the map already.
    pub(super) fn adopt(&mut self, mark: M) {
        self.written.insert(mark);
    }

    /// Takes in a frontend that is in the maps already.
    pub(super) fn adopt_frontend(&mut self, address: FrontendAddress, value: &Frontend) {
        if let Some(mark) = M::of(address, value) {
            *self.frontends.entry(mark).or_default() += 1;
        }
    }

    /// How many there are.
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
        let mark = |value: Option<&Frontend>| M::of(address, value?);
        match (mark(old), mark(new)) {
            (None, Some(mark)) => {
                *self.frontends.entry(mark).or_default() += 1;
                if self.written.insert(mark) {
                    steps.push(mark.write());
                }
            }
            (Some(mark), None) => {
                let Some(count) = self.frontends.get_mut(&mark) else { return };
                *count -= 1;
                if *count == 0 {
                    self.frontends.remove(&mark);
                    if self.written.remove(&mark) {
                        steps.push(mark.remove());
                    }
                }
            }
            _ => {}
        }
    }

    /// Makes the map say what the frontends do, after both were adopted.
    pub(super) fn sweep(&mut self, steps: &mut Vec<Step>) {
        let wanted: BTreeSet<M> = self.frontends.keys().copied().collect();
        steps.extend(wanted.difference(&self.written).map(|mark| mark.write()));
        steps.extend(self.written.difference(&wanted).map(|mark| mark.remove()));
        self.written = wanted;
    }
}
