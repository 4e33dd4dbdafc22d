//! Which endpoints new connections choose from, and why not from the others. Pure.
//!
//! Ready ones serve; hints for zones ([`topology`]) narrow them where no policy does; if none is ready, those serve that
//! still do while they terminate. The plan takes what is judged taken here and `weir explain` says the same verdicts, so
//! that the two cannot disagree.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use serde::{Deserialize, Serialize};

use super::{MAX_ENDPOINTS, Serving, label};
use crate::plan::{
    model::{Endpoint, Node, Service, ServicePort, Slice},
    topology::{self, Hint},
};

/// What an endpoint is to new connections through frontends of one family and policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Taken, since it is ready.
    Ready,
    /// Taken, since it is ready and its hints are for this node's zone; others are narrowed out.
    Near,
    /// Taken, since it still serves while it terminates and none is ready.
    LastResort,
    /// It is not ready, and does not terminate.
    NotReady,
    /// It still serves while it terminates; others are ready.
    Terminating,
    /// It terminates and does not serve any more.
    Ended,
    /// Its hints are for other zones.
    OtherZone,
    /// It is on another node, and the policy is `Local`.
    NotLocal,
    /// It is of the other address family.
    OtherFamily,
    /// The service has more endpoints than are looked at.
    NoRoom,
}

impl Verdict {
    /// Whether new connections may choose it.
    pub fn takes(self) -> bool {
        matches!(self, Self::Ready | Self::Near | Self::LastResort)
    }
}

/// An endpoint and its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// Its address and port.
    pub address: SocketAddr,
    /// What it is.
    pub verdict: Verdict,
    /// How often slices list it. It counts once, as its best entry.
    pub listed: u32,
}

/// An endpoint that may serve.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) endpoint: Endpoint,
    hint: Hint,
    /// How many entries of slices it was made of.
    listed: u32,
}

/// The endpoints of one port from all slices; `leave_out` is told of each entry that has no room. One that is in several
/// slices, as while it moves between two, is as well as its best entry.
pub(super) fn endpoints<'a>(
    service: &Service,
    port: &ServicePort,
    slices: impl Iterator<Item = &'a Slice>,
    node: &Node,
    mut leave_out: impl FnMut(SocketAddr),
) -> BTreeMap<SocketAddr, Candidate> {
    let (room, zone) = (MAX_ENDPOINTS / service.ports.len().max(1), node.zone.as_deref());
    let mut all = BTreeMap::<SocketAddr, Candidate>::new();
    for slice in slices {
        let of_port = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
        for number in of_port.map(|p| p.port) {
            for endpoint in &slice.endpoints {
                let address = SocketAddr::new(endpoint.address, number);
                if all.len() >= room && !all.contains_key(&address) {
                    leave_out(address);
                    continue;
                }
                let hint = Hint::of(slice, endpoint, zone);
                all.entry(address)
                    .and_modify(|Candidate { endpoint: known, hint: known_hint, listed }| {
                        known.ready |= endpoint.ready;
                        known.serving |= endpoint.serving;
                        known.terminating &= endpoint.terminating;
                        known.local |= endpoint.local;
                        *known_hint = hint.max(*known_hint);
                        *listed += 1;
                    })
                    .or_insert(Candidate { endpoint: *endpoint, hint, listed: 1 });
            }
        }
    }
    all
}

/// Who serves frontends of one family and policy.
struct Choice<'a> {
    service: &'a Service,
    ipv4: bool,
    local_only: bool,
    stage: Stage,
}

/// The best that there is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Ready ones, and those for this zone alone.
    Near,
    /// All ready ones.
    Ready,
    /// None is ready: terminating ones that still serve.
    Leaving,
}

impl<'a> Choice<'a> {
    fn new(
        service: &'a Service,
        endpoints: &BTreeMap<SocketAddr, Candidate>,
        ipv4: bool,
        local_only: bool,
    ) -> Self {
        let mut choice = Self { service, ipv4, local_only, stage: Stage::Leaving };
        let ready = || {
            let admitted = endpoints.iter().filter(|(address, it)| choice.refuses(address, it).is_none());
            admitted.filter(|(_, it)| choice.is_ready(it))
        };
        choice.stage = if !local_only && topology::applies(ready().map(|(_, it)| it.hint)) {
            Stage::Near
        } else if ready().next().is_some() {
            Stage::Ready
        } else {
            Stage::Leaving
        };
        choice
    }

    /// Why it does not count, in whatever state it is.
    fn refuses(&self, address: &SocketAddr, candidate: &Candidate) -> Option<Verdict> {
        if address.is_ipv4() != self.ipv4 {
            Some(Verdict::OtherFamily)
        } else if self.local_only && !candidate.endpoint.local {
            Some(Verdict::NotLocal)
        } else {
            None
        }
    }

    fn is_ready(&self, candidate: &Candidate) -> bool {
        self.service.publish_not_ready || candidate.endpoint.ready
    }

    fn judge(&self, address: &SocketAddr, candidate: &Candidate) -> Verdict {
        if let Some(refused) = self.refuses(address, candidate) {
            return refused;
        }
        let Endpoint { serving, terminating, .. } = candidate.endpoint;
        match self.stage {
            Stage::Near if self.is_ready(candidate) && candidate.hint == Hint::Here => Verdict::Near,
            Stage::Near if self.is_ready(candidate) => Verdict::OtherZone,
            Stage::Ready if self.is_ready(candidate) => Verdict::Ready,
            Stage::Leaving if serving && terminating => Verdict::LastResort,
            _ if serving && terminating => Verdict::Terminating,
            _ if terminating => Verdict::Ended,
            _ => Verdict::NotReady,
        }
    }
}

/// Who serves, for each family and policy.
pub(super) fn serving(service: &Service, endpoints: &BTreeMap<SocketAddr, Candidate>) -> Serving {
    let taken = |ipv4: bool, local_only: bool| {
        let choice = Choice::new(service, endpoints, ipv4, local_only);
        let taken = endpoints.iter().filter(|(address, it)| choice.judge(address, it).takes());
        taken.map(|(address, _)| *address).collect()
    };
    Serving([true, false].map(|ipv4| [false, true].map(|local_only| taken(ipv4, local_only))))
}

/// What becomes of each endpoint of the port that has this label and protocol, by address; those that have no room come
/// last. Nothing without such a port.
pub fn judge<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Slice>,
    node: &Node,
    (name, protocol): (&str, u8),
    (ipv4, local_only): (bool, bool),
) -> Option<Vec<Judged>> {
    let mut ports = service.ports.iter();
    let port = ports.find(|port| port.protocol.0 == protocol && *label(&port.name, port.port) == *name)?;
    let mut left_out = BTreeSet::new();
    let endpoints = endpoints(service, port, slices, node, |address| {
        left_out.insert(address);
    });
    let choice = Choice::new(service, &endpoints, ipv4, local_only);
    let judged = endpoints.iter().map(|(address, it)| Judged {
        address: *address,
        verdict: choice.judge(address, it),
        listed: it.listed,
    });
    let no_room = |address| Judged { address, verdict: Verdict::NoRoom, listed: 1 };
    Some(judged.chain(left_out.into_iter().map(no_room)).collect())
}
