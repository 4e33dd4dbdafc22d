use weir_dataplane_ebpf::Scope;

use super::{why::merge, *};
use crate::{plan::desired::Judged, reasons::Reasons};

fn address(n: u8) -> SocketAddr {
    ([10, 244, 1, n], 8080).into()
}

fn candidate(n: u8, slots: u32) -> Candidate {
    Candidate {
        id: n.into(),
        address: address(n),
        local: n == 1,
        node: None,
        active: true,
        slots,
        verdict: None,
        why: None,
    }
}

/// A table of two endpoints, of which the first is chosen, and nothing from outside.
fn report(reasons: Result<Reasons, &str>) -> Report {
    let mut internal = Explanation {
        scope: scope_name(Scope::INTERNAL),
        service: Some("default/web:http".into()),
        policy: Some("cluster"),
        slots: 4,
        slot: Some(2),
        chosen: Some(address(1)),
        candidates: vec![candidate(1, 3), candidate(2, 1)],
        paths: vec!["TC on the pod link: opens a flow to 10.244.1.1:8080".into()],
        ..Explanation::default()
    };
    match reasons {
        Ok(reasons) => merge(&mut internal, reasons),
        Err(unknown) => internal.reasons_unknown = Some(unknown.into()),
    }
    let external = Explanation {
        scope: scope_name(Scope::EXTERNAL),
        paths: vec!["no service has this address and port here: passed on untouched".into()],
        ..Explanation::default()
    };
    Report { flows: FlowReport { request: None, reply: None }, scopes: vec![internal, external] }
}

fn args() -> ExplainArgs {
    ExplainArgs {
        protocol: "tcp".into(),
        source: "10.244.0.2:40000".parse().unwrap(),
        destination: "10.96.0.1:80".parse().unwrap(),
        view: ViewArgs { run_dir: "/run/weir".into(), output: Output::Table },
    }
}

fn judged(n: u8, verdict: Verdict, listed: u32) -> Judged {
    Judged { address: address(n), verdict, listed }
}

fn reasons(endpoints: Vec<Judged>) -> Reasons {
    Reasons { zone: Some("zone-a".into()), endpoints, more: 0, complaints: Vec::new() }
}

#[test]
fn every_endpoint_has_its_reason() {
    use Verdict::*;
    let endpoints = vec![
        judged(1, Near, 1),
        judged(2, NotReady, 1),
        judged(3, Ready, 1),
        judged(4, LastResort, 1),
        judged(5, NotReady, 2),
        judged(6, Terminating, 1),
        judged(7, Ended, 1),
        judged(8, OtherZone, 1),
        judged(9, NotLocal, 1),
        judged(10, OtherFamily, 1),
        judged(11, NoRoom, 1),
    ];
    let complaints = vec!["2 endpoints get no connections".to_owned()];
    let text = text(&report(Ok(Reasons { more: 7, complaints, ..reasons(endpoints) })), &args());
    let expected = "\
tcp 10.244.0.2:40000 -> 10.96.0.1:80
  flow, request: none
  flow, reply: none
  from this node (internal): default/web:http, policy cluster
    10.244.1.1:8080 (here): 3 of 4 slots, ready and meant for zone zone-a  <- chosen
    10.244.1.2:8080 (elsewhere): 1 of 4 slots, still in the table, but not ready
    10.244.1.3:8080: not taken, ready, but not in the maps
    10.244.1.4:8080: not taken, terminating but serving, and none is ready, but not in the maps
    10.244.1.5:8080: not taken, not ready; in 2 slices, and counts once
    10.244.1.6:8080: not taken, terminating, and others are ready
    10.244.1.7:8080: not taken, terminating and not serving any more
    10.244.1.8:8080: not taken, meant for other zones than this node's zone-a
    10.244.1.9:8080: not taken, on another node, and the policy is local
    10.244.1.10:8080: not taken, of the other address family
    10.244.1.11:8080: not taken, beyond the endpoints that a service has room for, 65536 for all its ports
    7 more endpoints, of which nothing is said here
    not served as asked: 2 endpoints get no connections
    slot 2 of 4
    TC on the pod link: opens a flow to 10.244.1.1:8080
  from outside (external): no service
    no service has this address and port here: passed on untouched
";
    assert_eq!(text, expected);
}

#[test]
fn without_an_agent_the_maps_are_explained_all_the_same() {
    let text = text(&report(Err("no agent runs here")), &args());
    let expected = "
    10.244.1.1:8080 (here): 3 of 4 slots  <- chosen
    10.244.1.2:8080 (elsewhere): 1 of 4 slots
    why other endpoints are not taken is not known: no agent runs here
    slot 2 of 4
";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn json_has_the_verdict_beside_the_words() {
    let report = report(Ok(reasons(vec![judged(1, Verdict::Ready, 1), judged(3, Verdict::NotLocal, 1)])));
    let value = serde_json::to_value(&report).unwrap();
    let internal = &value["scopes"][0];
    let candidate = serde_json::json!({
        "id": 1, "address": "10.244.1.1:8080", "local": true, "active": true, "slots": 3,
        "verdict": "ready", "why": "ready",
    });
    assert_eq!(internal["candidates"][0], candidate);
    let gone = "still in the table, but no endpoint of the service any more";
    assert_eq!(internal["candidates"][1]["why"], gone);
    assert_eq!(internal["candidates"][1]["verdict"], serde_json::Value::Null);
    let not_taken = serde_json::json!([{
        "address": "10.244.1.3:8080", "verdict": "not-local", "why": "on another node, and the policy is local",
    }]);
    assert_eq!(internal["notTaken"], not_taken);
    assert_eq!((&internal["notTold"], &internal["complaints"]), (&0.into(), &serde_json::json!([])));
    assert_eq!(internal["reasonsUnknown"], serde_json::Value::Null);
}
