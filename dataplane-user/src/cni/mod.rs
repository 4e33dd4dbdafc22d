//! The CNI plugin: gives a pod its network (CNI specification 1.0.0).
//!
//! The container runtime executes `weir cni` with the request in the environment and the network's configuration on
//! standard input, and reads the answer from standard output. The plugin talks to the kernel only, never to an API
//! server or the agent, so that pods start and end while everything else is down.
//!
//! A pod link is a veth pair: `eth0` in the pod with ADDRESS/32 and everything by way of 169.254.1.1, `weir` and eight
//! hex digits on the host with a route to that one address. Neighbour entries are permanent on both ends, so no packet
//! ever waits for ARP. The pinned `tc_pod` program sits on the host's end.

mod config;
mod ipam;
mod pod;

use std::{
    io::{self, Read, Write},
    process::ExitCode,
};

use serde::Serialize;

use crate::kernel::attach::Tc;

pub use config::{NetworkConfig, Request};
pub use ipam::{Allocation, Ipam, IpamError};
pub use pod::{PodLink, host_link_name, pod_links};

/// The one version of the specification that the plugin speaks.
pub const CNI_VERSION: &str = "1.0.0";

/// A failure in the specification's terms, with its "well-known error codes".
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// The configuration asks for another version.
    #[error("cniVersion `{0}` is not supported; this plugin speaks {CNI_VERSION}")]
    Version(String),
    /// An environment variable is missing or makes no sense.
    #[error("environment variable {variable}: {problem}")]
    Environment {
        /// Its name.
        variable: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Standard input could not be read.
    #[error("read the network configuration from standard input: {0}")]
    Input(#[source] io::Error),
    /// Standard input is no JSON of the right shape.
    #[error("decode the network configuration: {0}")]
    Decode(#[source] serde_json::Error),
    /// The configuration makes no sense.
    #[error("network configuration: {0}")]
    Config(String),
    /// The pod's network namespace is not there.
    #[error("open the pod's network namespace {path}: {source}")]
    Namespace {
        /// Where it should be.
        path: String,
        /// Why it cannot be opened.
        #[source]
        source: io::Error,
    },
    /// The agent has not pinned its programs yet.
    #[error("the dataplane is not ready ({0} is not there yet): start `weir dataplane` and try again")]
    NotReady(String),
    /// No address, or no way to keep the books.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// The kernel refused a link, a route, an address or a neighbour.
    #[error(transparent)]
    Netlink(#[from] crate::netlink::NetlinkError),
    /// A system call, a pinned object or a file.
    #[error("{operation}: {source}")]
    Kernel {
        /// What was tried, with its object.
        operation: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// CHECK found something that ADD had made to be missing or different.
    #[error("the pod's network is not as it was made: {0}")]
    Check(String),
}

impl CniError {
    /// The specification's code; 100 and above are this plugin's own.
    pub fn code(&self) -> u32 {
        match self {
            Self::Version(_) => 1,
            Self::Namespace { source, .. } if source.kind() == io::ErrorKind::NotFound => 3,
            Self::Environment { .. } => 4,
            Self::Input(_) | Self::Namespace { .. } | Self::Ipam(IpamError::Io { .. }) => 5,
            Self::Decode(_) => 6,
            Self::Config(_) => 7,
            Self::NotReady(_) => 11,
            Self::Ipam(_) => 100,
            Self::Netlink(_) | Self::Kernel { .. } => 101,
            Self::Check(_) => 102,
        }
    }

    fn kernel(
        operation: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Kernel { operation: operation.into(), source: source.into() }
    }
}

/// What ADD answers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AddResult {
    cni_version: &'static str,
    interfaces: Vec<Interface>,
    ips: Vec<Ip>,
    routes: Vec<Route>,
    dns: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Serialize)]
struct Interface {
    name: String,
    mac: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    sandbox: String,
}

#[derive(Debug, Serialize)]
struct Ip {
    address: String,
    gateway: String,
    interface: u32,
}

#[derive(Debug, Serialize)]
struct Route {
    dst: String,
    gw: String,
}

/// Runs one CNI command. `env` reads the environment, `stdin` is the network configuration, and the answer, a result or
/// an error object, goes to `stdout`.
pub fn main(stdin: impl Read, env: impl Fn(&str) -> Option<String>, stdout: impl Write) -> ExitCode {
    main_attaching(Tc::of_kernel(), stdin, env, stdout)
}

/// The same, with TC programs attached in this way.
pub fn main_attaching(
    tc: Tc,
    stdin: impl Read,
    env: impl Fn(&str) -> Option<String>,
    mut stdout: impl Write,
) -> ExitCode {
    let answer = run(tc, stdin, env);
    let (text, code) = match &answer {
        Ok(text) => (text.clone(), ExitCode::SUCCESS),
        Err(error) => (error_object(error), ExitCode::FAILURE),
    };
    // A runtime that closed its end of the pipe has nobody to tell.
    if text.is_empty() || writeln!(stdout, "{text}").and_then(|()| stdout.flush()).is_ok() {
        code
    } else {
        ExitCode::FAILURE
    }
}

fn error_object(error: &CniError) -> String {
    serde_json::json!({ "cniVersion": CNI_VERSION, "code": error.code(), "msg": error.to_string() })
        .to_string()
}

fn run(tc: Tc, mut stdin: impl Read, env: impl Fn(&str) -> Option<String>) -> Result<String, CniError> {
    let command = config::required(&env, "CNI_COMMAND")?;
    let mut input = Vec::new();
    stdin.read_to_end(&mut input).map_err(CniError::Input)?;
    if command == "VERSION" {
        let versions = serde_json::json!({ "cniVersion": CNI_VERSION, "supportedVersions": [CNI_VERSION] });
        return Ok(versions.to_string());
    }
    let config = NetworkConfig::parse(&input)?;
    let request = Request::from_env(&env)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|error| CniError::kernel("start the event loop", error))?;
    runtime.block_on(async {
        match command.as_str() {
            "ADD" => {
                let result = pod::add(&config, &request, tc).await?;
                Ok(serde_json::to_string(&result).expect("a result of plain strings serializes"))
            }
            "DEL" => pod::delete(&config, &request).await.map(|()| String::new()),
            "CHECK" => pod::check(&config, &request).await.map(|()| String::new()),
            other => Err(CniError::Environment {
                variable: "CNI_COMMAND",
                problem: format!("`{other}` is none of ADD, DEL, CHECK, VERSION"),
            }),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"cniVersion":"1.0.0","name":"weir","type":"weir","podCIDR":"10.1.0.0/24","runDir":"/nonexistent"}"#;

    fn answer(input: &str, env: &[(&str, &str)]) -> serde_json::Value {
        let mut out = Vec::new();
        let env = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        main(input.as_bytes(), env, &mut out);
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn version_lists_what_it_speaks() {
        let answer = answer("", &[("CNI_COMMAND", "VERSION")]);
        assert_eq!(answer["supportedVersions"], serde_json::json!(["1.0.0"]));
    }

    #[test]
    fn bad_requests_get_the_specifications_codes() {
        /// Configuration, environment, and the code of the answer.
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], u64);

        let add = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/nonexistent/ns"),
        ];
        let cases: &[Case<'_>] = &[
            (CONFIG, &[], 4),
            (CONFIG, &[("CNI_COMMAND", "ADD")], 4),
            (CONFIG, &[("CNI_COMMAND", "FROB"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")], 4),
            ("{", &add, 6),
            (&CONFIG.replace(r#"ion":"1.0.0"#, r#"ion":"0.3.1"#), &add, 1),
            (&CONFIG.replace("10.1.0.0/24", "10.1.0.0/31"), &add, 7),
            (CONFIG, &add, 3),
        ];
        for (input, env, code) in cases {
            let answer = answer(input, env);
            assert_eq!(answer["code"], *code, "{input} {env:?}: {answer}");
        }
    }
}
