//! Tables of what is in the maps.

use std::{collections::HashMap, net::SocketAddr, path::PathBuf};

use serde::Serialize;
use weir_dataplane_ebpf::{Backend, Flow, FlowKey, Frontend, FrontendKey, Scope};

use super::{CliError, Output, json, require_loaded, status::status, table};
use crate::{
    flows::{TickClock, socket, state_name},
    kernel::maps::{Family, FamilyMaps, Maps, backend_address, frontend_address},
    names,
    paths::Paths,
    plan::{PortName, model::protocol_name},
    traffic::{self, Sums},
};

/// What to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Subcommand)]
pub enum View {
    /// Frontends: every address and port that is served, and by what.
    Services,
    /// Backends by id.
    Backends,
    /// Established and opening flows.
    Flows,
    /// Dropped packets by reason.
    Drops,
    /// What is loaded, and where it is attached.
    Status,
    /// How full the maps are.
    Maps,
}

/// Where to read and how to print.
#[derive(Clone, Debug, clap::Args)]
pub struct ViewArgs {
    /// Where the dataplane keeps its pins.
    #[arg(long, default_value = "/run/weir")]
    pub run_dir: PathBuf,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Packets and bytes, as the agent's last pass over the flows (every 15 s) left them.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficRow {
    /// Packets from clients.
    pub request_packets: u64,
    /// Their bytes, from the network header on.
    pub request_bytes: u64,
    /// Packets from backends.
    pub reply_packets: u64,
    /// Their bytes.
    pub reply_bytes: u64,
}

impl TrafficRow {
    fn of(sums: Option<&Sums>) -> Self {
        let Sums { requests, replies } = sums.copied().unwrap_or_default();
        Self {
            request_packets: requests.packets,
            request_bytes: requests.bytes,
            reply_packets: replies.packets,
            reply_bytes: replies.bytes,
        }
    }

    /// Packets and bytes, each from clients and from backends.
    fn cells(&self) -> [String; 2] {
        let Self { request_packets, request_bytes, reply_packets, reply_bytes } = self;
        [format!("{request_packets}/{reply_packets}"), format!("{request_bytes}/{reply_bytes}")]
    }
}

/// One frontend.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRow {
    /// `namespace/name:port`, or the id when its name is lost.
    pub service: String,
    /// Its address and port.
    pub frontend: String,
    /// `internal` or `external`.
    pub scope: &'static str,
    /// Backends that new connections choose from.
    pub backends: u32,
    /// Slots of its lookup table.
    pub slots: u32,
    /// `local` or `cluster`.
    pub policy: &'static str,
    /// Seconds of session affinity, 0 without.
    pub affinity_timeout_s: u32,
    /// Of the whole service port, over all its frontends and scopes.
    pub traffic: TrafficRow,
}

/// One backend.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRow {
    /// Its id.
    pub id: u32,
    /// Its address and port.
    pub address: SocketAddr,
    /// It runs on this node.
    pub local: bool,
    /// Over all services.
    pub traffic: TrafficRow,
}

/// One direction of a flow.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRow {
    /// `tcp`, `udp`, `sctp`, or `icmp` and `icmpv6` for echoes, whose identifiers stand for ports.
    pub protocol: String,
    /// Source as the packet arrives.
    pub source: SocketAddr,
    /// Destination as the packet arrives.
    pub destination: SocketAddr,
    /// Source after the rewrite.
    pub new_source: SocketAddr,
    /// Destination after the rewrite.
    pub new_destination: SocketAddr,
    /// `request` or `reply`.
    pub direction: &'static str,
    /// Where in its protocol's life it is.
    pub state: &'static str,
    /// Packets in this direction.
    pub packets: u64,
    /// Bytes in this direction.
    pub bytes: u64,
    /// Seconds since the last packet.
    pub idle_s: Option<u64>,
    /// `namespace/name:port`, or `(egress)`.
    pub service: String,
}

/// In the place of a service's name: the flow leaves the cluster by an uplink's address.
const EGRESS: &str = "(egress)";

/// One reason.
#[derive(Clone, Debug, Serialize)]
pub struct DropRow {
    /// Its name.
    pub reason: &'static str,
    /// Packets since the maps were made.
    pub packets: u64,
}

/// One map.
#[derive(Clone, Debug, Serialize)]
pub struct MapRow {
    /// Its name.
    pub map: &'static str,
    /// Entries in use.
    pub entries: u32,
    /// Entries that there is room for.
    pub bound: u32,
}

/// Writes a view as text.
pub fn view(view: View, args: &ViewArgs) -> Result<String, CliError> {
    let paths = Paths::new(&args.run_dir);
    require_loaded(&paths)?;
    let reader = Reader::open(&paths)?;
    match view {
        View::Services => reader.services(args.output),
        View::Backends => reader.backends(args.output),
        View::Flows => reader.flows(args.output),
        View::Drops => reader.drops(args.output),
        View::Status => status(&reader.maps, &paths, args.output),
        View::Maps => reader.maps(args.output),
    }
}

/// The open maps, and what the ids in them mean.
pub(super) struct Reader {
    pub(super) maps: Maps,
    /// Where an agent would be asked for reasons.
    pub(super) reasons: PathBuf,
    pub(super) names: HashMap<u32, PortName>,
}

impl Reader {
    pub(super) fn open(paths: &Paths) -> Result<Self, CliError> {
        let names = names::read(&paths.names())
            .map_err(|source| CliError::Io { operation: "read the names of services", source })?;
        Ok(Self { maps: Maps::open(paths)?, reasons: paths.reasons(), names })
    }

    pub(super) fn service(&self, id: u32) -> String {
        self.names.get(&id).map_or_else(|| format!("#{id}"), ToString::to_string)
    }

    fn services(&self, output: Output) -> Result<String, CliError> {
        let mut traffic = HashMap::<u32, Sums>::new();
        for (key, count) in self.maps.traffic.entries()? {
            traffic.entry(key.service).or_default().add(&count);
        }
        let mut rows = Vec::new();
        self.service_rows(&self.maps.v4, &traffic, &mut rows)?;
        self.service_rows(&self.maps.v6, &traffic, &mut rows)?;
        rows.sort_by(|a, b| (&a.service, &a.frontend, a.scope).cmp(&(&b.service, &b.frontend, b.scope)));
        Ok(match output {
            Output::Json => json(&rows),
            Output::Table => {
                let cells = rows.iter().map(|row| {
                    let affinity = match row.affinity_timeout_s {
                        0 => "-".into(),
                        seconds => format!("{seconds}s"),
                    };
                    let [packets, bytes] = row.traffic.cells();
                    vec![
                        row.service.clone(),
                        row.frontend.clone(),
                        row.scope.into(),
                        row.policy.into(),
                        row.backends.to_string(),
                        row.slots.to_string(),
                        affinity,
                        packets,
                        bytes,
                    ]
                });
                let head = [
                    "SERVICE", "FRONTEND", "SCOPE", "POLICY", "BACKENDS", "SLOTS", "AFFINITY", "PACKETS",
                    "BYTES",
                ];
                table(&head, &cells.collect::<Vec<_>>())
            }
        })
    }

    fn service_rows<A: Family>(
        &self,
        maps: &FamilyMaps<A>,
        traffic: &HashMap<u32, Sums>,
        rows: &mut Vec<ServiceRow>,
    ) -> Result<(), CliError> {
        let entries: Vec<(FrontendKey<A>, Frontend)> = maps.frontends.entries()?;
        rows.extend(entries.into_iter().map(|(key, value)| ServiceRow {
            service: self.service(value.service),
            frontend: frontend_address(key).to_string(),
            scope: scope_name(key.scope),
            backends: value.backends,
            slots: if value.backends == 0 { 0 } else { value.maglev_mask.saturating_add(1) },
            policy: policy_name(&value),
            affinity_timeout_s: value.affinity_timeout_s,
            traffic: TrafficRow::of(traffic.get(&value.service)),
        }));
        Ok(())
    }

    fn backends(&self, output: Output) -> Result<String, CliError> {
        let mut traffic = HashMap::<SocketAddr, Sums>::new();
        for (key, count) in self.maps.traffic.entries()? {
            if let Some(backend) = traffic::backend(&key) {
                traffic.entry(backend).or_default().add(&count);
            }
        }
        let mut rows = Vec::new();
        for (id, backend) in self.maps.v4.backends.entries()? {
            rows.extend(backend_row(id, &backend));
        }
        for (id, backend) in self.maps.v6.backends.entries()? {
            rows.extend(backend_row(id, &backend));
        }
        for row in &mut rows {
            row.traffic = TrafficRow::of(traffic.get(&row.address));
        }
        Ok(match output {
            Output::Json => json(&rows),
            Output::Table => {
                let cells = rows.iter().map(|row| {
                    let [packets, bytes] = row.traffic.cells();
                    let node = if row.local { "here" } else { "elsewhere" };
                    vec![row.id.to_string(), row.address.to_string(), node.into(), packets, bytes]
                });
                table(&["ID", "ADDRESS", "NODE", "PACKETS", "BYTES"], &cells.collect::<Vec<_>>())
            }
        })
    }

    fn flows(&self, output: Output) -> Result<String, CliError> {
        let clock = Clock::measure();
        let mut rows = Vec::new();
        let (v4, v6) = (&self.maps.v4, &self.maps.v6);
        for (key, flow) in v4.flows.entries()?.iter().chain(&v4.opening.entries()?) {
            rows.push(self.flow_row(key, flow, &clock));
        }
        for (key, flow) in v6.flows.entries()?.iter().chain(&v6.opening.entries()?) {
            rows.push(self.flow_row(key, flow, &clock));
        }
        rows.sort_by_key(|row| (row.source, row.destination));
        Ok(match output {
            Output::Json => json(&rows),
            Output::Table => {
                let cells = rows.iter().map(|row| {
                    vec![
                        row.protocol.clone(),
                        row.source.to_string(),
                        row.destination.to_string(),
                        row.new_source.to_string(),
                        row.new_destination.to_string(),
                        row.direction.into(),
                        row.state.into(),
                        row.packets.to_string(),
                        row.idle_s.map_or_else(|| "?".into(), |s| format!("{s}s")),
                        row.service.clone(),
                    ]
                });
                let head = [
                    "PROTO",
                    "SOURCE",
                    "DESTINATION",
                    "NEW SOURCE",
                    "NEW DESTINATION",
                    "DIRECTION",
                    "STATE",
                    "PACKETS",
                    "IDLE",
                    "SERVICE",
                ];
                table(&head, &cells.collect::<Vec<_>>())
            }
        })
    }

    pub(super) fn flow_row<A: Family>(&self, key: &FlowKey<A>, flow: &Flow<A>, clock: &Clock) -> FlowRow {
        let new_source = if flow.is_rewritten() {
            socket(key.source, key.source_port)
        } else {
            socket(flow.source, flow.source_port)
        };
        FlowRow {
            protocol: protocol_name(key.protocol),
            source: socket(key.source, key.source_port),
            destination: socket(key.destination, key.destination_port),
            new_source,
            new_destination: socket(flow.destination, flow.destination_port),
            direction: if flow.flags & Flow::<A>::FLAG_REPLY == 0 { "request" } else { "reply" },
            state: state_name(flow.state),
            packets: flow.packets,
            bytes: flow.bytes,
            idle_s: clock.idle_s(flow.last_seen_jiffies),
            service: if flow.flags & Flow::<A>::FLAG_EGRESS == 0 {
                self.service(flow.service)
            } else {
                EGRESS.to_owned()
            },
        }
    }

    fn drops(&self, output: Output) -> Result<String, CliError> {
        let drops = self.maps.drops()?;
        let rows: Vec<DropRow> =
            drops.into_iter().map(|(reason, packets)| DropRow { reason, packets }).collect();
        Ok(match output {
            Output::Json => json(&rows),
            Output::Table => {
                let cells = rows.iter().map(|row| vec![row.reason.into(), row.packets.to_string()]);
                table(&["REASON", "PACKETS"], &cells.collect::<Vec<_>>())
            }
        })
    }

    fn maps(&self, output: Output) -> Result<String, CliError> {
        let (v4, v6) = (&self.maps.v4, &self.maps.v6);
        let used = |mut batches: Box<dyn Iterator<Item = Result<usize, CliError>> + '_>| {
            batches.try_fold(0, |sum, count| count.map(|count| sum + count as u32))
        };
        macro_rules! hash {
            ($name:literal, $table:expr) => {
                MapRow {
                    map: $name,
                    entries: used(Box::new(
                        $table.batches().map(|b| b.map(|b| b.len()).map_err(CliError::from)),
                    ))?,
                    bound: $table.bound(),
                }
            };
        }
        let active_v4 =
            v4.backends.entries()?.iter().filter_map(|(id, b)| backend_row(*id, b)).count() as u32;
        let active_v6 =
            v6.backends.entries()?.iter().filter_map(|(id, b)| backend_row(*id, b)).count() as u32;
        let rows = vec![
            hash!("frontends_v4", v4.frontends),
            hash!("frontends_v6", v6.frontends),
            hash!("cluster_ips_v4", v4.cluster_ips),
            hash!("cluster_ips_v6", v6.cluster_ips),
            MapRow { map: "backends_v4", entries: active_v4, bound: v4.backends.bound() },
            MapRow { map: "backends_v6", entries: active_v6, bound: v6.backends.bound() },
            hash!("flows_v4", v4.flows),
            hash!("flows_v6", v6.flows),
            hash!("opening_v4", v4.opening),
            hash!("opening_v6", v6.opening),
            hash!("fragments_v4", v4.fragments),
            hash!("fragments_v6", v6.fragments),
            hash!("endpoints_v4", v4.endpoints),
            hash!("endpoints_v6", v6.endpoints),
            hash!("socket_peers_v4", v4.socket_peers),
            hash!("socket_peers_v6", v6.socket_peers),
            hash!("affinity_v4", v4.affinity),
            hash!("affinity_v6", v6.affinity),
            hash!("socket_affinity_v4", v4.socket_affinity),
            hash!("socket_affinity_v6", v6.socket_affinity),
            hash!("source_ranges_v4", v4.source_ranges),
            hash!("source_ranges_v6", v6.source_ranges),
            hash!("non_masquerade_v4", v4.non_masquerade),
            hash!("non_masquerade_v6", v6.non_masquerade),
            hash!("traffic", self.maps.traffic),
        ];
        Ok(match output {
            Output::Json => json(&rows),
            Output::Table => {
                let cells = rows
                    .iter()
                    .map(|row| vec![row.map.into(), row.entries.to_string(), row.bound.to_string()]);
                table(&["MAP", "ENTRIES", "BOUND"], &cells.collect::<Vec<_>>())
            }
        })
    }
}

fn backend_row<A: Family>(id: u32, backend: &Backend<A>) -> Option<BackendRow> {
    (backend.flags & Backend::<A>::FLAG_ACTIVE != 0).then(|| BackendRow {
        id,
        address: backend_address(backend),
        local: backend.flags & Backend::<A>::FLAG_LOCAL != 0,
        traffic: TrafficRow::default(),
    })
}

pub(super) fn scope_name(scope: Scope) -> &'static str {
    if scope == Scope::EXTERNAL { "external" } else { "internal" }
}

pub(super) fn policy_name(frontend: &Frontend) -> &'static str {
    if frontend.flags & Frontend::FLAG_LOCAL_POLICY == 0 { "cluster" } else { "local" }
}

/// The tick now and its rate, for ages; nothing without the privilege to read it.
pub(super) struct Clock(Option<(u32, f64)>);

impl Clock {
    /// Takes half a second: the rate has to be measured.
    pub(super) fn measure() -> Self {
        let reading = TickClock::start().ok().and_then(|clock| {
            std::thread::sleep(std::time::Duration::from_millis(450));
            clock.read().ok().flatten()
        });
        Self(reading)
    }

    fn idle_s(&self, last_seen: u32) -> Option<u64> {
        self.0.map(|(now, rate)| (f64::from(now.wrapping_sub(last_seen).cast_signed().max(0)) / rate) as u64)
    }
}
