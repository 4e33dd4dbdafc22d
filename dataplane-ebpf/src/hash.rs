//! The hash that chooses a backend.
//!
//! Every node, the socket hooks and `weir explain` must come to the same choice for the same tuple, so that the function
//! stands here, once, and is part of the ABI: changing it moves connections whose flow entry was lost.

use crate::{Address, FlowKey, Frontend};

/// An odd 64-bit constant without structure (from splitmix64).
const MULTIPLIER: u64 = 0xbf58_476d_1ce4_e5b9;

/// One round: one multiplication, and the well-mixed high half folded into the low one.
#[inline(always)]
const fn mix(state: u64, word: u64) -> u64 {
    let product = (state ^ word).wrapping_mul(MULTIPLIER);
    product ^ (product >> 32)
}

#[inline(always)]
fn mix_address<A: Address>(mut state: u64, address: &A) -> u64 {
    for word in address.words().as_ref() {
        state = mix(state, word.get() as u64);
    }
    state
}

/// Of a whole tuple.
#[inline(always)]
pub fn flow<A: Address>(key: &FlowKey<A>) -> u32 {
    let ports = u64::from(key.source_port.get()) << 32
        | u64::from(key.destination_port.get()) << 16
        | u64::from(key.protocol.0);
    let state = mix_address(mix(MULTIPLIER, ports), &key.source);
    mix_address(state, &key.destination) as u32
}

/// Of a client alone, for session affinity: all its connections to a service choose the same slot.
#[inline(always)]
pub fn client<A: Address>(client: &A, service: u32) -> u32 {
    mix_address(mix(MULTIPLIER, service as u64), client) as u32
}

/// Of an address alone.
#[inline(always)]
pub fn address<A: Address>(address: &A) -> u32 {
    mix_address(MULTIPLIER, address) as u32
}

/// Of any number that names a client or socket (a cookie) and the service that it asks for.
#[inline(always)]
pub const fn number(number: u64, service: u32) -> u32 {
    mix(mix(MULTIPLIER, service as u64), number) as u32
}

/// Which slot of the `maglev` map a hash points to.
#[inline(always)]
pub const fn slot(frontend: &Frontend, hash: u32) -> u32 {
    frontend.maglev_offset.wrapping_add(hash & frontend.maglev_mask)
}

/// Which slot a packet's tuple points to, session affinity considered.
#[inline(always)]
pub fn flow_slot<A: Address>(frontend: &Frontend, key: &FlowKey<A>) -> u32 {
    let hash =
        if frontend.affinity_timeout_s == 0 { flow(key) } else { client(&key.source, frontend.service) };
    slot(frontend, hash)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::{Be16, Ip4, Protocol};
    use core::net::Ipv4Addr;

    #[test]
    fn neighbouring_clients_spread_evenly() {
        let mut slots = [0_u32; 256];
        for client in 0..64_u8 {
            for port in 0..1024_u16 {
                let key = FlowKey {
                    source: Ip4::from(Ipv4Addr::new(192, 168, 1, client)),
                    destination: Ip4::from(Ipv4Addr::new(10, 96, 0, 10)),
                    source_port: Be16::new(32_768 + port * 2),
                    destination_port: Be16::new(80),
                    protocol: Protocol::TCP,
                    ..FlowKey::default()
                };
                slots[(flow(&key) & 255) as usize] += 1;
            }
        }
        // 256 expected in each; five standard deviations are 80.
        for (slot, count) in slots.iter().enumerate() {
            assert!((176..336).contains(count), "slot {slot} has {count}");
        }
    }

    #[test]
    fn affinity_ignores_ports() {
        let frontend = Frontend { maglev_mask: 255, affinity_timeout_s: 10_800, ..Frontend::default() };
        let key = |port| FlowKey {
            source: Ip4::from(Ipv4Addr::new(10, 0, 0, 1)),
            source_port: Be16::new(port),
            ..FlowKey::default()
        };
        assert_eq!(flow_slot(&frontend, &key(1)), flow_slot(&frontend, &key(2)));
    }
}
