//! What the manifests say of the ingress.

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Container, PodSpec, Probe},
    networking::v1::IngressClass,
    rbac::v1::{ClusterRole, Role as NamespacedRole},
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::{
    manifest::{object, text},
    proxy::Role,
};

/// What every ingress may do.
pub(super) fn roles() -> Vec<Role> {
    let everywhere: ClusterRole = object("ingress/rbac.yaml", "ClusterRole");
    let lease: NamespacedRole = object("ingress/rbac.yaml", "Role");
    vec![everywhere.into(), lease.into()]
}

/// The example of a right to a Secret, which is `default/shop-tls`.
pub(super) fn secret_role() -> Role {
    object::<NamespacedRole>("ingress/tls-secret.yaml", "Role").into()
}

pub(super) fn class() -> IngressClass {
    object("ingress/ingressclass.yaml", "IngressClass")
}

pub(super) fn pod() -> PodSpec {
    let deployment: Deployment = object("ingress/deployment.yaml", "Deployment");
    deployment.spec.expect("a spec").template.spec.expect("a pod's spec")
}

pub(super) fn container() -> Container {
    let [container] = &pod().containers[..] else { panic!("one container") };
    container.clone()
}

/// A flag that a comment of the manifest proposes.
pub(super) fn proposed_flag(name: &str) -> String {
    let text = text("ingress/deployment.yaml");
    let mut lines = text.lines().filter_map(|line| line.trim().strip_prefix("# - "));
    lines.find(|flag| flag.starts_with(name)).unwrap_or_else(|| panic!("no comment has {name}")).to_owned()
}

/// Port and path of a probe.
pub(super) fn probe(container: &Container, probe: Option<&Probe>) -> (u16, String) {
    let get = probe.expect("a probe").http_get.as_ref().expect("by HTTP");
    let IntOrString::String(name) = &get.port else { panic!("its port by name") };
    (port(container, name), get.path.clone().expect("a path"))
}

pub(super) fn port(container: &Container, name: &str) -> u16 {
    let ports = container.ports.as_ref().expect("ports");
    let port = ports.iter().find(|port| port.name.as_deref() == Some(name)).expect("a port of that name");
    port.container_port.try_into().expect("a port")
}
