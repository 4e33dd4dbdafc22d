//! The `filter` map from user space: a bit is set before the frontend or backend that it stands for is visible, and cleared
//! long after.
//!
//! Bits are shared, so that the end of one frontend clears nothing. What has gone rests for a while, and is then cleared by
//! comparing the whole map, 128 KiB, with what is served and with the flows that are still there: a connection goes on when
//! its service's address does not.

use std::net::{IpAddr, SocketAddr};

use weir_dataplane_ebpf::{Be16, Ip4, Ip6, filter};

/// How long the bits of what was removed stay at least: a pass over the flows that began before must not be believed.
pub const REST_MS: u64 = 60_000;

/// A picture of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bits(Vec<u64>);

impl Default for Bits {
    fn default() -> Self {
        Self(vec![0; filter::WORDS as usize])
    }
}

impl Bits {
    /// Sets the bit of an address and port. The element that changes by that, with its new value.
    pub fn set(&mut self, address: SocketAddr) -> Option<(u32, u64)> {
        let (index, bit) = position(address);
        let word = &mut self.0[index as usize];
        let changes = *word & bit == 0;
        *word |= bit;
        changes.then_some((index, *word))
    }
}

/// What the map holds.
#[derive(Clone, Debug)]
pub struct Filter {
    bits: Bits,
    /// When the newest of the bits that may be left over was left.
    left_over_ms: Option<u64>,
}

impl Filter {
    /// Of a map that an earlier agent filled.
    pub fn adopt(mut words: Vec<u64>, now_ms: u64) -> Self {
        words.resize(filter::WORDS as usize, 0);
        Self { bits: Bits(words), left_over_ms: Some(now_ms) }
    }

    /// Whether it lets nothing through.
    pub fn is_empty(&self) -> bool {
        self.bits.0.iter().all(|word| *word == 0)
    }

    /// Sets bits; returns the elements that change, with their new values.
    #[must_use = "the map must say the same"]
    pub fn widen(&mut self, addresses: impl Iterator<Item = SocketAddr>) -> Vec<(u32, u64)> {
        addresses.filter_map(|address| self.bits.set(address)).collect()
    }

    /// The elements of the map that say something else, with what they should say.
    pub fn corrections(&self, words: &[u64]) -> Vec<(u32, u64)> {
        let pairs = (0..).zip(self.bits.0.iter().zip(words));
        pairs.filter(|(_, (right, word))| right != word).map(|(index, (right, _))| (index, *right)).collect()
    }

    /// Something was removed.
    pub fn leave_over(&mut self, now_ms: u64) {
        self.left_over_ms = Some(now_ms);
    }

    /// Clears what neither `served` nor the live flows' bits name any more, once it has rested; returns the elements that
    /// change.
    #[must_use = "the map must say the same"]
    pub fn narrow(
        &mut self,
        served: impl Iterator<Item = SocketAddr>,
        live: Bits,
        now_ms: u64,
    ) -> Vec<(u32, u64)> {
        if self.left_over_ms.is_none_or(|left| now_ms < left.saturating_add(REST_MS)) {
            return Vec::new();
        }
        let mut wanted = Bits::default();
        for address in served {
            wanted.set(address);
        }
        // What only flows hold is left over still, and is looked at again after the next pass.
        let only_live = live.0.iter().zip(&wanted.0).any(|(live, served)| live & !served != 0);
        self.left_over_ms = only_live.then_some(now_ms);
        wanted.0.iter_mut().zip(live.0).for_each(|(word, live)| *word |= live);
        let pairs = (0..).zip(self.bits.0.iter().zip(&wanted.0));
        let changed = pairs.filter(|(_, (old, new))| old != new).map(|(index, (_, new))| (index, *new));
        let changed = changed.collect();
        self.bits = wanted;
        changed
    }
}

/// Element and bit of an address and port.
pub(crate) fn position(address: SocketAddr) -> (u32, u64) {
    let port = Be16::new(address.port());
    match address.ip() {
        IpAddr::V4(ip) => filter::position(&Ip4::from(ip), port),
        IpAddr::V6(ip) => filter::position(&Ip6::from(ip), port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> [SocketAddr; 2] {
        ["10.96.0.1:443", "[fd00:96::1]:443"].map(|text| text.parse().expect("an address"))
    }

    fn bits(filter: &Filter) -> u32 {
        filter.bits.0.iter().map(|word| word.count_ones()).sum()
    }

    #[test]
    fn a_bit_is_written_once() {
        let mut filter = Filter::adopt(Vec::new(), 0);
        let changed = filter.widen(addresses().into_iter());
        assert_eq!(changed.len(), 2);
        assert!(changed.iter().all(|(_, word)| word.is_power_of_two()));
        assert!(filter.widen(addresses().into_iter()).is_empty());
        assert_eq!(bits(&filter), 2);
    }

    #[test]
    fn what_was_removed_rests_before_it_is_cleared() {
        let [kept, gone] = addresses();
        let mut filter = Filter::adopt(Vec::new(), 0);
        assert_eq!(filter.widen(addresses().into_iter()).len(), 2);
        filter.leave_over(1_000);
        assert!(filter.narrow([kept].into_iter(), Bits::default(), 1_000 + REST_MS - 1).is_empty());
        assert_eq!(bits(&filter), 2);
        assert_eq!(
            filter.narrow([kept].into_iter(), Bits::default(), 1_000 + REST_MS),
            [(position(gone).0, 0)]
        );
        assert!(
            filter.narrow([kept].into_iter(), Bits::default(), u64::MAX).is_empty(),
            "nothing was left over since"
        );
    }

    #[test]
    fn what_flows_still_use_stays() {
        let [kept, gone] = addresses();
        let mut filter = Filter::adopt(Vec::new(), 0);
        assert_eq!(filter.widen([kept, gone].into_iter()).len(), 2);
        let mut live = Bits::default();
        live.set(gone);
        assert!(filter.narrow([kept].into_iter(), live, REST_MS).is_empty());
        assert!(
            !filter.narrow([kept].into_iter(), Bits::default(), 2 * REST_MS).is_empty(),
            "once they are over"
        );
        assert_eq!(bits(&filter), 1);
    }

    #[test]
    fn what_an_earlier_agent_left_is_cleared_too() {
        let [kept, gone] = addresses();
        let mut earlier = Filter::adopt(Vec::new(), 0);
        assert_eq!(earlier.widen([kept, gone].into_iter()).len(), 2);
        let mut filter = Filter::adopt(earlier.bits.0, 0);
        assert!(filter.widen([kept].into_iter()).is_empty());
        assert_eq!(filter.narrow([kept].into_iter(), Bits::default(), REST_MS), [(position(gone).0, 0)]);
    }
}
