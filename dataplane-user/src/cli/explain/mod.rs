//! `weir explain`: what would happen to one 5-tuple, and why, from the maps that the programs read.
//!
//! The hash and the slot come from the ABI crate's own functions, so that this cannot disagree with the programs. What the
//! maps do not hold is why other endpoints are not in them: the agent is asked for that, and without one everything else
//! is said all the same.

mod text;
mod why;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use weir_dataplane_ebpf::{
    AffinityKey, Backend, FlowKey, Frontend, FrontendKey, NodeConfig, Protocol, Scope, hash, maglev,
};

use self::text::text;
pub use self::why::NotTaken;
use super::{
    CliError, Output, json, require_loaded,
    views::{Clock, FlowRow, Reader, ViewArgs, policy_name, scope_name},
};
use crate::{
    kernel::maps::{Family, FamilyMaps, backend_address},
    paths::Paths,
    plan::desired::Verdict,
};

/// `weir explain PROTOCOL SOURCE DESTINATION`.
#[derive(Clone, Debug, clap::Args)]
pub struct ExplainArgs {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The client's ADDRESS:PORT.
    pub source: SocketAddr,
    /// The service's ADDRESS:PORT.
    pub destination: SocketAddr,
    /// Where to read and how to print.
    #[command(flatten)]
    pub view: ViewArgs,
}

/// What would happen in one scope.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `internal`: from a pod or process of this node; `external`: from an uplink.
    pub scope: &'static str,
    /// `namespace/name:port`; nothing when no service has this address and port.
    pub service: Option<String>,
    /// `local` or `cluster`.
    pub policy: Option<&'static str>,
    /// The lookup table's size.
    pub slots: u32,
    /// The client is in none of the service's source ranges.
    pub refused: bool,
    /// What session affinity remembers of this client, when that decides.
    pub affinity: Option<AffinityReport>,
    /// Where the tuple's hash points, within the table, when that decides.
    pub slot: Option<u32>,
    /// What a new connection gets.
    pub chosen: Option<SocketAddr>,
    /// Everything in the table.
    pub candidates: Vec<Candidate>,
    /// The service's endpoints that are not in it.
    pub not_taken: Vec<NotTaken>,
    /// Endpoints that nothing is said of: a service has more than an answer of the agent has room for.
    pub not_told: usize,
    /// What of the service is not served as asked.
    pub complaints: Vec<String>,
    /// Why it is not known why endpoints are taken or are not, if so.
    pub reasons_unknown: Option<String>,
    /// What the programs would do, path by path.
    pub paths: Vec<String>,
}

/// A backend in the table.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// Its id.
    pub id: u32,
    /// Its address and port.
    pub address: SocketAddr,
    /// It runs on this node.
    pub local: bool,
    /// The other node that it runs on, as far as that is known.
    pub node: Option<IpAddr>,
    /// Its id is in use; otherwise a packet that chooses it is dropped as `stale-backend`.
    pub active: bool,
    /// Slots that name it.
    pub slots: u32,
    /// What the agent judges it to be; nothing when that is not known, or it is no endpoint of the service any more.
    pub verdict: Option<Verdict>,
    /// The same in words.
    pub why: Option<String>,
}

/// A client's choice that still stands.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AffinityReport {
    /// The backend that the client had last.
    pub backend: SocketAddr,
    /// Seconds for which a new connection still gets it, unless the client is heard before.
    pub left_s: u32,
}

/// What is known of the connection already.
#[derive(Clone, Debug, Serialize)]
pub struct FlowReport {
    /// The packet as asked.
    pub request: Option<FlowRow>,
    /// Its answer.
    pub reply: Option<FlowRow>,
}

#[derive(Debug, Serialize)]
struct Report {
    flows: FlowReport,
    scopes: Vec<Explanation>,
}

/// Explains a tuple as text.
pub fn explain(args: &ExplainArgs) -> Result<String, CliError> {
    let paths = Paths::new(&args.view.run_dir);
    require_loaded(&paths)?;
    let protocol = match args.protocol.as_str() {
        "tcp" => Protocol::TCP,
        "udp" => Protocol::UDP,
        "sctp" => Protocol::SCTP,
        other => return Err(CliError::Protocol(other.to_owned())),
    };
    if args.source.is_ipv4() != args.destination.is_ipv4() {
        return Err(CliError::MixedFamilies);
    }
    let reader = Reader::open(&paths)?;
    let report = if args.source.is_ipv4() {
        report(&reader, &reader.maps.v4, protocol, args)?
    } else {
        report(&reader, &reader.maps.v6, protocol, args)?
    };
    Ok(match args.view.output {
        Output::Json => json(&report),
        Output::Table => text(&report, args),
    })
}

fn report<A: Family>(
    reader: &Reader,
    maps: &FamilyMaps<A>,
    protocol: Protocol,
    args: &ExplainArgs,
) -> Result<Report, CliError> {
    let key = A::tuple(protocol, args.source, args.destination).ok_or(CliError::MixedFamilies)?;
    let request = maps.flow(&key)?;
    let reply_key = request.map_or_else(|| key.reversed(), |flow| flow.other_key(&key));
    let reply = maps.flow(&reply_key)?;
    let clock = Clock::measure();
    let flows = FlowReport {
        request: request.map(|flow| reader.flow_row(&key, &flow, &clock)),
        reply: reply.map(|flow| reader.flow_row(&reply_key, &flow, &clock)),
    };
    let mut scopes = Vec::new();
    for scope in [Scope::INTERNAL, Scope::EXTERNAL] {
        scopes.push(explain_scope(reader, maps, &key, scope, request.is_some())?);
    }
    Ok(Report { flows, scopes })
}

fn explain_scope<A: Family>(
    reader: &Reader,
    maps: &FamilyMaps<A>,
    key: &FlowKey<A>,
    scope: Scope,
    known: bool,
) -> Result<Explanation, CliError> {
    let mut explanation = Explanation { scope: scope_name(scope), ..Explanation::default() };
    let frontend_key =
        FrontendKey { address: key.destination, port: key.destination_port, protocol: key.protocol, scope };
    let Some(frontend) = maps.frontends.get(&frontend_key)? else {
        let inside = scope == Scope::INTERNAL;
        let path = if inside && !known && maps.cluster_ips.get(&key.destination)?.is_some() {
            "TC on the pod link: rejects with a TCP RST or ICMP port unreachable: unknown-port"
        } else if !inside || !leaves(reader, maps, key.destination)? {
            "no service has this address and port here: passed on untouched"
        } else if known {
            "no service has this address and port here: follows its flow entry"
        } else {
            "no service has this address and port here: what a pod opens to it leaves with the address of the uplink \
             that routes name, if they name one"
        };
        explanation.paths.push(path.into());
        return Ok(explanation);
    };
    explanation.service = Some(reader.service(frontend.service));
    explanation.policy = Some(policy_name(&frontend));
    explanation.refused = frontend.flags & Frontend::FLAG_SOURCE_RANGES != 0
        && !maps.source_ranges.admits(frontend.service, key.source)?;
    if frontend.backends > 0 {
        explanation.slots = frontend.maglev_mask.saturating_add(1);
        explanation.candidates = candidates(reader, maps, &frontend)?;
        explanation.affinity = affinity(reader, maps, &frontend, key.source)?;
        if let Some(affinity) = &explanation.affinity {
            explanation.chosen = Some(affinity.backend);
        } else {
            let slot = hash::flow_slot(&frontend, key);
            let id = reader.maps.maglev.at(slot)?;
            explanation.slot = Some(slot.wrapping_sub(frontend.maglev_offset));
            explanation.chosen = explanation.candidates.iter().find(|c| c.id == id).map(|c| c.address);
        }
    }
    why::add(&mut explanation, reader, &frontend, key.destination.ip().is_ipv4());
    explanation.paths = paths(reader, &frontend, &explanation, scope, known)?;
    Ok(explanation)
}

/// Whether pods' packets to this address are masqueraded.
fn leaves<A: Family>(reader: &Reader, maps: &FamilyMaps<A>, to: A) -> Result<bool, CliError> {
    let flag =
        if to.ip().is_ipv4() { NodeConfig::FLAG_MASQUERADE_V4 } else { NodeConfig::FLAG_MASQUERADE_V6 };
    Ok(reader.maps.node_config.at(0)?.flags & flag != 0 && !maps.non_masquerade.holds(to)?)
}

/// The client's choice, asked for as the programs do.
fn affinity<A: Family>(
    reader: &Reader,
    maps: &FamilyMaps<A>,
    frontend: &Frontend,
    client: A,
) -> Result<Option<AffinityReport>, CliError> {
    let key = AffinityKey { client, service: frontend.service };
    let Some(choice) = maps.affinity.get(&key)? else { return Ok(None) };
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map_err(|error| CliError::Io { operation: "read the clock", source: error.into() })?;
    let Some(left_s) = choice.left_s(now.tv_sec() as u32, frontend.affinity_timeout_s) else {
        return Ok(None);
    };
    let backend = maps.backends.at(choice.backend)?;
    let serves = backend.flags & Backend::<A>::FLAG_ACTIVE != 0
        && maglev::is_member(frontend, choice.backend, &backend, |slot| reader.maps.maglev.at(slot).ok());
    Ok(serves.then(|| AffinityReport { backend: backend_address(&backend), left_s }))
}

fn candidates<A: Family>(
    reader: &Reader,
    maps: &FamilyMaps<A>,
    frontend: &Frontend,
) -> Result<Vec<Candidate>, CliError> {
    let mut shares = BTreeMap::<u32, u32>::new();
    for slot in 0..=frontend.maglev_mask {
        *shares.entry(reader.maps.maglev.at(frontend.maglev_offset.wrapping_add(slot))?).or_default() += 1;
    }
    let rows = shares.into_iter().map(|(id, slots)| {
        let backend = maps.backends.at(id)?;
        Ok(Candidate {
            id,
            address: backend_address(&backend),
            local: backend.flags & Backend::<A>::FLAG_LOCAL != 0,
            node: Some(backend.node.ip()).filter(|node| !node.is_unspecified()),
            active: backend.flags & Backend::<A>::FLAG_ACTIVE != 0,
            slots,
            verdict: None,
            why: None,
        })
    });
    rows.collect()
}

/// What becomes of a packet, and whether that is an answer that refuses it.
fn packet_path(frontend: &Frontend, explanation: &Explanation, known: bool) -> (String, bool) {
    match (explanation.chosen, frontend.flags & Frontend::FLAG_SERVED_ELSEWHERE != 0) {
        _ if known => ("follows its flow entry".to_owned(), false),
        _ if explanation.refused => {
            let why = "drops: source-range, the client is in none of the service's loadBalancerSourceRanges";
            (why.to_owned(), false)
        }
        (Some(backend), _) => (format!("opens a flow to {backend}{}", far_way(frontend, explanation)), false),
        (None, true) => ("drops: no-local-backend".to_owned(), false),
        (None, false) => ("rejects with a TCP RST or ICMP port unreachable: no-backend".to_owned(), true),
    }
}

/// How a packet gets to a chosen backend on another node, when that answers the client itself.
fn far_way(frontend: &Frontend, explanation: &Explanation) -> String {
    let chosen = explanation.candidates.iter().find(|it| Some(it.address) == explanation.chosen);
    let node = chosen.filter(|it| !it.local).and_then(|it| it.node);
    let Some(node) = node.filter(|_| frontend.flags & Frontend::FLAG_DIRECT_RETURN != 0) else {
        return String::new();
    };
    if frontend.flags & Frontend::FLAG_OPTION == 0 {
        format!(", inside packets to node {node}, which answers the client (dsr)")
    } else {
        format!(
            ", with an option that names the frontend to node {node}, which answers the client (dsr-option)"
        )
    }
}

fn paths(
    reader: &Reader,
    frontend: &Frontend,
    explanation: &Explanation,
    scope: Scope,
    known: bool,
) -> Result<Vec<String>, CliError> {
    let (packet, rejected) = packet_path(frontend, explanation, known);
    if scope == Scope::EXTERNAL {
        let xdp = if rejected {
            "left to TC".to_owned()
        } else {
            format!("{packet}; what has an unfinished checksum, or no known next hop, is left to TC")
        };
        return Ok(vec![format!("XDP on the uplink: {xdp}"), format!("TC on the uplink: {packet}")]);
    }
    let hooks = reader.maps.node_config.at(0)?.flags & NodeConfig::FLAG_SOCKET_LB != 0;
    let socket = if hooks { socket_hook(frontend, explanation.candidates.len()) } else { "off".to_owned() };
    Ok(vec![format!("socket hook: {socket}"), format!("TC on the pod link: {packet}")])
}

/// What `connect` and `sendmsg` do, which depends on no tuple.
fn socket_hook(frontend: &Frontend, candidates: usize) -> String {
    let choice = if candidates == 0 {
        "refuses the connection (ECONNREFUSED)".to_owned()
    } else {
        let sticky = frontend.affinity_timeout_s != 0;
        let rule = if sticky { "the same for a whole network namespace" } else { "whatever the port" };
        format!("connect and sendmsg choose one of {candidates} backends, {rule}")
    };
    if frontend.flags & Frontend::FLAG_SOURCE_RANGES == 0 {
        return choice;
    }
    let of_node = if frontend.flags & Frontend::FLAG_NODE_IN_RANGE == 0 {
        "refuses processes of the node, which is in none of the service's loadBalancerSourceRanges (EPERM)"
    } else {
        &choice
    };
    format!("leaves pods to TC, by their addresses; {of_node}")
}

#[cfg(test)]
mod tests;
