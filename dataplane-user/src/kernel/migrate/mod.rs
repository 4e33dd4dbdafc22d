//! From an older layout of the maps to today's, under traffic.
//!
//! An agent whose layouts differ from those of the agent before it finds the other's pins below another version's
//! directory. Maps that are as they were become the new agent's own (`share`), so that old and new programs work on
//! the same flows and it does not matter which of them a packet meets. Those that changed are made anew and given what
//! the older ones hold (`copy_books`, `Handover`). Then the older links are taken, the new programs are put behind
//! them, one step for each, and the older pins go.

mod handover;

use std::{fs, io, os::fd::AsFd as _};

use tracing::{info, warn};

pub(super) use self::handover::Handover;
use super::{
    attach::{self, AttachError},
    sys::{self, RawMap},
};
use crate::{paths::Paths, programs::MAPS};

/// An entry of today's: which map it belongs to, its key, its value.
pub type Entry = (&'static str, Vec<u8>, Vec<u8>);

/// What becomes of an entry that is not as it was; nothing when it is of no use any more.
pub type Convert = fn(key: &[u8], value: &[u8]) -> Option<Entry>;

/// In what a map differs from today's.
#[derive(Clone, Copy)]
pub enum Change {
    /// Its bound, or its kind.
    Map,
    /// Its entries.
    Entries(Convert),
}

/// An older version of the layouts.
struct Known {
    version: u32,
    /// Maps that have changed since. All others are as they were.
    changed: &'static [(&'static str, Change)],
    /// Its programs do not look for flows where today's open them.
    opens_elsewhere: bool,
}

impl Known {
    fn change(&self, name: &str) -> Option<Change> {
        self.changed.iter().find(|(map, _)| *map == name).map(|(_, change)| *change)
    }

    /// Whether flows that are opened during the change would be known to one side alone.
    fn must_shut(&self) -> bool {
        self.opens_elsewhere
            || MAPS.into_iter().any(|name| name.starts_with("flows") && self.change(name).is_some())
    }
}

/// Bounds that version 3 raised.
const RAISED: &[(&str, Change)] =
    &[("backends_v4", Change::Map), ("backends_v6", Change::Map), ("maglev", Change::Map)];

/// The versions that today's maps can be given the entries of. Raising the version adds a row.
const KNOWN: &[Known] = &[
    // Version 3 made tables of their own for flows that are opening, raised bounds, and added maps.
    Known { version: 2, changed: RAISED, opens_elsewhere: true },
    // Version 2 gave two free bits of a flow's flags a meaning: without them an entry means what it meant.
    Known { version: 1, changed: RAISED, opens_elsewhere: true },
];

/// Maps that the plugin writes, under the attachments' lock, and removes from.
const OF_THE_PLUGIN: [&str; 2] = ["endpoints_v4", "endpoints_v6"];
/// Counters for each CPU: they start again.
const COUNTERS: &str = "drops";

/// Places of other versions' agents on this machine, newest first.
pub(super) fn others(paths: &Paths) -> Vec<Paths> {
    let Ok(entries) = fs::read_dir(paths.bpf()) else { return Vec::new() };
    let versions = entries.flatten().filter_map(|entry| {
        let version = entry.file_name().to_str()?.strip_prefix('v')?.parse().ok()?;
        (version != paths.layout_version()).then_some(version)
    });
    let mut versions: Vec<u32> = versions.collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    versions.into_iter().map(|version| paths.with_layout(version)).collect()
}

/// Places of all agents on this machine: these, and those of other versions.
pub(crate) fn all(paths: &Paths) -> Vec<Paths> {
    let mut all = others(paths);
    all.insert(0, paths.clone());
    all
}

fn known(older: &Paths) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.version == older.layout_version())
}

/// The agent whose maps are to be taken over. What others left below is another's that never came to its end.
fn predecessor(paths: &Paths) -> Option<(Paths, &'static Known)> {
    others(paths).into_iter().find_map(|older| known(&older).map(|known| (older, known)))
}

/// Maps to which programs add entries by themselves.
fn is_written_by_programs(name: &str) -> bool {
    ["flows", "opening", "socket_peers", "affinity", "socket_affinity"]
        .iter()
        .any(|kind| name.starts_with(kind))
}

fn is_frontends(name: &str) -> bool {
    name.starts_with("frontends")
}

/// Before the programs are loaded: pins the older maps that are as they were where the loader looks for them.
pub(super) fn share(paths: &Paths) -> Result<(), AttachError> {
    let Some((older, known)) = predecessor(paths) else {
        for other in others(paths) {
            warn!(
                layout = other.layout_version(),
                "cannot read another version's maps: flows are opened again, by the tables as the API has them"
            );
        }
        return Ok(());
    };
    info!(layout = older.layout_version(), "taking over from an older agent");
    for name in MAPS {
        // Frontends that are shut for packets alone, and by their makers each: socket hooks are new by then.
        if known.change(name).is_some() || (known.must_shut() && is_frontends(name)) {
            continue;
        }
        let (from, to) = (older.map(name), paths.map(name));
        if !from.exists() || to.exists() {
            continue;
        }
        let shared = sys::open_pin(&from).and_then(|map| sys::pin(map.as_fd(), &to));
        shared.map_err(|source| AttachError::Pin { operation: "share", path: from, source })?;
    }
    Ok(())
}

/// Once the programs are loaded: gives maps that are not shared what the older agent wrote.
pub(super) fn copy_books(paths: &Paths) {
    let Some((older, known)) = predecessor(paths) else { return };
    let books = |name: &&str| !is_written_by_programs(name) && !OF_THE_PLUGIN.contains(name);
    for name in MAPS.into_iter().filter(books) {
        carry(known, name, &older, paths, RawMap::replace);
    }
}

/// With the attachments' lock held: gives the plugin's maps what is in the older ones, and moves the links' pins to their
/// new place, where their programs are then replaced.
pub(super) fn take_links(paths: &Paths) -> Result<(), AttachError> {
    if let Some((older, known)) = predecessor(paths) {
        for name in OF_THE_PLUGIN {
            carry(known, name, &older, paths, RawMap::replace);
        }
    }
    for older in others(paths) {
        for pin in attach::list(&older.links())? {
            let (from, to) = (older.link(&pin), paths.link(&pin));
            fs::rename(&from, &to).map_err(|source| AttachError::Pin {
                operation: "move the pin",
                path: from,
                source,
            })?;
        }
    }
    Ok(())
}

/// Whether old and new programs have a map each.
fn is_apart(older: &Paths, paths: &Paths, name: &str) -> io::Result<bool> {
    let (from, to) = (RawMap::open(&older.map(name))?, RawMap::open(&paths.map(name))?);
    Ok(matches!((from, to), (Some(from), Some(to)) if from.id != to.id))
}

/// How entries are written: [`RawMap::replace`] while no new program runs, [`RawMap::add`] afterwards, when an entry that
/// the new map has already is the newer one.
type Write = fn(&RawMap, &[u8], &[u8]) -> io::Result<usize>;

/// Copies one map unless it is shared. What cannot be copied is no reason not to serve.
fn carry(known: &Known, name: &str, older: &Paths, paths: &Paths, write: Write) {
    if name == COUNTERS {
        return;
    }
    match carry_map(older, paths, name, known.change(name), write) {
        Ok((0, 0)) => {}
        Ok((entries, 0)) => info!(map = name, entries, "carried over"),
        Ok((entries, lost)) => warn!(map = name, entries, lost, "not everything had room"),
        Err(error) => warn!(map = name, %error, "its entries are lost"),
    }
}

/// Gives today's maps what an older one of this name holds. Returns how many entries there were, and how many of them had
/// no room.
pub fn copy(older: &Paths, paths: &Paths, name: &str, change: Option<Change>) -> io::Result<(usize, usize)> {
    carry_map(older, paths, name, change, RawMap::replace)
}

fn carry_map(
    older: &Paths,
    paths: &Paths,
    name: &str,
    change: Option<Change>,
    write: Write,
) -> io::Result<(usize, usize)> {
    let (Some(from), Some(to)) = (RawMap::open(&older.map(name))?, RawMap::open(&paths.map(name))?) else {
        return Ok((0, 0));
    };
    if from.id == to.id {
        return Ok((0, 0));
    }
    let convert = if let Some(Change::Entries(convert)) = change { Some(convert) } else { None };
    if convert.is_none() && (from.key_size, from.value_size) != (to.key_size, to.value_size) {
        return Err(io::Error::other("its entries have another size, and nothing converts them"));
    }
    let (mut entries, mut lost) = (0, 0);
    for batch in from.batches() {
        let (keys, values) = batch?;
        entries += keys.len() / from.key_size;
        let Some(convert) = convert else {
            lost += write(&to, &keys, &values)?;
            continue;
        };
        let pairs = keys.chunks_exact(from.key_size).zip(values.chunks_exact(from.value_size));
        let mut converted: Vec<Entry> = pairs.filter_map(|(key, value)| convert(key, value)).collect();
        converted.sort_by_key(|entry| entry.0);
        for group in converted.chunk_by(|a, b| a.0 == b.0) {
            let Some(to) = RawMap::open(&paths.map(group[0].0))? else { continue };
            let keys: Vec<u8> = group.iter().flat_map(|entry| entry.1.iter().copied()).collect();
            let values: Vec<u8> = group.iter().flat_map(|entry| entry.2.iter().copied()).collect();
            lost += write(&to, &keys, &values)?;
        }
    }
    Ok((entries, lost))
}
