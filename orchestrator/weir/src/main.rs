//! The executable: one subcommand for each role, `weir up` that runs them all, and the commands that look inside.
//!
//! This crate holds what all roles have in common and no role may know: command line, logs, the API client, the
//! admin server, signals. Each role is a library with a `Config` (its flags), `new` and `run`.

mod admin;
mod explain;
mod on_demand;
mod role;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use weir_dataplane::cli::{self, CliError, MonitorArgs, Output, View, ViewArgs};

use on_demand::OnDemand;

/// A cluster whose network runs in the kernel.
#[derive(Parser)]
#[command(name = "weir", version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every role on this machine: a one-node cluster, until Ctrl-C.
    Up(OnDemand<up::Flags>),
    /// Serve the Kubernetes API.
    Apiserver(OnDemand<role::Flags<weir_apiserver::Config>>),
    /// Decide which node runs each pod.
    Scheduler(OnDemand<role::ClientFlags<weir_scheduler::Config>>),
    /// Drive Deployments, Services, nodes and the rest towards what was asked for.
    Controllers(OnDemand<role::ClientFlags<weir_controllers::Config>>),
    /// Run this node's pods.
    Kubelet(OnDemand<role::ClientFlags<weir_kubelet::Config>>),
    /// Serve Services in the kernel; with a subcommand, look at the live maps.
    Dataplane(OnDemand<DataplaneFlags>),
    /// Serve Ingresses over HTTP and HTTPS; with a subcommand, look at manifests.
    Ingress(OnDemand<IngressFlags>),
    /// Act as the CNI plugin: called by container runtimes, not by people.
    Cni,
    /// Import, list and remove container images.
    Image(OnDemand<weir_kubelet::image::Args>),
    /// Say what would happen to a packet, or to a request, and why.
    Explain(OnDemand<explain::Flags>),
    /// Own one container: started by the kubelet, not by people.
    #[command(hide = true)]
    Shim(OnDemand<weir_kubelet::shim::Args>),
}

#[derive(clap::Args)]
struct DataplaneFlags {
    #[command(flatten)]
    role: role::ClientFlags<weir_dataplane::Config>,
    /// How to print what a subcommand shows.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    output: Output,
    #[command(subcommand)]
    action: Option<DataplaneAction>,
}

#[derive(clap::Args)]
struct IngressFlags {
    #[command(flatten)]
    role: role::ClientFlags<weir_ingress::Config>,
    #[command(subcommand)]
    action: Option<IngressAction>,
}

#[derive(Subcommand)]
enum IngressAction {
    /// Say what would be reported about the Ingresses of a manifest, without a cluster. Fails if there is anything.
    Check {
        /// YAML or JSON documents; `-` is standard input.
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Say which requests a manifest would route differently from now. Exits with 0 if none, with 1 if some, with 2 if
    /// that cannot be told.
    Diff(role::DiffFlags),
}

#[derive(Subcommand)]
enum DataplaneAction {
    #[command(flatten)]
    View(View),
    /// Give Services on this node back: remove all programs and maps, and leave pods their links. Stop the dataplane
    /// and start what serves next before.
    Detach,
    /// Show new flows and drops as they happen, until Ctrl-C; as JSON one object a line.
    Monitor(MonitorArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Up(OnDemand(flags)) => up::main(flags),
        Command::Apiserver(OnDemand(flags)) => role::apiserver(flags),
        Command::Scheduler(OnDemand(flags)) => role::scheduler(flags),
        Command::Controllers(OnDemand(flags)) => role::controllers(flags),
        Command::Kubelet(OnDemand(flags)) => role::kubelet(flags),
        Command::Dataplane(OnDemand(DataplaneFlags { role, output, action })) => match action {
            None => role::dataplane(role),
            Some(DataplaneAction::View(view)) => {
                print(cli::view(view, &ViewArgs { run_dir: role.config.run_dir, output }))
            }
            Some(DataplaneAction::Detach) => role::detach(&role.config.run_dir),
            Some(DataplaneAction::Monitor(args)) => role::monitor(role, &args, output),
        },
        Command::Ingress(OnDemand(IngressFlags { role, action: None })) => role::ingress(role),
        Command::Ingress(OnDemand(IngressFlags { role, action: Some(IngressAction::Check { file }) })) => {
            match weir_ingress::check(&file, &role.config.ingress_class) {
                Ok(checked) => {
                    print!("{}", checked.text());
                    return if checked.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
                }
                Err(error) => Err(error.into()),
            }
        }
        Command::Ingress(OnDemand(IngressFlags { role, action: Some(IngressAction::Diff(flags)) })) => {
            return match role::ingress_diff(flags, role) {
                Ok(is_empty) => ExitCode::from(u8::from(!is_empty)),
                Err(error) => {
                    eprintln!("weir: {error:#}");
                    ExitCode::from(2)
                }
            };
        }
        Command::Explain(OnDemand(flags)) => explain::main(flags),
        Command::Image(OnDemand(args)) => args.run(&mut std::io::stdout()).map_err(Into::into),
        Command::Cni => {
            let env = |name: &str| std::env::var(name).ok();
            return weir_dataplane::cni::main(std::io::stdin(), env, std::io::stdout());
        }
        Command::Shim(OnDemand(args)) => return weir_kubelet::shim::main(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print(text: Result<String, CliError>) -> Result<()> {
    print!("{}", text?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Cli;

    /// Flags are made when their role is asked for; here, all of them.
    #[test]
    fn the_flags_of_every_role_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_role_is_described_as_in_the_list_of_roles() {
        let mut built = Cli::command();
        built.build();
        let mut roles = Cli::command();
        for role in roles.get_subcommands_mut() {
            let name = role.get_name().to_owned();
            let found = built.find_subcommand(&name).expect("the same roles");
            assert_eq!(found.get_about(), role.get_about(), "{name}");
        }
    }
}
