//! What service ids mean, for whoever reads the maps without an API server.
//!
//! The maps hold numbers; `weir dataplane services` must say names even when the agent is dead. One JSON object a line,
//! appended before the maps refer to a new id, so that a change costs one line however many services there are. The
//! file is written anew when it has twice the lines that it needs.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::plan::{
    PortName,
    model::{OwnerKind, ServiceKey},
};

/// Lines beyond twice the needed ones that are tolerated before the file is written anew.
const SLACK: usize = 1_000;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    name: Option<Name>,
}

/// A [`PortName`] outside of this process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Name {
    namespace: String,
    service: String,
    port: String,
    protocol: u8,
    /// A Pod's, whose host ports are served.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pod: bool,
}

impl From<&PortName> for Name {
    fn from(name: &PortName) -> Self {
        Self {
            namespace: name.service.namespace.to_string(),
            service: name.service.name.to_string(),
            port: name.port.to_string(),
            protocol: name.protocol,
            pod: name.service.kind == OwnerKind::Pod,
        }
    }
}

impl From<Name> for PortName {
    fn from(name: Name) -> Self {
        let key = if name.pod { ServiceKey::pod } else { ServiceKey::new };
        let service = key(&name.namespace, &name.service);
        Self { service, port: name.port.into(), protocol: name.protocol }
    }
}

/// The names as they are on disk. A line that was cut short by a crash is not there.
pub fn read(path: &Path) -> io::Result<HashMap<u32, PortName>> {
    Ok(read_lines(path)?.0)
}

fn read_lines(path: &Path) -> io::Result<(HashMap<u32, PortName>, usize)> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((HashMap::new(), 0)),
        Err(error) => return Err(error),
    };
    let (mut names, mut count) = (HashMap::new(), 0);
    for line in BufReader::new(file).lines() {
        count += 1;
        match serde_json::from_str::<Line>(&line?) {
            Ok(Line { id, name: Some(name) }) => drop(names.insert(id, name.into())),
            Ok(Line { id, name: None }) => drop(names.remove(&id)),
            Err(_) => {}
        }
    }
    Ok((names, count))
}

/// The agent's end: the only writer.
#[derive(Debug)]
pub struct NameTable {
    path: PathBuf,
    file: BufWriter<File>,
    names: HashMap<u32, PortName>,
    lines: usize,
}

impl NameTable {
    /// Opens the file, or begins one.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (names, lines) = read_lines(path)?;
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        // Ends a line that a crash cut short.
        file.write_all(b"\n")?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file), names, lines })
    }

    /// All names.
    pub fn names(&self) -> &HashMap<u32, PortName> {
        &self.names
    }

    /// Writes what changed. Returns when it can be read by others.
    pub fn update(&mut self, changes: &[(u32, Option<PortName>)]) -> io::Result<()> {
        for (id, name) in changes {
            write_line(&mut self.file, *id, name.as_ref())?;
            self.lines += 1;
            match name {
                Some(name) => drop(self.names.insert(*id, name.clone())),
                None => drop(self.names.remove(id)),
            }
        }
        self.file.flush()?;
        if self.lines > 2 * self.names.len() + SLACK { self.rewrite() } else { Ok(()) }
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let next = self.path.with_extension("next");
        let mut file = BufWriter::new(File::create(&next)?);
        for (id, name) in &self.names {
            write_line(&mut file, *id, Some(name))?;
        }
        file.flush()?;
        fs::rename(&next, &self.path)?;
        self.file = file;
        self.lines = self.names.len();
        Ok(())
    }
}

fn write_line(file: &mut impl io::Write, id: u32, name: Option<&PortName>) -> io::Result<()> {
    serde_json::to_writer(&mut *file, &Line { id, name: name.map(Name::from) })?;
    file.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(service: &str) -> PortName {
        PortName { service: ServiceKey::new("default", service), port: "80".into(), protocol: 6 }
    }

    #[test]
    fn names_survive_a_crash_in_the_middle_of_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("names");
        let mut table = NameTable::open(&path).unwrap();
        table.update(&[(1, Some(name("a"))), (2, Some(name("b")))]).unwrap();
        table.update(&[(1, None)]).unwrap();
        drop(table);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(br#"{"id":3,"na"#).unwrap();
        let mut table = NameTable::open(&path).unwrap();
        table.update(&[(4, Some(name("d")))]).unwrap();
        assert_eq!(read(&path).unwrap(), HashMap::from([(2, name("b")), (4, name("d"))]));
    }

    #[test]
    fn a_pod_is_no_service_of_that_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("names");
        let of_pod = PortName { service: ServiceKey::pod("default", "a"), ..name("a") };
        let mut table = NameTable::open(&path).unwrap();
        table.update(&[(1, Some(name("a"))), (2, Some(of_pod.clone()))]).unwrap();
        assert_eq!(read(&path).unwrap(), HashMap::from([(1, name("a")), (2, of_pod)]));
    }

    #[test]
    fn the_file_stays_in_proportion() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("names");
        let mut table = NameTable::open(&path).unwrap();
        for round in 0..3 * SLACK as u32 {
            table.update(&[(round, Some(name("a"))), (round, None)]).unwrap();
        }
        table.update(&[(7, Some(name("a")))]).unwrap();
        assert!(fs::read_to_string(&path).unwrap().lines().count() <= SLACK + 10);
        assert_eq!(read(&path).unwrap(), HashMap::from([(7, name("a"))]));
    }
}
