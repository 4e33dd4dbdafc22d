//! The static token file: `token,user,uid,"group,group"` a line, as kube-apiserver's `--token-auth-file`.
//!
//! Tokens are kept as digests, so that looking one up takes the same time however much of it is right.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};

use super::User;

/// A token file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// It cannot be read.
    #[error("cannot read the token file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line is not of the form.
    #[error(
        "the token file {path} is wrong in line {line}: each line is token,user,uid or token,user,uid,\"group,group\""
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
    },
}

/// Users by token.
#[derive(Default)]
pub(crate) struct StaticTokens(HashMap<Vec<u8>, User>);

impl StaticTokens {
    /// Reads the file; empty lines and lines that begin with `#` are skipped.
    pub(crate) fn read(path: &Path) -> Result<StaticTokens, TokenFileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TokenFileError::Read { path: path.to_owned(), source })?;
        let mut users = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (token, user) =
                parse(line).ok_or_else(|| TokenFileError::Line { path: path.to_owned(), line: index + 1 })?;
            users.insert(key(token), user);
        }
        Ok(StaticTokens(users))
    }

    pub(super) fn user(&self, token: &str) -> Option<User> {
        if self.0.is_empty() {
            return None;
        }
        self.0.get(&key(token)).cloned()
    }
}

fn key(token: &str) -> Vec<u8> {
    digest(&SHA256, token.as_bytes()).as_ref().to_vec()
}

fn parse(line: &str) -> Option<(&str, User)> {
    let mut parts = line.splitn(4, ',').map(str::trim);
    let (token, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
    if token.is_empty() || name.is_empty() {
        return None;
    }
    let groups = parts.next().unwrap_or("").trim_matches('"').split(',').map(str::trim);
    let groups = groups.filter(|group| !group.is_empty()).map(str::to_owned).collect();
    Some((token, User::authenticated(name.to_owned(), uid.to_owned(), groups)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_users_and_groups() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("tokens.csv");
        std::fs::write(&path, "# comment\nt0k3n,alice,7,\"dev,ops\"\n\nother,bob,\n").expect("written");
        let tokens = StaticTokens::read(&path).expect("read");
        let alice = tokens.user("t0k3n").expect("known");
        assert_eq!((alice.name.as_str(), alice.uid.as_str()), ("alice", "7"));
        assert!(alice.is_in("dev") && alice.is_in("ops") && alice.is_in(crate::authn::AUTHENTICATED));
        assert_eq!(tokens.user("other").expect("known").groups.len(), 1);
        assert!(tokens.user("t0k3").is_none());

        std::fs::write(&path, "good,a,\nbad\n").expect("written");
        let error = StaticTokens::read(&path).err().expect("line 2");
        assert!(error.to_string().contains("line 2"), "{error}");
    }
}
