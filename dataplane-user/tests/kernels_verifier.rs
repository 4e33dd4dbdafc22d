//! The running kernel's verifier takes every program, and how many instructions it walks for each.
//!
//! Prints `verified PROGRAM INSTRUCTIONS` for each program. `cargo xtask test kernels` runs this on each kernel of its
//! matrix and compares the figures with `tests/kernels/verifier.txt`.
//!
//! The figure is the verifier's own closing line, "processed N insns", which every kernel writes. Since 5.16 a loaded
//! program tells it too, and both must agree. The loader asks for a log only when a load fails, so the call is met on its
//! way: this executable's `syscall` comes before libc's.

#![expect(unsafe_code, reason = "a C function is put before libc's, and reads what it is given")]

use std::{
    ffi::{CStr, c_long, c_void},
    sync::{
        Mutex,
        atomic::{AtomicPtr, Ordering},
    },
};

use weir_dataplane::programs::{self, Options};

/// Instructions at which every kernel gives up (`BPF_COMPLEXITY_LIMIT_INSNS`).
const LIMIT: u32 = 1_000_000;
/// How much of it a program may take: the walk grows with each kernel's knowledge, and with the next compiler's taste.
const BUDGET: u32 = LIMIT / 2;
/// `BPF_PROG_LOAD`.
const PROG_LOAD: c_long = 5;
/// `BPF_LOG_STATS`: the closing lines alone.
const STATS: u32 = 4;

/// The beginning of what `BPF_PROG_LOAD` takes.
#[repr(C)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// Programs that were loaded, as the kernel names them, with what the verifier said of each.
static VERIFIED: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

type Syscall = unsafe extern "C" fn(c_long, c_long, c_long, c_long, c_long, c_long, c_long) -> c_long;

/// libc's.
fn next() -> Syscall {
    // No lock and no cell: those of the standard library end up in this very function when they wait.
    static NEXT: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
    let mut found = NEXT.load(Ordering::Relaxed);
    if found.is_null() {
        // SAFETY: the name is a terminated string.
        found = unsafe { libc::dlsym(libc::RTLD_NEXT, c"syscall".as_ptr()) };
        assert!(!found.is_null(), "libc has a syscall function");
        NEXT.store(found, Ordering::Relaxed);
    }
    // SAFETY: that is libc's function, which takes up to six words behind the number and ignores what a call has no use
    // for, as this file's does.
    unsafe { std::mem::transmute::<*mut c_void, Syscall>(found) }
}

/// libc's function, but a load of a program without a log gets one.
///
/// # Safety
/// As for the system call of that number.
#[unsafe(no_mangle)]
unsafe extern "C" fn syscall(
    number: c_long,
    command: c_long,
    attributes: c_long,
    size: c_long,
    fourth: c_long,
    fifth: c_long,
    sixth: c_long,
) -> c_long {
    // SAFETY: the caller's words, as they came.
    let forward = || unsafe { next()(number, command, attributes, size, fourth, fifth, sixth) };
    if number != libc::SYS_bpf || command != PROG_LOAD || (size as usize) < size_of::<Load>() {
        return forward();
    }
    // SAFETY: the caller's attributes are live, its own, and at least that long.
    let load = unsafe { &mut *(attributes as *mut Load) };
    if load.log_size != 0 {
        return forward();
    }
    let mut log = vec![0_u8; 1 << 16];
    (load.log_level, load.log_size, load.log) = (STATS, log.len() as u32, log.as_mut_ptr() as u64);
    let result = forward();
    (load.log_level, load.log_size, load.log) = (0, 0, 0);
    if result >= 0 {
        let text = |bytes| CStr::from_bytes_until_nul(bytes).expect("the kernel ends it").to_string_lossy();
        let said = (text(&load.name).into_owned(), text(&log).into_owned());
        VERIFIED.lock().expect("nobody panics with it").push(said);
    }
    result
}

/// The number in `processed 1234 insns (limit 1000000) …`.
fn processed(log: &str) -> Option<u32> {
    log.split_once("processed ")?.1.split(' ').next()?.parse().ok()
}

#[test]
fn every_program_is_well_below_the_limit() {
    let ebpf = programs::load(&Options::default()).unwrap_or_else(|error| {
        panic!("needs root and a kernel with BTF: {error}: {:?}", std::error::Error::source(&error))
    });
    let verified = VERIFIED.lock().unwrap();
    for (name, program) in ebpf.programs() {
        let (_, log) = verified
            .iter()
            .find(|it| it.0 == name)
            .unwrap_or_else(|| panic!("the kernel was not asked about {name}"));
        let count = processed(log).unwrap_or_else(|| panic!("no count in {log:?}"));
        // Nothing before 5.16.
        if let Some(told) = program.info().expect("of a loaded program").verified_instruction_count() {
            assert_eq!(told, count, "{name}");
        }
        println!("verified {name} {count}");
        assert!(count < BUDGET, "{name} takes {count} of the {LIMIT} instructions that a verifier walks");
    }
}
