//! `pods/log`: passed through from the kubelet of the pod's node.

use http::Response;
use serde_json::Value;
use weir_api::{Status, object, resource};

use crate::kubelet::Endpoint;
use crate::response::Body;
use crate::server::Server;
use crate::verbs::Request;

/// The port of a kubelet that does not say.
const KUBELET_PORT: u16 = 10250;

/// The parameters that a kubelet understands.
const PARAMETERS: &[&str] =
    &["follow", "tailLines", "timestamps", "previous", "sinceSeconds", "sinceTime", "limitBytes"];

pub(super) async fn get(server: &Server, request: &Request) -> Result<Response<Body>, Status> {
    let path = &request.path;
    let pod = server.storage.get(path.row, &path.namespace, &path.name).await?;
    let (wanted, passed_on) = parameters(&request.raw_query);
    let container = container_of(&pod, wanted.as_deref().filter(|name| !name.is_empty()))?;
    let node = object::str_at(&pod, &["spec", "nodeName"]);
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", path.name)));
    }
    let nodes = resource::find("", "v1", "nodes").expect("the registry has nodes");
    let endpoint = endpoint_of(&server.storage.get(nodes, "", node).await?)?;
    let target = format!("/containerLogs/{}/{}/{container}?{}", path.namespace, path.name, passed_on);
    server.kubelet.get(&endpoint, &target, &server.shutdown).await
}

/// The container that a query names, and what of it the kubelet is to know.
fn parameters(query: &str) -> (Option<String>, String) {
    let mut container = None;
    let mut passed_on = form_urlencoded::Serializer::new(String::new());
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        if key == "container" {
            container = Some(value.into_owned());
        } else if PARAMETERS.contains(&&*key) {
            passed_on.append_pair(&key, &value);
        }
    }
    (container, passed_on.finish())
}

/// The container that is meant: the one that is named, or the only one.
fn container_of(pod: &Value, wanted: Option<&str>) -> Result<String, Status> {
    let names = |list: &str| -> Vec<String> {
        let containers = object::list_at(pod, &["spec", list]).iter();
        containers.map(|container| object::str_at(container, &["name"]).to_owned()).collect()
    };
    let (containers, init) = (names("containers"), names("initContainers"));
    let pod_name = object::name(pod);
    match wanted {
        Some(wanted) if containers.iter().chain(&init).any(|name| name == wanted) => Ok(wanted.to_owned()),
        Some(wanted) => {
            Err(Status::bad_request(format!("container {wanted} is not valid for pod {pod_name}")))
        }
        None => {
            if let [only] = containers.as_slice() {
                return Ok(only.clone());
            }
            let marked = object::map_at(pod, &["metadata", "annotations"])
                .and_then(|annotations| annotations.get("kubectl.kubernetes.io/default-container"))
                .and_then(Value::as_str)
                .filter(|marked| containers.iter().any(|name| name == marked));
            marked.map(str::to_owned).ok_or_else(|| {
                Status::bad_request(format!(
                    "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                    containers.join(" ")
                ))
            })
        }
    }
}

fn endpoint_of(node: &Value) -> Result<Endpoint, Status> {
    let addresses = object::list_at(node, &["status", "addresses"]);
    let of_type = |wanted: &str| {
        let found = addresses.iter().find(|address| object::str_at(address, &["type"]) == wanted);
        found.and_then(|address| object::str_at(address, &["address"]).parse().ok())
    };
    let address = of_type("InternalIP").or_else(|| of_type("ExternalIP")).ok_or_else(|| {
        Status::internal(format!(
            "node {:?} has no address that its kubelet could be reached at",
            object::name(node)
        ))
    })?;
    let port = object::int_at(node, &["status", "daemonEndpoints", "kubeletEndpoint", "Port"]);
    let port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or(KUBELET_PORT);
    Ok(Endpoint { address, port })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_must_be_known_or_the_only_one() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        assert_eq!(container_of(&one, None).expect("the only one"), "a");
        let error = container_of(&one, Some("b")).expect_err("there is none");
        assert_eq!(error.message, "container b is not valid for pod p");

        let mut two =
            json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        let error = container_of(&two, None).expect_err("which one");
        assert_eq!(error.message, "a container name must be specified for pod p, choose one of: [a b]");
        two["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/default-container": "b"});
        assert_eq!(container_of(&two, None).expect("marked"), "b");
    }

    #[test]
    fn kubelets_are_found_by_what_nodes_say() {
        let mut node = json!({"status": {
            "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "192.0.2.1"}],
        }});
        assert_eq!(endpoint_of(&node).expect("found").port, KUBELET_PORT);
        node["status"]["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": 1234}});
        let endpoint = endpoint_of(&node).expect("found");
        assert_eq!((endpoint.address.to_string().as_str(), endpoint.port), ("192.0.2.1", 1234));
        assert_eq!(endpoint_of(&json!({})).expect_err("no address").code, 500);
    }
}
