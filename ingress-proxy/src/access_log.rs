//! One JSON line per request, without ever waiting for the disk.
//!
//! Requests hand finished lines to a thread through a bounded queue. When the writer does not keep up, lines
//! are dropped and counted (`weir_ingress_access_log_dropped`): a slow disk must not become slow requests.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use prometheus_client::metrics::counter::Counter;
use serde::Serialize;

/// Lines that may wait: about a tenth of a second at full load.
const QUEUE_LINES: usize = 8_192;

/// What is said about a request.
#[derive(Debug, Default, Serialize)]
#[allow(missing_docs)] // the names are the line's keys
pub(crate) struct Line<'a> {
    pub(crate) time_ms: u128,
    pub(crate) id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trace_id: Option<String>,
    pub(crate) client: &'a str,
    pub(crate) proto: &'a str,
    pub(crate) tls: bool,
    pub(crate) method: &'a str,
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) status: u16,
    pub(crate) bytes_in: usize,
    pub(crate) bytes_out: usize,
    pub(crate) duration_us: u128,
    pub(crate) ingress: &'a str,
    pub(crate) service: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) endpoint: Option<std::net::SocketAddr>,
    pub(crate) attempts: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) user_agent: &'a str,
}

/// The queue's near end; `None` inside when the log is off.
#[derive(Debug, Clone)]
pub(crate) struct AccessLog {
    queue: Option<SyncSender<Vec<u8>>>,
    dropped: Counter,
}

/// The queue's far end.
#[derive(Debug)]
pub(crate) struct Writer(Option<JoinHandle<()>>);

impl AccessLog {
    /// Opens `path` for append (`-` is standard output, `off` is none) and starts the writer.
    pub(crate) fn open(path: &Path, dropped: Counter) -> io::Result<(Self, Writer)> {
        let sink: Box<dyn Write + Send> = match path.to_str() {
            Some("off") => return Ok((Self { queue: None, dropped }, Writer(None))),
            Some("-") => Box::new(io::stdout()),
            _ => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
        };
        let (queue, lines) = sync_channel(QUEUE_LINES);
        let lost = dropped.clone();
        let thread = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_lines(&lines, BufWriter::new(sink), &lost))?;
        Ok((Self { queue: Some(queue), dropped }, Writer(Some(thread))))
    }

    /// Whether lines are wanted at all.
    pub(crate) fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Queues a line, or drops and counts it.
    pub(crate) fn write(&self, line: &Line<'_>) {
        let Some(queue) = &self.queue else { return };
        let Ok(mut bytes) = serde_json::to_vec(line) else { return };
        bytes.push(b'\n');
        if queue.try_send(bytes).is_err() {
            self.dropped.inc();
        }
    }
}

impl Writer {
    /// Waits until every queued line is written; all [`AccessLog`]s must be gone.
    pub(crate) fn finish(self) {
        if let Some(thread) = self.0 {
            let _ = thread.join();
        }
    }
}

/// Writes in batches: the buffer is flushed when no line waits.
fn write_lines(lines: &Receiver<Vec<u8>>, mut out: BufWriter<Box<dyn Write + Send>>, lost: &Counter) {
    while let Ok(line) = lines.recv() {
        let mut result = out.write_all(&line);
        while let Ok(line) = lines.try_recv() {
            result = result.and_then(|()| out.write_all(&line));
        }
        if result.and_then(|()| out.flush()).is_err() {
            lost.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_json_and_all_there_after_finish() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (log, writer) = AccessLog::open(file.path(), Counter::default()).unwrap();
        let line = Line {
            time_ms: 1,
            id: "r1",
            trace_id: None,
            client: "192.0.2.1",
            proto: "HTTP/1.1",
            tls: false,
            method: "GET",
            host: "a\"b",
            path: "/",
            status: 200,
            bytes_in: 0,
            bytes_out: 5,
            duration_us: 10,
            ingress: "shop/web",
            service: "web",
            endpoint: Some("10.0.0.1:80".parse().unwrap()),
            attempts: 1,
            reason: None,
            user_agent: "",
        };
        for _ in 0..100 {
            log.write(&line);
        }
        drop(log);
        writer.finish();
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!(text.lines().count(), 100);
        let parsed: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(parsed["host"], "a\"b");
        assert_eq!(parsed["endpoint"], "10.0.0.1:80");
        assert!(parsed.get("reason").is_none());
    }

    #[test]
    fn an_unwritable_file_is_an_error() {
        assert!(AccessLog::open(Path::new("/nonexistent/dir/log"), Counter::default()).is_err());
    }
}
