//! Container logs in CRI's format: `2024-01-02T03:04:05.123456789Z stdout F text`.
//!
//! A line longer than 16 KiB is split; all parts but the last have the tag `P`. Files are rotated by size, as the
//! kubelet does with other runtimes: `0.log` becomes `0.log.1` and so on, and the oldest is removed. A container thus
//! never fills the disk, and never stops because a disk is full: what cannot be written is dropped, the pipe is
//! drained all the same.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
};

use jiff::Timestamp;

/// The longest text of one log line, containerd's `max_container_log_line_size`.
const LINE_LIMIT_BYTES: usize = 16 * 1024;

/// The log of one container.
pub(super) struct Log {
    path: PathBuf,
    file: Option<File>,
    size_bytes: u64,
    max_size_bytes: u64,
    max_files: u32,
    /// Lines of one chunk, written with one call.
    batch: Vec<u8>,
}

/// One of the two streams that feed a log, with its unfinished line.
pub(super) struct Stream {
    name: &'static str,
    pending: Vec<u8>,
}

impl Stream {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, pending: Vec::new() }
    }
}

impl Log {
    pub(super) fn new(path: PathBuf, max_size_bytes: u64, max_files: u32) -> Self {
        Self { path, file: None, size_bytes: 0, max_size_bytes, max_files, batch: Vec::new() }
    }

    /// Makes the file, so that there is a log even of a container that says nothing.
    pub(super) fn open(&mut self) -> io::Result<()> {
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)?;
        }
        let file = File::options().create(true).append(true).open(&self.path)?;
        self.size_bytes = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Takes what came out of a stream.
    pub(super) fn feed(&mut self, stream: &mut Stream, chunk: &[u8], now: Timestamp) {
        let mut rest = chunk;
        while !rest.is_empty() {
            let room = LINE_LIMIT_BYTES - stream.pending.len();
            match rest.iter().take(room).position(|&byte| byte == b'\n') {
                Some(end) => {
                    self.line(stream.name, 'F', &[&stream.pending, &rest[..end]], now);
                    stream.pending.clear();
                    rest = &rest[end + 1..];
                }
                // The newline right after a full line belongs to it.
                None if rest.len() > room && rest[room] == b'\n' => {
                    self.line(stream.name, 'F', &[&stream.pending, &rest[..room]], now);
                    stream.pending.clear();
                    rest = &rest[room + 1..];
                }
                None if rest.len() > room => {
                    self.line(stream.name, 'P', &[&stream.pending, &rest[..room]], now);
                    stream.pending.clear();
                    rest = &rest[room..];
                }
                None => {
                    stream.pending.extend_from_slice(rest);
                    rest = &[];
                }
            }
        }
        self.flush();
    }

    /// The stream is over: what it left without a newline is a line.
    pub(super) fn finish(&mut self, stream: &mut Stream, now: Timestamp) {
        if !stream.pending.is_empty() {
            self.line(stream.name, 'F', &[&stream.pending], now);
            stream.pending.clear();
        }
        self.flush();
    }

    fn line(&mut self, stream: &str, tag: char, parts: &[&[u8]], now: Timestamp) {
        // Always nine digits, so that logs sort as text.
        let time = now.strftime("%Y-%m-%dT%H:%M:%S.%9fZ");
        write!(self.batch, "{time} {stream} {tag} ").expect("writing to memory cannot fail");
        for part in parts {
            self.batch.extend_from_slice(part);
        }
        self.batch.push(b'\n');
    }

    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        if self.size_bytes > 0 && self.size_bytes + self.batch.len() as u64 > self.max_size_bytes {
            self.rotate();
        }
        if self.file.is_none() {
            // A directory that was away may be back.
            self.open().ok();
        }
        if let Some(file) = &mut self.file
            && file.write_all(&self.batch).is_ok()
        {
            self.size_bytes += self.batch.len() as u64;
        }
        self.batch.clear();
        // One long burst must not be held for the container's life.
        self.batch.shrink_to(4 * LINE_LIMIT_BYTES);
    }

    fn rotate(&mut self) {
        let numbered = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..self.max_files.saturating_sub(1)).rev() {
            fs::rename(numbered(number), numbered(number + 1)).ok();
        }
        let result = if self.max_files > 1 {
            fs::rename(&self.path, numbered(1))
        } else {
            fs::remove_file(&self.path)
        };
        if result.is_ok() {
            self.file = None;
            self.size_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2024-01-02T03:04:05.5Z".parse().expect("a time")
    }

    /// Feeds chunks and returns the log's lines without their times.
    fn logged(chunks: &[&[u8]]) -> Vec<String> {
        let directory = tempfile::tempdir().expect("a directory");
        let mut log = Log::new(directory.path().join("pod/c/0.log"), u64::MAX, 5);
        let mut stream = Stream::new("stdout");
        for chunk in chunks {
            log.feed(&mut stream, chunk, now());
        }
        log.finish(&mut stream, now());
        let text = fs::read_to_string(directory.path().join("pod/c/0.log")).expect("a log");
        let time = "2024-01-02T03:04:05.500000000Z ";
        text.lines().map(|line| line.strip_prefix(time).expect("a time").to_owned()).collect()
    }

    #[test]
    fn lines_are_tagged_and_the_last_needs_no_newline() {
        assert_eq!(
            logged(&[b"a\nb", b"c\n\nend"]),
            ["stdout F a", "stdout F bc", "stdout F ", "stdout F end"]
        );
    }

    #[test]
    fn long_lines_are_split_at_the_limit() {
        let exact = vec![b'x'; LINE_LIMIT_BYTES];
        let whole = format!("stdout F {}", "x".repeat(LINE_LIMIT_BYTES));
        assert_eq!(logged(&[&[&exact[..], b"\n"].concat()]), std::slice::from_ref(&whole));
        assert_eq!(logged(&[&exact, b"\n"]), [whole]);
        let lines = logged(&[&[&exact[..], b"tail\n"].concat()]);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("stdout P xx") && lines[0].len() == 9 + LINE_LIMIT_BYTES);
        assert_eq!(lines[1], "stdout F tail");
    }

    #[test]
    fn files_are_rotated_and_their_number_is_bound() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("0.log");
        let mut log = Log::new(path.clone(), 100, 3);
        let mut stream = Stream::new("stderr");
        for number in 0..10 {
            log.feed(&mut stream, format!("line {number} of the test\n").as_bytes(), now());
        }
        let mut names: Vec<_> = fs::read_dir(directory.path())
            .expect("a directory")
            .map(|e| e.expect("an entry").file_name().into_string().expect("a name"))
            .collect();
        names.sort();
        assert_eq!(names, ["0.log", "0.log.1", "0.log.2"]);
        for name in names {
            let text = fs::read_to_string(directory.path().join(name)).expect("a log");
            assert!(!text.is_empty() && text.len() <= 100);
        }
        assert!(fs::read_to_string(path).expect("a log").contains("line 9"));
    }
}
