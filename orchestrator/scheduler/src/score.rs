//! Scores: which of the nodes that can run a pod should.
//!
//! Each scorer gives 0 to 100, with upstream's weights: least allocated 1, balanced allocation 1, preferred node
//! affinity 2, soft taints 3.

use crate::affinity;
use crate::filter::tolerates;
use crate::node::{Node, Usage};
use crate::pod::Pod;

/// The best score of one scorer.
const MAX: i64 = 100;
const LEAST_ALLOCATED_WEIGHT: i64 = 1;
const BALANCED_WEIGHT: i64 = 1;
const AFFINITY_WEIGHT: i64 = 2;
const TAINT_WEIGHT: i64 = 3;

/// A candidate and its total.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scored<'a> {
    /// The node.
    pub node: &'a Node,
    /// Pods on it, for breaking ties.
    pub pods: i64,
    /// The weighted sum.
    pub score: i64,
}

/// Scores the candidates, in their order.
pub(crate) fn score<'a>(candidates: &[(&'a Node, &Usage)], pod: &Pod) -> Vec<Scored<'a>> {
    let preference = |node: &Node| affinity::preference(pod.node_affinity.as_ref(), &node.name, &node.labels);
    // These two are relative: the best (or worst) of the candidates sets the scale.
    let best_preference = candidates.iter().map(|(node, _)| preference(node)).max().unwrap_or_default();
    let most_taints = candidates.iter().map(|(node, _)| soft_taints(node, pod)).max().unwrap_or_default();
    candidates
        .iter()
        .map(|(node, usage)| {
            let affinity = scale(preference(node), best_preference);
            let taints = MAX - scale(soft_taints(node, pod), most_taints);
            let score = LEAST_ALLOCATED_WEIGHT * least_allocated(node, usage, pod)
                + BALANCED_WEIGHT * balanced(node, usage, pod)
                + AFFINITY_WEIGHT * affinity
                + TAINT_WEIGHT * taints;
            Scored { node, pods: usage.pods, score }
        })
        .collect()
}

fn scale(value: i64, of: i64) -> i64 {
    if of == 0 { 0 } else { value * MAX / of }
}

fn soft_taints(node: &Node, pod: &Pod) -> i64 {
    let soft = node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
    soft.filter(|taint| !tolerates(&pod.tolerations, taint)).count() as i64
}

/// The mean share of CPU and memory that is left once the pod is there.
fn least_allocated(node: &Node, usage: &Usage, pod: &Pod) -> i64 {
    let (has, held, wanted) = (&node.allocatable, &usage.score_requested, &pod.demand.score_requests);
    let free = |has: i64, needed: i64| if needed > has { 0 } else { scale(has - needed, has) };
    let cpu = free(has.milli_cpu, held.milli_cpu.saturating_add(wanted.milli_cpu));
    let memory = free(has.memory, held.memory.saturating_add(wanted.memory));
    i64::midpoint(cpu, memory)
}

/// How alike the used shares of CPU and memory are: 100 less half their difference in percent, as the
/// standard deviation of two values is half their distance.
fn balanced(node: &Node, usage: &Usage, pod: &Pod) -> i64 {
    let (has, held, wanted) = (&node.allocatable, &usage.requested, &pod.demand.requests);
    let share = |has: i64, needed: i64| {
        if has == 0 { 0.0 } else { (needed as f64 / has as f64).min(1.0) }
    };
    let cpu = share(has.milli_cpu, held.milli_cpu.saturating_add(wanted.milli_cpu));
    let memory = share(has.memory, held.memory.saturating_add(wanted.memory));
    ((1.0 - (cpu - memory).abs() / 2.0) * MAX as f64) as i64
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Taint;

    use super::*;
    use crate::resources::Resources;

    fn node(milli_cpu: i64, memory: i64) -> Node {
        let allocatable = Resources { milli_cpu, memory, ..Resources::default() };
        Node { allocatable, ..Node::default() }
    }

    fn usage(milli_cpu: i64, memory: i64) -> Usage {
        let held = Resources { milli_cpu, memory, ..Resources::default() };
        Usage { requested: held.clone(), score_requested: held, ..Usage::default() }
    }

    #[test]
    fn more_room_scores_higher() {
        let pod = Pod::default();
        assert_eq!(least_allocated(&node(100, 100), &usage(0, 0), &pod), 100);
        assert_eq!(least_allocated(&node(100, 100), &usage(50, 0), &pod), 75);
        assert_eq!(least_allocated(&node(100, 100), &usage(100, 100), &pod), 0);
        assert_eq!(least_allocated(&node(0, 0), &usage(0, 0), &pod), 0);
    }

    #[test]
    fn even_use_scores_higher() {
        let pod = Pod::default();
        assert_eq!(balanced(&node(100, 100), &usage(50, 50), &pod), 100);
        assert_eq!(balanced(&node(100, 100), &usage(80, 0), &pod), 60);
    }

    #[test]
    fn soft_taints_cost_more_than_room_gives() {
        let soft = Taint { key: "k".into(), effect: "PreferNoSchedule".into(), ..Taint::default() };
        let tainted = Node { taints: vec![soft], ..node(100, 100) };
        let (full, plain) = (usage(90, 90), node(100, 100));
        let scores = score(&[(&tainted, &usage(0, 0)), (&plain, &full)], &Pod::default());
        assert!(scores[1].score > scores[0].score);
    }
}
