//! Tests by kind. An integration test's file name says its kind: `packet_…`, `netns_…`, `cluster_…`, `kernels_…`; the
//! rest are unit tests and need no privilege.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Deserialize;

use crate::{
    build,
    command::{self, cargo},
    image, kernels, setup,
};

/// What a test needs to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Values, golden files, in-process servers on loopback.
    Unit,
    /// Packet tables through `BPF_PROG_TEST_RUN`; needs root.
    Packet,
    /// Network namespaces; needs root.
    Netns,
    /// A whole cluster in a namespace; needs root and kubectl.
    Cluster,
    /// The packet tables on every kernel that Debian ships, in emulated machines; needs root and most of an hour, so
    /// that it runs only when it is named.
    Kernels,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Unit, Self::Packet, Self::Netns, Self::Cluster];

    fn of(test: &str) -> Self {
        match test.split('_').next() {
            Some("packet") => Self::Packet,
            Some("netns") => Self::Netns,
            Some("cluster") => Self::Cluster,
            Some("kernels") => Self::Kernels,
            _ => Self::Unit,
        }
    }
}

/// What a run of tests came to.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
}

/// Runs one kind, or all; ends with a line that counts.
pub(crate) fn run(kind: Option<Kind>, filter: &str, bless: bool) -> Result<()> {
    ensure!(!bless || kind == Some(Kind::Kernels), "only the kind `kernels` has a table to bless");
    setup::run()?;
    let kinds = kind.map_or(Kind::ALL.to_vec(), |kind| vec![kind]);
    if kinds.contains(&Kind::Unit) {
        setup::attackers()?;
    }
    if kinds.contains(&Kind::Netns) {
        setup::browser()?;
    }
    if kinds.contains(&Kind::Cluster) {
        setup::containers()?;
    }
    let targets = targets()?;
    let mut tally = Tally::default();
    let mut complete = true;
    if kind == Some(Kind::Kernels) {
        let tests = targets.iter().map(String::as_str);
        let tests: Vec<&str> =
            tests.filter(|test| matches!(Kind::of(test), Kind::Packet | Kind::Kernels)).collect();
        let (passed, failed) = kernels::run(&tests, filter, bless)?;
        println!("{passed} passed, {failed} failed");
        return Ok(());
    }
    for kind in kinds {
        let tests: Vec<&str> =
            targets.iter().map(String::as_str).filter(|test| Kind::of(test) == kind).collect();
        if kind != Kind::Unit && tests.is_empty() {
            continue;
        }
        let mut command = cargo(["test", "--workspace", "--no-fail-fast"]);
        if kind == Kind::Unit {
            command.args(["--lib", "--bins"]);
        }
        for test in tests {
            command.args(["--test", test]);
        }
        if kind == Kind::Cluster {
            command.env("WEIR", build::weir(build::Profile::Dev)?).env("WEIR_ECHO_IMAGE", image::echo()?);
        }
        command.args(["--", filter]);
        if kind != Kind::Unit {
            // Each of these drives a machine's worth of work.
            command.arg("--test-threads=1");
        }
        complete &= count(&mut command, &mut tally)?;
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    ensure!(complete && tally.failed == 0, "tests failed");
    Ok(())
}

/// The long run of the random frames, of which the packet tests make a short one.
pub(crate) fn fuzz(seconds: u64) -> Result<()> {
    setup::run()?;
    let mut command =
        cargo(["test", "--workspace", "--test", "packet_random", "--", "--nocapture", "no_frame"]);
    command::run(command.env("WEIR_FUZZ_SECONDS", seconds.to_string()))
}

/// The names of the workspace's integration tests.
fn targets() -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        targets: Vec<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: Vec<String>,
    }
    let text = command::output(&mut cargo(["metadata", "--format-version=1", "--no-deps"]))?;
    let metadata: Metadata = serde_json::from_str(&text)?;
    let targets = metadata.packages.into_iter().flat_map(|package| package.targets);
    Ok(targets.filter(|target| target.kind == ["test"]).map(|target| target.name).collect())
}

/// Runs cargo, passes its output on, adds up the closing lines. Returns whether cargo was content.
fn count(command: &mut Command, tally: &mut Tally) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("starting cargo test")?;
    let output = child.stdout.take().expect("standard output was asked for");
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        if let Some(result) = line.strip_prefix("test result: ") {
            tally.passed += number_before(result, " passed");
            tally.failed += number_before(result, " failed");
        }
    }
    Ok(child.wait()?.success())
}

/// The number that stands before `word`.
fn number_before(line: &str, word: &str) -> u64 {
    let before = line.split(word).next().unwrap_or_default();
    before.rsplit(' ').next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
