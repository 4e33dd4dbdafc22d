//! What others have made to find weaknesses: slow clients of every kind, and a whole catalogue of TLS's.

use std::sync::Arc;
use std::time::Duration;

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use rcgen::{BasicConstraints, CertificateParams, CrlDistributionPoint, IsCa, Issuer, KeyPair};
use tokio::process::Command;

use super::backend::Backend;
use super::cluster::{Cluster, in_time};
use super::tls::tls_spec;
use crate::compile::SecretFact;

/// Longer than the programs take on a busy machine.
const HANGS: Duration = Duration::from_mins(5);

async fn cluster() -> (Cluster, Backend) {
    let a = Backend::start("a").await;
    let cluster = Cluster::start();
    cluster.service("a", false, &[a.address]);
    cluster.route("", "/", "a");
    (cluster, a)
}

/// The output of a program, which must be there.
async fn run(program: &str, arguments: &[&str]) -> String {
    let running = Command::new(program).args(arguments).kill_on_drop(true).output();
    let output = tokio::time::timeout(HANGS, running).await.expect("the program ends");
    let output =
        output.unwrap_or_else(|error| panic!("{program}: {error}; cargo xtask test unit installs it"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Slowloris, slow bodies, ranges without number, and readers that take nothing: others are served all the while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_hold_up_nobody_else() {
    let (cluster, _a) = cluster().await;
    let url = format!("http://{}/", cluster.http);
    let attacks = ["-H", "-B", "-R", "-X"].map(|mode| {
        let arguments =
            [mode, "-u", &url, "-c", "500", "-r", "250", "-l", "6", "-i", "1", "-p", "5"].map(str::to_owned);
        async move {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            run("slowhttptest", &arguments).await
        }
    });
    let attacking = futures::future::join_all(attacks);
    tokio::pin!(attacking);
    let mut served = 0;
    let outputs = loop {
        tokio::select! {
            outputs = &mut attacking => break outputs,
            (status, body) = in_time("another client", cluster.get("x", "/")) => {
                assert_eq!(status, 200, "{body}");
                served += 1;
            }
        }
    };
    assert!(served > 0, "another client was served while they went on");
    for output in outputs {
        assert!(output.contains("service available:") && !output.contains("NO\u{1b}"), "{output}");
    }
}

/// An authority of its own, and a certificate as good ones are.
fn certificate(host: &str) -> (String, String, String) {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let at = |days: i64| {
        let date = today + days.days();
        rcgen::date_time_ymd(date.year().into(), date.month().cast_unsigned(), date.day().cast_unsigned())
    };
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
    (params.not_before, params.not_after) = (at(-1), at(90));
    params.distinguished_name.push(rcgen::DnType::CommonName, host);
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    params.crl_distribution_points =
        vec![CrlDistributionPoint { uris: vec![format!("http://{host}/revoked.crl")] }];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    (authority, certificate, key.serialize_pem())
}

/// Protocols, ciphers, the handshake and known attacks; what an application's responses have to say for themselves is not
/// asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_has_no_known_weakness() {
    const HOST: &str = "secure.example";
    let (cluster, _a) = cluster().await;
    let (authority, certificate, key) = certificate(HOST);
    let pair = crate::tls::read_pair(certificate.as_bytes(), key.as_bytes()).unwrap();
    cluster.ingress("secure", tls_spec(HOST, "secure"));
    cluster.secret("secure", SecretFact::Usable(Arc::new(pair), None));
    let directory = tempfile::tempdir().unwrap();
    let (findings, trusted) =
        (directory.path().join("findings.json"), directory.path().join("authority.crt"));
    std::fs::write(&trusted, authority).unwrap();
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let address = format!("{HOST}:{}", cluster.https.port());
    let arguments = [
        ["--quiet", "--color=0", "--ip=127.0.0.1", "--nodns=min"].map(str::to_owned).to_vec(),
        vec![format!("--add-ca={}", path(&trusted)), format!("--jsonfile={}", path(&findings))],
        ["-p", "-s", "-f", "-P", "-S", "-U"].map(str::to_owned).to_vec(),
        vec![address],
    ]
    .concat();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = run("testssl", &arguments).await;
    let findings = std::fs::read_to_string(&findings).unwrap_or_else(|error| panic!("{error}: {output}"));
    let findings: Vec<serde_json::Value> = serde_json::from_str(&findings).unwrap();
    let of = |severity: &str| findings.iter().filter(|one| one["severity"] == severity).collect::<Vec<_>>();
    assert!(of("OK").len() > 30, "the catalogue was gone through: {output}");
    for severity in ["MEDIUM", "HIGH", "CRITICAL", "FATAL"] {
        assert!(of(severity).is_empty(), "{severity}: {:?}", of(severity));
    }
}
