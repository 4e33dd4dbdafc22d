//! The shipped files, read as their users read them.

use std::{collections::BTreeSet, fs, path::PathBuf};

use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::SecurityContext, rbac::v1::ClusterRole};
use serde::{Deserialize, de::DeserializeOwned};
use serde_yaml::Value;

/// The text of a file below `deploy/`.
pub(crate) fn text(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The one object of a kind in a file of several.
pub(crate) fn object<T: DeserializeOwned>(name: &str, kind: &str) -> T {
    let text = text(name);
    let documents = serde_yaml::Deserializer::from_str(&text).map(|it| Value::deserialize(it).expect("YAML"));
    let mut found = documents.filter(|document| document["kind"] == kind);
    let object = found.next().unwrap_or_else(|| panic!("{name} has no {kind}"));
    assert!(found.next().is_none(), "{name} has more than one {kind}");
    serde_yaml::from_value(object).unwrap_or_else(|error| panic!("{kind} of {name}: {error}"))
}

/// The agent's role.
pub(crate) fn role() -> ClusterRole {
    object("dataplane/rbac.yaml", "ClusterRole")
}

/// The agent's container: its flags, and what it may do.
pub(crate) fn container() -> (Vec<String>, SecurityContext) {
    let set: DaemonSet = object("dataplane/daemonset.yaml", "DaemonSet");
    let pod = set.spec.expect("a spec").template.spec.expect("a pod's spec");
    assert_eq!(pod.host_network, Some(true));
    let [container] = &pod.containers[..] else { panic!("one container") };
    // What `cargo xtask image` makes.
    let image = concat!("weir.dev/weir:", env!("CARGO_PKG_VERSION"));
    assert_eq!(container.image.as_deref(), Some(image));
    let args = container.args.clone().expect("flags");
    (args, container.security_context.clone().expect("a security context"))
}

/// Names of capabilities as `setpriv` writes them: `net_admin`.
pub(crate) type Capabilities = BTreeSet<String>;

pub(crate) fn capability(name: &str) -> String {
    name.trim_start_matches("CAP_").to_lowercase()
}

/// What the container is left with.
pub(crate) fn container_capabilities(context: &SecurityContext) -> Capabilities {
    let capabilities = context.capabilities.as_ref().expect("a list");
    assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]), "nothing is kept unnamed");
    capabilities.add.iter().flatten().map(|name| capability(name)).collect()
}

/// The values of a setting of a systemd unit.
fn settings_of(unit: &str, name: &str) -> Vec<String> {
    let text = text(unit);
    text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned).collect()
}

/// The value of a setting that a systemd unit has once.
pub(crate) fn setting_of(unit: &str, name: &str) -> String {
    match &settings_of(unit, name)[..] {
        [value] => value.clone(),
        values => panic!("{unit} has {name} not once: {values:?}"),
    }
}

/// The value of a setting of the agent's unit.
pub(crate) fn unit_setting(name: &str) -> String {
    setting_of("systemd/weir-dataplane.service", name)
}

/// What the unit is left with.
pub(crate) fn unit_capabilities() -> Capabilities {
    unit_setting("CapabilityBoundingSet").split_whitespace().map(capability).collect()
}

/// The flags of the unit, without the program.
pub(crate) fn unit_flags() -> Vec<String> {
    unit_setting("ExecStart").split_whitespace().skip(1).map(str::to_owned).collect()
}
