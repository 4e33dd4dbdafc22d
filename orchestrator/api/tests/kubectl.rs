//! Bodies that kubectl 1.32 really sends, recorded from a listener on loopback: each decodes strictly to the
//! object that its command means, and with defaults it is valid.

use serde_json::{Value, json};
use weir_api::{
    codec::{FieldValidation, Format, decode},
    object,
    resource::{Kind, SELF_SUBJECT_ACCESS_REVIEW, TOKEN_REQUEST, find},
};

fn read(body: &[u8], kind: Kind) -> Value {
    decode(Format::Protobuf, body, kind, FieldValidation::Strict).expect("decodes strictly").object
}

/// Decodes, completes and validates as the apiserver does, and returns what was decoded.
fn create(body: &[u8], group: &str, plural: &str) -> Value {
    let row = find(group, "v1", plural).expect("served");
    let decoded = read(body, row.target());
    let mut object = decoded.clone();
    if row.namespaced {
        object::set_default(&mut object, &["metadata", "namespace"], "default");
    }
    row.prepare_create(&mut object);
    row.apply_defaults(&mut object);
    let errors = row.validate_create(&object);
    assert!(errors.is_empty(), "{errors:?}");
    decoded
}

#[test]
fn create_deployment() {
    // kubectl create deployment web --image=nginx:1.27 --replicas=0 --port=80
    let decoded = create(include_bytes!("kubectl/deployments.pb"), "apps", "deployments");
    assert_eq!(
        decoded,
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": {"app": "web"}},
                "strategy": {},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [
                        {"name": "nginx", "image": "nginx:1.27", "ports": [{"containerPort": 80}], "resources": {}},
                    ]},
                },
            },
            "status": {},
        })
    );
}

#[test]
fn create_configmap_namespace_secret_and_serviceaccount() {
    // kubectl create configmap c --from-literal=a=b
    let map = create(include_bytes!("kubectl/configmaps.pb"), "", "configmaps");
    assert_eq!(
        map,
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "b"}})
    );
    // kubectl create namespace shop
    let namespace = create(include_bytes!("kubectl/namespaces.pb"), "", "namespaces");
    assert_eq!(namespace["metadata"], json!({"name": "shop"}));
    // kubectl create secret generic s --from-literal=password=hi
    let secret = create(include_bytes!("kubectl/secrets.pb"), "", "secrets");
    assert_eq!(secret["data"], json!({"password": "aGk="}));
    // kubectl create serviceaccount robot
    let account = create(include_bytes!("kubectl/serviceaccounts.pb"), "", "serviceaccounts");
    assert_eq!(account["metadata"], json!({"name": "robot"}));
}

#[test]
fn create_service_and_ingress() {
    // kubectl create service nodeport web --tcp=80:8080 --node-port=30080
    let service = create(include_bytes!("kubectl/services.pb"), "", "services");
    assert_eq!(
        service["spec"],
        json!({
            "type": "NodePort",
            "selector": {"app": "web"},
            "ports": [{"name": "80-8080", "port": 80, "protocol": "TCP", "targetPort": 8080, "nodePort": 30080}],
        })
    );
    // kubectl create ingress web --class=weir --rule='shop.example/*=web:80'
    let ingress = create(include_bytes!("kubectl/ingresses.pb"), "networking.k8s.io", "ingresses");
    let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
    assert_eq!(
        ingress["spec"],
        json!({
            "ingressClassName": "weir",
            "rules": [{
                "host": "shop.example",
                "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
            }],
        })
    );
}

#[test]
fn create_token_and_can_i() {
    // kubectl create token robot --duration=1h
    let token = read(include_bytes!("kubectl/token.pb"), TOKEN_REQUEST);
    assert_eq!(token["spec"]["expirationSeconds"], 3600);
    // kubectl auth can-i create pods
    let review = read(include_bytes!("kubectl/selfsubjectaccessreviews.pb"), SELF_SUBJECT_ACCESS_REVIEW);
    let attributes = &review["spec"]["resourceAttributes"];
    assert_eq!(
        (&attributes["verb"], &attributes["resource"], &attributes["namespace"]),
        (&json!("create"), &json!("pods"), &json!("default"))
    );
}

#[test]
fn a_body_that_is_cut_off_or_bent_is_an_error_or_an_object_but_never_a_panic() {
    let kind = find("apps", "v1", "deployments").expect("served").target();
    let body = include_bytes!("kubectl/deployments.pb");
    for length in 0..body.len() {
        drop(decode(Format::Protobuf, &body[..length], kind, FieldValidation::Warn));
    }
    for at in 0..body.len() {
        for bit in 0..8 {
            let mut bent = body.to_vec();
            bent[at] ^= 1 << bit;
            drop(decode(Format::Protobuf, &bent, kind, FieldValidation::Warn));
        }
    }
}
