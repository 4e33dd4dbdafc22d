//! Packets from pods: `tc_pod`.

mod packets;

use packets::{
    Dataplane, Frame, GATEWAY_V4, HOST_MAC, POD_MAC, Program, Row, Verdict,
    frame::{SYN, TCP, UDP, tcp, udp},
};
use weir_dataplane_ebpf::{Ip4, NodeConfig, Scope};

const SERVICE: &str = "10.96.0.10:80";
const OTHER_SERVICE: &str = "10.96.0.11:80";
const CLIENT: &str = "10.244.0.9:40000";
const POD: &str = "10.244.0.5:8080";

fn row(description: &'static str, input: Frame, verdict: Verdict, output: Frame) -> Row {
    Row { description, program: Program::TcPod, input, verdict, output: Some(output), drop: None }
}

fn into_pod(frame: Frame) -> Frame {
    frame.ttl(63).link(HOST_MAC, POD_MAC)
}

/// Client and backend are pods of this node.
fn cluster_ip() -> Dataplane {
    let mut dataplane = Dataplane::new();
    dataplane.service::<Ip4>(Scope::INTERNAL, TCP, SERVICE, &[POD], true);
    dataplane.service::<Ip4>(Scope::INTERNAL, UDP, SERVICE, &[POD], true);
    dataplane.endpoint::<Ip4>("10.244.0.5");
    dataplane.endpoint::<Ip4>("10.244.0.9");
    dataplane
}

#[test]
fn pod_to_pod_through_a_cluster_ip() {
    cluster_ip().check(&[
        row(
            "opens",
            tcp(CLIENT, SERVICE).flags(SYN),
            Verdict::Redirect,
            into_pod(tcp(CLIENT, POD).flags(SYN)),
        ),
        row("answer", tcp(POD, CLIENT), Verdict::Redirect, into_pod(tcp(SERVICE, CLIENT))),
        row("goes on", tcp(CLIENT, SERVICE), Verdict::Redirect, into_pod(tcp(CLIENT, POD))),
        row("UDP", udp(CLIENT, SERVICE), Verdict::Redirect, into_pod(udp(CLIENT, POD))),
        row("UDP answer", udp(POD, CLIENT), Verdict::Redirect, into_pod(udp(SERVICE, CLIENT))),
        row("UDP goes on", udp(CLIENT, SERVICE), Verdict::Redirect, into_pod(udp(CLIENT, POD))),
        row(
            "straight to a pod",
            tcp(CLIENT, "10.244.0.5:9999"),
            Verdict::Redirect,
            into_pod(tcp(CLIENT, "10.244.0.5:9999")),
        ),
        row(
            "another port of the service is the stack's to refuse",
            tcp(CLIENT, "10.96.0.10:81").flags(SYN),
            Verdict::Pass,
            tcp(CLIENT, "10.96.0.10:81").flags(SYN),
        ),
        row("the world", tcp(CLIENT, "1.1.1.1:443"), Verdict::Pass, tcp(CLIENT, "1.1.1.1:443")),
        row(
            "the answer to a process of the host",
            tcp(POD, "192.168.0.1:40000"),
            Verdict::Pass,
            tcp(POD, "192.168.0.1:40000"),
        ),
    ]);
}

#[test]
fn a_backend_elsewhere_goes_by_the_stack() {
    let remote = "10.244.7.5:8080";
    let mut dataplane = Dataplane::new();
    dataplane.service::<Ip4>(Scope::INTERNAL, TCP, SERVICE, &[remote], false);
    dataplane.endpoint::<Ip4>("10.244.0.9");
    dataplane.check(&[
        row("opens", tcp(CLIENT, SERVICE).flags(SYN), Verdict::Pass, tcp(CLIENT, remote).flags(SYN)),
        row("goes on", tcp(CLIENT, SERVICE), Verdict::Pass, tcp(CLIENT, remote)),
        Row {
            program: Program::TcUplink,
            ..row("the answer", tcp(remote, CLIENT), Verdict::Redirect, into_pod(tcp(SERVICE, CLIENT)))
        },
    ]);
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let mut dataplane = cluster_ip();
    let itself = "10.244.0.5:40000";
    let (verdict, _) = dataplane.run(Program::TcPod, &tcp(itself, SERVICE).flags(SYN).bytes());
    assert_eq!(verdict, Verdict::Redirect, "{:?}", dataplane.drops());
    let port = dataplane.flow::<Ip4>(TCP, itself, SERVICE).expect("its half").source_port.get();
    let gateway = format!("{GATEWAY_V4}:{port}");
    dataplane.check(&[
        row("goes on", tcp(itself, SERVICE), Verdict::Redirect, into_pod(tcp(&gateway, POD))),
        row("answer", tcp(POD, &gateway), Verdict::Redirect, into_pod(tcp(SERVICE, itself))),
    ]);
}

#[test]
fn two_services_of_one_backend_keep_apart() {
    let mut dataplane = cluster_ip();
    dataplane.service::<Ip4>(Scope::INTERNAL, TCP, OTHER_SERVICE, &[POD], true);
    dataplane.check(&[row(
        "the first keeps its port",
        tcp(CLIENT, SERVICE).flags(SYN),
        Verdict::Redirect,
        into_pod(tcp(CLIENT, POD).flags(SYN)),
    )]);
    let (verdict, _) = dataplane.run(Program::TcPod, &tcp(CLIENT, OTHER_SERVICE).flags(SYN).bytes());
    assert_eq!(verdict, Verdict::Redirect, "{:?}", dataplane.drops());
    let port = dataplane.flow::<Ip4>(TCP, CLIENT, OTHER_SERVICE).expect("the second").source_port.get();
    let moved = format!("10.244.0.9:{port}");
    assert_ne!(port, 40_000, "both answers would carry the same tuple");
    dataplane.check(&[
        row("the first's answer", tcp(POD, CLIENT), Verdict::Redirect, into_pod(tcp(SERVICE, CLIENT))),
        row("the second's answer", tcp(POD, &moved), Verdict::Redirect, into_pod(tcp(OTHER_SERVICE, CLIENT))),
        row("the second goes on", tcp(CLIENT, OTHER_SERVICE), Verdict::Redirect, into_pod(tcp(&moved, POD))),
    ]);
}

#[test]
fn a_lost_half_is_found_again() {
    let mut dataplane = cluster_ip();
    dataplane.check(&[row(
        "opens",
        tcp(CLIENT, SERVICE).flags(SYN),
        Verdict::Redirect,
        into_pod(tcp(CLIENT, POD).flags(SYN)),
    )]);
    dataplane.remove_flow::<Ip4>(TCP, CLIENT, SERVICE);
    dataplane.check(&[
        row("without the client's half", tcp(CLIENT, SERVICE), Verdict::Redirect, into_pod(tcp(CLIENT, POD))),
        row("the answer still fits", tcp(POD, CLIENT), Verdict::Redirect, into_pod(tcp(SERVICE, CLIENT))),
    ]);
    dataplane.remove_flow::<Ip4>(TCP, POD, CLIENT);
    // A packet that changes the flow's life looks after the other half at once.
    let fin = tcp(CLIENT, SERVICE).flags(packets::frame::FIN | packets::frame::ACK);
    dataplane.run(Program::TcPod, &fin.bytes());
    dataplane.check(&[row("repaired", tcp(POD, CLIENT), Verdict::Redirect, into_pod(tcp(SERVICE, CLIENT)))]);
}

#[test]
fn hairpin_needs_an_address_of_the_node() {
    let mut dataplane = cluster_ip();
    dataplane.configure(NodeConfig::default());
    dataplane.check(&[Row {
        description: "no gateway",
        program: Program::TcPod,
        input: tcp("10.244.0.5:40000", SERVICE).flags(SYN),
        verdict: Verdict::Drop,
        output: None,
        drop: Some("no-gateway"),
    }]);
}
