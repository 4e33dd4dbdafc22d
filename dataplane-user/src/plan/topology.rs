//! Which endpoints a zone's clients should use.
//!
//! The control plane writes hints (`trafficDistribution: PreferClose`, KEP-4444, or the topology mode annotation,
//! KEP-2433); whether they are followed is decided here, by the rule of kube-proxy's `pkg/proxy/topology.go`: every ready
//! endpoint must have a hint, and at least one must be for this zone. Half a set of hints, as during an update of the
//! slices, would overload the endpoints that have one.

use super::model::{Endpoint, Slice};

/// An endpoint's hint as one node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hint {
    /// It has none.
    None,
    /// For other zones.
    Elsewhere,
    /// For the node's own zone.
    Here,
}

impl Hint {
    /// Of an endpoint of `slice`, for a node of `zone`.
    pub(super) fn of(slice: &Slice, endpoint: &Endpoint, zone: Option<&str>) -> Self {
        if endpoint.zones == 0 {
            return Self::None;
        }
        let own = slice.zones.iter().position(|known| Some(&**known) == zone);
        if own.is_some_and(|bit| endpoint.zones & (1 << bit) != 0) { Self::Here } else { Self::Elsewhere }
    }
}

/// Whether the hints of a service's ready endpoints of one family are followed.
pub(super) fn applies(mut ready: impl Iterator<Item = Hint>) -> bool {
    let mut here = false;
    let complete = ready.all(|hint| {
        here |= hint == Hint::Here;
        hint != Hint::None
    });
    complete && here
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_followed_when_all_have_one_and_one_is_for_here() {
        use Hint::{Elsewhere, Here, None};
        let rows: &[(&[Hint], bool)] = &[
            (&[], false),
            (&[Here], true),
            (&[Elsewhere, Here, Elsewhere], true),
            (&[Elsewhere, Elsewhere], false),
            (&[Here, None], false),
            (&[None, Here], false),
            (&[None], false),
        ];
        for (hints, followed) in rows {
            assert_eq!(applies(hints.iter().copied()), *followed, "{hints:?}");
        }
    }
}
