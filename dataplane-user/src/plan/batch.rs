//! Steps of several services carried out together.
//!
//! Kind by kind they become few system calls, and the order between kinds is what a single plan promises as well. Only
//! one pair must never change places: a frontend, or a port of the node, that one service gives up and another takes.

use std::collections::HashSet;

use super::{
    model::{FrontendAddress, NodePort},
    step::Step,
};

/// Steps of one or more plans, in an order that can be carried out.
#[derive(Debug, Default)]
pub struct Batch {
    rounds: Vec<Vec<Step>>,
    given_up: HashSet<FrontendAddress>,
    given_up_ports: HashSet<NodePort>,
}

impl Batch {
    /// Adds a later plan's steps.
    pub fn push(&mut self, steps: Vec<Step>) {
        let takes_over = steps.iter().any(|step| match step {
            Step::WriteFrontend { address, .. } => self.given_up.contains(address),
            Step::WriteNodePort { port } => self.given_up_ports.contains(port),
            _ => false,
        });
        if takes_over || self.rounds.is_empty() {
            self.given_up.clear();
            self.given_up_ports.clear();
            self.rounds.push(Vec::new());
        }
        for step in &steps {
            match step {
                Step::RemoveFrontend { address } => drop(self.given_up.insert(*address)),
                Step::RemoveNodePort { port } => drop(self.given_up_ports.insert(*port)),
                _ => {}
            }
        }
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
