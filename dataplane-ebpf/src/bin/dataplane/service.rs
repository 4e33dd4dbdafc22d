//! The decision about a packet: a known flow, a service's new one, a pod of this node, or nobody's.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use weir_dataplane_ebpf::{
    AffinityKey, Backend, Be16, DropReason, Flow, FlowKey, FlowState, Frontend, FrontendKey, Ip4, Ip6, Scope,
    hash,
    maps::{MASQUERADE_PORT_FIRST, MASQUERADE_PORTS, MASQUERADE_TRIES},
};

use crate::{
    affinity,
    counters::Verdict,
    filter,
    flow::{self, Arrival},
    kernel::now_jiffies,
    log,
    maps::{Draft, Family, NODE_CONFIG, UPLINKS_MAP},
    opening,
    parse::{self, Frame, Headers, Kind, Layout, Tcp, TcpFlags, Transport, Udp},
    rewrite::{self, Hook},
    route, source_range,
};

/// EEXIST, as a helper returns it.
const EXISTS: i32 = -17;

/// What became of the attempt to open a flow. One scalar, since a subprogram returns no more.
enum Opened {
    /// The entries stand; rewrite.
    Serve,
    /// A program that can redirect must do it.
    Leave,
    /// No flow, and no service has the address.
    Nobody,
    /// Refused.
    Drop(DropReason),
}

/// What [`start`] must know of the place.
struct Origin {
    arrival: Arrival,
    scope: Scope,
    has_stack: bool,
    length: u32,
    flags: TcpFlags,
}

/// Reads a frame, decides about its packet and rewrites it.
#[inline(always)]
pub fn serve<H: Hook>(hook: &H, frame_length: u32) -> Verdict {
    let frame = hook.frame();
    match parse::kind(frame) {
        Ok(Kind::V4) => serve_family::<Ip4, H>(hook, frame, frame_length),
        Ok(Kind::V6) => serve_family::<Ip6, H>(hook, frame, frame_length),
        Err(error) => error.verdict(),
    }
}

#[inline(always)]
fn serve_family<A: Layout, H: Hook>(hook: &H, frame: Frame, frame_length: u32) -> Verdict {
    match parse::network::<A>(frame, frame_length) {
        Ok((Tcp::PROTOCOL, length)) => serve_transport::<A, Tcp, H>(hook, frame, length),
        Ok((Udp::PROTOCOL, length)) => serve_transport::<A, Udp, H>(hook, frame, length),
        Ok((protocol, length)) if protocol == A::ICMP => hook.serve_icmp::<A>(length),
        Ok(_) => Verdict::Pass,
        Err(error) => error.verdict(),
    }
}

#[inline(always)]
fn serve_transport<A: Layout, T: Transport, H: Hook>(hook: &H, frame: Frame, length: u32) -> Verdict {
    let headers = match parse::headers::<A, T>(frame, length) {
        Ok(headers) => headers,
        Err(error) => return error.verdict(),
    };
    let verdict = match decide::<A, T, H>(hook, &headers) {
        Verdict::Drop(DropReason::NoBackend) => hook.refuse::<A, T>(&headers),
        verdict => verdict,
    };
    if let Verdict::Drop(reason) | Verdict::Answer(reason) = verdict {
        log::dropped(&headers.key, hook.ifindex(), reason);
    }
    verdict
}

/// A known flow, a service, or neither. Most packets of a node are neither, and know it from the filter alone.
#[inline(always)]
fn decide<A: Layout, T: Transport, H: Hook>(hook: &H, headers: &Headers<A>) -> Verdict {
    let key = &headers.key;
    if !filter::concerns(key) {
        return pass(hook, headers);
    }
    if let Some(verdict) = flow::follow::<A, T, H>(hook, headers) {
        return verdict;
    }
    if hook.unfinished::<A, T>(headers) {
        return Verdict::Pass;
    }
    let origin = Origin {
        arrival: Arrival::of(hook),
        scope: hook.scope(),
        has_stack: H::HAS_STACK,
        length: headers.length,
        flags: headers.flags,
    };
    let Some(draft) = A::draft() else { return Verdict::Pass };
    // SAFETY: the draft is this CPU's own, see `Draft`.
    let draft = unsafe { &mut *draft };
    match start(key, &origin, draft) {
        Opened::Serve => rewrite::translate::<A, T, H>(hook, headers, &draft.flow),
        Opened::Leave => Verdict::Pass,
        Opened::Nobody => pass(hook, headers),
        Opened::Drop(reason) => Verdict::Drop(reason),
    }
}

/// Nobody's packet: into the pod it is for, or up the stack.
#[inline(always)]
fn pass<A: Layout, H: Hook>(hook: &H, headers: &Headers<A>) -> Verdict {
    if !H::HAS_STACK {
        return Verdict::Pass;
    }
    // SAFETY: as in `flow::lead_to_pod`.
    match unsafe { A::endpoints().get(&headers.key.destination) } {
        Some(endpoint) => rewrite::deliver::<A>(hook.frame(), headers.ttl, endpoint),
        None => Verdict::Pass,
    }
}

/// A packet of a flow that is opening, the first packet of one, or one whose entry was lost.
#[inline(never)]
fn start<A: Layout>(key: &FlowKey<A>, origin: &Origin, draft: &mut Draft<A>) -> Opened {
    if opening::find(key, &mut draft.flow) && flow::has_backend(&draft.flow) {
        return go_on(key, origin, draft);
    }
    let frontend_key = FrontendKey {
        address: key.destination,
        port: key.destination_port,
        protocol: key.protocol,
        scope: origin.scope,
    };
    // SAFETY: the agent replaces a frontend whole, and the old value stays readable for this program's run.
    match unsafe { A::frontends().get(&frontend_key) } {
        Some(frontend) if !origin.flags.accepts() => open(key, frontend, origin, draft),
        _ => Opened::Nobody,
    }
}

/// A flow that is opening: establishes it if this packet shows that both sides speak.
#[inline(always)]
fn go_on<A: Layout>(key: &FlowKey<A>, origin: &Origin, draft: &mut Draft<A>) -> Opened {
    let flow = &mut draft.flow;
    let known_way = origin.has_stack || flow.ifindex == 0 || flow.flags & Flow::<A>::FLAG_NEXT_HOP != 0;
    if !known_way
        && (flow.flags & Flow::<A>::FLAG_TO_POD != 0
            || !route::find_next_hop(origin.arrival.context, flow, origin.arrival.ifindex))
    {
        return Opened::Leave;
    }
    let flags = origin.flags;
    if flow::establishes(key.protocol, flow.flags) && !flags.opens() && !flags.resets() {
        flow.packets += 1;
        flow.bytes += u64::from(origin.length);
        let state = if flags.finishes() { FlowState::CLOSING } else { FlowState::ESTABLISHED };
        opening::establish(key, state, draft, origin.arrival.way_back);
        return Opened::Serve;
    }
    opening::count(key, origin.length);
    let answers = flow.flags & Flow::<A>::FLAG_REPLY != 0;
    // The answer's entry may have been pushed out meanwhile.
    if answers || !matches!(reserve_answer(key, origin, draft), Answer::Taken) {
        Opened::Serve
    } else {
        Opened::Drop(DropReason::PortsExhausted)
    }
}

/// Chooses a backend and makes both entries, the answer's first: no packet can be answered before its answer is known.
#[inline(always)]
fn open<A: Layout>(key: &FlowKey<A>, frontend: &Frontend, origin: &Origin, draft: &mut Draft<A>) -> Opened {
    if !source_range::admits(frontend, key.source) {
        return Opened::Drop(DropReason::SourceRange);
    }
    let client = AffinityKey { client: key.source, service: frontend.service };
    let slot = hash::flow_slot(frontend, key);
    let (id, backend) = match affinity::choose::<A, A>(A::affinity(), &client, frontend, slot) {
        Ok(found) => found,
        Err(reason) => return Opened::Drop(reason),
    };
    let here = backend.flags & Backend::<A>::FLAG_LOCAL != 0;
    let outside = origin.scope.0 == Scope::EXTERNAL.0;
    // The answer must come back through this node: a pod would answer itself directly, and a backend on another node
    // would answer a client outside past this one.
    let far = outside && !here;
    let hairpin = backend.address == key.source;
    if hairpin && !origin.has_stack {
        return Opened::Leave;
    }
    draft.flow = Flow {
        packets: 1,
        bytes: u64::from(origin.length),
        source: key.source,
        destination: backend.address,
        source_port: key.source_port,
        destination_port: backend.port,
        last_seen_jiffies: now_jiffies(),
        service: frontend.service,
        backend: id,
        state: FlowState::OPENING,
        flags: if frontend.affinity_timeout_s == 0 { 0 } else { Flow::<A>::FLAG_AFFINITY },
        ..Flow::default()
    };
    let flow = &mut draft.flow;
    if far {
        flow.ifindex = origin.arrival.ifindex;
        if !route::find_next_hop(origin.arrival.context, flow, origin.arrival.ifindex) && !origin.has_stack {
            return Opened::Leave;
        }
    } else if origin.has_stack {
        flow::lead_to_pod(flow);
    }
    if far || hairpin {
        let Some(own) = own_address::<A>(flow) else { return Opened::Drop(DropReason::NoGateway) };
        flow.source = own;
        flow.source_port = masquerade_port(key, 0);
    }
    let mut attempt = 0;
    while attempt < MASQUERADE_TRIES {
        rewrite::set_deltas(key, &mut draft.flow);
        let standing = match reserve_answer(key, origin, draft) {
            Answer::Reserved => FlowState::OPENING,
            Answer::Stands(state) => state,
            Answer::Full => return Opened::Drop(DropReason::FlowTableFull),
            Answer::Taken => {
                attempt += 1;
                draft.flow.source_port = masquerade_port(key, attempt);
                continue;
            }
        };
        // Without room for this half the packet is still served, and so is the next one: Maglev finds the same backend,
        // and the answer's entry is there.
        if standing.0 == FlowState::OPENING.0 {
            let _ = A::opening().insert(key, &draft.flow, u64::from(BPF_ANY));
        } else {
            draft.flow.state = standing;
            let _ = A::flows().insert(key, &draft.flow, u64::from(BPF_ANY));
        }
        if frontend.affinity_timeout_s != 0 {
            affinity::record(A::affinity(), &client, id);
        }
        return Opened::Serve;
    }
    Opened::Drop(DropReason::PortsExhausted)
}

/// What became of the attempt to make the answer's entry.
enum Answer {
    /// It is among the opening ones.
    Reserved,
    /// It is among the established ones, in this state.
    Stands(FlowState),
    /// Another flow of the same client and backend has this tuple.
    Taken,
    Full,
}

/// Makes the answer's entry, or finds that it stands already. Two frontends may lead one client port to one backend;
/// then the tuple of the answer would be the same for both, and the second flow must take another port.
#[inline(always)]
fn reserve_answer<A: Layout>(key: &FlowKey<A>, origin: &Origin, draft: &mut Draft<A>) -> Answer {
    let answer_key = draft.flow.reply_key(key.protocol);
    // SAFETY: as in `flow::follow`.
    if let Some(standing) = unsafe { A::flows().get(&answer_key) } {
        let over = standing.state.0 == FlowState::CLOSED.0;
        if !over && !answers(standing, key) {
            return Answer::Taken;
        }
        if !over && !origin.flags.opens() {
            return Answer::Stands(standing.state);
        }
        // Of the connection before.
        let _ = A::flows().remove(&answer_key);
    }
    // SAFETY: an entry stays mapped memory; should it become another flow's meanwhile, that has another tuple.
    if let Some(standing) = unsafe { A::opening().get(&answer_key) } {
        return if answers(standing, key) { Answer::Reserved } else { Answer::Taken };
    }
    draft.answer = flow::opposite(key, &draft.flow, origin.arrival.way_back);
    match A::opening().insert(&answer_key, &draft.answer, u64::from(BPF_NOEXIST)) {
        Ok(()) => Answer::Reserved,
        Err(EXISTS) => Answer::Taken,
        Err(_) => Answer::Full,
    }
}

/// Whether an entry for answers leads back to this tuple.
#[inline(always)]
fn answers<A: Layout>(standing: &Flow<A>, key: &FlowKey<A>) -> bool {
    standing.source == key.destination
        && standing.destination == key.source
        && standing.source_port == key.destination_port
        && standing.destination_port == key.source_port
}

/// The port that a tuple takes at this attempt; the same tuple tries the same ports, so that it finds its answer's entry.
#[inline(always)]
fn masquerade_port<A: Family>(key: &FlowKey<A>, attempt: u16) -> Be16 {
    let hash = hash::flow(key) as u16;
    Be16::new(MASQUERADE_PORT_FIRST + (hash.wrapping_add(attempt * 509) & (MASQUERADE_PORTS - 1)))
}

/// The node's own address that a flow leaves with: that of the uplink it leaves by, else the one in the pod network.
/// Nothing when it has none in this family.
#[inline(always)]
fn own_address<A: Family>(flow: &Flow<A>) -> Option<A> {
    // SAFETY: the agent replaces an entry whole.
    if let Some(uplink) = unsafe { UPLINKS_MAP.get(flow.ifindex) }
        && A::uplink_address(uplink) != A::default()
    {
        return Some(A::uplink_address(uplink));
    }
    let gateway = A::gateway(NODE_CONFIG.get(0)?);
    if gateway == A::default() { None } else { Some(gateway) }
}
