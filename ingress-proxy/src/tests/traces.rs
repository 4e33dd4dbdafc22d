//! Traces: what endpoints hear, what a collector gets, and that nobody waits for it.

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use prost::Message as _;
use tokio::net::TcpListener;

use super::backend::{Backend, nobody};
use super::cluster::{Cluster, eventually, quick};
use crate::access_log::AccessLog;
use crate::config::Network;
use crate::proxy::Reports;
use crate::trace::Tracer;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// Takes spans as a collector does, over OTLP/HTTP.
struct Collector {
    url: String,
    got: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let got = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&got);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let taken = Arc::clone(&taken);
                let service = service_fn(move |request: Request<Incoming>| {
                    let taken = Arc::clone(&taken);
                    async move {
                        assert_eq!(request.uri().path(), "/v1/traces");
                        assert_eq!(request.headers()["content-type"], "application/x-protobuf");
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        taken.lock().unwrap().push(ExportTraceServiceRequest::decode(body).unwrap());
                        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
                    }
                });
                let serving = hyper::server::conn::http1::Builder::new();
                tokio::spawn(serving.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { url, got }
    }

    fn spans(&self) -> Vec<Span> {
        let got = self.got.lock().unwrap();
        let scopes = got.iter().flat_map(|request| &request.resource_spans).flat_map(|it| &it.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    async fn one_span(&self) -> Span {
        eventually("a span", async || !self.spans().is_empty()).await;
        let mut spans = self.spans();
        assert_eq!(spans.len(), 1, "{spans:?}");
        spans.remove(0)
    }
}

/// Tells this collector of such a share of requests; peers in `trusted` decide for theirs.
fn telling(url: &str, ratio: f64, trusted: &[&str], access_log: &Path) -> Cluster {
    let trusted: Vec<Network> = trusted.iter().map(|network| network.parse().unwrap()).collect();
    Cluster::reporting(&trusted, false, quick(), |metrics| {
        let (log, _writer) = AccessLog::open(access_log, metrics.log_dropped.clone()).unwrap();
        let (tracer, _exporting) = Tracer::start(url, ratio, metrics.traces.clone()).unwrap();
        Reports { log, tracer: Some(tracer) }
    })
}

async fn serve(cluster: &Cluster, http2: bool) -> Backend {
    let backend = Backend::start("a").await;
    cluster.service("a", http2, &[backend.address]);
    cluster.route("x.com", "/", "a");
    backend
}

/// The fields that the endpoint got of a request with these.
async fn heard(cluster: &Cluster, fields: &str) -> serde_json::Value {
    let (_, body) = super::cluster::split(&cluster.ask("x.com", "/p?q=1", fields).await);
    serde_json::from_str::<serde_json::Value>(&body).unwrap()["headers"].take()
}

fn text(span: &Span, name: &str) -> String {
    let value = span.attributes.iter().find(|attribute| attribute.key == name);
    match value.and_then(|it| it.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{name}: {other:?} in {span:?}"),
    }
}

fn trace_id(span: &Span) -> String {
    TraceId::from_bytes(span.trace_id.as_slice().try_into().unwrap()).to_string()
}

fn span_id(bytes: &[u8]) -> String {
    SpanId::from_bytes(bytes.try_into().unwrap()).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_a_span_between_its_callers_and_its_endpoints() {
    for http2 in [false, true] {
        let log = tempfile::NamedTempFile::new().unwrap();
        let collector = Collector::start().await;
        let cluster = telling(&collector.url, 0.0, &["127.0.0.0/8"], log.path());
        let backend = serve(&cluster, http2).await;
        let fields = format!("traceparent: 00-{TRACE}-{SPAN}-01\r\ntracestate: a=b\r\nuser-agent: me\r\n");
        let heard = heard(&cluster, &fields).await;
        let span = collector.one_span().await;

        assert_eq!(heard["traceparent"], format!("00-{TRACE}-{}-01", span_id(&span.span_id)));
        assert_eq!(heard["tracestate"], "a=b");
        assert_eq!((trace_id(&span), span_id(&span.parent_span_id)), (TRACE.into(), SPAN.into()));
        assert_eq!((span.kind(), span.name.as_str()), (SpanKind::Server, "GET"));
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano && span.start_time_unix_nano > 0);
        let endpoint = backend.address.to_string();
        for (name, expected) in [
            ("http.request.method", "GET"),
            ("url.scheme", "http"),
            ("url.path", "/p"),
            ("url.query", "q=1"),
            ("server.address", "x.com"),
            ("client.address", "127.0.0.1"),
            ("network.protocol.name", "http"),
            ("network.protocol.version", "1.1"),
            ("http.response.status_code", "200"),
            ("user_agent.original", "me"),
            ("weir.service", "a"),
            ("weir.endpoint", &endpoint),
            ("weir.attempts", "1"),
        ] {
            assert_eq!(text(&span, name), expected, "{name}");
        }
        let line = async || std::fs::read_to_string(log.path()).unwrap();
        eventually("the line", async || line().await.contains(&format!("\"trace_id\":\"{TRACE}\""))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ingress_may_be_left_out() {
    let collector = Collector::start().await;
    let cluster = telling(&collector.url, 1.0, &[], Path::new("off"));
    let _backend = serve(&cluster, false).await;
    cluster.annotate("a-x.com-", &[("enable-opentelemetry", "false")]);
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let untouched = heard(&cluster, &format!("traceparent: {parent}\r\n")).await;
    assert_eq!(untouched["traceparent"], parent);
    assert!(heard(&cluster, "").await.get("traceparent").is_none());
    cluster.annotate("a-x.com-", &[]);
    heard(&cluster, "").await;
    let span = collector.one_span().await;
    assert_ne!(trace_id(&span), TRACE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_spans_are_sent_before_the_end() {
    let collector = Collector::start().await;
    let mut registry = prometheus_client::registry::Registry::default();
    let metrics = crate::trace::TraceMetrics::register(&mut registry);
    let (tracer, exporting) = Tracer::start(&collector.url, 1.0, metrics).unwrap();
    let line = crate::access_log::Line { method: "GET", status: 200, ..crate::access_log::Line::default() };
    tracer.end(&tracer.begin(None, false), &line);
    drop(tracer);
    exporting.finish().await;
    assert_eq!(collector.spans().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_is_a_span_with_an_error() {
    let collector = Collector::start().await;
    let cluster = telling(&collector.url, 1.0, &[], Path::new("off"));
    cluster.service("a", false, &[]);
    cluster.route("x.com", "/", "a");
    assert_eq!(cluster.get("x.com", "/").await.0, 503);
    let span = collector.one_span().await;
    assert_eq!(span.status.as_ref().unwrap().code(), StatusCode::Error);
    assert!(text(&span, "weir.reason").contains("no ready endpoints"), "{span:?}");
    assert_eq!(text(&span, "error.type"), "503");
    assert!(span.parent_span_id.is_empty(), "{span:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_do_not_decide_what_is_recorded() {
    let collector = Collector::start().await;
    let cluster = telling(&collector.url, 0.0, &[], Path::new("off"));
    let _backend = serve(&cluster, false).await;
    let heard_of = heard(&cluster, &format!("traceparent: 00-{TRACE}-{SPAN}-01\r\n")).await;
    let told = heard_of["traceparent"].as_str().unwrap();
    assert!(told.starts_with(&format!("00-{TRACE}-")) && told.ends_with("-00"), "{told}");
    // What names no trace begins one, and says nothing of its state.
    for malformed in ["nonsense", &format!("00-{TRACE}-{SPAN}-01\r\ntraceparent: 00-{TRACE}-{SPAN}-01")] {
        let heard = heard(&cluster, &format!("traceparent: {malformed}\r\ntracestate: a=b\r\n")).await;
        let told = heard["traceparent"].as_str().unwrap();
        assert!(told.len() == 55 && !told.contains(TRACE), "{told}");
        assert!(heard.get("tracestate").is_none(), "{heard}");
    }
    assert!(!cluster.metrics().contains("trace_spans_total"), "{}", cluster.metrics());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_collector_the_callers_words_go_on_and_are_logged() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let cluster = Cluster::with(quick(), log.path());
    let _backend = serve(&cluster, false).await;
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let heard = heard(&cluster, &format!("traceparent: {parent}\r\ntracestate: a=b\r\n")).await;
    assert_eq!((&heard["traceparent"], &heard["tracestate"]), (&parent.into(), &"a=b".into()));
    let line = async || std::fs::read_to_string(log.path()).unwrap();
    eventually("the line", async || line().await.contains(&format!("\"trace_id\":\"{TRACE}\""))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_gone_costs_spans_and_no_requests() {
    let (_nobody, address) = nobody();
    let cluster = telling(&format!("http://{address}"), 1.0, &[], Path::new("off"));
    let _backend = serve(&cluster, false).await;
    for _ in 0..5 {
        assert_eq!(cluster.get("x.com", "/").await.0, 200);
    }
    let failed = "weir_ingress_trace_spans_total{outcome=\"Failed\"} 5";
    eventually("the spans are counted", async || cluster.metrics().contains(failed)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_fills_a_queue_and_no_more() {
    // It accepts by its backlog, and never answers.
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cluster = telling(&format!("http://{}", hanging.local_addr().unwrap()), 1.0, &[], Path::new("off"));
    let _backend = serve(&cluster, false).await;
    let dropped = "weir_ingress_trace_spans_total{outcome=\"Dropped\"}";
    let mut stream = tokio::net::TcpStream::connect(cluster.http).await.unwrap();
    let requests = b"GET / HTTP/1.1\r\nHost: nobody\r\n\r\n".repeat(100);
    for _ in 0..60 {
        tokio::io::AsyncWriteExt::write_all(&mut stream, &requests).await.unwrap();
        let mut answers = 0;
        while answers < 100 {
            let mut piece = [0; 16_384];
            let length = tokio::io::AsyncReadExt::read(&mut stream, &mut piece).await.unwrap();
            assert_ne!(length, 0, "the connection ended");
            answers += String::from_utf8_lossy(&piece[..length]).matches("HTTP/1.1 404").count();
        }
    }
    assert!(cluster.metrics().contains(dropped), "{}", cluster.metrics());
    assert_eq!(cluster.get("x.com", "/").await.0, 200);
}

#[test]
fn a_setting_that_makes_no_sense_is_named() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _inside = runtime.enter();
    for (url, ratio, named) in [
        ("collector:4317", 1.0, "--otlp-endpoint"),
        ("grpc://collector:4317", 1.0, "only http and https"),
        ("http://collector:4318", 1.5, "--trace-sample-ratio 1.5"),
        ("http://collector:4318", f64::NAN, "--trace-sample-ratio"),
    ] {
        let mut registry = prometheus_client::registry::Registry::default();
        let metrics = crate::trace::TraceMetrics::register(&mut registry);
        let error = Tracer::start(url, ratio, metrics).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}
