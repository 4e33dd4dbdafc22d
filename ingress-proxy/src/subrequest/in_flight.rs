//! How many requests of the proxy's own are in flight: of all Ingresses, and of each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::gauge::Gauge;

/// The count. A lock, because the two bounds hold together; it is held for one look at a map.
#[derive(Debug)]
pub(super) struct InFlight {
    most: usize,
    most_of_one: usize,
    counts: Mutex<Counts>,
    gauge: Gauge,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    /// Only of those that have some, so that it is as bounded as `all`.
    of_each: HashMap<Arc<str>, usize>,
}

/// One request's place; it is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    of: Arc<InFlight>,
    group: Arc<str>,
}

impl InFlight {
    /// `gauge` shows the count of all.
    pub(super) fn new(most: usize, most_of_one: usize, gauge: Gauge) -> Self {
        Self { most, most_of_one, counts: Mutex::default(), gauge }
    }

    /// Nothing when there is no place.
    pub(super) fn take(self: &Arc<Self>, group: &Arc<str>) -> Option<Place> {
        let mut counts = self.lock();
        if counts.all >= self.most
            || counts.of_each.get(group).is_some_and(|count| *count >= self.most_of_one)
        {
            return None;
        }
        counts.all += 1;
        *counts.of_each.entry(Arc::clone(group)).or_default() += 1;
        self.gauge.set(counts.all as i64);
        Some(Place { of: Arc::clone(self), group: Arc::clone(group) })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.of.lock();
        counts.all -= 1;
        if let Some(count) = counts.of_each.get_mut(&self.group) {
            *count -= 1;
            if *count == 0 {
                counts.of_each.remove(&self.group);
            }
        }
        self.of.gauge.set(counts.all as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_does_not_use_up_the_places_of_all() {
        let gauge = Gauge::default();
        let in_flight = Arc::new(InFlight::new(3, 2, gauge.clone()));
        let (a, b): (Arc<str>, Arc<str>) = ("n/a".into(), "n/b".into());
        let first = in_flight.take(&a).unwrap();
        let _second = in_flight.take(&a).unwrap();
        assert!(in_flight.take(&a).is_none());
        let _third = in_flight.take(&b).unwrap();
        assert!(in_flight.take(&b).is_none(), "of all");
        drop(first);
        assert_eq!(gauge.get(), 2);
        assert!(in_flight.take(&b).is_some());
        assert_eq!(in_flight.lock().of_each.len(), 2);
    }
}
