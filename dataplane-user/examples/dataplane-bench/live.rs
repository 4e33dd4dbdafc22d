//! Frames that really leave: how many a program sends on one core (`BPF_F_TEST_XDP_LIVE_FRAMES`), beside one that only
//! swaps the link addresses. A veth takes them, not a NIC; a program at its other end drops them.

use std::time::Instant;

use aya::programs::{Xdp, XdpMode};
use weir_dataplane::programs::XDP_UPLINK;
use weir_tests::{Goal, Namespace, Row};

use crate::{
    CLIENT_V4, Driver, FRONTEND_V4, Hook, IN_ORDER, Place, check_entries, dataplane, driver, driver::Flows,
    lay_routes, packets::frame::tcp, padded,
};

/// Samples of each figure.
const RUNS: usize = 5;
/// Frames of a sample.
const FRAMES: u32 = 4_000_000;

pub(crate) fn measure() -> Vec<Row> {
    let namespace = Namespace::new().expect("a network namespace of its own");
    lay_routes(&namespace);
    namespace.inside(|| {
        let mut driver = Driver::new();
        let drop: &mut Xdp = driver.program_mut("drop_xdp").try_into().expect("its type");
        drop.attach("up1", XdpMode::Driver).expect("veth takes native XDP");
        let ifindex = nix::net::if_::if_nametoindex("up0").expect("it was made");
        let frame = padded(&tcp(CLIENT_V4, FRONTEND_V4));
        let one = Flows { count: 1, stride: IN_ORDER, first: 0 };

        let swap = driver::fd(driver.empty("swap_xdp"));
        let mut dataplane = dataplane(Place::Far);
        let weir = driver::fd(dataplane.program_mut(XDP_UPLINK));
        // The flow's entries.
        driver.run(Hook::Xdp, &weir, &frame, one, 1);
        check_entries(&mut dataplane, Place::Far, 1);
        let (mut swapped, mut served) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            for (target, samples) in [(&swap, &mut swapped), (&weir, &mut served)] {
                let before = received("up1");
                let started = Instant::now();
                driver.run_live(target, &frame, one, FRAMES, ifindex);
                let seconds = started.elapsed().as_secs_f64();
                let sent = received("up1") - before;
                assert!(sent >= u64::from(FRAMES) * 99 / 100, "{sent} of {FRAMES} frames left");
                samples.push(sent as f64 / seconds / 1e6);
            }
        }
        let swapped = Row::of("live frames, link addresses swapped, one core, veth", "Mpps", &swapped);
        let served = Row::of("live frames, backend on another node, one core, veth", "Mpps", &served);
        vec![served.beside(&swapped).goal(Goal::AtLeast(4.3)), swapped]
    })
}

/// Frames that a link has taken in.
fn received(link: &str) -> u64 {
    let output =
        std::process::Command::new("ip").args(["-s", "-j", "link", "show", link]).output().expect("iproute2");
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    links[0]["stats64"]["rx"]["packets"].as_u64().expect("a counter")
}
