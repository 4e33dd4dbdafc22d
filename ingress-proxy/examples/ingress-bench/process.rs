//! Processes as the kernel sees them: on which core they are, what they started, what they cost and weigh.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// In which `/proc/PID/stat` counts (`USER_HZ`, which is no setting of the kernel but part of its interface).
const TICKS_PER_SECOND: u64 = 100;

/// The calling thread.
const SELF: Pid = Pid::from_raw(0);

/// A core for the proxy under test, and one for all that loads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    pub(crate) proxy: usize,
    pub(crate) load: usize,
}

impl Cores {
    /// The first two that this process may use.
    pub(crate) fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(SELF).context("asking which cores there are")?;
        let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
        let (Some(proxy), Some(load)) = (cores.next(), cores.next()) else {
            bail!("proxies and their load each need a core of their own: give this bench two");
        };
        Ok(Self { proxy, load })
    }
}

/// Keeps the calling thread on that core, and all threads and processes that it starts from now on.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(SELF, &set).with_context(|| format!("moving to core {core}"))
}

/// Its children, of all its threads.
pub(crate) fn children(of: Pid) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{of}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let numbers =
        |list: String| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>();
    lists.flat_map(numbers).map(Pid::from_raw).collect()
}

/// The process and all that it started, parents first.
pub(crate) fn family(of: Pid) -> Vec<Pid> {
    let mut family = vec![of];
    let mut next = 0;
    while let Some(member) = family.get(next) {
        family.extend(children(*member));
        next += 1;
    }
    family
}

/// User and system time of the processes so far, over all their threads.
pub(crate) fn cpu_time(pids: &[Pid]) -> Result<Duration> {
    let ticks = |pid: &Pid| -> Result<u64> {
        let path = format!("/proc/{pid}/stat");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        // The name in parentheses may hold anything. Behind it `utime` and `stime` are fields 11 and 12 (proc(5)).
        let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
        let mut times = fields.split_whitespace().skip(11).map(str::parse::<u64>);
        let (Some(Ok(user)), Some(Ok(system))) = (times.next(), times.next()) else {
            bail!("{path}: {text:?}")
        };
        Ok(user + system)
    };
    let ticks = pids.iter().map(ticks).sum::<Result<u64>>()?;
    Ok(Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
}

/// The processes' proportional share of memory.
pub(crate) fn pss_bytes(pids: &[Pid]) -> Result<u64> {
    let kibibytes = |pid: &Pid| -> Result<u64> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let pss = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let number = pss.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        number.with_context(|| format!("{path} has no Pss: {text:?}"))
    };
    Ok(pids.iter().map(kibibytes).sum::<Result<u64>>()? * 1_024)
}
