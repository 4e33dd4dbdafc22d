//! The role: brings the programs up, and keeps the maps as the API says, for as long as it runs.
//!
//! One task owns everything that changes; it waits for the watches, for addresses of this machine, and for two timers.
//! When it ends, or is killed, programs, maps and links stay and serve.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use futures::{FutureExt as _, Stream, StreamExt as _, channel::mpsc::UnboundedReceiver, future::BoxFuture};
use prometheus_client::registry::Registry;
use rtnetlink::{
    MulticastGroup, packet_core::NetlinkMessage, packet_route::RouteNetlinkMessage, sys::SocketAddr,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use weir_dataplane_ebpf::{Ip4, Ip6, NodeConfig, maps::NON_MASQUERADE};

use crate::{
    check, cni,
    config::Config,
    events::Events,
    flows::{self, Passes, Setting, TickClock},
    health_checks::{Health, HealthChecks},
    kernel::{
        attach::{AttachError, Programs, Targets, Tc},
        maps::{Maps, TableError},
        packet_log::PacketLogError,
    },
    masquerade,
    metrics::{Metrics, observe},
    netlink::{Link, Netlink, NetlinkError},
    node::{self, NodeError},
    paths::Paths,
    plan::model::{NodePort, ServiceKey},
    reasons::{self, Asked},
    reconcile::{self, Complaint, Reconciler, SyncError},
    sockets::{Progress, Reaper, in_use},
    takeover::Takeover,
    watch::{self, Change, NodeFacts, Store},
};

/// Changes that one round takes together: enough for a burst, few enough that the first of them does not wait long.
const ROUND: usize = 4_096;
/// First wait after a failed round; doubled up to [`LONGEST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest wait between rounds that fail, and between attempts to place what had no room.
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// Rounds that fail for so long make health checks fail: kube-proxy's bound.
const UNHEALTHY_AFTER: Duration = Duration::from_mins(1);

/// Why the dataplane ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Programs, maps or links.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A map.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The node's own set-up.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Netlink.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The packet log that was asked for.
    #[error(transparent)]
    PacketLog(#[from] PacketLogError),
    /// The first round.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The kernel's tick.
    #[error("read the kernel's tick counter: {0}")]
    Clock(#[source] std::io::Error),
    /// The run directory.
    #[error("make the run directory {path}: {source}")]
    RunDir {
        /// Which.
        path: std::path::PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// The agent.
pub struct Dataplane {
    config: Config,
    client: kube::Client,
    metrics: Metrics,
}

impl Dataplane {
    /// Registers the metrics.
    pub fn new(config: Config, client: kube::Client, registry: &mut Registry) -> Result<Self, Error> {
        Ok(Self { config, client, metrics: Metrics::new(registry) })
    }

    /// Runs until `shutdown`; `ready` is sent when the maps say what the API says.
    pub fn run(
        self,
        ready: oneshot::Sender<()>,
        shutdown: CancellationToken,
    ) -> BoxFuture<'static, Result<(), Error>> {
        // In a box it is compiled here, and not among the executable's other roles.
        Box::pin(self.serve(ready, shutdown))
    }

    async fn serve(self, ready: oneshot::Sender<()>, shutdown: CancellationToken) -> Result<(), Error> {
        let node_name =
            if self.config.node_name.is_empty() { node::host_name()? } else { self.config.node_name.clone() };
        let events = Events::start(self.client.clone(), &node_name, self.metrics.events_dropped.clone());
        let changes = watch::changes(&self.client, &node_name);
        let mut agent = Agent::start(self.config, self.metrics, node_name, events).await?;
        agent.serve(changes, ready, shutdown).await
    }
}

/// Everything that the one task owns.
struct Agent {
    config: Config,
    metrics: Metrics,
    netlink: Netlink,
    uplinks: Vec<Link>,
    addresses: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    maps: Arc<Maps>,
    clock: TickClock,
    passes: Passes,
    store: Store,
    known_node: NodeFacts,
    /// Whether the programs must be told what is masqueraded.
    masquerade_due: bool,
    reconciler: Reconciler,
    reaper: Reaper,
    health: Health,
    health_checks: HealthChecks,
    events: Events,
    /// What `weir explain` asks.
    questions: mpsc::Receiver<Asked>,
    /// Since when rounds have failed.
    failing_since: Option<Instant>,
    /// When the oldest change that is not in the kernel yet arrived.
    waiting_since: Option<Instant>,
    retry: Option<(Instant, Duration)>,
    blocked: BTreeSet<ServiceKey>,
}

impl Agent {
    /// Brings programs, maps and the node itself up.
    async fn start(
        config: Config,
        metrics: Metrics,
        node_name: String,
        events: Events,
    ) -> Result<Self, Error> {
        let paths = Paths::new(&config.run_dir);
        std::fs::create_dir_all(&config.run_dir)
            .map_err(|source| Error::RunDir { path: config.run_dir.clone(), source })?;
        let netlink = Netlink::connect()?;
        let uplinks = node::uplinks(&netlink, &config.uplink).await?;
        let cgroup = node::cgroup_root(&config)?;

        let mut programs = Programs::load(&paths, config.packet_log)?;
        if config.packet_log {
            let lines = programs.packet_log()?.follow();
            tokio::spawn(async {
                if let Err(error) = lines.await {
                    warn!(%error, "no more lines about packets");
                }
            });
        }
        let maps = Maps::open(&paths)?;
        // Before anything is attached: a program that finds no flags does nothing.
        write_node_config(&maps, &config, &[])?;
        reconcile::prepare_filter(&maps)?;
        let tc = Tc::of_kernel();
        programs.attach(&Targets {
            uplinks: &uplinks,
            acceleration: config.xdp,
            cgroup: cgroup.as_deref(),
            tc,
        })?;
        node::enable_forwarding(&paths)?;
        node::keep_inside(&netlink, &config).await?;
        let names: Vec<&str> = uplinks.iter().map(|link| link.name.as_str()).collect();
        info!(uplinks = names.join(","), %tc, socket_lb = config.socket_lb, "programs are attached");

        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, _, addresses) = rtnetlink::new_multicast_connection(&groups)
            .map_err(|source| NetlinkError { operation: "watch addresses".into(), source })?;
        tokio::spawn(connection);
        let maps = Arc::new(maps);
        let mut reconciler = Reconciler::new(&paths, Arc::clone(&maps), metrics.clone())?;
        reconciler.take_over(takeover(&netlink, &paths).await?);
        let health = Health::default();
        let mut store = Store::new(node_name);
        store.set_forwarding(config.forwarding_mode);
        let mut agent = Self {
            questions: reasons::serve(&paths.reasons()),
            reaper: Reaper::new(Arc::clone(&maps), paths),
            health_checks: HealthChecks::new(health.clone()),
            health,
            failing_since: None,
            store,
            clock: TickClock::start().map_err(Error::Clock)?,
            passes: Passes::new(Arc::clone(&maps), metrics.clone())?,
            known_node: NodeFacts::default(),
            masquerade_due: true,
            waiting_since: None,
            retry: None,
            blocked: BTreeSet::new(),
            config,
            metrics,
            netlink,
            uplinks,
            addresses,
            maps,
            reconciler,
            events,
        };
        agent.read_addresses().await?;
        Ok(agent)
    }

    async fn serve(
        &mut self,
        mut changes: impl Stream<Item = Change> + Unpin,
        ready: oneshot::Sender<()>,
        shutdown: CancellationToken,
    ) -> Result<(), Error> {
        let mut ready = Some(ready);
        let mut checks = interval(check::STEP_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let retry = self.retry.map(|(when, _)| when);
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                Some(change) = changes.next() => {
                    self.waiting_since.get_or_insert_with(Instant::now);
                    self.store.apply(change);
                    // A burst is one round.
                    for _ in 0..ROUND {
                        let Some(Some(change)) = changes.next().now_or_never() else { break };
                        self.store.apply(change);
                    }
                }
                Some(_) = self.addresses.next() => {
                    while self.addresses.next().now_or_never().flatten().is_some() {}
                    self.read_addresses().await?;
                }
                () = async { sleep_until(retry.expect("guarded")).await }, if retry.is_some() => {}
                progress = self.reaper.progress() => {
                    match progress {
                        Progress::Judge(peers) => self.reaper.destroy(self.reconciler.stale(&self.store, peers)),
                        Progress::Destroyed(count) => drop(self.metrics.sockets_destroyed.inc_by(count)),
                    }
                    continue;
                }
                progress = self.passes.progress() => {
                    match progress {
                        flows::Progress::Due(lost) => {
                            self.collect_flows(&lost);
                            self.health_checks.retry();
                        }
                        flows::Progress::Lost(lost) => self.passes.forget(self.reconciler.lost(&lost)),
                        flows::Progress::Passed(uses, traffic) => {
                            self.metrics.set_traffic(&traffic, self.reconciler.names());
                            if let Err(error) = self.reconciler.narrow_filter(uses) {
                                warn!(%error, "more packets than need be are looked up");
                            }
                        }
                    }
                    continue;
                }
                Some(Asked { question, answer }) = self.questions.recv() => {
                    self.metrics.questions.inc();
                    // Who asked may be gone.
                    let _ = answer.send(reasons::answer(question, &self.store, &self.reconciler));
                    continue;
                }
                _ = checks.tick() => if !self.check() { continue },
            }
            if self.store.is_complete() {
                self.round().await;
                if !self.reconciler.starts_over()
                    && let Some(ready) = ready.take()
                {
                    info!("services are programmed");
                    // Nobody waits: nobody minds.
                    let _ = ready.send(());
                }
            }
        }
    }

    /// One round: the node's own range, then the services that changed.
    async fn round(&mut self) {
        if let Err(error) = self.follow_node().await {
            warn!(%error, "the node's own address in the pod network");
            self.retry_later();
        }
        if let Err(error) = self.follow_nodes() {
            warn!(%error, "pods' packets to nodes that are new may leave with this one's address");
            self.retry_later();
        }
        let mut dirty = self.store.take_dirty();
        if self.retry.is_some_and(|(when, _)| when <= Instant::now()) {
            dirty.append(&mut self.blocked);
        }
        if dirty.is_empty() && !self.reconciler.starts_over() {
            self.waiting_since = None;
            return;
        }
        let started = Instant::now();
        let concerned: Vec<ServiceKey> = if self.reconciler.starts_over() {
            self.store.keys().cloned().collect()
        } else {
            dirty.iter().cloned().collect()
        };
        match self.reconciler.sync(&self.store, dirty) {
            Ok(outcome) => {
                observe(&self.metrics.sync, started.elapsed());
                if let Some(since) = self.waiting_since.take() {
                    observe(&self.metrics.event_to_kernel, since.elapsed());
                }
                debug!(
                    steps = outcome.steps,
                    took_us = started.elapsed().as_micros() as u64,
                    "maps are up to date"
                );
                if outcome.steps > 0 && self.config.socket_lb {
                    self.reaper.changed();
                }
                self.passes.lost(outcome.lost);
                self.events.tell(outcome.complaints, &self.store);
                self.tell_of_ports_in_use(&outcome.guarded);
                self.serve_health_checks(&concerned);
                self.failing_since = None;
                self.health.set(true);
                self.retry = None;
                self.blocked.extend(outcome.blocked);
                if !self.blocked.is_empty() {
                    self.retry = Some((Instant::now() + LONGEST_RETRY, LONGEST_RETRY));
                }
            }
            Err(error) => {
                warn!(%error, "what is programmed stays; trying again");
                let since = *self.failing_since.get_or_insert_with(Instant::now);
                self.health.set(since.elapsed() < UNHEALTHY_AFTER);
                self.retry_later();
            }
        }
    }

    /// One step of looking for what differs. Whether the next round must start over for it.
    fn check(&mut self) -> bool {
        if self.reconciler.starts_over() {
            return false;
        }
        let clock = self.clock.read().unwrap_or_else(|error| {
            warn!(%error, "cannot tell the age of flows");
            None
        });
        match self.reconciler.check(clock) {
            Ok(complaints) => self.events.tell(complaints, &self.store),
            Err(error) => warn!(%error, "cannot compare the maps with what was written"),
        }
        self.reconciler.starts_over()
    }

    /// Complains about processes that had the port of a service first.
    fn tell_of_ports_in_use(&self, guarded: &[(ServiceKey, NodePort)]) {
        match in_use(guarded) {
            Ok(found) => {
                let complaints = found.into_iter().map(|(key, port)| (key, Complaint::PortInUse(port)));
                self.events.tell(complaints, &self.store);
            }
            Err(error) => warn!(%error, "cannot see which processes have ports of services"),
        }
    }

    /// After the maps: a load balancer that hears of an endpoint finds it served.
    fn serve_health_checks(&mut self, concerned: &[ServiceKey]) {
        let mut errors = self.health_checks.set_addresses(self.store.node_addresses());
        for key in concerned {
            errors.extend(self.health_checks.set(key, self.store.health_check(key)));
        }
        self.metrics.health_check_listeners.set(self.health_checks.listeners() as i64);
        let complaints = errors.into_iter().map(|(key, error)| (key, Complaint::HealthCheck(error)));
        self.events.tell(complaints, &self.store);
    }

    fn retry_later(&mut self) {
        let wait = self.retry.map_or(FIRST_RETRY, |(_, wait)| (wait * 2).min(LONGEST_RETRY));
        self.retry = Some((Instant::now() + wait, wait));
    }

    async fn follow_node(&mut self) -> Result<(), Error> {
        if *self.store.node() == self.known_node {
            return Ok(());
        }
        let facts = self.store.node().clone();
        let gateways = node::ensure_gateway(&self.netlink, &facts.pod_cidrs).await?;
        write_node_config(&self.maps, &self.config, &gateways)?;
        info!(?gateways, "the node has its addresses in the pod network");
        self.known_node = facts;
        self.read_addresses().await
    }

    /// Tells the programs which addresses pods reach with their own, when nodes came or went.
    fn follow_nodes(&mut self) -> Result<(), TableError> {
        self.masquerade_due |= self.store.take_nodes_moved();
        if !self.masquerade_due {
            return Ok(());
        }
        let inside = masquerade::inside(&self.config, self.store.peers(), self.store.pod_ranges());
        let [v4, v6] = masquerade::write(&self.maps, self.config.masquerade, &inside)?;
        self.metrics.set_fill("non_masquerade_v4", v4, NON_MASQUERADE);
        self.metrics.set_fill("non_masquerade_v6", v6, NON_MASQUERADE);
        self.masquerade_due = false;
        Ok(())
    }

    async fn read_addresses(&mut self) -> Result<(), Error> {
        let addresses = node::nodeport_addresses(&self.netlink, &self.config).await?;
        self.store.set_node_addresses(addresses);
        node::write_uplinks(&self.maps, &node::uplink_addresses(&self.netlink, &self.uplinks).await?)?;
        Ok(())
    }

    /// Starts a pass over the flow tables.
    fn collect_flows(&mut self, lost: &BTreeSet<u32>) {
        match self.clock.read() {
            Ok(Some(clock)) => self.passes.begin(Setting {
                clock,
                services: self.reconciler.names().keys().copied().collect(),
                lost: self.reconciler.lost(lost),
            }),
            Ok(None) => {}
            Err(error) => warn!(%error, "cannot tell the age of flows"),
        }
    }
}

/// What is needed to take connections over from rules that have served so far.
async fn takeover(netlink: &Netlink, paths: &Paths) -> Result<Takeover, Error> {
    let pods = cni::pod_links(paths).await.unwrap_or_else(|error| {
        warn!(%error, "pods that have no program yet stay without");
        Vec::new()
    });
    let addresses = netlink.addresses(None).await?;
    Ok(Takeover { pods, node_addresses: addresses.into_iter().map(|(_, address, _)| address).collect() })
}

/// Tells the programs about their node. A family without a new address keeps the one that it has, and one that is to be
/// masqueraded what it was told of that.
fn write_node_config(maps: &Maps, config: &Config, gateways: &[IpAddr]) -> Result<(), TableError> {
    let (socket_lb, masquerade) = (config.socket_lb, masquerade::flags(config.masquerade));
    let mut config = maps.node_config.at(0)?;
    config.flags = config.flags & masquerade | if socket_lb { NodeConfig::FLAG_SOCKET_LB } else { 0 };
    for gateway in gateways {
        match gateway {
            IpAddr::V4(address) => config.gateway_v4 = Ip4::from(*address),
            IpAddr::V6(address) => config.gateway_v6 = Ip6::from(*address),
        }
    }
    maps.node_config.write(&[0], &[config])
}
