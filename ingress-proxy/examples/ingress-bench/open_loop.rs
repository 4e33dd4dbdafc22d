//! An open loop: requests are due at a steady rate, whatever becomes of those before.
//!
//! What counts is the time from when a request was due to the last byte of its response. A proxy that stops for a while
//! makes all the requests that are due meanwhile late, and is charged for each (no coordinated omission).
//!
//! The load never sleeps while it waits: timers, a thread that ticks, and a core that must wake up first took longer than
//! any proxy (the backend alone answered half of all requests within 54 µs, at best, and now does within 15).

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    net::TcpStream,
    sync::Notify,
    task::{JoinSet, yield_now},
    time::timeout,
};

use crate::{
    backend::Body,
    certificate::HOST,
    http1::{Connection, connect, request},
};

/// Requests that are due in a second: half of what the slowest proxy of those days did at most on one such core.
pub(crate) const RATE: u32 = 5_800;
/// Requests of a window that count, and how many go before them: by then every connection has had two, and the proxy's core
/// is as awake as it gets.
///
/// Other guests take a core away for milliseconds, about once a second. In a window of seconds that decides what the
/// slowest hundredth is, for every proxy alike, and one run says half of what the next one says. Fifty milliseconds are long
/// enough for three requests to be a hundredth, and undisturbed more often than not.
const COUNTED: u32 = RATE / 20;
const UNCOUNTED: u32 = RATE / 40;
const REQUESTS: u32 = UNCOUNTED + COUNTED;
/// Connections that take what is due. If all are busy, it waits, and the wait counts.
const CONNECTIONS: usize = 64;
/// All must be answered that long after the last was due.
const PATIENCE: Duration = Duration::from_secs(5);

/// Microseconds that each request took.
pub(crate) async fn latencies_us(address: SocketAddr, body: Body) -> Result<Vec<f64>> {
    let schedule = Arc::new(Schedule::default());
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let stream = connect(address).await?;
        tasks.spawn(Arc::clone(&schedule).answer(stream, body));
    }
    let offering = async {
        schedule.offer().await;
        timeout(PATIENCE, schedule.all_done.notified()).await.context("not all requests were answered")
    };
    tokio::select! {
        offered = offering => offered?,
        Some(ended) = tasks.join_next() => match ended.context("a connection of the load")? {
            Ok(never) => match never {},
            Err(error) => return Err(error),
        },
    }
    let state = schedule.state();
    Ok(state.taken[UNCOUNTED as usize..].iter().map(|time| time.as_secs_f64() * 1e6).collect())
}

/// What is due, and what was done.
#[derive(Default)]
struct Schedule {
    state: Mutex<State>,
    due: Notify,
    all_done: Notify,
}

#[derive(Default)]
struct State {
    /// Never more than [`REQUESTS`].
    due: VecDeque<Instant>,
    taken: Vec<Duration>,
}

impl Schedule {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding it")
    }

    /// Puts requests up when they are due.
    async fn offer(&self) {
        let period = Duration::from_secs(1) / RATE;
        let started = Instant::now();
        for number in 0..REQUESTS {
            let due = started + period * number;
            while Instant::now() < due {
                yield_now().await;
            }
            self.state().due.push_back(due);
            self.due.notify_one();
        }
    }

    /// A connection's whole life.
    async fn answer(self: Arc<Self>, stream: TcpStream, body: Body) -> Result<Infallible> {
        let request = request(HOST, body.path, false);
        let mut connection = Connection::new(stream);
        loop {
            let next = self.state().due.pop_front();
            let Some(due) = next else {
                // Kept for the next to come if it was notified before it waits.
                self.due.notified().await;
                continue;
            };
            connection.ask(&request, body).await?;
            let mut state = self.state();
            state.taken.push(due.elapsed());
            if state.taken.len() == REQUESTS as usize {
                self.all_done.notify_one();
            }
        }
    }
}
