//! The unit's command, once as each of two instances.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        net::UnixDatagram,
    },
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::ensure;
use weir_tests::eventually;

use super::{
    Machine,
    process::{Place, Process},
    shipped,
};
use crate::deploy::manifest::capability;

/// One of those that systemd gives a `DynamicUser`.
const USER: u32 = 61_184;
/// Longer than a start takes on a busy machine.
const START: Duration = Duration::from_mins(1);
const CAP_NET_BIND_SERVICE: u64 = 1 << 10;

/// What systemd gives a `Type=notify` service to say that it is ready, and the files of the instances.
struct Notified(UnixDatagram);

impl Notified {
    fn new(machine: &Machine) -> Self {
        let (shared, runtime) = (machine.shared(), machine.shared().join("runtime"));
        fs::create_dir(&runtime).unwrap();
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)).unwrap();
        chown(&runtime, Some(USER), Some(USER)).unwrap();
        let socket = UnixDatagram::bind(shared.join("notify")).unwrap();
        fs::set_permissions(shared.join("notify"), fs::Permissions::from_mode(0o666)).unwrap();
        socket.set_read_timeout(Some(START)).unwrap();
        Self(socket)
    }

    fn is_ready(&self) {
        let mut said = [0; 64];
        let length = self.0.recv(&mut said).expect("it becomes ready");
        assert_eq!(&said[..length], b"READY=1");
    }
}

/// Stops clients when it goes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The names in the unit's filter of system calls, as systemd knows its groups.
fn calls() -> Vec<String> {
    assert_eq!(shipped::setting("SystemCallErrorNumber"), "EPERM", "as it is run here");
    // Beside those that are named, systemd always allows these.
    let mut calls = members("@default");
    for filter in shipped::settings("SystemCallFilter") {
        match filter.strip_prefix('~') {
            None => calls.extend(filter.split_whitespace().flat_map(members)),
            Some(refused) => {
                let refused: BTreeSet<String> = refused.split_whitespace().flat_map(members).collect();
                calls.retain(|call| !refused.contains(call));
            }
        }
    }
    calls.into_iter().collect()
}

fn members(name: &str) -> BTreeSet<String> {
    if !name.starts_with('@') {
        return BTreeSet::from([name.to_owned()]);
    }
    let output = Command::new("systemd-analyze").args(["syscall-filter", name]).output();
    let output = output.expect("systemd-analyze (Debian: systemd) says what the groups are");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let lines = text.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.flat_map(members).collect()
}

fn start(machine: &Machine, instance: &str, calls: &[String]) -> Process {
    let command = shipped::setting("ExecStart");
    let mut words = command.split_whitespace();
    let program = words.next().expect("a program");
    let capabilities: Vec<String> =
        shipped::setting("AmbientCapabilities").split_whitespace().map(capability).collect();
    assert_eq!(shipped::setting("CapabilityBoundingSet"), shipped::setting("AmbientCapabilities"));
    let shared = machine.shared();
    let place = Place {
        namespace: &machine.namespace,
        directory: &shared,
        program,
        args: words.map(|word| word.replace("%d", "/run/credentials")).collect(),
        env: vec![("NOTIFY_SOCKET", "/mnt/notify".to_owned())],
        id: USER,
        capabilities: &capabilities,
        is_unit: true,
        calls,
    };
    Process::start(&place, instance)
}

#[test]
fn the_unit_keeps_its_hardening() {
    for (name, value) in [
        ("Type", "notify"),
        ("DynamicUser", "yes"),
        ("RuntimeDirectory", "weir-ingress"),
        ("CapabilityBoundingSet", "CAP_NET_BIND_SERVICE"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("MemoryDenyWriteExecute", "yes"),
    ] {
        assert_eq!(shipped::setting(name), value, "{name}");
    }
    assert_eq!(shipped::settings("SystemCallFilter"), ["@system-service", "~@privileged"]);
}

#[test]
fn systemd_finds_no_fault_with_the_unit() {
    // It looks for the program, too.
    let directory = tempfile::tempdir().unwrap();
    let text = crate::deploy::manifest::text(shipped::UNIT);
    let text = text.replace("/usr/local/bin/weir", env!("CARGO_BIN_EXE_weir"));
    let paths = ["a", "b"].map(|it| directory.path().join(format!("weir-ingress@{it}.service")));
    for path in &paths {
        fs::write(path, &text).unwrap();
    }
    let verify = |paths: &[PathBuf]| {
        let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(paths).output();
        let output = output.expect("systemd-analyze (Debian: systemd) verifies units");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (succeeds, said) = verify(&paths);
    let about: Vec<&str> = said.lines().filter(|line| line.contains("weir-ingress")).collect();
    assert!(succeeds && about.is_empty(), "{said}");
    fs::write(&paths[0], text.replace("Type=notify", "Type=notifies")).unwrap();
    assert!(verify(&paths[..1]).1.contains("notifies"), "it would say so");
}

#[test]
fn one_instance_follows_the_other_and_nobody_is_refused() {
    let machine = Machine::new();
    let notified = Notified::new(&machine);
    let calls = calls();
    let mut first = start(&machine, "a", &calls);
    notified.is_ready();
    for field in ["CapEff", "CapBnd", "CapAmb"] {
        let bits = u64::from_str_radix(&first.status(field), 16).expect("a number");
        assert_eq!(bits, CAP_NET_BIND_SERVICE, "{field}");
    }
    assert_eq!((first.status("NoNewPrivs").as_str(), first.status("Seccomp").as_str()), ("1", "2"));
    let admin = 9257;
    machine.answers(200, admin, "weir", "/readyz");
    machine.answers(200, 80, "plain.example", "/");

    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut second = thread::scope(|scope| {
        // The scope waits for the clients, however the rest ends.
        let stopping = Stop(&stop);
        let clients: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        match machine.get(80, "plain.example", "/") {
                            Ok(answer) if answer.status == 200 => served.fetch_add(1, Ordering::Relaxed),
                            other => return Err(format!("{other:?}")),
                        };
                    }
                    Ok(())
                })
            })
            .collect();
        let more = |what: &str| {
            let before = served.load(Ordering::Relaxed);
            eventually(what, || {
                ensure!(served.load(Ordering::Relaxed) > before + 50, "too few");
                Ok(())
            })
        };
        let mut works = || -> anyhow::Result<Process> {
            more("the first serves")?;
            let second = start(&machine, "b", &calls);
            notified.is_ready();
            assert!(first.wait().success(), "systemd would start it again");
            more("the second serves")?;
            Ok(second)
        };
        let second = works();
        drop(stopping);
        for client in clients {
            assert_eq!(client.join().expect("no panic"), Ok(()));
        }
        second.unwrap()
    });
    machine.answers(200, admin, "weir", "/readyz");
    second.terminate();
    assert!(second.wait().success());
    let left: Vec<_> = fs::read_dir(machine.shared().join("runtime")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let refused = machine.proxy.seen().refused;
    assert!(refused.iter().all(|asked| asked.action.2 == "secrets"), "{refused:?}");
}
