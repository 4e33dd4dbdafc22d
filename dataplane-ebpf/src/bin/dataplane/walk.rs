//! Where a packet's ports are when options, extension headers or a fragment's header stand before them.
//!
//! Options of IPv4 are skipped, and so are hop-by-hop options, destination options and the fragment header of IPv6,
//! [`EXTENSIONS`] of them at the most. What a checksum covers may not be what stands in the addresses when the packet is
//! routed by its source: it is [`Error::NotOurs`], and so is what is behind other headers and options whose lengths are
//! wrong.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use weir_dataplane_ebpf::{Be16, Be32, FragmentKey, FrontendOption, Ip4, Ip6, Protocol};

use crate::{
    maps::{Draft, Family},
    parse::{ETHERNET_LENGTH, Error, Layout},
};

/// What of a packet is in a frame.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Part(pub u8);

impl Part {
    /// All of it.
    pub const WHOLE: u8 = 0;
    /// Its first fragment.
    pub const FIRST: u8 = 1;
    /// Another one.
    pub const LATER: u8 = 2;

    /// From what a fragment says.
    #[inline(always)]
    const fn new(more: bool, offset: u16) -> Self {
        Self(if offset != 0 {
            Self::LATER
        } else if more {
            Self::FIRST
        } else {
            Self::WHOLE
        })
    }
}

/// Where the parts of the packet in a draft are, beside its tuple.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Extent {
    /// Offset of the ports in the frame, if it has them.
    pub transport: u32,
    /// A fragment's identification, as it stands there.
    pub identification: u32,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// What of the packet is there.
    pub part: Part,
    /// Its first option names a frontend ([`weir_dataplane_ebpf::FrontendOption`]).
    pub names_frontend: bool,
}

/// The network header of IPv4, without options.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header4 {
    version_and_length: u8,
    service: u8,
    length: Be16,
    identification: u16,
    fragment: Be16,
    ttl: u8,
    protocol: Protocol,
    checksum: u16,
    source: Ip4,
    destination: Ip4,
}

/// The network header of IPv6.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header6 {
    version: Be32,
    payload: Be16,
    next: Protocol,
    hop_limit: u8,
    source: Ip6,
    destination: Ip6,
}

/// The fragment header of IPv6.
#[repr(C)]
#[derive(Clone, Copy)]
struct FragmentHeader {
    next: Protocol,
    reserved: u8,
    offset: Be16,
    identification: u32,
}

/// Extension headers that are stepped over: one of each kind, and destination options behind the fragment header
/// (RFC 8200, 4.1).
const EXTENSIONS: usize = 4;

/// Bytes of IPv4 options at the most.
const OPTIONS_LENGTH: usize = 40;
/// The option that ends them.
const END_OF_OPTIONS: u8 = 0;
/// The option of one byte.
const NO_OPERATION: u8 = 1;
/// "Loose source and record route".
const LOOSE_SOURCE_ROUTE: u8 = 131;
/// "Strict source and record route".
const STRICT_SOURCE_ROUTE: u8 = 137;

/// "More fragments" of IPv4.
const MORE_V4: u16 = 0x2000;
/// The offset of IPv4, in units of eight bytes.
const OFFSET_V4: u16 = 0x1fff;
/// "More fragments" of IPv6.
const MORE_V6: u16 = 0x0001;
/// The offset of IPv6, in bytes.
const OFFSET_V6: u16 = 0xfff8;

/// An address family whose headers can be walked.
pub trait Walk: Layout {
    /// Puts addresses, transport, length and extent of a packet into the draft.
    fn walk(context: &TcContext, draft: &mut Draft<Self>) -> Result<(), Error>;
    /// What the fragments of a packet have in common.
    fn fragment_key(draft: &Draft<Self>) -> FragmentKey<Self>;
}

/// Reads bytes of the packet.
#[inline(always)]
pub fn load<T>(context: &TcContext, offset: usize) -> Result<T, Error> {
    context.load(offset).map_err(|_| Error::Truncated)
}

/// Whether the packet in the draft is all there, and its headers lie in it.
#[inline(always)]
fn check_length<A: Family>(context: &TcContext, draft: &Draft<A>) -> Result<(), Error> {
    let end = draft.packet.length + ETHERNET_LENGTH as u32;
    if end > context.len() || end < draft.extent.transport { Err(Error::Truncated) } else { Ok(()) }
}

/// Whether a packet whose IPv4 options end at `end` may be rewritten.
#[inline(always)]
fn check_options(context: &TcContext, end: usize) -> Result<(), Error> {
    let mut at = Ip4::TRANSPORT as u32;
    for _ in 0..OPTIONS_LENGTH {
        if at >= end as u32 {
            break;
        }
        at = behind_option(context.skb.skb, at, end as u32);
        if at == 0 {
            return Err(Error::NotOurs);
        }
    }
    Ok(())
}

/// The offset behind the IPv4 option at `at`, and `end` behind the last; zero if the packet must be left alone. A global
/// function, whose ways the verifier does not walk again for each option.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn behind_option(context: *mut __sk_buff, at: u32, end: u32) -> u32 {
    let context = TcContext::new(context);
    match load(&context, at as usize) {
        Ok(END_OF_OPTIONS) => end,
        Ok(NO_OPERATION) => at + 1,
        Err(_) | Ok(LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE) => 0,
        Ok(_) => match load::<u8>(&context, at as usize + 1) {
            Ok(length) if length >= 2 && at + u32::from(length) <= end => at + u32::from(length),
            _ => 0,
        },
    }
}

impl Walk for Ip4 {
    #[inline(always)]
    fn walk(context: &TcContext, draft: &mut Draft<Self>) -> Result<(), Error> {
        let header: Header4 = load(context, ETHERNET_LENGTH)?;
        let fragment = header.fragment.get();
        let transport = ETHERNET_LENGTH + usize::from(header.version_and_length & 0x0f) * 4;
        if transport < Self::TRANSPORT {
            return Err(Error::NotOurs);
        }
        draft.key.source = header.source;
        draft.key.destination = header.destination;
        draft.key.protocol = header.protocol;
        // Segmentation offload leaves 0 there when the truth does not fit in 16 bits.
        draft.packet.length = match header.length.get() {
            0 => context.len() - ETHERNET_LENGTH as u32,
            length => u32::from(length),
        };
        draft.extent = Extent {
            transport: transport as u32,
            identification: u32::from(header.identification),
            ttl: header.ttl,
            part: Part::new(fragment & MORE_V4 != 0, fragment & OFFSET_V4),
            names_frontend: false,
        };
        check_length(context, draft)?;
        check_options(context, transport)?;
        if transport >= Self::TRANSPORT + FrontendOption::LENGTH {
            draft.extent.names_frontend = load::<Be16>(context, Self::TRANSPORT)? == FrontendOption::KIND;
        }
        Ok(())
    }

    #[inline(always)]
    fn fragment_key(draft: &Draft<Self>) -> FragmentKey<Self> {
        FragmentKey {
            source: draft.key.source,
            destination: draft.key.destination,
            identification: draft.extent.identification,
            protocol: draft.key.protocol,
            padding: 0,
            padding_word: 0,
        }
    }
}

impl Walk for Ip6 {
    #[inline(always)]
    fn walk(context: &TcContext, draft: &mut Draft<Self>) -> Result<(), Error> {
        let header: Header6 = load(context, ETHERNET_LENGTH)?;
        draft.key.source = header.source;
        draft.key.destination = header.destination;
        // A packet that is longer than the field can say has zero there, and an option that says it (RFC 2675).
        draft.packet.length = match header.payload.get() {
            0 if header.next == Protocol::HOP_BY_HOP => context.len() - ETHERNET_LENGTH as u32,
            payload => u32::from(payload) + Self::NETWORK_LENGTH as u32,
        };
        let (mut next, mut at) = (header.next, Self::TRANSPORT);
        let (mut part, mut identification, mut fragmented) = (Part(Part::WHOLE), 0, false);
        for _ in 0..EXTENSIONS {
            match next {
                Protocol::HOP_BY_HOP | Protocol::DESTINATION_OPTIONS => {
                    let [behind, length]: [u8; 2] = load(context, at)?;
                    next = Protocol(behind);
                    at += (usize::from(length) + 1) * 8;
                }
                Protocol::FRAGMENT if !fragmented => {
                    let fragment: FragmentHeader = load(context, at)?;
                    let offset = fragment.offset.get();
                    part = Part::new(offset & MORE_V6 != 0, offset & OFFSET_V6);
                    (next, identification, fragmented) = (fragment.next, fragment.identification, true);
                    at += size_of::<FragmentHeader>();
                    if part.0 == Part::LATER {
                        break;
                    }
                }
                _ => break,
            }
        }
        draft.key.protocol = next;
        draft.extent = Extent {
            transport: at as u32,
            identification,
            ttl: header.hop_limit,
            part,
            names_frontend: false,
        };
        check_length(context, draft)
    }

    #[inline(always)]
    fn fragment_key(draft: &Draft<Self>) -> FragmentKey<Self> {
        FragmentKey {
            source: draft.key.source,
            destination: draft.key.destination,
            identification: draft.extent.identification,
            protocol: Protocol(0),
            padding: 0,
            padding_word: 0,
        }
    }
}
