//! What services and backends the events are about, from the agent's name table, the frontends, and the flows.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use weir_dataplane_ebpf::{Be16, Flow, FrontendKey, Protocol, Scope};

use crate::{
    cli::CliError,
    kernel::maps::{Family, FamilyMaps, Maps, backend_address},
    names,
    paths::Paths,
    plan::PortName,
};

/// How often the name table is read again at most.
const REREAD: Duration = Duration::from_secs(1);

pub(super) struct Names {
    paths: Paths,
    maps: Maps,
    by_id: HashMap<u32, PortName>,
    read: Instant,
}

impl Names {
    pub(super) fn open(paths: &Paths) -> Result<Self, CliError> {
        let by_id = names::read(&paths.names())
            .map_err(|source| CliError::Io { operation: "read the names of services", source })?;
        Ok(Self { paths: paths.clone(), maps: Maps::open(paths)?, by_id, read: Instant::now() })
    }

    /// The service of this id; of this address where the id is 0.
    pub(super) fn service(&mut self, id: u32, asked: SocketAddr, protocol: Protocol) -> Option<String> {
        let id = if id == 0 { self.at(asked, protocol)? } else { id };
        if !self.by_id.contains_key(&id) && self.read.elapsed() > REREAD {
            self.read = Instant::now();
            // What cannot be read now has no new names; those that are known stay, of services that are gone too.
            self.by_id.extend(names::read(&self.paths.names()).unwrap_or_default());
        }
        Some(self.by_id.get(&id).map_or_else(|| format!("#{id}"), ToString::to_string))
    }

    /// The backend that the flow with this tuple is tunnelled to the node of. Its event names the node alone, and so does its
    /// entry, which has the backend's number besides.
    pub(super) fn behind_tunnel(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        protocol: Protocol,
    ) -> Option<SocketAddr> {
        if source.is_ipv4() {
            behind_tunnel(&self.maps.v4, source, destination, protocol)
        } else {
            behind_tunnel(&self.maps.v6, source, destination, protocol)
        }
    }

    fn at(&self, asked: SocketAddr, protocol: Protocol) -> Option<u32> {
        if asked.is_ipv4() {
            find(&self.maps.v4, asked, protocol)
        } else {
            find(&self.maps.v6, asked, protocol)
        }
    }
}

/// The service at an address, whoever asks.
fn find<A: Family>(maps: &FamilyMaps<A>, asked: SocketAddr, protocol: Protocol) -> Option<u32> {
    let (address, port) = (A::of(asked.ip())?, Be16::new(asked.port()));
    let get = |scope| maps.frontends.get(&FrontendKey { address, port, protocol, scope }).ok().flatten();
    get(Scope::INTERNAL).or_else(|| get(Scope::EXTERNAL)).map(|frontend| frontend.service)
}

fn behind_tunnel<A: Family>(
    maps: &FamilyMaps<A>,
    source: SocketAddr,
    destination: SocketAddr,
    protocol: Protocol,
) -> Option<SocketAddr> {
    let flow = maps.flow(&A::tuple(protocol, source, destination)?).ok()??;
    // A moment later the number may be another backend's.
    let backend = maps.backends.at(flow.backend).ok()?;
    let is_its = flow.flags & Flow::<A>::FLAG_TUNNEL != 0 && backend.node == flow.destination;
    is_its.then(|| backend_address(&backend))
}
