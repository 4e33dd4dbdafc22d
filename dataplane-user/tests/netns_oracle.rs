//! The differential oracle: connections to Services come to the same with Weir as with rules of kube-proxy's shape.
//!
//! Each file of `corpus/` has API objects, connections, and what is right; it knows of no implementation. Weir runs them
//! all first; then its programs leave the node and rules take over, on the same links. Where more than one way to end is
//! right, the file says why. Generated services have no expectation but that both sides come to the same.

mod oracle;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use oracle::{
    case::{Case, Outcome, read_all},
    generated::{self, Set},
    outcome,
    place::Place,
    sides::{Rules, Side, Weir},
};

/// Generated sets of services.
const SETS: usize = 24;

/// Cases that come out wrong today, and with whom. The test fails as well when one of them comes out right.
const KNOWN_WRONG: [(&str, &str); 0] = [];

/// What every connection of every case came to.
fn run(
    place: &Place,
    side: &mut impl Side,
    cases: &BTreeMap<String, Case>,
) -> BTreeMap<(String, usize), Outcome> {
    let mut all = BTreeMap::new();
    for (name, case) in cases {
        side.program(place, &case.services, &case.slices);
        for (number, connection) in case.connections.iter().enumerate() {
            all.insert((name.clone(), number), outcome(place, &connection.question()));
        }
    }
    all
}

#[test]
fn connections_come_to_the_same_as_with_kube_proxy() {
    let cases = read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus"));
    assert!(cases.len() >= 40, "{} cases", cases.len());
    let mut place = Place::new();
    let mut weir = Weir::start(&place);
    place.add_pods();
    let ours = run(&place, &mut weir, &cases);
    weir.leave(&place);
    let theirs = run(&place, &mut Rules, &cases);

    let (mut wrong, mut known) = (Vec::new(), BTreeSet::new());
    for (key, outcome) in &ours {
        let (name, number) = key;
        let case = &cases[name];
        let connection = &case.connections[*number];
        for (side, outcome) in [("Weir", outcome), ("rules", &theirs[key])] {
            let Err(difference) = connection.outcome.check(outcome) else { continue };
            if KNOWN_WRONG.contains(&(name, side)) {
                known.insert((name.as_str(), side));
                continue;
            }
            let (question, what) = (connection.question(), &case.description);
            wrong.push(format!("{name} ({what}): {side}: {question:?}: {difference}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} outcomes:\n{}", wrong.len(), ours.len() * 2, wrong.join("\n"));
    assert_eq!(known, BTreeSet::from(KNOWN_WRONG), "what is right now is known to be wrong no more");
}

/// What every connection of every set came to, without what may differ.
fn run_sets(place: &Place, side: &mut impl Side, sets: &[Set]) -> Vec<Vec<Outcome>> {
    let mut one = |set: &Set| {
        side.program(place, &set.services, &set.slices);
        set.questions.iter().map(|asked| asked.comparable(&outcome(place, &asked.question))).collect()
    };
    sets.iter().map(&mut one).collect()
}

#[test]
fn generated_services_come_to_the_same_as_with_kube_proxy() {
    let sets = generated::sets(SETS);
    let mut place = Place::new();
    let mut weir = Weir::start(&place);
    place.add_pods();
    let ours = run_sets(&place, &mut weir, &sets);
    weir.leave(&place);
    let theirs = run_sets(&place, &mut Rules, &sets);
    let mut wrong = Vec::new();
    for ((set, ours), theirs) in sets.iter().zip(ours).zip(theirs) {
        for ((asked, ours), theirs) in set.questions.iter().zip(ours).zip(theirs) {
            if ours != theirs {
                let objects = serde_yaml::to_string(&(&set.services, &set.slices)).expect("plain objects");
                wrong.push(format!("{:?}: {ours:?}, with rules {theirs:?}:\n{objects}", asked.question));
            }
        }
    }
    assert!(wrong.is_empty(), "{} outcomes differ:\n{}", wrong.len(), wrong.join("\n"));
}
