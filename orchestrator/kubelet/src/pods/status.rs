//! The status of a pod: a pure function from what is known, by upstream's rules.
//!
//! The worker writes what [`status`] returns whenever it differs from what was written last; nothing else in the
//! kubelet touches a pod's status. Container states themselves are in [`container_status`](super::container_status).

use k8s_openapi::api::core::v1::{
    ContainerStatus as ApiContainerStatus, HostIP, PodCondition, PodIP, PodStatus,
};

use super::{
    container_status::{container_status, seconds},
    view::{Role, View},
};
use crate::runtime::ContainerState;

/// The pod's phase, as upstream's `getPhase` decides it.
pub(crate) fn phase(view: &View<'_>) -> &'static str {
    if view.memory.rejected.is_some() {
        return "Failed";
    }
    let recorded = view.pod.status.as_ref().and_then(|status| status.phase.as_deref());
    match recorded {
        Some("Succeeded") => return "Succeeded",
        Some("Failed") => return "Failed",
        _ => {}
    }
    let policy = view.restart_policy();
    let (mut initializing, mut failed_init) = (false, false);
    let (mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for (role, container) in view.declared() {
        let status = view.latest(&container.name);
        let exit_code =
            status.filter(|status| status.state == ContainerState::Exited).map(|s| s.exit_code.unwrap_or(1));
        match (role, exit_code) {
            (Role::Init, Some(0)) => {}
            (Role::Init, Some(_)) => {
                initializing = true;
                failed_init = true;
            }
            (Role::Init, None) => initializing |= !view.initialized(),
            (Role::Sidecar, _) => {
                initializing |= !view.initialized() && !status.is_some_and(|s| view.started(container, s));
            }
            (Role::Main, Some(code)) => {
                stopped += 1;
                succeeded += i32::from(code == 0);
            }
            (Role::Main, None) => match status.map(|status| status.state) {
                Some(ContainerState::Running) => running += 1,
                // Between two lives of a container its pod is not pending again.
                _ if has_run_before(view, &container.name) => running += 1,
                _ => waiting += 1,
            },
        }
    }
    // With every container over and the pod going, nothing will restart, whatever the policy says.
    let over = view.terminating() && running == 0 && view.containers.iter().all(|c| c.exit_code.is_some());
    if failed_init && policy == "Never" {
        "Failed"
    } else if over && stopped > 0 {
        if waiting == 0 && stopped == succeeded { "Succeeded" } else { "Failed" }
    } else if initializing || waiting > 0 {
        "Pending"
    } else if running > 0 {
        "Running"
    } else if stopped == 0 {
        "Pending"
    } else if view.containers.iter().any(|status| restarts(view, status)) {
        "Running"
    } else if stopped == succeeded {
        "Succeeded"
    } else {
        "Failed"
    }
}

/// An earlier container of this name ran, here or by the apiserver's record.
fn has_run_before(view: &View<'_>, name: &str) -> bool {
    let recorded = view.recorded(name).and_then(|status| status.container_id.as_deref());
    view.previous(name).is_some() || recorded.is_some_and(|id| !id.is_empty())
}

/// The newest container of its name is over and gets a successor.
fn restarts(view: &View<'_>, status: &crate::runtime::ContainerStatus) -> bool {
    let newest = view.latest(&status.spec.name).is_some_and(|latest| latest.id == status.id);
    let main = view.declared().any(|(role, c)| role == Role::Main && c.name == status.spec.name);
    newest && main && status.state == ContainerState::Exited && {
        // Asked of the policy alone: that the pod is terminating was dealt with above.
        view.terminating() && view.restart_policy() != "Never" || view.will_restart(Role::Main, status)
    }
}

/// No container of a pod in this phase runs again.
pub(crate) fn is_final(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

/// The whole status.
pub(crate) fn status(view: &View<'_>) -> PodStatus {
    let phase = phase(view);
    let recorded = view.pod.status.clone().unwrap_or_default();
    if let Some(rejection) = &view.memory.rejected {
        return PodStatus {
            phase: Some(phase.to_owned()),
            reason: Some(rejection.reason.clone()),
            message: Some(rejection.message.clone()),
            start_time: recorded.start_time.or_else(|| view.memory.seen_at.map(seconds)),
            qos_class: recorded.qos_class.or_else(|| Some(qos_class(view).to_owned())),
            ..PodStatus::default()
        };
    }
    let mut main = Vec::new();
    let mut init = Vec::new();
    for (role, container) in view.declared() {
        let status = container_status(view, role, container);
        if role == Role::Main { main.push(status) } else { init.push(status) }
    }
    let conditions = conditions(view, phase, &init, &main);
    let ips = view.pod_ips();
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions),
        container_statuses: Some(main),
        init_container_statuses: Some(init).filter(|list| !list.is_empty()),
        host_ip: Some(view.node_ip.to_string()),
        host_ips: Some(vec![HostIP { ip: view.node_ip.to_string() }]),
        // A pod that has lost its sandbox keeps the address that it last had, as upstream does.
        pod_ip: ips.first().map(ToString::to_string).or(recorded.pod_ip),
        pod_ips: if ips.is_empty() {
            recorded.pod_ips
        } else {
            Some(ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect())
        },
        start_time: recorded.start_time.or_else(|| view.memory.seen_at.map(seconds)),
        qos_class: recorded.qos_class.or_else(|| Some(qos_class(view).to_owned())),
        // Whoever failed the pod (an eviction, a deadline) said why.
        reason: recorded.reason,
        message: recorded.message,
        ..PodStatus::default()
    }
}

/// The conditions this kubelet owns, with the transition times of those that did not change.
fn conditions(
    view: &View<'_>,
    phase: &str,
    init: &[ApiContainerStatus],
    main: &[ApiContainerStatus],
) -> Vec<PodCondition> {
    let unready: Vec<&str> = main.iter().filter(|status| !status.ready).map(|s| s.name.as_str()).collect();
    let uninitialized: Vec<&str> = init
        .iter()
        .zip(view.declared())
        .filter(|(status, (role, _))| match role {
            Role::Init => {
                let terminated = status.state.as_ref().and_then(|state| state.terminated.as_ref());
                terminated.is_none_or(|terminated| terminated.exit_code != 0) && !view.initialized()
            }
            _ => status.started != Some(true) && !view.initialized(),
        })
        .map(|(status, _)| status.name.as_str())
        .collect();
    let verdict = |ok: bool, reason: &str, message: String| match (ok, phase) {
        (_, "Succeeded") => (false, "PodCompleted".to_owned(), String::new()),
        (_, "Failed") => (false, "PodFailed".to_owned(), String::new()),
        (true, _) => (true, String::new(), String::new()),
        (false, _) => (false, reason.to_owned(), message),
    };
    let containers_ready = verdict(
        unready.is_empty() && view.sandbox().is_some(),
        "ContainersNotReady",
        format!("containers with unready status: [{}]", unready.join(" ")),
    );
    let ready = match missing_gate(view) {
        Some(gate) if containers_ready.0 => (
            false,
            "ReadinessGatesNotReady".to_owned(),
            format!("corresponding condition of pod readiness gate \"{gate}\" is not \"True\"."),
        ),
        _ => containers_ready.clone(),
    };
    let initialized = if uninitialized.is_empty() {
        let completed = if phase == "Succeeded" { "PodCompleted" } else { "" };
        (true, completed.to_owned(), String::new())
    } else {
        (
            false,
            "ContainersNotInitialized".to_owned(),
            format!("containers with incomplete status: [{}]", uninitialized.join(" ")),
        )
    };
    let plain = |ok| (ok, String::new(), String::new());
    [
        ("PodReadyToStartContainers", plain(view.sandbox().is_some())),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", plain(true)),
    ]
    .into_iter()
    .map(|(type_, (ok, reason, message))| condition(view, type_, ok, reason, message))
    .collect()
}

fn condition(view: &View<'_>, type_: &str, ok: bool, reason: String, message: String) -> PodCondition {
    let status = if ok { "True" } else { "False" };
    let recorded = view.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let before = recorded.and_then(|list| list.iter().find(|condition| condition.type_ == type_));
    let since = before
        .filter(|before| before.status == status)
        .and_then(|before| before.last_transition_time.clone())
        .unwrap_or_else(|| seconds(view.now));
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason).filter(|text| !text.is_empty()),
        message: Some(message).filter(|text| !text.is_empty()),
        last_transition_time: Some(since),
        ..PodCondition::default()
    }
}

/// The first readiness gate whose condition is not true.
fn missing_gate<'a>(view: &View<'a>) -> Option<&'a str> {
    let gates = view.spec()?.readiness_gates.as_deref().unwrap_or_default();
    let conditions =
        view.pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    gates
        .iter()
        .map(|gate| gate.condition_type.as_str())
        .find(|gate| !conditions.iter().any(|c| c.type_ == *gate && c.status == "True"))
}

/// `Guaranteed`, `Burstable` or `BestEffort`, by upstream's rule over CPU and memory.
pub(crate) fn qos_class(view: &View<'_>) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    for (_, container) in view.declared() {
        let resources = container.resources.as_ref();
        for name in ["cpu", "memory"] {
            let milli = |list: Option<&std::collections::BTreeMap<String, _>>| {
                list.and_then(|list| list.get(name))
                    .and_then(crate::quantity::milli)
                    .filter(|value| *value > 0)
            };
            let limit = milli(resources.and_then(|resources| resources.limits.as_ref()));
            let request = milli(resources.and_then(|resources| resources.requests.as_ref()));
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
