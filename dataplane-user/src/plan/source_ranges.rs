//! Which source ranges the maps hold: part of the books.

use std::collections::{BTreeSet, HashMap};

use super::step::Step;
use crate::cidr::Cidr;

/// Ranges by service id, within a bound for each family.
#[derive(Clone, Debug)]
pub(super) struct SourceRanges {
    of: HashMap<u32, BTreeSet<Cidr>>,
    used: [u32; 2],
    bound: u32,
}

impl SourceRanges {
    /// None, with room for `bound` in each family.
    pub(super) fn new(bound: u32) -> Self {
        Self { of: HashMap::new(), used: [0; 2], bound }
    }

    /// Takes in one that is in the maps already.
    pub(super) fn adopt(&mut self, service: u32, range: Cidr) {
        self.used[family(range)] += 1;
        self.of.entry(service).or_default().insert(range);
    }

    /// How many there are, IPv4 and IPv6.
    pub(super) fn used(&self) -> [u32; 2] {
        self.used
    }

    /// All of them, by service id.
    pub(super) fn all(&self) -> impl Iterator<Item = (u32, Cidr)> {
        self.of.iter().flat_map(|(id, ranges)| ranges.iter().map(|range| (*id, *range)))
    }

    /// Services that have any.
    pub(super) fn services(&self) -> impl Iterator<Item = u32> {
        self.of.keys().copied()
    }

    /// Makes `wanted` the ranges of a service. Says how many have no room, and so admit nobody.
    pub(super) fn set(&mut self, service: u32, wanted: &BTreeSet<Cidr>, steps: &mut Vec<Step>) -> usize {
        let known = self.of.remove(&service).unwrap_or_default();
        let mut kept = BTreeSet::new();
        for range in wanted {
            let used = &mut self.used[family(*range)];
            if known.contains(range) {
                kept.insert(*range);
            } else if *used < self.bound {
                *used += 1;
                kept.insert(*range);
                steps.push(Step::WriteSourceRange { service, range: *range });
            }
        }
        for range in known.difference(wanted) {
            self.used[family(*range)] -= 1;
            steps.push(Step::RemoveSourceRange { service, range: *range });
        }
        let left_out = wanted.len() - kept.len();
        if !kept.is_empty() {
            self.of.insert(service, kept);
        }
        left_out
    }
}

/// Index of a range's family in pairs: IPv4, IPv6.
fn family(range: Cidr) -> usize {
    usize::from(!range.network().is_ipv4())
}
