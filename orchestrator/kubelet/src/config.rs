//! The kubelet's settings: one struct, parsed once, flags and config file under the same names.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::{
    error::{Error, Result},
    node::pressure::Thresholds,
    runtime,
};

/// Settings of one node's kubelet.
#[derive(Debug, Clone, clap::Args, serde::Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Name of this node in the cluster. Empty: the machine's host name in lower case.
    #[arg(long, default_value = "", env = "NODE_NAME")]
    pub node_name: String,
    /// Address under which the cluster reaches this node: "auto" is the source address of the default route, and
    /// where there is none, the first global address.
    #[arg(long, default_value = "auto")]
    pub node_ip: String,
    /// What must survive a reboot: images, volumes, certificates.
    #[arg(long, default_value = "/var/lib/weir")]
    pub data_dir: PathBuf,
    /// What must not: sandboxes, namespaces, addresses in use.
    #[arg(long, default_value = "/run/weir")]
    pub run_dir: PathBuf,
    /// Logs of containers. Not given: "logs" in the data directory.
    #[arg(long)]
    pub log_dir: Option<PathBuf>,
    /// Directory in the cgroup2 mount that is this node's root. Not given: the cgroup2 mount itself.
    #[arg(long)]
    pub cgroup_root: Option<PathBuf>,
    /// Program that connects pods to the network, called by the rules of CNI 1.0.0. Not given: "weir cni".
    #[arg(long)]
    pub cni_plugin: Option<PathBuf>,
    /// The most pods this node runs at once; more are rejected with `OutOfpods`.
    #[arg(long, default_value_t = 110)]
    pub max_pods: u32,
    /// Port of the kubelet's own HTTPS server (logs, pods, health).
    #[arg(long, default_value_t = 10250)]
    pub port: u16,
    /// Address that the HTTPS server listens on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    pub address: IpAddr,
    /// Serving certificate (PEM). Not given: pki/kubelet.crt in the data directory. Read again when it changes.
    #[arg(long)]
    pub tls_cert_file: Option<PathBuf>,
    /// Its key (PEM). Not given: pki/kubelet.key in the data directory.
    #[arg(long)]
    pub tls_private_key_file: Option<PathBuf>,
    /// Authority that clients' certificates must come from (PEM). Not given: pki/ca.crt in the data directory.
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    /// CPU kept for the machine itself, subtracted from allocatable, such as "200m".
    #[arg(long, default_value = "0")]
    pub system_reserved_cpu: String,
    /// Memory kept for the machine itself, subtracted from allocatable, such as "256Mi".
    #[arg(long, default_value = "0")]
    pub system_reserved_memory: String,
    /// What must stay free, as upstream's flag has it; below that the node reports pressure and gets no more pods.
    /// Signals: memory.available, nodefs.available, nodefs.inodesFree, pid.available.
    #[arg(long, default_value_t, value_name = "SIGNAL<AMOUNT|PERCENT,...")]
    pub eviction_hard: Thresholds,
    /// Address of the cluster's DNS server. Empty: pods get the machine's own resolver.
    #[arg(long, default_value = "")]
    pub cluster_dns: String,
    /// The cluster's DNS domain.
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            node_ip: "auto".to_owned(),
            data_dir: "/var/lib/weir".into(),
            run_dir: "/run/weir".into(),
            log_dir: None,
            cgroup_root: None,
            cni_plugin: None,
            max_pods: 110,
            port: 10250,
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            tls_cert_file: None,
            tls_private_key_file: None,
            client_ca_file: None,
            system_reserved_cpu: "0".to_owned(),
            system_reserved_memory: "0".to_owned(),
            eviction_hard: Thresholds::default(),
            cluster_dns: String::new(),
            cluster_domain: "cluster.local".to_owned(),
        }
    }
}

impl Config {
    /// The node's name: as configured, else the machine's.
    pub fn resolved_node_name(&self) -> Result<String> {
        if !self.node_name.is_empty() {
            return Ok(self.node_name.clone());
        }
        let host = nix::unistd::gethostname().map_err(|errno| Error::Setting {
            flag: "--node-name",
            problem: format!("the machine's host name cannot be read: {errno}"),
        })?;
        let host = host.to_string_lossy().to_lowercase();
        if host.is_empty() {
            return Err(Error::Setting {
                flag: "--node-name",
                problem: "the machine has no host name".into(),
            });
        }
        Ok(host)
    }

    /// The node's address: as configured, else found on the machine.
    pub fn resolved_node_ip(&self) -> Result<IpAddr> {
        if self.node_ip != "auto" {
            return self.node_ip.parse().map_err(|_| Error::Setting {
                flag: "--node-ip",
                problem: format!("{:?} is neither an IP address nor \"auto\"", self.node_ip),
            });
        }
        default_route_source().or_else(first_global_address).ok_or_else(|| Error::Setting {
            flag: "--node-ip",
            problem: "this machine has no default route and no global address to take".into(),
        })
    }

    /// Where container logs go.
    pub fn resolved_log_dir(&self) -> PathBuf {
        or_below(self.log_dir.as_deref(), &self.data_dir, "logs")
    }

    /// Where pods' volumes are.
    pub fn pods_dir(&self) -> PathBuf {
        self.data_dir.join("pods")
    }

    /// What the embedded runtime is told.
    pub(crate) fn runtime(&self) -> runtime::embedded::Config {
        let mut config = runtime::embedded::Config::new(&self.data_dir, &self.run_dir);
        config.cgroup_root.clone_from(&self.cgroup_root);
        if let Some(plugin) = &self.cni_plugin {
            config.cni.command = vec![plugin.clone()];
        }
        config
    }

    /// Serving certificate, key, and the authority of clients.
    pub(crate) fn tls_files(&self) -> (PathBuf, PathBuf, PathBuf) {
        (
            or_below(self.tls_cert_file.as_deref(), &self.data_dir, "pki/kubelet.crt"),
            or_below(self.tls_private_key_file.as_deref(), &self.data_dir, "pki/kubelet.key"),
            or_below(self.client_ca_file.as_deref(), &self.data_dir, "pki/ca.crt"),
        )
    }

    /// (thousandths of a CPU, bytes) kept for the machine.
    pub(crate) fn system_reserved(&self) -> Result<(i128, i64)> {
        let parse = |flag: &'static str, text: &str| {
            crate::quantity::milli(&Quantity(text.to_owned())).filter(|value| *value >= 0).ok_or_else(|| {
                Error::Setting {
                    flag,
                    problem: format!("{text:?} is no quantity such as \"200m\" or \"256Mi\""),
                }
            })
        };
        let cpu = parse("--system-reserved-cpu", &self.system_reserved_cpu)?;
        let memory = parse("--system-reserved-memory", &self.system_reserved_memory)?;
        Ok((cpu, (memory / 1000) as i64))
    }

    /// The cluster's DNS server, if there is one.
    pub(crate) fn resolved_cluster_dns(&self) -> Result<Option<IpAddr>> {
        if self.cluster_dns.is_empty() {
            return Ok(None);
        }
        self.cluster_dns.parse().map(Some).map_err(|_| Error::Setting {
            flag: "--cluster-dns",
            problem: format!("{:?} is no IP address", self.cluster_dns),
        })
    }
}

fn or_below(path: Option<&Path>, dir: &Path, name: &str) -> PathBuf {
    path.map_or_else(|| dir.join(name), Path::to_owned)
}

/// Connecting a UDP socket sends nothing, but makes the kernel choose a route and its source address. The
/// destination is one of the documentation's (RFC 5737): only a default route leads there.
fn default_route_source() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
}

/// The first address that other machines could use; interfaces that Weir itself made do not count.
fn first_global_address() -> Option<IpAddr> {
    nix::ifaddrs::getifaddrs()
        .ok()?
        .filter(|interface| !interface.interface_name.starts_with("weir"))
        .filter_map(|interface| Some(IpAddr::V4(interface.address?.as_sockaddr_in()?.ip())))
        .find(|ip| matches!(ip, IpAddr::V4(v4) if !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_setting_names_its_flag() {
        let config = Config { node_ip: "localhost".into(), ..Config::default() };
        assert!(config.resolved_node_ip().unwrap_err().to_string().contains("--node-ip"));
        let config = Config { system_reserved_cpu: "lots".into(), ..Config::default() };
        assert!(config.system_reserved().unwrap_err().to_string().contains("--system-reserved-cpu"));
        let config = Config { cluster_dns: "dns".into(), ..Config::default() };
        assert!(config.resolved_cluster_dns().unwrap_err().to_string().contains("--cluster-dns"));
    }

    #[test]
    fn empty_paths_are_below_the_data_directory() {
        let config = Config { data_dir: "/d".into(), ..Config::default() };
        assert_eq!(config.resolved_log_dir(), PathBuf::from("/d/logs"));
        assert_eq!(config.tls_files().2, PathBuf::from("/d/pki/ca.crt"));
        let config = Config { log_dir: Some("/l".into()), ..config };
        assert_eq!(config.resolved_log_dir(), PathBuf::from("/l"));
    }
}
