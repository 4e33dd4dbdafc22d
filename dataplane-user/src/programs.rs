//! The programs' object: embedded when this crate is built, loaded through the kernel's verifier.
//!
//! The agent and the CNI plugin load it with pinned maps; packet tests and measurements load it with maps of their own.

use std::{panic::resume_unwind, path::Path, thread};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    programs::{Program, ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported},
};
use tracing::debug;

use crate::kernel::sys;

/// The object as the build script made it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weir-dataplane-programs"));

/// XDP on uplinks.
pub const XDP_UPLINK: &str = "xdp_uplink";
/// TC ingress on uplinks.
pub const TC_UPLINK: &str = "tc_uplink";
/// TC ingress on the host's end of pod links.
pub const TC_POD: &str = "tc_pod";
/// TC egress on uplinks and on the host's end of pod links.
pub const TC_EGRESS: &str = "tc_egress";
/// Socket hooks at the cgroup root.
pub const SOCKET_HOOKS: [&str; 10] = [
    "connect4",
    "sendmsg4",
    "recvmsg4",
    "getpeername4",
    "bind4",
    "connect6",
    "sendmsg6",
    "recvmsg6",
    "getpeername6",
    "bind6",
];

/// Every map of the object, by its name, which is also the name of its pin.
pub const MAPS: [&str; 36] = [
    "filter",
    "frontends_v4",
    "frontends_v6",
    "cluster_ips_v4",
    "cluster_ips_v6",
    "backends_v4",
    "backends_v6",
    "maglev",
    "flows_v4",
    "flows_v6",
    "opening_v4",
    "opening_v6",
    "fragments_v4",
    "fragments_v6",
    "endpoints_v4",
    "endpoints_v6",
    "socket_peers_v4",
    "socket_peers_v6",
    "affinity_v4",
    "affinity_v6",
    "socket_affinity_v4",
    "socket_affinity_v6",
    "source_ranges_v4",
    "source_ranges_v6",
    "non_masquerade_v4",
    "non_masquerade_v6",
    "tunnel_peers_v4",
    "tunnel_peers_v6",
    "node_config",
    "uplinks",
    "node_ports",
    "drops",
    "traffic",
    "events",
    "events_lost",
    "monitor",
];

/// What can go wrong on the way into the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Parsing the object, or making or adopting its maps.
    #[error(
        "cannot load the dataplane's maps: they need CAP_BPF and CAP_NET_ADMIN and a kernel from 5.13 on"
    )]
    Maps(#[source] EbpfError),
    /// The verifier, or a program type that the kernel does not have. The source holds the verifier's log.
    #[error("the kernel refuses the program {name}")]
    Program {
        /// The program's name.
        name: String,
        /// Why.
        #[source]
        source: ProgramError,
    },
}

/// How to load the object.
#[derive(Debug, Default)]
pub struct Options<'a> {
    /// Directory in a bpffs: each map is taken from its pin there, or made and pinned. Without it the maps are private and
    /// go away with the returned value.
    pub pins: Option<&'a Path>,
    /// Other bounds than the ABI's, by map name.
    pub max_entries: &'a [(&'a str, u32)],
    /// Whether programs write a line for each packet that they drop (see [`crate::kernel::packet_log`]). Without it they
    /// hold no instruction of that.
    pub packet_log: bool,
}

/// Loads maps and programs. Nothing is attached yet.
pub fn load(options: &Options<'_>) -> Result<Ebpf, Error> {
    let has_set_retval = u8::from(has_set_retval());
    let node_namespace = node_namespace();
    let mut loader = EbpfLoader::new();
    loader.override_global("HAS_SET_RETVAL", &has_set_retval, true);
    loader.override_global("NODE_NAMESPACE", &node_namespace, true);
    let log_level = if options.packet_log { aya_log::Level::Info as u8 } else { 0 };
    loader.override_global(aya_log::LEVEL, &log_level, true);
    for (name, max_entries) in options.max_entries {
        loader.map_max_entries(name, *max_entries);
    }
    if let Some(pins) = options.pins {
        for name in MAPS {
            loader.map_pin_path(name, pins.join(name));
        }
    }
    let mut ebpf = loader.load(OBJECT).map_err(Error::Maps)?;
    load_all(&mut ebpf)?;
    Ok(ebpf)
}

/// Hands every program to the verifier, all at once: it walks hundreds of thousands of instructions for each of the larger
/// ones, on the CPU of whoever asks, and that is most of an agent's start.
fn load_all(ebpf: &mut Ebpf) -> Result<(), Error> {
    let load = |name: &str, program: &mut Program| {
        match program {
            Program::Xdp(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            _ => Ok(()),
        }
        .map_err(|source| Error::Program { name: name.to_owned(), source })
    };
    thread::scope(|scope| {
        let loads: Vec<_> =
            ebpf.programs_mut().map(|(name, program)| scope.spawn(move || load(name, program))).collect();
        // One after the other, so that of several refusals the first program's is told.
        loads.into_iter().try_for_each(|load| load.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// The network namespace that this runs in, which is the node's own, as socket hooks see it.
fn node_namespace() -> u64 {
    sys::network_namespace().unwrap_or_else(|error| {
        debug!(%error, "cannot ask for the network namespace; source ranges are left to the packets of the node's processes");
        0
    })
}

/// Asks the kernel whether a socket hook may choose the error that `connect` fails with (Linux 5.18).
fn has_set_retval() -> bool {
    is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval).unwrap_or_else(|error| {
        debug!(%error, "cannot ask for bpf_set_retval; connections without a backend fail with EPERM");
        false
    })
}
