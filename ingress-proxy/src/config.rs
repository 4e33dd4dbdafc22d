//! How the ingress is told what to do: one struct, parsed once.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use crate::election::Election;

/// Configuration of the `ingress` role. Flags and the config file have the same names.
#[derive(Debug, Clone, clap::Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Where plain HTTP is served.
    #[arg(long, default_value = "0.0.0.0:80")]
    pub http_address: SocketAddr,

    /// Where HTTPS is served.
    #[arg(long, default_value = "0.0.0.0:443")]
    pub https_address: SocketAddr,

    /// The class that the annotation `kubernetes.io/ingress.class` may name without an IngressClass of that
    /// name. Ingresses are otherwise taken by their class's controller, `weir.dev/ingress`.
    #[arg(long, default_value = "weir")]
    pub ingress_class: String,

    /// An address (IP or host name) to publish in `status.loadBalancer` of the Ingresses served; may be given
    /// several times. Without one, status is left alone. Of several replicas one publishes its own: see `--leader-elect`.
    #[arg(long)]
    pub publish_address: Vec<String>,

    /// A Service, `namespace/name`, whose addresses are published instead, and followed: those of its load balancer and its
    /// external ones; without those a name that it stands for, or its cluster IP unless it is of type LoadBalancer. While it
    /// is not there or has none, a warning says so, and every status stays as it is.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub publish_service: Option<String>,

    /// Networks whose `X-Forwarded-*`, `X-Real-IP` and `X-Request-ID` are believed, as CIDR; may be given
    /// several times. Everyone else's are overwritten.
    #[arg(long)]
    pub trusted_proxies: Vec<Network>,

    /// Connections begin with a header of the PROXY protocol, version 1 or 2, as load balancers write it; only those from
    /// `--trusted-proxies` are taken.
    #[arg(long)]
    pub proxy_protocol: bool,

    /// Threads that serve requests; 0 means one per CPU.
    #[arg(long, default_value_t = 0)]
    pub workers: usize,

    /// A TLS secret, `namespace/name`, for hosts that have none of their own. Without it, or until it is
    /// usable, a self-signed certificate made at start answers.
    #[arg(long)]
    pub default_tls_secret: Option<String>,

    /// The file that takes the JSON access log, opened for append; `-` is standard output, `off` is none.
    #[arg(long, default_value = "-")]
    pub access_log: PathBuf,

    /// A collector that takes spans of requests in OTLP over HTTP, such as `http://collector:4318`. Without one, there are no
    /// spans, and `traceparent` goes to endpoints as it came. `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_SERVICE_NAME` and
    /// `OTEL_RESOURCE_ATTRIBUTES` are heeded.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,

    /// The share of traces that is recorded, from 0 to 1, of those that no trusted proxy has decided on.
    #[arg(long, default_value_t = 0.01)]
    pub trace_sample_ratio: f64,

    /// A Unix socket by which the listeners pass from a running process to the next one that is started with the same path,
    /// for upgrades that refuse nobody.
    #[arg(long, value_name = "FILE")]
    pub handover: Option<PathBuf>,

    /// Longest wait for the requests in flight when asked to stop; it ends earlier when none is left.
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    #[serde(deserialize_with = "duration")]
    pub drain_timeout: Duration,

    /// How long new connections are still taken after a request to stop, so that whatever sends traffic here
    /// sees the failing readiness first.
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    #[serde(deserialize_with = "duration")]
    pub shutdown_delay: Duration,

    /// Limits on waiting.
    #[command(flatten)]
    #[serde(flatten)]
    pub timeouts: Timeouts,

    /// Which of several replicas publishes status.
    #[command(flatten)]
    #[serde(flatten)]
    pub election: Election,
}

/// Limits on waiting, for clients and for endpoints.
#[derive(Debug, Clone, clap::Args, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Timeouts {
    /// The whole request head must have arrived this long after its first byte; the same for the TLS handshake
    /// and for the first byte on a new connection.
    #[arg(id = "header_timeout", long = "header-timeout", default_value = "10s", value_parser = parse_duration)]
    #[serde(rename = "header-timeout", deserialize_with = "duration")]
    pub header: Duration,

    /// Longest silence of a client inside a request body, or in taking the response.
    #[arg(id = "client_timeout", long = "client-timeout", default_value = "60s", value_parser = parse_duration)]
    #[serde(rename = "client-timeout", deserialize_with = "duration")]
    pub client: Duration,

    /// Longest wait of a client's open connection for its next request.
    #[arg(id = "keepalive_timeout", long = "keepalive-timeout", default_value = "75s", value_parser = parse_duration)]
    #[serde(rename = "keepalive-timeout", deserialize_with = "duration")]
    pub keepalive: Duration,

    /// Connecting to an endpoint.
    #[arg(id = "connect_timeout", long = "connect-timeout", default_value = "5s", value_parser = parse_duration)]
    #[serde(rename = "connect-timeout", deserialize_with = "duration")]
    pub connect: Duration,

    /// Longest silence of an endpoint; `WebSockets` and event streams count.
    #[arg(id = "read_timeout", long = "read-timeout", default_value = "60s", value_parser = parse_duration)]
    #[serde(rename = "read-timeout", deserialize_with = "duration")]
    pub read: Duration,

    /// Longest refusal of an endpoint to take bytes.
    #[arg(id = "write_timeout", long = "write-timeout", default_value = "60s", value_parser = parse_duration)]
    #[serde(rename = "write-timeout", deserialize_with = "duration")]
    pub write: Duration,

    /// How long an unused connection to an endpoint is kept.
    #[arg(id = "upstream_idle_timeout", long = "upstream-idle-timeout", default_value = "60s", value_parser = parse_duration)]
    #[serde(rename = "upstream-idle-timeout", deserialize_with = "duration")]
    pub upstream_idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            client: Duration::from_mins(1),
            keepalive: Duration::from_secs(75),
            connect: Duration::from_secs(5),
            read: Duration::from_mins(1),
            write: Duration::from_mins(1),
            upstream_idle: Duration::from_mins(1),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            http_address: SocketAddr::from(([0, 0, 0, 0], 80)),
            https_address: SocketAddr::from(([0, 0, 0, 0], 443)),
            ingress_class: "weir".to_owned(),
            publish_address: Vec::new(),
            publish_service: None,
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
            workers: 0,
            default_tls_secret: None,
            access_log: PathBuf::from("-"),
            otlp_endpoint: None,
            trace_sample_ratio: 0.01,
            handover: None,
            drain_timeout: Duration::from_secs(30),
            shutdown_delay: Duration::ZERO,
            timeouts: Timeouts::default(),
            election: Election::default(),
        }
    }
}

/// A network in CIDR notation; a lone address is a network of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network {
    address: IpAddr,
    prefix_len: u8,
}

impl Network {
    /// Whether the address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let masked = |bits: u128, width: u32| {
            let keep = u32::from(self.prefix_len);
            if keep == 0 { 0 } else { bits >> (width - keep) }
        };
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                masked(u32::from(network).into(), 32) == masked(u32::from(address).into(), 32)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                masked(network.into(), 128) == masked(address.into(), 128)
            }
            _ => false,
        }
    }
}

/// Text that is no network.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no network: write 10.0.0.0/8, 2001:db8::/32 or an address")]
pub struct NetworkError(String);

impl FromStr for Network {
    type Err = NetworkError;
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let parse = || {
            let (address, prefix_len) = match text.split_once('/') {
                Some((address, prefix_len)) => (address, Some(prefix_len)),
                None => (text, None),
            };
            let address: IpAddr = address.parse().ok()?;
            let width = if address.is_ipv4() { 32 } else { 128 };
            let prefix_len = match prefix_len {
                Some(digits) => digits.parse().ok().filter(|len| *len <= width)?,
                None => width,
            };
            Some(Self { address, prefix_len })
        };
        parse().ok_or_else(|| NetworkError(text.to_owned()))
    }
}

impl TryFrom<String> for Network {
    type Error = NetworkError;
    fn try_from(text: String) -> Result<Self, NetworkError> {
        text.parse()
    }
}

/// Text that is no duration.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no duration: write a whole number and ms, s, m or h, such as 30s")]
pub struct DurationError(String);

pub(crate) fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(DurationError(text.to_owned())),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(scale_ms))
        .map(Duration::from_millis)
        .ok_or_else(|| DurationError(text.to_owned()))
}

pub(crate) fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    #[test]
    fn flags_without_values_are_the_defaults() {
        let flags = Cli::parse_from(["weir"]).config;
        assert_eq!(format!("{flags:?}"), format!("{:?}", Config::default()));
    }

    #[test]
    fn flags_and_file_have_the_same_names() {
        let flags = Cli::parse_from([
            "weir",
            "--http-address=127.0.0.1:8080",
            "--trusted-proxies=10.0.0.0/8",
            "--read-timeout=5m",
            "--drain-timeout=1500ms",
            "--leader-elect=false",
            "--publish-service=ingress/balancer",
            "--lease-namespace=ingress",
            "--lease-duration=30s",
        ])
        .config;
        let file: Config = serde_json::from_value(serde_json::json!({
            "http-address": "127.0.0.1:8080",
            "trusted-proxies": ["10.0.0.0/8"],
            "read-timeout": "5m",
            "drain-timeout": "1500ms",
            "leader-elect": false,
            "publish-service": "ingress/balancer",
            "lease-namespace": "ingress",
            "lease-duration": "30s",
        }))
        .unwrap();
        assert_eq!(format!("{flags:?}"), format!("{file:?}"));
    }

    #[test]
    fn networks_contain_what_they_say() {
        for (network, address, inside) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.0.0.1", true),
            ("0.0.0.0/0", "192.0.2.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.8", false),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
        ] {
            let network: Network = network.parse().unwrap();
            assert_eq!(network.contains(address.parse().unwrap()), inside, "{network:?} {address}");
        }
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "10.0.0.0/-1", "::/129", "x"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(parse_duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(parse_duration("2h").unwrap(), Duration::from_hours(2));
        for bad in ["", "5", "s", "1.5s", "-1s", "5 s", "99999999999999999999s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
