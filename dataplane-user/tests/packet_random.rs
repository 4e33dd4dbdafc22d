//! Random frames: a program lets them pass as they are, drops them with a reason, or rewrites them rightly.
//!
//! Frames of every kind, sound ones and spoilt ones, go to every packet program over maps that are full of services; a
//! judge that shares no code with the programs looks at what comes out. A run is rounds, each with a seed of its own and
//! no flows at its beginning, so that a round whose seed is known happens again:
//!
//! ```text
//! WEIR_FUZZ_SECONDS=3600 cargo test --workspace --test packet_random -- --nocapture     a long run
//! WEIR_FUZZ_SEED=81 cargo test --workspace --test packet_random                           one round, again
//! ```

mod packets;
mod random;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::sched::{CloneFlags, unshare};
use packets::{
    Dataplane, Program,
    frame::{SYN, tcp, udp},
};
use random::{Generator, Judge, Model, Outcome, Run};
use weir_dataplane::netlink::Netlink;
use weir_dataplane_ebpf::{Ip4, Mac};

/// Frames of a round: enough for flows to be opened, used, closed and opened again.
const ROUND: u32 = 5_000;
/// Rounds of a run that is given neither time nor seed: some seconds.
const ROUNDS: u64 = 8;

/// Entries of established flows that there is room for: few, so that the table is full at times.
const ESTABLISHED: u32 = 32;

/// What frames came to.
#[derive(Default)]
struct Tally {
    outcomes: BTreeMap<(String, Outcome), u64>,
    reasons: BTreeMap<&'static str, u64>,
    frames: u64,
    /// Most entries of established IPv4 flows at the end of a round.
    fullest: usize,
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is `{text}`, and must be a number")))
}

/// Runs `work` in a network namespace of its own.
fn in_namespace(work: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("packet tests need root");
            work();
        });
        if let Err(panic) = run.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Gives addresses a route and a neighbour, on the loopback link, where test runs happen.
async fn lead_to(addresses: &[IpAddr]) {
    let netlink = Netlink::connect().expect("a netlink socket");
    let loopback = netlink.link("lo").await.expect("links").expect("every namespace has it");
    netlink.set_up(&loopback).await.expect("it goes up");
    for family in ["ipv4", "ipv6"] {
        let path = format!("/proc/sys/net/{family}/conf/all/forwarding");
        std::fs::write(&path, "1").unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    for address in addresses {
        netlink.ensure_host_route(&loopback, *address).await.expect("a route");
        let mac = Mac([2, 0, 0, 0, 2, 1]);
        netlink.ensure_neighbour(&loopback, *address, mac).await.expect("a neighbour");
    }
}

/// One round from its seed.
fn round(dataplane: &mut Dataplane, model: &Model, seed: u64, tally: &mut Tally) {
    dataplane.forget_flows();
    let mut frames = Generator::new(model, seed);
    let mut judge = Judge::new(model);
    let total = |drops: &[(&str, u64)]| drops.iter().map(|it| it.1).sum::<u64>();
    let mut before = dataplane.drops();
    for number in 0..ROUND {
        let (program, input) = frames.next();
        let (verdict, output) = dataplane.run(program, &input);
        let after = dataplane.drops();
        let drops = total(&after) - total(&before);
        let run = Run { program, input: &input, verdict, output: &output, drops };
        match judge.judge(&run) {
            Ok(outcome) => *tally.outcomes.entry((format!("{program:?}"), outcome)).or_default() += 1,
            Err(problem) => panic!(
                "{problem}: frame {number} of WEIR_FUZZ_SEED={seed}, {program:?}, {verdict:?}\n  in {}\n out {}",
                line(&input),
                line(&output)
            ),
        }
        if drops > 0 {
            let earlier = |name| before.iter().find(|it| it.0 == name).map_or(0, |it| it.1);
            for (name, count) in &after {
                *tally.reasons.entry(name).or_default() += count - earlier(*name);
            }
        }
        before = after;
        tally.frames += 1;
    }
    tally.fullest = tally.fullest.max(dataplane.established::<Ip4>());
}

fn line(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[test]
fn no_frame_is_spoilt() {
    in_namespace(|| {
        let mut dataplane = Dataplane::with_flows(ESTABLISHED);
        let model = Model::new(&mut dataplane);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(lead_to(&model.near));
        let mut tally = Tally::default();
        let seconds = number("WEIR_FUZZ_SECONDS");
        if let Some(seed) = number("WEIR_FUZZ_SEED") {
            return round(&mut dataplane, &model, seed, &mut tally);
        }
        if let Some(seconds) = seconds {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
            let first = since.as_secs();
            let end = Instant::now() + Duration::from_secs(seconds);
            println!("first seed: {first}");
            for seed in first.. {
                round(&mut dataplane, &model, seed, &mut tally);
                if Instant::now() > end {
                    break;
                }
            }
        } else {
            for seed in 1..=ROUNDS {
                round(&mut dataplane, &model, seed, &mut tally);
            }
        }
        println!("{} frames, {} each round", tally.frames, ROUND);
        for ((program, outcome), count) in &tally.outcomes {
            println!("{program:<10} {outcome:<12?} {count:>10}");
        }
        for (reason, count) in tally.reasons.iter().filter(|it| *it.1 > 0) {
            println!("dropped    {reason:<16} {count:>6}");
        }
        assert!(tally.fullest >= ESTABLISHED as usize, "the table of established flows was never full");
        // A generator or a model that misses the programs' paths must not look like a success.
        for program in [Program::XdpUplink, Program::TcUplink, Program::TcPod] {
            let on_buffers = [
                Outcome::Delivered,
                Outcome::Error,
                Outcome::Answered,
                Outcome::FollowedUp,
                Outcome::FollowedOn,
            ];
            let on_all = [Outcome::Untouched, Outcome::TranslatedUp, Outcome::TranslatedOn, Outcome::Dropped];
            let on_buffers: &[Outcome] = if program == Program::XdpUplink { &[] } else { &on_buffers };
            for outcome in on_all.iter().chain(on_buffers) {
                let seen = tally.outcomes.contains_key(&(format!("{program:?}"), *outcome));
                assert!(seen, "no frame came to {outcome:?} in {program:?}");
            }
        }
    });
}

#[test]
fn the_judge_sees_every_bit() {
    let mut dataplane = Dataplane::new();
    let model = Model::new(&mut dataplane);
    let frames =
        [tcp("192.168.0.9:40000", "192.168.0.1:30080").flags(SYN), udp("[fd00::9]:40000", "[fd00::1]:30080")];
    for frame in frames {
        let (program, input) = (Program::XdpUplink, frame.bytes());
        let (verdict, output) = dataplane.run(program, &input);
        let judge = |output: &[u8]| {
            Judge::new(&model).judge(&Run { program, input: &input, verdict, output, drops: 0 })
        };
        assert_eq!(judge(&output), Ok(Outcome::TranslatedUp));
        for at in 0..output.len() * 8 {
            let mut wrong = output.clone();
            wrong[at / 8] ^= 1 << (at % 8);
            assert!(judge(&wrong).is_err(), "bit {} of byte {}", at % 8, at / 8);
        }
    }
}
