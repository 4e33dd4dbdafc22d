//! The explanation for people.

use std::fmt::Write as _;

use super::{ExplainArgs, Explanation, NotTaken, Report};

/// One line for each thing that there is to say.
pub(super) fn text(report: &Report, args: &ExplainArgs) -> String {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").expect("a string takes everything");
    line(format!("{} {} -> {}", args.protocol, args.source, args.destination));
    for (name, flow) in [("request", &report.flows.request), ("reply", &report.flows.reply)] {
        line(match flow {
            None => format!("  flow, {name}: none"),
            Some(flow) => format!(
                "  flow, {name}: {} -> {} becomes {} -> {}, {}, {} packets, idle {}",
                flow.source,
                flow.destination,
                flow.new_source,
                flow.new_destination,
                flow.state,
                flow.packets,
                flow.idle_s.map_or_else(|| "unknown".into(), |seconds| format!("{seconds} s")),
            ),
        });
    }
    for scope in &report.scopes {
        let whence = if scope.scope == "internal" { "from this node" } else { "from outside" };
        let service = scope.service.as_deref().unwrap_or("no service");
        let policy = scope.policy.map(|policy| format!(", policy {policy}")).unwrap_or_default();
        line(format!("  {whence} ({}): {service}{policy}", scope.scope));
        endpoints(scope, &mut line);
        if let Some(affinity) = &scope.affinity {
            line(format!(
                "    session affinity: {} stays with {} for another {} s",
                args.source.ip(),
                affinity.backend,
                affinity.left_s
            ));
        }
        if let Some(slot) = scope.slot {
            line(format!("    slot {slot} of {}", scope.slots));
        }
        for path in &scope.paths {
            line(format!("    {path}"));
        }
    }
    out
}

/// Who is in the table, who is not, and why.
fn endpoints(scope: &Explanation, line: &mut impl FnMut(String)) {
    for candidate in &scope.candidates {
        let chosen = if Some(candidate.address) == scope.chosen { "  <- chosen" } else { "" };
        let place = if candidate.local { "here" } else { "elsewhere" };
        let state = if candidate.active { "" } else { ", not in use any more" };
        let why = candidate.why.as_ref().map(|why| format!(", {why}")).unwrap_or_default();
        line(format!(
            "    {} ({place}{state}): {} of {} slots{why}{chosen}",
            candidate.address, candidate.slots, scope.slots
        ));
    }
    for NotTaken { address, why, .. } in &scope.not_taken {
        line(format!("    {address}: not taken, {why}"));
    }
    if scope.not_told > 0 {
        line(format!("    {} more endpoints, of which nothing is said here", scope.not_told));
    }
    for complaint in &scope.complaints {
        line(format!("    not served as asked: {complaint}"));
    }
    if let Some(unknown) = &scope.reasons_unknown {
        line(format!("    why other endpoints are not taken is not known: {unknown}"));
    }
}
