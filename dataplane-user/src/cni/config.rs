//! What a runtime asks: the network's configuration and the environment of one call.

use std::{net::IpAddr, path::PathBuf};

use serde::Deserialize;

use super::{CNI_VERSION, CniError};
use crate::{cidr::Cidr, paths::Paths};

/// The network configuration, from standard input.
///
/// Unknown keys are allowed: the specification lets runtimes add their own (`prevResult`, `runtimeConfig`, …).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    cni_version: String,
    /// Name of the network; allocations are kept per name.
    pub name: String,
    /// Where the agent keeps its pins and this plugin its allocations.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// The node's pod range.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Cidr,
    /// Bytes that fit into a frame of a pod link; the kernel's default when it is not given.
    pub mtu: Option<u32>,
    /// Whether pod links get the dataplane's program. `false` makes plain pod links that know no services.
    #[serde(default = "default_dataplane")]
    pub dataplane: bool,
}

fn default_run_dir() -> PathBuf {
    "/run/weir".into()
}

fn default_dataplane() -> bool {
    true
}

impl NetworkConfig {
    /// Reads and checks a configuration.
    pub fn parse(input: &[u8]) -> Result<Self, CniError> {
        let config: Self = serde_json::from_slice(input).map_err(CniError::Decode)?;
        if config.cni_version != CNI_VERSION {
            return Err(CniError::Version(config.cni_version));
        }
        if config.name.is_empty() || config.name.contains(['/', '\0']) || config.name.starts_with('.') {
            return Err(CniError::Config(format!("name `{}` cannot be a file name", config.name)));
        }
        if config.pod_cidr.pod_addresses().next().is_none() {
            return Err(CniError::Config(format!("podCIDR {} has no address for a pod", config.pod_cidr)));
        }
        Ok(config)
    }

    /// Places below the run directory.
    pub fn paths(&self) -> Paths {
        Paths::new(&self.run_dir)
    }

    /// Next hop of every pod, which no machine has and every host link answers for.
    pub fn gateway(&self) -> IpAddr {
        if self.pod_cidr.network().is_ipv4() {
            IpAddr::from([169, 254, 1, 1])
        } else {
            IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 1])
        }
    }
}

/// One call, from the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The sandbox.
    pub container_id: String,
    /// Name of the link inside the pod.
    pub interface: String,
    /// Path of the pod's network namespace; DEL may come without it.
    pub namespace: Option<PathBuf>,
    /// `namespace/name` of the pod, for people who read the allocations.
    pub pod: Option<String>,
}

impl Request {
    pub(super) fn from_env(env: &impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let container_id = required(env, "CNI_CONTAINERID")?;
        let interface = required(env, "CNI_IFNAME")?;
        // IFNAMSIZ counts the terminating zero.
        if interface.len() > 15
            || interface.contains(['/', ' ', '\0', ':'])
            || interface == "."
            || interface == ".."
        {
            return Err(CniError::Environment {
                variable: "CNI_IFNAME",
                problem: format!("`{interface}` cannot name a link"),
            });
        }
        let arguments = env("CNI_ARGS").unwrap_or_default();
        let argument = |name: &str| {
            arguments
                .split(';')
                .filter_map(|pair| pair.split_once('='))
                .find(|(n, _)| *n == name)
                .map(|(_, v)| v)
        };
        let pod = argument("K8S_POD_NAMESPACE").zip(argument("K8S_POD_NAME"));
        Ok(Self {
            container_id,
            interface,
            namespace: env("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from),
            pod: pod.map(|(namespace, name)| format!("{namespace}/{name}")),
        })
    }
}

/// A variable that must be there and not be empty.
pub(super) fn required(
    env: &impl Fn(&str) -> Option<String>,
    variable: &'static str,
) -> Result<String, CniError> {
    env(variable)
        .filter(|value| !value.is_empty())
        .ok_or_else(|| CniError::Environment { variable, problem: "is not set".into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_pod_out_of_the_arguments() {
        let env = |name: &str| {
            Some(
                match name {
                    "CNI_CONTAINERID" => "abc",
                    "CNI_IFNAME" => "eth0",
                    "CNI_ARGS" => "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=u",
                    _ => return None,
                }
                .to_owned(),
            )
        };
        let request = Request::from_env(&env).unwrap();
        assert_eq!(request.pod.as_deref(), Some("shop/web-1"));
        assert_eq!(request.namespace, None);
    }

    #[test]
    fn refuses_names_that_escape_their_place() {
        for name in ["", "../x", ".hidden", "a/b"] {
            let text = format!(r#"{{"cniVersion":"1.0.0","name":"{name}","podCIDR":"10.1.0.0/24"}}"#);
            assert!(matches!(NetworkConfig::parse(text.as_bytes()), Err(CniError::Config(_))), "{name}");
        }
    }
}
