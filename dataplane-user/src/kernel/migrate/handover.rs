//! The change of the programs on packets where flows are not in the same maps before and after.
//!
//! A flow that is opened while one program is new and another is old would be known to one of them only, and an answer
//! could leave untranslated. So for the milliseconds of the change no flow is opened: frontends drop in silence what would
//! open one, and clients send it again. Flows that stand go on.

use std::{fs, io};

use tracing::warn;
use weir_dataplane_ebpf::{Flow, FlowKey, FlowState, Frontend, Scope};

use super::{carry, is_apart, is_frontends, is_written_by_programs, others, predecessor};
use crate::{
    kernel::{
        attach::AttachError,
        maps::{Family, FamilyMaps, Maps, TableError},
        sys::RawMap,
    },
    paths::Paths,
    programs::MAPS,
};

/// The time in which programs on packets are replaced.
pub(in crate::kernel) struct Handover<'a> {
    paths: &'a Paths,
    /// Frontends that are shut, as they have to be opened again.
    shut: Vec<(RawMap, Vec<u8>, Vec<u8>)>,
}

/// However it ends.
impl Drop for Handover<'_> {
    fn drop(&mut self) {
        self.open_again();
    }
}

impl<'a> Handover<'a> {
    /// Begins it. Flows that have changed are given to the new maps, and none is opened until [`Handover::finish`]. With
    /// `socket_lb` frontends for clients inside stay open: socket hooks would have to refuse, and leave next to nothing
    /// for packets to open.
    pub(in crate::kernel) fn begin(paths: &'a Paths, socket_lb: bool) -> Self {
        let mut handover = Self { paths, shut: Vec::new() };
        let Some((older, known)) = predecessor(paths) else { return handover };
        let apart = |name: &str| is_apart(&older, paths, name).unwrap_or(false);
        let programs = || MAPS.into_iter().filter(|name| is_written_by_programs(name));
        if known.must_shut() || programs().any(|name| name.starts_with("flows") && apart(name)) {
            for name in MAPS.into_iter().filter(|name| is_frontends(name) && apart(name)) {
                if let Err(error) = handover.shut(&older, name, socket_lb) {
                    warn!(map = name, %error, "connections that open just now may have to open again");
                }
            }
        }
        for name in programs() {
            carry(known, name, &older, paths, RawMap::replace);
        }
        handover
    }

    fn shut(&mut self, older: &Paths, name: &str, socket_lb: bool) -> io::Result<()> {
        for places in [self.paths, older] {
            let Some(map) = RawMap::open(&places.map(name))? else { continue };
            let (mut keys, mut open, mut shut) = (Vec::new(), Vec::new(), Vec::new());
            for batch in map.batches() {
                let (all_keys, all_values) = batch?;
                let entries =
                    all_keys.chunks_exact(map.key_size).zip(all_values.chunks_exact(map.value_size));
                for (key, value) in entries.filter(|(key, _)| !socket_lb || is_external(key)) {
                    keys.extend_from_slice(key);
                    open.extend_from_slice(value);
                    shut.extend_from_slice(&shut_frontend(value));
                }
            }
            map.replace(&keys, &shut)?;
            self.shut.push((map, keys, open));
        }
        Ok(())
    }

    fn open_again(&mut self) {
        for (map, keys, values) in self.shut.drain(..) {
            if let Err(error) = map.replace(&keys, &values) {
                warn!(%error, "frontends stay shut until their services are planned again");
            }
        }
    }

    /// Ends it: all programs are new. What the older ones wrote last, and their pins.
    pub(in crate::kernel) fn finish(mut self) -> Result<(), AttachError> {
        self.open_again();
        if let Some((older, known)) = predecessor(self.paths) {
            for name in MAPS.into_iter().filter(|name| is_written_by_programs(name)) {
                carry(known, name, &older, self.paths, RawMap::add);
            }
        }
        if !others(self.paths).is_empty()
            && let Err(error) = settle(self.paths)
        {
            warn!(%error, "flows that are opening stay among the established ones until they end");
        }
        for older in others(self.paths) {
            let layout = older.layout();
            fs::remove_dir_all(&layout).map_err(|source| AttachError::Pin {
                operation: "remove",
                path: layout,
                source,
            })?;
        }
        Ok(())
    }
}

/// Moves flows that are opening to their own tables, where today's programs move them on. Nothing when none is elsewhere.
fn settle(paths: &Paths) -> Result<(), TableError> {
    let maps = Maps::open(paths)?;
    settle_family(&maps.v4)?;
    settle_family(&maps.v6)
}

fn settle_family<A: Family>(maps: &FamilyMaps<A>) -> Result<(), TableError> {
    for batch in maps.flows.batches() {
        let opening = batch?.into_iter().filter(|(_, flow)| flow.state == FlowState::OPENING);
        let (keys, flows): (Vec<FlowKey<A>>, Vec<Flow<A>>) = opening.unzip();
        // Established flows are asked first: the entry is found all the time.
        maps.opening.write(&keys, &flows)?;
        maps.flows.remove(&keys)?;
    }
    Ok(())
}

/// A frontend's scope is its key's last byte in all layouts so far.
fn is_external(key: &[u8]) -> bool {
    key.last() == Some(&Scope::EXTERNAL.0)
}

/// The same frontend, but dropping in silence whatever would open a flow: without a backend, by one flag in layout 1 and by
/// the other since. (`backends` and `flags` are the fourth and fifth word of the value in all layouts so far.)
fn shut_frontend(value: &[u8]) -> Vec<u8> {
    let mut value = value.to_vec();
    let flags = Frontend::FLAG_LOCAL_POLICY | Frontend::FLAG_SERVED_ELSEWHERE;
    value[12..16].fill(0);
    for (byte, flag) in value[16..20].iter_mut().zip(flags.to_ne_bytes()) {
        *byte |= flag;
    }
    value
}
