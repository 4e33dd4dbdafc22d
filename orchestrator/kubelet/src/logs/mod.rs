//! Container logs, as `kubectl logs` asks for them.
//!
//! The shim writes the CRI format (`2026-11-23T21:05:46.123456789Z stdout F text`); here it is read back: the last
//! lines, those since a time, with or without times, and on and on (`follow`). Following waits for inotify, never for
//! a clock, and survives rotation: when the name means another file than the open one, the open one is read to its end
//! first. Called from [`crate::server`].

mod line;
mod watch;

use std::{
    io::{self, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use tokio::{
    fs::File,
    io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, BufReader},
    sync::mpsc,
};

use self::{line::Line, watch::Watch};

/// Output is sent in pieces of about this size, or when there is nothing more to read.
const PIECE_BYTES: usize = 32 * 1024;
/// The longest line that is kept in memory; the shim cuts lines at 16 KiB.
const LINE_BYTES: u64 = 64 * 1024;

/// What is asked for: the query of `/containerLogs`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    /// Go on until the container ends.
    pub(crate) follow: bool,
    /// The container before the current one.
    pub(crate) previous: bool,
    /// Times before each line.
    pub(crate) timestamps: bool,
    /// Only the last lines.
    pub(crate) tail_lines: Option<u64>,
    /// Only lines from then on.
    pub(crate) since: Option<Timestamp>,
    /// No more than this.
    pub(crate) limit_bytes: Option<u64>,
}

/// Whoever asked is gone, or the file cannot be read.
#[derive(Debug)]
enum Stop {
    Gone,
    Io(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Sends the log at `path` as asked. `ended` yields once when the container is over; following ends then, after what
/// is left was read.
pub(crate) async fn send(
    path: PathBuf,
    options: LogOptions,
    ended: impl Stream<Item = ()> + Send + Unpin,
    sink: mpsc::Sender<Bytes>,
) {
    let mut output =
        Output { sink, pending: BytesMut::new(), left: options.limit_bytes, options, partial: false };
    match copy(&path, &mut output, ended).await {
        Ok(()) | Err(Stop::Gone) => {}
        Err(Stop::Io(error)) => {
            tracing::warn!(path = %path.display(), %error, "log not read");
        }
    }
    // Whatever was read before the end is worth having.
    let _ = output.flush().await;
}

async fn copy(
    path: &Path,
    output: &mut Output,
    mut ended: impl Stream<Item = ()> + Unpin,
) -> Result<(), Stop> {
    let follow = output.options.follow;
    // Before the first read, so that nothing falls between reading and waiting.
    let mut watch = if follow { Some(Watch::new(path)?) } else { None };
    let mut file = BufReader::new(File::open(path).await?);
    if let Some(lines) = output.options.tail_lines {
        let offset = tail_offset(file.get_mut(), lines).await?;
        file.seek(SeekFrom::Start(offset)).await?;
    }
    let (mut buffer, mut over) = (Vec::new(), false);
    loop {
        read_lines(&mut file, &mut buffer, output).await?;
        if output.left == Some(0) {
            return Ok(());
        }
        output.flush().await?;
        let Some(watch) = &mut watch else {
            return output.end(&buffer).await;
        };
        if let Some(next) = rotated(path, &file).await {
            // What was written between the last read and the rotation.
            read_lines(&mut file, &mut buffer, output).await?;
            buffer.clear();
            file = BufReader::new(next);
            continue;
        }
        if over {
            return output.end(&buffer).await;
        }
        tokio::select! {
            changed = watch.changed() => changed?,
            _ = ended.next() => over = true,
            () = output.sink.closed() => return Err(Stop::Gone),
        }
    }
}

/// Reads all lines there are; an unfinished one stays in `buffer`.
async fn read_lines(
    file: &mut BufReader<File>,
    buffer: &mut Vec<u8>,
    output: &mut Output,
) -> Result<(), Stop> {
    loop {
        let room = LINE_BYTES.saturating_sub(buffer.len() as u64).max(1);
        let read = (&mut *file).take(room).read_until(b'\n', buffer).await?;
        if read == 0 {
            return Ok(());
        }
        if buffer.last() == Some(&b'\n') || buffer.len() as u64 >= LINE_BYTES {
            output.line(buffer).await?;
            buffer.clear();
            if output.left == Some(0) {
                return Ok(());
            }
        }
    }
}

/// The file that the name means now, if it is another than the open one.
async fn rotated(path: &Path, open: &BufReader<File>) -> Option<File> {
    let next = File::open(path).await.ok()?;
    let (old, new) = (open.get_ref().metadata().await.ok()?, next.metadata().await.ok()?);
    (old.ino() != new.ino() || old.dev() != new.dev()).then_some(next)
}

/// Where the last `lines` lines begin: counted backwards, block by block.
async fn tail_offset(file: &mut File, lines: u64) -> io::Result<u64> {
    const BLOCK: u64 = 16 * 1024;
    let length = file.metadata().await?.len();
    if lines == 0 {
        return Ok(length);
    }
    let (mut end, mut seen) = (length, 0);
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(start)).await?;
        block.resize((end - start) as usize, 0);
        file.read_exact(&mut block).await?;
        for (index, byte) in block.iter().enumerate().rev() {
            // The newline at the very end closes the last line; it does not begin another.
            if *byte == b'\n' && start + index as u64 + 1 < length {
                seen += 1;
                if seen == lines {
                    return Ok(start + index as u64 + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

/// What was read, on its way out.
struct Output {
    sink: mpsc::Sender<Bytes>,
    pending: BytesMut,
    /// Bytes that may still be sent.
    left: Option<u64>,
    options: LogOptions,
    /// The last entry was a part of a line: the next continues it.
    partial: bool,
}

impl Output {
    /// One CRI entry; what is no entry is passed over.
    async fn line(&mut self, raw: &[u8]) -> Result<(), Stop> {
        let Some(line) = Line::parse(raw) else { return Ok(()) };
        if self.options.since.is_some_and(|since| line.time().is_some_and(|time| time < since)) {
            return Ok(());
        }
        if self.options.timestamps && !self.partial {
            self.push(line.stamp.as_bytes());
            self.push(b" ");
        }
        self.push(line.text);
        if !line.partial {
            self.push(b"\n");
        }
        self.partial = line.partial;
        if self.pending.len() >= PIECE_BYTES || self.left == Some(0) {
            self.flush().await?;
        }
        Ok(())
    }

    fn push(&mut self, data: &[u8]) {
        let most = self.left.map_or(data.len(), |left| data.len().min(left as usize));
        self.pending.extend_from_slice(&data[..most]);
        if let Some(left) = &mut self.left {
            *left -= most as u64;
        }
    }

    async fn flush(&mut self) -> Result<(), Stop> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let piece = self.pending.split().freeze();
        self.sink.send(piece).await.map_err(|_| Stop::Gone)
    }

    /// The last line may lack its newline when a writer was killed.
    async fn end(&mut self, rest: &[u8]) -> Result<(), Stop> {
        if !rest.is_empty() {
            self.line(rest).await?;
        }
        self.flush().await
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, time::Duration};

    use futures::stream;

    use super::*;

    const LINES: &str = "2026-11-23T21:00:00.000000001Z stdout F one\n\
                         2026-11-23T21:00:01.000000001Z stderr P tw\n\
                         2026-11-23T21:00:02.000000001Z stderr F o\n\
                         2026-11-23T21:00:03.000000001Z stdout F three\n";

    async fn read(options: LogOptions) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        fs::write(&path, LINES).unwrap();
        let (sink, mut source) = mpsc::channel(16);
        send(path, options, stream::pending(), sink).await;
        let mut text = Vec::new();
        while let Some(piece) = source.recv().await {
            text.extend_from_slice(&piece);
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn options_select_what_is_sent() {
        let all = LogOptions::default();
        assert_eq!(read(all.clone()).await, "one\ntwo\nthree\n");
        assert_eq!(read(LogOptions { tail_lines: Some(1), ..all.clone() }).await, "three\n");
        assert_eq!(read(LogOptions { tail_lines: Some(0), ..all.clone() }).await, "");
        assert_eq!(read(LogOptions { tail_lines: Some(99), ..all.clone() }).await, "one\ntwo\nthree\n");
        assert_eq!(read(LogOptions { limit_bytes: Some(5), ..all.clone() }).await, "one\nt");
        let since = Some("2026-11-23T21:00:03Z".parse().unwrap());
        assert_eq!(read(LogOptions { since, ..all.clone() }).await, "three\n");
        let stamped = read(LogOptions { timestamps: true, ..all }).await;
        assert!(
            stamped.starts_with("2026-11-23T21:00:00.000000001Z one\n2026-11-23T21:00:01.000000001Z two\n")
        );
    }

    #[tokio::test]
    async fn following_survives_rotation_and_ends_with_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        fs::write(&path, LINES).unwrap();
        let (sink, mut source) = mpsc::channel(16);
        let (end, ended) = futures::channel::oneshot::channel::<()>();
        let options = LogOptions { follow: true, tail_lines: Some(1), ..LogOptions::default() };
        let ended = Box::pin(stream::once(async move { ended.await.unwrap() }));
        let task = tokio::spawn(send(path.clone(), options, ended, sink));
        let mut next = async || {
            let piece = tokio::time::timeout(Duration::from_secs(5), source.recv()).await.unwrap();
            piece.map(|piece| String::from_utf8(piece.to_vec()).unwrap())
        };
        assert_eq!(next().await.unwrap(), "three\n");
        let append = |text: &str| {
            let mut file = fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
            file.write_all(format!("2026-11-23T21:00:04Z stdout F {text}\n").as_bytes()).unwrap();
        };
        append("four");
        assert_eq!(next().await.unwrap(), "four\n");
        fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        append("five");
        assert_eq!(next().await.unwrap(), "five\n");
        end.send(()).unwrap();
        assert_eq!(next().await, None);
        task.await.unwrap();
    }
}
