//! Datagram flows to an endpoint that their service does not have any more.
//!
//! A stream ends by itself, and its client opens the next one. A datagram flow is only a tuple: a client that keeps its port
//! would talk to the endpoint for as long as another service lists that. So such flows go as soon as their service has lost
//! the endpoint, or the endpoint has said that it serves no more, and the client's next datagram is given one that does.
//! kube-proxy clears the kernel's connection tracking of the same flows, and of UDP alone (`CleanStaleEntries`): an SCTP
//! association ends as a TCP connection does.
//!
//! It costs nothing until a UDP port loses an endpoint. Then the flow tables are read once, at once, and the next regular pass looks
//! once more: a packet in flight may have chosen by the old table, or made one half of a flow again from the other.

use std::collections::{BTreeSet, HashMap, HashSet};

use weir_dataplane_ebpf::{Flow, FlowKey, Protocol};

use crate::kernel::maps::{Family, FamilyMaps, Maps, TableError};

/// UDP ports that have lost endpoints, with those that they have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost(HashMap<u32, BTreeSet<u32>>);

impl Lost {
    /// By service id: the ids of the backends that serve.
    pub fn new(serving: impl IntoIterator<Item = (u32, BTreeSet<u32>)>) -> Self {
        Self(serving.into_iter().collect())
    }

    /// Whether this is a flow to an endpoint that its service does not have.
    pub(super) fn has<A>(&self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        key.protocol == Protocol::UDP
            && self.0.get(&flow.service).is_some_and(|serving| !serving.contains(&flow.backend))
    }
}

/// Removes these flows; returns how many entries they had. At most as many go as the tables hold.
pub fn forget(maps: &Maps, lost: &Lost) -> Result<u64, TableError> {
    if lost.0.is_empty() {
        return Ok(0);
    }
    Ok(forget_family(&maps.v4, lost)? + forget_family(&maps.v6, lost)?)
}

fn forget_family<A: Family>(maps: &FamilyMaps<A>, lost: &Lost) -> Result<u64, TableError> {
    let mut forgotten = 0;
    for table in [&maps.opening, &maps.flows] {
        for batch in table.batches() {
            let mut gone = HashSet::new();
            for (key, flow) in batch?.iter().filter(|(key, flow)| lost.has(key, flow)) {
                // Both halves together: one that is left makes the other again. And looked at once more: the tuple may be
                // a new flow's by now.
                for half in [*key, flow.other_key(key)] {
                    if maps.flow(&half)?.is_some_and(|flow| lost.has(&half, &flow)) {
                        gone.insert(half);
                    }
                }
            }
            let gone: Vec<FlowKey<A>> = gone.into_iter().collect();
            maps.flows.remove(&gone)?;
            maps.opening.remove(&gone)?;
            forgotten += gone.len() as u64;
        }
    }
    Ok(forgotten)
}
