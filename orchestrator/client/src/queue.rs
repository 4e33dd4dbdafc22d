//! The work queue: what must be looked at, each key once.
//!
//! client-go's three rules hold. A key that is already waiting is not queued again. A key that is being
//! worked on is never given to a second worker; if it is added meanwhile, it is queued again when the first
//! is done. A key whose work failed comes back after 5 ms, doubled with each failure up to 1000 s.
//!
//! The length is bounded by the number of distinct keys, so by the number of objects of the kind; nothing
//! is dropped, because a dropped key would be a change that nobody looks at.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt::Display;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::registered;

/// Pause after the first failure of a key.
const BACKOFF_MIN: Duration = Duration::from_millis(5);
/// Longest pause between attempts at a key that keeps failing.
const BACKOFF_MAX: Duration = Duration::from_secs(1000);

type Name = [(&'static str, &'static str); 1];

/// The metrics of all work queues of a role, told apart by the label `queue`.
#[derive(Clone, Debug)]
pub struct QueueMetrics {
    depth: Family<Name, Gauge>,
    adds: Family<Name, Counter>,
    retries: Family<Name, Counter>,
    duration: Family<Name, Histogram, fn() -> Histogram>,
}

impl QueueMetrics {
    /// Registers the four metrics; the registry brings the role's prefix.
    pub fn register(registry: &mut Registry) -> Self {
        // From 1 ms to about 16 s: a reconcile is a few requests.
        let buckets: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 4.0, 8));
        let (r, duration) = (registry, Family::new_with_constructor(buckets));
        Self {
            depth: registered(r, "queue_depth", "Keys waiting to be worked on", Family::default()),
            adds: registered(r, "queue_adds", "Keys added, without those already waiting", Family::default()),
            retries: registered(r, "queue_retries", "Keys added again after a failure", Family::default()),
            duration: registered(r, "work_duration_seconds", "Time one key took", duration),
        }
    }
}

#[derive(Debug)]
struct State<K> {
    ready: VecDeque<K>,
    /// Waiting, or to be queued again once its worker is done.
    dirty: HashSet<K>,
    processing: HashSet<K>,
    /// Keys that become ready later, by time; the number tells equal times apart.
    delayed: BTreeMap<(Instant, u64), K>,
    delayed_at: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    sequence: u64,
}

/// A queue of keys for several workers.
#[derive(Debug)]
pub struct Queue<K> {
    // A blocking lock: held for map operations only, never across an await.
    state: Mutex<State<K>>,
    changed: Notify,
    name: Name,
    metrics: QueueMetrics,
}

impl<K: Clone + Eq + Hash + Display> Queue<K> {
    /// An empty queue; `name` is its label in the metrics.
    pub fn new(name: &'static str, metrics: &QueueMetrics) -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            processing: HashSet::new(),
            delayed: BTreeMap::new(),
            delayed_at: HashMap::new(),
            failures: HashMap::new(),
            sequence: 0,
        };
        Self {
            state: Mutex::new(state),
            changed: Notify::new(),
            name: [("queue", name)],
            metrics: metrics.clone(),
        }
    }

    /// The name in the metrics.
    pub fn name(&self) -> &'static str {
        self.name[0].1
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for `key` to be looked at now.
    pub fn add(&self, key: K) {
        let mut state = self.lock();
        if let Some(at) = state.delayed_at.remove(&key) {
            state.delayed.remove(&at);
        }
        self.make_ready(&mut state, key);
        drop(state);
        self.changed.notify_one();
    }

    /// Asks for `key` to be looked at in `delay`, or earlier if it is already due earlier.
    pub fn add_after(&self, key: K, delay: Duration) {
        let mut state = self.lock();
        state.sequence += 1;
        let at = (Instant::now() + delay, state.sequence);
        match state.delayed_at.get(&key) {
            Some(earlier) if *earlier <= at => return,
            Some(later) => {
                let later = *later;
                state.delayed.remove(&later);
            }
            None => {}
        }
        state.delayed_at.insert(key.clone(), at);
        state.delayed.insert(at, key);
        drop(state);
        self.changed.notify_one();
    }

    /// Asks for `key` to be looked at again after a failure; returns the pause.
    pub fn retry(&self, key: K) -> Duration {
        let pause = {
            let mut state = self.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            let pause = BACKOFF_MIN.saturating_mul(1 << (*failures).min(20)).min(BACKOFF_MAX);
            *failures += 1;
            pause
        };
        self.metrics.retries.get_or_create(&self.name).inc();
        self.add_after(key, pause);
        pause
    }

    /// Forgets the failures of `key`.
    pub fn forget(&self, key: &K) {
        self.lock().failures.remove(key);
    }

    /// The next key that is due. The caller must call [`Queue::done`] with it.
    pub async fn next(&self) -> K {
        loop {
            let due = {
                let mut state = self.lock();
                self.ripen(&mut state);
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.processing.insert(key.clone());
                    self.metrics.depth.get_or_create(&self.name).dec();
                    // One notification wakes one worker; pass it on while there is more to do.
                    if !state.ready.is_empty() || !state.delayed.is_empty() {
                        self.changed.notify_one();
                    }
                    return key;
                }
                state.delayed.keys().next().map(|(at, _)| *at)
            };
            match due {
                Some(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => {}
                        () = self.changed.notified() => {}
                    }
                }
                None => self.changed.notified().await,
            }
        }
    }

    /// Ends the work on `key`, which took `elapsed`.
    pub fn done(&self, key: &K, elapsed: Duration) {
        self.metrics.duration.get_or_create(&self.name).observe(elapsed.as_secs_f64());
        let mut state = self.lock();
        state.processing.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            self.metrics.depth.get_or_create(&self.name).inc();
            drop(state);
            self.changed.notify_one();
        }
    }

    fn ripen(&self, state: &mut State<K>) {
        let now = Instant::now();
        while let Some(entry) = state.delayed.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let key = entry.remove();
            state.delayed_at.remove(&key);
            self.make_ready(state, key);
        }
    }

    fn make_ready(&self, state: &mut State<K>, key: K) {
        if !state.dirty.insert(key.clone()) {
            return;
        }
        self.metrics.adds.get_or_create(&self.name).inc();
        if !state.processing.contains(&key) {
            state.ready.push_back(key);
            self.metrics.depth.get_or_create(&self.name).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn queue() -> Queue<String> {
        Queue::new("test", &QueueMetrics::register(&mut Registry::default()))
    }

    fn pop(queue: &Queue<String>) -> Option<String> {
        queue.next().now_or_never()
    }

    #[test]
    fn a_waiting_key_is_queued_once() {
        let queue = queue();
        queue.add("a".into());
        queue.add("a".into());
        assert_eq!(pop(&queue).as_deref(), Some("a"));
        assert_eq!(pop(&queue), None);
    }

    #[test]
    fn a_key_added_while_it_is_worked_on_comes_back_when_that_is_done() {
        let queue = queue();
        queue.add("a".into());
        let key = pop(&queue).expect("is ready");
        queue.add("a".into());
        assert_eq!(pop(&queue), None, "never two workers on one key");
        queue.done(&key, Duration::ZERO);
        assert_eq!(pop(&queue).as_deref(), Some("a"));
    }

    #[test]
    fn the_earlier_of_two_delays_wins() {
        let queue = queue();
        queue.add_after("a".into(), Duration::from_mins(15));
        queue.add_after("a".into(), Duration::ZERO);
        queue.add_after("a".into(), Duration::from_secs(500));
        assert_eq!(queue.lock().delayed.len(), 1);
        assert_eq!(pop(&queue).as_deref(), Some("a"));
    }

    #[test]
    fn adding_now_replaces_a_delay() {
        let queue = queue();
        queue.add_after("a".into(), Duration::from_mins(15));
        queue.add("a".into());
        assert_eq!(pop(&queue).as_deref(), Some("a"));
        assert!(queue.lock().delayed.is_empty());
    }

    #[test]
    fn failures_back_off_exponentially_until_forgotten() {
        let queue = queue();
        let pauses: Vec<_> = (0..4).map(|_| queue.retry("a".into()).as_millis()).collect();
        assert_eq!(pauses, [5, 10, 20, 40]);
        let _: Vec<_> = (0..30).map(|_| queue.retry("b".into())).collect();
        assert_eq!(queue.retry("b".into()), BACKOFF_MAX);
        queue.forget(&"a".into());
        assert_eq!(queue.retry("a".into()), BACKOFF_MIN);
    }

    #[tokio::test]
    async fn one_notification_reaches_all_workers_that_are_needed() {
        let queue = queue();
        queue.add("a".into());
        queue.add("b".into());
        let (one, two) = tokio::join!(queue.next(), queue.next());
        assert_ne!(one, two);
    }
}
