//! What the kernel offers and this program may not assume, and what of it has no wrapper in aya.
//!
//! A flag is a constant to the verifier (`.rodata` is frozen before the load), so that a call which an older kernel
//! does not know is dead code there. User space clears the flag of what it found missing.

use aya_ebpf::{
    Global,
    helpers::{bpf_jiffies64, bpf_ktime_get_boot_ns},
};

/// `bpf_set_retval` in socket hooks: Linux 5.18. Without it a refused `connect` fails with EPERM.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: Global<u8> = Global::new(1);

/// Cookie of the network namespace that the node's own processes are in, 0 when the kernel does not tell.
#[unsafe(no_mangle)]
static NODE_NAMESPACE: Global<u64> = Global::new(0);

/// The node's own network namespace.
#[inline(always)]
pub fn node_namespace() -> u64 {
    NODE_NAMESPACE.load()
}

/// Whether a socket hook may choose the error number that the process sees.
#[inline(always)]
pub fn has_set_retval() -> bool {
    HAS_SET_RETVAL.load() != 0
}

/// Now, in jiffies. The JIT turns the helper into one load of the kernel's counter, where a clock would be a call.
#[inline(always)]
pub fn now_jiffies() -> u32 {
    // SAFETY: the helper takes no argument and is allowed in every program type.
    unsafe { bpf_jiffies64() as u32 }
}

/// Now, in seconds since boot, time asleep included. User space reads the same clock as `CLOCK_BOOTTIME`.
#[inline(always)]
pub fn now_s() -> u32 {
    // SAFETY: the helper takes no argument and is allowed in every program type.
    unsafe { (bpf_ktime_get_boot_ns() / 1_000_000_000) as u32 }
}
