//! Packets and bytes of services and backends, added up from what flow entries count anyway.
//!
//! No program does more for it: a pass over the flow tables ([`crate::flows`]) compares each entry with what it said at the
//! last pass and adds the difference to its service and backend, in the pinned map `traffic`. That costs one look into a
//! hash table for each entry and pass, and some 30 bytes for each entry there is.
//!
//! The sums lag behind by one pass. They miss what no pass could see: packets of an opening flow that was pushed out, of a
//! tuple's earlier connection since the last pass when a program made room for the next one, of a UDP flow since then that
//! went with its endpoint, and, while no agent runs, of
//! every entry that goes meanwhile. They never count a packet twice. Connections that a socket hook translated have no flow
//! and are not in them, nor are flows that leave the cluster, which have no service.

use std::{
    collections::{HashMap, HashSet},
    hash::BuildHasher,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use weir_dataplane_ebpf::{Be16, Count, Flow, FlowKey, Ip6, Traffic, TrafficKey, maps::TRAFFIC};

use crate::{
    flows::socket,
    kernel::maps::{Family, Maps, TableError},
};

/// Where traffic is counted that has no entry of its own: beyond the map's bound, and of services that are gone.
pub const REST: TrafficKey =
    TrafficKey { service: 0, address: Ip6([ZERO; 4]), port: Be16::new(0), padding: 0 };
const ZERO: weir_dataplane_ebpf::Be32 = weir_dataplane_ebpf::Be32::new(0);

/// Both directions of a service or backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// From clients.
    pub requests: Count,
    /// From backends.
    pub replies: Count,
}

impl Sums {
    /// Adds what a map entry counts.
    pub fn add(&mut self, traffic: &Traffic) {
        add(&mut self.requests, traffic.requests);
        add(&mut self.replies, traffic.replies);
    }
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        add(&mut self.requests, other.requests);
        add(&mut self.replies, other.replies);
    }
}

/// The entry of a service and backend.
pub fn key(service: u32, backend: SocketAddr) -> TrafficKey {
    let address = match backend.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    TrafficKey { service, address: address.into(), port: Be16::new(backend.port()), padding: 0 }
}

/// The backend of an entry; nothing for what is counted together.
pub fn backend(key: &TrafficKey) -> Option<SocketAddr> {
    let address = Ipv6Addr::from(key.address);
    let address = address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4);
    (key.port != REST.port).then(|| SocketAddr::new(address, key.port.get()))
}

/// What the passes add up.
#[derive(Debug, Default)]
pub struct Ledger {
    hasher: std::hash::RandomState,
    /// What each flow entry said when it was seen last, and in which pass, by a hash of its tuple: of a million entries, two
    /// share a hash with a chance of one in ten million, and then one of them may be counted short.
    seen: HashMap<u64, (Count, u32)>,
    pass: u32,
    rows: HashMap<TrafficKey, Traffic>,
    /// What the map does not say yet.
    changed: HashSet<TrafficKey>,
    removed: HashSet<TrafficKey>,
    /// What the entries seen in this pass hold, by row.
    standing: HashMap<TrafficKey, Sums>,
    /// What they grew by, unless this is the first pass.
    grown: HashMap<TrafficKey, Sums>,
    /// How many of them have no row yet.
    fresh: usize,
}

impl Ledger {
    /// Goes on where the map stands.
    pub fn adopt(maps: &Maps) -> Result<Self, TableError> {
        Ok(Self { rows: maps.traffic.entries()?.into_iter().collect(), ..Self::default() })
    }

    /// One direction of a flow, as this pass found it. The opening flows come first: one that is established meanwhile is
    /// then seen twice, and not missed.
    pub fn see<A: Family>(&mut self, key: &FlowKey<A>, flow: &Flow<A>, stays: bool) {
        if flow.flags & Flow::<A>::FLAG_EGRESS != 0 {
            return;
        }
        let reply = flow.flags & Flow::<A>::FLAG_REPLY != 0;
        let backend = if reply {
            socket(key.source, key.source_port)
        } else {
            socket(flow.destination, flow.destination_port)
        };
        let now = Count { packets: flow.packets, bytes: flow.bytes };
        let hash = self.hasher.hash_one((A::SUFFIX, key));
        let (before, seen_in) = self.seen.get(&hash).copied().unwrap_or_default();
        // Fewer than before: another flow of the same tuple.
        let grown = if now.packets < before.packets { now } else { less(now, before) };
        let row = self.row(self::key(flow.service, backend));
        let direction =
            |sums: &mut Sums, count| add(if reply { &mut sums.replies } else { &mut sums.requests }, count);
        direction(self.grown.entry(row).or_default(), grown);
        let again = seen_in == self.pass && before != Count::default();
        direction(self.standing.entry(row).or_default(), if again { grown } else { now });
        if stays {
            self.seen.insert(hash, (now, self.pass));
        } else {
            self.seen.remove(&hash);
        }
    }

    /// The row that a pair is counted in.
    fn row(&mut self, pair: TrafficKey) -> TrafficKey {
        if self.rows.contains_key(&pair) || self.grown.contains_key(&pair) {
            return pair;
        }
        // One less: the rest always has room.
        if self.rows.len() + self.fresh >= TRAFFIC as usize - 1 {
            return REST;
        }
        self.fresh += 1;
        pair
    }

    /// Ends a pass: adds up, lets go of what neither serves nor has a flow, and says what the map must be told.
    /// `services` are the ids that mean something, `backends` are in use.
    pub fn close(
        &mut self,
        services: &HashSet<u32, impl BuildHasher>,
        backends: &HashSet<SocketAddr, impl BuildHasher>,
    ) {
        let first = self.pass == 0;
        self.fresh = 0;
        let (standing, grown) = (std::mem::take(&mut self.standing), std::mem::take(&mut self.grown));
        for (row, sums) in &standing {
            let traffic = self.rows.entry(*row).or_default();
            // An agent that starts has seen no entry before; all of them together grew by no less than this.
            let grown = if first {
                Sums {
                    requests: less(sums.requests, traffic.standing_requests),
                    replies: less(sums.replies, traffic.standing_replies),
                }
            } else {
                grown[row]
            };
            add(&mut traffic.requests, grown.requests);
            add(&mut traffic.replies, grown.replies);
        }
        let mut gone = Vec::new();
        for (row, traffic) in &mut self.rows {
            let now = standing.get(row).copied().unwrap_or_default();
            let before = Sums { requests: traffic.standing_requests, replies: traffic.standing_replies };
            if now != before {
                (traffic.standing_requests, traffic.standing_replies) = (now.requests, now.replies);
                self.changed.insert(*row);
            }
            let serves =
                services.contains(&row.service) && backend(row).is_none_or(|it| backends.contains(&it));
            if !serves && *row != REST && !standing.contains_key(row) {
                gone.push(*row);
            }
        }
        self.changed.extend(standing.keys());
        for row in gone {
            self.fold(row, services.contains(&row.service));
        }
        self.seen.retain(|_, (_, pass)| *pass == self.pass);
        self.pass += 1;
    }

    /// Counts a row together with its service's other backends that are gone, or with the rest.
    fn fold(&mut self, row: TrafficKey, service_stays: bool) {
        let Some(traffic) = self.rows.remove(&row) else { return };
        let into = TrafficKey { service: if service_stays { row.service } else { 0 }, ..REST };
        let sums = self.rows.entry(into).or_default();
        add(&mut sums.requests, traffic.requests);
        add(&mut sums.replies, traffic.replies);
        self.changed.remove(&row);
        self.changed.insert(into);
        self.removed.insert(row);
    }

    /// Makes the map say the same; what could not be written is tried again after the next pass.
    pub fn write(&mut self, maps: &Maps) -> Result<(), TableError> {
        self.removed.retain(|row| !self.rows.contains_key(row));
        maps.traffic.remove(&self.removed.iter().copied().collect::<Vec<_>>())?;
        self.removed.clear();
        let keys: Vec<TrafficKey> = self.changed.iter().copied().collect();
        let values: Vec<Traffic> = keys.iter().map(|key| self.rows[key]).collect();
        maps.traffic.write(&keys, &values)?;
        self.changed.clear();
        Ok(())
    }

    /// How many rows there are.
    pub fn len(&self) -> u32 {
        self.rows.len() as u32
    }

    /// Whether nothing was ever counted.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.standing.is_empty()
    }

    /// Sums by service id; id 0 has the rest.
    pub fn services(&self) -> HashMap<u32, Sums> {
        let mut all = HashMap::<u32, Sums>::new();
        for (row, traffic) in &self.rows {
            all.entry(row.service).or_default().add(traffic);
        }
        all
    }
}

fn add(sum: &mut Count, count: Count) {
    sum.packets += count.packets;
    sum.bytes += count.bytes;
}

/// What one has more than the other, or nothing.
fn less(count: Count, than: Count) -> Count {
    Count {
        packets: count.packets.saturating_sub(than.packets),
        bytes: count.bytes.saturating_sub(than.bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use weir_dataplane_ebpf::Ip4;

    use super::*;

    const BACKEND: &str = "10.244.0.2:80";

    fn flow(port: u16, service: u32, packets: u64) -> (FlowKey<Ip4>, Flow<Ip4>) {
        let key = FlowKey { source_port: Be16::new(port), ..FlowKey::default() };
        let destination = Ip4::from(Ipv4Addr::new(10, 244, 0, 2));
        let counts = Flow { packets, bytes: packets * 100, service, ..Flow::default() };
        (key, Flow { destination, destination_port: Be16::new(80), ..counts })
    }

    fn pass(ledger: &mut Ledger, flows: &[(FlowKey<Ip4>, Flow<Ip4>)], services: &[u32], backends: &[&str]) {
        for (key, flow) in flows {
            ledger.see(key, flow, true);
        }
        let backends: HashSet<SocketAddr> = backends.iter().map(|text| text.parse().unwrap()).collect();
        let services: HashSet<u32> = services.iter().copied().collect();
        ledger.close(&services, &backends);
    }

    fn requests(ledger: &Ledger, service: u32) -> u64 {
        ledger.services().get(&service).map_or(0, |sums| sums.requests.packets)
    }

    /// An agent that starts where this one was killed.
    fn next(ledger: &Ledger) -> Ledger {
        Ledger { rows: ledger.rows.clone(), ..Ledger::default() }
    }

    #[test]
    fn a_flow_counts_what_it_grew_by_whoever_runs() {
        let mut ledger = Ledger::default();
        pass(&mut ledger, &[flow(1, 7, 10), flow(2, 7, 1)], &[7], &[BACKEND]);
        assert_eq!(requests(&ledger, 7), 11);
        pass(&mut ledger, &[flow(1, 7, 15), flow(2, 7, 1)], &[7], &[BACKEND]);
        assert_eq!(requests(&ledger, 7), 16);
        let mut ledger = next(&ledger);
        pass(&mut ledger, &[flow(1, 7, 20), flow(2, 7, 1), flow(3, 7, 4)], &[7], &[BACKEND]);
        assert_eq!(requests(&ledger, 7), 25, "not what was counted already");
        pass(&mut ledger, &[flow(1, 7, 21)], &[7], &[BACKEND]);
        assert_eq!(requests(&ledger, 7), 26, "an entry that goes takes nothing back");
    }

    #[test]
    fn a_tuple_that_begins_anew_and_an_entry_that_moves_are_counted_once() {
        let mut ledger = Ledger::default();
        pass(&mut ledger, &[flow(1, 7, 10)], &[7], &[BACKEND]);
        pass(&mut ledger, &[flow(1, 7, 3)], &[7], &[BACKEND]);
        assert_eq!(requests(&ledger, 7), 13);
        // Among the opening ones first, established when that table is read.
        pass(&mut ledger, &[flow(1, 7, 4), flow(1, 7, 6)], &[7], &[BACKEND]);
        assert_eq!(requests(&ledger, 7), 16);
        let row = key(7, BACKEND.parse().unwrap());
        assert_eq!(ledger.rows[&row].standing_requests.packets, 6);
        // The last look at one that goes.
        let (tuple, last) = flow(1, 7, 9);
        ledger.see(&tuple, &last, false);
        pass(&mut ledger, &[], &[7], &[BACKEND]);
        assert_eq!(requests(&ledger, 7), 19);
        pass(&mut ledger, &[flow(1, 7, 9)], &[7], &[BACKEND]);
        assert_eq!(requests(&ledger, 7), 28, "it was removed: this is another");
    }

    #[test]
    fn what_is_gone_is_counted_together_and_its_row_is_free() {
        let mut ledger = Ledger::default();
        pass(&mut ledger, &[flow(1, 7, 10)], &[7], &[]);
        assert!(ledger.rows.contains_key(&key(7, BACKEND.parse().unwrap())), "its flow is there");
        pass(&mut ledger, &[], &[7], &[]);
        assert_eq!(ledger.rows.keys().copied().collect::<Vec<_>>(), [TrafficKey { service: 7, ..REST }]);
        assert_eq!(requests(&ledger, 7), 10);
        pass(&mut ledger, &[], &[], &[]);
        assert_eq!(ledger.rows.keys().copied().collect::<Vec<_>>(), [REST]);
        assert_eq!(requests(&ledger, 0), 10);
    }

    #[test]
    fn beyond_the_bound_pairs_are_counted_together() {
        let mut ledger = Ledger::default();
        for service in 1..=TRAFFIC + 10 {
            let (key, flow) = flow((service % 60_000) as u16, service, 1);
            ledger.see(
                &FlowKey { destination_port: Be16::new((service / 60_000) as u16), ..key },
                &flow,
                true,
            );
        }
        let services: HashSet<u32> = (1..=TRAFFIC + 10).collect();
        ledger.close(&services, &HashSet::from([BACKEND.parse::<SocketAddr>().unwrap()]));
        assert_eq!(ledger.len(), TRAFFIC);
        assert_eq!(requests(&ledger, 0), 11);
    }

    #[test]
    fn what_leaves_the_cluster_is_no_services() {
        let mut ledger = Ledger::default();
        let (key, mut flow) = flow(1, 0, 10);
        flow.flags = Flow::<Ip4>::FLAG_EGRESS;
        pass(&mut ledger, &[(key, flow)], &[], &[]);
        assert!(ledger.is_empty());
    }

    #[test]
    fn backends_of_both_families_are_told_apart() {
        for text in [BACKEND, "[fd00::1]:80"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(backend(&key(3, address)), Some(address));
        }
        assert_eq!(backend(&REST), None);
    }
}
