//! Bodies in, objects or upstream's words out.

use k8s_pb::{
    api::{apps::v1 as apps, core::v1 as core},
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta, Time},
        runtime::{TypeMeta, Unknown},
        util::intstr::IntOrString,
    },
};
use prost::Message;
use serde_json::json;

use super::*;
use crate::resource::find;

fn kind(group: &str, plural: &str) -> Kind {
    find(group, "v1", plural).expect("served").target()
}

fn strict(kind: Kind, body: &Value) -> Result<Value, String> {
    decode(Format::Json, body.to_string().as_bytes(), kind, FieldValidation::Strict)
        .map(|decoded| decoded.object)
        .map_err(|error| error.to_string())
}

#[test]
fn a_body_becomes_canonical() {
    let body = json!({
        "metadata": {"name": "web", "creationTimestamp": null},
        "spec": {"containers": [{"name": "web", "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}]},
        "status": {"startTime": "2026-01-01T01:00:00+01:00"},
    });
    assert_eq!(
        strict(kind("", "pods"), &body),
        Ok(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "web"},
            "spec": {"containers": [{"name": "web", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}]},
            "status": {"startTime": "2026-01-01T00:00:00Z"},
        }))
    );
}

#[test]
fn unknown_and_duplicate_fields_are_found_by_path() {
    let body = br#"{"spec": {"replicas": 1, "replicas": 2, "foo": 1, "template": {"spec": {"containers": [{"imag": "x"}]}}}}"#;
    let deployments = kind("apps", "deployments");
    let error = decode(Format::Json, body, deployments, FieldValidation::Strict).expect_err("strict");
    assert_eq!(
        error.to_string(),
        r#"Deployment in version "v1" cannot be handled as a Deployment: strict decoding error: unknown field "spec.foo", unknown field "spec.template.spec.containers[0].imag", duplicate field "spec.replicas""#
    );
    let warned = decode(Format::Json, body, deployments, FieldValidation::Warn).expect("only warned");
    assert_eq!(warned.warnings.len(), 3);
    assert_eq!(warned.object["spec"], json!({"replicas": 2, "template": {"spec": {"containers": [{}]}}}));
    let ignored = decode(Format::Json, body, deployments, FieldValidation::Ignore).expect("ignored");
    assert!(ignored.warnings.is_empty());
}

#[test]
fn wrong_types_are_told_in_gos_words() {
    let deployments = kind("apps", "deployments");
    for (body, reason) in [
        (
            json!({"spec": {"replicas": "three"}}),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            json!({"spec": {"replicas": 70_000_000_000_i64}}),
            "json: cannot unmarshal number 70000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            json!({"spec": {"template": {"spec": {"containers": [{"env": [{"name": "A", "value": 1}]}]}}}}),
            "json: cannot unmarshal number into Go struct field EnvVar.spec.template.spec.containers.env.value of type string",
        ),
        (
            json!({"spec": {"template": {"spec": {"containers": {}}}}}),
            "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
        ),
        (
            json!({"metadata": {"labels": {"a": true}}}),
            "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels of type string",
        ),
    ] {
        let expected = format!("Deployment in version \"v1\" cannot be handled as a Deployment: {reason}");
        assert_eq!(strict(deployments, &body), Err(expected));
    }
}

#[test]
fn values_with_a_format_are_checked() {
    for (kind, body) in [
        (kind("", "secrets"), json!({"data": {"a": "no base64"}})),
        (kind("", "pods"), json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "lots"}}}]}})),
        (kind("", "pods"), json!({"status": {"startTime": "yesterday"}})),
        (kind("", "services"), json!({"spec": {"ports": [{"targetPort": true}]}})),
    ] {
        assert!(strict(kind, &body).is_err(), "{body}");
    }
    assert!(strict(kind("", "secrets"), &json!({"data": {"a": "aGk=\n"}})).is_ok());
    let error = strict(kind("", "secrets"), &json!({"data": {"good": "aGk=", "bad": "%"}})).unwrap_err();
    assert!(
        error.ends_with(": data.bad: illegal base64 data at input byte 0: encode the value with base64"),
        "{error}"
    );
    let error = strict(kind("", "secrets"), &json!({"data": {"a": 5}})).unwrap_err();
    assert!(error.contains("number into Go struct field Secret.data"), "{error}");
}

#[test]
fn the_type_must_be_the_paths() {
    let pods = kind("", "pods");
    assert_eq!(
        strict(pods, &json!({"apiVersion": "apps/v1", "kind": "Pod"})),
        Err("the API version in the data (apps/v1) does not match the expected API version (v1)".to_owned())
    );
    assert!(strict(pods, &json!({"apiVersion": "v1", "kind": "Service"})).is_err());
    assert!(strict(pods, &json!([])).is_err());
    let options =
        json!({"apiVersion": "apps/v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
    assert!(strict(crate::resource::DELETE_OPTIONS, &options).is_ok(), "of any version");
}

/// A message in the envelope that kubectl sends.
fn envelope(api_version: &str, kind: &str, message: &impl Message) -> Vec<u8> {
    let unknown = Unknown {
        type_meta: Some(TypeMeta { api_version: Some(api_version.to_owned()), kind: Some(kind.to_owned()) }),
        raw: Some(message.encode_to_vec()),
        ..Unknown::default()
    };
    let mut body = b"k8s\0".to_vec();
    body.extend(unknown.encode_to_vec());
    body
}

fn protobuf(kind: Kind, body: &[u8]) -> Value {
    decode(Format::Protobuf, body, kind, FieldValidation::Strict).expect("decodes").object
}

#[test]
fn a_protobuf_deployment_reads_as_its_json() {
    let text = |text: &str| Some(text.to_owned());
    let container = core::Container {
        name: text("web"),
        image: text("nginx:1"),
        working_dir: text(""),
        tty: Some(false),
        ports: vec![core::ContainerPort {
            container_port: Some(80),
            host_port: Some(0),
            ..Default::default()
        }],
        env: vec![core::EnvVar {
            name: text("TOKEN"),
            value_from: Some(core::EnvVarSource {
                secret_key_ref: Some(core::SecretKeySelector {
                    local_object_reference: Some(core::LocalObjectReference { name: text("s") }),
                    key: text("token"),
                    optional: Some(false),
                }),
                ..Default::default()
            }),
            ..Default::default()
        }],
        resources: Some(core::ResourceRequirements {
            limits: [("cpu".to_owned(), Quantity { string: text("1000m") })].into(),
            ..Default::default()
        }),
        liveness_probe: Some(core::Probe {
            handler: Some(core::ProbeHandler {
                http_get: Some(core::HttpGetAction {
                    path: text("/"),
                    port: Some(IntOrString { r#type: Some(1), int_val: Some(0), str_val: text("http") }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let pod = core::PodSpec {
        containers: vec![container],
        volumes: vec![core::Volume {
            name: text("v"),
            volume_source: Some(core::VolumeSource {
                empty_dir: Some(core::EmptyDirVolumeSource { medium: text(""), size_limit: None }),
                ..Default::default()
            }),
        }],
        ..Default::default()
    };
    let labels: std::collections::BTreeMap<_, _> = [("app".to_owned(), "web".to_owned())].into();
    let deployment = apps::Deployment {
        metadata: Some(ObjectMeta {
            name: text("web"),
            namespace: text(""),
            creation_timestamp: Some(Time::default()),
            labels: labels.clone(),
            ..Default::default()
        }),
        spec: Some(apps::DeploymentSpec {
            replicas: Some(0),
            paused: Some(false),
            selector: Some(LabelSelector { match_labels: labels, ..Default::default() }),
            strategy: Some(apps::DeploymentStrategy::default()),
            template: Some(core::PodTemplateSpec { metadata: None, spec: Some(pod) }),
            ..Default::default()
        }),
        status: None,
    };
    assert_eq!(
        protobuf(kind("apps", "deployments"), &envelope("apps/v1", "Deployment", &deployment)),
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": {"app": "web"}},
                "strategy": {},
                "template": {"spec": {
                    "containers": [{
                        "name": "web",
                        "image": "nginx:1",
                        "ports": [{"containerPort": 80}],
                        "env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "token", "optional": false}}}],
                        "resources": {"limits": {"cpu": "1"}},
                        "livenessProbe": {"httpGet": {"path": "/", "port": "http"}},
                    }],
                    "volumes": [{"name": "v", "emptyDir": {}}],
                }},
            },
        })
    );
}

#[test]
fn protobuf_bytes_and_times_become_text() {
    let secret = core::Secret {
        metadata: Some(ObjectMeta {
            name: Some("s".to_owned()),
            creation_timestamp: Some(Time { seconds: Some(1_767_225_600), nanos: Some(0) }),
            ..Default::default()
        }),
        data: [("a".to_owned(), b"hi".to_vec())].into(),
        immutable: Some(false),
        r#type: Some("Opaque".to_owned()),
        ..Default::default()
    };
    assert_eq!(
        protobuf(kind("", "secrets"), &envelope("v1", "Secret", &secret)),
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "s", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "data": {"a": "aGk="},
            "immutable": false,
            "type": "Opaque",
        })
    );
}

#[test]
fn what_is_no_protobuf_is_an_error() {
    let pods = kind("", "pods");
    for body in [&b""[..], b"{}", b"k8s\0\xff", b"k8s\0\x12\x05\x0a"] {
        assert!(decode(Format::Protobuf, body, pods, FieldValidation::Strict).is_err(), "{body:?}");
    }
    let service = envelope("v1", "Service", &core::Service::default());
    assert!(decode(Format::Protobuf, &service, pods, FieldValidation::Strict).is_err(), "another kind");
}
