//! Checks before anything is made: each failure is one line that names what to do, and leaves nothing.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use nix::{
    net::if_::if_nametoindex,
    sys::statfs::{CGROUP2_SUPER_MAGIC, statfs},
};
use weir_dataplane::{Uplinks, kernel::release};

use super::{
    config::Config,
    lock::{Lock, Traces},
    roles,
};

/// Capabilities that the roles need, with their bit in `/proc/self/status` (`linux/capability.h`).
const CAPABILITIES: &[(&str, u32)] =
    &[("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21), ("CAP_MKNOD", 27), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];

/// Everything that can be known beforehand. The lock is held for as long as it lives; dropped before
/// [`Lock::begin`], it takes along what was made here.
pub(super) fn check(config: &Config) -> Result<Lock> {
    release::require()?;
    capabilities(&fs::read_to_string("/proc/self/status")?)?;
    uplinks(&config.uplink)?;
    let mut lock = Lock::take(&config.run_dir)?;
    writable(&config.data_dir, lock.traces())?;
    if let Some(root) = config.cgroup_root.path() {
        cgroup(root, lock.traces())?;
    }
    let mut ports = Ports::default();
    ports.claim("--api-port", SocketAddr::from(([0, 0, 0, 0], config.api_port)))?;
    ports.claim("--ingress-http", config.ingress_http)?;
    ports.claim("--ingress-https", config.ingress_https)?;
    ports.fixed("kubelet", SocketAddr::from(([0, 0, 0, 0], roles::KUBELET_PORT)))?;
    for (role, port) in roles::METRICS_PORTS {
        ports.fixed(role, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    }
    Ok(lock)
}

fn capabilities(status: &str) -> Result<()> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .context("/proc/self/status has no CapEff line")?;
    let missing: Vec<_> =
        CAPABILITIES.iter().filter(|(_, bit)| effective >> bit & 1 == 0).map(|(name, _)| *name).collect();
    ensure!(
        missing.is_empty(),
        "missing {}: run weir up as root, in a container or unit that keeps these capabilities",
        missing.join(", ")
    );
    Ok(())
}

fn uplinks(uplinks: &Uplinks) -> Result<()> {
    let Uplinks::Named(names) = uplinks else { return Ok(()) };
    for name in names {
        if_nametoindex(name.as_str())
            .with_context(|| format!("--uplink {name} is no interface: choose one that ip link shows"))?;
    }
    Ok(())
}

fn writable(data_dir: &Path, traces: &mut Traces) -> Result<()> {
    let probe = data_dir.join(".writable");
    let written = traces.make_dir(data_dir).and_then(|()| {
        File::create(&probe)?;
        fs::remove_file(&probe)
    });
    written.map_err(|error| refusal("--data-dir", data_dir, error))
}

fn cgroup(root: &Path, traces: &mut Traces) -> Result<()> {
    traces.make_dir(root).map_err(|error| refusal("--cgroup-root", root, error))?;
    ensure!(
        statfs(root)?.filesystem_type() == CGROUP2_SUPER_MAGIC,
        "--cgroup-root {} is on no cgroup2 mount: choose a directory on one (see /proc/mounts)",
        root.display()
    );
    Ok(())
}

/// Why a directory cannot serve, with the flag that names another.
pub(super) fn refusal(flag: &str, dir: &Path, error: io::Error) -> anyhow::Error {
    let why = match error.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => "is no directory",
        _ => "cannot be written",
    };
    anyhow::Error::new(error).context(format!("{flag} {} {why}: choose another", dir.display()))
}

/// The ports that are known to be free. Each is held until all are, so that no two settings name the same.
#[derive(Default)]
struct Ports(Vec<TcpListener>);

impl Ports {
    fn claim(&mut self, flag: &str, address: SocketAddr) -> Result<()> {
        self.bind(address).with_context(|| format!("{flag}: {address} cannot be served: choose another"))
    }

    /// A port that no flag moves.
    fn fixed(&mut self, role: &str, address: SocketAddr) -> Result<()> {
        self.bind(address).with_context(|| {
            format!("{address}, where the {role} answers, cannot be served: end what listens there")
        })
    }

    fn bind(&mut self, address: SocketAddr) -> io::Result<()> {
        self.0.push(TcpListener::bind(address)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert!(capabilities("CapEff:\t000001ffffffffff\n").is_ok());
        let error = capabilities("CapEff:\t0000007fffffefff\n").unwrap_err().to_string();
        assert!(error.contains("missing CAP_NET_ADMIN, CAP_BPF: "), "{error}");
    }

    #[test]
    fn an_uplink_that_is_not_there_is_named() {
        assert!(uplinks(&Uplinks::Auto).is_ok());
        assert!(uplinks(&Uplinks::Named(vec!["lo".into()])).is_ok());
        let error = uplinks(&Uplinks::Named(vec!["lo".into(), "no-such0".into()])).unwrap_err();
        assert!(error.to_string().starts_with("--uplink no-such0 "), "{error}");
    }

    #[test]
    fn two_settings_cannot_name_one_port() -> Result<()> {
        let mut ports = Ports::default();
        ports.claim("--ingress-http", SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let taken = ports.0[0].local_addr()?;
        let error = format!("{:#}", ports.claim("--ingress-https", taken).unwrap_err());
        assert!(error.starts_with(&format!("--ingress-https: {taken} cannot be served: ")), "{error}");
        Ok(())
    }
}
