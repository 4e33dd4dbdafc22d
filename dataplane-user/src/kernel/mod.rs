//! Everything that touches the kernel's BPF objects: maps, programs, links, and the file system they are pinned in.

pub mod attach;
pub mod bpffs;
pub mod clsact;
pub mod conntrack;
pub mod events;
mod exchange;
pub mod maps;
pub mod migrate;
pub mod packet_log;
pub mod release;
pub(crate) mod sys;
pub mod xdp;
