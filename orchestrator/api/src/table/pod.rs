//! The columns of pods.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Column, Printer,
    age::{age, human_duration},
    name, text_or,
};
use crate::object;

pub(crate) static POD: Printer = Printer {
    columns: &[
        Column::NAME,
        Column::text("Ready"),
        Column::text("Status"),
        Column::text("Restarts"),
        Column::AGE,
        Column::wide("IP"),
        Column::wide("Node"),
        Column::wide("Nominated Node"),
        Column::wide("Readiness Gates"),
    ],
    cells,
};

fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = Summary::of(pod);
    let ip = object::list_at(pod, &["status", "podIPs"])
        .first()
        .map_or_else(|| object::str_at(pod, &["status", "podIP"]), |ip| object::str_at(ip, &["ip"]));
    let restarts = match summary.last_restart {
        Some(last) if summary.restarts > 0 => {
            format!("{} ({} ago)", summary.restarts, human_duration(now.as_second() - last.as_second()))
        }
        _ => summary.restarts.to_string(),
    };
    vec![
        name(pod),
        json!(format!("{}/{}", summary.ready, summary.total)),
        json!(summary.reason),
        json!(restarts),
        age(pod, now),
        text_or(ip, "<none>"),
        text_or(object::str_at(pod, &["spec", "nodeName"]), "<none>"),
        text_or(object::str_at(pod, &["status", "nominatedNodeName"]), "<none>"),
        readiness_gates(pod),
    ]
}

fn readiness_gates(pod: &Value) -> Value {
    let gates = object::list_at(pod, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return json!("<none>");
    }
    let passed = gates.iter().filter(|gate| condition(pod, object::str_at(gate, &["conditionType"]))).count();
    json!(format!("{passed}/{}", gates.len()))
}

fn condition(pod: &Value, kind: &str) -> bool {
    object::list_at(pod, &["status", "conditions"]).iter().any(|condition| {
        object::str_at(condition, &["type"]) == kind && object::str_at(condition, &["status"]) == "True"
    })
}

/// What the many states of a pod come down to in one line.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    /// Upstream's `printPod`, rule by rule: initialization comes first, then the containers from the last to
    /// the first, then deletion.
    fn of(pod: &Value) -> Self {
        let status_reason = object::str_at(pod, &["status", "reason"]);
        let phase = object::str_at(pod, &["status", "phase"]);
        let mut summary = Self {
            reason: if status_reason.is_empty() { phase } else { status_reason }.to_owned(),
            ready: 0,
            total: object::list_at(pod, &["spec", "containers"]).len(),
            restarts: 0,
            last_restart: None,
        };
        if object::list_at(pod, &["status", "conditions"]).iter().any(is_scheduling_gated) {
            "SchedulingGated".clone_into(&mut summary.reason);
        }
        let (initializing, sidecar_restarts) = summary.initialization(pod);
        if !initializing || condition(pod, "Initialized") {
            summary.restarts = sidecar_restarts;
            summary.containers(pod);
        }
        if object::is_terminating(pod) {
            if status_reason == "NodeLost" {
                "Unknown".clone_into(&mut summary.reason);
            } else if !matches!(phase, "Succeeded" | "Failed") {
                "Terminating".clone_into(&mut summary.reason);
            }
        }
        summary
    }

    /// Whether initialization goes on, and how often sidecars restarted.
    fn initialization(&mut self, pod: &Value) -> (bool, i64) {
        let containers = object::list_at(pod, &["spec", "initContainers"]);
        let is_sidecar = |name: &str| {
            containers.iter().any(|container| {
                object::str_at(container, &["name"]) == name
                    && object::str_at(container, &["restartPolicy"]) == "Always"
            })
        };
        self.total +=
            containers.iter().filter(|one| object::str_at(one, &["restartPolicy"]) == "Always").count();
        let mut sidecar_restarts = 0;
        for (index, status) in object::list_at(pod, &["status", "initContainerStatuses"]).iter().enumerate() {
            let sidecar = is_sidecar(object::str_at(status, &["name"]));
            let restarts = self.count_restarts(status);
            sidecar_restarts += if sidecar { restarts } else { 0 };
            if object::int_at(status, &["state", "terminated", "exitCode"]) == Some(0) {
                continue;
            }
            if sidecar && object::bool_at(status, &["started"]) {
                self.ready += usize::from(object::bool_at(status, &["ready"]));
                continue;
            }
            let waiting = object::str_at(status, &["state", "waiting", "reason"]);
            self.reason = if object::get(status, &["state", "terminated"]).is_some() {
                format!("Init:{}", terminated_reason(status))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{index}/{}", containers.len())
            };
            return (true, sidecar_restarts);
        }
        (false, sidecar_restarts)
    }

    fn containers(&mut self, pod: &Value) {
        let mut has_running = false;
        for status in object::list_at(pod, &["status", "containerStatuses"]).iter().rev() {
            self.count_restarts(status);
            let waiting = object::str_at(status, &["state", "waiting", "reason"]);
            if !waiting.is_empty() {
                waiting.clone_into(&mut self.reason);
            } else if object::get(status, &["state", "terminated"]).is_some() {
                self.reason = terminated_reason(status);
            } else if object::bool_at(status, &["ready"])
                && object::get(status, &["state", "running"]).is_some()
            {
                has_running = true;
                self.ready += 1;
            }
        }
        // One container is done, another runs: the pod is not "Completed".
        if self.reason == "Completed" && has_running {
            let reason = if condition(pod, "Ready") { "Running" } else { "NotReady" };
            reason.clone_into(&mut self.reason);
        }
    }

    fn count_restarts(&mut self, status: &Value) -> i64 {
        let restarts = object::int_at(status, &["restartCount"]).unwrap_or(0);
        self.restarts += restarts;
        let finished = object::str_at(status, &["lastState", "terminated", "finishedAt"]).parse().ok();
        self.last_restart = self.last_restart.max(finished);
        restarts
    }
}

fn is_scheduling_gated(condition: &Value) -> bool {
    object::str_at(condition, &["type"]) == "PodScheduled"
        && object::str_at(condition, &["reason"]) == "SchedulingGated"
}

fn terminated_reason(status: &Value) -> String {
    let terminated = &status["state"]["terminated"];
    let reason = object::str_at(terminated, &["reason"]);
    if !reason.is_empty() {
        return reason.to_owned();
    }
    match object::int_at(terminated, &["signal"]).filter(|signal| *signal != 0) {
        Some(signal) => format!("Signal:{signal}"),
        None => format!("ExitCode:{}", object::int_at(terminated, &["exitCode"]).unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ready, status and restarts, as `kubectl get pods` shows them.
    fn line(pod: &Value) -> String {
        let now = "2026-01-01T00:10:00Z".parse().expect("a time");
        let cells = cells(pod, now);
        assert_eq!(cells.len(), POD.columns.len());
        format!("{} {} {}", cells[1], cells[2], cells[3]).replace('"', "")
    }

    #[test]
    fn states_come_down_to_one_word() {
        let spec = json!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]});
        let running = json!({"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}});
        let table = [
            (json!({"phase": "Pending"}), "0/2 Pending 0"),
            (
                json!({"phase": "Running", "containerStatuses": [running, {"name": "b", "ready": true, "state": {"running": {}}}]}),
                "2/2 Running 0",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [running, {"name": "b", "restartCount": 3,
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": {"finishedAt": "2026-01-01T00:09:00Z"}}}]}),
                "1/2 CrashLoopBackOff 3 (60s ago)",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
                "0/2 Init:0/1 0",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 1}}}]}),
                "0/2 Init:ExitCode:1 0",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [running, {"name": "b", "state": {"terminated": {"reason": "Completed"}}}]}),
                "1/2 NotReady 0",
            ),
            (
                json!({"phase": "Failed", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]}),
                "0/2 OOMKilled 0",
            ),
            (json!({"phase": "Failed", "reason": "Evicted"}), "0/2 Evicted 0"),
        ];
        for (status, expected) in table {
            assert_eq!(line(&json!({"spec": spec, "status": status})), expected);
        }
    }

    #[test]
    fn a_pod_that_goes_is_terminating() {
        let pod = json!({
            "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{}]},
            "status": {"phase": "Running"},
        });
        assert_eq!(line(&pod), "0/1 Terminating 0");
    }
}
