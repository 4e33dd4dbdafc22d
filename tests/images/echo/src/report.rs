//! What an answer says: where the request arrived, from whom, and what the pod was given.

use std::{collections::BTreeMap, env, fs, net::SocketAddr};

use serde::Serialize;

/// Environment variables with this prefix are shown.
const SHOWN_PREFIX: &str = "SHOW_";

/// The pod's side of an answer.
#[derive(Serialize)]
pub(crate) struct Pod {
    name: String,
    address: String,
    node: String,
    /// Environment variables whose names begin with `SHOW_`.
    env: BTreeMap<String, String>,
    /// Files below the directory that `FILES` names, links followed: what mounted volumes hold now.
    files: BTreeMap<String, String>,
}

impl Pod {
    /// Read anew for every answer, so that a changed ConfigMap shows.
    pub(crate) fn now(local: SocketAddr) -> Self {
        Self {
            name: env::var("POD_NAME").or_else(|_| env::var("HOSTNAME")).unwrap_or_default(),
            address: local.ip().to_canonical().to_string(),
            node: env::var("NODE_NAME").unwrap_or_default(),
            env: env::vars().filter(|(name, _)| name.starts_with(SHOWN_PREFIX)).collect(),
            files: files(),
        }
    }
}

fn files() -> BTreeMap<String, String> {
    let Ok(entries) =
        env::var("FILES").and_then(|dir| fs::read_dir(dir).map_err(|_| env::VarError::NotPresent))
    else {
        return BTreeMap::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let content = fs::read_to_string(entry.path()).ok()?;
            Some((entry.file_name().to_string_lossy().into_owned(), content))
        })
        .collect()
}
