//! Which events to show.

use std::net::IpAddr;

use super::EventRow;

/// A kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Flows that begin.
    Flow,
    /// Packets that end, and socket calls that fail.
    Drop,
}

/// Flags of `weir dataplane monitor`. An event is shown when all that are given fit it.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct MonitorArgs {
    /// Only this service: `NAMESPACE/NAME`, or one port of it as `NAMESPACE/NAME:PORT`.
    #[arg(long)]
    pub service: Option<String>,
    /// Only this client or backend: a pod's `NAMESPACE/NAME`. Needs an API server to ask.
    #[arg(long)]
    pub pod: Option<String>,
    /// Only this address, as source, destination or backend.
    #[arg(long)]
    pub ip: Option<IpAddr>,
    /// Only flows, or only drops.
    #[arg(long, value_enum)]
    pub kind: Option<Kind>,
    /// Only `tcp`, `udp` or `sctp`.
    #[arg(long, value_parser = ["tcp", "udp", "sctp"])]
    pub protocol: Option<String>,
    /// End after so many.
    #[arg(long)]
    pub count: Option<u64>,
}

impl MonitorArgs {
    pub(super) fn admits(&self, row: &EventRow) -> bool {
        let dropped = row.reason.is_some();
        let service = |wanted: &String| row.service.as_deref().is_some_and(|it| is_service(it, wanted));
        let pod = |wanted: &String| {
            [&row.source_pod, &row.backend_pod].into_iter().flatten().any(|it| it == wanted)
        };
        let ip = |wanted: &IpAddr| {
            let addresses = [row.source, Some(row.destination), row.backend];
            addresses.into_iter().flatten().any(|address| address.ip() == *wanted)
        };
        self.kind.is_none_or(|kind| (kind == Kind::Drop) == dropped)
            && self.protocol.as_ref().is_none_or(|wanted| *wanted == row.protocol)
            && self.service.as_ref().is_none_or(service)
            && self.pod.as_ref().is_none_or(pod)
            && self.ip.as_ref().is_none_or(ip)
    }
}

/// Whether a service port's name, `namespace/name:port` and `/protocol` unless that is TCP, is what was asked for.
fn is_service(name: &str, wanted: &str) -> bool {
    let rest = name.strip_prefix(wanted);
    rest.is_some_and(|rest| {
        rest.is_empty() || if wanted.contains(':') { rest.starts_with('/') } else { rest.starts_with(':') }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> EventRow {
        EventRow {
            time: String::new(),
            event: "opened",
            protocol: "udp".into(),
            source: Some("10.244.0.5:40000".parse().unwrap()),
            source_pod: Some("default/client".into()),
            destination: "10.96.0.10:53".parse().unwrap(),
            service: Some("kube-system/dns:53/udp".into()),
            backend: Some("10.244.1.2:53".parse().unwrap()),
            backend_pod: None,
            reason: None,
            interface: None,
        }
    }

    #[test]
    fn every_flag_that_is_given_must_fit() {
        let none = MonitorArgs::default;
        let text = |text: &str| Some(text.to_owned());
        let ip = |text: &str| Some(text.parse().unwrap());
        let fitting = [
            none(),
            MonitorArgs { service: text("kube-system/dns"), ..none() },
            MonitorArgs { service: text("kube-system/dns:53"), ..none() },
            MonitorArgs { service: text("kube-system/dns:53/udp"), protocol: text("udp"), ..none() },
            MonitorArgs { pod: text("default/client"), kind: Some(Kind::Flow), ..none() },
            MonitorArgs { ip: ip("10.244.1.2"), ..none() },
            MonitorArgs { ip: ip("10.96.0.10"), ..none() },
        ];
        for args in fitting {
            assert!(args.admits(&row()), "{args:?}");
        }
        let others = [
            MonitorArgs { service: text("kube-system/dn"), ..none() },
            MonitorArgs { service: text("kube-system/dns:5"), ..none() },
            MonitorArgs { service: text("dns"), ..none() },
            MonitorArgs { pod: text("default/other"), ..none() },
            MonitorArgs { kind: Some(Kind::Drop), ..none() },
            MonitorArgs { ip: ip("10.244.1.3"), ..none() },
            MonitorArgs { ip: ip("10.244.1.2"), protocol: text("tcp"), ..none() },
        ];
        for args in others {
            assert!(!args.admits(&row()), "{args:?}");
        }
        let dropped = EventRow { reason: Some("no-backend"), ..row() };
        assert!(MonitorArgs { kind: Some(Kind::Drop), ..none() }.admits(&dropped));
        assert!(!MonitorArgs { kind: Some(Kind::Flow), ..none() }.admits(&dropped));
    }
}
