//! From the API's pod to what the runtime is asked for: pure translation, no decisions in time.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec},
    apimachinery::pkg::api::resource::Quantity,
};

use super::view::{HASH_ANNOTATION, container_hash};
use crate::{
    env::expand,
    quantity,
    runtime::{
        Capabilities, ContainerSpec, DnsConfig, HostAlias, Image, Mount, Resources, SandboxSpec, User,
    },
};

/// Annotation on a sandbox: the pod's grace period, for when nothing else of the pod is known any more.
pub(crate) const GRACE_ANNOTATION: &str = "weir.dev/termination-grace-period-seconds";

/// The CFS period that all quotas refer to.
const CPU_PERIOD_US: u64 = 100_000;

/// What pods of this node share.
#[derive(Debug, Clone)]
pub(crate) struct PodDefaults {
    /// Volumes of pods, by uid.
    pub(crate) pods_dir: PathBuf,
    /// Logs of pods.
    pub(crate) log_dir: PathBuf,
    /// The cluster's DNS server, if there is one.
    pub(crate) cluster_dns: Option<IpAddr>,
    /// The cluster's DNS domain.
    pub(crate) cluster_domain: String,
    /// The node's memory, by which out-of-memory scores are set.
    pub(crate) memory_bytes: i64,
}

impl PodDefaults {
    /// `pods/<uid>`.
    pub(crate) fn pod_dir(&self, pod: &Pod) -> PathBuf {
        self.pods_dir.join(pod.metadata.uid.as_deref().unwrap_or_default())
    }

    /// `logs/<namespace>_<name>_<uid>`.
    pub(crate) fn pod_log_dir(&self, pod: &Pod) -> PathBuf {
        let metadata = &pod.metadata;
        let part = |value: &Option<String>| value.clone().unwrap_or_default();
        self.log_dir.join(format!(
            "{}_{}_{}",
            part(&metadata.namespace),
            part(&metadata.name),
            part(&metadata.uid)
        ))
    }

    /// The file that a container's termination message is read from.
    pub(crate) fn termination_log(&self, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
        self.pod_dir(pod).join("containers").join(container).join(attempt.to_string())
    }
}

/// The pod's environment.
pub(crate) fn sandbox_spec(
    defaults: &PodDefaults,
    pod: &Pod,
    attempt: u32,
    host_dns: &DnsConfig,
) -> SandboxSpec {
    let metadata = &pod.metadata;
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let namespace = metadata.namespace.clone().unwrap_or_default();
    let name = metadata.name.clone().unwrap_or_default();
    // A host name is 63 characters at most; longer pod names are cut as upstream cuts them.
    let mut hostname = spec.hostname.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| name.clone());
    hostname.truncate(63);
    let hostname = hostname.trim_end_matches(['-', '.']).to_owned();
    let fqdn = spec
        .subdomain
        .as_deref()
        .filter(|subdomain| !subdomain.is_empty())
        .map(|subdomain| format!("{hostname}.{subdomain}.{namespace}.svc.{}", defaults.cluster_domain));
    let sysctls = spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    let shares: i128 =
        spec.containers.iter().map(|container| cpu_request_milli(container).unwrap_or(0)).sum();
    SandboxSpec {
        uid: metadata.uid.clone().unwrap_or_default(),
        attempt,
        hostname,
        fqdn,
        dns: dns(defaults, spec, &namespace, host_dns),
        host_aliases: spec
            .host_aliases
            .iter()
            .flatten()
            .map(|alias| HostAlias {
                ip: alias.ip.clone(),
                hostnames: alias.hostnames.clone().unwrap_or_default(),
            })
            .collect(),
        host_network: spec.host_network.unwrap_or(false),
        host_pid: spec.host_pid.unwrap_or(false),
        host_ipc: spec.host_ipc.unwrap_or(false),
        sysctls: sysctls.map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
        resources: Resources { cpu_shares: Some(cpu_shares(shares)), ..Resources::default() },
        labels: pod_labels(pod),
        annotations: spec
            .termination_grace_period_seconds
            .map(|seconds| (GRACE_ANNOTATION.to_owned(), seconds.to_string()))
            .into_iter()
            .collect(),
        namespace,
        name,
    }
}

/// `resolv.conf` by `dnsPolicy`; None is the machine's own file.
fn dns(defaults: &PodDefaults, spec: &PodSpec, namespace: &str, host: &DnsConfig) -> Option<DnsConfig> {
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let host_network = spec.host_network.unwrap_or(false);
    let mut dns = match (policy, defaults.cluster_dns) {
        ("None", _) => DnsConfig::default(),
        ("ClusterFirst", Some(server)) if !host_network => cluster_dns(defaults, server, namespace, host),
        ("ClusterFirstWithHostNet", Some(server)) => cluster_dns(defaults, server, namespace, host),
        _ if spec.dns_config.is_none() => return None,
        _ => host.clone(),
    };
    if let Some(own) = &spec.dns_config {
        dns.servers.extend(own.nameservers.iter().flatten().cloned());
        dns.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            // The pod's own value replaces one of the same name.
            dns.options.retain(|text| text.split(':').next() != Some(name.as_str()));
            dns.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name,
            });
        }
    }
    Some(dns)
}

fn cluster_dns(defaults: &PodDefaults, server: IpAddr, namespace: &str, host: &DnsConfig) -> DnsConfig {
    let domain = &defaults.cluster_domain;
    let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    searches.extend(host.searches.iter().cloned());
    DnsConfig { servers: vec![server.to_string()], searches, options: vec!["ndots:5".to_owned()] }
}

/// The machine's own `resolv.conf`.
pub(crate) fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            Some("search" | "domain") => dns.searches = words.map(str::to_owned).collect(),
            Some("options") => dns.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    dns
}

/// What a container specification is made from, besides the pod.
pub(crate) struct ContainerInput<'a> {
    pub(crate) container: &'a Container,
    pub(crate) attempt: u32,
    pub(crate) image: &'a Image,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) qos: &'a str,
}

/// Why a container cannot be configured.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpecError {
    /// `runAsNonRoot` against what would run.
    #[error("container has runAsNonRoot and image will run as root (container: {0}); set runAsUser")]
    Root(String),
    /// `runAsNonRoot` with a user name, which proves nothing.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (container: {container}); set runAsUser"
    )]
    NamedUser {
        /// The image's user.
        user: String,
        /// The container.
        container: String,
    },
}

/// One container.
pub(crate) fn container_spec(
    defaults: &PodDefaults,
    pod: &Pod,
    input: ContainerInput<'_>,
) -> Result<ContainerSpec, SpecError> {
    let ContainerInput { container, attempt, image, env, mounts, qos } = input;
    let own = container.security_context.as_ref();
    let shared = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let lookup = |name: &str| env.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let expanded = |list: &Option<Vec<String>>| {
        list.iter().flatten().map(|text| expand(text, lookup)).collect::<Vec<_>>()
    };
    let id = |value: Option<i64>| value.and_then(|value| u32::try_from(value).ok());
    let uid = id(own.and_then(|c| c.run_as_user).or(shared.and_then(|c| c.run_as_user)));
    let gid = id(own.and_then(|c| c.run_as_group).or(shared.and_then(|c| c.run_as_group)));
    let non_root = own.and_then(|c| c.run_as_non_root).or(shared.and_then(|c| c.run_as_non_root));
    if non_root == Some(true) {
        check_non_root(container, uid, &image.config.user)?;
    }
    let user = match (uid, gid) {
        (Some(uid), gid) => Some(User::Id { uid, gid }),
        // A group alone changes root's group, or adds to the image's user.
        (None, Some(gid)) if image.config.user.is_empty() => Some(User::Id { uid: 0, gid: Some(gid) }),
        (None, Some(gid)) => {
            let name = image.config.user.split(':').next().unwrap_or_default();
            Some(User::Name(format!("{name}:{gid}")))
        }
        (None, None) => None,
    };
    let groups = shared.iter().flat_map(|context| {
        let extra = context.supplemental_groups.iter().flatten().copied();
        extra.chain(context.fs_group).filter_map(|group| u32::try_from(group).ok())
    });
    let capabilities = own.and_then(|context| context.capabilities.as_ref());
    let metadata = &pod.metadata;
    Ok(ContainerSpec {
        name: container.name.clone(),
        attempt,
        image: container.image.clone().unwrap_or_default(),
        image_id: image.id.clone(),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().filter(|dir| !dir.is_empty()),
        resources: resources(container),
        user,
        supplemental_groups: groups.collect(),
        read_only_rootfs: own.and_then(|c| c.read_only_root_filesystem).unwrap_or(false),
        privileged: own.and_then(|c| c.privileged).unwrap_or(false),
        capabilities: Capabilities {
            add: capabilities.and_then(|c| c.add.clone()).unwrap_or_default(),
            drop: capabilities.and_then(|c| c.drop.clone()).unwrap_or_default(),
        },
        no_new_privileges: own.and_then(|c| c.allow_privilege_escalation) == Some(false),
        tty: container.tty.unwrap_or(false),
        stdin: container.stdin.unwrap_or(false),
        log_path: log_path(&defaults.pod_log_dir(pod), &container.name, attempt),
        labels: pod_labels(pod),
        annotations: BTreeMap::from([(HASH_ANNOTATION.to_owned(), container_hash(container))]),
        oom_score_adj: Some(oom_score_adj(container, qos, defaults.memory_bytes)),
        env: {
            // Programs ask for HOSTNAME more often than for the system's.
            let mut env = env;
            if !env.iter().any(|(key, _)| key == "HOSTNAME")
                && let Some(name) = &metadata.name
            {
                env.insert(0, ("HOSTNAME".to_owned(), name.clone()));
            }
            env
        },
        mounts,
    })
}

/// `<dir>/<container>/<attempt>.log`.
pub(crate) fn log_path(dir: &Path, container: &str, attempt: u32) -> PathBuf {
    dir.join(container).join(format!("{attempt}.log"))
}

fn check_non_root(container: &Container, uid: Option<u32>, image_user: &str) -> Result<(), SpecError> {
    let name = image_user.split(':').next().unwrap_or_default();
    match (uid, name) {
        (Some(0), _) | (None, "" | "0" | "root") => Err(SpecError::Root(container.name.clone())),
        (None, name) if name.parse::<u32>().is_err() => {
            Err(SpecError::NamedUser { user: name.to_owned(), container: container.name.clone() })
        }
        _ => Ok(()),
    }
}

/// The labels by which people find a pod's processes, named as upstream's kubelet names them.
fn pod_labels(pod: &Pod) -> BTreeMap<String, String> {
    let metadata = &pod.metadata;
    [
        ("io.kubernetes.pod.namespace", &metadata.namespace),
        ("io.kubernetes.pod.name", &metadata.name),
        ("io.kubernetes.pod.uid", &metadata.uid),
    ]
    .map(|(key, value)| (key.to_owned(), value.clone().unwrap_or_default()))
    .into()
}

fn resources(container: &Container) -> Resources {
    let limit = |name: &str| bound(container, true, name);
    Resources {
        cpu_shares: Some(cpu_shares(cpu_request_milli(container).unwrap_or(0))),
        // 1 ms per period is the least that the kernel takes.
        cpu_quota_us: limit("cpu").map(|milli| (milli * i128::from(CPU_PERIOD_US) / 1000).max(1000) as i64),
        cpu_period_us: limit("cpu").map(|_| CPU_PERIOD_US),
        memory_limit_bytes: limit("memory").map(|milli| (milli / 1000) as i64),
        pids_limit: None,
    }
}

fn cpu_request_milli(container: &Container) -> Option<i128> {
    bound(container, false, "cpu").or_else(|| bound(container, true, "cpu"))
}

/// A limit or request in thousandths, if it is more than nothing.
fn bound(container: &Container, limit: bool, name: &str) -> Option<i128> {
    let resources = container.resources.as_ref()?;
    let list: &BTreeMap<String, Quantity> =
        if limit { resources.limits.as_ref()? } else { resources.requests.as_ref()? };
    quantity::milli(list.get(name)?).filter(|value| *value > 0)
}

/// 1024 for one CPU, at least 2: the cgroup interface's own bounds.
fn cpu_shares(milli: i128) -> u64 {
    (milli * 1024 / 1000).clamp(2, 262_144) as u64
}

/// Upstream's scores: who asked for more memory is killed later.
fn oom_score_adj(container: &Container, qos: &str, memory_bytes: i64) -> i32 {
    match qos {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request = bound(container, false, "memory").unwrap_or(0) / 1000;
            let share = request * 1000 / i128::from(memory_bytes.max(1));
            (1000 - share).clamp(3, 999) as i32
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn defaults() -> PodDefaults {
        PodDefaults {
            pods_dir: "/d/pods".into(),
            log_dir: "/d/logs".into(),
            cluster_dns: None,
            cluster_domain: "cluster.local".into(),
            memory_bytes: 1 << 30,
        }
    }

    fn pod(spec: impl Into<serde_json::Value>) -> Pod {
        let spec: serde_json::Value = spec.into();
        serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec}),
        )
        .unwrap()
    }

    fn image(user: &str) -> Image {
        let config = crate::runtime::ImageConfig { user: user.into(), ..Default::default() };
        Image { id: "sha256:1".into(), digest: String::new(), references: vec![], size_bytes: 0, config }
    }

    fn build(pod: &Pod, user: &str) -> Result<ContainerSpec, SpecError> {
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let env = vec![("PORT".to_owned(), "80".to_owned())];
        let image = image(user);
        let input =
            ContainerInput { container, attempt: 2, image: &image, env, mounts: vec![], qos: "Burstable" };
        container_spec(&defaults(), pod, input)
    }

    #[test]
    fn a_container_is_translated() {
        let pod = pod(json!({"securityContext": {"fsGroup": 7, "runAsUser": 5}, "containers": [{
            "name": "c", "image": "i", "args": ["--port=$(PORT)"],
            "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}));
        let spec = build(&pod, "").unwrap();
        assert_eq!(spec.args, ["--port=80"]);
        assert_eq!(spec.resources.cpu_shares, Some(512));
        assert_eq!(spec.resources.cpu_quota_us, Some(100_000));
        assert_eq!(spec.resources.memory_limit_bytes, Some(1 << 30));
        assert_eq!(spec.user, Some(User::Id { uid: 5, gid: None }));
        assert_eq!(spec.supplemental_groups, [7]);
        assert_eq!(spec.oom_score_adj, Some(500));
        assert!(spec.no_new_privileges);
        assert_eq!(spec.log_path, Path::new("/d/logs/ns_p_u/c/2.log"));
    }

    #[test]
    fn run_as_non_root_is_checked_against_the_image() {
        let pod = pod(json!({"containers": [{"name": "c", "securityContext": {"runAsNonRoot": true}}]}));
        assert_eq!(build(&pod, ""), Err(SpecError::Root("c".into())));
        assert!(matches!(build(&pod, "nginx"), Err(SpecError::NamedUser { .. })));
        build(&pod, "101:101").unwrap();
    }

    #[test]
    fn dns_follows_the_policy() {
        let host = parse_resolv_conf("# x\nnameserver 192.0.2.53\nsearch lan\noptions ndots:1 edns0\n");
        let spec = |value| pod(value).spec.unwrap();
        assert_eq!(dns(&defaults(), &spec(json!({"containers": []})), "ns", &host), None);
        let with_dns = PodDefaults { cluster_dns: Some("10.96.0.10".parse().unwrap()), ..defaults() };
        let cluster = dns(&with_dns, &spec(json!({"containers": []})), "ns", &host).unwrap();
        assert_eq!(cluster.searches, ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan"]);
        let own = json!({"containers": [], "dnsPolicy": "Default",
            "dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}});
        let own = dns(&defaults(), &spec(own), "ns", &host).unwrap();
        assert_eq!(own.options, ["edns0", "ndots:2"]);
    }
}
