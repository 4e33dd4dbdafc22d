//! Batches of map entries, with their types or as bytes.

use std::{
    io,
    marker::PhantomData,
    mem::size_of,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::Path,
};

use aya::{
    Pod,
    maps::{MapData, MapError, MapType},
};

use super::{bpf, command};

/// Entries that one batch call reads at first. A hash map's bucket must fit; the call says when it does not.
const BATCH: usize = 4_096;
/// Entries that one batch call writes: the kernel copies each one by one anyway, and locks nothing across them.
const WRITE_BATCH: usize = 8_192;

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

/// Reads a map in batches, as bytes: all keys of a batch, then their values. Entries that come or go meanwhile may be seen
/// or not; no other is left out.
struct RawBatches<'a> {
    map: BorrowedFd<'a>,
    key_size: usize,
    value_size: usize,
    /// Where the next batch begins, as the kernel says: up to a key, or a bucket's number.
    cursor: Option<Vec<u8>>,
    size: usize,
    done: bool,
}

impl<'a> RawBatches<'a> {
    /// All entries.
    ///
    /// # Safety
    /// The map's keys and values must have these sizes, and it must be no per-CPU map.
    unsafe fn new(map: BorrowedFd<'a>, key_size: usize, value_size: usize) -> Self {
        Self { map, key_size, value_size, cursor: None, size: BATCH, done: false }
    }

    fn next_batch(&mut self) -> io::Result<(Vec<u8>, Vec<u8>)> {
        loop {
            let mut keys: Vec<u8> = Vec::with_capacity(self.size * self.key_size);
            let mut values: Vec<u8> = Vec::with_capacity(self.size * self.value_size);
            let mut next = vec![0_u8; self.key_size.max(size_of::<u32>())];
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
            // SAFETY: the arrays have room for `count` keys and values of the map's sizes, as `new` was promised; the
            // cursors have room for a key or a bucket number.
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
            // SAFETY: the kernel wrote `count` entries, no more than there is room for.
            unsafe {
                keys.set_len(count * self.key_size);
                values.set_len(count * self.value_size);
            }
            self.cursor = Some(next);
            return Ok((keys, values));
        }
    }
}

impl Iterator for RawBatches<'_> {
    type Item = io::Result<(Vec<u8>, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let batch = self.next_batch();
        self.done |= batch.is_err();
        Some(batch)
    }
}

/// Reads a map in batches, with the types of its entries.
pub(crate) struct Batches<'a, K, V>(RawBatches<'a>, PhantomData<(K, V)>);

impl<'a, K: Pod, V: Pod> Batches<'a, K, V> {
    /// All entries.
    pub(crate) fn new(map: BorrowedFd<'a>) -> Self {
        // SAFETY: `Table`, which has this map, compared the sizes when it opened it, and is of no per-CPU map.
        Self(unsafe { RawBatches::new(map, size_of::<K>(), size_of::<V>()) }, PhantomData)
    }

    /// The entries behind a cursor of an earlier reading, or, for an array, behind an index.
    pub(crate) fn behind(map: BorrowedFd<'a>, cursor: Vec<u8>) -> Self {
        let Self(all, entry) = Self::new(map);
        Self(RawBatches { cursor: Some(cursor), ..all }, entry)
    }

    /// Where a later reading can go on; nothing when there is no more.
    pub(crate) fn cursor(self) -> Option<Vec<u8>> {
        self.0.cursor.filter(|_| !self.0.done)
    }
}

/// Bytes as values.
fn read<T: Pod>(bytes: &[u8]) -> impl Iterator<Item = T> {
    // SAFETY: each chunk has the bytes of one value, any bits make a `Pod`, and no alignment is asked for.
    bytes.chunks_exact(size_of::<T>()).map(|bytes| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

impl<K: Pod, V: Pod> Iterator for Batches<'_, K, V> {
    type Item = io::Result<Vec<(K, V)>>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.0.next()?;
        Some(batch.map(|(keys, values)| read(&keys).zip(read(&values)).collect()))
    }
}

/// Writes entries as bytes, new or there already. Returns how many did not fit.
///
/// # Safety
/// The map's keys and values must have these sizes, and it must be no per-CPU map.
unsafe fn update_raw(
    map: BorrowedFd<'_>,
    (keys, key_size): (&[u8], usize),
    (values, value_size): (&[u8], usize),
) -> io::Result<usize> {
    let entries = keys.len() / key_size;
    assert_eq!(entries * value_size, values.len());
    let mut at = 0;
    while at < entries {
        let count = (entries - at).min(WRITE_BATCH);
        let mut attributes = BatchAttributes {
            in_batch: 0,
            out_batch: 0,
            keys: keys[at * key_size..].as_ptr() as u64,
            values: values[at * value_size..].as_ptr() as u64,
            count: count as u32,
            map: map.as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: both arrays hold `count` entries of the map's sizes, as the caller promised.
        match unsafe { bpf(command::MAP_UPDATE_BATCH, &mut attributes) } {
            Ok(_) => at += count,
            Err(error) if is_full(&error) => return Ok(entries - at - attributes.count as usize),
            Err(error) => return Err(error),
        }
    }
    Ok(0)
}

#[repr(C)]
struct ElementAttributes {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Adds entries as bytes; one whose key is there already stays as it is. One call for each: batches know no such flag.
/// Returns how many did not fit.
///
/// # Safety
/// As for [`update_raw`].
unsafe fn add_raw(
    map: BorrowedFd<'_>,
    (keys, key_size): (&[u8], usize),
    (values, value_size): (&[u8], usize),
) -> io::Result<usize> {
    /// `BPF_NOEXIST`.
    const NO_EXIST: u64 = 1;
    let mut lost = 0;
    for (key, value) in keys.chunks_exact(key_size).zip(values.chunks_exact(value_size)) {
        let mut attributes = ElementAttributes {
            map: map.as_raw_fd() as u32,
            padding: 0,
            key: key.as_ptr() as u64,
            value: value.as_ptr() as u64,
            flags: NO_EXIST,
        };
        // SAFETY: key and value have the map's sizes, as the caller promised.
        match unsafe { bpf(command::MAP_UPDATE_ELEM, &mut attributes) } {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) if is_full(&error) => lost += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(lost)
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC))
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

/// A pinned map of any layout: an array, a hash or a trie.
pub(crate) struct RawMap {
    data: MapData,
    /// The kernel's number for it.
    pub(crate) id: u32,
    /// Bytes of a key.
    pub(crate) key_size: usize,
    /// Bytes of a value.
    pub(crate) value_size: usize,
}

impl RawMap {
    /// Nothing when there is no such pin.
    pub(crate) fn open(path: &Path) -> io::Result<Option<Self>> {
        let data = match MapData::from_pin(path) {
            Ok(data) => data,
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(io::Error::other(error)),
        };
        let info = data.info().map_err(io::Error::other)?;
        let kind = info.map_type().map_err(io::Error::other)?;
        if !matches!(kind, MapType::Array | MapType::Hash | MapType::LruHash | MapType::LpmTrie) {
            return Err(io::Error::other(format!("it is a {kind:?}")));
        }
        let (key_size, value_size) = (info.key_size() as usize, info.value_size() as usize);
        Ok(Some(Self { id: info.id(), data, key_size, value_size }))
    }

    /// All entries: the keys of a batch, then their values.
    pub(crate) fn batches(&self) -> impl Iterator<Item = io::Result<(Vec<u8>, Vec<u8>)>> {
        // SAFETY: the sizes are the map's, and `open` admits no per-CPU map.
        unsafe { RawBatches::new(self.data.fd().as_fd(), self.key_size, self.value_size) }
    }

    /// Adds entries to a hash; one whose key is there already stays as it is. Returns how many had no room.
    pub(crate) fn add(&self, keys: &[u8], values: &[u8]) -> io::Result<usize> {
        let (keys, values) = ((keys, self.key_size), (values, self.value_size));
        // SAFETY: the sizes are the map's, and `open` admits no per-CPU map.
        unsafe { add_raw(self.data.fd().as_fd(), keys, values) }
    }

    /// Writes entries, new or there already. Returns how many had no room.
    pub(crate) fn replace(&self, keys: &[u8], values: &[u8]) -> io::Result<usize> {
        let (keys, values) = ((keys, self.key_size), (values, self.value_size));
        // SAFETY: as in `add`.
        unsafe { update_raw(self.data.fd().as_fd(), keys, values) }
    }
}
