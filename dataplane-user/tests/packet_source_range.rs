//! Source ranges in the packets' path: who may open a connection to a load balancer's address.

mod packets;

use std::net::SocketAddr;

use aya::maps::lpm_trie::Key;
use packets::{
    Dataplane, Family, Frame, Program, Row, Service, Verdict,
    frame::{SYN, TCP, tcp, udp},
};
use weir_dataplane::cidr::Cidr;
use weir_dataplane_ebpf::{
    Be16, Frontend, FrontendKey, Ip4, Ip6, Protocol, Scope, SourceRange, SourceRangeKey,
};

const LOAD_BALANCER: &str = "192.0.2.1:80";
const POD: &str = "10.244.0.5:8080";

/// Restricts a TCP frontend to these ranges.
fn restrict<A: Family>(
    dataplane: &mut Dataplane,
    scope: Scope,
    frontend: &str,
    service: &Service,
    ranges: &[&str],
) {
    for range in ranges {
        let range: Cidr = range.parse().expect("a range");
        let key = SourceRangeKey::new(service.value.service, A::parse(range.network()), range.prefix());
        let map = if range.network().is_ipv4() { "source_ranges_v4" } else { "source_ranges_v6" };
        let key = Key::new(key.prefix_len, key.range);
        dataplane.trie::<SourceRange<A>, u32>(map).insert(&key, 0, 0).expect("room");
    }
    let address: SocketAddr = frontend.parse().expect("ADDRESS:PORT");
    let key = FrontendKey {
        address: A::parse(address.ip()),
        port: Be16::new(address.port()),
        protocol: Protocol::TCP,
        scope,
    };
    let value = Frontend { flags: Frontend::FLAG_SOURCE_RANGES, ..service.value };
    A::insert_frontend(dataplane, key, value);
}

fn admitted(description: &'static str, program: Program, input: Frame, output: Frame) -> Row {
    Row { description, program, input, verdict: Verdict::Pass, output: Some(output), drop: None }
}

fn refused(description: &'static str, program: Program, input: Frame) -> Row {
    Row { description, program, input, verdict: Verdict::Drop, output: None, drop: Some("source-range") }
}

/// A SYN to the load balancer's address, and what the pod gets of it.
fn syn(client: &str, load_balancer: &str, pod: &str) -> (Frame, Frame) {
    (tcp(client, load_balancer).flags(SYN), tcp(client, pod).flags(SYN))
}

#[test]
fn only_clients_in_a_range_open_connections() {
    let mut dataplane = Dataplane::new();
    let service = dataplane.service::<Ip4>(Scope::EXTERNAL, TCP, LOAD_BALANCER, &[POD], true);
    let other = dataplane.service::<Ip4>(Scope::EXTERNAL, TCP, "192.0.2.2:80", &[POD], true);
    dataplane.service::<Ip4>(Scope::EXTERNAL, TCP, "192.168.0.1:30080", &[POD], true);
    restrict::<Ip4>(
        &mut dataplane,
        Scope::EXTERNAL,
        LOAD_BALANCER,
        &service,
        &["203.0.112.0/21", "203.0.113.7/32"],
    );
    restrict::<Ip4>(&mut dataplane, Scope::EXTERNAL, "192.0.2.2:80", &other, &["0.0.0.0/0"]);
    // Each program opens flows of its own.
    for (program, port) in [(Program::XdpUplink, 40_000), (Program::TcUplink, 41_000)] {
        let from = |address: &str, n: u16| format!("{address}:{}", port + n);
        let to = |address: &str| syn(&from(address, 0), LOAD_BALANCER, POD);
        let admit = |description, (input, output)| admitted(description, program, input, output);
        dataplane.check(&[
            admit("the first address of the range", to("203.0.112.0")),
            admit("its last", to("203.0.119.255")),
            admit("a range within the range", to("203.0.113.7")),
            refused("the address before", program, to("203.0.111.255").0),
            refused("the address after", program, to("203.0.120.0").0),
            admit("everyone is in 0.0.0.0/0", syn(&from("8.8.8.8", 1), "192.0.2.2:80", POD)),
            refused("and that is the other service's", program, to("8.8.8.8").0),
            admit("a NodePort is not restricted", syn(&from("8.8.8.8", 2), "192.168.0.1:30080", POD)),
        ]);
    }
    dataplane.check(&[admitted(
        "UDP on the same port is nobody's",
        Program::XdpUplink,
        udp("8.8.8.8:40000", LOAD_BALANCER),
        udp("8.8.8.8:40000", LOAD_BALANCER),
    )]);
}

#[test]
fn ipv6_ranges_are_compared_to_their_last_bit() {
    let (load_balancer, pod) = ("[2001:db8::1]:80", "[fd00:244::5]:8080");
    let mut dataplane = Dataplane::new();
    let service = dataplane.service::<Ip6>(Scope::EXTERNAL, TCP, load_balancer, &[pod], true);
    let ranges = ["2001:db8:2::/47", "2001:db8:9::7/128"];
    restrict::<Ip6>(&mut dataplane, Scope::EXTERNAL, load_balancer, &service, &ranges);
    let to = |client: &str| syn(client, load_balancer, pod);
    let xdp = Program::XdpUplink;
    let admit = |description, (input, output)| admitted(description, xdp, input, output);
    dataplane.check(&[
        admit("the first address", to("[2001:db8:2::]:40000")),
        admit("the last address", to("[2001:db8:3:ffff:ffff:ffff:ffff:ffff]:40000")),
        refused("before", xdp, to("[2001:db8:1:ffff:ffff:ffff:ffff:ffff]:40000").0),
        refused("after", xdp, to("[2001:db8:4::]:40000").0),
        admit("one address", to("[2001:db8:9::7]:40000")),
        refused("its neighbour", xdp, to("[2001:db8:9::6]:40000").0),
    ]);
}

#[test]
fn pods_are_clients_like_any_other() {
    let mut dataplane = Dataplane::new();
    let service = dataplane.service::<Ip4>(Scope::INTERNAL, TCP, LOAD_BALANCER, &["10.244.7.5:80"], false);
    dataplane.service::<Ip4>(Scope::INTERNAL, TCP, "10.96.0.10:80", &["10.244.7.5:80"], false);
    restrict::<Ip4>(&mut dataplane, Scope::INTERNAL, LOAD_BALANCER, &service, &["10.244.0.8/29"]);
    let pod = Program::TcPod;
    let (input, output) = syn("10.244.0.9:40000", LOAD_BALANCER, "10.244.7.5:80");
    let (cluster_ip, backend) = syn("10.244.0.16:40000", "10.96.0.10:80", "10.244.7.5:80");
    dataplane.check(&[
        admitted("in the range", pod, input, output),
        refused("outside of it", pod, tcp("10.244.0.16:40000", LOAD_BALANCER).flags(SYN)),
        admitted("the ClusterIP is not restricted", pod, cluster_ip, backend),
    ]);
}

#[test]
fn without_any_range_nobody_is_admitted_and_what_runs_goes_on() {
    let mut dataplane = Dataplane::new();
    let service = dataplane.service::<Ip4>(Scope::EXTERNAL, TCP, LOAD_BALANCER, &[POD], true);
    let (client, other) = ("203.0.113.7:40000", "203.0.113.7:40001");
    let xdp = Program::XdpUplink;
    let (input, output) = syn(client, LOAD_BALANCER, POD);
    dataplane.check(&[admitted("open", xdp, input, output)]);
    restrict::<Ip4>(&mut dataplane, Scope::EXTERNAL, LOAD_BALANCER, &service, &[]);
    dataplane.check(&[
        refused("a new connection", xdp, tcp(other, LOAD_BALANCER).flags(SYN)),
        admitted("the old one", xdp, tcp(client, LOAD_BALANCER), tcp(client, POD)),
    ]);
}
