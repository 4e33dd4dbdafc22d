//! Which roles a node runs and what each is told; and how what they made is taken away.

use std::{ffi::OsString, fs, io, path::Path};

use anyhow::{Context, Result};

use super::{config::Config, supervisor::Role};

/// Where the kubelet serves logs to the API server.
pub(super) const KUBELET_PORT: u16 = 10250;
/// Where each client of the API server shows its metrics, on loopback: upstream's ports, where there are any.
pub(super) const METRICS_PORTS: [(&str, u16); 5] = [
    ("dataplane", 10249),
    ("ingress", crate::explain::INGRESS_PORT),
    ("kubelet", 10255),
    ("controllers", 10257),
    ("scheduler", 10259),
];

/// Words on a command line, built up.
struct Words(Vec<OsString>);

impl Words {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn flag(mut self, name: &str, value: impl Into<OsString>) -> Self {
        let mut word = OsString::from(format!("--{name}="));
        word.push(value.into());
        self.0.push(word);
        self
    }

    fn cgroup_root(self, config: &Config) -> Self {
        match config.cgroup_root.path() {
            Some(path) => self.flag("cgroup-root", path),
            None => self,
        }
    }

    fn role(self, name: &'static str) -> Role {
        Role { name, args: self.0 }
    }
}

/// The API server, which must serve before the others have anything to do.
pub(super) fn apiserver(config: &Config) -> Role {
    Words::new()
        .flag("data-dir", &config.data_dir)
        .flag("port", config.api_port.to_string())
        .flag("advertise-address", config.node_ip.to_string())
        .flag("node-name", &config.node_name)
        .flag("service-cidr", config.service_cidr.to_string())
        .flag("node-port-range", config.node_port_range.to_string())
        .role("apiserver")
}

/// The roles that are its clients, in the order in which they start: the dataplane first, since pods wait for it.
pub(super) fn clients(config: &Config) -> Vec<Role> {
    let client = |name: &str| {
        let metrics = METRICS_PORTS.into_iter().find(|(role, _)| *role == name);
        let (_, port) = metrics.expect("every client has a port for its metrics");
        Words::new()
            .flag("kubeconfig", config.kubeconfig(name))
            .flag("metrics-address", format!("127.0.0.1:{port}"))
    };
    vec![
        client("dataplane")
            .flag("node-name", &config.node_name)
            .flag("run-dir", &config.run_dir)
            .flag("uplink", config.uplink.to_string())
            .flag("masquerade", config.masquerade.to_string())
            .flag("pod-cidr", config.pod_cidr.to_string())
            .flag("service-cidr", config.service_cidr.to_string())
            .cgroup_root(config)
            .role("dataplane"),
        client("kubelet")
            .flag("node-name", &config.node_name)
            .flag("node-ip", config.node_ip.to_string())
            .flag("data-dir", &config.data_dir)
            .flag("run-dir", &config.run_dir)
            .flag("port", KUBELET_PORT.to_string())
            .flag("eviction-hard", config.eviction_hard.to_string())
            .cgroup_root(config)
            .role("kubelet"),
        client("controllers").flag("cluster-cidr", config.pod_cidr.to_string()).role("controllers"),
        client("scheduler").role("scheduler"),
        client("ingress")
            .flag("http-address", config.ingress_http.to_string())
            .flag("https-address", config.ingress_https.to_string())
            .flag("publish-address", config.node_ip.to_string())
            // There is no other, and a Lease that is renewed is a write every two seconds.
            .flag("leader-elect", "false")
            .flag("workers", "1")
            .flag("drain-timeout", "10s")
            .role("ingress"),
    ]
}

/// Moves this process, and so every role and pod, into the node's cgroup.
pub(super) fn enter_cgroup(config: &Config) -> Result<()> {
    let Some(root) = config.cgroup_root.path() else { return Ok(()) };
    fs::write(root.join("cgroup.procs"), std::process::id().to_string())
        .with_context(|| format!("--cgroup-root {} cannot be entered: choose another", root.display()))
}

/// Removes all that pods and dataplane made on this machine, from what is found on it. Goes on after a failure.
pub(super) async fn clean_up(config: &Config) -> Result<()> {
    let kubelet = weir_kubelet::Config {
        node_name: config.node_name.clone(),
        data_dir: config.data_dir.clone(),
        run_dir: config.run_dir.clone(),
        cgroup_root: config.cgroup_root.path().map(Path::to_owned),
        ..weir_kubelet::Config::default()
    };
    let pods = weir_kubelet::cleanup(&kubelet).await.context("removing pods");
    let network = weir_dataplane::cleanup(&config.run_dir).await.context("removing the dataplane");
    let files = match fs::remove_dir_all(&config.run_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", config.run_dir.display()))
        }
        _ => Ok(()),
    };
    pods.and(network).and(files)
}
