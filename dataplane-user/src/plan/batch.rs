//! Steps of several services carried out together.
//!
//! Kind by kind they become few system calls, and the order between kinds is what a single plan promises as well. Only
//! one pair must never change places: a frontend, a cluster IP, or a port of the node, that one service gives up and another
//! takes.

use std::{collections::HashSet, net::IpAddr};

use super::{
    model::{FrontendAddress, NodePort},
    step::Step,
};

/// What only one service at a time can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Property {
    Frontend(FrontendAddress),
    ClusterIp(IpAddr),
    NodePort(NodePort),
}

impl Property {
    /// What a step gives to a service.
    fn given(step: &Step) -> Option<Self> {
        match step {
            Step::WriteFrontend { address, .. } => Some(Self::Frontend(*address)),
            Step::WriteClusterIp { address } => Some(Self::ClusterIp(*address)),
            Step::WriteNodePort { port } => Some(Self::NodePort(*port)),
            _ => None,
        }
    }

    /// What a step takes from one.
    fn given_up(step: &Step) -> Option<Self> {
        match step {
            Step::RemoveFrontend { address } => Some(Self::Frontend(*address)),
            Step::RemoveClusterIp { address } => Some(Self::ClusterIp(*address)),
            Step::RemoveNodePort { port } => Some(Self::NodePort(*port)),
            _ => None,
        }
    }
}

/// Steps of one or more plans, in an order that can be carried out.
#[derive(Debug, Default)]
pub struct Batch {
    rounds: Vec<Vec<Step>>,
    given_up: HashSet<Property>,
}

impl Batch {
    /// Adds a later plan's steps.
    pub fn push(&mut self, steps: Vec<Step>) {
        let takes_over =
            steps.iter().filter_map(Property::given).any(|property| self.given_up.contains(&property));
        if takes_over || self.rounds.is_empty() {
            self.given_up.clear();
            self.rounds.push(Vec::new());
        }
        self.given_up.extend(steps.iter().filter_map(Property::given_up));
        self.rounds.last_mut().expect("a round was just made").extend(steps);
    }

    /// All steps, in order.
    pub fn into_steps(self) -> Vec<Step> {
        let sorted = self.rounds.into_iter().flat_map(|mut round| {
            round.sort_by_key(Step::phase);
            round
        });
        sorted.collect()
    }
}
