//! Each policy, seen from both sides of the proxy.

mod access;
mod balance;
mod endpoints;
mod external;
mod full;
mod health;
mod mirror;
mod places;

use serde_json::{Value, json};

use super::backend::Backend;
use super::cluster::{Cluster, eventually, field, quick, split};

/// One backend `a` behind `x.com/`, by an Ingress `i` with these annotations.
async fn one(annotations: &[(&str, &str)]) -> (Backend, Cluster) {
    let a = Backend::start("a").await;
    let cluster = Cluster::start();
    cluster.service("a", false, &[a.address]);
    cluster.ingress("i", rules(&[("x.com", "/", "a")]));
    cluster.annotate("i", annotations);
    (a, cluster)
}

/// A specification of these hosts, `ImplementationSpecific` paths and Services.
fn rules(rows: &[(&str, &str, &str)]) -> Value {
    let rules: Vec<Value> = rows
        .iter()
        .map(|(host, path, service)| {
            let backend = json!({"service": {"name": service, "port": {"number": 80}}});
            let path = json!({"path": path, "pathType": "ImplementationSpecific", "backend": backend});
            json!({"host": host, "http": {"paths": [path]}})
        })
        .collect();
    json!({"rules": rules})
}

fn status(response: &str) -> u16 {
    split(response).0
}

/// The backend's own account, out of a response.
fn seen(response: &str) -> Value {
    let (status, body) = split(response);
    serde_json::from_str(&body).unwrap_or_else(|_| panic!("{status} {body}"))
}
