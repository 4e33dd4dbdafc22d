//! One `weir up` for each run directory, and what an attempt that did not begin takes back.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use super::preflight::refusal;

/// Holds the lock on the run directory for as long as it lives.
#[derive(Debug)]
pub(super) struct Lock {
    // Dropped first: the file goes while it is still locked.
    traces: Traces,
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock, or says who has it.
    pub(super) fn take(run_dir: &Path) -> Result<Self> {
        let mut traces = Traces::default();
        let path = run_dir.join("lock");
        let was_there = path.exists();
        let mut file = loop {
            let opened = traces
                .make_dir(run_dir)
                .and_then(|()| OpenOptions::new().create(true).truncate(false).write(true).open(&path));
            let file = opened.map_err(|error| refusal("--run-dir", run_dir, error))?;
            let Ok(file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
                let owner = fs::read_to_string(&path).unwrap_or_default();
                bail!(
                    "weir up runs already on {} (process {}): end it, or choose another --run-dir",
                    run_dir.display(),
                    owner.trim()
                );
            };
            // An owner that ended in between took the file along: a lock on what has no name locks nobody out.
            if fs::metadata(&path)
                .is_ok_and(|there| file.metadata().is_ok_and(|own| own.ino() == there.ino()))
            {
                break file;
            }
        };
        if !was_there {
            traces.0.push(path.clone());
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(Self { traces, _file: file })
    }

    /// What is to be taken back if the start ends here.
    pub(super) fn traces(&mut self) -> &mut Traces {
        &mut self.traces
    }

    /// From here on what was made stays; the lock is held as before.
    pub(super) fn begin(&mut self) {
        self.traces.0.clear();
    }
}

/// Files and directories in the order in which they were made; gone again when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Traces(Vec<PathBuf>);

impl Traces {
    /// Makes a directory and those above it, and remembers which of them were not there.
    pub(super) fn make_dir(&mut self, dir: &Path) -> io::Result<()> {
        let mut missing: Vec<_> =
            dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
        while let Some(dir) = missing.pop() {
            match fs::create_dir(dir) {
                Ok(()) => self.0.push(dir.to_owned()),
                // Somebody else was faster, and then it is theirs.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        if dir.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        while let Some(path) = self.0.pop() {
            // A directory that is in use by now is left to its user.
            let _ = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_does_not_begin_leaves_nothing() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let (run_dir, data_dir) = (directory.path().join("a/run"), directory.path().join("b/c/data"));
        let mut lock = Lock::take(&run_dir)?;
        lock.traces().make_dir(&data_dir)?;
        assert!(run_dir.join("lock").exists() && data_dir.is_dir());
        drop(lock);
        assert_eq!(fs::read_dir(directory.path())?.count(), 0);
        Ok(())
    }

    #[test]
    fn the_loser_takes_nothing_from_the_owner() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let run_dir = directory.path().join("run");
        let owner = Lock::take(&run_dir)?;
        let error = Lock::take(&run_dir).unwrap_err().to_string();
        assert!(error.contains("runs already") && error.contains(&std::process::id().to_string()), "{error}");
        assert!(run_dir.join("lock").exists());
        drop(owner);
        assert!(!run_dir.exists());
        Ok(())
    }

    #[test]
    fn what_was_there_and_what_began_stays() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let run_dir = directory.path().join("run");
        let mut lock = Lock::take(&run_dir)?;
        lock.begin();
        drop(lock);
        assert!(run_dir.join("lock").exists());
        drop(Lock::take(&run_dir)?);
        assert!(run_dir.join("lock").exists());
        Ok(())
    }
}
