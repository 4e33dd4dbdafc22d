//! `weir shim`: the process that owns one container.
//!
//! A container must outlive the kubelet, so something else must be its parent: keep its output, reap it, and note how
//! it ended. That is all a shim does. It is a process of its own and single-threaded, because libcontainer clones,
//! and a clone of a threaded process may find any lock held for ever; and because it stays for as long as the
//! container does, it must be small, so that everything that allocates happens in a child that ends:
//!
//! ```text
//! kubelet ──exec──▶ shim run ──exec──▶ shim create ──clone──▶ the container's first process
//!                      ▲                (ends here)                 │
//!                      └─────────── reaps, as subreaper ────────────┘
//! kubelet ──exec──▶ shim exec ──clone──▶ a command in the container: probes, hooks
//! ```
//!
//! **Telling the kubelet.** The shim's stdin is one end of a socket pair, and `shim.sock` in the container's directory
//! takes any later connection: both carry the messages of `record`, and orders the other way. The end of the stream is
//! the end of the shim, however it ended; `exit.json` then says how the container did. A shim that dies without one
//! was killed itself, which the runtime notices by that.
//!
//! Callers: the embedded runtime starts it, the executable dispatches it before it makes any thread.

mod create;
mod exec;
mod log;
mod monitor;
mod payload;
pub(crate) mod record;

use std::{path::PathBuf, process::ExitCode};

/// Owns a container; started by the kubelet, not by hand.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The shim's stages.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Runs the container prepared in a directory until it ends.
    Run {
        /// The container's directory.
        directory: PathBuf,
    },
    /// Makes and starts the container's first process, then ends.
    Create {
        /// The container's directory.
        directory: PathBuf,
    },
    /// Runs a command in the container.
    Exec {
        /// The container's directory.
        directory: PathBuf,
        /// Kills the command after so long.
        #[arg(long)]
        timeout_ms: u64,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

/// Runs a stage. To be called by a process that has one thread.
pub fn main(args: Args) -> ExitCode {
    let succeeded = match args.command {
        Command::Run { directory } => monitor::run(&directory),
        Command::Create { directory } => create::run(&directory),
        Command::Exec { directory, timeout_ms, command } => exec::run(&directory, timeout_ms, command),
    };
    if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
