//! What the manifests say of the ingress.

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Container, PodSpec, Probe, Service},
    networking::v1::IngressClass,
    rbac::v1::{ClusterRole, Role as NamespacedRole},
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::{manifest::object, proxy::Role};

/// What every ingress may do.
pub(super) fn roles() -> Vec<Role> {
    vec![role_without_lease(), lease_role()]
}

/// What it may do everywhere.
pub(super) fn role_without_lease() -> Role {
    object::<ClusterRole>("ingress/rbac.yaml", "ClusterRole").into()
}

/// The right to its Lease.
pub(super) fn lease_role() -> Role {
    object::<NamespacedRole>("ingress/rbac.yaml", "Role").into()
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

/// In front of the pods.
pub(super) fn service() -> Service {
    object("ingress/deployment.yaml", "Service")
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
