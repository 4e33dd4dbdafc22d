//! What it costs to find a request's target: host and path brought into their normal forms, and the table asked.
//!
//! Requests come in an order that no cache guesses from the one before; their own bytes are at hand, as those of a request
//! are that was just read.

use std::{hint::black_box, sync::Arc, time::Instant};

use anyhow::{Context, Result, ensure};
use weir_ingress::table::{HostPattern, PathKind, RouteTable, RuleSet, normalize_host, normalize_path};
use weir_tests::{Goal, Row};

use crate::cluster::PATHS;

/// Runs of each figure.
const RUNS: usize = 7;
/// Requests of a run.
const REQUESTS: usize = 1_000_000;
/// Steps through the requests so far; a prime that divides no number of them.
const STRIDE: usize = 7_919;
/// Nanoseconds that a request's routing may cost.
const GOAL_NS: f64 = 300.0;

/// A request as the client writes it, and where it is to go.
struct Request {
    host: String,
    path: String,
    target: Target,
}

/// As the proxy's are: something behind a pointer.
type Target = Arc<usize>;

pub(crate) fn measure() -> Result<Vec<Row>> {
    [1, 5_000].into_iter().map(measure_one).collect()
}

fn measure_one(ingresses: usize) -> Result<Row> {
    let (table, requests) = (table(ingresses)?, requests(ingresses));
    for Request { host, path, target } in &requests {
        ensure!(route(&table, host, path) == Some(target), "{host}{path} is routed elsewhere");
    }
    let samples: Vec<f64> = (0..RUNS).map(|_| time_ns(&table, &requests)).collect();
    let paths = ingresses * PATHS.len();
    let name = format!("routing of a request among {paths} paths of {ingresses} hosts");
    Ok(Row::of(name, "ns", &samples).goal(Goal::AtMost(GOAL_NS)))
}

/// As the compiler builds it of that many Ingresses with a host each.
fn table(ingresses: usize) -> Result<RouteTable<Target>> {
    let mut table = RouteTable::default();
    for ingress in 0..ingresses {
        let mut rules = RuleSet::default();
        for (number, path) in PATHS.iter().enumerate() {
            let added = rules.rule(PathKind::Prefix, &normalize_path(path)?, target(ingress, number));
            added.ok().with_context(|| format!("{path} is there twice"))?;
        }
        table.set(&HostPattern::parse(&host(ingress))?, Some(Arc::new(rules.build())));
    }
    Ok(table)
}

fn requests(ingresses: usize) -> Vec<Request> {
    let all = ingresses * PATHS.len();
    let one = |number: usize| {
        let (ingress, path) = (number / PATHS.len(), number % PATHS.len());
        Request {
            host: format!("{}:8443", host(ingress)),
            path: format!("{}/items/42.json", PATHS[path].trim_end_matches('/')),
            target: target(ingress, path),
        }
    };
    (0..all).map(|step| one(step * STRIDE % all)).collect()
}

fn host(ingress: usize) -> String {
    format!("shop-{ingress}.example")
}

fn target(ingress: usize, path: usize) -> Target {
    Arc::new(ingress * PATHS.len() + path)
}

fn route<'a>(table: &'a RouteTable<Target>, host: &str, path: &str) -> Option<&'a Target> {
    let (host, path) = (normalize_host(host).ok()?, normalize_path(path).ok()?);
    table.lookup(&host, &path)
}

fn time_ns(table: &RouteTable<Target>, requests: &[Request]) -> f64 {
    let started = Instant::now();
    for Request { host, path, .. } in requests.iter().cycle().take(REQUESTS) {
        let target = route(table, black_box(host), black_box(path)).map(|target| **target);
        black_box(target);
    }
    started.elapsed().as_nanos() as f64 / REQUESTS as f64
}
