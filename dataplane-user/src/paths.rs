//! Where the dataplane keeps what outlives its processes.
//!
//! Everything lies below the run directory, which a reboot clears together with the kernel objects it names. The
//! agent, the CNI plugin, the command line and the clean-up agree on these places and on nothing else.

use std::path::{Path, PathBuf};

use weir_dataplane_ebpf::LAYOUT_VERSION;

/// The run directory's places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    run_dir: PathBuf,
    layout: u32,
}

impl Paths {
    /// Places below `run_dir`.
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self { run_dir: run_dir.into(), layout: LAYOUT_VERSION }
    }

    /// The run directory itself.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The bpffs that holds all pins.
    pub fn bpf(&self) -> PathBuf {
        self.run_dir.join("bpf")
    }

    /// The same places of an agent with another version of the layouts.
    #[must_use]
    pub fn with_layout(&self, layout: u32) -> Self {
        Self { layout, ..self.clone() }
    }

    /// Version of the layouts that these places are of.
    pub fn layout_version(&self) -> u32 {
        self.layout
    }

    /// Pins of this layout version; an agent never adopts maps that it would misread.
    pub fn layout(&self) -> PathBuf {
        self.bpf().join(format!("v{}", self.layout))
    }

    /// Pinned maps, each under its name.
    pub fn maps(&self) -> PathBuf {
        self.layout().join("maps")
    }

    /// One pinned map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Pinned programs, each under its name.
    pub fn programs(&self) -> PathBuf {
        self.layout().join("programs")
    }

    /// One pinned program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    /// Pinned links: what keeps a program attached while no agent runs.
    pub fn links(&self) -> PathBuf {
        self.layout().join("links")
    }

    /// One pinned link.
    pub fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// Address allocations of pods.
    pub fn ipam(&self) -> PathBuf {
        self.run_dir.join("ipam")
    }

    /// Network namespaces of pods, where Weir's own kubelet keeps them.
    pub fn namespaces(&self) -> PathBuf {
        self.run_dir.join("netns")
    }

    /// Held shared by the CNI plugin while it attaches a pinned program, and exclusively by the agent while it
    /// replaces programs, so that no pod link is left with a program of the past.
    pub fn attach_lock(&self) -> PathBuf {
        self.run_dir.join("dataplane.lock")
    }

    /// What service ids mean, for the command line.
    pub fn names(&self) -> PathBuf {
        self.run_dir.join("dataplane-names.json")
    }

    /// Where a running agent says why endpoints are not taken.
    pub fn reasons(&self) -> PathBuf {
        self.run_dir.join("dataplane-reasons.sock")
    }

    /// What must be put back when the dataplane leaves this machine.
    pub fn restore(&self) -> PathBuf {
        self.run_dir.join("dataplane-restore.json")
    }
}
