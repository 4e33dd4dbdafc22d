//! The OCI runtime configuration (`config.json`) of a container: pure, from values to a document.
//!
//! Defaults (mounts, devices, masked and read-only paths, capabilities) are containerd's. What is not there: seccomp
//! profiles, because libseccomp is a C library that a bare machine does not have, and `AppArmor` profiles.

use std::path::Path;

use serde_json::{Value, json};

use super::{network::Namespaces, rootfs::Identity};
use crate::runtime::{
    Capabilities, ContainerSpec, Error, ImageConfig, Mount, Propagation, Resources, Result, SandboxSpec,
};

/// Processes and threads of a container that has no bound of its own: far above what a service needs, far below
/// what a fork bomb needs to take the machine down.
const DEFAULT_PIDS_LIMIT: i64 = 4096;
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// All capabilities, by number.
const ALL_CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// What a container has without asking.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];
const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Files of the sandbox that its containers share, and where they belong.
const SANDBOX_FILES: [(&str, &str); 3] =
    [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")];

/// What a container's configuration is made of.
pub(super) struct Input<'a> {
    pub(super) spec: &'a ContainerSpec,
    pub(super) image: &'a ImageConfig,
    pub(super) identity: &'a Identity,
    pub(super) sandbox: &'a SandboxSpec,
    /// The sandbox's directory.
    pub(super) sandbox_dir: &'a Path,
    pub(super) namespaces: &'a Namespaces,
    pub(super) cgroup: &'a Path,
    pub(super) machine: &'a Machine,
}

/// What this machine has to give.
#[derive(Debug, Clone, Default)]
pub(super) struct Machine {
    /// This process's bounding set, as a bit mask: a container cannot get more.
    pub(super) capabilities: u64,
    /// Whether the device controller of cgroup v1 keeps containers from devices. Without it, making device nodes
    /// would be a way to them, so that capability is then not a default.
    pub(super) device_controller: bool,
    /// Whether swap can be bound, for memory limits to mean memory and swap.
    pub(super) swap_limit: bool,
    /// Device nodes for privileged containers.
    pub(super) devices: Vec<Value>,
}

/// The document.
pub(super) fn build(input: &Input<'_>) -> Result<Value> {
    let spec = input.spec;
    let privileged = spec.privileged;
    let mut linux = json!({
        "cgroupsPath": Path::new("/").join(input.cgroup),
        "namespaces": namespaces(input),
        "resources": resources(&spec.resources, privileged, input.machine),
        "devices": if privileged { input.machine.devices.as_slice() } else { &[] },
        "maskedPaths": if privileged { &[][..] } else { &MASKED_PATHS[..] },
        "readonlyPaths": if privileged { &[][..] } else { &READ_ONLY_PATHS[..] },
    });
    if let Some(propagation) = root_propagation(&spec.mounts) {
        linux["rootfsPropagation"] = json!(propagation);
    }
    Ok(json!({
        "ociVersion": "1.2.0",
        "root": { "path": "rootfs", "readonly": spec.read_only_rootfs },
        "process": process(input)?,
        "mounts": mounts(input),
        "linux": linux,
    }))
}

/// The command line, by the rules of `command` and `args` in a pod.
pub(super) fn command_line(spec: &ContainerSpec, image: &ImageConfig) -> Vec<String> {
    match (spec.command.is_empty(), spec.args.is_empty()) {
        (false, _) => [&spec.command[..], &spec.args[..]].concat(),
        (true, false) => [&image.entrypoint[..], &spec.args[..]].concat(),
        (true, true) => [&image.entrypoint[..], &image.cmd[..]].concat(),
    }
}

/// The working directory.
pub(super) fn working_dir<'a>(spec: &'a ContainerSpec, image: &'a ImageConfig) -> &'a str {
    let given = spec.working_dir.as_deref().filter(|path| !path.is_empty());
    given.or(Some(image.working_dir.as_str()).filter(|path| !path.is_empty())).unwrap_or("/")
}

fn process(input: &Input<'_>) -> Result<Value> {
    let spec = input.spec;
    let invalid =
        |problem: String| Error::Invalid { object: format!("container \"{}\"", spec.name), problem };
    if spec.tty {
        return Err(invalid(
            "tty: true needs a terminal, which this runtime does not give; leave tty out".into(),
        ));
    }
    let args = command_line(spec, input.image);
    if args.first().is_none_or(String::is_empty) {
        return Err(invalid("neither the container nor its image has a command; set command".into()));
    }
    let cwd = working_dir(spec, input.image);
    if !cwd.starts_with('/') {
        return Err(invalid(format!("its working directory \"{cwd}\" is not an absolute path")));
    }
    let names = capabilities(&spec.capabilities, spec.privileged, input.machine).map_err(invalid)?;
    Ok(json!({
        "args": args,
        "cwd": cwd,
        "env": environment(input),
        "user": { "uid": input.identity.uid, "gid": input.identity.gid, "additionalGids": input.identity.groups },
        "capabilities": { "bounding": names, "effective": names, "permitted": names },
        "noNewPrivileges": spec.no_new_privileges,
    }))
}

/// The image's, then the pod's; of one name the last wins.
fn environment(input: &Input<'_>) -> Vec<String> {
    let mut variables: Vec<String> =
        vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", input.sandbox.hostname)];
    let own = input.spec.env.iter().map(|(name, value)| format!("{name}={value}"));
    for variable in input.image.env.iter().cloned().chain(own) {
        let name = variable.split('=').next().unwrap_or_default();
        variables.retain(|other| other.split('=').next() != Some(name));
        variables.push(variable);
    }
    variables
}

fn capabilities(changes: &Capabilities, privileged: bool, machine: &Machine) -> Result<Vec<String>, String> {
    let plain = |name: &String| {
        let upper = name.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned();
        if name == "ALL" || ALL_CAPABILITIES.contains(&name.as_str()) {
            Ok(name)
        } else {
            Err(format!("\"{name}\" is not a capability; write it like NET_ADMIN"))
        }
    };
    let add = changes.add.iter().map(plain).collect::<Result<Vec<_>, _>>()?;
    let drop = changes.drop.iter().map(plain).collect::<Result<Vec<_>, _>>()?;
    let named = |list: &[String], name: &str| list.iter().any(|other| other == name);
    let by_default =
        |name: &str| DEFAULT_CAPABILITIES.contains(&name) && (name != "MKNOD" || machine.device_controller);
    let wanted = ALL_CAPABILITIES.iter().enumerate().filter(|&(number, &name)| {
        let kept = by_default(name) && !named(&drop, "ALL") && !named(&drop, name);
        let added = named(&add, name) || named(&add, "ALL") && !named(&drop, name);
        (privileged || kept || added) && machine.capabilities >> number & 1 == 1
    });
    Ok(wanted.map(|(_, name)| format!("CAP_{name}")).collect())
}

fn namespaces(input: &Input<'_>) -> Vec<Value> {
    let own = input.namespaces;
    let shared = [("network", &own.net), ("uts", &own.uts), ("ipc", &own.ipc)];
    let shared =
        shared.into_iter().filter_map(|(kind, path)| Some(json!({ "type": kind, "path": path.as_ref()? })));
    let mut all = vec![json!({ "type": "mount" }), json!({ "type": "cgroup" })];
    if !input.sandbox.host_pid {
        all.push(json!({ "type": "pid" }));
    }
    all.into_iter().chain(shared).collect()
}

fn resources(resources: &Resources, privileged: bool, machine: &Machine) -> Value {
    let mut all = json!({
        "devices": [{ "allow": privileged, "access": "rwm" }],
        "pids": { "limit": resources.pids_limit.unwrap_or(DEFAULT_PIDS_LIMIT) },
    });
    if let Some(limit) = resources.memory_limit_bytes {
        all["memory"] = if machine.swap_limit {
            json!({ "limit": limit, "swap": limit })
        } else {
            json!({ "limit": limit })
        };
    }
    let mut cpu = serde_json::Map::new();
    if let Some(shares) = resources.cpu_shares {
        cpu.insert("shares".into(), json!(shares));
    }
    if let Some(quota) = resources.cpu_quota_us {
        cpu.insert("quota".into(), json!(quota));
        cpu.insert("period".into(), json!(resources.cpu_period_us.unwrap_or(100_000)));
    }
    if !cpu.is_empty() {
        all["cpu"] = Value::Object(cpu);
    }
    all
}

fn mounts(input: &Input<'_>) -> Vec<Value> {
    let access = if input.spec.privileged { "rw" } else { "ro" };
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let mut all = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
    ];
    let shm =
        if input.sandbox.host_ipc { Path::new("/dev/shm").to_owned() } else { input.sandbox_dir.join("shm") };
    all.push(bind(&shm, Path::new("/dev/shm"), false, Propagation::Private));
    for (file, destination) in SANDBOX_FILES {
        if !input.spec.mounts.iter().any(|mount| mount.container_path == Path::new(destination)) {
            all.push(bind(
                &input.sandbox_dir.join(file),
                Path::new(destination),
                false,
                Propagation::Private,
            ));
        }
    }
    // A mount inside another must come after it.
    let mut volumes: Vec<&Mount> = input.spec.mounts.iter().collect();
    volumes.sort_by_key(|mount| mount.container_path.components().count());
    all.extend(volumes.iter().map(|m| bind(&m.host_path, &m.container_path, m.read_only, m.propagation)));
    all
}

fn bind(source: &Path, destination: &Path, read_only: bool, propagation: Propagation) -> Value {
    let propagation = match propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = if read_only { "ro" } else { "rw" };
    json!({ "destination": destination, "type": "bind", "source": source, "options": ["rbind", propagation, access] })
}

fn root_propagation(mounts: &[Mount]) -> Option<&'static str> {
    let has = |propagation| mounts.iter().any(|mount| mount.propagation == propagation);
    match (has(Propagation::Bidirectional), has(Propagation::HostToContainer)) {
        (true, _) => Some("rshared"),
        (false, true) => Some("rslave"),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine =
        Machine { capabilities: u64::MAX, device_controller: true, swap_limit: true, devices: Vec::new() };

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn command_lines_follow_the_table_of_the_pod_documentation() {
        let image =
            ImageConfig { entrypoint: words(&["/ep"]), cmd: words(&["foo"]), ..ImageConfig::default() };
        for (command, args, expected) in [
            (&[][..], &[][..], &["/ep", "foo"][..]),
            (&["/cmd"], &[], &["/cmd"]),
            (&[], &["arg"], &["/ep", "arg"]),
            (&["/cmd"], &["arg"], &["/cmd", "arg"]),
        ] {
            let spec =
                ContainerSpec { command: words(command), args: words(args), ..ContainerSpec::default() };
            assert_eq!(command_line(&spec, &image), words(expected));
        }
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let with = |add: &[&str], drop: &[&str], privileged| {
            let changes = Capabilities { add: words(add), drop: words(drop) };
            capabilities(&changes, privileged, &MACHINE)
        };
        assert_eq!(with(&[], &[], false).expect("a set").len(), DEFAULT_CAPABILITIES.len());
        assert_eq!(with(&[], &["ALL"], false).expect("a set"), Vec::<String>::new());
        assert_eq!(with(&["net_admin"], &["ALL"], false).expect("a set"), ["CAP_NET_ADMIN"]);
        assert_eq!(with(&["ALL"], &["CAP_KILL"], false).expect("a set").len(), ALL_CAPABILITIES.len() - 1);
        assert_eq!(with(&[], &[], true).expect("a set").len(), ALL_CAPABILITIES.len());
        assert!(with(&["FLY"], &[], false).expect_err("no such capability").contains("FLY"));
    }

    #[test]
    fn what_the_machine_lacks_is_not_asked_for() {
        let machine = Machine { capabilities: !(1 << 24), device_controller: false, ..MACHINE };
        let all = capabilities(&Capabilities::default(), true, &machine).expect("a set");
        assert!(!all.contains(&"CAP_SYS_RESOURCE".to_owned()));
        let default = capabilities(&Capabilities::default(), false, &machine).expect("a set");
        assert!(!default.contains(&"CAP_MKNOD".to_owned()), "nothing would keep it from devices");
    }

    #[test]
    fn the_document_is_what_the_library_reads() {
        let spec = ContainerSpec {
            name: "c".into(),
            command: words(&["/bin/true"]),
            env: vec![("A".into(), "pod".into())],
            mounts: vec![Mount {
                container_path: "/etc/hosts".into(),
                host_path: "/h".into(),
                ..Mount::default()
            }],
            resources: Resources {
                memory_limit_bytes: Some(1 << 20),
                cpu_quota_us: Some(50_000),
                ..Resources::default()
            },
            ..ContainerSpec::default()
        };
        let sandbox = SandboxSpec { hostname: "web-0".into(), ..SandboxSpec::default() };
        let image = ImageConfig { env: words(&["A=image", "PATH=/bin"]), ..ImageConfig::default() };
        let identity = Identity { uid: 1, gid: 2, groups: vec![3] };
        let namespaces = Namespaces { net: Some("/n".into()), uts: None, ipc: None };
        let input = Input {
            spec: &spec,
            image: &image,
            identity: &identity,
            sandbox: &sandbox,
            sandbox_dir: Path::new("/s"),
            namespaces: &namespaces,
            cgroup: Path::new("weir/podu/c"),
            machine: &MACHINE,
        };
        let document = build(&input).expect("a document");
        let parsed: oci_spec::runtime::Spec = serde_json::from_value(document.clone()).expect("OCI's form");
        let process = parsed.process().clone().expect("a process");
        assert_eq!(
            process.env().clone().expect("variables"),
            words(&["HOSTNAME=web-0", "PATH=/bin", "A=pod"])
        );
        let hosts: Vec<_> = parsed
            .mounts()
            .iter()
            .flatten()
            .filter(|mount| mount.destination() == Path::new("/etc/hosts"))
            .collect();
        assert_eq!(hosts.len(), 1, "the pod's own file replaces the sandbox's");
        assert_eq!(document["linux"]["cgroupsPath"], "/weir/podu/c");
        assert_eq!(document["linux"]["resources"]["cpu"]["period"], 100_000);
    }
}
