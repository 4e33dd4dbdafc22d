//! The start of a flow: from a tuple that no established flow has to two entries, and on until both sides have spoken.

use core::ffi::c_void;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use weir_dataplane_ebpf::{
    AffinityKey, Backend, Be16, DropReason, EventKind, Flow, FlowKey, FlowState, Frontend, FrontendKey,
    Scope, hash,
    maps::{MASQUERADE_PORT_FIRST, MASQUERADE_PORTS, MASQUERADE_TRIES},
};

use crate::{
    affinity, flow,
    kernel::now_jiffies,
    maps::{Draft, Family, NODE_CONFIG, Packet, UPLINKS_MAP},
    opening,
    parse::Layout,
    rewrite, route, source_range,
};

/// What became of a packet without an established flow.
#[derive(Clone, Copy)]
pub enum Started {
    /// The draft's flow says how to rewrite it.
    Serve,
    /// A program that can redirect must do it.
    Leave,
    /// No flow, and no service has the address.
    Nobody,
    /// Refused.
    Drop(DropReason),
}

impl Started {
    const SERVE: u32 = 0;
    const LEAVE: u32 = 1;
    const NOBODY: u32 = 2;
    const DROP: u32 = 16;

    /// As a global function returns it.
    #[inline(always)]
    pub const fn to_number(self) -> u32 {
        match self {
            Self::Serve => Self::SERVE,
            Self::Leave => Self::LEAVE,
            Self::Nobody => Self::NOBODY,
            Self::Drop(reason) => Self::DROP + reason as u32,
        }
    }

    /// From what a global function returned.
    #[inline(always)]
    pub fn from_number(number: u32) -> Self {
        match number {
            Self::SERVE => Self::Serve,
            Self::LEAVE => Self::Leave,
            Self::NOBODY => Self::Nobody,
            number => DropReason::from_index(number - Self::DROP).map_or(Self::Leave, Self::Drop),
        }
    }
}

/// Where a packet is to be served.
pub struct Place {
    context: *mut c_void,
    has_stack: bool,
    /// The packet.
    pub packet: Packet,
}

impl Place {
    /// At TC.
    #[inline(always)]
    pub const fn with_stack(context: *mut c_void, packet: Packet) -> Self {
        Self { context, has_stack: true, packet }
    }
}

/// Serves the packet in this CPU's draft, which belongs to no established flow.
#[inline(always)]
pub fn start<A: Layout>(context: *mut c_void, has_stack: bool) -> Started {
    let Some(draft) = A::draft() else { return Started::Leave };
    // SAFETY: the draft is this CPU's own, see `Draft`.
    let draft = unsafe { &mut *draft };
    let (key, place) = (&draft.key.clone(), &Place { context, has_stack, packet: draft.packet });
    if opening::find(key, &mut draft.flow) && flow::has_backend(&draft.flow) {
        return go_on(key, place, draft);
    }
    let frontend_key = FrontendKey {
        address: key.destination,
        port: key.destination_port,
        protocol: key.protocol,
        scope: place.packet.scope,
    };
    // SAFETY: the agent replaces a frontend whole, and the old value stays readable for this program's run.
    let mut frontend = unsafe { A::frontends().get(&frontend_key) };
    // SAFETY: as above, for both.
    if place.packet.tunnelled
        && frontend.is_none()
        && let Some(uplink) = unsafe { UPLINKS_MAP.get(place.packet.ifindex) }
    {
        // A node port of the node that sent the packet on: this one has the same port on its own address.
        let own = FrontendKey { address: A::uplink_address(uplink), ..frontend_key };
        // SAFETY: as above.
        frontend = unsafe { A::frontends().get(&own) };
    }
    match frontend {
        Some(frontend) if !place.packet.flags.accepts() => open(key, frontend, place, draft),
        _ => Started::Nobody,
    }
}

/// A flow that is opening: establishes it if this packet shows that both sides speak.
#[inline(always)]
fn go_on<A: Layout>(key: &FlowKey<A>, place: &Place, draft: &mut Draft<A>) -> Started {
    let flow = &mut draft.flow;
    let known_way = place.has_stack
        || flow.ifindex == 0 && !flow.is_rewritten()
        || flow.flags & Flow::<A>::FLAG_NEXT_HOP != 0;
    if !known_way
        && (flow.flags & Flow::<A>::FLAG_TO_POD != 0
            || flow.is_rewritten()
            || !route::find_next_hop(place.context, flow, place.packet.ifindex))
    {
        return Started::Leave;
    }
    let flags = place.packet.flags;
    if flow::establishes(key.protocol, flow.flags) && !flags.opens() && !flags.resets() {
        flow.packets += 1;
        flow.bytes += u64::from(place.packet.length);
        let state = if flags.finishes() { FlowState::CLOSING } else { FlowState::ESTABLISHED };
        return if opening::establish(key, state, draft, place.packet.way_back) {
            Started::Serve
        } else {
            Started::Drop(DropReason::PortsExhausted)
        };
    }
    opening::count(key, place.packet.length);
    if flow.flags & Flow::<A>::FLAG_REPLY != 0 || flow.is_one_way() {
        return Started::Serve;
    }
    // The answer's entry may have been pushed out meanwhile.
    let standing = standing_answer(key, flow, place);
    match reserve_answer(key, standing, place, draft) {
        Ok(()) => Started::Serve,
        Err(reason) => Started::Drop(reason),
    }
}

/// Chooses a backend and makes both entries, the answer's first: no packet can be answered before its answer is known.
#[inline(always)]
fn open<A: Layout>(key: &FlowKey<A>, frontend: &Frontend, place: &Place, draft: &mut Draft<A>) -> Started {
    if !source_range::admits(frontend, key.source) {
        return Started::Drop(DropReason::SourceRange);
    }
    let client = AffinityKey { client: key.source, service: frontend.service };
    let slot = hash::flow_slot(frontend, key);
    let (id, backend) = match affinity::choose::<A, A>(A::affinity(), &client, frontend, slot) {
        Ok(found) => found,
        Err(reason) => return Started::Drop(reason),
    };
    let here = backend.flags & Backend::<A>::FLAG_LOCAL != 0;
    let outside = place.packet.scope.0 == Scope::EXTERNAL.0;
    // The answer must come back through this node: a pod would answer itself directly, and a backend on another node
    // would answer a client outside past this one.
    let far = outside && !here;
    // What came through a tunnel goes into no other: nodes that do not agree on the backend would send it to and fro.
    let direct = far
        && frontend.flags & Frontend::FLAG_DIRECT_RETURN != 0
        && !place.packet.tunnelled
        && backend.node != A::default();
    draft.flow = Flow {
        packets: 1,
        bytes: u64::from(place.packet.length),
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
    if direct {
        let started = open_one_way(key, frontend, place, draft, backend.node);
        if frontend.affinity_timeout_s != 0 {
            affinity::record(A::affinity(), &client, id);
        }
        return started;
    }
    let hairpin = backend.address == key.source;
    if hairpin && !place.has_stack {
        return Started::Leave;
    }
    let flow = &mut draft.flow;
    if far {
        flow.ifindex = place.packet.ifindex;
        if !route::know_next_hop(place.context, flow, place.packet.ifindex) && !place.has_stack {
            return Started::Leave;
        }
    } else if place.has_stack {
        flow::lead_to_pod(flow);
    }
    if far || hairpin {
        let Some(own) = own_address::<A>(flow) else { return Started::Drop(DropReason::NoGateway) };
        flow.source = own;
        flow.source_port = masquerade_port(key, 0);
    }
    let mut attempt = 0;
    let mut standing = standing_answer(key, &draft.flow, place);
    while standing == Standing::TAKEN {
        attempt += 1;
        if attempt == MASQUERADE_TRIES {
            return Started::Drop(DropReason::PortsExhausted);
        }
        draft.flow.source_port = masquerade_port(key, attempt);
        standing = standing_answer(key, &draft.flow, place);
    }
    rewrite::set_deltas(key, &mut draft.flow);
    if let Err(reason) = reserve_answer(key, standing, place, draft) {
        return Started::Drop(reason);
    }
    keep_question(key, standing, draft);
    if frontend.affinity_timeout_s != 0 {
        affinity::record(A::affinity(), &client, id);
    }
    Started::Serve
}

/// Leads the draft's flow to its backend's node, `node`, inside packets to that or with an option. It has one half.
#[inline(always)]
fn open_one_way<A: Layout>(
    key: &FlowKey<A>,
    frontend: &Frontend,
    place: &Place,
    draft: &mut Draft<A>,
    node: A,
) -> Started {
    let flow = &mut draft.flow;
    let option = A::HAS_OPTIONS && frontend.flags & Frontend::FLAG_OPTION != 0;
    if option {
        flow.flags |= Flow::<A>::FLAG_OPTION;
        rewrite::set_deltas(key, flow);
    } else {
        flow.flags |= Flow::<A>::FLAG_TUNNEL;
        flow.destination = node;
        (flow.source_port, flow.destination_port) = (Be16::new(0), Be16::new(0));
    }
    flow.ifindex = place.packet.ifindex;
    // The client's address stays the source: what a flow of another client was told may not hold.
    let knows_way = if option {
        route::find_next_hop(place.context, flow, place.packet.ifindex)
    } else {
        route::know_next_hop(place.context, flow, place.packet.ifindex)
    };
    if !knows_way && !place.has_stack {
        return Started::Leave;
    }
    if !option {
        let Some(own) = own_address::<A>(flow) else { return Started::Drop(DropReason::NoGateway) };
        flow.source = own;
    }
    draft.packet.news = EventKind::OPENED;
    // Without room the next packet finds the same backend.
    let _ = A::opening().insert(key, &draft.flow, u64::from(BPF_ANY));
    Started::Serve
}

/// What stands at the tuple of a flow's answers. A plain number, since the verifier refuses the read of a payload that a
/// variant does not have, which the compiler takes for harmless.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Standing(u32);

impl Standing {
    /// Nothing.
    pub const NOTHING: Self = Self(256);
    /// The entry of a connection that is over.
    pub const OVER: Self = Self(257);
    /// The flow's own entry, among the opening ones.
    pub const OPENING: Self = Self(258);
    /// Another flow of the same client and backend: two frontends may lead one client port to one backend. This one must
    /// take another port.
    pub const TAKEN: Self = Self(259);

    /// The flow's own entry, among the established ones, in this state.
    #[inline(always)]
    const fn established(state: FlowState) -> Self {
        Self(state.0 as u32)
    }

    /// Whether it is the flow's own entry.
    #[inline(always)]
    pub const fn is_own(self) -> bool {
        self.0 == Self::OPENING.0 || self.0 < Self::NOTHING.0
    }

    /// That entry's state.
    #[inline(always)]
    pub const fn state(self) -> Option<FlowState> {
        if self.0 < Self::NOTHING.0 { Some(FlowState(self.0 as u8)) } else { None }
    }
}

/// What stands at the tuple of this flow's answers.
#[inline(always)]
pub fn standing_answer<A: Layout>(key: &FlowKey<A>, flow: &Flow<A>, place: &Place) -> Standing {
    let answer_key = flow.other_key(key);
    // SAFETY: as in `flow::follow`.
    if let Some(standing) = unsafe { A::flows().get(&answer_key) } {
        let state = standing.state;
        return if state.0 == FlowState::CLOSED.0 {
            Standing::OVER
        } else if !standing.is_other_half(key, flow) {
            Standing::TAKEN
        } else if place.packet.flags.opens() {
            Standing::OVER
        } else {
            Standing::established(state)
        };
    }
    // SAFETY: an entry stays mapped memory; should it become another flow's meanwhile, that has another tuple.
    match unsafe { A::opening().get(&answer_key) } {
        Some(standing) if standing.is_other_half(key, flow) => Standing::OPENING,
        Some(_) => Standing::TAKEN,
        None => Standing::NOTHING,
    }
}

/// Makes the answer's entry, unless the flow has it already.
#[inline(always)]
pub fn reserve_answer<A: Layout>(
    key: &FlowKey<A>,
    standing: Standing,
    place: &Place,
    draft: &mut Draft<A>,
) -> Result<(), DropReason> {
    let answer_key = draft.flow.other_key(key);
    if standing == Standing::OPENING || standing.state().is_some() {
        return Ok(());
    }
    if standing == Standing::TAKEN {
        return Err(DropReason::PortsExhausted);
    }
    if standing == Standing::OVER {
        let _ = A::flows().remove(&answer_key);
    }
    draft.answer = flow::opposite(key, &draft.flow, place.packet.way_back);
    match A::opening().insert(&answer_key, &draft.answer, u64::from(BPF_NOEXIST)) {
        Ok(()) => Ok(()),
        // Another CPU was faster; the client's next try finds another port.
        Err(opening::EXISTS) => Err(DropReason::PortsExhausted),
        Err(_) => Err(DropReason::FlowTableFull),
    }
}

/// Keeps the client's half of a flow whose answer's entry is there. Without room for it the packet is still served, and so
/// is the next one: it finds the same backend and the answer's entry.
#[inline(always)]
pub fn keep_question<A: Family>(key: &FlowKey<A>, standing: Standing, draft: &mut Draft<A>) {
    if let Some(state) = standing.state() {
        draft.flow.state = state;
        let _ = A::flows().insert(key, &draft.flow, u64::from(BPF_ANY));
    } else {
        let _ = A::opening().insert(key, &draft.flow, u64::from(BPF_ANY));
    }
    // A flow that had an entry was told of before: only one of its halves was gone.
    if !standing.is_own() {
        draft.packet.news = EventKind::OPENED;
    }
}

/// The port that a tuple takes at this attempt; the same tuple tries the same ports, so that it finds its answer's entry.
#[inline(always)]
pub fn masquerade_port<A: Family>(key: &FlowKey<A>, attempt: u16) -> Be16 {
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
