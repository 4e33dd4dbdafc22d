//! Lookup tables: regions of `maglev`, shared by the frontends that choose from the same backends.

use std::net::SocketAddr;

use weir_dataplane_ebpf::Frontend;

use super::{Books, Retired};
use crate::plan::{
    desired::{DesiredFrontend, DesiredPort},
    maglev,
    outcome::{Plan, Problem},
    step::Step,
};

#[derive(Clone, Debug)]
pub(super) struct Region {
    pub(super) size: u32,
    pub(super) fingerprint: u64,
    /// Frontends that point to it.
    pub(super) frontends: u32,
}

impl Books {
    /// Offset, size and number of backends of the table that `frontend` should point to: the one that it points to if
    /// that says the same, otherwise a new one. Nothing when there is no room.
    pub(super) fn table(
        &mut self,
        port: &DesiredPort,
        frontend: &DesiredFrontend,
        plan: &mut Plan,
    ) -> Option<(u32, u32, u32)> {
        let ipv4 = frontend.address.address.is_ipv4();
        let backends: Vec<SocketAddr> = port
            .serving(ipv4, frontend.local_only)
            .iter()
            .copied()
            .filter(|address| self.backends.contains_key(address))
            .collect();
        let count = backends.len() as u32;
        if backends.is_empty() {
            return Some((0, 0, 0));
        }
        let ids = |size: usize| -> Vec<u32> {
            let table = maglev::table(&backends, size);
            table.into_iter().map(|index| self.backends[&backends[index as usize]].id).collect()
        };
        let mut size = maglev::preferred_size(backends.len());
        let mut slots = ids(size);
        if let Some(current) = self.frontends.get(&frontend.address).filter(|value| value.backends > 0) {
            let offset = current.maglev_offset;
            if let Some(region) = self.regions.get(&offset) {
                let same = region.size == current.maglev_mask.wrapping_add(1)
                    && region.size as usize == size
                    && region.fingerprint == fingerprint(&slots);
                if same {
                    return Some((offset, region.size, count));
                }
            }
        }
        // Under pressure a smaller table, less even, is better than none.
        let offset = loop {
            if let Some(offset) = self.slots.allocate(size as u32) {
                break offset;
            }
            if size <= maglev::smallest_size(backends.len()) {
                plan.problems.push(Problem::SlotsFull { bound: self.limits.slots });
                return None;
            }
            size /= 2;
            slots = ids(size);
        };
        let region = Region { size: size as u32, fingerprint: fingerprint(&slots), frontends: 0 };
        self.regions.insert(offset, region);
        plan.steps.push(Step::WriteRegion { offset, slots });
        Some((offset, size as u32, count))
    }

    /// A region that no frontend points to any more rests, and is then free.
    pub(super) fn leave_region(&mut self, old: &Frontend, now_ms: u64) {
        if old.backends == 0 {
            return;
        }
        let offset = old.maglev_offset;
        let Some(region) = self.regions.get_mut(&offset) else { return };
        // An adopted frontend that named a region of another size never counted.
        if region.size != old.maglev_mask.wrapping_add(1) {
            return;
        }
        region.frontends -= 1;
        if region.frontends == 0 {
            let size = region.size;
            self.regions.remove(&offset);
            self.retired.push_back((now_ms, Retired::Region { offset, size }));
        }
    }
}

/// Whether two tables are the same, without keeping either: FNV-1a over the ids. Tables differ by design, not by an
/// attacker's hand, and equal sizes are compared as well.
pub(super) fn fingerprint(slots: &[u32]) -> u64 {
    slots
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, id| (hash ^ u64::from(*id)).wrapping_mul(0x0100_0000_01b3))
}
