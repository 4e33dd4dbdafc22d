//! The embedded runtime with real containers. Needs root, and Debian's busybox-static.
//!
//! The runtime starts shims by executing this program again, so it has a `main` of its own: a process that shall
//! become a shim must not have run a test harness's threads before.

mod support;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitCode, Stdio},
    time::Duration,
};

use clap::Parser;
use futures::StreamExt;
use libtest_mimic::{Arguments, Trial};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use support::{ADDRESS, IMAGE, Node, block_on, ended, sandbox, start, status, until};
use weir_kubelet::{
    runtime::{
        ContainerState, Error, Event, HostAlias, Mount, Resources, Runtime, User,
        embedded::{Cni, Config, Embedded, cleanup},
    },
    shim,
};

/// A test that takes longer hangs.
const TEST_LIMIT: Duration = Duration::from_mins(1);

#[derive(Parser)]
enum Role {
    /// What the runtime executes.
    Shim(shim::Args),
    /// A kubelet that starts a container, says so, and waits to be killed.
    Client { directory: PathBuf, cgroup_root: PathBuf, script: String },
}

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|word| word == "shim" || word == "client") {
        return match Role::parse() {
            Role::Shim(args) => shim::main(args),
            Role::Client { directory, cgroup_root, script } => {
                block_on(client(&directory, cgroup_root, script))
            }
        };
    }
    assert!(nix::unistd::geteuid().is_root(), "these tests make namespaces and cgroups: run them as root");
    let tests = vec![
        Trial::test("a_container_sees_its_pod_and_its_output_is_kept", test(a_container_sees_its_pod)),
        Trial::test("exit_codes_and_failed_starts_are_told_apart", test(exit_codes)),
        Trial::test("limits_are_in_the_cgroup_and_memory_is_enforced", test(limits)),
        Trial::test("stopping_asks_first_and_kills_then", test(stopping)),
        Trial::test("commands_run_in_containers", test(commands)),
        Trial::test("volumes_users_and_read_only_roots", test(volumes)),
        Trial::test("containers_outlive_the_kubelet", test(outliving)),
        Trial::test("a_killed_shim_is_noticed", test(killed_shim)),
        Trial::test("a_refused_address_leaves_nothing", test(refused)),
        Trial::test("cleanup_leaves_nothing", || {
            run(leaves_nothing);
            Ok(())
        }),
        Trial::test("cleanup_takes_containers_that_are_starting", || {
            run(takes_what_starts);
            Ok(())
        }),
    ];
    let mut arguments = Arguments::from_args();
    // The machine's mounts and cgroups are compared before and after.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, tests).exit_code()
}

fn run<F: Future<Output = ()>>(body: fn() -> F) {
    block_on(async {
        tokio::time::timeout(TEST_LIMIT, body()).await.expect("an end within a minute");
    });
}

fn test<F: Future<Output = ()> + 'static>(
    body: fn(Node) -> F,
) -> impl FnOnce() -> Result<(), libtest_mimic::Failed> + Send {
    move || {
        let limited = async { tokio::time::timeout(TEST_LIMIT, body(Node::new())).await };
        block_on(limited).map_err(|_| "it took longer than a minute".into())
    }
}

async fn a_container_sees_its_pod(node: Node) {
    let runtime = node.runtime().await;
    let mut events = runtime.events();
    let mut pod = sandbox();
    pod.host_aliases = vec![HostAlias { ip: "10.0.0.1".into(), hostnames: vec!["db".into()] }];
    pod.sysctls.insert("net.core.somaxconn".into(), "321".into());
    let pod = runtime.run_sandbox(&pod).await.expect("a sandbox");
    assert_eq!(pod.ips, [ADDRESS.parse::<std::net::IpAddr>().expect("an address")]);
    let mut spec = node
        .script(
            "main",
            "echo $GREETING $FROM $HOSTNAME $(hostname) $(id -u) $PWD $$; cat /etc/hosts /proc/sys/net/core/somaxconn; \
             ip link | grep -c 'lo:.*,UP'; cat /proc/self/status; echo problem >&2; echo -n end",
        )
        .await;
    spec.env = vec![("GREETING".into(), "hello".into()), ("FROM".into(), "pod".into())];
    let id = start(&runtime, &pod.id, &spec).await;
    let exit = ended(&runtime, &id).await;
    assert_eq!((exit.exit_code, exit.oom_killed, exit.message), (Some(0), false, None));
    let log = node.log("main");
    let texts: Vec<_> = log.lines().filter_map(|line| line.split_once(' ')).map(|(_, rest)| rest).collect();
    assert_eq!(texts[0], "stdout F hello pod web-0 web-0 0 /work 1", "in {log}");
    for expected in [
        format!("stdout F {ADDRESS}\tweb-0"),
        "stdout F 10.0.0.1\tdb".into(),
        "stdout F 321".into(),
        "stdout F 1".into(),
        "stderr F problem".into(),
        "stdout F SigBlk:\t0000000000000000".into(),
        "stdout F end".into(),
    ] {
        assert!(texts.contains(&expected.as_str()), "no \"{expected}\" in {log}");
    }
    let ignored = texts.iter().find_map(|text| text.strip_prefix("stdout F SigIgn:\t")).expect("a mask");
    let ignored = u64::from_str_radix(ignored, 16).expect("a mask");
    assert_eq!(
        ignored >> (Signal::SIGPIPE as u64 - 1) & 1,
        0,
        "SIGPIPE is ignored: `yes | head` would not end"
    );
    for line in log.lines() {
        line.split(' ').next().expect("a time").parse::<jiff::Timestamp>().expect("a time");
    }
    let (sandbox, container) = (pod.id.clone(), id.clone());
    assert_eq!(
        events.next().await,
        Some(Event::Started { sandbox: sandbox.clone(), container: container.clone() })
    );
    assert_eq!(events.next().await, Some(Event::Exited { sandbox, container }));
    runtime.remove_sandbox(&pod.id).await.expect("a removal");
    assert!(runtime.list_containers().await.expect("a list").is_empty());
    let calls = node.plugin_calls();
    let netns = node.path("run/netns").join(pod.id.as_str());
    let arguments = "eth0 K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u-1";
    let call = |command: &str| format!("{command} {} {} {arguments}\n", pod.id, netns.display());
    assert_eq!(calls, call("ADD") + &call("DEL"));
    assert!(node.path("logs/main/0.log").exists(), "logs stay");
}

async fn exit_codes(node: Node) {
    let runtime = node.runtime().await;
    let pod = runtime.run_sandbox(&sandbox()).await.expect("a sandbox");
    for (script, code, signal) in [("exit 7", 7, None), ("kill -9 $$; sleep 1; exit 3", 3, None)] {
        let id = start(&runtime, &pod.id, &node.script("main", script).await).await;
        let exit = ended(&runtime, &id).await;
        // The first process of a process-id namespace is immune to its own signals.
        assert_eq!((exit.exit_code, exit.signal), (Some(code), signal), "{script}");
        assert!(exit.started_at.expect("a start") <= exit.finished_at.expect("an end"));
        runtime.remove_container(&id).await.expect("a removal");
    }
    for (command, expected) in [("/bin/missing", "/bin/missing"), ("/bin/broken", "cannot execute")] {
        let mut spec = node.script("main", "").await;
        spec.command = vec![command.into()];
        let id = runtime.create_container(&pod.id, &spec).await.expect("a container");
        let error = runtime.start_container(&id).await.expect_err("no start");
        assert!(matches!(&error, Error::Start { .. }) && error.to_string().contains(expected), "{error}");
        let exit = status(&runtime, &id).await;
        assert_eq!((exit.state, exit.exit_code, exit.started_at), (ContainerState::Exited, Some(128), None));
        assert!(exit.message.expect("a reason").contains(expected));
    }
    let mut spec = node.script("main", "").await;
    spec.image_id = format!("sha256:{}", "0".repeat(64));
    let error = runtime.create_container(&pod.id, &spec).await.expect_err("no container");
    assert!(error.to_string().contains("weir image import"), "{error}");
}

async fn limits(node: Node) {
    let runtime = node.runtime().await;
    let pod = runtime.run_sandbox(&sandbox()).await.expect("a sandbox");
    let mut spec = node.script("main", "sleep 60").await;
    spec.resources = Resources {
        cpu_shares: Some(512),
        cpu_quota_us: Some(25_000),
        memory_limit_bytes: Some(32 << 20),
        pids_limit: Some(50),
        ..Resources::default()
    };
    let id = start(&runtime, &pod.id, &spec).await;
    let running = status(&runtime, &id).await;
    let value = |controller: &str, v1: &str, v2: &str| {
        let group = node.cgroup_of(&running, controller);
        let file = if group.join(v1).exists() { v1 } else { v2 };
        fs::read_to_string(group.join(file)).expect("a limit").trim().to_owned()
    };
    assert!(["25000", "25000 100000"].contains(&value("cpu", "cpu.cfs_quota_us", "cpu.max").as_str()));
    assert!(["512", "20"].contains(&value("cpu", "cpu.shares", "cpu.weight").as_str()));
    assert_eq!(value("memory", "memory.limit_in_bytes", "memory.max"), (32 << 20).to_string());
    assert_eq!(value("pids", "pids.max", "pids.max"), "50");
    let group = fs::read_to_string(format!("/proc/{}/cgroup", running.pid)).expect("its groups");
    let inherited = fs::read_to_string("/proc/self/cgroup").expect("our groups");
    let unified = |text: &str| text.lines().find(|line| line.starts_with("0::")).map(str::to_owned);
    if Path::new("/sys/fs/cgroup/memory").exists() {
        assert_eq!(
            unified(&group),
            unified(&inherited),
            "on hybrid machines it stays where the socket hooks are"
        );
    }
    runtime.remove_container(&id).await.expect("a removal");
    // tail keeps what it reads while it looks for the end of a line.
    spec.command[2] = "tail /dev/zero".into();
    let id = start(&runtime, &pod.id, &spec).await;
    let exit = ended(&runtime, &id).await;
    assert!(exit.oom_killed, "{exit:?}");
    assert_eq!(exit.exit_code, Some(137));
}

async fn stopping(node: Node) {
    let runtime = node.runtime().await;
    let pod = runtime.run_sandbox(&sandbox()).await.expect("a sandbox");
    let polite =
        node.script("polite", "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done").await;
    let id = start(&runtime, &pod.id, &polite).await;
    until("the trap to be set", async || node.log("polite").contains("ready").then_some(())).await;
    runtime.stop_container(&id, Duration::from_secs(10)).await.expect("a stop");
    assert_eq!(status(&runtime, &id).await.exit_code, Some(5));
    assert!(node.log("polite").contains("bye"));
    // A shell as the first process ignores SIGTERM, and has a child that would survive it.
    let deaf = node.script("deaf", "sleep 1000 & sleep 1000").await;
    let id = start(&runtime, &pod.id, &deaf).await;
    let procs = node.cgroup_of(&status(&runtime, &id).await, "pids").join("cgroup.procs");
    runtime.stop_container(&id, Duration::from_millis(300)).await.expect("a stop");
    let exit = status(&runtime, &id).await;
    assert_eq!((exit.exit_code, exit.signal, exit.oom_killed), (Some(137), Some(9), false));
    assert!(fs::read_to_string(procs).unwrap_or_default().is_empty(), "a child survived");
    runtime.stop_container(&id, Duration::ZERO).await.expect("stopping what is stopped succeeds");
    let never = runtime.create_container(&pod.id, &deaf).await.expect("a container");
    runtime.stop_container(&never, Duration::ZERO).await.expect("stopping what never ran succeeds");
    assert_eq!(status(&runtime, &never).await.state, ContainerState::Exited);
}

async fn commands(node: Node) {
    let runtime = node.runtime().await;
    let pod = runtime.run_sandbox(&sandbox()).await.expect("a sandbox");
    let mut spec = node.script("main", "sleep 60").await;
    spec.user = Some(User::Name("web".into()));
    spec.env = vec![("GREETING".into(), "hello".into())];
    let id = start(&runtime, &pod.id, &spec).await;
    let sh = |script: &str| ["/bin/sh", "-c", script].map(str::to_owned);
    let limit = Duration::from_secs(10);
    let output = runtime
        .exec_sync(&id, &sh("echo $GREETING $(id -u) $PWD; hostname; echo no >&2; exit 4"), limit)
        .await;
    let output = output.expect("an output");
    assert_eq!(output.exit_code, 4);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello 101 /work\nweb-0\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "no\n");
    let output = runtime.exec_sync(&id, &sh("head -c 100000 /dev/zero"), limit).await.expect("an output");
    assert_eq!((output.exit_code, output.stdout.len()), (0, 16 * 1024), "the output is bounded");
    let error =
        runtime.exec_sync(&id, &sh("sleep 1000"), Duration::from_millis(300)).await.expect_err("no end");
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    let error = runtime.exec_sync(&id, &["/bin/missing".into()], limit).await.expect_err("no command");
    assert!(matches!(&error, Error::Exec { .. }) && error.to_string().contains("/bin/missing"), "{error}");
    runtime.stop_container(&id, Duration::ZERO).await.expect("a stop");
    let error = runtime.exec_sync(&id, &sh("true"), limit).await.expect_err("nothing to run in");
    assert!(matches!(error, Error::State { .. }), "{error}");
}

async fn volumes(node: Node) {
    let runtime = node.runtime().await;
    let pod = runtime.run_sandbox(&sandbox()).await.expect("a sandbox");
    fs::create_dir_all(node.path("volume")).expect("a volume");
    fs::write(node.path("volume/file"), "from the host\n").expect("a file");
    let mount = |path: &str, read_only| Mount {
        host_path: node.path("volume"),
        container_path: path.into(),
        read_only,
        ..Mount::default()
    };
    let script = "cat /data/file; echo back > /data/answer; echo no > /fixed/answer || echo fixed; \
                  echo no > /file || echo root; id; echo shared > /dev/shm/x";
    let mut spec = node.script("first", script).await;
    spec.mounts = vec![mount("/data", false), mount("/fixed", true)];
    spec.read_only_rootfs = true;
    spec.supplemental_groups = vec![2000];
    let id = start(&runtime, &pod.id, &spec).await;
    assert_eq!(ended(&runtime, &id).await.exit_code, Some(0));
    let log = node.log("first");
    for expected in ["F from the host", "F fixed", "F root", "uid=0(root) gid=0 groups=2000"] {
        assert!(log.contains(expected), "no \"{expected}\" in {log}");
    }
    assert_eq!(fs::read_to_string(node.path("volume/answer")).expect("an answer"), "back\n");
    let second = node.script("second", "cat /dev/shm/x; ls /data").await;
    let id = start(&runtime, &pod.id, &second).await;
    assert_ne!(ended(&runtime, &id).await.exit_code, Some(0), "the volume is the first container's alone");
    assert!(node.log("second").contains("F shared"), "/dev/shm is the pod's");
}

async fn client(directory: &Path, cgroup_root: PathBuf, script: String) -> ExitCode {
    let this = std::env::current_exe().expect("this program");
    let config = Config {
        cgroup_root: Some(cgroup_root),
        shim: vec![this.into(), "shim".into()],
        cni: Cni { command: vec![directory.join("plugin")], config: serde_json::json!({}) },
        ..Config::new(&directory.join("data"), &directory.join("run"))
    };
    let runtime = Embedded::open(config).await.expect("a runtime");
    let pod = runtime.run_sandbox(&sandbox()).await.expect("a sandbox");
    let image = runtime.image_status(IMAGE).await.expect("the store").expect("the image");
    let spec = weir_kubelet::runtime::ContainerSpec {
        name: "main".into(),
        image: IMAGE.into(),
        image_id: image.id,
        command: vec!["/bin/sh".into(), "-c".into(), script],
        log_path: directory.join("logs/main/0.log"),
        ..Default::default()
    };
    let id = runtime.create_container(&pod.id, &spec).await.expect("a container");
    println!("{id}");
    runtime.start_container(&id).await.expect("its start");
    println!("started");
    std::future::pending().await
}

/// A kubelet in a process of its own, which can be killed at any moment.
struct Client {
    process: Child,
    said: BufReader<ChildStdout>,
}

impl Client {
    fn start(node: &Node, script: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .arg("client")
            .args([node.path(""), node.config().cgroup_root.expect("a cgroup root")])
            .arg(script)
            .stdout(Stdio::piped())
            .spawn()
            .expect("a client");
        let said = BufReader::new(process.stdout.take().expect("its output"));
        Self { process, said }
    }

    /// Its next line.
    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("a line");
        line.trim().to_owned()
    }

    fn kill(mut self) {
        self.process.kill().expect("a kill");
        self.process.wait().expect("its end");
    }
}

async fn outliving(node: Node) {
    let script = "echo before; while [ ! -e /proc/1/root/go ]; do sleep 0.05; done; echo after; exit 6";
    let mut client = Client::start(&node, script);
    let id = weir_kubelet::runtime::ContainerId(client.hear());
    assert_eq!(client.hear(), "started");
    client.kill();
    let runtime = node.runtime().await;
    let mut events = runtime.events();
    let found = status(&runtime, &id).await;
    assert_eq!(found.state, ContainerState::Running);
    assert!(Path::new(&format!("/proc/{}", found.pid)).exists());
    assert!(runtime.list_sandboxes().await.expect("a list")[0].ready);
    measure_shim(&node, &id);
    let go = ["/bin/sh", "-c", "echo > /go"].map(str::to_owned);
    let output = runtime.exec_sync(&id, &go, Duration::from_secs(9)).await;
    assert_eq!(output.expect("a command").exit_code, 0);
    let exit = ended(&runtime, &id).await;
    assert_eq!(exit.exit_code, Some(6));
    assert!(node.log("main").contains("F after"), "output is kept while nobody looks");
    assert!(matches!(events.next().await, Some(Event::Exited { .. })));
    // What ended while no kubelet was there is found, too.
    drop(runtime);
    let again = node.runtime().await;
    assert_eq!(status(&again, &id).await.exit_code, Some(6));
}

/// Shows what a shim costs; the bound is generous because debug builds are larger.
fn measure_shim(node: &Node, id: &weir_kubelet::runtime::ContainerId) {
    let record = fs::read(node.path("run/containers/container").join(id.as_str()).join("running.json"));
    let record: serde_json::Value = serde_json::from_slice(&record.expect("a record")).expect("JSON");
    let pid = &record["shim_pid"];
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("its memory");
    let kib = |name: &str| -> u64 {
        let line = rollup.lines().find(|line| line.starts_with(name)).expect("a line");
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
    };
    let private = kib("Private_Dirty:") + kib("Private_Clean:");
    eprintln!(
        "shim: {private} KiB private, {} KiB of it dirty, PSS {} KiB",
        kib("Private_Dirty:"),
        kib("Pss:")
    );
    assert!(kib("Private_Dirty:") < 4096, "a shim holds too much memory: {rollup}");
}

async fn killed_shim(node: Node) {
    let runtime = node.runtime().await;
    let pod = runtime.run_sandbox(&sandbox()).await.expect("a sandbox");
    let id = start(&runtime, &pod.id, &node.script("main", "sleep 1000").await).await;
    let pid = status(&runtime, &id).await.pid;
    let directory = node.path("run/containers/container").join(id.as_str());
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(directory.join("running.json")).expect("a record")).expect("JSON");
    let shim = record["shim_pid"].as_i64().expect("a pid");
    kill(Pid::from_raw(shim as i32), Signal::SIGKILL).expect("a kill");
    let exit = ended(&runtime, &id).await;
    assert_eq!((exit.exit_code, exit.oom_killed), (Some(137), false));
    assert!(exit.message.expect("a reason").contains("was killed"));
    until("the container's process to be gone", async || {
        (!Path::new(&format!("/proc/{pid}/exe")).exists()
            || fs::read_link(format!("/proc/{pid}/exe")).is_err())
        .then_some(())
    })
    .await;
}

async fn refused(node: Node) {
    let runtime = node.runtime().await;
    fs::write(node.path("refuse"), "").expect("a switch");
    let error = runtime.run_sandbox(&sandbox()).await.expect_err("no address");
    assert!(error.to_string().contains("no address is free: the range is full"), "{error}");
    assert!(runtime.list_sandboxes().await.expect("a list").is_empty());
    for directory in ["run/netns", "run/containers/sandbox"] {
        assert_eq!(fs::read_dir(node.path(directory)).expect("a directory").count(), 0, "{directory}");
    }
}

async fn leaves_nothing() {
    let before = footprint();
    let node = Node::new();
    let runtime = node.runtime().await;
    let pod = runtime.run_sandbox(&sandbox()).await.expect("a sandbox");
    let running = start(&runtime, &pod.id, &node.script("main", "sleep 1000 & sleep 1000").await).await;
    let pid = status(&runtime, &running).await.pid;
    runtime.create_container(&pod.id, &node.script("other", "true").await).await.expect("a container");
    // Dropping the runtime is all that a crash leaves of it.
    drop(runtime);
    let config = node.config();
    cleanup(&config).await.expect("a clean-up");
    cleanup(&config).await.expect("a second clean-up");
    assert!(fs::read_link(format!("/proc/{pid}/exe")).is_err(), "a process is left");
    assert_eq!(fs::read_dir(node.path("run/netns")).expect("a directory").count(), 0);
    assert!(!node.path("run/containers").exists() && !node.path("data/containers").exists());
    assert!(node.plugin_calls().contains("DEL"));
    assert!(node.runtime().await.image_status(IMAGE).await.expect("the store").is_some(), "images stay");
    drop(node);
    assert_eq!(footprint(), before);
}

/// A kubelet can be ended at any moment between a shim's first instruction and its container's.
async fn takes_what_starts() {
    let before = footprint();
    let node = Node::new();
    for milliseconds in (0..60).step_by(3) {
        let mut client = Client::start(&node, "sleep 1000");
        client.hear();
        std::thread::sleep(Duration::from_millis(milliseconds));
        client.kill();
        let cleaned = cleanup(&node.config()).await;
        cleaned.unwrap_or_else(|error| panic!("a clean-up after {milliseconds} ms: {error}"));
    }
    drop(node);
    assert_eq!(footprint(), before);
}

/// The mounts of this machine, and the test groups in its hierarchies.
fn footprint() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let hierarchies = fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten();
    let own = format!("weir-test-{}", std::process::id());
    let groups = hierarchies
        .flat_map(|hierarchy| fs::read_dir(hierarchy.path()).into_iter().flatten().flatten())
        .map(|group| group.path().display().to_string())
        .filter(|group| group.contains(&own));
    mounts.lines().map(str::to_owned).chain(groups).collect()
}
