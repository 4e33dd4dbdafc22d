//! A network for test runs: this node at 198.51.100.1, and another with its pods behind the same link.

use weir_tests::Namespace;

/// The other node's link address.
pub(crate) const NEXT: [u8; 6] = [2, 0, 0, 0, 2, 2];
/// The MTU of the test link: the loopback device's.
pub(crate) const MTU: usize = 1_500;

/// A way to the other node: a test run's packets come in by the loopback device.
pub(crate) fn in_a_network(work: impl FnOnce() + Send) {
    let namespace = Namespace::new().expect("a namespace of its own");
    for words in [
        "link set lo up mtu 1500",
        "address add 198.51.100.1/24 dev lo",
        "address add 2001:db8::1/64 dev lo nodad",
        "neighbour add 198.51.100.2 lladdr 02:00:00:00:02:02 dev lo nud permanent",
        "neighbour add 2001:db8::2 lladdr 02:00:00:00:02:02 dev lo nud permanent",
        "route add 198.51.100.2/32 dev lo",
        "-6 route add 2001:db8::2/128 dev lo",
        "route add 10.244.8.0/24 via 198.51.100.2",
    ] {
        namespace.ip(words).expect("a link, an address, a neighbour or a route");
    }
    namespace.inside(|| {
        for family in ["ipv4", "ipv6"] {
            std::fs::write(format!("/proc/sys/net/{family}/conf/all/forwarding"), "1").expect("a setting");
        }
        work();
    });
}

/// Whether programs are told MTUs: Linux 5.12 is the first whose `bpf_fib_lookup` tells a route's. Before it no flow knows
/// what fits.
pub(crate) fn knows_mtus() -> bool {
    let kernel = nix::sys::utsname::uname().expect("every kernel tells");
    let knows = !kernel.release().to_string_lossy().starts_with("5.10.");
    if !knows {
        println!("NOT RUN: this kernel tells programs no MTU");
    }
    knows
}
