//! What the machine has: read from the kernel's own files, for the node's status.

use std::{collections::BTreeMap, fs};

use k8s_openapi::{api::core::v1::NodeSystemInfo, apimachinery::pkg::api::resource::Quantity};
use nix::sys::{statvfs::statvfs, utsname::uname};

use crate::{config::Config, error::Result};

/// Kubernetes version whose API this kubelet speaks, with Weir's own behind it.
const KUBELET_VERSION: &str = concat!("v1.33.0+weir.", env!("CARGO_PKG_VERSION"));

/// Resources by name, whole or what is left for pods.
pub(crate) type Resources = BTreeMap<String, Quantity>;

/// (capacity, allocatable) of this machine.
pub(crate) fn resources(config: &Config) -> Result<(Resources, Resources)> {
    let (reserved_cpu_milli, reserved_memory) = config.system_reserved()?;
    let cpus = cpu_count();
    let memory = meminfo("MemTotal").unwrap_or(0);
    let storage = statvfs(&config.data_dir).map_or(0, |fs| fs.blocks() * fs.fragment_size());
    let quantity = |value: String| Quantity(value);
    let shared = |storage: u64| {
        [
            ("ephemeral-storage".to_owned(), quantity(storage.to_string())),
            ("pods".to_owned(), quantity(config.max_pods.to_string())),
        ]
    };
    let mut capacity: Resources = shared(storage).into();
    capacity.insert("cpu".to_owned(), quantity(cpus.to_string()));
    capacity.insert("memory".to_owned(), quantity(format!("{}Ki", memory / 1024)));
    let mut allocatable: Resources =
        shared(storage.saturating_sub(config.eviction_hard.disk(storage))).into();
    let cpu_milli = (i128::from(cpus) * 1000 - reserved_cpu_milli).max(0);
    let cpu = if cpu_milli % 1000 == 0 { (cpu_milli / 1000).to_string() } else { format!("{cpu_milli}m") };
    allocatable.insert("cpu".to_owned(), quantity(cpu));
    let reserved = reserved_memory.unsigned_abs() + config.eviction_hard.memory(memory);
    let left = memory.saturating_sub(reserved);
    allocatable.insert("memory".to_owned(), quantity(format!("{}Ki", left / 1024)));
    Ok((capacity, allocatable))
}

/// The machine's identity and versions.
pub(crate) fn system_info() -> NodeSystemInfo {
    let line = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let machine_id = line("/etc/machine-id");
    let system_uuid = line("/sys/class/dmi/id/product_uuid");
    NodeSystemInfo {
        system_uuid: if system_uuid.is_empty() { machine_id.clone() } else { system_uuid },
        machine_id,
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        kernel_version: uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default(),
        os_image: os_image(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
        container_runtime_version: concat!("weir://", env!("CARGO_PKG_VERSION")).to_owned(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        kube_proxy_version: String::new(),
        operating_system: "linux".to_owned(),
        architecture: architecture().to_owned(),
        ..NodeSystemInfo::default()
    }
}

/// The architecture as Go, and so every node selector, names it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Processors online: not what an affinity mask leaves to this process.
fn cpu_count() -> u64 {
    fs::read_to_string("/sys/devices/system/cpu/online")
        .ok()
        .and_then(|text| count_ranges(text.trim()))
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |count| count.get() as u64))
}

/// `0-3,8` is five.
fn count_ranges(text: &str) -> Option<u64> {
    text.split(',')
        .map(|range| match range.split_once('-') {
            Some((first, last)) => Some(last.parse::<u64>().ok()? - first.parse::<u64>().ok()? + 1),
            None => range.parse::<u64>().ok().map(|_| 1),
        })
        .sum()
}

/// A line of `/proc/meminfo`, in bytes.
pub(super) fn meminfo(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn os_image(os_release: &str) -> String {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| "Linux".to_owned(), |value| value.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_files_are_read() {
        assert_eq!(count_ranges("0-3,8"), Some(5));
        assert_eq!(count_ranges("0"), Some(1));
        assert_eq!(count_ranges(""), None);
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"), "Debian GNU/Linux 12");
        assert!(meminfo("MemTotal").unwrap() > 1 << 20);
    }

    #[test]
    fn what_is_reserved_is_not_allocatable() {
        let config = Config {
            data_dir: "/".into(),
            system_reserved_cpu: "100m".into(),
            system_reserved_memory: "1Mi".into(),
            ..Config::default()
        };
        let (capacity, allocatable) = resources(&config).unwrap();
        let milli = |list: &Resources, name: &str| crate::quantity::milli(&list[name]).unwrap();
        assert_eq!(milli(&capacity, "cpu") - milli(&allocatable, "cpu"), 100);
        assert_eq!((milli(&capacity, "memory") - milli(&allocatable, "memory")) / 1000, (101 << 20));
    }
}
