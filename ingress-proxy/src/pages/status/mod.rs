//! The status page: what is routed where, what answers handshakes, how endpoints fare, how much is asked, what is wrong.
//!
//! The page itself is three fixed files. Its script asks for `/status.json`, which is made for each question from what is
//! live, and puts what it gets into the page as text. A question has `filter`, a text that rows must have somewhere, and
//! `from`, the first route to show.
//!
//! **Cost.** All routes are looked at, and of each list at most so many rows are shown: [`MAX_ROUTES`], [`MAX_ROWS`]. It is
//! not made on the threads that serve requests.

use std::sync::{Arc, LazyLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::{Response, StatusCode};
use serde::Serialize;

use super::explain::{Endpoint, service};
use super::{View, json, page as made};
use crate::certificate::{self, Certificate};
use crate::live::{Live, Target};
use crate::metrics::CLASSES;
use crate::table::RulePath;

/// Routes on one page.
const MAX_ROUTES: usize = 100;
/// Rows of each other list.
const MAX_ROWS: usize = 200;
const DAY_S: i64 = 86_400;

pub(super) fn html(_: &View, _: &str) -> Response<String> {
    made(StatusCode::OK, "text/html; charset=utf-8", include_str!("status.html").to_owned())
}

pub(super) fn css(_: &View, _: &str) -> Response<String> {
    made(StatusCode::OK, "text/css; charset=utf-8", include_str!("status.css").to_owned())
}

pub(super) fn js(_: &View, _: &str) -> Response<String> {
    made(StatusCode::OK, "text/javascript; charset=utf-8", include_str!("status.js").to_owned())
}

/// Everything that is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    version: &'static str,
    /// Milliseconds since some moment in the life of the process: between two answers so much time passed.
    clock_ms: u64,
    /// Requests so far, by class: these never fall while the process lives.
    requests: Vec<(&'static str, u64)>,
    in_flight: i64,
    connections: i64,
    hosts: usize,
    routes: Routes,
    certificates: Rows<CertificateRow>,
    endpoints: Rows<EndpointRow>,
    problems: Rows<ProblemRow>,
}

#[derive(Debug, Serialize)]
struct Routes {
    /// The place of the first among all that the filter lets through.
    from: usize,
    total: usize,
    /// As many are on one page.
    most: usize,
    rows: Vec<RouteRow>,
}

/// Rows of a list, and how many there are in all.
#[derive(Debug, Serialize)]
struct Rows<T> {
    total: usize,
    rows: Vec<T>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct RouteRow {
    host: String,
    path: String,
    kind: &'static str,
    ingress: String,
    service: String,
    /// Nothing, or why requests cannot go there.
    fault: Option<String>,
    policies: Vec<&'static str>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct CertificateRow {
    /// Nothing for the default certificate.
    host: Option<String>,
    secret: Option<String>,
    names: Vec<String>,
    not_after: String,
    days_left: i64,
    covers: bool,
}

#[derive(Debug, Serialize)]
struct EndpointRow {
    service: String,
    protocol: &'static str,
    #[serde(flatten)]
    endpoint: Endpoint,
}

#[derive(Debug, Serialize)]
struct ProblemRow {
    ingress: String,
    reason: &'static str,
    text: String,
}

/// What is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// In small letters.
    filter: String,
    from: usize,
}

impl Wanted {
    /// What is no number is none, and other words are not heard: this comes from the script, or from who tries things out.
    fn read(query: &str) -> Self {
        let mut wanted = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "filter" => wanted.filter = value.trim().to_lowercase(),
                "from" => wanted.from = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        wanted
    }

    /// Whether one of the texts has it.
    fn lets<'t>(&self, texts: impl IntoIterator<Item = &'t str>) -> bool {
        self.filter.is_empty() || texts.into_iter().any(|text| text.to_lowercase().contains(&self.filter))
    }
}

impl<T> Rows<T> {
    fn of(all: impl Iterator<Item = T>) -> Self {
        let mut all = all;
        let rows: Vec<T> = all.by_ref().take(MAX_ROWS).collect();
        Self { total: rows.len() + all.count(), rows }
    }
}

pub(super) fn page(view: &View, query: &str) -> Response<String> {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let wanted = Wanted::read(query);
    let (live, metrics) = (view.proxy.live.load(), &view.proxy.metrics);
    // The clock is read beside the counters, not after the rest.
    let (clock_ms, requests) = (START.elapsed().as_millis() as u64, metrics.hosts.totals());
    json(&Status {
        version: env!("CARGO_PKG_VERSION"),
        clock_ms,
        requests: CLASSES.into_iter().zip(requests).collect(),
        in_flight: metrics.in_flight.get(),
        connections: metrics.connections.get(),
        hosts: live.table().hosts(),
        routes: routes(&live, &wanted),
        certificates: certificates(view, &live, &wanted),
        endpoints: endpoints(&live, &wanted),
        problems: problems(view, &wanted),
    })
}

/// By host and path.
fn routes(live: &Live, wanted: &Wanted) -> Routes {
    let (mut total, mut rows) = (0, Vec::new());
    for (host, rules) in live.table().by_host() {
        let host = host.to_string();
        for (path, target) in rules.rules() {
            if !wanted.lets([host.as_str(), path.text(), &target.ingress, &target.service]) {
                continue;
            }
            if total >= wanted.from && rows.len() < MAX_ROUTES {
                rows.push(route(&host, &path, target));
            }
            total += 1;
        }
    }
    Routes { from: wanted.from.min(total), total, most: MAX_ROUTES, rows }
}

fn route(host: &str, path: &RulePath, target: &Arc<Target>) -> RouteRow {
    let fault = match &target.backend {
        Err(why) => Some(why.to_string()),
        Ok(pool) if pool.is_empty() => Some("no ready endpoints".to_owned()),
        Ok(_) => None,
    };
    RouteRow {
        host: host.to_owned(),
        path: path.text().to_owned(),
        kind: path.kind(),
        ingress: target.ingress.to_string(),
        service: service(target),
        fault,
        policies: target.policy.as_ref().map(|policy| policy.names()).unwrap_or_default(),
    }
}

/// Those that end soonest first.
fn certificates(view: &View, live: &Live, wanted: &Wanted) -> Rows<CertificateRow> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
    let certificates = view.certificates.load();
    let secrets = live.secrets();
    // Hosts are many and secrets few: each is read once.
    let read: Vec<_> = secrets
        .iter()
        .filter_map(|(secret, pair)| Some((pair, secret.to_string(), Certificate::of(&pair.load())?)))
        .collect();
    let row = |host, secret, read: &Certificate, covers| CertificateRow {
        host,
        secret,
        names: read.names.clone(),
        not_after: certificate::date(read.not_after).to_string(),
        days_left: (read.not_after - now).div_euclid(DAY_S),
        covers,
    };
    let of_hosts = certificates.hosts().filter_map(|(host, pair)| {
        let (_, secret, read) = read.iter().find(|(known, ..)| Arc::ptr_eq(known, pair))?;
        let name = host.to_string();
        let is_wanted = wanted.lets([name.as_str(), secret]);
        is_wanted.then(|| row(Some(name), Some(secret.clone()), read, read.covers(&host)))
    });
    let mut rows: Vec<CertificateRow> = of_hosts.collect();
    rows.sort_by(|a, b| (a.days_left, &a.host).cmp(&(b.days_left, &b.host)));
    let default =
        Certificate::of(&certificates.default_pair().load()).map(|read| row(None, None, &read, true));
    Rows::of(rows.into_iter().chain(default.filter(|_| wanted.filter.is_empty())))
}

/// Those that get no requests first, then by Service.
fn endpoints(live: &Live, wanted: &Wanted) -> Rows<EndpointRow> {
    let mut rows = Vec::new();
    for (key, pool) in live.backends() {
        let port = if key.port.is_empty() { String::new() } else { format!(":{}", key.port) };
        let service = format!("{}{port}", key.service);
        let protocol = pool.protocol().name();
        for state in pool.state() {
            if wanted.lets([service.as_str(), &state.address.to_string()]) {
                rows.push(EndpointRow { service: service.clone(), protocol, endpoint: state.into() });
            }
        }
    }
    rows.sort_by_key(|row| row.endpoint.ejected_ms.is_none() && row.endpoint.unhealthy.is_none());
    Rows::of(rows.into_iter())
}

fn problems(view: &View, wanted: &Wanted) -> Rows<ProblemRow> {
    let (problems, more) = view.problems.some(MAX_ROWS, |problem| {
        let ingress = problem.ingress.to_string();
        wanted.lets([ingress.as_str(), problem.reason.as_str(), &problem.text])
    });
    let row = |problem: crate::compile::Problem| ProblemRow {
        ingress: problem.ingress.to_string(),
        reason: problem.reason.as_str(),
        text: problem.text,
    };
    let rows: Vec<ProblemRow> = problems.into_iter().map(row).collect();
    Rows { total: rows.len() + more, rows }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_read_and_compared() {
        let wanted = Wanted::read("filter=%20Shop%2FA%20&from=200&x=y");
        assert_eq!(wanted, Wanted { filter: "shop/a".to_owned(), from: 200 });
        assert!(wanted.lets(["x", "the-SHOP/apps"]) && !wanted.lets(["shop", "/a"]));
        assert_eq!(Wanted::read("from=-1"), Wanted::default());
        assert!(Wanted::default().lets([]));
    }

    #[test]
    fn long_lists_are_cut_and_counted() {
        let rows = Rows::of(0..MAX_ROWS + 7);
        assert_eq!((rows.rows.len(), rows.total), (MAX_ROWS, MAX_ROWS + 7));
    }

    /// What is on the page is on it as text, whatever it is: there is no way for it to be anything else.
    #[test]
    fn the_script_makes_no_markup_of_texts() {
        let script = include_str!("status.js");
        for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("] {
            assert!(!script.contains(word), "{word}");
        }
        let page = include_str!("status.html");
        assert!(!page.contains("style=") && !page.contains(" on"), "nothing that the policy refuses");
        assert_eq!(page.matches("<script").count(), 1);
    }
}
