//! The Deployment's container.

use std::{fs, net::Ipv4Addr, path::PathBuf, thread};

use anyhow::ensure;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::{apps::v1::Deployment, networking::v1::NetworkPolicy};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};
use weir_tests::{Authority, Pair, eventually};

use super::{
    Machine, NAMESPACE,
    runtime::{Place, Process},
    say_hello, shipped,
};
use crate::deploy::{manifest, proxy::Asked};

/// The container with its own flags and these, and what the kubelet gives every pod to find its API server by.
pub(super) fn start(machine: &Machine, more: &[String], name: &str) -> Process {
    let (container, pod) = (shipped::container(), shipped::pod());
    let context = container.security_context.expect("a security context");
    let of_pod = pod.security_context.expect("a security context of the pod");
    let sysctls = of_pod.sysctls.into_iter().flatten();
    assert_eq!(context.read_only_root_filesystem, Some(true), "as it is run here");
    assert_eq!(context.allow_privilege_escalation, Some(false), "as it is run here");
    assert!(container.env.is_none() && container.command.is_none(), "they would have to be given here");
    let capabilities: Vec<String> = manifest::container_capabilities(&context).into_iter().collect();
    let user = of_pod.run_as_user.expect("a user");
    assert_eq!(of_pod.run_as_group, Some(user));
    let account = machine.shared().join("serviceaccount");
    let place = Place {
        namespace: &machine.namespace,
        directory: machine.directory.path(),
        account: &account,
        args: container.args.expect("flags").into_iter().chain(more.iter().cloned()).collect(),
        env: vec![
            ("KUBERNETES_SERVICE_HOST", Ipv4Addr::LOCALHOST.to_string()),
            ("KUBERNETES_SERVICE_PORT", machine.port.to_string()),
        ],
        id: user.try_into().expect("a user's number"),
        capabilities: &capabilities,
        sysctls: sysctls.map(|it| (it.name, it.value.into())).collect(),
    };
    Process::start(&place, name)
}

/// A certificate for `shop.example` in the Secret, and its authority in a file.
fn issue(machine: &Machine) -> PathBuf {
    let authority = Authority::new();
    let Pair { chain, key } = authority.issue("shop.example");
    let data = json!({"tls.crt": STANDARD.encode(chain), "tls.key": STANDARD.encode(key)});
    machine.create("secrets/default/shop-tls", json!({"type": "kubernetes.io/tls", "data": data}));
    let path = machine.directory.path().join("authority.pem");
    fs::write(&path, authority.pem).unwrap();
    path
}

/// What is in flight when it is asked to end is answered, and others are served until the endpoint is known to be gone.
fn drains(machine: &Machine, http: u16, process: &mut Process) {
    let held = thread::scope(|scope| {
        let client = scope.spawn(|| machine.get_held(http));
        let mut waits = machine.backend.held();
        process.terminate();
        machine.answers(200, http, "plain.example", "/");
        eventually("it takes no more", || {
            ensure!(machine.get(http, "plain.example", "/").is_err(), "it does");
            Ok(())
        })
        .unwrap();
        assert!(process.is_running(), "it waits for what is in flight");
        say_hello(&mut waits).unwrap();
        client.join().expect("no panic").unwrap()
    });
    assert_eq!((held.status, held.body.as_str()), (200, "hello"));
    assert!(process.wait().success());
}

fn is_event(event: &Value, ingress: &str, reason: &str) -> bool {
    event["involvedObject"]["name"] == ingress && event["reason"] == reason
}

#[test]
fn the_pod_asks_for_no_more_than_it_needs() {
    let (container, pod) = (shipped::container(), shipped::pod());
    let context = container.security_context.clone().expect("a security context");
    assert!(manifest::container_capabilities(&context).is_empty());
    assert_ne!(context.privileged, Some(true));
    let of_pod = pod.security_context.expect("a security context of the pod");
    assert_eq!(of_pod.run_as_non_root, Some(true));
    assert_eq!(of_pod.seccomp_profile.expect("a filter").type_, "RuntimeDefault");
    assert_ne!(pod.host_network, Some(true));
    let image = concat!("weir.dev/weir:", env!("CARGO_PKG_VERSION"));
    assert_eq!(container.image.as_deref(), Some(image), "what `cargo xtask image` makes");
    let args = container.args.expect("flags");
    let seconds = |flag: &str| -> i64 {
        let value = args.iter().find_map(|arg| arg.strip_prefix(flag)?.strip_prefix('=')).expect(flag);
        value.strip_suffix('s').expect("seconds").parse().expect("a number")
    };
    let needs = seconds("--shutdown-delay") + seconds("--drain-timeout");
    assert!(pod.termination_grace_period_seconds > Some(needs), "it is killed before it has drained");
}

#[test]
fn clients_reach_the_ports_of_traffic_and_only_the_monitoring_the_admin_port() {
    let policy: NetworkPolicy = manifest::object("ingress/networkpolicy.yaml", "NetworkPolicy");
    let deployment: Deployment = manifest::object("ingress/deployment.yaml", "Deployment");
    let (policy, deployment) = (policy.spec.expect("a spec"), deployment.spec.expect("a spec"));
    let labels = deployment.template.metadata.expect("metadata").labels;
    assert_eq!(policy.pod_selector.expect("a selector").match_labels, labels, "it is about these pods");
    let container = shipped::container();
    let mut open = Vec::new();
    for rule in policy.ingress.expect("rules") {
        let ports = rule.ports.expect("ports").into_iter().map(|port| match port.port {
            Some(IntOrString::String(name)) => shipped::port(&container, &name),
            other => panic!("{other:?} is no name"),
        });
        let is_for_all = rule.from.is_none();
        open.extend(ports.map(|port| (port, is_for_all)));
    }
    assert_eq!(open, [(80, true), (443, true), (9257, false)]);
}

#[test]
fn what_is_shipped_serves_and_asks_for_all_that_it_is_granted() {
    let machine = Machine::new();
    let authority = issue(&machine);
    let container = shipped::container();
    let [http, https] = ["http", "https"].map(|name| shipped::port(&container, name));
    assert_eq!((http, https), (80, 443));
    let (admin, ready) = shipped::probe(&container, container.readiness_probe.as_ref());
    let (same, alive) = shipped::probe(&container, container.liveness_probe.as_ref());
    assert_eq!(admin, same);

    // Alive, and not ready before it knows what it routes by.
    machine.proxy.set_open(false);
    let mut first = start(&machine, &[], "first");
    machine.answers(200, admin, "weir", &alive);
    machine.answers(503, admin, "weir", &ready);
    machine.proxy.set_open(true);
    machine.answers(200, admin, "weir", &ready);
    for (field, wanted) in [
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        assert_eq!(first.status(field), wanted, "{field}");
    }
    assert!(first.status("Uid").starts_with("65532\t65532"));
    machine.answers(200, http, "plain.example", "/");

    // Without a right to its Secret a host has the default certificate, and an Event says why.
    machine.wait_until("the Event", |mirror| {
        let told = mirror.list("events/default/").into_iter().filter(|it| is_event(it, "shop", "BadSecret"));
        told.into_iter().any(|it| {
            it["message"]
                .as_str()
                .is_some_and(|text| text.contains("forbidden") && text.contains("resourceNames"))
        })
    });
    machine.get_tls(None).unwrap();
    let refused = machine.get_tls(Some(&authority)).unwrap_err().to_string();
    assert!(refused.contains("certificate"), "{refused}");
    let refused = machine.proxy.seen().refused;
    let of_secret = |asked: &Asked| {
        asked.action == ("list".into(), String::new(), "secrets".into())
            && asked.namespace.as_deref() == Some("default")
            && asked.name.as_deref() == Some("shop-tls")
    };
    assert!(refused.len() == 1 && refused.iter().all(of_secret), "it asks for more: {refused:?}");
    machine.proxy.bind(shipped::secret_role());
    eventually("its own certificate", || {
        let seen = machine.proxy.seen();
        ensure!(seen.did("list", "", "secrets"), "it has not asked again");
        let answer = machine.get_tls(Some(&authority))?;
        ensure!(answer == "hello", "{answer}");
        Ok(())
    })
    .unwrap();

    // Its Service, once it is there, says where Ingresses are reached.
    let lease = format!("leases/{NAMESPACE}/weir-ingress");
    machine.wait_until("it leads", |mirror| {
        mirror.get(&lease).is_some_and(|lease| lease["spec"]["holderIdentity"].is_string())
    });
    let said = first.said();
    assert_eq!(said.matches("the Service of --publish-service is not there").count(), 1, "{said}");
    for address in ["192.0.2.1", "192.0.2.2"] {
        machine.balance(address);
        machine.is_published(address);
    }

    drains(&machine, http, &mut first);
    machine.wait_until("the Lease is given up", |mirror| {
        mirror.get(&lease).is_some_and(|lease| lease["spec"]["holderIdentity"] == "")
    });

    // The next one finds the same fault, and the Event of the one before.
    let broken = json!({"metadata": {"annotations": {"nginx.ingress.kubernetes.io/server-snippet": "return 418;"}}, "spec": {
        "ingressClassName": "weir", "defaultBackend": {"service": {"name": "shop", "port": {"name": "http"}}},
    }});
    machine.create("ingresses/default/broken", broken);
    for name in ["second", "third"] {
        // It ends by being killed.
        let _next = start(&machine, &[], name);
        machine.answers(200, admin, "weir", &ready);
        machine.wait_until("the Event", |mirror| {
            mirror.list("events/default/").iter().any(|it| is_event(it, "broken", "RefusedAnnotation"))
        });
        if name == "third" {
            eventually("the Event is refreshed", || {
                ensure!(machine.proxy.seen().did("patch", "", "events"));
                Ok(())
            })
            .unwrap();
        }
    }
    let refused = machine.proxy.seen().refused;
    assert!(refused.iter().all(of_secret), "it asks for what its roles do not allow: {refused:?}");
    let unused = machine.proxy.unused();
    assert!(unused.is_empty(), "nobody needs {unused:?}");
}
