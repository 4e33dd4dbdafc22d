//! The dataplane's programs before the verifier of every kernel that Debian ships, and the packet tables and a node on each.
//!
//! Each kernel is booted in an emulated machine of its own ([`machine`]) that holds these tests and little else. Not
//! part of [`crate::ci`]: without hardware virtualisation the emulated verifiers take minutes for each kernel.

mod machine;
mod packages;
mod verifier;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::{
    build,
    command::{self, cargo},
    setup,
};

/// A kernel of Debian's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel {
    /// The suite that it comes from.
    suite: &'static str,
    /// How its version begins; empty for the suite whose kernel is the newest there is.
    series: &'static str,
}

/// Oldest first. The programs need `bpf_redirect_peer` (5.10) and, with it, what is older; 5.10 is also the oldest that
/// any Debian release carries.
const KERNELS: [Kernel; 4] = [
    Kernel { suite: "bullseye", series: "5.10." },
    Kernel { suite: "bookworm", series: "6.1." },
    Kernel { suite: "trixie", series: "6.12." },
    Kernel { suite: "trixie-backports", series: "" },
];

/// Machines at once; an emulated one keeps a CPU busy.
const MACHINES: usize = 2;

/// What came of one kernel.
struct Report {
    kernel: Kernel,
    /// What the kernel calls itself.
    release: String,
    outcome: machine::Outcome,
}

/// Boots every kernel with all `packet_` and `kernels_` tests whose names hold `filter`; with `bless` the table of the
/// verifier's figures is written anew. Returns how many tests passed and failed.
pub(crate) fn run(tests: &[&str], filter: &str, bless: bool) -> Result<(u64, u64)> {
    ensure!(cfg!(target_arch = "x86_64"), "the kernel matrix is x86-64's; this machine is another");
    setup::emulator()?;
    let tests = executables(tests)?;
    let directory = build::target_dir()?.join("kernels");
    let reports = boot_all(&directory, &tests, filter)?;
    let (mut passed, mut failed) = (0, 0);
    let mut broken = Vec::new();
    for report in &reports {
        let outcome = &report.outcome;
        (passed, failed) = (passed + outcome.passed, failed + outcome.failed);
        let name = format!("{} ({})", report.release, report.kernel.suite);
        println!("{name}: {} passed, {} failed", outcome.passed, outcome.failed);
        if let Some(problem) = &outcome.problem {
            println!("{}\n{name}: {problem}; its console is above", outcome.console);
            broken.push(name);
        }
    }
    ensure!(broken.is_empty(), "not well: {}", broken.join(", "));
    // A filter may have left the verifier's test out.
    if reports.iter().all(|report| !report.outcome.verified.is_empty()) {
        let found: Vec<(String, BTreeMap<String, u32>)> = reports
            .into_iter()
            .map(|report| (format!("{}:{}", report.kernel.suite, report.release), report.outcome.verified))
            .collect();
        verifier::check(&found, bless)?;
    }
    Ok((passed, failed))
}

/// The test executables, as cargo has just built them.
fn executables(tests: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        target: Option<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    let mut command = cargo(["test", "--workspace", "--no-run", "--message-format=json"]);
    for test in tests {
        command.args(["--test", test]);
    }
    let mut found = Vec::new();
    for line in command::output(&mut command)?.lines().filter(|line| line.starts_with('{')) {
        let message: Message = serde_json::from_str(line).context("reading what cargo says of its build")?;
        if let (Some(executable), Some(target)) = (message.executable, message.target)
            && tests.contains(&target.name.as_str())
        {
            found.push((target.name, executable));
        }
    }
    ensure!(found.len() == tests.len(), "cargo built {} of {} tests", found.len(), tests.len());
    found.sort();
    Ok(found)
}

/// All kernels, [`MACHINES`] at a time, in their order.
fn boot_all(directory: &Path, tests: &[(String, PathBuf)], filter: &str) -> Result<Vec<Report>> {
    let mut images = Vec::new();
    for kernel in KERNELS {
        let image = packages::image(directory, kernel.suite)
            .with_context(|| format!("the kernel of {}", kernel.suite))?;
        let release = image.release.clone();
        if !release.starts_with(kernel.series) {
            bail!(
                "{} has {release}, where {}x was expected: mend the list of kernels",
                kernel.suite,
                kernel.series
            );
        }
        images.push((kernel, image));
    }
    let archive = machine::archive(directory, tests, filter)?;
    let mut reports = Vec::new();
    for some in images.chunks(MACHINES) {
        let outcomes: Vec<Result<machine::Outcome>> = thread::scope(|scope| {
            let started: Vec<_> = some
                .iter()
                .map(|(_, image)| {
                    eprintln!("booting {}", image.release);
                    scope.spawn(|| machine::boot(image, &archive, tests))
                })
                .collect();
            started.into_iter().map(|it| it.join().expect("a boot does not panic")).collect()
        });
        for ((kernel, image), outcome) in some.iter().zip(outcomes) {
            reports.push(Report { kernel: *kernel, release: image.release.clone(), outcome: outcome? });
        }
    }
    Ok(reports)
}
