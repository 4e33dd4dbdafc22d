//! Why endpoints are in the table, or are not: the maps beside what the agent says.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::Serialize;
use weir_dataplane_ebpf::Frontend;

use super::{Explanation, Reader};
use crate::{
    plan::desired::{Judged, MAX_ENDPOINTS, Verdict},
    reasons::{Answer, Question, Reasons, ask},
};

/// An endpoint of the service that is not in the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotTaken {
    /// Its address and port.
    pub address: SocketAddr,
    /// What the agent judges it to be.
    pub verdict: Verdict,
    /// The same in words.
    pub why: String,
}

/// Asks the agent, and adds what it says, or why it says nothing.
pub(super) fn add(explanation: &mut Explanation, reader: &Reader, frontend: &Frontend, ipv4: bool) {
    match reasons(reader, frontend, ipv4) {
        Ok(reasons) => merge(explanation, reasons),
        Err(unknown) => explanation.reasons_unknown = Some(unknown),
    }
}

fn reasons(reader: &Reader, frontend: &Frontend, ipv4: bool) -> Result<Reasons, String> {
    let port = reader.names.get(&frontend.service).ok_or("the service's name is lost")?;
    let local_only = frontend.flags & Frontend::FLAG_LOCAL_POLICY != 0;
    let answer = ask(&reader.reasons, &Question::new(port, ipv4, local_only));
    match answer.map_err(|error| error.to_string())? {
        Answer::Reasons(reasons) => Ok(reasons),
        Answer::Unknown => Err("the agent knows no such service port any more".into()),
        Answer::TooEarly => Err("the agent has not read the API yet".into()),
    }
}

/// Says of each endpoint what the agent judges and what the maps have.
pub(super) fn merge(explanation: &mut Explanation, reasons: Reasons) {
    let mut judged: BTreeMap<SocketAddr, Judged> =
        reasons.endpoints.into_iter().map(|it| (it.address, it)).collect();
    let (zone, all_told) = (reasons.zone.as_deref(), reasons.more == 0);
    for candidate in &mut explanation.candidates {
        let Some(found) = judged.remove(&candidate.address) else {
            let gone = "still in the table, but no endpoint of the service any more";
            candidate.why = all_told.then(|| gone.to_owned());
            continue;
        };
        let why = words(&found, zone);
        candidate.verdict = Some(found.verdict);
        candidate.why =
            Some(if found.verdict.takes() { why } else { format!("still in the table, but {why}") });
    }
    let not_taken = judged.into_values().map(|found| {
        let why = words(&found, zone);
        let why = if found.verdict.takes() { format!("{why}, but not in the maps") } else { why };
        NotTaken { address: found.address, verdict: found.verdict, why }
    });
    explanation.not_taken = not_taken.collect();
    explanation.not_told = reasons.more;
    explanation.complaints = reasons.complaints;
}

fn words(judged: &Judged, zone: Option<&str>) -> String {
    let zone = zone.unwrap_or("none");
    let words = match judged.verdict {
        Verdict::Ready => "ready".to_owned(),
        Verdict::Near => format!("ready and meant for zone {zone}"),
        Verdict::LastResort => "terminating but serving, and none is ready".to_owned(),
        Verdict::NotReady => "not ready".to_owned(),
        Verdict::Terminating => "terminating, and others are ready".to_owned(),
        Verdict::Ended => "terminating and not serving any more".to_owned(),
        Verdict::OtherZone => format!("meant for other zones than this node's {zone}"),
        Verdict::NotLocal => "on another node, and the policy is local".to_owned(),
        Verdict::OtherFamily => "of the other address family".to_owned(),
        Verdict::NoRoom => {
            format!("beyond the endpoints that a service has room for, {MAX_ENDPOINTS} for all its ports")
        }
    };
    match judged.listed {
        0 | 1 => words,
        listed => format!("{words}; in {listed} slices, and counts once"),
    }
}
