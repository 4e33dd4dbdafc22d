//! Programs that one test after the other runs: loading them is a walk of the verifier over a million instructions, which
//! takes most of a second, and most of a minute in an emulated machine.

#![expect(unsafe_code, reason = "clearing a map of any layout has no safe wrapper")]

use std::{
    io,
    ops::{Deref, DerefMut},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    sync::{Mutex, PoisonError},
};

use aya::{
    Ebpf,
    maps::{Map, MapData, RingBuf},
};
use weir_dataplane::programs::{self, Options};

/// What loaded programs differ in: the bounds of their maps.
type Bounds = Vec<(String, u32)>;

/// Those that no test runs now.
static SPARE: Mutex<Vec<(Bounds, Ebpf)>> = Mutex::new(Vec::new());

/// Programs, and maps as they were when they had just been loaded.
pub(crate) struct Loaded {
    ebpf: Option<Ebpf>,
    /// `None`: nobody else's, afterwards.
    bounds: Option<Bounds>,
}

impl Loaded {
    pub(crate) fn new(options: &Options<'_>) -> Self {
        let usual = Options { max_entries: options.max_entries, ..Options::default() };
        let is_usual = usual.pins == options.pins && usual.packet_log == options.packet_log;
        let bounds: Option<Bounds> = is_usual.then(|| {
            let bounds = options.max_entries.iter();
            bounds.map(|(name, bound)| ((*name).to_owned(), *bound)).collect()
        });
        let spare = bounds.as_ref().and_then(|bounds| {
            let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
            let at = spare.iter().position(|(of, _)| of == bounds)?;
            Some(spare.swap_remove(at).1)
        });
        let ebpf = spare.map_or_else(
            || {
                programs::load(options).unwrap_or_else(|error| {
                    panic!("packet tests need root: {error}: {:?}", std::error::Error::source(&error))
                })
            },
            |mut ebpf| {
                clear(&mut ebpf);
                ebpf
            },
        );
        Self { ebpf: Some(ebpf), bounds }
    }
}

impl Deref for Loaded {
    type Target = Ebpf;
    fn deref(&self) -> &Ebpf {
        self.ebpf.as_ref().expect("there until it is dropped")
    }
}

impl DerefMut for Loaded {
    fn deref_mut(&mut self) -> &mut Ebpf {
        self.ebpf.as_mut().expect("there until it is dropped")
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let (Some(bounds), Some(ebpf)) = (self.bounds.take(), self.ebpf.take()) {
            SPARE.lock().unwrap_or_else(PoisonError::into_inner).push((bounds, ebpf));
        }
    }
}

/// Makes every map what it was when it had just been made.
fn clear(ebpf: &mut Ebpf) {
    for (name, map) in ebpf.maps_mut() {
        let cleared = match map {
            // Constants, which the kernel lets nobody write.
            _ if name.starts_with('.') => Ok(()),
            Map::Array(data) => zero_batch(data),
            Map::PerCpuArray(data) => zero(data),
            Map::HashMap(data)
            | Map::LruHashMap(data)
            | Map::PerCpuHashMap(data)
            | Map::PerCpuLruHashMap(data)
            | Map::LpmTrie(data) => empty(data),
            Map::RingBuf(_) => {
                let mut ring = RingBuf::try_from(map).expect("it is one");
                while ring.next().is_some() {}
                Ok(())
            }
            Map::ProgramArray(_) => Ok(()),
            other => panic!("map {name} is of a kind that is not cleared: {other:?}"),
        };
        cleared.unwrap_or_else(|error| panic!("clearing map {name}: {error}"));
    }
}

/// Writes zeros over every element of an array, which may be large: all in one call, and none if all are zero.
fn zero_batch(map: &MapData) -> io::Result<()> {
    let info = map.info().map_err(io::Error::other)?;
    let count = info.max_entries() as usize;
    let (mut keys, mut values) = (vec![0_u32; count], vec![0_u8; count * info.value_size() as usize]);
    let mut next = 0_u32;
    let mut attributes = Elements {
        in_batch: 0,
        out_batch: std::ptr::from_mut(&mut next).expose_provenance() as u64,
        keys: keys.as_mut_ptr().expose_provenance() as u64,
        values: values.as_mut_ptr().expose_provenance() as u64,
        count: count as u32,
        map: map.fd().as_fd().as_raw_fd().cast_unsigned(),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the attributes are those of this command, and there is room for all keys and values.
    unsafe { bpf(LOOKUP_BATCH, &attributes)? };
    let zeros = vec![0_u8; values.len()];
    if values == zeros {
        return Ok(());
    }
    values.copy_from_slice(&zeros);
    (attributes.out_batch, attributes.count) = (0, count as u32);
    // SAFETY: likewise.
    unsafe { bpf(UPDATE_BATCH, &attributes) }
}

/// The same for an array with a value for each CPU, which is small.
fn zero(map: &MapData) -> io::Result<()> {
    let info = map.info().map_err(io::Error::other)?;
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
    let mut zeros = vec![0_u8; info.value_size().next_multiple_of(8) as usize * cpus];
    for index in 0..info.max_entries() {
        element(UPDATE, map.fd().as_fd(), &index.to_ne_bytes(), &mut zeros)?;
    }
    Ok(())
}

/// Deletes every entry.
fn empty(map: &MapData) -> io::Result<()> {
    let info = map.info().map_err(io::Error::other)?;
    let fd = map.fd().as_fd();
    let mut key = vec![0_u8; info.key_size() as usize];
    // Without a key before it the next one is the first.
    while element(NEXT_KEY, fd, &[], &mut key).is_ok() {
        element(DELETE, fd, &key.clone(), &mut [])?;
    }
    Ok(())
}

/// Commands of bpf(2), from `linux/bpf.h`.
const UPDATE: libc::c_long = 2;
const DELETE: libc::c_long = 3;
const NEXT_KEY: libc::c_long = 4;
const LOOKUP_BATCH: libc::c_long = 24;
const UPDATE_BATCH: libc::c_long = 26;

/// Attributes of commands on one element.
#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Attributes of commands on many.
#[repr(C)]
struct Elements {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Does something with one element. An empty key or value is none; a value is what the command reads or writes, and of the
/// map's size.
fn element(command: libc::c_long, map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<()> {
    let attributes = Element {
        map: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: if key.is_empty() { 0 } else { key.as_ptr().expose_provenance() as u64 },
        value: if value.is_empty() { 0 } else { value.as_mut_ptr().expose_provenance() as u64 },
        flags: 0,
    };
    // SAFETY: the attributes are those of these commands; key and value are live and of the sizes that the map says.
    unsafe { bpf(command, &attributes) }
}

/// Calls bpf(2).
///
/// # Safety
/// `attributes` must be the command's, its pointers valid for what the command does with them.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<()> {
    // SAFETY: pointer and size are those of a live value; the rest is the caller's promise.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
