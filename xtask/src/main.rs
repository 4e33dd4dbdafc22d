//! `cargo xtask`: the only door to everything a developer runs.
//!
//! It depends on little, so that it builds in seconds on a machine that has nothing yet; what it needs of the machine
//! it installs (`setup`), what it needs of Weir it builds (`build`).

mod bench;
mod build;
mod ci;
mod command;
mod image;
mod kernels;
mod setup;
mod test;
mod truth_table;
mod up;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing to build and run Weir on this machine.
    Setup,
    /// Build Weir, start a one-node cluster, apply the example, print the URLs; runs until Ctrl-C.
    Up(up::Flags),
    /// Run all tests, or one kind.
    Test {
        /// Which tests; all kinds when none is named.
        kind: Option<test::Kind>,
        /// Only tests whose name holds this.
        #[arg(long, default_value = "")]
        filter: String,
        /// Run nothing: print which tests prove each promise of a Service, and fail when one of them is not there.
        #[arg(long, conflicts_with = "filter")]
        list: bool,
        /// With `kernels`: write the table of the verifiers' figures anew.
        #[arg(long)]
        bless: bool,
    },
    /// Build Weir's container image, an OCI archive below the target directory.
    Image {
        /// Of the quick build, for trying it.
        #[arg(long)]
        dev: bool,
    },
    /// Throw random frames at the dataplane's programs for so long, and print what became of them.
    Fuzz {
        /// How long.
        #[arg(long, default_value_t = 600)]
        seconds: u64,
    },
    /// Measure, and print each figure beside its peer's.
    Bench {
        /// What to measure.
        subject: bench::Subject,
        /// Also write the rows here, as JSON.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Only these parts, comma-separated. Of the dataplane: packets, live, netns, scale, nft50k; without the flag, all
        /// but nft50k, whose ruleset takes minutes to load. Of the ingress: http1, tls, http2, open-loop, start, routing,
        /// scale.
        #[arg(long, value_name = "PARTS", value_delimiter = ',')]
        only: Vec<String>,
    },
    /// All that must hold before a change lands: fmt, clippy, deny, docs, test.
    Ci,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Setup => setup::run(),
        Task::Up(flags) => up::run(&flags),
        Task::Test { list: true, .. } => truth_table::list(),
        Task::Test { kind, filter, list: false, bless } => test::run(kind, &filter, bless),
        Task::Image { dev } => image::weir(if dev { build::Profile::Dev } else { build::Profile::Release }),
        Task::Fuzz { seconds } => test::fuzz(seconds),
        Task::Bench { subject, json, only } => bench::run(subject, &only, json.as_deref()),
        Task::Ci => ci::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root, wherever the command was started.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("xtask is a folder of the workspace").to_owned()
}
