//! POST of a collection.

use http::{Response, StatusCode};
use jiff::{Timestamp, Unit};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::Value;
use weir_api::status::Cause;
use weir_api::{Resource, Status, object, resource};

use super::Request;
use crate::keys;
use crate::request::ResourcePath;
use crate::response::{self, Body};
use crate::server::Server;
use crate::storage::Storage;

/// Names that are tried for one `generateName`, and looks at a namespace that keeps changing.
const ATTEMPTS: usize = 8;
/// Characters that are added to a `generateName`.
const SUFFIX: usize = 5;
/// Upstream's alphabet: no vowels, and nothing that looks like another.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// The longest name, with its suffix, that is generated; upstream's bound.
const NAME_MAX: usize = 63;

pub(super) async fn create(server: &Server, request: &Request) -> Result<Response<Body>, Status> {
    let row = request.row();
    if !request.path.name.is_empty() {
        return Err(Status::method_not_allowed(row, "create"));
    }
    let decoded = request.decode(row.target())?;
    let created = insert(&server.storage, &request.path, decoded.object, request.query.dry_run).await?;
    let mut answer = request.answer(StatusCode::CREATED, &created)?;
    response::warn(&mut answer, &decoded.warnings);
    Ok(answer)
}

/// Creates what a client wishes for; also for a PUT of something that is not there, where that may create it.
pub(crate) async fn insert(
    storage: &Storage,
    path: &ResourcePath,
    mut wish: Value,
    dry_run: bool,
) -> Result<Value, Status> {
    let row = path.row;
    settle_namespace(path, &mut wish)?;
    if !object::resource_version(&wish).is_empty() {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    row.apply_defaults(&mut wish);
    row.prepare_create(&mut wish);
    object::set(&mut wish, &["metadata", "uid"], random_uid()?);
    object::set(&mut wish, &["metadata", "creationTimestamp"], now());

    let generate =
        object::name(&wish).is_empty() && !object::str_at(&wish, &["metadata", "generateName"]).is_empty();
    for attempt in 1..=ATTEMPTS {
        let expect = namespace_of(storage, row, &path.namespace, object::name(&wish)).await?;
        let mut object = wish.clone();
        if generate {
            let name = generated_name(object::str_at(&object, &["metadata", "generateName"]))?;
            object::set(&mut object, &["metadata", "name"], name);
        }
        let errors = row.validate_create(&object);
        if !errors.is_empty() {
            return Err(Status::invalid(row, object::name(&object), &errors));
        }
        match storage.create(row, object, expect, dry_run).await {
            Ok(Some(created)) => return Ok(created),
            // The namespace changed in between.
            Ok(None) => {}
            Err(status) if generate && attempt < ATTEMPTS && status.reason == "AlreadyExists" => {}
            Err(status) => return Err(status),
        }
    }
    Err(Status::conflict(row, object::name(&wish), "its namespace keeps changing; try again"))
}

/// Makes body and path agree on the namespace.
pub(super) fn settle_namespace(path: &ResourcePath, value: &mut Value) -> Result<(), Status> {
    if !path.row.namespaced {
        // Upstream drops it, with client-go's habit of filling it in.
        object::remove(value, &["metadata", "namespace"]);
        return Ok(());
    }
    if path.namespace.is_empty() {
        return Err(Status::bad_request("an empty namespace may not be set during creation"));
    }
    match object::namespace(value) {
        "" => object::set(value, &["metadata", "namespace"], path.namespace.clone()),
        own if own == path.namespace => {}
        _ => {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    }
    Ok(())
}

/// The namespace that must stay as it is while an object is created in it: its key and revision.
async fn namespace_of(
    storage: &Storage,
    row: &Resource,
    namespace: &str,
    name: &str,
) -> Result<Option<(String, u64)>, Status> {
    if !row.namespaced {
        return Ok(None);
    }
    let namespaces = resource::find("", "v1", "namespaces").expect("the registry has namespaces");
    let found = storage.get(namespaces, "", namespace).await?;
    if object::is_terminating(&found) {
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut status = Status::forbidden(row, name, &why);
        status.causes.push(Cause {
            reason: "NamespaceTerminating".to_owned(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".to_owned(),
        });
        return Err(status);
    }
    Ok(Some((keys::stored(namespaces, "", namespace), crate::storage::revision(&found))))
}

fn generated_name(base: &str) -> Result<String, Status> {
    let mut random = [0; SUFFIX];
    fill(&mut random)?;
    let kept = base
        .char_indices()
        .map(|(at, char)| at + char.len_utf8())
        .take_while(|end| *end <= NAME_MAX - SUFFIX);
    let kept = &base[..kept.last().unwrap_or(0)];
    let suffix = random.iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]));
    Ok(kept.chars().chain(suffix).collect())
}

/// A random UUID (RFC 9562, version 4).
fn random_uid() -> Result<String, Status> {
    let mut bytes = [0; 16];
    fill(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

fn fill(bytes: &mut [u8]) -> Result<(), Status> {
    SystemRandom::new().fill(bytes).map_err(|_| Status::internal("the system has no randomness"))
}

/// The time, as objects carry it.
pub(crate) fn now() -> String {
    at(Timestamp::now())
}

/// A time, as objects carry it: whole seconds, UTC.
pub(crate) fn at(time: Timestamp) -> String {
    time.round(Unit::Second).unwrap_or(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_keep_their_base_and_fit() {
        let name = generated_name("web-").expect("random");
        assert_eq!(name.len(), 9);
        assert!(name.starts_with("web-") && name[4..].bytes().all(|byte| ALPHABET.contains(&byte)), "{name}");
        assert_eq!(generated_name(&"x".repeat(100)).expect("random").len(), NAME_MAX);
    }

    #[test]
    fn uids_are_random_uuids() {
        let uid = random_uid().expect("random");
        assert_eq!(uid.len(), 36);
        assert_eq!(&uid[14..15], "4");
        assert_ne!(uid, random_uid().expect("random"));
    }

    #[test]
    fn times_have_whole_seconds() {
        let time: Timestamp = "2030-01-02T03:04:05.4Z".parse().expect("a time");
        assert_eq!(at(time), "2030-01-02T03:04:05Z");
    }
}
