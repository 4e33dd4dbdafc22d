//! A steady load on a thread of its own: a fresh connection for each request, a fixed pace, an end.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{Namespace, http::get};

/// Pause between requests.
const PACE: Duration = Duration::from_millis(20);
/// No load runs longer, whatever its test does.
const LONGEST: Duration = Duration::from_mins(3);
/// A request that takes longer has failed.
const DEADLINE: Duration = Duration::from_secs(10);

/// A load that runs until it is asked for its outcome.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Outcome>,
}

/// What a load came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Answers with status 200.
    pub succeeded: u32,
    /// Everything else, in words.
    pub failed: Vec<String>,
}

impl Load {
    /// Starts asking `address` from inside `namespace`.
    pub fn start(namespace: &Arc<Namespace>, address: SocketAddr, host: &str, path: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, namespace) = (stop.clone(), namespace.clone());
        let (host, path) = (host.to_owned(), path.to_owned());
        let thread = thread::spawn(move || {
            namespace.enter();
            let started = Instant::now();
            let mut outcome = Outcome::default();
            while !stopped.load(Ordering::Relaxed) && started.elapsed() < LONGEST {
                match get(address, &host, &path, DEADLINE) {
                    Ok(response) if response.status == 200 => outcome.succeeded += 1,
                    Ok(response) => outcome.failed.push(format!("{}: {}", response.status, response.body)),
                    Err(error) => outcome.failed.push(format!("{error:#}")),
                }
                thread::sleep(PACE);
            }
            outcome
        });
        Self { stop, thread }
    }

    /// Ends the load.
    pub fn finish(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a load counts its failures and does not panic")
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} succeeded, {} failed", self.succeeded, self.failed.len())?;
        self.failed.iter().take(5).try_for_each(|failure| write!(f, "\n  {failure}"))
    }
}
