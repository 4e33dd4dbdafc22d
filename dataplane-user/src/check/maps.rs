//! The maps of services against the books.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use weir_dataplane_ebpf::{Backend, Be16, Protocol, node_port_at, node_port_index};

use super::{Found, Kind, STEP_ELEMENTS};
use crate::{
    cidr::Cidr,
    filter::{self, Filter},
    kernel::maps::{Family, FamilyMaps, Maps, TableError, backend_address, frontend_address, source_range},
    plan::{
        Books, any_port,
        model::{FrontendAddress, NodePort, ServiceKey},
    },
};

pub(super) fn frontends<A: Family>(
    maps: &FamilyMaps<A>,
    books: &Books,
    found: &mut Found,
) -> Result<(), TableError> {
    let mut seen = HashSet::<FrontendAddress>::new();
    for (key, value) in maps.frontends.entries()? {
        let address = frontend_address(key);
        seen.insert(address);
        let known = books.frontend(address);
        if known != Some(&value) {
            let service = known.unwrap_or(&value).service;
            found.add(Kind::Frontend, || (books.owner(service), address.to_string()));
        }
    }
    for (address, value) in books.frontends() {
        if A::of(address.address).is_some() && !seen.contains(&address) {
            found.add(Kind::Frontend, || (books.owner(value.service), address.to_string()));
        }
    }
    Ok(())
}

pub(super) fn cluster_ips<A: Family>(
    maps: &FamilyMaps<A>,
    books: &Books,
    found: &mut Found,
) -> Result<(), TableError> {
    let there: BTreeSet<IpAddr> = maps.cluster_ips.entries()?.into_iter().map(|(key, _)| key.ip()).collect();
    let of_family = |address: &&IpAddr| A::of(**address).is_some();
    let known: BTreeSet<IpAddr> = books.cluster_ips().iter().filter(of_family).copied().collect();
    for address in there.symmetric_difference(&known) {
        found.add(Kind::ClusterIp, || (owner(books, any_port(*address)), format!("cluster IP {address}")));
    }
    Ok(())
}

/// Looks at some ids from `from` on; where the next step begins, if there is more.
pub(super) fn backends<A: Family>(
    maps: &FamilyMaps<A>,
    books: &Books,
    from: u32,
    found: &mut Found,
) -> Result<Option<u32>, TableError> {
    let end = from.saturating_add(STEP_ELEMENTS).min(maps.backends.bound());
    let known =
        books.backends().filter(|(address, id, _)| A::of(address.ip()).is_some() && (from..end).contains(id));
    let mut known: HashMap<u32, (SocketAddr, bool)> =
        known.map(|(address, id, local)| (id, (address, local))).collect();
    for (id, backend) in maps.backends.elements(from, end)? {
        let active = backend.flags & Backend::<A>::FLAG_ACTIVE != 0;
        let local = backend.flags & Backend::<A>::FLAG_LOCAL != 0;
        let says = active.then(|| (backend_address(&backend), local));
        let should = known.remove(&id);
        if says != should
            && let Some((address, _)) = should.or(says)
        {
            found.add(Kind::Backend, || (books.service_of(address), address.to_string()));
        }
    }
    Ok((end < maps.backends.bound()).then_some(end))
}

/// Looks at the last of these tables, and takes them off.
pub(super) fn tables(
    maps: &Maps,
    books: &Books,
    left: &mut Vec<u32>,
    found: &mut Found,
) -> Result<(), TableError> {
    let mut budget = STEP_ELEMENTS;
    while let Some(offset) = left.pop() {
        // It may be gone since the round began.
        let Some(size) = books.table_size(offset) else { continue };
        let slots = maps.maglev.elements(offset, offset.saturating_add(size))?;
        let slots: Vec<u32> = slots.into_iter().map(|(_, id)| id).collect();
        if !books.is_table(offset, &slots) {
            found.add(Kind::Table, || {
                let mut users =
                    books.frontends().filter(|(_, it)| it.backends > 0 && it.maglev_offset == offset);
                let user = users.next();
                let name = user.map_or_else(|| format!("slot {offset}"), |(address, _)| address.to_string());
                (user.and_then(|(_, it)| books.owner(it.service)), format!("the backends of {name}"))
            });
        }
        budget = budget.saturating_sub(size);
        if budget == 0 {
            break;
        }
    }
    Ok(())
}

/// Compares the whole filter and writes what differs: no plan looks at bits that are set already.
pub(super) fn filter(
    maps: &Maps,
    books: &Books,
    filter: &Filter,
    found: &mut Found,
) -> Result<(), TableError> {
    let words: Vec<u64> = maps.filter.entries()?.into_iter().map(|(_, word)| word).collect();
    let right = filter.corrections(&words);
    for (index, word) in &right {
        let missing = word & !words[*index as usize];
        found.add(Kind::Filter, || {
            let hidden = books.addresses().find(|address| {
                let (at, bit) = filter::position(*address);
                at == *index && bit & missing != 0
            });
            match hidden {
                Some(address) => (owner(books, address), address.to_string()),
                None => (None, format!("word {index}")),
            }
        });
    }
    maps.write_filter(&right)
}

/// Whose frontend, cluster IP or backend an address is.
fn owner(books: &Books, address: SocketAddr) -> Option<&ServiceKey> {
    let has = |it: &FrontendAddress| [any_port(it.address), (it.address, it.port).into()].contains(&address);
    let mut frontends = books.frontends().filter(|(it, _)| has(it));
    match frontends.next() {
        Some((_, value)) => books.owner(value.service),
        None => books.service_of(address),
    }
}

pub(super) fn node_ports(maps: &Maps, books: &Books, found: &mut Found) -> Result<(), TableError> {
    let mut guarded = BTreeSet::new();
    for (index, taken) in maps.node_ports.entries()? {
        if taken != 0 {
            let (protocol, port) = node_port_at(index);
            guarded.insert(NodePort { protocol: protocol.0, port: port.get() });
        }
    }
    // The map has no room for other protocols, whose ports no process can take anyway.
    let has_guard =
        |port: &&NodePort| node_port_index(Protocol(port.protocol), Be16::new(port.port)).is_some();
    let wanted = books.guarded().iter().filter(has_guard).copied().collect();
    for port in guarded.symmetric_difference(&wanted) {
        found.add(Kind::NodePort, || {
            let mut frontends = books.frontends().filter(|(address, _)| NodePort::from(*address) == *port);
            let owner = frontends.next().and_then(|(_, value)| books.owner(value.service));
            (owner, format!("port {port} of the node"))
        });
    }
    Ok(())
}

pub(super) fn source_ranges<A: Family>(
    maps: &FamilyMaps<A>,
    books: &Books,
    found: &mut Found,
) -> Result<(), TableError> {
    let entries = maps.source_ranges.entries()?.into_iter();
    let there: BTreeSet<(u32, Cidr)> = entries.map(|(key, _)| source_range(key)).collect();
    let of_family = |(_, range): &(u32, Cidr)| A::of(range.network()).is_some();
    let known: BTreeSet<(u32, Cidr)> = books.source_ranges().filter(of_family).collect();
    for (service, range) in there.symmetric_difference(&known) {
        found.add(Kind::SourceRange, || (books.owner(*service), format!("source range {range}")));
    }
    Ok(())
}
