//! Established flows: their backends, and whether both halves are one flow's.

use weir_dataplane_ebpf::{Backend, Flow, FlowKey, FlowState};

use super::{Found, Kind};
use crate::{
    flows::{self, socket},
    kernel::maps::{Family, FamilyMaps, TableError},
    plan::Books,
};

/// How long a pass over the flows may leave one whose backend is gone: some passes, so that one that was late is no fault.
const OVERDUE_S: f64 = flows::CLOSED.as_secs_f64() + 4.0 * flows::PASS_INTERVAL.as_secs_f64();

/// Looks at the flows behind `from`, removes those that are wrong, and says where to go on, if there are more: the client's
/// next packet then opens one that is right.
pub(super) fn flows<A: Family>(
    maps: &FamilyMaps<A>,
    books: &Books,
    clock: Option<(u32, f64)>,
    from: Option<Vec<u8>>,
    found: &mut Found,
) -> Result<Option<Vec<u8>>, TableError> {
    let (batch, next) = maps.flows.batch(from)?;
    let mut wrong = Vec::new();
    for (key, flow) in batch {
        let Some(kind) = judge(maps, books, clock, &key, &flow)? else { continue };
        // Once more: the batch is some milliseconds old, and either half may have changed.
        let Some(flow) = maps.flows.get(&key)? else { continue };
        if judge(maps, books, clock, &key, &flow)? == Some(kind) {
            found.add(kind, || {
                let client = socket(key.source, key.source_port);
                let backend = socket(flow.destination, flow.destination_port);
                let to = if flow.flags & Flow::<A>::FLAG_TUNNEL != 0 {
                    format!("through a tunnel to node {}", flow.destination.ip())
                } else if flow.flags & Flow::<A>::FLAG_EGRESS != 0 {
                    format!("to the outside, {backend}")
                } else {
                    format!("to backend {backend}")
                };
                (books.owner(flow.service), format!("the flow from {client} {to}"))
            });
            wrong.push(key);
        }
    }
    maps.flows.remove(&wrong)?;
    Ok(next)
}

/// What is wrong with a flow. Only the client's half can say: what answers to an earlier connection may stay a while, and only
/// an established one has both, unless its backend's node answers the client.
fn judge<A: Family>(
    maps: &FamilyMaps<A>,
    books: &Books,
    clock: Option<(u32, f64)>,
    key: &FlowKey<A>,
    flow: &Flow<A>,
) -> Result<Option<Kind>, TableError> {
    if flow.flags & Flow::<A>::FLAG_REPLY != 0 || flow.state != FlowState::ESTABLISHED {
        return Ok(None);
    }
    let idle_s = clock.map_or(0.0, |(now, rate)| {
        f64::from(now.wrapping_sub(flow.last_seen_jiffies).cast_signed().max(0)) / rate
    });
    if flow.flags & Flow::<A>::FLAG_TUNNEL != 0 {
        let is_wrong = idle_s > OVERDUE_S && !tunnel_has_backend(maps, flow)?;
        return Ok(is_wrong.then_some(Kind::FlowBackend));
    }
    // What leaves the cluster has no backend.
    if flow.flags & Flow::<A>::FLAG_EGRESS == 0
        && books.backend(socket(flow.destination, flow.destination_port)) != Some(flow.backend)
    {
        return Ok((idle_s > OVERDUE_S).then_some(Kind::FlowBackend));
    }
    // Without an answer's half there is nothing that misleads: it is made again.
    if flow.is_one_way() {
        return Ok(None);
    }
    let answer = maps.flow(&flow.other_key(key))?;
    Ok(answer.is_some_and(|answer| !answer.is_other_half(key, flow)).then_some(Kind::FlowHalf))
}

/// Whether a tunnel leads to the node of its backend, as programs ask. Its entry says no more of the backend than the id, and
/// backends are compared with the books for themselves.
fn tunnel_has_backend<A: Family>(maps: &FamilyMaps<A>, flow: &Flow<A>) -> Result<bool, TableError> {
    if flow.backend >= maps.backends.bound() {
        return Ok(false);
    }
    let backend = maps.backends.at(flow.backend)?;
    Ok(backend.flags & Backend::<A>::FLAG_ACTIVE != 0 && backend.node == flow.destination)
}
