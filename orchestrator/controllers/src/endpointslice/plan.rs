//! Which slices a Service needs: a pure function of the Service, its pods, their nodes and the slices there are.
//!
//! Pods whose named ports have the same numbers share slices, at most [`ENDPOINTS_MAX`] in each. Existing slices are
//! changed as little as possible: an endpoint stays where it is, the gone are taken out, the new fill the slices
//! that are written anyway, then the fullest that have room. Each write is an event for every node.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::model::{
    Group, endpoint, families, family_of, group_of, labels, name, new_slice, owner_reference, ports, uid,
};
use crate::pods::PodView;

/// Most endpoints in one slice, as upstream.
pub(super) const ENDPOINTS_MAX: usize = 100;

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Make this slice.
    Create(EndpointSlice),
    /// Write this slice over the one of its name.
    Update(EndpointSlice),
    /// Delete the slice of this name.
    Delete(String),
}

/// The plan. `zone` gives the zone of a node, and `None` for a node that does not exist.
pub(super) fn plan<'a>(
    service: &Service,
    pods: impl IntoIterator<Item = &'a PodView>,
    zone: impl Fn(&str) -> Option<Option<String>>,
    slices: &[EndpointSlice],
) -> Vec<Step> {
    let spec = service.spec.clone().unwrap_or_default();
    let families = families(service);
    let mut wanted: BTreeMap<Group, BTreeMap<String, Endpoint>> = BTreeMap::new();
    let publish_all = spec.publish_not_ready_addresses.unwrap_or_default();
    for pod in pods {
        // A pod that has ended keeps its address on paper only.
        if pod.has_ended() || pod.node.is_empty() {
            continue;
        }
        // A pod on a node that is gone is not reachable.
        let Some(zone) = zone(&pod.node) else { continue };
        let ports = ports(&spec.ports.clone().unwrap_or_default(), pod);
        for family in &families {
            let Some(ip) = pod.ips.iter().find(|ip| family_of(ip) == Some(*family)) else { continue };
            let group = Group { family, ports: ports.clone() };
            let endpoint = endpoint(service, pod, ip, zone.clone(), publish_all);
            wanted.entry(group).or_default().insert(pod.uid.clone(), endpoint);
        }
    }
    // A Service without endpoints has an empty slice all the same: it says that somebody has looked.
    for family in &families {
        if !wanted.keys().any(|group| group.family == *family) {
            wanted.insert(Group { family, ports: Vec::new() }, BTreeMap::new());
        }
    }
    let mut steps = Vec::new();
    for (group, endpoints) in &mut wanted {
        let mine: Vec<_> = slices.iter().filter(|slice| group_of(slice).as_ref() == Some(group)).collect();
        steps.extend(fill(service, group, std::mem::take(endpoints), &mine));
    }
    let unused =
        slices.iter().filter(|slice| group_of(slice).is_none_or(|group| !wanted.contains_key(&group)));
    steps.extend(unused.map(|slice| Step::Delete(name(slice))));
    steps
}

/// Fits the endpoints of one group into its slices.
fn fill(
    service: &Service,
    group: &Group,
    mut wanted: BTreeMap<String, Endpoint>,
    slices: &[&EndpointSlice],
) -> Vec<Step> {
    let (labels, owner) = (labels(service), owner_reference(service));
    let mut kept = Vec::new();
    for slice in slices {
        let mut changed = slice.metadata.labels.as_ref() != Some(&labels);
        let mut endpoints = Vec::new();
        for endpoint in &slice.endpoints {
            match wanted.remove(uid(endpoint)) {
                Some(new) => {
                    changed |= new != *endpoint;
                    endpoints.push(new);
                }
                None => changed = true,
            }
        }
        kept.push((*slice, endpoints, changed));
    }
    let mut rest: Vec<_> = wanted.into_values().collect();
    // First the slices that are written anyway, then those with the least room that have enough of it.
    for (_, endpoints, _) in
        kept.iter_mut().filter(|(_, endpoints, changed)| *changed && !endpoints.is_empty())
    {
        take(&mut rest, endpoints);
    }
    if !rest.is_empty() && rest.len() < ENDPOINTS_MAX {
        let fits = |endpoints: &[Endpoint]| endpoints.len() + rest.len() <= ENDPOINTS_MAX;
        let fullest = kept
            .iter_mut()
            .filter(|(_, endpoints, _)| fits(endpoints))
            .max_by_key(|(_, endpoints, _)| endpoints.len());
        if let Some((_, endpoints, changed)) = fullest {
            take(&mut rest, endpoints);
            *changed = true;
        }
    }
    // An emptied slice is used again before a new one is made.
    for (_, endpoints, changed) in kept.iter_mut().filter(|(_, endpoints, _)| endpoints.is_empty()) {
        *changed |= take(&mut rest, endpoints) > 0;
    }
    let mut steps = Vec::new();
    while !rest.is_empty() || (slices.is_empty() && steps.is_empty()) {
        let mut endpoints = Vec::new();
        take(&mut rest, &mut endpoints);
        steps.push(Step::Create(new_slice(service, group, endpoints, labels.clone(), owner.clone())));
    }
    // One empty slice may stay as the placeholder when there is nothing else.
    let all_empty = kept.iter().all(|(_, endpoints, _)| endpoints.is_empty()) && steps.is_empty();
    for (index, (slice, endpoints, changed)) in kept.into_iter().enumerate() {
        if endpoints.is_empty() && !(all_empty && index == 0) {
            steps.push(Step::Delete(name(slice)));
        } else if changed {
            let mut slice = (*slice).clone();
            slice.endpoints = endpoints;
            slice.metadata.labels = Some(labels.clone());
            steps.push(Step::Update(slice));
        }
    }
    steps
}

fn take(from: &mut Vec<Endpoint>, into: &mut Vec<Endpoint>) -> usize {
    let count = from.len().min(ENDPOINTS_MAX.saturating_sub(into.len()));
    into.extend(from.drain(..count));
    count
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
