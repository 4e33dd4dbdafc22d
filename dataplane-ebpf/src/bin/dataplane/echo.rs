//! ICMP echoes of pods that leave the cluster ([`crate::egress`]): their identifier is a flow's port.
//!
//! A request has it as its source port, an answer as its destination port; the other port is zero. A family without a
//! checksum of its network header has the addresses in that of its ICMP.

use aya_ebpf::programs::TcContext;
use weir_dataplane_ebpf::{Be16, Flow, FlowKey, checksum};

use crate::{
    icmp,
    maps::Draft,
    parse::{Error, Frame, Layout, TcpFlags},
    walk::load,
};

/// Bytes of the header.
pub const LENGTH: usize = 8;
/// Offset of the identifier.
const IDENTIFIER: usize = 4;

/// Puts the ports of the message at `at` into the draft, and flags that tell an answer from a request.
#[inline(always)]
pub fn read<A: Layout>(context: &TcContext, at: usize, draft: &mut Draft<A>) -> Result<(), Error> {
    let kind: Be16 = load(context, at)?;
    let identifier: Be16 = load(context, at + IDENTIFIER)?;
    let (source, destination, flags) = match kind {
        kind if kind == A::ECHO_REQUEST => (identifier, Be16::new(0), TcpFlags::NONE),
        kind if kind == A::ECHO_REPLY => (Be16::new(0), identifier, TcpFlags::ACKNOWLEDGES),
        _ => return Err(Error::NotOurs),
    };
    draft.key.source_port = source;
    draft.key.destination_port = destination;
    draft.packet.flags = flags;
    Ok(())
}

/// Writes the identifier of the draft's flow into the message in the draft, and changes its checksum. The bytes are changed
/// in place, as [`icmp`] does it.
#[inline(always)]
pub fn rewrite<A: Layout>(context: &TcContext, draft: &Draft<A>) -> Result<(), Error> {
    let (flow, at) = (&draft.flow, draft.extent.transport as usize);
    let identifier =
        if flow.flags & Flow::<A>::FLAG_REPLY == 0 { flow.source_port } else { flow.destination_port };
    let old: u16 = load(context, at + icmp::CHECKSUM)?;
    let new = checksum::apply(old, delta(flow));
    context.store(at + icmp::CHECKSUM, &new, 0).map_err(|_| Error::Truncated)?;
    context.store(at + IDENTIFIER, &identifier, 0).map_err(|_| Error::Truncated)
}

/// The tuple of a request that an error quotes; the frame holds its header.
#[inline(always)]
pub fn quoted_key<A: Layout>(quote: Frame) -> Option<FlowKey<A>> {
    if quote.read::<Be16>(A::TRANSPORT) != A::ECHO_REQUEST {
        return None;
    }
    Some(FlowKey {
        source: A::read_address(quote, A::ADDRESSES),
        destination: A::read_address(quote, A::ADDRESSES + size_of::<A>()),
        source_port: quote.read(A::TRANSPORT + IDENTIFIER),
        destination_port: Be16::new(0),
        protocol: A::ICMP,
        padding: 0,
        padding_word: 0,
    })
}

/// Restores identifier and checksum of a quoted request by its answer's entry, and adds to what the sum over the quote
/// changes by.
#[inline(always)]
pub fn restore<A: Layout>(quote: Frame, flow: &Flow<A>, change: checksum::Sum) -> checksum::Sum {
    quote.write(A::TRANSPORT + IDENTIFIER, flow.destination_port);
    let offset = A::TRANSPORT + icmp::CHECKSUM;
    let old = quote.read(offset);
    let new = checksum::apply(old, delta(flow));
    quote.write(offset, new);
    change.replace_word(Be16::from_bits(old), Be16::from_bits(new))
}

/// By how much what the checksum covers changes.
#[inline(always)]
fn delta<A: Layout>(flow: &Flow<A>) -> u16 {
    if A::NETWORK_CHECKSUM.is_some() {
        checksum::without(flow.transport_delta, flow.network_delta)
    } else {
        flow.transport_delta
    }
}
