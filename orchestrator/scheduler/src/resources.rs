//! What a pod asks for and what a node has.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity;

/// Scoring counts a container that asks for no CPU as if it asked for this, as upstream, so that such pods spread.
const DEFAULT_MILLI_CPU: i64 = 100;
/// The same for memory.
const DEFAULT_MEMORY: i64 = 200 << 20;

/// Amounts of resources. CPU in thousandths, everything else in its own unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    /// Everything else by name: extended resources, huge pages.
    pub other: BTreeMap<String, i64>,
}

impl Resources {
    /// Reads a list as it stands in manifests and node status. `pods` is not a resource of containers.
    pub fn of(list: &BTreeMap<String, Quantity>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in list {
            match name.as_str() {
                "cpu" => resources.milli_cpu = quantity::milli(quantity),
                "memory" => resources.memory = quantity::units(quantity),
                "ephemeral-storage" => resources.ephemeral_storage = quantity::units(quantity),
                "pods" => {}
                _ => {
                    resources.other.insert(name.clone(), quantity::units(quantity));
                }
            }
        }
        resources
    }

    /// Adds, saturating.
    pub fn add(&mut self, more: &Self) {
        self.each(more, i64::saturating_add);
    }

    /// Takes away, saturating.
    pub fn subtract(&mut self, less: &Self) {
        self.each(less, i64::saturating_sub);
        self.other.retain(|_, amount| *amount != 0);
    }

    fn raise_to(&mut self, floor: &Self) {
        self.each(floor, i64::max);
    }

    fn each(&mut self, with: &Self, combine: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = combine(self.milli_cpu, with.milli_cpu);
        self.memory = combine(self.memory, with.memory);
        self.ephemeral_storage = combine(self.ephemeral_storage, with.ephemeral_storage);
        for (name, amount) in &with.other {
            let mine = self.other.entry(name.clone()).or_default();
            *mine = combine(*mine, *amount);
        }
    }
}

/// What a pod needs at once at its peak.
///
/// Containers run together, so they add up. Init containers run one after the other before them, so the
/// largest counts. Restartable init containers (sidecars) run beside everything that starts after them, so they
/// add to both. The sandbox's overhead comes on top (KEP-753, KEP-688).
pub(crate) fn requested(spec: &PodSpec) -> Resources {
    total(spec, |container| {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        requests.map(Resources::of).unwrap_or_default()
    })
}

/// The same with defaults for containers that say nothing: what scoring counts.
pub(crate) fn requested_for_score(spec: &PodSpec) -> Resources {
    total(spec, |container| {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let has = |name| requests.is_some_and(|requests| requests.contains_key(name));
        let mut resources = requests.map(Resources::of).unwrap_or_default();
        if !has("cpu") {
            resources.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if !has("memory") {
            resources.memory = DEFAULT_MEMORY;
        }
        resources
    })
}

fn total(spec: &PodSpec, of: impl Fn(&Container) -> Resources) -> Resources {
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&of(container));
    }
    let mut sidecars = Resources::default();
    let mut starting = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut needs = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            running.add(&needs);
            sidecars.add(&needs);
            needs = sidecars.clone();
        } else {
            needs.add(&sidecars);
        }
        starting.raise_to(&needs);
    }
    running.raise_to(&starting);
    if let Some(overhead) = &spec.overhead {
        running.add(&Resources::of(overhead));
    }
    running
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn milli_cpu(spec: serde_json::Value) -> i64 {
        requested(&serde_json::from_value(spec).expect("is a pod spec")).milli_cpu
    }

    fn container(cpu: &str) -> serde_json::Value {
        json!({ "name": "c", "resources": { "requests": { "cpu": cpu } } })
    }

    fn sidecar(cpu: &str) -> serde_json::Value {
        json!({ "name": "s", "restartPolicy": "Always", "resources": { "requests": { "cpu": cpu } } })
    }

    #[test]
    fn containers_add_up_and_the_largest_init_container_counts() {
        let both = [container("1"), container("500m")];
        assert_eq!(milli_cpu(json!({ "containers": both })), 1500);
        let inits = [container("1"), container("2")];
        assert_eq!(milli_cpu(json!({ "containers": both, "initContainers": inits })), 2000);
        assert_eq!(milli_cpu(json!({ "containers": both, "initContainers": [container("1")] })), 1500);
    }

    #[test]
    fn sidecars_run_beside_what_starts_after_them() {
        let inits = [sidecar("1"), container("2")];
        assert_eq!(milli_cpu(json!({ "containers": [container("1")], "initContainers": inits })), 3000);
        let inits = [container("2"), sidecar("1")];
        assert_eq!(milli_cpu(json!({ "containers": [container("1")], "initContainers": inits })), 2000);
    }

    #[test]
    fn overhead_comes_on_top() {
        let spec = json!({ "containers": [container("1")], "overhead": { "cpu": "250m" } });
        assert_eq!(milli_cpu(spec), 1250);
    }

    #[test]
    fn silent_containers_count_for_the_score_only() {
        let spec = serde_json::from_value(json!({ "containers": [{ "name": "c" }] })).expect("is a spec");
        assert_eq!(requested(&spec), Resources::default());
        let score = requested_for_score(&spec);
        assert_eq!((score.milli_cpu, score.memory), (DEFAULT_MILLI_CPU, DEFAULT_MEMORY));
    }
}
