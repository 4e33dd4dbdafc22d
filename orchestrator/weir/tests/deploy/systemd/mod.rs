//! A real systemd, as the first process of namespaces of its own, with the units that `deploy/systemd` ships.
//!
//! It sees a copy of this machine's files and none of its units, so that it starts nothing but what a test tells it to. What it
//! writes, mounts, starts or makes in the cgroup tree ends with the guard, or with the test's process if that is killed.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use weir_tests::{Namespace, eventually};

/// Lines of the journal that a failed test shows.
const TOLD: &str = "200";

/// A running systemd; all of it ends on drop.
pub(crate) struct Systemd {
    /// Ends it when its input does.
    keeper: Child,
    /// The first process, by the number that it has outside.
    init: String,
    mark: String,
}

impl Systemd {
    /// Boots in this network, with copies of `files` at the places that are given beside them.
    pub(crate) fn boot(namespace: &Namespace, files: &[(&Path, &str)]) -> Self {
        static BOOTED: AtomicU32 = AtomicU32::new(0);
        let mark = format!("weir-systemd-{}-{}", std::process::id(), BOOTED.fetch_add(1, Ordering::Relaxed));
        let mut keeper = namespace.command("sh");
        keeper.args(["-c", include_str!("keep.sh"), "keep"]);
        for (file, place) in files {
            keeper.arg(file).arg(place);
        }
        keeper
            .env("CGROUP", &mark)
            .env("BOOT", include_str!("boot.sh"))
            .env("WEIR", env!("CARGO_BIN_EXE_weir"))
            .env("UNITS", PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy/systemd"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What interrupts a test is not for it: it has to clear away.
            .process_group(0);
        let mut keeper = keeper.spawn().expect("nsenter (Debian: util-linux)");
        let mut said = BufReader::new(keeper.stdout.take().expect("asked for"));
        let mut init = String::new();
        said.read_line(&mut init).expect("UTF-8");
        let systemd = Self { keeper, init: init.trim().to_owned(), mark };
        assert!(
            !systemd.init.is_empty(),
            "there is no systemd (Debian: systemd), or it may not be started here"
        );
        eventually("systemd is up", || {
            let state = systemd.systemctl("is-system-running")?;
            ensure!(state == "running", "{state}");
            Ok(())
        })
        .unwrap();
        systemd
    }

    /// What the names of all that it leaves in the tree of cgroups hold.
    pub(crate) fn mark(&self) -> &str {
        &self.mark
    }

    /// A command in all of its namespaces, as root.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init, "--all", program]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Runs a program with these words to its good end; what it says.
    pub(crate) fn run(&self, program: &str, words: &str) -> Result<String> {
        let output = self.command(program).args(words.split_whitespace()).stdin(Stdio::null()).output()?;
        let [out, err] =
            [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).trim().to_owned());
        ensure!(output.status.success(), "{program} {words}: {}: {out}{err}", output.status);
        Ok(out + &err)
    }

    /// Runs `systemctl`, which waits for what it asks for.
    pub(crate) fn systemctl(&self, words: &str) -> Result<String> {
        self.run("systemctl", words)
    }

    /// A property of a unit.
    pub(crate) fn property(&self, unit: &str, name: &str) -> String {
        self.systemctl(&format!("show --value --property={name} {unit}")).unwrap()
    }

    /// Writes a file.
    pub(crate) fn write(&self, place: &str, text: &str) -> Result<()> {
        let mut install = self.command("install");
        let mut install =
            install.args(["-D", "-m", "0644", "/dev/stdin", place]).stdin(Stdio::piped()).spawn()?;
        install.stdin.take().expect("asked for").write_all(text.as_bytes())?;
        ensure!(install.wait()?.success(), "{place} is not written");
        Ok(())
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        if thread::panicking() {
            let journal = self.run("journalctl", &format!("--no-pager --lines={TOLD}"));
            eprintln!("the journal:\n{}", journal.unwrap_or_else(|error| format!("{error:#}")));
        }
        drop(self.keeper.stdin.take());
        let status = self.keeper.wait().context("the keeper");
        if !status.as_ref().is_ok_and(ExitStatus::success) {
            eprintln!("something of {} stays: {status:?}", self.mark);
        }
    }
}
