//! What is too short on this machine, and from where on that is so.
//!
//! The signals and the words of `--eviction-hard` are upstream's: `memory.available<100Mi,nodefs.available<10%`. A
//! signal that the words leave out is not watched. The data directory's file system is `nodefs`; images are on it too.

use std::{fmt, fs, path::Path, str::FromStr};

use nix::sys::statvfs::statvfs;
use serde::Deserialize;
use weir_api::quantity::Quantity;

use super::machine::meminfo;

/// Upstream's thresholds, with one for process ids.
pub(crate) const DEFAULT: &str =
    "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,pid.available<1000";

/// From where on something is short, by signal.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct Thresholds {
    /// As they were written.
    words: String,
    memory: Option<Floor>,
    disk: Option<Floor>,
    inodes: Option<Floor>,
    pids: Option<Floor>,
}

/// The least that must be free.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Floor {
    /// Bytes, inodes or process ids.
    Amount(u64),
    /// Hundredths of all there is.
    Percent(f64),
}

impl Floor {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a share of what is there is no exact figure"
    )]
    fn of(self, all: u64) -> u64 {
        match self {
            Self::Amount(amount) => amount,
            Self::Percent(percent) => (all as f64 * percent / 100.0) as u64,
        }
    }
}

impl Thresholds {
    /// Bytes of memory that pods cannot count on, of this many.
    pub(crate) fn memory(&self, all: u64) -> u64 {
        self.memory.map_or(0, |floor| floor.of(all))
    }

    /// Bytes of the disk that pods cannot count on, of this many.
    pub(crate) fn disk(&self, all: u64) -> u64 {
        self.disk.map_or(0, |floor| floor.of(all))
    }
}

impl Default for Thresholds {
    fn default() -> Self {
        DEFAULT.parse().expect("the default is written in this file")
    }
}

impl fmt::Display for Thresholds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl TryFrom<String> for Thresholds {
    type Error = String;

    fn try_from(words: String) -> Result<Self, String> {
        words.parse()
    }
}

impl FromStr for Thresholds {
    type Err = String;

    fn from_str(words: &str) -> Result<Self, String> {
        let mut thresholds =
            Self { words: words.to_owned(), memory: None, disk: None, inodes: None, pids: None };
        for part in words.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (signal, floor) = part
                .split_once('<')
                .ok_or_else(|| format!("{part:?} is no threshold such as \"nodefs.available<10%\""))?;
            let slot = match signal {
                "memory.available" => &mut thresholds.memory,
                "nodefs.available" => &mut thresholds.disk,
                "nodefs.inodesFree" => &mut thresholds.inodes,
                "pid.available" => &mut thresholds.pids,
                _ => {
                    return Err(format!(
                        "{signal:?} is no signal of this kubelet: it has memory.available, nodefs.available, \
                         nodefs.inodesFree and pid.available (images are on nodefs)"
                    ));
                }
            };
            if slot.replace(parse_floor(floor)?).is_some() {
                return Err(format!("{signal} is given twice"));
            }
        }
        Ok(thresholds)
    }
}

fn parse_floor(words: &str) -> Result<Floor, String> {
    let floor = if let Some(percent) = words.strip_suffix('%') {
        percent.parse().ok().filter(|percent| (0.0..=100.0).contains(percent)).map(Floor::Percent)
    } else {
        let amount = Quantity::parse(words).ok().filter(|amount| !amount.is_negative());
        amount.map(|amount| Floor::Amount(amount.units().unsigned_abs()))
    };
    floor
        .ok_or_else(|| format!("{words:?} is neither a quantity such as \"1Gi\" nor a share such as \"10%\""))
}

/// What is short right now: for each condition of the node, which signal is
/// below its threshold, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    /// Memory is short.
    pub(crate) memory: Option<String>,
    /// Space or inodes of the data directory are short.
    pub(crate) disk: Option<String>,
    /// Process ids are short.
    pub(crate) pid: Option<String>,
}

impl Pressure {
    /// Looks at the machine; what cannot be read is not short.
    pub(crate) fn of(data_dir: &Path, thresholds: &Thresholds) -> Self {
        let disk = statvfs(data_dir).ok();
        let memory = meminfo("MemAvailable").zip(meminfo("MemTotal"));
        let space = disk.map(|fs| {
            let unit = fs.fragment_size();
            (fs.blocks_available() * unit, fs.blocks() * unit)
        });
        let inodes = disk.map(|fs| (fs.files_available(), fs.files()));
        Self {
            memory: short("memory.available", thresholds.memory, memory),
            disk: short("nodefs.available", thresholds.disk, space)
                .or_else(|| short("nodefs.inodesFree", thresholds.inodes, inodes)),
            pid: short("pid.available", thresholds.pids, process_ids()),
        }
    }
}

/// What to say of (free, all) if less is free than must be. A file system that counts no inodes has none to lack. What
/// is free is left out of it: the words stay the same, and so need no new status, while the figure moves.
fn short(signal: &str, floor: Option<Floor>, found: Option<(u64, u64)>) -> Option<String> {
    let (free, all) = found.filter(|(_, all)| *all > 0)?;
    let floor = floor?.of(all);
    (free < floor).then(|| format!("{signal} is below its threshold, {floor} of {all}"))
}

/// Process ids that are free, of all.
fn process_ids() -> Option<(u64, u64)> {
    let max: u64 = fs::read_to_string("/proc/sys/kernel/pid_max").ok()?.trim().parse().ok()?;
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let tasks: u64 = load.split(' ').nth(3)?.split_once('/')?.1.parse().ok()?;
    Some((max.saturating_sub(tasks), max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_a_quantity_or_a_share() {
        let thresholds: Thresholds = "memory.available<100Mi, nodefs.available<12.5%".parse().unwrap();
        assert_eq!(thresholds.memory(1 << 30), 100 << 20);
        assert_eq!(thresholds.disk(800), 100);
        let nothing: Thresholds = "".parse().unwrap();
        assert_eq!((nothing.memory(1 << 30), nothing.disk(800)), (0, 0));
        assert_eq!(Thresholds::default().disk(1000), 100);
    }

    #[test]
    fn a_threshold_that_makes_no_sense_says_what_would() {
        for (words, named) in [
            ("nodefs.available", "nodefs.available<10%"),
            ("imagefs.available<10%", "images are on nodefs"),
            ("nodefs.available<most", "\"most\""),
            ("nodefs.available<101%", "\"101%\""),
            ("nodefs.available<-1", "\"-1\""),
            ("pid.available<1,pid.available<2", "twice"),
        ] {
            let said = words.parse::<Thresholds>().unwrap_err();
            assert!(said.contains(named), "{words}: {said}");
        }
    }

    #[test]
    fn what_is_short_is_said_with_its_threshold() {
        let floor = Some(Floor::Percent(10.0));
        assert_eq!(short("nodefs.available", floor, Some((10, 100))), None);
        assert_eq!(
            short("nodefs.available", floor, Some((9, 100))).as_deref(),
            Some("nodefs.available is below its threshold, 10 of 100")
        );
        assert_eq!(short("nodefs.inodesFree", floor, Some((0, 0))), None);
        assert_eq!(short("nodefs.available", None, Some((0, 100))), None);
    }

    #[test]
    fn the_machine_is_looked_at() {
        let all = "memory.available<100%,nodefs.available<100%,pid.available<100%".parse().unwrap();
        let pressure = Pressure::of(Path::new("/"), &all);
        assert!(
            pressure.memory.is_some() && pressure.disk.is_some() && pressure.pid.is_some(),
            "{pressure:?}"
        );
        assert_eq!(Pressure::of(Path::new("/"), &"".parse().unwrap()), Pressure::default());
    }
}
