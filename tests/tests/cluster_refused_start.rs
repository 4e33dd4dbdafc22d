//! A `weir up` that cannot start: one line that names what to change, exit code 1, and nothing left behind.

use std::{fs, net::TcpListener, process::Output};

use anyhow::{Context, Result, ensure};
use weir_tests::{Cluster, Leftovers, Options};

/// A machine on which nothing was started, and what it looked like.
struct Machine {
    cluster: Cluster,
    before: Leftovers,
}

impl Machine {
    fn new() -> Result<Self> {
        let options = Options { images: Vec::new(), ..Options::from_environment()? };
        let cluster = Cluster::prepare(options)?;
        let before = Leftovers::picture(cluster.mark(), &cluster.node)?;
        Ok(Self { cluster, before })
    }

    /// Exit code 1, one line that holds all these words, and the machine as it was.
    fn refuses(&self, what: &str, output: &Output, words: &[&str]) -> Result<()> {
        refused(output, words).with_context(|| what.to_owned())?;
        let left = Leftovers::picture(self.cluster.mark(), &self.cluster.node)?.since(&self.before);
        ensure!(left.is_empty(), "{what} leaves\n{}", left.join("\n"));
        let run_dir = self.cluster.run_dir();
        ensure!(!run_dir.exists(), "{what} leaves {}", run_dir.display());
        Ok(())
    }

    /// The same, and no data directory either.
    fn refuses_all(&self, what: &str, output: &Output, words: &[&str]) -> Result<()> {
        self.refuses(what, output, words)?;
        let data_dir = self.cluster.data_dir();
        ensure!(!data_dir.exists(), "{what} leaves {}", data_dir.display());
        Ok(())
    }
}

#[test]
fn a_taken_port_is_named_with_its_flag() -> Result<()> {
    let machine = Machine::new()?;
    for (address, words) in [
        ("0.0.0.0:6443", ["--api-port", "0.0.0.0:6443", "choose another"]),
        ("0.0.0.0:80", ["--ingress-http", "0.0.0.0:80", "choose another"]),
        ("127.0.0.1:443", ["--ingress-https", "0.0.0.0:443", "choose another"]),
        ("0.0.0.0:10250", ["kubelet", "0.0.0.0:10250", "end what listens there"]),
        ("127.0.0.1:10249", ["dataplane", "127.0.0.1:10249", "end what listens there"]),
    ] {
        let output = machine.cluster.node.run(|| {
            let _holder = TcpListener::bind(address)?;
            Ok(machine.cluster.up_command()?.output()?)
        })?;
        machine.refuses_all(address, &output, &words)?;
    }
    let mut command = machine.cluster.up_command()?;
    let output = command.args(["--ingress-http=0.0.0.0:6443"]).output()?;
    machine.refuses_all("one port for two", &output, &["--ingress-http", "0.0.0.0:6443", "choose another"])
}

#[test]
fn a_machine_that_lacks_something_is_told_what() -> Result<()> {
    let machine = Machine::new()?;
    for (what, program, words) in [
        (
            "no CAP_NET_ADMIN",
            &["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"][..],
            ["missing CAP_NET_ADMIN:", "as root"],
        ),
        (
            "no CAP_BPF",
            &["setpriv", "--bounding-set=-bpf,-perfmon", "--inh-caps=-bpf,-perfmon"],
            ["missing CAP_PERFMON, CAP_BPF:", "as root"],
        ),
        ("an old kernel", &["setarch", "--uname-2.6"], ["kernel 2.6.", "5.13 or newer"]),
    ] {
        let output = machine.cluster.up_command_through(program)?.output()?;
        machine.refuses_all(what, &output, &words)?;
    }
    Ok(())
}

#[test]
fn a_directory_that_cannot_be_used_is_named_with_its_flag() -> Result<()> {
    let machine = Machine::new()?;
    let (data_dir, run_dir) = (machine.cluster.data_dir(), machine.cluster.run_dir());
    let parent = data_dir.parent().context("the data directory is in the cluster's")?.display().to_string();

    // Root may write everywhere but on what is mounted read-only.
    let read_only = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
    let through = ["unshare", "--mount", "sh", "-c", read_only, &parent];
    let output = machine.cluster.up_command_through(&through)?.output()?;
    machine.refuses_all(
        "a read-only run directory",
        &output,
        &["--run-dir", "cannot be written", "choose another"],
    )?;

    fs::create_dir(&data_dir)?;
    let data = data_dir.display().to_string();
    let through = ["unshare", "--mount", "sh", "-c", read_only, &data];
    let output = machine.cluster.up_command_through(&through)?.output()?;
    machine.refuses(
        "a read-only data directory",
        &output,
        &["--data-dir", &data, "cannot be written", "Read-only"],
    )?;
    ensure!(fs::read_dir(&data_dir)?.next().is_none(), "something was written to the data directory");
    fs::remove_dir(&data_dir)?;

    fs::write(&data_dir, "")?;
    let output = machine.cluster.up_command()?.output()?;
    machine.refuses("a file for a data directory", &output, &["--data-dir", &data, "is no directory"])?;
    fs::remove_file(&data_dir)?;

    fs::write(&run_dir, "")?;
    let output = machine.cluster.up_command()?.output()?;
    refused(&output, &["--run-dir", &run_dir.display().to_string(), "is no directory"])?;
    ensure!(!data_dir.exists(), "a file for a run directory leaves a data directory");
    fs::remove_file(&run_dir)?;
    Ok(())
}

#[test]
fn a_setting_that_makes_no_sense_is_named() -> Result<()> {
    let machine = Machine::new()?;
    let config = tempfile::NamedTempFile::new()?;
    let path = config.path().display().to_string();
    let flag = format!("--config={path}");
    for (content, words) in [
        ("pod-cdir: 10.0.0.0/8\n", &["--config", &path, "pod-cdir", "pod-cidr"][..]),
        ("pod-cidr: nonsense\n", &["--pod-cidr", "nonsense"]),
        ("api-port: [6443]\n", &["--config", &path, "api-port: expected text or a number"]),
        ("api-port: 70000\n", &["--api-port", "70000"]),
        ("keep: perhaps\n", &["--config", &path, "keep: ", "boolean"]),
        (": : :\n", &["--config", &path]),
    ] {
        fs::write(config.path(), content)?;
        let output = machine.cluster.up_command()?.arg(&flag).output()?;
        machine.refuses_all(content, &output, words)?;
    }
    let output = machine.cluster.up_command()?.arg("--config=/no/such/file").output()?;
    machine.refuses_all("no file", &output, &["--config /no/such/file", "No such file"])?;

    for (flag, words) in [
        ("--ingress-http=192.0.2.1:80", ["--ingress-http", "192.0.2.1:80", "choose another"]),
        ("--pod-cidr=nonsense", ["--pod-cidr", "nonsense", "ADDRESS/BITS"]),
    ] {
        let output = machine.cluster.up_command()?.arg(flag).output()?;
        machine.refuses_all(flag, &output, &words)?;
    }
    Ok(())
}

#[test]
fn a_second_start_is_refused_and_the_first_goes_on() -> Result<()> {
    let mut cluster = Cluster::prepare(Options { images: Vec::new(), ..Options::from_environment()? })?;
    cluster.up()?;
    cluster.wait_for_line("all roles run")?;
    let pid = fs::read_to_string(cluster.run_dir().join("lock"))?;
    let second = cluster.up_command()?.output()?;
    refused(&second, &["runs already", pid.trim(), "choose another --run-dir"])?;
    cluster.kubectl(&["get", "nodes"])?;
    cluster.down()
}

/// Exit code 1 and one line that holds all these words.
fn refused(output: &Output, words: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    ensure!(said.lines().count() == 1, "not one line: {said}");
    ensure!(output.stdout.is_empty(), "said too much: {}", String::from_utf8_lossy(&output.stdout));
    for word in words {
        ensure!(said.contains(word), "no {word:?} in: {said}");
    }
    eprint!("{said}");
    Ok(())
}
