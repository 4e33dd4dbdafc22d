//! `cargo xtask up`: from a fresh machine to a page in the browser.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{SigSet, Signal};

use crate::{
    build::{self, Profile},
    command, image, root, setup,
};

/// The hosts of the example's Ingress.
const HOSTS: [&str; 2] = ["shop.example", "admin.shop.example"];
/// The paths of its first host, and the Service that answers on each.
const PATHS: [(&str, &str); 2] = [("/", "catalog"), ("/checkout", "checkout")];
/// The line of `weir up` that says all is there.
const READY: &str = "all roles run";

/// Flags of `cargo xtask up`.
#[derive(clap::Args)]
pub(crate) struct Flags {
    /// Where the cluster keeps its files.
    #[arg(long, default_value = "/var/lib/weir")]
    data_dir: PathBuf,
    /// Interfaces that outside traffic arrives on. With `none`, no program is attached to this machine's interfaces:
    /// its own processes reach every Service, and the outside reaches the ingress.
    #[arg(long, default_value = "none")]
    uplink: String,
    /// More flags for `weir up`, behind `--`.
    #[arg(last = true)]
    more: Vec<String>,
}

/// Runs until Ctrl-C.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    setup::run()?;
    let weir = build::weir(Profile::Release)?;
    let image = image::echo()?;
    command::run(
        Command::new(&weir).args(["image", "import"]).arg("--data-dir").arg(&flags.data_dir).arg(image),
    )?;

    let mut up = Command::new(&weir)
        .args(["up", "--uplink", &flags.uplink])
        .arg("--data-dir")
        .arg(&flags.data_dir)
        .args(&flags.more)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting weir up")?;
    // Ctrl-C is for weir up, which takes everything down; this process waits for it and then ends. Blocked only now, since
    // a child inherits what is blocked.
    let mut interrupt = SigSet::empty();
    interrupt.add(Signal::SIGINT);
    interrupt.thread_block()?;
    let shown = show_example(&mut up, &weir, flags);
    if let Err(error) = &shown {
        eprintln!("xtask: {error:#}");
    }
    let status = up.wait()?;
    ensure!(status.success(), "weir up ended with {status}");
    shown
}

/// Passes on what `weir up` says; once all runs, applies the example and prints how to reach it.
fn show_example(up: &mut Child, weir: &Path, flags: &Flags) -> Result<()> {
    let output = up.stdout.take().expect("standard output was asked for");
    let mut lines = BufReader::new(output).lines();
    for line in lines.by_ref() {
        let line = line?;
        println!("{line}");
        if line.contains(READY) {
            break;
        }
    }
    if up.try_wait()?.is_none() {
        apply_example(weir, flags)?;
    }
    for line in lines {
        println!("{}", line?);
    }
    Ok(())
}

fn apply_example(weir: &Path, flags: &Flags) -> Result<()> {
    let certificate = certificate(&flags.data_dir)?;
    let kubeconfig = flags.data_dir.join("kubeconfig/admin.kubeconfig");
    let kubectl = |words: &[&str]| {
        let mut kubectl = Command::new("kubectl");
        kubectl.arg("--kubeconfig").arg(&kubeconfig).args(words);
        kubectl
    };
    let secret = command::output(
        kubectl(&["create", "secret", "tls", "shop-tls", "--dry-run=client", "--output=yaml"])
            .arg(format!("--cert={}", certificate.display()))
            .arg(format!("--key={}", certificate.with_extension("key").display())),
    )?;
    let secret_file = flags.data_dir.join("example/shop-tls.yaml");
    fs::write(&secret_file, secret)?;
    command::run(
        kubectl(&["apply", "-f"]).arg(&secret_file).arg("-f").arg(root().join("examples/shop.yaml")),
    )?;
    for (_, deployment) in PATHS {
        command::run(&mut kubectl(&[
            "rollout",
            "status",
            "--timeout=60s",
            &format!("deployment/{deployment}"),
        ]))?;
    }

    println!("\nThe shop is open. Try:\n");
    println!("  export KUBECONFIG={}", kubeconfig.display());
    println!("  kubectl get pods,services,ingresses");
    println!("  {} dataplane services\n", weir.display());
    let [shop, admin] = HOSTS;
    for (host, path) in PATHS.map(|(path, _)| (shop, path)).into_iter().chain([(admin, "/")]) {
        println!("  curl --resolve {host}:80:127.0.0.1 http://{host}{path}");
        println!(
            "  curl --resolve {host}:443:127.0.0.1 --cacert {} https://{host}{path}",
            certificate.display()
        );
    }
    println!();
    Ok(())
}

/// A certificate for the example's hosts, made once for this machine; its key lies beside it.
fn certificate(data_dir: &Path) -> Result<PathBuf> {
    let path = data_dir.join("example/shop.crt");
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(path.parent().expect("the path has a directory"))?;
    let names = HOSTS.map(|host| format!("DNS:{host}")).join(",");
    command::run(
        Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
            .args([
                "-days",
                "365",
                "-subj",
                "/CN=shop.example",
                "-addext",
                &format!("subjectAltName={names}"),
            ])
            .arg("-keyout")
            .arg(path.with_extension("key"))
            .arg("-out")
            .arg(&path),
    )?;
    Ok(path)
}
