//! The ABI of the dataplane: every map's key, value, name and bound, shared by the programs and by user space.
//!
//! This is the single truth for layouts. A layout is `#[repr(C)]`, has no implicit padding, no `bool`, `Option`
//! or data enum, and says its byte order in its types. Compile-time assertions beside each type pin its size, so that
//! a change which would break pinned maps does not compile unnoticed; such a change raises [`LAYOUT_VERSION`].
//!
//! IPv4 and IPv6 share each definition through [`Address`]: a map exists once per family, the code that uses it once.

#![no_std]
#![allow(
    clippy::inline_always,
    reason = "in a program a call is a BPF subprogram: it costs registers, and old verifiers forget what is behind it"
)]

mod address;
mod affinity;
mod backend;
pub mod bench;
pub mod checksum;
mod config;
mod counters;
pub mod crc32c;
mod endpoint;
mod event;
pub mod filter;
mod flow;
mod fragment;
mod frontend;
mod frontend_option;
pub mod hash;
pub mod maglev;
pub mod maps;
mod node_port;
mod range;
mod socket;
mod source_range;
mod traffic;
mod uplink;

pub use address::{Address, Be16, Be32, Ip4, Ip6, Mac};
pub use affinity::{Affinity, AffinityKey, Namespace};
pub use backend::Backend;
pub use config::NodeConfig;
pub use counters::{DROP_REASONS, DropReason};
pub use endpoint::Endpoint;
pub use event::{Event, EventKind};
pub use flow::{Flow, FlowKey, FlowState};
pub use fragment::{Fragment, FragmentKey};
pub use frontend::{Frontend, FrontendKey, Protocol, Scope};
pub use frontend_option::FrontendOption;
pub use node_port::{node_port_at, node_port_index};
pub use range::RangeKey;
pub use socket::{SocketPeer, SocketPeerKey};
pub use source_range::{SourceRange, SourceRangeKey};
pub use traffic::{Count, Traffic, TrafficKey};
pub use uplink::Uplink;

/// Version of all layouts together. Pins live below a directory of this name, so that an agent never adopts a map
/// whose entries it would misread.
pub const LAYOUT_VERSION: u32 = 3;

/// Marks a layout as plain old data for user space, and asserts its size for both sides.
macro_rules! layout {
    ($($type:ty = $size:literal),+ $(,)?) => {
        $(
            const _: () = assert!(core::mem::size_of::<$type>() == $size);

            // SAFETY: `#[repr(C)]`, every field is plain old data, and the size assertion above
            // shows that no padding is left.
            #[cfg(feature = "user")]
            unsafe impl aya::Pod for $type {}
        )+
    };
}
use layout;

/// The same for a layout that exists once for each family: its size with an IPv4 and with an IPv6 address. User space
/// may then treat it as plain old data in code that is generic over the family.
macro_rules! family_layout {
    ($($type:ident = $v4:literal, $v6:literal);+ $(;)?) => {
        $(
            const _: () = assert!(core::mem::size_of::<$type<$crate::Ip4>>() == $v4);
            const _: () = assert!(core::mem::size_of::<$type<$crate::Ip6>>() == $v6);

            // SAFETY: `#[repr(C)]`, every field is plain old data, and the size assertions above show that no padding
            // is left with either address; `Address` is sealed, so there is no third.
            #[cfg(feature = "user")]
            unsafe impl<A: $crate::Address> aya::Pod for $type<A> {}
        )+
    };
}
use family_layout;
