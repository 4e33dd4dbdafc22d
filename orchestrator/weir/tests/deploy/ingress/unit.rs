//! The unit under a real systemd: its sandbox, its two instances, its end.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use anyhow::ensure;
use weir_tests::{Leftovers, Namespace, eventually};

use super::{Machine, say_hello};
use crate::deploy::{manifest, systemd::Systemd};

const ADMIN: u16 = 9257;
const CAP_NET_BIND_SERVICE: &str = "0000000000000400";
/// What systemd may number a `DynamicUser`.
const DYNAMIC: std::ops::RangeInclusive<u32> = 61_184..=65_519;
/// What `systemd-analyze security` may find exposed, in tenths; measured with systemd 252. Most of it is what an ingress is:
/// Internet sockets, the machine's network, a capability for its ports, its limit on open files.
const EXPOSED: u32 = 17;

/// What every user may do, and nobody in the sandbox, with the setting that it shows. Perl is what every Debian has to call the
/// system by.
const ATTEMPTS: &[(&str, &str)] = &[
    ("RestrictAddressFamilies", "perl -e 'socket(my $netlink, 16, 3, 0) or exit 1'"),
    ("RestrictNamespaces", "unshare --user true"),
    ("LockPersonality", "setarch --uname-2.6 true"),
    ("MemoryDenyWriteExecute", "perl -e 'exit(syscall(MMAP, 0, 4096, 7, 34, -1, 0) == -1)'"),
    ("SystemCallFilter", "touch /tmp/own && chown $(id -u) /tmp/own"),
    ("ProtectProc", "test -e /proc/1"),
    ("ProtectHome", "ls /home"),
    ("PrivateDevices", "test -e /dev/extra"),
    ("UMask", "test $(umask) != 0077"),
    // Also by DynamicUser.
    ("RestrictSUIDSGID", "touch /tmp/program && chmod u+s /tmp/program"),
    ("PrivateTmp", "test -e /tmp/others"),
];
/// The number of mmap(2).
const MMAP: &str = if cfg!(target_arch = "x86_64") { "9" } else { "222" };

fn boot(machine: &Machine) -> Systemd {
    let kubeconfig = machine.shared().join("kubeconfig");
    Systemd::boot(&machine.namespace, &[(&kubeconfig, "/etc/weir/ingress.kubeconfig")])
}

/// How an instance is, and how it was before if it has ended.
fn state(systemd: &Systemd, instance: &str) -> [String; 4] {
    let unit = format!("weir-ingress@{instance}");
    ["ActiveState", "SubState", "Result", "NRestarts"].map(|name| systemd.property(&unit, name))
}

const RUNS: [&str; 4] = ["active", "running", "success", "0"];
const ENDED: [&str; 4] = ["inactive", "dead", "success", "0"];

/// A field of the `/proc/PID/status` of an instance.
fn status(systemd: &Systemd, instance: &str, field: &str) -> String {
    let process = systemd.property(&format!("weir-ingress@{instance}"), "MainPID");
    let status = systemd.run("cat", &format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.expect("a status has it").trim().to_owned()
}

/// Stops clients when it goes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Clients ask all the time while `work` is done, and nobody is refused. It is given what waits for the next answers.
fn while_clients_ask(machine: &Machine, work: impl FnOnce(&dyn Fn())) {
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
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
        work(&|| {
            let before = served.load(Ordering::Relaxed);
            eventually("clients are served", || {
                ensure!(served.load(Ordering::Relaxed) > before + 50, "too few");
                Ok(())
            })
            .unwrap();
        });
        drop(stopping);
        for client in clients {
            assert_eq!(client.join().expect("no panic"), Ok(()));
        }
    });
}

#[test]
fn it_is_not_killed_before_it_has_drained() {
    let setting = |name: &str| manifest::setting_of("systemd/weir-ingress@.service", name);
    let command = setting("ExecStart");
    let drain =
        command.split_whitespace().find_map(|word| word.strip_prefix("--drain-timeout=")?.strip_suffix('s'));
    let [drain, stop] =
        [drain.expect("seconds"), &setting("TimeoutStopSec")].map(|it| it.parse::<u32>().unwrap());
    assert!(stop > drain, "{stop} is not above {drain}");
}

#[test]
fn systemd_finds_no_fault_with_the_units() {
    let namespace = Namespace::new().expect("this needs root");
    let systemd = Systemd::boot(&namespace, &[]);
    let mark = systemd.mark().to_owned();
    let before = Leftovers::picture(&mark, &namespace).unwrap();
    let units = "weir-ingress@a.service weir-ingress@b.service weir-dataplane.service run-weir-bpf.mount";
    assert_eq!(systemd.run("systemd-analyze", &format!("verify --man=no {units}")).unwrap(), "");
    let faulty = "/run/faulty.service";
    systemd.write(faulty, "[Service]\nType=notifies\nExecStart=/bin/true\n").unwrap();
    let said = systemd.run("systemd-analyze", &format!("verify --man=no {faulty}"));
    assert!(format!("{said:?}").contains("notifies"), "it would say so");
    let security =
        format!("security --offline=true --threshold={EXPOSED} /etc/systemd/system/weir-ingress@.service");
    systemd.run("systemd-analyze", &security).unwrap();

    drop(systemd);
    let after = Leftovers::picture(&mark, &namespace).unwrap();
    let gone = before.since(&after);
    assert!(gone.iter().any(|it| it.starts_with("cgroup ")), "they were there: {gone:?}");
    let left = Leftovers::picture(&mark, &Namespace::new().unwrap()).unwrap();
    assert_eq!(after.since(&left), Vec::<String>::new());
}

#[test]
fn the_unit_is_active_once_it_serves_and_has_nothing_but_its_ports() {
    let machine = Machine::new();
    let systemd = boot(&machine);
    // Not before it knows what it routes by.
    machine.proxy.set_open(false);
    systemd.systemctl("start --no-block weir-ingress@a").unwrap();
    machine.answers(503, ADMIN, "weir", "/readyz");
    assert_eq!(state(&systemd, "a")[..2], ["activating", "start"]);
    machine.proxy.set_open(true);
    systemd.systemctl("start weir-ingress@a").unwrap();
    assert_eq!(state(&systemd, "a"), RUNS);
    assert_eq!(machine.get(ADMIN, "weir", "/readyz").unwrap().status, 200);
    machine.answers(200, 80, "plain.example", "/");
    assert_eq!(machine.get_tls(None).unwrap(), "hello");

    let user = status(&systemd, "a", "Uid");
    let user = user.split_whitespace().next().expect("a user");
    assert!(DYNAMIC.contains(&user.parse().expect("a number")), "{user}");
    for field in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(&systemd, "a", field), CAP_NET_BIND_SERVICE, "{field}");
    }
    for (field, wanted) in [("NoNewPrivs", "1"), ("Seccomp", "2"), ("Groups", user)] {
        assert_eq!(status(&systemd, "a", field), wanted, "{field}");
    }
    // Its file system is shut for root, too.
    let process = systemd.property("weir-ingress@a", "MainPID");
    for place in ["/etc/weir/new", "/usr/local/bin/new", "/sys/fs/cgroup/new"] {
        let refused =
            systemd.run("nsenter", &format!("--target {process} --mount mkdir {place}")).unwrap_err();
        assert!(refused.to_string().contains("Read-only file system"), "{refused}");
        systemd.run("mkdir", place).expect("elsewhere it is open");
    }
    let refused = machine.proxy.seen().refused;
    assert!(refused.iter().all(|asked| asked.action.2 == "secrets"), "{refused:?}");
}

#[test]
fn a_program_in_the_units_sandbox_is_refused_what_others_may() {
    let namespace = Namespace::new().expect("this needs root");
    let kubeconfig = tempfile::NamedTempFile::new().unwrap();
    let systemd = Systemd::boot(&namespace, &[(kubeconfig.path(), "/etc/weir/ingress.kubeconfig")]);
    let tries: Vec<String> = ATTEMPTS
        .iter()
        .map(|(_, attempt)| attempt.replace("MMAP", MMAP))
        .map(|attempt| format!("if {attempt} > /dev/null 2>&1; then echo did; else echo failed; fi\n"))
        .collect();
    systemd.write("/usr/local/bin/attempt", &tries.concat()).unwrap();
    systemd.write("/tmp/others", "").unwrap();
    systemd.run("mknod", "/dev/extra c 1 3").unwrap();
    let free = "--reuid 65532 --regid 65532 --clear-groups sh /usr/local/bin/attempt";
    let free = systemd.run("setpriv", free).unwrap();
    assert_eq!(free.lines().collect::<Vec<_>>(), vec!["did"; ATTEMPTS.len()]);
    systemd.run("rm", "/tmp/program /tmp/own").unwrap();

    let changed = "[Service]\nType=oneshot\nRestart=no\nExecStart=\nExecStart=/bin/sh /usr/local/bin/attempt\n\
                   StandardOutput=truncate:/run/attempted\n";
    systemd.write("/etc/systemd/system/weir-ingress@.service.d/attempt.conf", changed).unwrap();
    systemd.systemctl("daemon-reload").unwrap();
    systemd.systemctl("start weir-ingress@attempt").unwrap();
    let shut = systemd.run("cat", "/run/attempted").unwrap();
    let allowed: Vec<_> = shut.lines().zip(ATTEMPTS).filter(|(result, _)| *result != "failed").collect();
    assert_eq!((shut.lines().count(), allowed), (ATTEMPTS.len(), vec![]));
}

#[test]
fn one_instance_follows_the_other_and_nobody_is_refused() {
    let machine = Machine::new();
    let systemd = boot(&machine);
    systemd.systemctl("enable --now weir-ingress@a").unwrap();
    while_clients_ask(&machine, |more| {
        more();
        // As the unit says it.
        systemd.systemctl("start weir-ingress@b").unwrap();
        systemd.systemctl("disable weir-ingress@a").unwrap();
        systemd.systemctl("enable weir-ingress@b").unwrap();
        eventually("the first ends, and stays ended", || {
            let first = state(&systemd, "a");
            ensure!(first == ENDED, "{first:?}");
            Ok(())
        })
        .unwrap();
        more();
        // And back.
        systemd.systemctl("start weir-ingress@a").unwrap();
        more();
    });
    assert_eq!(state(&systemd, "a"), RUNS);
    let enabled = ["a", "b"].map(|it| systemd.property(&format!("weir-ingress@{it}"), "UnitFileState"));
    assert_eq!(enabled, ["disabled", "enabled"]);
    eventually("the second ends", || {
        let second = state(&systemd, "b");
        ensure!(second == ENDED, "{second:?}");
        Ok(())
    })
    .unwrap();
    machine.answers(200, ADMIN, "weir", "/readyz");
}

#[test]
fn it_is_tried_again_until_it_can_start() {
    let machine = Machine::new();
    let systemd = Systemd::boot(&machine.namespace, &[]);
    // As on a machine whose kubeconfig comes later.
    systemd.systemctl("start weir-ingress@a").unwrap_err();
    eventually("more starts than systemd allows by itself", || {
        let [_, sub, _, restarts] = state(&systemd, "a");
        ensure!(sub == "auto-restart" && restarts.parse::<u32>()? > 5, "{sub} after {restarts}");
        Ok(())
    })
    .unwrap();
    let kubeconfig = fs::read_to_string(machine.shared().join("kubeconfig")).unwrap();
    systemd.write("/etc/weir/ingress.kubeconfig", &kubeconfig).unwrap();
    machine.answers(200, 80, "plain.example", "/");
}

#[test]
fn a_crash_is_followed_by_another_start_and_a_stop_by_a_drain() {
    let machine = Machine::new();
    let systemd = boot(&machine);
    systemd.systemctl("start weir-ingress@a").unwrap();
    systemd.systemctl("kill --signal=KILL weir-ingress@a").unwrap();
    let again = ["active", "running", "success", "1"];
    eventually("it is started again", || {
        let now = state(&systemd, "a");
        ensure!(now == again, "{now:?}");
        Ok(())
    })
    .unwrap();
    machine.answers(200, 80, "plain.example", "/");

    let held = thread::scope(|scope| {
        let client = scope.spawn(|| machine.get_held(80));
        let mut waits = machine.backend.held();
        systemd.systemctl("stop --no-block weir-ingress@a").unwrap();
        eventually("it takes no more", || {
            ensure!(machine.get(80, "plain.example", "/").is_err(), "it does");
            Ok(())
        })
        .unwrap();
        assert_eq!(state(&systemd, "a")[..2], ["deactivating", "stop-sigterm"]);
        say_hello(&mut waits).unwrap();
        client.join().expect("no panic").unwrap()
    });
    assert_eq!((held.status, held.body.as_str()), (200, "hello"));
    systemd.systemctl("stop weir-ingress@a").unwrap();
    let [active, sub, result, _] = state(&systemd, "a");
    assert_eq!([active, sub, result], ["inactive", "dead", "success"]);
    assert_eq!(systemd.run("ls", "-A /run/weir-ingress").unwrap(), "", "nothing of it stays there");
}
