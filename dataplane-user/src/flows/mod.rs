//! Which flow entries are over, and their removal.
//!
//! The programs never evict an established flow: a live connection is not thrown out to make room for a flood of new ones.
//! So what is over must go from here: read in batches, judged by protocol and state, and looked at once more before it is removed, so
//! that a packet which came meanwhile saves its flow. Both halves of a flow are kept alive by either (the programs see
//! to that); each is judged alone, and the one that is left repairs the other.
//!
//! A table that fills is read more often, and what is known to be over leaves it sooner: short connections by the ten thousand
//! would fill it with closed ones, and new ones stayed among those that are opening. Live ones have their time in any table.

mod clock;
mod datagrams;
mod lifetimes;
mod passes;

use std::{
    collections::{HashMap, HashSet},
    hash::BuildHasher,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use weir_dataplane_ebpf::{Backend, Flow, FlowKey, Uplink};

pub(crate) use self::passes::{Passes, Progress, Setting};
pub use self::{
    clock::TickClock,
    datagrams::{Lost, forget},
    lifetimes::{
        CLOSED, CLOSED_AT_LEAST, CLOSING, CROWDED, ESTABLISHED_ECHO, ESTABLISHED_TCP, ESTABLISHED_UDP,
        LOOK_INTERVAL, OPENING, PASS_INTERVAL, lifetime, rest, state_name,
    },
};
use crate::{
    filter::Bits,
    kernel::maps::{Family, FamilyMaps, Maps, Table, TableError, backend_address},
    traffic::Ledger,
};

/// What a pass found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Entries that stay, of established flows.
    pub live: [u32; 2],
    /// Entries that stay, of opening ones.
    pub opening: [u32; 2],
    /// Entries that were removed.
    pub removed: u64,
    /// Those of closed flows among them that would have rested on if their table were emptier.
    pub early: u64,
    /// What packets of the entries that stay go to or come from.
    pub uses: Bits,
}

/// Why an entry goes.
fn is_over<A: Family>(
    key: &FlowKey<A>,
    flow: &Flow<A>,
    now: u32,
    ticks_per_s: f64,
    rest: Duration,
    serving: &Serving,
) -> bool {
    // Signed: a packet may have passed after the tick was read.
    let idle = f64::from(now.wrapping_sub(flow.last_seen_jiffies).cast_signed().max(0)) / ticks_per_s;
    if idle > lifetime(key.protocol, flow.state, rest).as_secs_f64() {
        return true;
    }
    // A short rest even for what is served no more: the plan may just have been giving the backend its id.
    idle > CLOSED.as_secs_f64() && !serving.serves(key, flow)
}

/// What flows lead to or leave by.
#[derive(Debug, Default)]
struct Serving {
    /// Backends by id.
    backends: HashMap<u32, SocketAddr>,
    /// The node's own addresses on its uplinks.
    own: HashSet<IpAddr>,
}

impl Serving {
    fn serves<A: Family>(&self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        let reply = flow.flags & Flow::<A>::FLAG_REPLY != 0;
        if flow.flags & Flow::<A>::FLAG_EGRESS != 0 {
            // No answer finds an address that the node has no more.
            return self.own.contains(&if reply { key.destination } else { flow.source }.ip());
        }
        // The backend's own direction names it as the source of the packet, the client's as the destination of the rewrite.
        let backend = if reply {
            socket(key.source, key.source_port)
        } else {
            socket(flow.destination, flow.destination_port)
        };
        match self.backends.get(&flow.backend) {
            // A tunnel leads to the backend's node, and the programs compare that.
            Some(_) if flow.flags & Flow::<A>::FLAG_TUNNEL != 0 => true,
            known => known == Some(&backend),
        }
    }
}

/// One pass under way.
struct Collector<'a> {
    now: u32,
    ticks_per_s: f64,
    lost: &'a Lost,
    ledger: &'a mut Ledger,
    uses: Bits,
    removed: u64,
    early: u64,
}

/// What one family's flows lead to, read when somebody asks: the array has an element for every id.
struct Known<'a, A> {
    maps: &'a FamilyMaps<A>,
    uplinks: &'a Table<u32, Uplink>,
    serving: Option<Serving>,
}

impl<'a, A: Family> Known<'a, A> {
    fn new(maps: &'a FamilyMaps<A>, uplinks: &'a Table<u32, Uplink>) -> Self {
        Self { maps, uplinks, serving: None }
    }

    fn serving(&mut self) -> Result<&Serving, TableError> {
        if self.serving.is_none() {
            let mut serving = Serving::default();
            for batch in self.maps.backends.batches() {
                let batch = batch?;
                let active = batch.iter().filter(|(_, b)| b.flags & Backend::<A>::FLAG_ACTIVE != 0);
                serving.backends.extend(active.map(|(id, backend)| (*id, backend_address(backend))));
            }
            for (_, uplink) in self.uplinks.entries()? {
                serving.own.extend([uplink.address_v4.ip(), uplink.address_v6.ip()]);
            }
            self.serving = Some(serving);
        }
        Ok(self.serving.as_ref().expect("read just above"))
    }
}

impl Collector<'_> {
    /// Removes what is over, and counts what stays. Closed flows rest so long here.
    fn collect<A: Family>(
        &mut self,
        table: &Table<FlowKey<A>, Flow<A>>,
        rest: Duration,
        known: &mut Known<'_, A>,
    ) -> Result<u32, TableError> {
        let mut live = 0;
        for batch in table.batches() {
            let batch = batch?;
            if batch.is_empty() {
                continue;
            }
            let serving = known.serving()?;
            let (now, rate) = (self.now, self.ticks_per_s);
            let over = |key: &FlowKey<A>, flow: &Flow<A>| {
                self.lost.has(key, flow) || is_over(key, flow, now, rate, rest, serving)
            };
            let mut gone = Vec::new();
            for (key, flow) in &batch {
                // Once more, now: the batch is some milliseconds old.
                let last = if over(key, flow) { table.get(key)? } else { None };
                let last = last.filter(|flow| over(key, flow));
                self.ledger.see(key, last.as_ref().unwrap_or(flow), last.is_none());
                if let Some(last) = last {
                    gone.push(*key);
                    let in_any = self.lost.has(key, &last) || is_over(key, &last, now, rate, CLOSED, serving);
                    self.early += u64::from(!in_any);
                } else {
                    live += 1;
                    let _ = used(key, flow).map(|address| self.uses.set(address));
                }
            }
            table.remove(&gone)?;
            self.removed += gone.len() as u64;
        }
        Ok(live)
    }
}

/// Removes what is over, or lost, from both families' tables, and adds up the traffic of `services`, those whose ids mean
/// something.
pub fn pass(
    maps: &Maps,
    now: u32,
    ticks_per_s: f64,
    ledger: &mut Ledger,
    services: &HashSet<u32, impl BuildHasher>,
    lost: &Lost,
) -> Result<Pass, TableError> {
    let (v4, v6) = (&maps.v4, &maps.v6);
    let (mut known_v4, mut known_v6) = (Known::new(v4, &maps.uplinks), Known::new(v6, &maps.uplinks));
    let mut pass = Collector { now, ticks_per_s, lost, ledger, uses: Bits::default(), removed: 0, early: 0 };
    let opening = [
        pass.collect(&v4.opening, CLOSED, &mut known_v4)?,
        pass.collect(&v6.opening, CLOSED, &mut known_v6)?,
    ];
    let live = [
        pass.collect(&v4.flows, rest(v4.flows.fill()?), &mut known_v4)?,
        pass.collect(&v6.flows, rest(v6.flows.fill()?), &mut known_v6)?,
    ];
    let Collector { uses, removed, early, ledger, .. } = pass;
    let mut in_use = HashSet::new();
    if !ledger.is_empty() {
        in_use.extend(known_v4.serving()?.backends.values());
        in_use.extend(known_v6.serving()?.backends.values());
    }
    ledger.close(services, &in_use);
    ledger.write(maps)?;
    Ok(Pass { live, opening, removed, early, uses })
}

/// Whether a table of established flows is so full that it should be read now.
pub fn is_crowded(maps: &Maps) -> Result<bool, TableError> {
    Ok(maps.v4.flows.fill()? > CROWDED || maps.v6.flows.fill()? > CROWDED)
}

/// What makes the programs look up packets of any flow that there is.
pub(crate) fn all_uses(maps: &Maps) -> Result<Vec<SocketAddr>, TableError> {
    fn of_table<A: Family>(table: &Table<FlowKey<A>, Flow<A>>) -> Result<Vec<SocketAddr>, TableError> {
        let entries = table.entries()?;
        Ok(entries.iter().filter_map(|(key, flow)| used(key, flow)).collect())
    }
    let v4 = [of_table(&maps.v4.flows)?, of_table(&maps.v4.opening)?];
    let v6 = [of_table(&maps.v6.flows)?, of_table(&maps.v6.opening)?];
    Ok([v4, v6].concat().concat())
}

/// What makes the programs look up packets of this entry: the frontend that they go to, or the backend that they come
/// from. Flows that leave the cluster need neither.
fn used<A: Family>(key: &FlowKey<A>, flow: &Flow<A>) -> Option<SocketAddr> {
    if flow.flags & Flow::<A>::FLAG_EGRESS != 0 {
        return None;
    }
    Some(if flow.flags & Flow::<A>::FLAG_REPLY == 0 {
        socket(key.destination, key.destination_port)
    } else {
        socket(key.source, key.source_port)
    })
}

/// An address and port of the ABI.
pub(crate) fn socket<A: Family>(address: A, port: weir_dataplane_ebpf::Be16) -> SocketAddr {
    SocketAddr::new(address.ip(), port.get())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use weir_dataplane_ebpf::{Be16, FlowState, Ip4, Protocol};

    use super::*;

    const HZ: f64 = 250.0;

    fn serving() -> Serving {
        Serving {
            backends: HashMap::from([(7, "10.244.0.2:80".parse().unwrap())]),
            own: HashSet::from(["192.0.2.1".parse().unwrap()]),
        }
    }

    fn over(state: FlowState, protocol: Protocol, idle_s: u32, backend: u32) -> bool {
        let key = FlowKey { protocol, ..FlowKey::<Ip4>::default() };
        let destination = Ip4::from(Ipv4Addr::new(10, 244, 0, 2));
        // Across the counter's wrap.
        let now = 100_u32;
        let last_seen_jiffies = now.wrapping_sub(idle_s * HZ as u32);
        let flow = Flow {
            destination,
            destination_port: Be16::new(80),
            backend,
            state,
            last_seen_jiffies,
            ..Flow::default()
        };
        is_over(&key, &flow, now, HZ, CLOSED, &serving())
    }

    #[test]
    fn lifetimes_follow_protocol_and_state() {
        let rows = [
            (FlowState::OPENING, Protocol::TCP, 60),
            (FlowState::ESTABLISHED, Protocol::TCP, 8_000),
            (FlowState::ESTABLISHED, Protocol::UDP, 300),
            (FlowState::ESTABLISHED, Protocol::ICMP, 60),
            (FlowState::CLOSING, Protocol::TCP, 240),
            (FlowState::CLOSED, Protocol::TCP, 10),
        ];
        for (state, protocol, lifetime_s) in rows {
            assert!(!over(state, protocol, lifetime_s, 7), "{state:?} lives");
            assert!(over(state, protocol, lifetime_s + 1, 7), "{state:?} is over");
        }
    }

    #[test]
    fn flows_of_a_backend_that_is_gone_go_soon() {
        assert!(!over(FlowState::ESTABLISHED, Protocol::TCP, 5, 8));
        assert!(over(FlowState::ESTABLISHED, Protocol::TCP, 11, 8));
    }

    #[test]
    fn what_leaves_the_cluster_lives_while_the_node_has_its_address() {
        for (own, gone) in [([192, 0, 2, 1], false), ([192, 0, 2, 9], true)] {
            let (own, outside) = (Ip4::from(Ipv4Addr::from(own)), Ip4::from(Ipv4Addr::new(203, 0, 113, 9)));
            let key = FlowKey { destination: outside, protocol: Protocol::TCP, ..FlowKey::default() };
            let about =
                Flow { state: FlowState::ESTABLISHED, flags: Flow::<Ip4>::FLAG_EGRESS, ..Flow::default() };
            let request = Flow { source: own, destination: outside, ..about };
            let answer = Flow { flags: about.flags | Flow::<Ip4>::FLAG_REPLY, ..about };
            let now = (11.0 * HZ) as u32;
            assert_eq!(is_over(&key, &request, now, HZ, CLOSED, &serving()), gone);
            assert_eq!(
                is_over(&request.reply_key(Protocol::TCP), &answer, now, HZ, CLOSED, &serving()),
                gone
            );
            assert_eq!(used(&key, &request), None, "no filter needs to know");
        }
    }

    #[test]
    fn a_packet_after_the_reading_is_not_an_age() {
        let key = FlowKey::<Ip4>::default();
        let flow = Flow { last_seen_jiffies: 105, state: FlowState::CLOSED, ..Flow::default() };
        assert!(!is_over(&key, &flow, 100, HZ, CLOSED, &Serving::default()));
    }
}
