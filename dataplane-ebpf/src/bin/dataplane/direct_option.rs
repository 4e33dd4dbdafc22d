//! Direct server return without a tunnel: a client's packet goes to its backend with the client's address, and an option of
//! IPv4 tells the backend's node which frontend the answers must come from ([`FrontendOption`]).
//!
//! | packet | has the option |
//! |---|---|
//! | TCP and SCTP: opens the connection, also once more | yes: without it the backend's node knows nothing |
//! | TCP and SCTP: any other of an established flow | no: it goes as it is, in place of the client's own |
//! | TCP and SCTP: the first that this node sees of a connection | yes: the client's network may have changed its way, and the backend's node may have forgotten |
//! | UDP | yes: no answer comes by here, so that this node never learns that one has arrived |
//!
//! A packet that is too long with the option is refused as one that is too long for a tunnel is. An ICMP error about an answer
//! goes to the frontend's address, so to the first node, which restores it and sends it after the flow's packets. An error about
//! the client's packet on its way between the nodes goes to its source, the client, which knows nothing of the backend and
//! ignores it: what such a router could say, a smaller MTU, must be the route's on the first node.
//!
//! Where the packet arrives, both halves hold the frontend ([`Flow::FLAG_NAMED`]). The client's packets stay as they are from
//! there on but are counted, so that the flow lives and its states are known.
//!
//! Who can reach a backend's node can put an option into a packet, and the packet's source is the client's: nothing in it says
//! which node sent it. So it is not asked who says it but whether it is true: the frontend must be one that this node serves
//! by that very backend, for that client. Node ports of others count when their address is a node's. What a forged option gets
//! is then what the frontend itself would have given. One that names another is dropped.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_adj_room_mode::BPF_ADJ_ROOM_NET, xdp_md},
    programs::{TcContext, XdpContext},
};
use weir_dataplane_ebpf::{
    Backend, Be16, Be32, DropReason, Flow, FlowKey, FlowState, Frontend, FrontendKey, FrontendOption, Ip4,
    Ip6, Protocol, Scope, checksum, maglev,
};

use crate::{
    counters::Verdict,
    events, flow,
    kernel::now_jiffies,
    maps::{Draft, Family as _, MAGLEV, UPLINKS_MAP},
    opening,
    outline::Outlined,
    parse::{ETHERNET_LENGTH, Frame, Headers, Layout, Sctp, Tcp, TcpFlags, Transport, Udp},
    rewrite::{self, Hook},
    source_range,
    start::{self, Place, Standing, Started},
    tc::{self, Skb},
    tunnel,
    walk::{Part, load},
    xdp::Uplink,
};

/// Offset of the option in a frame.
const OPTION: usize = Ip4::TRANSPORT;
/// Offset of the version and header's length.
const FIRST: usize = ETHERNET_LENGTH;
/// Offset of the packet's length.
const LENGTH: usize = ETHERNET_LENGTH + 2;

/// An address family whose packets may have the option: IPv4. The other never asks for it.
pub trait Optional: Layout {
    /// See [`send`].
    fn send_with_option_at_xdp(context: *mut xdp_md) -> Verdict;
    /// See [`send`].
    fn send_with_option_at_tc(context: *mut __sk_buff) -> Verdict;
    /// See [`open`].
    fn open_by_option(context: *mut __sk_buff) -> Started;
    /// See [`put_in`].
    fn put_in<H: Hook>(hook: &H, key: &FlowKey<Self>) -> bool;
    /// See [`take_out`].
    fn take_out(context: &TcContext) -> bool;
}

impl Optional for Ip4 {
    #[inline(always)]
    fn send_with_option_at_xdp(context: *mut xdp_md) -> Verdict {
        Verdict::from_number(send_with_option_at_xdp(context))
    }

    #[inline(always)]
    fn send_with_option_at_tc(context: *mut __sk_buff) -> Verdict {
        Verdict::from_number(send_with_option_at_tc(context))
    }

    #[inline(always)]
    fn open_by_option(context: *mut __sk_buff) -> Started {
        Started::from_number(open_by_option(context))
    }

    #[inline(always)]
    fn put_in<H: Hook>(hook: &H, key: &FlowKey<Self>) -> bool {
        put_in(hook, &FrontendOption::new(key.destination, key.destination_port))
    }

    #[inline(always)]
    fn take_out(context: &TcContext) -> bool {
        take_out(context)
    }
}

impl Optional for Ip6 {
    #[inline(always)]
    fn send_with_option_at_xdp(_: *mut xdp_md) -> Verdict {
        Verdict::Pass
    }

    #[inline(always)]
    fn send_with_option_at_tc(_: *mut __sk_buff) -> Verdict {
        Verdict::Pass
    }

    #[inline(always)]
    fn open_by_option(_: *mut __sk_buff) -> Started {
        Started::Leave
    }

    #[inline(always)]
    fn put_in<H: Hook>(_: &H, _: &FlowKey<Self>) -> bool {
        false
    }

    #[inline(always)]
    fn take_out(_: &TcContext) -> bool {
        false
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_with_option_at_xdp(context: *mut xdp_md) -> u64 {
    send(&Uplink(&XdpContext::new(context))).to_number()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_with_option_at_tc(context: *mut __sk_buff) -> u64 {
    send(&Skb::from_outside(&TcContext::new(context))).to_number()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn open_by_option(context: *mut __sk_buff) -> u32 {
    open(context).to_number()
}

/// Whether a packet of this flow must have the option.
#[inline(always)]
pub fn is_needed<A: Layout>(protocol: Protocol, flags: TcpFlags, flow: &Flow<A>) -> bool {
    A::HAS_OPTIONS
        && flow.flags & Flow::<A>::FLAG_OPTION != 0
        && (protocol == Udp::PROTOCOL || flags.opens() || flow.state.0 == FlowState::OPENING.0)
}

/// Sends a packet that must have the option the way of its flow.
#[inline(always)]
pub fn serve<A: Outlined, H: Hook>(hook: &H, headers: &Headers<A>, flow: &Flow<A>) -> Verdict {
    let Some(draft) = flow::present(hook, headers) else { return Verdict::Pass };
    draft.flow = *flow;
    draft.extent.ttl = headers.ttl;
    hook.send_with_option::<A>()
}

/// Rewrites the packet in the draft, which has no options, as the draft's flow says, and puts the option in; or tells its
/// sender what would fit.
#[inline(always)]
fn send<H: Hook>(hook: &H) -> Verdict {
    let Some(draft) = Ip4::draft() else { return Verdict::Pass };
    // SAFETY: the draft is this CPU's own, see `Draft`.
    let Draft { key, packet, extent, flow, .. } = unsafe { &*draft };
    let headers = Headers { key: *key, length: packet.length, flags: packet.flags, ttl: extent.ttl };
    if headers.ttl > 1 && !tunnel::fits(hook, headers.length, FrontendOption::LENGTH, flow) {
        return tunnel::refuse(hook, &headers, FrontendOption::LENGTH, flow);
    }
    let verdict = match key.protocol {
        Tcp::PROTOCOL => rewrite::change::<Ip4, Tcp, H>(hook, &headers, flow).to_number(),
        Udp::PROTOCOL => rewrite::change::<Ip4, Udp, H>(hook, &headers, flow).to_number(),
        _ => rewrite::change::<Ip4, Sctp, H>(hook, &headers, flow).to_number(),
    };
    let verdict = Verdict::from_number(verdict);
    if matches!(verdict, Verdict::Drop(_)) || Ip4::put_in(hook, key) {
        verdict
    } else {
        Verdict::Drop(DropReason::RewriteFailed)
    }
}

/// What the header's checksum changes by when a packet of this first word and length gets the option.
#[inline(always)]
fn change_by(first: Be16, length: Be16, option: &FrontendOption) -> u16 {
    option.sum().replace_word(first, longer(first)).replace_word(length, longer_packet(length)).fold()
}

/// The first word of a header with the option.
#[inline(always)]
const fn longer(first: Be16) -> Be16 {
    Be16::new(first.get() + (FrontendOption::WORDS as u16) * 0x0100)
}

/// The length of a packet with the option. Segmentation offload leaves 0 there when the truth does not fit.
#[inline(always)]
const fn longer_packet(length: Be16) -> Be16 {
    if length.get() == 0 { length } else { Be16::new(length.get() + FrontendOption::LENGTH as u16) }
}

/// Puts the option into a packet. False: the header has no room for it, or the buffer has not.
#[inline(always)]
fn put_in<H: Hook>(hook: &H, option: &FrontendOption) -> bool {
    let frame = hook.frame();
    if !frame.holds(OPTION) || frame.read::<u8>(FIRST) > FrontendOption::MOST_BEFORE {
        return false;
    }
    let (a, b, c): (Be32, Be32, Be32) = (frame.read(0), frame.read(4), frame.read(8));
    if !hook.make_room(FrontendOption::LENGTH, 0) {
        return false;
    }
    let frame = hook.frame();
    if !frame.holds(OPTION + FrontendOption::LENGTH) {
        return false;
    }
    frame.write(0, a);
    frame.write(4, b);
    frame.write(8, c);
    frame.write(12, Ip4::ETHERTYPE);
    let mut at = FIRST;
    while at < OPTION {
        let word: Be32 = frame.read(at + FrontendOption::LENGTH);
        frame.write(at, word);
        at += 4;
    }
    frame.write(OPTION, option.kind);
    frame.write(OPTION + 2, option.port);
    frame.write(OPTION + 4, option.address);
    let (first, length): (Be16, Be16) = (frame.read(FIRST), frame.read(LENGTH));
    frame.write(FIRST, longer(first));
    frame.write(LENGTH, longer_packet(length));
    rewrite::change_network_checksum::<Ip4>(frame, change_by(first, length, option));
    true
}

/// Takes the option out of a packet that has it. False: the kernel refuses.
#[inline(always)]
fn take_out(context: &TcContext) -> bool {
    let frame = tc::frame(context, OPTION + FrontendOption::LENGTH);
    if !frame.holds(OPTION + FrontendOption::LENGTH) {
        return false;
    }
    let option = read(frame);
    let (first, length): (Be16, Be16) = (frame.read(FIRST), frame.read(LENGTH));
    let shorter = Be16::new(first.get() - (FrontendOption::WORDS as u16) * 0x0100);
    let rest = match length.get() {
        0 => length,
        length => Be16::new(length - FrontendOption::LENGTH as u16),
    };
    frame.write(FIRST, shorter);
    frame.write(LENGTH, rest);
    rewrite::change_network_checksum::<Ip4>(frame, !change_by(shorter, rest, &option));
    context.adjust_room(-(FrontendOption::LENGTH as i32), BPF_ADJ_ROOM_NET, 0).is_ok()
}

/// The option of a frame that holds it.
#[inline(always)]
fn read(frame: Frame) -> FrontendOption {
    FrontendOption { kind: frame.read(OPTION), port: frame.read(OPTION + 2), address: frame.read(OPTION + 4) }
}

/// Looks at a packet from outside that [`crate::walk`] has read. [`Started::Leave`]: it has no option, or nothing that its
/// flow's entries do not say, and is served as any other.
#[inline(always)]
pub fn receive<A: Outlined, const FORWARDS: bool>(hook: &Skb<'_, FORWARDS>, headers: &Headers<A>) -> Started {
    let Some(draft) = A::draft() else { return Started::Leave };
    // SAFETY: the draft is this CPU's own, see `Draft`.
    let extent = unsafe { &(*draft).extent };
    if !extent.names_frontend || extent.part.0 == Part::LATER {
        return Started::Leave;
    }
    flow::present(hook, headers);
    A::open_by_option(hook.skb())
}

/// Makes the entries of the flow whose frontend the option of the packet in the draft names, unless they are there.
#[inline(always)]
fn open(context: *mut __sk_buff) -> Started {
    let Some(draft) = Ip4::draft() else { return Started::Leave };
    // SAFETY: the draft is this CPU's own, see `Draft`.
    let draft = unsafe { &mut *draft };
    let Ok(option) = load::<FrontendOption>(&TcContext::new(context), OPTION) else { return Started::Leave };
    let (key, place) = (&draft.key.clone(), &Place::with_stack(context.cast(), draft.packet));
    draft.flow = Flow {
        packets: 1,
        bytes: u64::from(place.packet.length),
        source: option.address,
        destination: key.destination,
        source_port: option.port,
        destination_port: key.destination_port,
        last_seen_jiffies: now_jiffies(),
        state: FlowState::OPENING,
        flags: Flow::<Ip4>::FLAG_NAMED,
        ..Flow::default()
    };
    let standing = start::standing_answer(key, &draft.flow, place);
    let known = standing_question(key, draft, place);
    if standing == Standing::TAKEN || known == Standing::TAKEN {
        return Started::Drop(DropReason::PortsExhausted);
    }
    if known == Standing::OPENING && standing != Standing::NOTHING {
        return Started::Leave;
    }
    let Some((frontend, id)) = find(key, &option, place.packet.ifindex) else {
        return Started::Drop(DropReason::UnknownFrontend);
    };
    if !source_range::admits(frontend, key.source) {
        return Started::Drop(DropReason::SourceRange);
    }
    let flow = &mut draft.flow;
    (flow.service, flow.backend) = (frontend.service, id);
    let sum = checksum::Sum::default().replace(&option.address, &key.destination);
    flow.network_delta = sum.fold();
    flow.transport_delta = sum.replace_word(option.port, key.destination_port).fold();
    flow::lead_to_pod(flow);
    if known == Standing::OVER {
        let _ = Ip4::flows().remove(key);
    }
    if let Err(reason) = start::reserve_answer(key, standing, place, draft) {
        return Started::Drop(reason);
    }
    if known == Standing::OPENING {
        // Its answer's entry was lost.
        return Started::Leave;
    }
    start::keep_question(key, standing, draft);
    events::begun(draft);
    Started::Serve
}

/// What stands at the packet's own tuple: [`Standing::OPENING`] for an entry of this flow that goes on, whichever table it
/// is in.
#[inline(always)]
fn standing_question(key: &FlowKey<Ip4>, draft: &mut Draft<Ip4>, place: &Place) -> Standing {
    let asked = &draft.flow;
    // SAFETY: as in `flow::follow`.
    if let Some(standing) = unsafe { Ip4::flows().get(key) } {
        return if standing.state.0 >= FlowState::CLOSING.0 && place.packet.flags.opens()
            || standing.state.0 == FlowState::CLOSED.0
        {
            Standing::OVER
        } else if is_same(standing, asked) {
            Standing::OPENING
        } else {
            Standing::TAKEN
        };
    }
    if !opening::find(key, &mut draft.answer) {
        Standing::NOTHING
    } else if is_same(&draft.answer, asked) {
        Standing::OPENING
    } else {
        Standing::TAKEN
    }
}

/// Whether two entries of one key are of the same frontend.
#[inline(always)]
fn is_same(standing: &Flow<Ip4>, asked: &Flow<Ip4>) -> bool {
    standing.is_rewritten() && standing.source == asked.source && standing.source_port == asked.source_port
}

/// The frontend that an option names, and the id of the packet's destination, if that is a backend here which new
/// connections of the frontend may choose.
#[inline(always)]
fn find(key: &FlowKey<Ip4>, option: &FrontendOption, ifindex: u32) -> Option<(&'static Frontend, u32)> {
    let named = FrontendKey {
        address: option.address,
        port: option.port,
        protocol: key.protocol,
        scope: Scope::EXTERNAL,
    };
    // SAFETY: the agent replaces a frontend whole, and the old value stays readable for this program's run.
    let frontend = match unsafe { Ip4::frontends().get(&named) } {
        Some(frontend) => frontend,
        None => {
            // A node port of another node: this one has the same port on its own address.
            // SAFETY: as above, for all three.
            unsafe { Ip4::tunnel_peers().get(option.address)? };
            let address = unsafe { UPLINKS_MAP.get(ifindex)? }.address_v4;
            unsafe { Ip4::frontends().get(&FrontendKey { address, ..named })? }
        }
    };
    if frontend.backends == 0 {
        return None;
    }
    let serves = |id: u32| {
        Ip4::backends().get(id).is_some_and(|backend| {
            let here = Backend::<Ip4>::FLAG_ACTIVE | Backend::<Ip4>::FLAG_LOCAL;
            backend.flags & here == here
                && backend.address == key.destination
                && backend.port == key.destination_port
        })
    };
    let destination = (&key.destination, key.destination_port);
    let id = maglev::find(frontend, destination, |slot| MAGLEV.get(slot).copied(), serves)?;
    Some((frontend, id))
}
