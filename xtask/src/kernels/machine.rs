//! An emulated machine: one kernel, and in its memory the tests with what they need to run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::packages::Image;
use crate::command;

/// The machine's memory, most of it for the real bounds of the maps.
const MEMORY_MIB: u32 = 1024;
/// An emulated machine needs twenty minutes of a CPU of its own, mostly for the verifier, and often has to share it.
const TIME_LIMIT: Duration = Duration::from_hours(1);
/// The last line of a machine that came to its end.
const END: &str = "weir-end";
/// What tests call to make themselves a network.
const TOOLS: [&str; 3] = ["ethtool", "ip", "nsenter"];
/// Modules of the kernel that a node's network is made of, each behind what it needs.
const MODULES: [&str; 6] = [
    "net/llc/llc.ko",
    "net/802/stp.ko",
    "net/bridge/bridge.ko",
    "drivers/net/veth.ko",
    "net/sched/sch_ingress.ko",
    "net/sched/cls_bpf.ko",
];
/// A test that makes a clock's reading a minute older, which needs a machine that has run for longer.
const NEEDS_UPTIME: &str = "packet_affinity";

/// What a machine's tests came to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) passed: u64,
    pub(super) failed: u64,
    /// Instructions that the verifier walked, by program.
    pub(super) verified: BTreeMap<String, u32>,
    /// Why this is no success.
    pub(super) problem: Option<String>,
    /// All that the machine said.
    pub(super) console: String,
}

/// Makes the archive that every machine boots with.
pub(super) fn archive(directory: &Path, tests: &[(String, PathBuf)], filter: &str) -> Result<PathBuf> {
    let root = directory.join("initramfs");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for place in ["bin", "tests", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(root.join(place))?;
    }
    fs::copy(command::find("busybox").context("no busybox on the PATH")?, root.join("bin/busybox"))?;
    symlink("busybox", root.join("bin/sh"))?;
    let mut libraries = BTreeSet::new();
    for tool in TOOLS {
        let path = command::find(tool).with_context(|| format!("no {tool} on the PATH"))?;
        libraries.extend(command::shared_libraries(&path)?);
        fs::copy(path, root.join("bin").join(tool))?;
    }
    for (name, executable) in tests {
        libraries.extend(command::shared_libraries(executable)?);
        // Without what a debugger would need: the archive is the machine's memory.
        command::run(Command::new("strip").arg("-o").arg(root.join("tests").join(name)).arg(executable))?;
    }
    for library in libraries {
        let place = root.join(library.strip_prefix("/").unwrap_or(&library));
        fs::create_dir_all(place.parent().expect("a library is in a folder"))?;
        fs::copy(&library, place)?;
    }
    let init = root.join("init");
    fs::write(&init, script(tests, filter))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;

    let archive = directory.join("initramfs.cpio");
    pack(&root, File::create(&archive)?)?;
    Ok(archive)
}

/// The archive with the modules of one kernel behind it: the kernel unpacks one after the other.
fn with_modules(image: &Image, archive: &Path) -> Result<PathBuf> {
    let place = image.console.with_file_name("modules");
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::create_dir_all(place.join("modules"))?;
    for (order, module) in MODULES.into_iter().enumerate() {
        let to = place.join("modules").join(format!("{order}.ko"));
        let (plain, packed) = (image.modules.join(module), image.modules.join(format!("{module}.xz")));
        if packed.is_file() {
            let unpacked = File::create(to)?;
            command::run(Command::new("xz").arg("-dc").arg(packed).stdout(unpacked))?;
        } else {
            fs::copy(&plain, to).with_context(|| format!("no module {}", plain.display()))?;
        }
    }
    let whole = image.console.with_file_name("initramfs.cpio");
    fs::copy(archive, &whole)?;
    pack(&place, OpenOptions::new().append(true).open(&whole)?)?;
    Ok(whole)
}

/// Writes what is below a folder as an archive.
fn pack(root: &Path, to: File) -> Result<()> {
    let mut find = Command::new("find").arg(".").current_dir(root).stdout(Stdio::piped()).spawn()?;
    let names = find.stdout.take().expect("standard output was asked for");
    let mut pack = Command::new("busybox");
    pack.args(["cpio", "-o", "-H", "newc"]).current_dir(root).stdin(names).stdout(to);
    command::run(pack.stderr(Stdio::null()))?;
    ensure!(find.wait()?.success(), "find failed in {}", root.display());
    Ok(())
}

/// What the machine runs instead of an operating system.
fn script(tests: &[(String, PathBuf)], filter: &str) -> String {
    let (late, early): (Vec<&str>, Vec<&str>) =
        tests.iter().map(|(name, _)| name.as_str()).partition(|name| *name == NEEDS_UPTIME);
    let names = [early, late].concat().join(" ");
    format!(
        "#!/bin/sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t bpf bpf /sys/fs/bpf
/bin/busybox mount -t cgroup2 none /sys/fs/cgroup
for module in /modules/*.ko; do /bin/busybox insmod $module; done
/bin/busybox ip link set lo up
export PATH=/bin
for test in {names}; do
    echo \"weir-test $test\"
    RUST_BACKTRACE=1 /tests/$test --test-threads=1 --nocapture '{filter}'
    echo \"weir-exit $test $?\"
done
echo {END}
/bin/busybox poweroff -f
"
    )
}

/// Boots a kernel and waits for the end of its tests.
pub(super) fn boot(image: &Image, archive: &Path, tests: &[(String, PathBuf)]) -> Result<Outcome> {
    let archive = with_modules(image, archive)?;
    let console = File::create(&image.console)?;
    let mut machine = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", &MEMORY_MIB.to_string()])
        // No network card, no disk, no display; the console is standard output, and a panic ends the machine.
        .args(["-nic", "none", "-nographic", "-no-reboot", "-kernel"])
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(archive)
        .args(["-append", "console=ttyS0 quiet loglevel=3 oops=panic panic=-1"])
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console)
        .spawn()
        .context("starting qemu-system-x86_64")?;
    let status = wait(&mut machine)?;
    let console = String::from_utf8_lossy(&fs::read(&image.console)?).into_owned();
    let mut outcome = read(&console, tests);
    outcome.problem = match status {
        None => Some(format!("no end after {} minutes", TIME_LIMIT.as_secs() / 60)),
        Some(status) if !status.success() => Some(format!("the emulator ended with {status}")),
        Some(_) => outcome.problem,
    };
    Ok(outcome)
}

/// Waits for the machine; nothing when its time was over, and it is gone then.
fn wait(machine: &mut Child) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + TIME_LIMIT;
    loop {
        if let Some(status) = machine.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > deadline {
            machine.kill()?;
            machine.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Reads a console: every test must have come to a good end, and the machine to its own.
fn read(console: &str, tests: &[(String, PathBuf)]) -> Outcome {
    let mut outcome = Outcome { console: console.to_owned(), ..Outcome::default() };
    let mut exits = BTreeMap::new();
    for line in console.lines().map(str::trim_end) {
        // With its output passed on, a test's own lines begin where the harness wrote its name.
        let words: Vec<&str> = line.split_whitespace().collect();
        match &words[..] {
            ["weir-exit", test, code] => drop(exits.insert(*test, *code)),
            [.., "verified", program, count] => {
                if let Ok(count) = count.parse() {
                    outcome.verified.insert((*program).to_owned(), count);
                }
            }
            ["test", "result:", _, passed, "passed;", failed, "failed;", ..] => {
                outcome.passed += passed.parse::<u64>().unwrap_or(0);
                outcome.failed += failed.parse::<u64>().unwrap_or(0);
            }
            _ => {}
        }
    }
    let bad: Vec<&str> =
        tests.iter().map(|(name, _)| name.as_str()).filter(|name| exits.get(name) != Some(&"0")).collect();
    outcome.problem = if !bad.is_empty() {
        Some(format!("failed or did not run: {}", bad.join(", ")))
    } else if !console.contains(END) {
        Some("it did not come to its end".into())
    } else {
        None
    };
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: &str = "\
weir-test packet_load\r
running 1 test\r
test every_program_loads ... verified tc_pod 97791\r
verified connect4 1049\r
ok\r
test result: ok. 7 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.73s\r
weir-exit packet_load 0\r
weir-end\r
";

    fn outcome(console: &str) -> Outcome {
        read(console, &[("packet_load".to_owned(), PathBuf::new())])
    }

    #[test]
    fn a_console_tells_counts_and_figures() {
        let outcome = outcome(WELL);
        assert_eq!((outcome.problem, outcome.passed, outcome.failed), (None, 7, 0));
        assert_eq!(outcome.verified["tc_pod"], 97_791);
        assert_eq!(outcome.verified["connect4"], 1_049);
    }

    #[test]
    fn silence_is_no_success() {
        for (console, problem) in [
            (
                WELL.replace("weir-exit packet_load 0", "weir-exit packet_load 101"),
                "failed or did not run: packet_load",
            ),
            (WELL.replace("weir-exit packet_load 0", "Kernel panic"), "failed or did not run: packet_load"),
            (WELL.replace("weir-end", ""), "it did not come to its end"),
        ] {
            assert_eq!(outcome(&console).problem.as_deref(), Some(problem));
        }
    }
}
