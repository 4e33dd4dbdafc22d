//! Checks before anything is made: each failure is one line that names what to do.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    net::{SocketAddr, TcpListener},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use weir_dataplane::kernel::release;

use super::config::Config;

/// Capabilities that the roles need, with their bit in `/proc/self/status` (`linux/capability.h`).
const CAPABILITIES: &[(&str, u32)] =
    &[("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21), ("CAP_MKNOD", 27), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];

/// Holds the lock on the run directory for as long as it lives.
pub(super) struct Lock(#[expect(dead_code, reason = "held, not read")] Flock<File>);

/// Everything that can be known beforehand.
pub(super) fn check(config: &Config) -> Result<Lock> {
    release::require()?;
    capabilities()?;
    let lock = lock(&config.run_dir)?;
    writable(&config.data_dir)?;
    port("--api-port", SocketAddr::from(([0, 0, 0, 0], config.api_port)))?;
    port("--ingress-http", config.ingress_http)?;
    port("--ingress-https", config.ingress_https)?;
    Ok(lock)
}

fn capabilities() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .context("/proc/self/status has no CapEff line")?;
    let missing: Vec<_> =
        CAPABILITIES.iter().filter(|(_, bit)| effective >> bit & 1 == 0).map(|(name, _)| *name).collect();
    ensure!(missing.is_empty(), "missing {}: run weir up as root", missing.join(", "));
    Ok(())
}

fn lock(run_dir: &Path) -> Result<Lock> {
    fs::create_dir_all(run_dir).with_context(|| format!("--run-dir {}", run_dir.display()))?;
    let path = run_dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("--run-dir {}", run_dir.display()))?;
    let Ok(mut lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
        let owner = fs::read_to_string(&path).unwrap_or_default();
        bail!("weir up runs already on {} (process {})", run_dir.display(), owner.trim());
    };
    lock.set_len(0)?;
    writeln!(lock, "{}", std::process::id())?;
    Ok(Lock(lock))
}

fn writable(data_dir: &Path) -> Result<()> {
    fs::create_dir_all(data_dir)
        .and_then(|()| {
            let probe = data_dir.join(".writable");
            File::create(&probe)?;
            fs::remove_file(probe)
        })
        .with_context(|| format!("--data-dir {} cannot be written", data_dir.display()))
}

fn port(flag: &str, address: SocketAddr) -> Result<()> {
    TcpListener::bind(address)
        .map(drop)
        .with_context(|| format!("{flag}: {address} is taken or not allowed; choose another"))
}
