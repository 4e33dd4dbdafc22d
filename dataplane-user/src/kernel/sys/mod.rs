//! System calls around bpf that have no safe wrapper: batches of map entries, replacing the program of any kind of link,
//! waiting for a ring buffer, reading the kernel's clock of flows, and the number of a network namespace.

#![expect(unsafe_code, reason = "these calls have no safe wrapper")]

mod batch;

use std::{
    ffi::CString,
    io,
    mem::size_of,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, net::UnixDatagram},
    },
    path::Path,
};

use tokio::io::{Interest, unix::AsyncFd};

pub(crate) use batch::{Batches, RawMap, delete, update};

/// Commands of bpf(2), from `linux/bpf.h`.
mod command {
    pub(super) const MAP_UPDATE_ELEM: u32 = 2;
    pub(super) const PROG_LOAD: u32 = 5;
    pub(super) const OBJ_PIN: u32 = 6;
    pub(super) const OBJ_GET: u32 = 7;
    pub(super) const PROG_TEST_RUN: u32 = 10;
    pub(super) const MAP_LOOKUP_BATCH: u32 = 24;
    pub(super) const MAP_UPDATE_BATCH: u32 = 26;
    pub(super) const MAP_DELETE_BATCH: u32 = 27;
    pub(super) const LINK_UPDATE: u32 = 29;
    pub(super) const LINK_DETACH: u32 = 34;
}

/// Calls bpf(2) with the attributes of one command.
///
/// # Safety
/// `attributes` must be that command's part of `union bpf_attr`, its pointers valid for what the command does with them.
unsafe fn bpf<T>(command: u32, attributes: &mut T) -> io::Result<i64> {
    // SAFETY: the pointer and size are those of a live value; the rest is the caller's promise.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>() as libc::c_uint)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[repr(C)]
struct ObjectAttributes {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

/// Opens a pinned object.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attributes = ObjectAttributes { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: BPF_OBJ_GET reads a terminated path that lives across the call, and returns a new descriptor.
    unsafe {
        let fd = bpf(command::OBJ_GET, &mut attributes)?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// Pins an object.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attributes =
        ObjectAttributes { path: path.as_ptr() as u64, fd: object.as_raw_fd() as u32, flags: 0 };
    // SAFETY: BPF_OBJ_PIN reads a terminated path that lives across the call.
    unsafe { bpf(command::OBJ_PIN, &mut attributes).map(drop) }
}

/// Whether an object that was opened from its pin is a program, and not a link or a map.
pub(crate) fn is_program(object: BorrowedFd<'_>) -> io::Result<bool> {
    let target = std::fs::read_link(format!("/proc/self/fd/{}", object.as_raw_fd()))?;
    Ok(target.as_os_str() == "anon_inode:bpf-prog")
}

/// Cookie of the network namespace that the calling thread is in, unique while the machine runs (Linux 5.14).
pub(crate) fn network_namespace() -> io::Result<u64> {
    /// From `asm-generic/socket.h`.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option is a 64-bit number, for which there is room, and `length` says so.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

#[repr(C)]
struct LinkUpdateAttributes {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Lets a task wait for a descriptor to become readable.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one open descriptor, the same at every call, until it is dropped with what is returned.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// The value whose bytes these are, if there are as many.
pub(crate) fn read_pod<T: aya::Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: there are enough bytes, at whatever alignment, and any bits make a `Pod`.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Replaces the program of a link in one step: every packet meets the old one or the new one, none meets neither.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = LinkUpdateAttributes {
        link: link.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        flags: 0,
        old_program: 0,
    };
    // SAFETY: BPF_LINK_UPDATE takes plain numbers.
    unsafe { bpf(command::LINK_UPDATE, &mut attributes).map(drop) }
}

#[repr(C)]
struct LinkDetachAttributes {
    link: u32,
}

/// Takes a link's program away from where it is attached, now: when its last pin or descriptor goes, the kernel does that
/// a moment later.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = LinkDetachAttributes { link: link.as_raw_fd() as u32 };
    // SAFETY: BPF_LINK_DETACH takes plain numbers.
    unsafe { bpf(command::LINK_DETACH, &mut attributes).map(drop) }
}

/// The kernel's tick counter, as the programs read it. User space cannot, so a program of two instructions does.
#[derive(Debug)]
pub(crate) struct Jiffies {
    program: OwnedFd,
}

#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct RunAttributes {
    program: u32,
    result: u32,
    data_in_size: u32,
    data_out_size: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in_size: u32,
    context_out_size: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
}

impl Jiffies {
    /// Loads the program.
    pub(crate) fn new() -> io::Result<Self> {
        /// `BPF_PROG_TYPE_SCHED_CLS`: its whole 32-bit result comes back.
        const CLASSIFIER: u32 = 3;
        /// `call bpf_jiffies64` (helper 118), `exit`; the result stays in r0.
        const PROGRAM: [u64; 2] = [0x0000_0076_0000_0085, 0x0000_0000_0000_0095];
        let mut attributes = LoadAttributes {
            kind: CLASSIFIER,
            instruction_count: PROGRAM.len() as u32,
            instructions: PROGRAM.as_ptr() as u64,
            license: c"Apache-2.0".as_ptr() as u64,
            ..LoadAttributes::default()
        };
        // SAFETY: the instructions and the licence are constants; the command returns a new descriptor.
        unsafe {
            let fd = bpf(command::PROG_LOAD, &mut attributes)?;
            Ok(Self { program: OwnedFd::from_raw_fd(fd as i32) })
        }
    }

    /// The low 32 bits of the counter.
    pub(crate) fn now(&self) -> io::Result<u32> {
        // The shortest frame that a test run takes.
        let frame = [0_u8; 14];
        let mut attributes = RunAttributes {
            program: self.program.as_raw_fd() as u32,
            data_in_size: frame.len() as u32,
            data_in: frame.as_ptr() as u64,
            repeat: 1,
            ..RunAttributes::default()
        };
        // SAFETY: the kernel reads the frame, which lives across the call, and writes into the attributes.
        unsafe { bpf(command::PROG_TEST_RUN, &mut attributes)? };
        Ok(attributes.result)
    }
}
