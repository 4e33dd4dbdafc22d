//! The switch from rules of the kernel's NAT, kube-proxy's above all, to Weir's programs, without breaking what is
//! established.
//!
//! When the agent starts with empty maps beside such rules, they have decided already where connections go. Before the
//! first frontend is written, each of them becomes the two flow entries that Weir would have made had the choice been
//! its own; then pod links get their program, and only then new connections are Weir's. What was opened between two of
//! these steps is taken over by the next look. The kernel forgets the connection that Weir serves: two books about one
//! connection would come to disagree.
//!
//! A connection of the node's own processes that was translated on its way out stays with the kernel, and ends with the
//! rules: no program sees its packets leave.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
};

use weir_dataplane_ebpf::{Endpoint, Flow, FlowKey, Frontend, Scope, checksum::Sum};

use crate::{
    cni::PodLink,
    kernel::{
        conntrack::{self, Connection},
        maps::{Family, FamilyMaps, Maps, TableError},
        sys::Jiffies,
    },
    plan::{Step, model::FrontendAddress},
    sysctl,
};

/// Why connections were not taken over. What is programmed serves new ones all the same.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// The kernel's table.
    #[error("read established connections from nf_conntrack: {0}")]
    Conntrack(#[source] io::Error),
    /// The kernel's tick.
    #[error("read the kernel's tick counter: {0}")]
    Clock(#[source] io::Error),
    /// A flow table.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// What a takeover needs to know beside the maps.
#[derive(Debug)]
pub struct Takeover {
    /// Links of this node's pods, whether they have a program yet or not.
    pub pods: Vec<PodLink>,
    /// Addresses of this node, whose own connections are not taken over.
    pub node_addresses: Vec<IpAddr>,
}

/// What the plan is about to make true, as far as flows refer to it.
#[derive(Debug, Default)]
struct Known {
    frontends: HashMap<FrontendAddress, Frontend>,
    backends: HashMap<SocketAddr, u32>,
    pods: HashMap<IpAddr, Endpoint>,
    node: HashSet<IpAddr>,
}

/// Two entries of one flow, the client's first.
type Halves<A> = [(FlowKey<A>, Flow<A>); 2];

impl Takeover {
    /// Carries out the first plan over empty maps, and takes connections over on the way. Returns how many.
    pub(crate) fn carry_out(&self, maps: &Maps, steps: &[Step]) -> Result<usize, TableError> {
        let frontends = steps.iter().position(|step| matches!(step, Step::WriteFrontend { .. }));
        let (before, after) = steps.split_at(frontends.unwrap_or(steps.len()));
        maps.execute(before)?;
        let known = self.known(steps);
        let _liberal = Liberal::set();
        let mut taken = HashMap::new();
        let mut take = |what: &str| match import(maps, &known) {
            Ok(connections) => {
                taken.extend(connections.into_iter().map(|connection| (connection.name.clone(), connection)));
            }
            Err(error) => tracing::warn!(%error, what, "connections that rules made may break when those go"),
        };
        take("before pod links have their program");
        for pod in &self.pods {
            if let Err(error) = pod.attach() {
                tracing::warn!(%error, link = pod.name(), "this pod's packets are not served");
            }
        }
        take("before frontends are written");
        maps.execute(after)?;
        take("after frontends are written");
        let mut count = 0;
        for connection in taken.values() {
            match conntrack::forget(connection) {
                Ok(()) => count += 1,
                Err(error) => tracing::warn!(%error, "nf_conntrack keeps a connection that is served here"),
            }
        }
        Ok(count)
    }

    fn known(&self, steps: &[Step]) -> Known {
        let mut known = Known { node: self.node_addresses.iter().copied().collect(), ..Known::default() };
        known.pods.extend(self.pods.iter().map(|pod| (pod.address, pod.endpoint())));
        for step in steps {
            match step {
                Step::WriteBackend { id, address, .. } => drop(known.backends.insert(*address, *id)),
                Step::WriteFrontend { address, value } => drop(known.frontends.insert(*address, *value)),
                _ => {}
            }
        }
        known
    }
}

/// While one direction of a connection goes past the kernel and the other does not yet, its windows look wrong there, and
/// the packets would be nobody's: the node itself would reset the connection.
struct Liberal(Option<String>);

impl Liberal {
    const SETTING: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

    fn set() -> Self {
        let before = sysctl::read(Self::SETTING).ok();
        if let Err(error) = sysctl::write(Self::SETTING, "1") {
            tracing::debug!(%error, "nf_conntrack judges windows");
        }
        Self(before)
    }
}

impl Drop for Liberal {
    fn drop(&mut self) {
        // Where it could be read it can be written.
        let _ = self.0.as_ref().map(|before| sysctl::write(Self::SETTING, before));
    }
}

/// Makes flow entries of what the kernel has translated. Those that stand already stay as they are.
fn import(maps: &Maps, known: &Known) -> Result<Vec<Connection>, TakeoverError> {
    let now = Jiffies::new().and_then(|jiffies| jiffies.now()).map_err(TakeoverError::Clock)?;
    let mut taken = import_family(&maps.v4, known, now, true)?;
    taken.extend(import_family(&maps.v6, known, now, false)?);
    Ok(taken)
}

fn import_family<A: Family>(
    maps: &FamilyMaps<A>,
    known: &Known,
    now: u32,
    ipv4: bool,
) -> Result<Vec<Connection>, TakeoverError> {
    let mut ways = HashMap::new();
    let mut way = |address: IpAddr| -> Result<u32, TakeoverError> {
        if let Some(interface) = ways.get(&address) {
            return Ok(*interface);
        }
        // Without a route the stack says so to each packet.
        let interface = conntrack::interface_towards(address).map_err(TakeoverError::Conntrack)?.unwrap_or(0);
        ways.insert(address, interface);
        Ok(interface)
    };
    let (mut keys, mut values, mut taken) = (Vec::new(), Vec::new(), Vec::new());
    for connection in conntrack::translated(ipv4).map_err(TakeoverError::Conntrack)? {
        let Some(halves) = halves::<A>(&connection, known, now, &mut way)? else { continue };
        for (key, flow) in halves {
            if maps.flows.get(&key)?.is_none() {
                keys.push(key);
                values.push(flow);
            }
        }
        taken.push(connection);
    }
    maps.flows.write(&keys, &values)?;
    Ok(taken)
}

/// The flow that Weir would have made of a connection; nothing when it is no connection of its services.
fn halves<A: Family>(
    connection: &Connection,
    known: &Known,
    now: u32,
    way: &mut impl FnMut(IpAddr) -> Result<u32, TakeoverError>,
) -> Result<Option<Halves<A>>, TakeoverError> {
    let Connection { protocol, original, reply, state, .. } = connection;
    let at = original.destination;
    let frontend = [Scope::INTERNAL, Scope::EXTERNAL]
        .iter()
        .find_map(|scope| known.frontends.get(&FrontendAddress::new(at.ip(), at.port(), *protocol, *scope)));
    let (Some(frontend), Some(backend)) = (frontend, known.backends.get(&reply.source)) else {
        return Ok(None);
    };
    let client = original.source.ip();
    if known.node.contains(&client) {
        return Ok(None);
    }
    let (Some(key), Some(answer_key)) = (
        A::tuple(*protocol, original.source, original.destination),
        A::tuple(*protocol, reply.source, reply.destination),
    ) else {
        return Ok(None);
    };
    let about = Flow {
        last_seen_jiffies: now,
        service: frontend.service,
        backend: *backend,
        state: *state,
        flags: if frontend.affinity_timeout_s == 0 { 0 } else { Flow::<A>::FLAG_AFFINITY },
        ..Flow::default()
    };
    let mut request = rewrite(about, &key, &answer_key);
    let mut answer = rewrite(about, &answer_key, &key);
    answer.flags |= Flow::<A>::FLAG_REPLY;
    // Never up the stack, whose table has this connection's tuples and would give the packets others.
    lead(&mut request, reply.source.ip(), known, way)?;
    lead(&mut answer, client, known, way)?;
    Ok(Some([(key, request), (answer_key, answer)]))
}

/// The rewrite after which a packet with tuple `key` is what the other direction, `other`, answers.
fn rewrite<A: Family>(about: Flow<A>, key: &FlowKey<A>, other: &FlowKey<A>) -> Flow<A> {
    let addresses =
        Sum::default().replace(&key.source, &other.destination).replace(&key.destination, &other.source);
    let all = addresses
        .replace_word(key.source_port, other.destination_port)
        .replace_word(key.destination_port, other.source_port);
    Flow {
        source: other.destination,
        destination: other.source,
        source_port: other.destination_port,
        destination_port: other.source_port,
        network_delta: addresses.fold(),
        transport_delta: all.fold(),
        ..about
    }
}

/// Sets the way out: into a pod of this node, or by the interface that the route names, whose next hop the programs look
/// up themselves.
fn lead<A: Family>(
    flow: &mut Flow<A>,
    to: IpAddr,
    known: &Known,
    way: &mut impl FnMut(IpAddr) -> Result<u32, TakeoverError>,
) -> Result<(), TakeoverError> {
    if let Some(pod) = known.pods.get(&to) {
        flow.ifindex = pod.ifindex;
        (flow.destination_mac, flow.source_mac) = (pod.pod_mac, pod.host_mac);
        flow.flags |= Flow::<A>::FLAG_TO_POD;
    } else {
        flow.ifindex = way(to)?;
    }
    Ok(())
}
