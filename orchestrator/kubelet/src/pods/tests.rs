//! Plan and status on values: a pod, what the runtime has of it, what the worker remembers, and the moment.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus as ApiContainerStatus, Pod, PodStatus};
use serde_json::{Value, json};

use super::{
    plan::{Action, Plan, StopReason, plan},
    status::{self, status},
    view::{Backoff, Failure, HASH_ANNOTATION, Memory, Probed, Slot, View, Work, after, container_hash},
};
use crate::runtime::{
    ContainerId, ContainerSpec, ContainerState, ContainerStatus, Sandbox, SandboxId, SandboxSpec,
};

/// A pod's world, with defaults for what a case does not care about.
struct World {
    pod: Pod,
    sandboxes: Vec<Sandbox>,
    containers: Vec<ContainerStatus>,
    memory: Memory,
    now: Timestamp,
}

impl World {
    fn new(spec: impl Into<Value>) -> Self {
        let spec: Value = spec.into();
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec});
        Self {
            pod: serde_json::from_value(pod).unwrap(),
            sandboxes: Vec::new(),
            containers: Vec::new(),
            memory: Memory { network_ready: true, ..Memory::default() },
            now: at(1000),
        }
    }

    /// Volumes and sandbox are there.
    fn set_up(mut self) -> Self {
        self.memory.prepared = true;
        self.sandboxes.insert(0, sandbox(self.sandboxes.len() as u32));
        self
    }

    /// Adds a container in the newest sandbox; `exit` is its code and the second it exited at.
    fn container(mut self, name: &str, attempt: u32, exit: Option<(i32, i64)>) -> Self {
        let spec = self.pod.spec.as_ref().unwrap();
        let declared =
            spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name);
        let hash = container_hash(declared.unwrap());
        self.containers.insert(
            0,
            ContainerStatus {
                id: ContainerId(format!("{name}-{attempt}")),
                sandbox: self.sandboxes[0].id.clone(),
                spec: ContainerSpec {
                    name: name.into(),
                    attempt,
                    annotations: [(HASH_ANNOTATION.to_owned(), hash)].into(),
                    ..ContainerSpec::default()
                },
                state: if exit.is_some() { ContainerState::Exited } else { ContainerState::Running },
                pid: 1,
                created_at: at(900),
                started_at: Some(at(900)),
                finished_at: exit.map(|(_, second)| at(second)),
                exit_code: exit.map(|(code, _)| code),
                signal: None,
                oom_killed: false,
                message: None,
            },
        );
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn deleted(mut self, grace: i64) -> Self {
        self.pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now));
        self.pod.metadata.deletion_grace_period_seconds = Some(grace);
        self.memory.terminating_since = Some(self.now);
        self
    }

    fn view(&self) -> View<'_> {
        View {
            pod: &self.pod,
            sandboxes: &self.sandboxes,
            containers: &self.containers,
            memory: &self.memory,
            node_ip: "192.0.2.1".parse().unwrap(),
            now: self.now,
        }
    }

    fn plan(&self) -> Plan {
        plan(&self.view())
    }

    fn actions(&self) -> Vec<Action> {
        self.plan().actions
    }

    fn phase(&self) -> &'static str {
        status::phase(&self.view())
    }

    fn status(&self) -> PodStatus {
        status(&self.view())
    }

    fn container_status(&self, name: &str) -> ApiContainerStatus {
        let status = self.status();
        let lists = [status.container_statuses, status.init_container_statuses];
        lists.into_iter().flatten().flatten().find(|status| status.name == name).unwrap()
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn sandbox(attempt: u32) -> Sandbox {
    Sandbox {
        id: SandboxId(format!("s{attempt}")),
        spec: SandboxSpec { uid: "u".into(), attempt, ..SandboxSpec::default() },
        ips: vec!["10.244.0.5".parse().unwrap()],
        netns: None,
        created_at: at(900),
        ready: true,
    }
}

fn one() -> World {
    World::new(json!({"containers": [{"name": "c", "image": "i"}]}))
}

fn two() -> World {
    World::new(json!({"containers": [{"name": "a"}, {"name": "b"}]}))
}

fn start(container: &str, attempt: u32) -> Action {
    Action::Start { container: container.into(), attempt, backoff: None }
}

fn starts(actions: &[Action]) -> Vec<(&str, u32)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Start { container, attempt, .. } => Some((container.as_str(), *attempt)),
            _ => None,
        })
        .collect()
}

fn waiting(status: &ApiContainerStatus) -> &str {
    status.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref().unwrap()
}

fn condition(status: &PodStatus, type_: &str) -> String {
    status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == type_).unwrap().status.clone()
}

#[test]
fn a_new_pod_gets_volumes_and_a_sandbox_then_its_containers_in_order() {
    let world = two();
    assert_eq!(world.actions(), [Action::Prepare, Action::RunSandbox { attempt: 0 }]);
    assert_eq!(world.phase(), "Pending");
    let world = two().set_up();
    assert_eq!(world.actions(), [start("a", 0)]);
    let starting = two().set_up().with(|w| {
        w.memory.busy.insert(Slot::Container("a".into()), Work::Start);
    });
    assert_eq!(starting.actions(), [], "b waits for a");
    assert_eq!(two().set_up().container("a", 0, None).actions(), [start("b", 0)]);
}

#[test]
fn without_a_pod_network_only_host_network_pods_get_a_sandbox() {
    let offline = |w: &mut World| w.memory.network_ready = false;
    assert_eq!(one().with(offline).actions(), [Action::Prepare]);
    let host = World::new(json!({"hostNetwork": true, "containers": [{"name": "c"}]})).with(offline);
    assert_eq!(host.actions(), [Action::Prepare, Action::RunSandbox { attempt: 0 }]);
}

#[test]
fn nothing_is_planned_twice_or_before_its_retry() {
    let busy = one().with(|w| {
        w.memory.busy.insert(Slot::Volumes, Work::Other);
        w.memory.busy.insert(Slot::Sandbox, Work::Other);
    });
    assert_eq!(busy.actions(), []);
    let failure = Failure {
        reason: "ErrImagePull".into(),
        message: "gone".into(),
        count: 1,
        at: at(999),
        retry_at: at(1009),
    };
    let failed = two().set_up().with(|w| {
        w.memory.failures.insert(Slot::Container("a".into()), failure);
    });
    let plan = failed.plan();
    assert_eq!(plan.actions, [start("b", 0)], "one bad image does not hold up the others");
    assert_eq!(plan.wake_at, Some(at(1009)));
    assert_eq!(waiting(&failed.container_status("a")), "ErrImagePull");
    let later = failed.with(|w| w.now = at(1005));
    assert_eq!(waiting(&later.container_status("a")), "ImagePullBackOff");
    let due = later.with(|w| w.now = at(1009));
    assert_eq!(starts(&due.actions()), [("a", 0)]);
}

#[test]
fn init_containers_run_to_their_end_one_after_the_other() {
    let world = || {
        World::new(json!({"initContainers": [{"name": "i1"}, {"name": "i2"}], "containers": [{"name": "c"}]}))
            .set_up()
    };
    assert_eq!(world().actions(), [start("i1", 0)]);
    assert_eq!(waiting(&world().container_status("c")), "PodInitializing");
    assert_eq!(world().container("i1", 0, None).actions(), []);
    let first_done = world().container("i1", 0, Some((0, 950)));
    assert_eq!(first_done.actions(), [start("i2", 0)]);
    assert_eq!(condition(&first_done.status(), "Initialized"), "False");
    let both_done = first_done.container("i2", 0, Some((0, 960)));
    assert_eq!(both_done.actions(), [start("c", 0)]);
    assert_eq!(condition(&both_done.status(), "Initialized"), "True");
    let running = both_done.container("c", 0, None);
    assert_eq!((running.actions(), running.phase()), (vec![], "Running"));
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let world = |policy: &str| {
        World::new(json!({"restartPolicy": policy, "initContainers": [{"name": "i"}], "containers": [{"name": "c"}]}))
            .set_up()
            .container("i", 0, Some((1, 999)))
    };
    assert_eq!(world("Never").phase(), "Failed");
    assert_eq!(starts(&world("Always").actions()), [("i", 1)]);
    assert_eq!(world("Always").phase(), "Pending");
}

#[test]
fn a_sidecar_starts_in_order_and_ends_last() {
    let spec = json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "i"}],
        "containers": [{"name": "c"}]});
    let world = || World::new(spec.clone()).set_up();
    assert_eq!(world().container("s", 0, None).actions(), [start("i", 0)]);
    let running =
        world().container("s", 0, None).container("i", 0, Some((0, 950))).container("c", 0, None).deleted(30);
    let stop = |name: &str| Action::Stop {
        id: ContainerId(format!("{name}-0")),
        container: name.into(),
        deadline: at(1030),
        reason: StopReason::PodEnds,
    };
    assert_eq!(running.actions(), [stop("c")]);
    let main_over = running.with(|w| {
        let c = w.containers.iter_mut().find(|c| c.spec.name == "c").unwrap();
        (c.state, c.exit_code, c.finished_at) = (ContainerState::Exited, Some(0), Some(at(1000)));
    });
    assert_eq!(main_over.actions(), [stop("s")]);
}

#[test]
fn restart_policies_decide_who_comes_back() {
    let cases = [
        ("Always", 0, true, "Running"),
        ("Always", 1, true, "Running"),
        ("OnFailure", 0, false, "Succeeded"),
        ("OnFailure", 1, true, "Running"),
        ("Never", 0, false, "Succeeded"),
        ("Never", 1, false, "Failed"),
    ];
    for (policy, code, restarts, phase) in cases {
        let world = World::new(json!({"restartPolicy": policy, "containers": [{"name": "c"}]}))
            .set_up()
            .container("c", 0, Some((code, 999)));
        assert_eq!(!starts(&world.actions()).is_empty(), restarts, "{policy} {code}");
        assert_eq!(world.phase(), phase, "{policy} {code}");
    }
}

#[test]
fn crash_backoff_is_upstreams() {
    let crashed = one().set_up().container("c", 0, Some((1, 999)));
    let Action::Start { backoff: Some(first), attempt: 1, .. } = crashed.actions()[0].clone() else {
        panic!("the first restart is immediate")
    };
    assert_eq!(first.delay, Duration::from_secs(10));
    let again = one().set_up().container("c", 1, Some((1, 1002))).with(|w| {
        w.memory.backoff.insert("c".into(), first);
        w.now = at(1003);
    });
    assert_eq!(again.plan(), Plan { actions: vec![], wake_at: Some(at(1012)) });
    let shown = again.container_status("c");
    assert_eq!(waiting(&shown), "CrashLoopBackOff");
    assert_eq!(shown.restart_count, 1);
    assert_eq!(shown.last_state.unwrap().terminated.unwrap().exit_code, 1);
    let mut backoff = Some(first);
    let mut delays = Vec::new();
    for second in [1002, 1030, 1080, 1200, 1400, 1800] {
        backoff = Some(Backoff::raised(backoff, at(second), at(second)));
        delays.push(backoff.unwrap().delay.as_secs());
    }
    assert_eq!(delays, [20, 40, 80, 160, 300, 300]);
    let calm = Backoff::raised(backoff, after(at(1800), Duration::from_secs(601)), at(2500));
    assert_eq!(calm.delay, Duration::from_secs(10), "ten calm minutes forgive everything");
}

#[test]
fn a_new_image_restarts_its_container_only() {
    let changed = two().set_up().container("a", 0, None).container("b", 0, None).with(|w| {
        w.pod.spec.as_mut().unwrap().containers[0].image = Some("new".into());
    });
    let actions = changed.actions();
    assert!(
        matches!(&actions[..], [Action::Stop { container, reason: StopReason::Changed, .. }] if container == "a"),
        "{actions:?}"
    );
    let stopped = changed.with(|w| {
        let a = w.containers.iter_mut().find(|c| c.spec.name == "a").unwrap();
        (a.state, a.exit_code, a.finished_at) = (ContainerState::Exited, Some(143), Some(at(1000)));
        w.memory.replaced.insert(ContainerId("a-0".into()));
        w.memory.backoff.insert("a".into(), Backoff { delay: Backoff::MAX, raised_at: at(990) });
    });
    assert_eq!(starts(&stopped.actions()), [("a", 1)], "no backoff for another image");
}

#[test]
fn a_condemned_container_is_stopped_and_comes_back() {
    let world = one().set_up().container("c", 0, None).with(|w| {
        w.memory.condemned.insert(ContainerId("c-0".into()), "failed".into());
    });
    assert!(matches!(&world.actions()[..], [Action::Stop { reason: StopReason::Probe(_), .. }]));
}

#[test]
fn probes_gate_started_and_ready() {
    let spec = json!({"containers": [{"name": "c", "startupProbe": {}, "readinessProbe": {}}]});
    let world = |probed: Option<Probed>| {
        World::new(spec.clone()).set_up().container("c", 0, None).with(|w| {
            w.memory.probed.extend(probed.map(|probed| (ContainerId("c-0".into()), probed)));
        })
    };
    let shown = |probed| {
        let world = world(probed);
        let status = world.container_status("c");
        (status.started.unwrap(), status.ready, condition(&world.status(), "Ready"))
    };
    assert_eq!(shown(None), (false, false, "False".into()));
    assert_eq!(shown(Some(Probed { started: true, ready: false })), (true, false, "False".into()));
    assert_eq!(shown(Some(Probed { started: false, ready: true })), (false, false, "False".into()));
    assert_eq!(shown(Some(Probed { started: true, ready: true })), (true, true, "True".into()));
}

#[test]
fn termination_goes_step_by_step() {
    let mut world = one().set_up().container("c", 0, None).deleted(7);
    assert!(matches!(&world.actions()[..], [Action::Stop { deadline, .. }] if *deadline == at(1007)));
    world.memory.busy.insert(Slot::Container("c".into()), Work::Stop { deadline: at(1007) });
    assert_eq!(world.actions(), [], "it is being stopped");
    world.pod.metadata.deletion_grace_period_seconds = Some(1);
    assert!(
        matches!(&world.actions()[..], [Action::Stop { deadline, .. }] if *deadline == at(1001)),
        "a shorter grace period overtakes"
    );
    let c = &mut world.containers[0];
    (c.state, c.exit_code, c.finished_at) = (ContainerState::Exited, Some(143), Some(at(1001)));
    assert_eq!(world.actions(), [], "the stop has not returned yet");
    world.memory.busy.clear();
    assert_eq!(world.actions(), [Action::StopSandbox(SandboxId("s0".into()))]);
    assert_eq!(world.phase(), "Failed");
    world.sandboxes[0].ready = false;
    assert_eq!(world.actions(), [Action::TearDown]);
    world.memory.torn_down = true;
    assert_eq!(world.actions(), [Action::Delete]);
    world.memory.deleted = true;
    assert_eq!(world.actions(), [Action::RemoveSandbox(SandboxId("s0".into()))]);
    world.sandboxes.clear();
    world.containers.clear();
    assert_eq!(world.actions(), [Action::Finish]);
}

#[test]
fn a_pod_deleted_while_it_starts_ends_without_a_container() {
    let world = one().set_up().deleted(30).with(|w| {
        w.memory.busy.insert(Slot::Container("c".into()), Work::Start);
    });
    assert_eq!(world.actions(), [], "the start must end first");
    let created = one().set_up().container("c", 0, None).deleted(30).with(|w| {
        w.containers[0].state = ContainerState::Created;
    });
    assert!(matches!(&created.actions()[..], [Action::Remove { .. }]), "what never ran needs no signal");
    assert_eq!(one().deleted(30).actions(), [Action::TearDown]);
}

#[test]
fn an_orphan_is_ended_and_nothing_is_asked_of_the_apiserver() {
    let mut world = one().set_up().container("c", 0, None);
    world.pod.spec = None;
    world.memory = Memory { removed: true, terminating_since: Some(at(1000)), ..Memory::default() };
    assert!(matches!(&world.actions()[..], [Action::Stop { .. }]));
    world.containers.clear();
    world.sandboxes[0].ready = false;
    world.memory.torn_down = true;
    assert_eq!(world.actions(), [Action::RemoveSandbox(SandboxId("s0".into()))]);
}

#[test]
fn a_restarted_kubelet_restarts_nothing() {
    let adopted = two().set_up().container("a", 3, None).container("b", 0, None);
    let fresh =
        adopted.with(|w| w.memory = Memory { network_ready: true, prepared: true, ..Memory::default() });
    assert_eq!(fresh.actions(), []);
    assert_eq!(fresh.container_status("a").restart_count, 3);
}

#[test]
fn after_a_reboot_counting_goes_on() {
    let world = one().set_up().with(|w| {
        w.pod.status = serde_json::from_value(json!({"phase": "Running", "podIP": "10.244.0.4", "containerStatuses": [
            {"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 4, "containerID": "weir://old",
             "state": {"running": {}}}]}))
        .unwrap();
    });
    assert_eq!(world.actions(), [start("c", 5)]);
    let shown = world.container_status("c");
    let last = shown.last_state.unwrap().terminated.unwrap();
    assert_eq!(last.reason.as_deref(), Some("ContainerStatusUnknown"));
    assert_eq!(world.phase(), "Running");
}

#[test]
fn a_lost_sandbox_is_replaced_and_its_containers_with_it() {
    let mut world = one().set_up().container("c", 0, None);
    world.sandboxes[0].ready = false;
    assert_eq!(world.actions(), [Action::StopSandbox(SandboxId("s0".into()))]);
    let c = &mut world.containers[0];
    (c.state, c.exit_code, c.finished_at) = (ContainerState::Exited, Some(137), Some(at(1000)));
    assert_eq!(world.actions(), [Action::RunSandbox { attempt: 1 }]);
    world.sandboxes.insert(0, sandbox(1));
    assert_eq!(starts(&world.actions()), [("c", 1)]);
}

#[test]
fn records_beyond_the_last_two_are_removed() {
    let world = one()
        .set_up()
        .container("c", 0, Some((1, 910)))
        .container("c", 1, Some((1, 920)))
        .container("c", 2, None);
    let remove = Action::Remove { id: ContainerId("c-0".into()), container: "c".into() };
    assert_eq!(world.actions(), [remove]);
}

#[test]
fn ends_are_told_apart() {
    let ended = |change: fn(&mut ContainerStatus)| {
        let world = World::new(json!({"restartPolicy": "Never", "containers": [{"name": "c"}]}))
            .set_up()
            .container("c", 0, Some((137, 999)))
            .with(|w| change(&mut w.containers[0]));
        world.container_status("c").state.unwrap().terminated.unwrap().reason.unwrap()
    };
    assert_eq!(ended(|_| {}), "Error");
    assert_eq!(ended(|c| c.exit_code = Some(0)), "Completed");
    assert_eq!(ended(|c| c.oom_killed = true), "OOMKilled");
    assert_eq!(ended(|c| c.started_at = None), "StartError");
}

#[test]
fn a_rejected_pod_says_why_and_does_nothing() {
    let world = one().with(|w| {
        w.memory.torn_down = true;
        w.memory.rejected =
            Some(super::view::Rejection { reason: "OutOfpods".into(), message: "full".into() });
    });
    assert_eq!(world.actions(), []);
    assert_eq!(world.status().reason.as_deref(), Some("OutOfpods"));
    assert_eq!(world.phase(), "Failed");
}

#[test]
fn transition_times_move_only_with_their_conditions() {
    let world = one().set_up().container("c", 0, None);
    let first = world.status();
    let later = world.with(|w| {
        w.pod.status = Some(first.clone());
        w.now = at(2000);
    });
    assert_eq!(later.status(), first, "so that nothing is written again");
}

#[test]
fn quality_of_service_follows_the_resources() {
    let class = |resources: Value| {
        let world = World::new(json!({"containers": [{"name": "c", "resources": resources}]}));
        status::qos_class(&world.view())
    };
    assert_eq!(class(json!({})), "BestEffort");
    assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
    assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Mi"}})), "Guaranteed");
    let lower =
        json!({"limits": {"cpu": "1", "memory": "1Mi"}, "requests": {"cpu": "500m", "memory": "1Mi"}});
    assert_eq!(class(lower), "Burstable");
}
