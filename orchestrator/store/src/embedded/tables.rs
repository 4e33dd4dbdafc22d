//! How entries lie in the file.
//!
//! Table `entries`: key → create revision, mod revision, version (three little-endian `u64`), then the value. The past
//! is not in the file. Table `meta`: `revision` is the head, because a deletion leaves no entry to find it by; `format`
//! names this layout.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::{Entry, Error, Page, Range, Revision};

pub(super) const ENTRIES: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("entries");
pub(super) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
pub(super) const REVISION: &str = "revision";

const FORMAT: &str = "format";
const FORMAT_VERSION: u64 = 1;
const HEADER: usize = 24;

/// The revision of an empty store; a client's resourceVersion "0" means "any", so no object may have it.
const FIRST_REVISION: u64 = 1;

/// Makes the tables of a new file, checks the format of an old one, and answers its revision.
pub(super) fn prepare(database: &Database, path: &Path) -> Result<Revision, Error> {
    let prepare = || -> Result<(u64, u64), redb::Error> {
        let txn = database.begin_write()?;
        let (revision, format);
        {
            txn.open_table(ENTRIES)?;
            let mut meta = txn.open_table(META)?;
            let found = meta.get(FORMAT)?.map(|value| value.value());
            if found.is_none() {
                meta.insert(FORMAT, FORMAT_VERSION)?;
                meta.insert(REVISION, FIRST_REVISION)?;
            }
            format = found.unwrap_or(FORMAT_VERSION);
            revision = meta.get(REVISION)?.map_or(FIRST_REVISION, |value| value.value());
        }
        txn.commit()?;
        Ok((revision, format))
    };
    let (revision, format) =
        prepare().map_err(|error| Error::Open { path: path.to_owned(), source: Arc::new(error) })?;
    if format != FORMAT_VERSION {
        return Err(Error::Format { path: path.to_owned(), found: format, expected: FORMAT_VERSION });
    }
    Ok(Revision(revision))
}

pub(super) fn get(database: &Database, key: &[u8]) -> Result<Option<Entry>, redb::Error> {
    let table = database.begin_read()?.open_table(ENTRIES)?;
    lookup(&table, key)
}

/// The entry at `key` in an open table.
pub(super) fn lookup(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    key: &[u8],
) -> Result<Option<Entry>, redb::Error> {
    table.get(key)?.map(|stored| decode(key, stored.value())).transpose()
}

pub(super) fn range(database: &Database, range: &Range) -> Result<Page, redb::Error> {
    let txn = database.begin_read()?;
    let revision = txn.open_table(META)?.get(REVISION)?.map_or(FIRST_REVISION, |value| value.value());
    let table = txn.open_table(ENTRIES)?;
    // The smallest key greater than `after` is `after` with a zero byte behind it.
    let start =
        range.after.as_ref().map_or_else(|| range.prefix.to_vec(), |key| [key.as_ref(), &[0]].concat());
    let limit = if range.limit == 0 { usize::MAX } else { range.limit };
    let mut page = Page { entries: Vec::new(), revision: Revision(revision), more: false };
    for item in table.range(start.as_slice()..)? {
        let (key, stored) = item?;
        if !key.value().starts_with(&range.prefix) {
            break;
        }
        if page.entries.len() == limit {
            page.more = true;
            break;
        }
        page.entries.push(decode(key.value(), stored.value())?);
    }
    Ok(page)
}

/// Writes the stored form of an entry.
pub(super) fn encode(entry: &Entry, out: &mut Vec<u8>) {
    out.clear();
    for field in [entry.create_revision.0, entry.mod_revision.0, entry.version] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(&entry.value);
}

fn decode(key: &[u8], stored: &[u8]) -> Result<Entry, redb::Error> {
    let Some((header, value)) = stored.split_first_chunk::<HEADER>() else {
        return Err(redb::Error::Corrupted(format!("the entry {key:?} has {} bytes", stored.len())));
    };
    let field = |index: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&header[index * 8..index * 8 + 8]);
        u64::from_le_bytes(bytes)
    };
    Ok(Entry {
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(value),
        create_revision: Revision(field(0)),
        mod_revision: Revision(field(1)),
        version: field(2),
    })
}
