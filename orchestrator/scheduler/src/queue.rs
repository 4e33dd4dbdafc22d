//! The pods that wait for a node.
//!
//! A waiting pod is in one of three places. *Active*: will be tried next, higher priority and then older first.
//! *Backoff*: was tried and has reason to be tried again, after 1 s doubled with each attempt up to 10 s, so that one pod that keeps
//! failing cannot starve the others. *Unschedulable*: nothing has changed that would help; an event that may help moves it on, and
//! after 5 minutes it is tried all the same, in case the events were judged wrongly.
//!
//! An event that arrives while a pod is being decided or bound must not be missed: [`Waiting::moves`] counts events
//! that may help, and a pod that fails after the count has changed goes to backoff rather than to rest.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use weir_client::ObjectKey;

use crate::decision::Failure;
use crate::pod::Pod;

/// Pause after the first failed attempt.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// Longest pause between attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// How long a pod rests without any event that may help.
const FLUSH: Duration = Duration::from_mins(5);

/// What happened in the cluster that may help pods that found no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Help {
    /// A node appeared or changed.
    Node,
    /// A pod left a node, or was found to need less.
    PodLeft,
}

/// Order of the active pods.
type Rank = (Reverse<i32>, Option<Timestamp>, ObjectKey);

#[derive(Clone, Debug)]
enum Place {
    Active(Rank),
    Backoff(Instant),
    Resting {
        since: Instant,
        failure: Failure,
    },
    /// Handed out: being decided or bound. With the count of helpful events at that time.
    Out {
        moves: u64,
    },
    Gated,
}

#[derive(Clone, Debug)]
struct Entry {
    pod: Pod,
    /// When it was first seen waiting.
    since: Instant,
    attempts: u32,
    /// What was last said about why it waits.
    said: Option<Failure>,
    place: Place,
}

/// How many pods are where, for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Ready to be tried.
    pub active: usize,
    /// Waiting out a pause.
    pub backoff: usize,
    /// Waiting for an event or the flush.
    pub unschedulable: usize,
    /// Waiting for their scheduling gates to go.
    pub gated: usize,
}

/// The queue. Its length is bounded by the number of pending pods: each is here once.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    entries: HashMap<ObjectKey, Entry>,
    active: BTreeSet<Rank>,
    backoff: BTreeSet<(Instant, ObjectKey)>,
    resting: BTreeSet<(Instant, ObjectKey)>,
    gated: usize,
    moves: u64,
}

impl Waiting {
    /// Takes a pending pod, new or changed. A change of a pod that rests wakes it: what it asks for may be less now.
    pub(crate) fn set(&mut self, pod: Pod, now: Instant) {
        let key = pod.key.clone();
        let (since, attempts, said) = match self.entries.get_mut(&key) {
            Some(entry) if entry.pod == pod => return,
            // Still in the hands of the loop: it must fail there first. The new state is used next time.
            Some(entry) if matches!(entry.place, Place::Out { .. }) && entry.pod.uid == pod.uid => {
                entry.pod = pod;
                self.moves += 1;
                return;
            }
            Some(entry) if entry.pod.uid == pod.uid => (entry.since, entry.attempts, entry.said.take()),
            _ => (now, 0, None),
        };
        self.remove(&key);
        let place = if pod.gated {
            self.gated += 1;
            Place::Gated
        } else {
            self.activate(&pod)
        };
        self.entries.insert(key, Entry { pod, since, attempts, said, place });
    }

    /// Forgets a pod: bound, deleted, or no longer ours.
    pub(crate) fn remove(&mut self, key: &ObjectKey) {
        if let Some(entry) = self.entries.remove(key) {
            self.leave(key, &entry.place);
        }
    }

    /// Hands out the next pod to be tried, and since when it has been waiting. [`Waiting::failed`], [`Waiting::unplaced`] or [`Waiting::remove`] ends that.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<(Pod, Instant)> {
        self.ripen(now);
        let (_, _, key) = self.active.pop_first()?;
        let entry = self.entries.get_mut(&key)?;
        entry.attempts += 1;
        entry.place = Place::Out { moves: self.moves };
        Some((entry.pod.clone(), entry.since))
    }

    /// The pod found no place: it rests until something helps. Whether the reason is another than last time.
    pub(crate) fn unplaced(&mut self, key: &ObjectKey, failure: Failure, now: Instant) -> bool {
        let moves = self.moves;
        let Some(entry) = self.entries.get_mut(key) else { return false };
        let Place::Out { moves: before } = entry.place else { return false };
        let news = entry.said.as_ref() != Some(&failure);
        entry.said = Some(failure.clone());
        if before == moves {
            entry.place = Place::Resting { since: now, failure };
            self.resting.insert((now, key.clone()));
        } else {
            self.back_off(key, now);
        }
        news
    }

    /// Binding failed: the pod is tried again after a pause.
    pub(crate) fn failed(&mut self, key: &ObjectKey, now: Instant) {
        if self.entries.get(key).is_some_and(|entry| matches!(entry.place, Place::Out { .. })) {
            self.back_off(key, now);
        }
    }

    /// Moves the resting pods that this may help to where they are tried again.
    pub(crate) fn help(&mut self, help: Help, now: Instant) {
        self.moves += 1;
        let helped: Vec<_> = self
            .resting
            .iter()
            .filter(|(_, key)| {
                let place = self.entries.get(key).map(|entry| &entry.place);
                match (place, help) {
                    (Some(Place::Resting { .. }), Help::Node) => true,
                    (Some(Place::Resting { failure, .. }), Help::PodLeft) => failure.helped_by_pods_leaving(),
                    _ => false,
                }
            })
            .cloned()
            .collect();
        for at in helped {
            self.resting.remove(&at);
            let (since, key) = at;
            // The pause counts from the failure, so that a long rest costs no further wait.
            let pause = self.entries.get(&key).map(|entry| pause(entry.attempts)).unwrap_or_default();
            self.back_off_until(&key, since + pause, now);
        }
    }

    /// When the next pod becomes active by itself.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let backoff = self.backoff.first().map(|(at, _)| *at);
        let flush = self.resting.first().map(|(since, _)| *since + FLUSH);
        [backoff, flush].into_iter().flatten().min()
    }

    /// Whether a pod can be handed out now.
    pub(crate) fn has_active(&mut self, now: Instant) -> bool {
        self.ripen(now);
        !self.active.is_empty()
    }

    /// How many pods are where.
    pub(crate) fn counts(&self) -> Counts {
        let (active, backoff) = (self.active.len(), self.backoff.len());
        Counts { active, backoff, unschedulable: self.resting.len(), gated: self.gated }
    }

    fn ripen(&mut self, now: Instant) {
        while self.backoff.first().is_some_and(|(until, _)| *until <= now)
            && let Some((_, key)) = self.backoff.pop_first()
        {
            self.wake(&key);
        }
        while self.resting.first().is_some_and(|(since, _)| *since + FLUSH <= now)
            && let Some((_, key)) = self.resting.pop_first()
        {
            self.wake(&key);
        }
    }

    fn wake(&mut self, key: &ObjectKey) {
        if let Some(entry) = self.entries.get_mut(key) {
            let rank = rank(&entry.pod);
            self.active.insert(rank.clone());
            entry.place = Place::Active(rank);
        }
    }

    fn activate(&mut self, pod: &Pod) -> Place {
        let rank = rank(pod);
        self.active.insert(rank.clone());
        Place::Active(rank)
    }

    fn back_off(&mut self, key: &ObjectKey, now: Instant) {
        let pause = self.entries.get(key).map(|entry| pause(entry.attempts)).unwrap_or_default();
        self.back_off_until(key, now + pause, now);
    }

    fn back_off_until(&mut self, key: &ObjectKey, until: Instant, now: Instant) {
        if until <= now {
            self.wake(key);
        } else if let Some(entry) = self.entries.get_mut(key) {
            entry.place = Place::Backoff(until);
            self.backoff.insert((until, key.clone()));
        }
    }

    fn leave(&mut self, key: &ObjectKey, place: &Place) {
        match place {
            Place::Active(rank) => drop(self.active.remove(rank)),
            Place::Backoff(until) => drop(self.backoff.remove(&(*until, key.clone()))),
            Place::Resting { since, .. } => drop(self.resting.remove(&(*since, key.clone()))),
            Place::Gated => self.gated -= 1,
            Place::Out { .. } => {}
        }
    }
}

fn rank(pod: &Pod) -> Rank {
    (Reverse(pod.priority), pod.created, pod.key.clone())
}

fn pause(attempts: u32) -> Duration {
    BACKOFF_MIN.saturating_mul(1 << attempts.saturating_sub(1).min(8)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::filter::Reason;

    fn pod(name: &str, priority: i32) -> Pod {
        Pod { key: ObjectKey::new("ns", name), uid: name.into(), priority, ..Pod::default() }
    }

    fn because(reason: Reason) -> Failure {
        Failure { nodes: 1, reasons: BTreeMap::from([(reason, 1)]) }
    }

    fn names(waiting: &mut Waiting, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| waiting.pop(now)).map(|(pod, _)| pod.key.name).collect()
    }

    #[test]
    fn higher_priority_goes_first() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        waiting.set(pod("low", 0), now);
        waiting.set(pod("high", 5), now);
        assert_eq!(names(&mut waiting, now), ["high", "low"]);
    }

    #[test]
    fn a_pod_rests_until_what_it_lacked_may_be_there() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        for name in ["cpu", "label"] {
            waiting.set(pod(name, 0), now);
        }
        while let Some((pod, _)) = waiting.pop(now) {
            let reason = match pod.key.name.as_str() {
                "cpu" => Reason::Insufficient("cpu".into()),
                _ => Reason::Affinity,
            };
            waiting.unplaced(&pod.key, because(reason), now);
        }
        assert_eq!(waiting.counts().unschedulable, 2);
        waiting.help(Help::PodLeft, now);
        assert_eq!(waiting.counts(), Counts { backoff: 1, unschedulable: 1, ..Counts::default() });
        assert_eq!(names(&mut waiting, now + BACKOFF_MIN), ["cpu"]);
        waiting.help(Help::Node, now + BACKOFF_MIN);
        assert_eq!(names(&mut waiting, now + BACKOFF_MIN), ["label"], "it has rested long enough already");
    }

    #[test]
    fn help_that_comes_during_the_decision_is_not_missed() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        waiting.set(pod("a", 0), now);
        let (pod, _) = waiting.pop(now).expect("is active");
        waiting.help(Help::Node, now);
        waiting.unplaced(&pod.key, because(Reason::Affinity), now);
        assert_eq!(waiting.counts(), Counts { backoff: 1, ..Counts::default() });
    }

    #[test]
    fn pauses_double_up_to_ten_seconds() {
        assert_eq!([1, 2, 3, 4, 5, 60].map(|attempts| pause(attempts).as_secs()), [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn a_resting_pod_is_tried_after_five_minutes_all_the_same() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        waiting.set(pod("a", 0), now);
        let (pod, _) = waiting.pop(now).expect("is active");
        waiting.unplaced(&pod.key, because(Reason::Affinity), now);
        assert_eq!(waiting.next_due(), Some(now + FLUSH));
        assert_eq!(waiting.pop(now + FLUSH - Duration::from_secs(1)), None);
        assert_eq!(names(&mut waiting, now + FLUSH), ["a"]);
    }

    #[test]
    fn a_gated_pod_waits_for_its_gates() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        waiting.set(Pod { gated: true, ..pod("a", 0) }, now);
        assert!(names(&mut waiting, now).is_empty());
        waiting.set(pod("a", 0), now);
        assert_eq!(names(&mut waiting, now), ["a"]);
    }

    #[test]
    fn a_removed_pod_is_nowhere() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        waiting.set(pod("a", 0), now);
        let key = waiting.pop(now).expect("is active").0.key;
        waiting.remove(&key);
        waiting.failed(&key, now);
        assert_eq!(waiting.next_due(), None);
        assert_eq!(waiting.counts(), Counts::default());
    }
}
