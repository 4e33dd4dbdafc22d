//! What planning one service comes to.

use std::collections::BTreeSet;

use super::{
    model::{FrontendAddress, PortName, ServiceKey},
    step::Step,
};

/// Input that cannot be served as asked; everything else of the service is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    /// Two services want one address and port.
    #[error("{frontend} is served by {owner} already; give one of the two another address or port")]
    Taken {
        /// What both want.
        frontend: FrontendAddress,
        /// Who has it.
        owner: ServiceKey,
    },
    /// Two ports of one object want one address and port.
    #[error(
        "{frontend} is asked for by two ports of this object, and the first has it; give the other another number"
    )]
    Twice {
        /// What both want.
        frontend: FrontendAddress,
    },
    /// A service has more endpoints than are looked at.
    #[error(
        "{left_out} endpoints get no connections: a service has room for {bound}; spread them over several services"
    )]
    TooManyEndpoints {
        /// How many have no room.
        left_out: usize,
        /// [`super::desired::MAX_ENDPOINTS`].
        bound: usize,
    },
    /// `frontends_*` is full.
    #[error(
        "{left_out} addresses are not served: this node has room for {bound} frontends; delete services that nobody uses"
    )]
    FrontendsFull {
        /// How many have no room.
        left_out: usize,
        /// The map's bound.
        bound: u32,
    },
    /// `backends_*` is full.
    #[error(
        "{left_out} endpoints get no connections: this node has room for {bound} backends; spread the endpoints over fewer services"
    )]
    BackendsFull {
        /// How many have no room.
        left_out: usize,
        /// The map's bound.
        bound: u32,
    },
    /// `source_ranges_*` is full.
    #[error(
        "clients of {left_out} source ranges are refused: this node has room for {bound} ranges; give larger ranges, or fewer ports"
    )]
    SourceRangesFull {
        /// How many have no room.
        left_out: usize,
        /// The map's bound.
        bound: u32,
    },
    /// `maglev` is full.
    #[error(
        "a change of endpoints cannot take effect: all {bound} slots of the lookup tables are in use; delete services that nobody uses"
    )]
    SlotsFull {
        /// The map's bound.
        bound: u32,
    },
}

/// What to do for one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Map writes, in order.
    pub steps: Vec<Step>,
    /// What cannot be served, and why.
    pub problems: Vec<Problem>,
    /// Service ids that mean something new (a label) or nothing any more.
    pub names: Vec<(u32, Option<PortName>)>,
    /// Service ids of UDP ports that have fewer endpoints that serve than before: flows to the others are over
    /// ([`super::Books::serving`]).
    pub lost: BTreeSet<u32>,
    /// Services that wanted a frontend which this plan gave up.
    pub again: BTreeSet<ServiceKey>,
}
