//! Programs that measure the others, never loaded by the agent: drivers that feed a flow's next packet to whatever
//! stands in `target`, and the empty programs whose cost is subtracted. See [`weir_dataplane_ebpf::bench`].

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", allow(clippy::inline_always, reason = "a call is a BPF subprogram"))]

#[cfg(target_arch = "bpf")]
mod driver;

/// Nothing here panics: every access is bounded where it stands, and the verifier would refuse the program otherwise.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The programs exist for the BPF target only; this keeps the package part of an ordinary workspace build.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
