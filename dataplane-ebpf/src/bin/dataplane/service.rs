//! The decision about a packet: a known flow, a service's new one, a pod of this node, or nobody's.

use weir_dataplane_ebpf::{DropReason, FlowKey, Ip4, Ip6, Scope};

use crate::{
    counters::Verdict,
    egress, events, filter, flow,
    maps::Family,
    outline::Outlined,
    parse::{self, Error, Frame, Headers, Kind, Sctp, Tcp, Transport, Udp},
    rewrite::{self, Hook},
    start::Started,
};

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
fn serve_family<A: Outlined, H: Hook>(hook: &H, frame: Frame, frame_length: u32) -> Verdict {
    match parse::network::<A>(frame, frame_length) {
        Ok((Tcp::PROTOCOL, length)) => serve_transport::<A, Tcp, H>(hook, frame, length),
        Ok((Udp::PROTOCOL, length)) => serve_transport::<A, Udp, H>(hook, frame, length),
        Ok((Sctp::PROTOCOL, length)) => serve_transport::<A, Sctp, H>(hook, frame, length),
        Ok((protocol, length)) if protocol == A::ICMP => match hook.serve_icmp::<A>(length) {
            Some(verdict) => verdict,
            None => hook.serve_slowly::<A>(),
        },
        Ok((protocol, _)) if A::is_extension(protocol) => hook.serve_slowly::<A>(),
        Err(Error::Elsewhere) => hook.serve_slowly::<A>(),
        Ok(_) => Verdict::Pass,
        Err(error) => error.verdict(),
    }
}

#[inline(always)]
fn serve_transport<A: Outlined, T: Transport, H: Hook>(hook: &H, frame: Frame, length: u32) -> Verdict {
    let headers = match parse::headers::<A, T>(frame, length) {
        Ok(headers) => headers,
        Err(error) => return error.verdict(),
    };
    let verdict = match decide::<A, T, H>(hook, &headers) {
        Verdict::Drop(reason) if is_told(reason) => hook.refuse::<A, T>(&headers, reason),
        verdict => verdict,
    };
    if let Verdict::Drop(reason) | Verdict::Answer(reason) = verdict {
        flow::present(hook, &headers);
        A::tell_dropped(reason);
    }
    verdict
}

/// Whether a packet can have to do with a service at all. On its way out it can only be an answer; what came out of a tunnel
/// was asked for on another node, whose addresses the filter does not have.
#[inline(always)]
pub fn concerns<A: Family, H: Hook>(hook: &H, key: &FlowKey<A>) -> bool {
    hook.tunnelled() || if H::FORWARDS { filter::concerns(key) } else { filter::answers(key) }
}

/// Whether the sender of a packet that ends for this reason is refused, and not left to guess.
#[inline(always)]
pub const fn is_told(reason: DropReason) -> bool {
    matches!(reason, DropReason::NoBackend | DropReason::UnknownPort)
}

/// Whether a packet that no flow and no frontend is for comes from inside and is for a cluster IP: for a port of it that its
/// service does not have. From outside a cluster IP is an address like any other.
#[inline(always)]
pub fn lacks_port<A: Family, H: Hook>(hook: &H, key: &FlowKey<A>) -> bool {
    // SAFETY: nothing is read of the entry.
    hook.scope().0 == Scope::INTERNAL.0
        && filter::names_cluster_ip(&key.destination)
        && unsafe { A::cluster_ips().get(&key.destination) }.is_some()
}

/// A known flow, a service, or neither. Most packets of a node are neither, and know it from the filter alone.
#[inline(always)]
fn decide<A: Outlined, T: Transport, H: Hook>(hook: &H, headers: &Headers<A>) -> Verdict {
    let key = &headers.key;
    if !concerns(hook, key) {
        if let Some(verdict) = deliver(hook, headers) {
            return verdict;
        }
        if !egress::concerns(hook, key) {
            return leave(hook, key);
        }
    }
    if let Some(verdict) = flow::follow::<A, T, H>(hook, headers) {
        return verdict;
    }
    if hook.unfinished::<A, T>(headers) {
        return Verdict::Pass;
    }
    let Some(draft) = flow::present(hook, headers) else { return Verdict::Pass };
    match hook.start::<A>() {
        Started::Serve => {
            events::begun(draft);
            rewrite::translate::<A, T, H>(hook, headers, &draft.flow)
        }
        Started::Leave => Verdict::Pass,
        Started::Nobody => deliver(hook, headers).unwrap_or_else(|| leave(hook, key)),
        Started::Drop(reason) => Verdict::Drop(reason),
    }
}

/// Nobody's packet, into the pod that it is for. `None`: it is for none of this node's.
#[inline(always)]
fn deliver<A: Outlined, H: Hook>(hook: &H, headers: &Headers<A>) -> Option<Verdict> {
    if !H::HAS_STACK || !H::FORWARDS {
        return None;
    }
    // SAFETY: as in `flow::lead_to_pod`.
    let endpoint = unsafe { A::endpoints().get(&headers.key.destination) }?;
    Some(rewrite::deliver::<A>(hook.frame(), headers.ttl, endpoint))
}

/// Nobody's packet that is for no pod of this node: back to its sender, or up the stack.
#[inline(always)]
fn leave<A: Family, H: Hook>(hook: &H, key: &FlowKey<A>) -> Verdict {
    if H::HAS_STACK && H::FORWARDS && lacks_port(hook, key) {
        Verdict::Drop(DropReason::UnknownPort)
    } else {
        Verdict::Pass
    }
}
