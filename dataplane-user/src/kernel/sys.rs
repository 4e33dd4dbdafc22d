//! System calls around bpf that have no safe wrapper: batches of map entries, replacing the program of any kind of link,
//! waiting for a ring buffer, reading the kernel's clock of flows, and the number of a network namespace.

#![expect(unsafe_code, reason = "these calls have no safe wrapper")]

use std::{
    ffi::CString,
    io,
    marker::PhantomData,
    mem::{MaybeUninit, size_of},
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, net::UnixDatagram},
    },
    path::Path,
};

use aya::Pod;
use tokio::io::{Interest, unix::AsyncFd};

/// Commands of bpf(2), from `linux/bpf.h`.
mod command {
    pub(super) const PROG_LOAD: u32 = 5;
    pub(super) const OBJ_PIN: u32 = 6;
    pub(super) const OBJ_GET: u32 = 7;
    pub(super) const PROG_TEST_RUN: u32 = 10;
    pub(super) const MAP_LOOKUP_BATCH: u32 = 24;
    pub(super) const MAP_UPDATE_BATCH: u32 = 26;
    pub(super) const MAP_DELETE_BATCH: u32 = 27;
    pub(super) const LINK_UPDATE: u32 = 29;
}

/// Entries that one batch call reads at first. A hash map's bucket must fit; the call says when it does not.
const BATCH: usize = 4_096;
/// Entries that one batch call writes: the kernel copies each one by one anyway, and locks nothing across them.
const WRITE_BATCH: usize = 8_192;

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
pub(crate) fn read_pod<T: Pod>(bytes: &[u8]) -> Option<T> {
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
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Reads a map in batches. Entries that come or go meanwhile may be seen or not; no other is left out.
pub(crate) struct Batches<'a, K, V> {
    map: BorrowedFd<'a>,
    /// Where the next batch begins, as the kernel says: up to a key, or a bucket's number.
    cursor: Option<Vec<u8>>,
    size: usize,
    done: bool,
    entry: PhantomData<(K, V)>,
}

impl<'a, K: Pod, V: Pod> Batches<'a, K, V> {
    /// All entries.
    pub(crate) fn new(map: BorrowedFd<'a>) -> Self {
        Self { map, cursor: None, size: BATCH, done: false, entry: PhantomData }
    }

    /// The entries behind a cursor of an earlier reading, or, for an array, behind an index.
    pub(crate) fn behind(map: BorrowedFd<'a>, cursor: Vec<u8>) -> Self {
        Self { cursor: Some(cursor), ..Self::new(map) }
    }

    /// Where a later reading can go on; nothing when there is no more.
    pub(crate) fn cursor(self) -> Option<Vec<u8>> {
        self.cursor.filter(|_| !self.done)
    }

    fn next_batch(&mut self) -> io::Result<Vec<(K, V)>> {
        loop {
            let mut keys: Vec<MaybeUninit<K>> = Vec::with_capacity(self.size);
            let mut values: Vec<MaybeUninit<V>> = Vec::with_capacity(self.size);
            let mut next = vec![0_u8; size_of::<K>().max(size_of::<u32>())];
            let mut attributes = BatchAttributes {
                in_batch: self.cursor.as_ref().map_or(0, |cursor| cursor.as_ptr() as u64),
                out_batch: next.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: self.size as u32,
                map: self.map.as_raw_fd() as u32,
                element_flags: 0,
                flags: 0,
            };
            // SAFETY: the arrays have room for `count` keys and values of the map's sizes, which `Table` checked
            // when it opened the map; the cursors have room for a key or a bucket number.
            let result = unsafe { bpf(command::MAP_LOOKUP_BATCH, &mut attributes) };
            match result {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => self.done = true,
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && self.size < (1 << 24) => {
                    self.size *= 2;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let count = attributes.count as usize;
            // SAFETY: the kernel wrote `count` entries, no more than there is room for, and any bits make a `Pod`.
            unsafe {
                keys.set_len(count);
                values.set_len(count);
            }
            self.cursor = Some(next);
            // SAFETY: as above, each of these was written.
            return Ok(keys
                .into_iter()
                .zip(values)
                .map(|(k, v)| unsafe { (k.assume_init(), v.assume_init()) })
                .collect());
        }
    }
}

impl<K: Pod, V: Pod> Iterator for Batches<'_, K, V> {
    type Item = io::Result<Vec<(K, V)>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let batch = self.next_batch();
        self.done |= batch.is_err();
        Some(batch)
    }
}

/// Writes entries; an array's or a hash map's, new or there already.
pub(crate) fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
    assert_eq!(keys.len(), values.len());
    for (keys, values) in keys.chunks(WRITE_BATCH).zip(values.chunks(WRITE_BATCH)) {
        let mut attributes = BatchAttributes {
            in_batch: 0,
            out_batch: 0,
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: keys.len() as u32,
            map: map.as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: both arrays hold `count` entries of the map's sizes, which `Table` checked.
        unsafe { bpf(command::MAP_UPDATE_BATCH, &mut attributes)? };
    }
    Ok(())
}

/// Removes entries. One that is gone already is success: the kernel stops there, and this goes on behind it.
pub(crate) fn delete<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> io::Result<()> {
    let mut rest = keys;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(WRITE_BATCH)];
        let mut attributes = BatchAttributes {
            in_batch: 0,
            out_batch: 0,
            keys: chunk.as_ptr() as u64,
            values: 0,
            count: chunk.len() as u32,
            map: map.as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the array holds `count` keys of the map's size.
        match unsafe { bpf(command::MAP_DELETE_BATCH, &mut attributes) } {
            Ok(_) => rest = &rest[chunk.len()..],
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                rest = &rest[(attributes.count as usize + 1).min(rest.len())..];
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
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
