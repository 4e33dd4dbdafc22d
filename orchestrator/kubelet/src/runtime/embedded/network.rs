//! A pod's namespaces, and its address from the CNI plugin.
//!
//! Namespaces are held by bind mounts, not by a waiting process ("pause"): a process would cost a pid, memory and an
//! image per pod, could be killed, and would hold nothing that a mount does not. What only a process can hold, a
//! process-id namespace shared by a pod's containers, is therefore not offered.

use std::{
    fs::{self, File},
    net::IpAddr,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::Duration,
};

use libcontainer::network::{link::LinkClient, wrapper::create_network_client};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::sethostname,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use super::{Cni, state::SandboxRecord};
use crate::runtime::{Error, Result, SandboxSpec};

/// A plugin has this long, as in containerd's default of a generous multiple of what one needs.
const PLUGIN_LIMIT: Duration = Duration::from_secs(30);
/// The loopback interface is the first of every network namespace.
const LOOPBACK_INDEX: u32 = 1;
/// The interface's name in the pod.
pub(super) const INTERFACE: &str = "eth0";

/// Where a sandbox's namespaces are mounted.
#[derive(Debug, Clone)]
pub(super) struct Namespaces {
    /// None on the host's network.
    pub(super) net: Option<PathBuf>,
    /// None on the host's network: then the host's name is the pod's, too.
    pub(super) uts: Option<PathBuf>,
    /// None with the host's IPC.
    pub(super) ipc: Option<PathBuf>,
}

impl Namespaces {
    /// Where they belong, whether or not they are there.
    pub(super) fn of(spec: &SandboxSpec, netns: &Path, directory: &Path) -> Self {
        let own = !spec.host_network;
        Self {
            net: own.then(|| netns.to_owned()),
            uts: own.then(|| directory.join("uts")),
            ipc: (!spec.host_ipc).then(|| directory.join("ipc")),
        }
    }

    /// Makes them in a thread of its own, which enters them and ends; no other thread sees anything of it.
    pub(super) fn create(&self, spec: &SandboxSpec) -> Result<()> {
        thread::scope(|scope| scope.spawn(|| self.create_here(spec)).join()).unwrap_or_else(|_| {
            Err(Error::Invalid {
                object: "sandbox".into(),
                problem: "the thread that makes namespaces died".into(),
            })
        })
    }

    fn create_here(&self, spec: &SandboxSpec) -> Result<()> {
        let wanted = [
            (&self.net, CloneFlags::CLONE_NEWNET, "net"),
            (&self.uts, CloneFlags::CLONE_NEWUTS, "uts"),
            (&self.ipc, CloneFlags::CLONE_NEWIPC, "ipc"),
        ];
        let flags = wanted
            .iter()
            .filter(|(path, ..)| path.is_some())
            .fold(CloneFlags::empty(), |all, (_, flag, _)| all | *flag);
        unshare(flags).map_err(Error::io("make namespaces for", &spec.name))?;
        if self.uts.is_some() {
            sethostname(&spec.hostname).map_err(Error::io("set the host name of", &spec.name))?;
        }
        if self.net.is_some() {
            LinkClient::new(create_network_client())
                .and_then(|mut client| client.set_up(LOOPBACK_INDEX))
                .map_err(|e| {
                    Error::io("start the loopback interface of", &spec.name)(std::io::Error::other(e))
                })?;
        }
        for (name, value) in &spec.sysctls {
            self.sysctl(name, value)?;
        }
        for (path, _, name) in wanted {
            let Some(path) = path else { continue };
            File::create(path).map_err(Error::io("create", path))?;
            let source = Path::new("/proc/thread-self/ns").join(name);
            mount(Some(&source), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(Error::io("mount a namespace on", path))?;
        }
        Ok(())
    }

    /// Sets what belongs to one of the namespaces, and nothing that belongs to the machine.
    fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let of_net = name.starts_with("net.");
        let of_ipc =
            ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."].iter().any(|p| name.starts_with(p));
        if !(of_net && self.net.is_some() || of_ipc && self.ipc.is_some()) || name.contains("..") {
            return Err(Error::Invalid {
                object: format!("sysctl \"{name}\""),
                problem: "it is not one of this pod's own namespaces; net.* and the IPC ones are".into(),
            });
        }
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::write(&path, value).map_err(Error::io("write to", path))
    }

    /// Lets go of them; they end when the last process in them has.
    pub(super) fn remove(&self) -> Result<()> {
        [&self.net, &self.uts, &self.ipc].into_iter().flatten().try_for_each(|path| unmount(path, true))
    }
}

/// Unmounts, and removes the mount point if it is a file made for it. Nothing there is success.
pub(super) fn unmount(path: &Path, remove: bool) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(errno) => return Err(Error::io("unmount", path)(errno)),
    }
    match fs::remove_file(path) {
        Err(e) if remove && e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// A successful answer to ADD, of the parts that are needed here.
#[derive(Deserialize)]
struct Added {
    #[serde(default)]
    ips: Vec<AddedIp>,
}

#[derive(Deserialize)]
struct AddedIp {
    address: String,
}

/// A plugin's error (CNI specification, "Error").
#[derive(Deserialize)]
struct Refused {
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl Cni {
    /// Connects a sandbox. Returns its addresses and the whole result, which DEL wants to see again.
    pub(super) async fn add(&self, sandbox: &SandboxRecord) -> Result<(Vec<IpAddr>, Value)> {
        let output = self.call("ADD", sandbox, self.config.clone()).await?;
        let refuse = |reason: String| self.failed("ADD", sandbox, reason);
        let result: Value =
            serde_json::from_slice(&output).map_err(|e| refuse(format!("its answer is not JSON ({e})")))?;
        let added =
            Added::deserialize(&result).map_err(|e| refuse(format!("its answer is no result ({e})")))?;
        let address = |ip: AddedIp| {
            let text = ip.address.split('/').next().unwrap_or_default();
            text.parse().map_err(|_| refuse(format!("its answer has the address \"{}\"", ip.address)))
        };
        let ips = added.ips.into_iter().map(address).collect::<Result<Vec<IpAddr>>>()?;
        if ips.is_empty() { Err(refuse("its answer has no address".into())) } else { Ok((ips, result)) }
    }

    /// Disconnects a sandbox; succeeds if it is not connected.
    pub(super) async fn del(&self, sandbox: &SandboxRecord) -> Result<()> {
        let mut config = sandbox.cni_config.clone().unwrap_or_else(|| self.config.clone());
        if let (Some(config), Some(result)) = (config.as_object_mut(), &sandbox.cni_result) {
            config.insert("prevResult".into(), result.clone());
        }
        self.call("DEL", sandbox, config).await.map(drop)
    }

    /// The configuration with this node's pod addresses.
    pub(super) fn set_pod_cidr(&mut self, cidr: &str) {
        if let Some(config) = self.config.as_object_mut() {
            config.insert("podCIDR".into(), json!(cidr));
        }
    }

    async fn call(&self, command: &'static str, sandbox: &SandboxRecord, config: Value) -> Result<Vec<u8>> {
        let failed = |reason: String| self.failed(command, sandbox, reason);
        let Some((program, args)) = self.command.split_first() else {
            return Err(failed("no plugin is configured".into()));
        };
        let spec = &sandbox.spec;
        let mut child = Command::new(program)
            .args(args)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", sandbox.id.as_str())
            .env("CNI_NETNS", &sandbox.netns)
            .env("CNI_IFNAME", INTERFACE)
            .env(
                "CNI_ARGS",
                format!(
                    "K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={}",
                    spec.namespace, spec.name, spec.uid
                ),
            )
            .env("CNI_PATH", program.parent().unwrap_or(Path::new("/")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(format!("cannot run it: {e}")))?;
        let mut stdin = child.stdin.take();
        let exchange = async {
            if let Some(stdin) = &mut stdin {
                stdin.write_all(config.to_string().as_bytes()).await.ok();
            }
            drop(stdin);
            child.wait_with_output().await
        };
        let output = timeout(PLUGIN_LIMIT, exchange)
            .await
            .map_err(|_| failed(format!("no answer after {} s", PLUGIN_LIMIT.as_secs())))?
            .map_err(|e| failed(e.to_string()))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let reason = match serde_json::from_slice::<Refused>(&output.stdout) {
            Ok(error) if error.details.is_empty() => error.msg,
            Ok(error) => format!("{}: {}", error.msg, error.details),
            Err(_) => {
                let text = String::from_utf8_lossy(&output.stderr);
                format!("{}: {}", output.status, text.trim().lines().last().unwrap_or_default())
            }
        };
        Err(failed(reason))
    }

    fn failed(&self, command: &'static str, sandbox: &SandboxRecord, reason: String) -> Error {
        let plugin = self.command.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        Error::Cni { command, plugin, sandbox: sandbox.id.to_string(), reason }
    }
}
