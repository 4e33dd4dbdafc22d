//! `weir dataplane monitor`: what the programs do with flows and packets, as it happens.
//!
//! The programs tell only while this listens, and [`LISTEN`] longer if it is killed. They tell of flows that begin, of those
//! that both sides have spoken of, and of every dropped packet that has a tuple; a packet that ends before its ports do is
//! in the counts alone (`weir dataplane drops`). Agents may go and come meanwhile: where their programs tell into a new ring
//! buffer, this reads that one. Everything is told, and filtered here: on a busy node the ring buffer may
//! be full for moments, and then packets go on and events are lost, which this says.

mod filter;
mod names;
mod pods;

use std::{
    fmt::{self, Write as _},
    io::{self, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, SystemTime},
};

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use weir_dataplane_ebpf::{Be16, DropReason, Event, EventKind, Ip6};

pub use self::filter::{Kind, MonitorArgs};
use self::{names::Names, pods::Pods};
use super::{CliError, Output, require_loaded};
use crate::{
    kernel::{
        events::{self, Events},
        migrate,
    },
    paths::Paths,
    plan::model::protocol_name,
};

/// For how long the programs go on telling after this said for the last time that it listens.
pub const LISTEN: Duration = Duration::from_secs(5);
/// How often it says so.
const RENEW: Duration = Duration::from_secs(1);

/// One line of output.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventRow {
    /// When, RFC 3339.
    pub time: String,
    /// `opened`, `established`, `dropped`, or `refused` for a socket call.
    pub event: &'static str,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The client; nothing for a socket call, which has no address yet.
    pub source: Option<SocketAddr>,
    /// Its pod, `namespace/name`.
    pub source_pod: Option<String>,
    /// What it asked for.
    pub destination: SocketAddr,
    /// The service port that this is, `namespace/name:port`.
    pub service: Option<String>,
    /// Who serves it.
    pub backend: Option<SocketAddr>,
    /// Its pod.
    pub backend_pod: Option<String>,
    /// Why a packet was dropped, or a call refused.
    pub reason: Option<&'static str>,
    /// The interface that the packet came in by.
    pub interface: Option<String>,
}

#[derive(Serialize)]
struct Lost {
    event: &'static str,
    count: u64,
}

/// Writes events until `shutdown`, or until nobody reads them. With a client, pods are shown by their names.
pub async fn monitor(
    args: &MonitorArgs,
    paths: &Paths,
    output: Output,
    client: Option<kube::Client>,
    out: &mut impl Write,
    shutdown: CancellationToken,
) -> Result<(), CliError> {
    require_loaded(paths)?;
    if args.pod.is_some() && client.is_none() {
        return Err(CliError::PodsUnknown);
    }
    let mut monitor = Monitor {
        args,
        output,
        names: Names::open(paths)?,
        pods: Pods::default(),
        boot: SystemTime::now() - events::since_boot()?,
        left: args.count.unwrap_or(u64::MAX),
    };
    if let Some(client) = client {
        tokio::spawn(monitor.pods.follow(client));
    }
    let mut events = Events::open(paths)?;
    let mut renew = interval(RENEW);
    renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = renew.tick() => {
                monitor.follow(&mut events, paths)?;
                events.listen(LISTEN)?;
            }
            ready = events.readable() => ready?,
        }
        let mut written = Ok(());
        events.drain(|event| {
            if written.is_ok() {
                written = monitor.show(&event, out);
            }
        });
        let lost = events.newly_lost()?;
        match written.and_then(|()| monitor.tell_lost(lost, out)).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(source) => return Err(CliError::Io { operation: "write", source }),
            Ok(()) if monitor.left == 0 => return Ok(()),
            Ok(()) => {}
        }
    }
}

struct Monitor<'a> {
    args: &'a MonitorArgs,
    output: Output,
    names: Names,
    pods: Pods,
    /// When the clock of events was zero.
    boot: SystemTime,
    /// How many more to show.
    left: u64,
}

impl Monitor<'_> {
    /// Goes on with the programs that are there now. An agent of another version has taken over when there are none of this
    /// one's: that is no matter as long as its programs tell into the same ring buffer.
    fn follow(&mut self, events: &mut Events, paths: &Paths) -> Result<(), CliError> {
        match events.follow(paths)? {
            Some(false) => Ok(()),
            Some(true) => {
                self.names = Names::open(paths)?;
                Ok(())
            }
            None => {
                let others = migrate::all(paths);
                if others.iter().any(|other| events.is_of(other)) {
                    Ok(())
                } else if others.iter().any(|other| other.maps().exists()) {
                    Err(CliError::Replaced)
                } else {
                    Err(CliError::NotLoaded(paths.run_dir().to_owned()))
                }
            }
        }
    }

    fn show(&mut self, event: &Event, out: &mut impl Write) -> io::Result<()> {
        if self.left == 0 {
            return Ok(());
        }
        let row = self.row(event);
        if !self.args.admits(&row) {
            return Ok(());
        }
        self.left -= 1;
        match self.output {
            Output::Json => line(out, &row),
            Output::Table => writeln!(out, "{}", text(&row)),
        }
    }

    fn row(&mut self, event: &Event) -> EventRow {
        let (source, backend) =
            (socket(event.source, event.source_port), socket(event.backend, event.backend_port));
        let destination = socket(event.destination, event.destination_port);
        // Port 0 is nobody's: there is no such address in the event.
        let there = |address: SocketAddr| (address.port() != 0).then_some(address);
        let pod = |address: Option<SocketAddr>| address.and_then(|it| self.pods.name(it.ip()));
        let source = there(source);
        let begun = event.kind == EventKind::OPENED || event.kind == EventKind::ESTABLISHED;
        let backend = match (there(backend), source) {
            (None, Some(source)) if begun => self.names.behind_tunnel(source, destination, event.protocol),
            (backend, _) => backend,
        };
        let (source_pod, backend_pod) = (pod(source), pod(backend));
        let dropped = event.kind == EventKind::DROPPED || event.kind == EventKind::REFUSED;
        EventRow {
            time: self.time(event.time_ns),
            event: match event.kind {
                EventKind::OPENED => "opened",
                EventKind::ESTABLISHED => "established",
                EventKind::DROPPED => "dropped",
                EventKind::REFUSED => "refused",
                _ => "unknown",
            },
            protocol: protocol_name(event.protocol),
            source,
            source_pod,
            destination,
            service: self.names.service(event.service, destination, event.protocol),
            backend,
            backend_pod,
            reason: DropReason::from_index(event.reason.into()).filter(|_| dropped).map(DropReason::name),
            interface: (event.ifindex != 0).then(|| super::status::interface_name(event.ifindex)),
        }
    }

    fn time(&self, time_ns: u64) -> String {
        let time = self.boot + Duration::from_nanos(time_ns);
        Timestamp::try_from(time).map_or_else(|_| time_ns.to_string(), |it| format!("{it:.6}"))
    }

    fn tell_lost(&self, count: u64, out: &mut impl Write) -> io::Result<()> {
        match (count, self.output) {
            (0, _) => Ok(()),
            (count, Output::Json) => line(out, &Lost { event: "lost", count }),
            (count, Output::Table) => {
                writeln!(out, "{count} events were lost: they came faster than they were read")
            }
        }
    }
}

fn line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string(value).expect("plain rows serialize");
    text.push('\n');
    out.write_all(text.as_bytes())
}

fn socket(address: Ip6, port: Be16) -> SocketAddr {
    let address = Ipv6Addr::from(address);
    SocketAddr::new(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4), port.get())
}

/// `time event protocol source (pod) -> destination (service) -> backend (pod): reason`.
fn text(row: &EventRow) -> String {
    let named = |address: &SocketAddr, name: &Option<String>| match name {
        Some(name) => format!("{address} ({name})"),
        None => address.to_string(),
    };
    let source = row.source.map_or_else(|| "a socket".to_owned(), |source| named(&source, &row.source_pod));
    let mut text = format!(
        "{} {:<11} {:<4} {source} -> {}",
        row.time,
        row.event,
        row.protocol,
        named(&row.destination, &row.service)
    );
    let mut push = |more: fmt::Arguments<'_>| text.write_fmt(more).expect("a string takes everything");
    if let Some(backend) = &row.backend {
        push(format_args!(" -> {}", named(backend, &row.backend_pod)));
    }
    if let Some(reason) = row.reason {
        push(format_args!(": {reason}"));
    }
    if let Some(interface) = &row.interface {
        push(format_args!(", by {interface}"));
    }
    text
}
