//! A steady load: a fresh connection for each request, a fixed pace, an end. On a thread, which can be in any network
//! namespace; or as a process, which can be in a cgroup too, where socket hooks see it.

use std::{
    fmt,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{Namespace, http::get};

/// Pause between requests.
const PACE: Duration = Duration::from_millis(20);
/// No load runs longer, whatever its test does.
const LONGEST: Duration = Duration::from_mins(3);
/// A request that takes longer has failed.
const DEADLINE: Duration = Duration::from_secs(10);

/// A load that runs until it is asked for its outcome, or dropped.
pub struct Load(Option<Runs>);

enum Runs {
    Thread(Arc<AtomicBool>, JoinHandle<Outcome>),
    Process(Child),
}

/// What a load came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Answers with status 200.
    pub succeeded: u32,
    /// Everything else, in words.
    pub failed: Vec<String>,
}

/// Asks until `stop` is set.
pub fn ask_steadily(address: SocketAddr, host: &str, path: &str, stop: &AtomicBool) -> Outcome {
    let started = Instant::now();
    let mut outcome = Outcome::default();
    while !stop.load(Ordering::Relaxed) && started.elapsed() < LONGEST {
        let at_s = started.elapsed().as_secs_f32();
        match get(address, host, path, DEADLINE) {
            Ok(response) if response.status == 200 => outcome.succeeded += 1,
            Ok(response) => {
                outcome.failed.push(format!("after {at_s:.2} s: {}: {}", response.status, response.body));
            }
            Err(error) => outcome.failed.push(format!("after {at_s:.2} s: {error:#}")),
        }
        thread::sleep(PACE);
    }
    outcome
}

impl Load {
    /// Starts asking `address` from inside `namespace`.
    pub fn start(namespace: &Arc<Namespace>, address: SocketAddr, host: &str, path: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, namespace) = (stop.clone(), namespace.clone());
        let (host, path) = (host.to_owned(), path.to_owned());
        let thread = thread::spawn(move || {
            namespace.enter();
            ask_steadily(address, &host, &path, &stopped)
        });
        Self(Some(Runs::Thread(stop, thread)))
    }

    /// The same as a process: `program` starts this crate's `load`, wherever it is to run.
    pub fn start_process(mut program: Command, address: SocketAddr, host: &str, path: &str) -> Result<Self> {
        program.args([&address.to_string(), host, path]).stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(Self(Some(Runs::Process(program.spawn().context("starting a load")?))))
    }

    /// Ends the load.
    pub fn finish(mut self) -> Outcome {
        self.0.take().map(Runs::end).unwrap_or_default()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // A thread that goes on would keep its namespace from being deleted.
        drop(self.0.take().map(Runs::end));
    }
}

impl Runs {
    fn end(self) -> Outcome {
        match self {
            Self::Thread(stop, thread) => {
                stop.store(true, Ordering::Relaxed);
                thread.join().expect("a load counts its failures and does not panic")
            }
            // The end of its standard input is the end of the load; waiting closes it.
            Self::Process(child) => match child.wait_with_output() {
                Ok(output) if output.status.success() => {
                    Outcome::read(&String::from_utf8_lossy(&output.stdout))
                }
                Ok(output) => {
                    Outcome { succeeded: 0, failed: vec![format!("the load ended: {}", output.status)] }
                }
                Err(error) => Outcome { succeeded: 0, failed: vec![format!("the load was lost: {error}")] },
            },
        }
    }
}

impl Outcome {
    /// As the process prints it: how many succeeded, then a line for each failure.
    pub fn written(&self) -> String {
        let failures = self.failed.iter().map(|failure| failure.replace('\n', " ") + "\n");
        format!("{}\n{}", self.succeeded, failures.collect::<String>())
    }

    fn read(text: &str) -> Self {
        let mut lines = text.lines();
        let succeeded = lines.next().and_then(|number| number.parse().ok()).unwrap_or(0);
        Self { succeeded, failed: lines.map(str::to_owned).collect() }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} succeeded, {} failed", self.succeeded, self.failed.len())?;
        self.failed.iter().take(5).try_for_each(|failure| write!(f, "\n  {failure}"))
    }
}
