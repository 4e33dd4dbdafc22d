//! Cases that are run against two implementations of Services, over the same links.

#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod case;
pub(crate) mod generated;
pub(crate) mod objects;
pub(crate) mod place;
pub(crate) mod sides;

use self::{
    case::{Client, Failure, Outcome, Protocol, Question, Try},
    place::Place,
};

/// Tries of a connection: four endpoints are all found but once in 10^7 runs.
const TRIES: usize = 64;
/// The same of the node's own processes, which take longer: all four are found but once in 10^5 runs.
const NODE_TRIES: usize = 48;

/// What a connection comes to.
pub(crate) fn outcome(place: &Place, question: &Question) -> Outcome {
    let mut outcome = Outcome::new();
    let tries = if question.from == Client::Node { NODE_TRIES } else { TRIES };
    for _ in 0..tries {
        let mut one = place.attempt(question);
        let doubtful = question.protocol == Protocol::Udp || !outcome.is_empty();
        if doubtful && one == Try::Failed(Failure::Silent) {
            // Nobody promises that a datagram arrives; and where others came through, a busy machine may be the cause.
            one = place.attempt(question);
        }
        let failed = matches!(one, Try::Failed(_));
        outcome.insert(one);
        if failed {
            // One is enough to be compared, and silence takes long.
            break;
        }
    }
    outcome
}
