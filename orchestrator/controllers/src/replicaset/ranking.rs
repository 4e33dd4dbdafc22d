//! Which pods go first when there are too many: upstream's `ActivePodsWithRanks`.

use std::cmp::{Ordering, Reverse};

use jiff::Timestamp;

use crate::pods::{Phase, PodView};

/// A pod and how many of its relatives share its node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranked<'a> {
    /// The pod.
    pub pod: &'a PodView,
    /// Active pods of the same owner on the same node.
    pub neighbours: usize,
}

/// `Less` sorts before: is deleted earlier. A total order, so that two looks at one state choose the same pods.
pub(super) fn deletion_order(a: &Ranked<'_>, b: &Ranked<'_>, now: Timestamp) -> Ordering {
    let (x, y) = (a.pod, b.pod);
    // Unassigned, pending, and not ready pods serve nobody.
    (!x.node.is_empty())
        .cmp(&!y.node.is_empty())
        .then_with(|| phase_rank(x.phase).cmp(&phase_rank(y.phase)))
        .then_with(|| x.ready.cmp(&y.ready))
        .then_with(|| x.deletion_cost.cmp(&y.deletion_cost))
        // Doubled up pods go before ones that are alone on their node.
        .then_with(|| b.neighbours.cmp(&a.neighbours))
        // Ready for a shorter time, more restarts, younger. Times count by their logarithm (KEP-2185), so that pods of
        // about the same age are chosen by UID and not all from the last rollout's zone.
        .then_with(|| if x.ready { younger(x.ready_since, y.ready_since, now) } else { Ordering::Equal })
        .then_with(|| Reverse(x.restarts).cmp(&Reverse(y.restarts)))
        .then_with(|| younger(x.created, y.created, now))
        .then_with(|| x.uid.cmp(&y.uid))
}

fn phase_rank(phase: Phase) -> u8 {
    match phase {
        Phase::Pending => 0,
        Phase::Unknown => 1,
        Phase::Running | Phase::Succeeded | Phase::Failed => 2,
    }
}

/// A missing time counts as right now.
fn younger(a: Option<Timestamp>, b: Option<Timestamp>, now: Timestamp) -> Ordering {
    age_rank(a, now).cmp(&age_rank(b, now))
}

fn age_rank(time: Option<Timestamp>, now: Timestamp) -> Option<u32> {
    let age = now.duration_since(time?).as_secs();
    Some(u64::try_from(age).unwrap_or_default().checked_ilog2().map_or(0, |log| log + 1))
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_000_000).expect("is a time")
    }

    fn ago(seconds: i64) -> Timestamp {
        now() - SignedDuration::from_secs(seconds)
    }

    fn good(name: &str) -> PodView {
        PodView {
            uid: name.into(),
            node: "n".into(),
            phase: Phase::Running,
            ready: true,
            ready_since: Some(ago(1000)),
            created: Some(ago(1000)),
            ..PodView::default()
        }
    }

    fn goes_first(first: &PodView, second: &PodView) {
        let ranked = |pod| Ranked { pod, neighbours: 1 };
        assert_eq!(deletion_order(&ranked(first), &ranked(second), now()), Ordering::Less);
        assert_eq!(deletion_order(&ranked(second), &ranked(first), now()), Ordering::Greater);
    }

    #[test]
    fn each_rule_decides_where_the_earlier_ones_do_not() {
        let pod = good("z");
        goes_first(&PodView { node: String::new(), ..good("a") }, &pod);
        goes_first(&PodView { phase: Phase::Pending, ..good("a") }, &pod);
        goes_first(&PodView { ready: false, ..good("a") }, &pod);
        goes_first(&PodView { deletion_cost: -1, ..good("a") }, &pod);
        goes_first(&PodView { ready_since: Some(ago(10)), ..good("a") }, &pod);
        goes_first(&PodView { restarts: 3, ..good("a") }, &pod);
        goes_first(&PodView { created: Some(ago(10)), ..good("a") }, &pod);
        goes_first(&good("a"), &pod);
    }

    #[test]
    fn doubled_up_pods_go_before_lonely_ones() {
        let (a, b) = (good("a"), good("b"));
        let (lonely, doubled) = (Ranked { pod: &a, neighbours: 1 }, Ranked { pod: &b, neighbours: 2 });
        assert_eq!(deletion_order(&doubled, &lonely, now()), Ordering::Less);
    }

    #[test]
    fn about_the_same_age_is_the_same_age() {
        goes_first(
            &PodView { created: Some(ago(1000)), ..good("a") },
            &PodView { created: Some(ago(900)), ..good("b") },
        );
    }
}
