//! The ingress's status page in a real browser, in a network namespace: endpoints need an address that is not loopback.

mod browser;
mod ingress;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    thread,
};

use anyhow::ensure;
use browser::Tab;
use ingress::{Ingress, ask, get};
use serde_json::json;
use weir_tests::{Namespace, eventually};

/// From the range for measurements (RFC 2544).
const ADDRESS: &str = "198.18.0.1";
/// A path that would be a script, if it were ever more than text.
const SCRIPT: &str = "/<script>document.title='run'</script>";

#[test]
fn a_browser_shows_what_is_live() {
    let namespace = Namespace::new().unwrap();
    namespace.ip(&format!("address add {ADDRESS}/32 dev lo")).unwrap();
    namespace.inside(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(show());
    });
}

async fn show() {
    let role = Ingress::start().await;
    let serves = backend();
    let nobody = SocketAddr::new(serves.ip(), 9);
    role.service("web", &[serves, nobody]).await;
    let tls = json!({"tls": [{"hosts": ["shop.example"], "secretName": "missing"}]});
    role.ingress("shop", "shop.example", &[("/", "web"), (SCRIPT, "web")], tls).await;
    role.ingress("plain", "plain.example", &[("/", "web")], json!({})).await;
    let is_live = || {
        ensure!(ask(role.http, "plain.example", "/").starts_with("HTTP/1.1 200"), "there is no rule");
        Ok(())
    };
    eventually("the Ingress is live", is_live).unwrap();

    let mut tab = Tab::open().await;
    tab.go(&format!("http://{}/status", role.admin)).await;
    let has = |section: &str, text: &str| {
        format!("document.querySelector('#{section} tbody').innerText.includes({})", json!(text))
    };
    tab.shows("document.getElementById('state').textContent === 'Serves 2 hosts, 1 problem'").await;
    tab.shows(&has("routes", "plain.example")).await;
    tab.shows(&has("routes", "default/web:web")).await;
    tab.shows(&has("certificates", "the default certificate")).await;
    tab.shows(&has("problems", "BadSecret")).await;
    tab.shows(&has("routes", SCRIPT)).await;
    assert_eq!(tab.value("document.title").await, "Weir ingress", "text stays text");
    assert_eq!(tab.value("document.scripts.length").await, 1);

    // A request at a time, until where nobody listens was tried often enough.
    let ejects = || {
        ask(role.http, "plain.example", "/");
        ensure!(get(role.admin, "/status.json").contains("\"ejectedMs\":"), "no status");
        ensure!(
            !get(role.admin, "/metrics").contains("weir_ingress_upstream_ejections_total 0"),
            "none is ejected"
        );
        Ok(())
    };
    eventually("an endpoint is ejected", ejects).unwrap();
    let load = Load::start(role.http);
    tab.shows(&format!(
        "{} && {}",
        has("endpoints", &nobody.to_string()),
        has("endpoints", "ejected for another")
    ))
    .await;
    tab.shows("Number.parseFloat(document.getElementById('rate-2xx').textContent) > 0").await;
    tab.shows("Number.parseFloat(document.getElementById('rate-all').textContent.replaceAll(',', '')) > 0")
        .await;
    drop(load);
    let admin = role.admin.to_string();
    let said = role.weir(&["explain", "http", "GET", "http://plain.example/", "--admin", &admin]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(
        said.contains("one of the endpoints of Service default/web:web by HTTP/1.1, ewma of 2"),
        "{said}"
    );

    // The filter is on everything, and the page says so.
    let filter = "const it = document.getElementById('filter'); it.value = 'SHOP'; it.dispatchEvent(new Event('input')); true";
    assert_eq!(tab.value(filter).await, true);
    tab.shows(&format!("!({})", has("routes", "plain.example"))).await;
    tab.shows("document.getElementById('state').textContent === 'Shows 2 routes with “SHOP”'").await;

    // Both schemes are legible: text and ground change places.
    let mut grounds = Vec::new();
    for scheme in ["light", "dark"] {
        let feature = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        tab.command("Emulation.setEmulatedMedia", json!({ "features": feature })).await;
        grounds.push(tab.value("getComputedStyle(document.body).backgroundColor").await);
    }
    assert_eq!(grounds, ["rgb(250, 250, 248)", "rgb(20, 23, 22)"]);
    let named = "[...document.querySelectorAll('table')].every(it => it.tHead && document.getElementById(it.getAttribute('aria-labelledby')))";
    assert_eq!(tab.value(named).await, true, "tables have heads and names");
    assert_eq!(tab.errors, [""; 0], "the console is silent");

    drop(role);
    tab.shows("document.getElementById('state').textContent.startsWith('No answer')").await;
    tab.close().await;
}

/// Answers every request with 200, until the process ends.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind((ADDRESS, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                    head.push(byte[0]);
                }
                let _ =
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            });
        }
    });
    address
}

/// One request after the other, until dropped.
struct Load {
    stop: std::sync::mpsc::Sender<()>,
}

impl Load {
    fn start(http: SocketAddr) -> Self {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        // Threads are in the namespace of who starts them.
        thread::spawn(move || {
            use std::sync::mpsc::RecvTimeoutError::Timeout;
            let pause = std::time::Duration::from_millis(5);
            while stopped.recv_timeout(pause) == Err(Timeout) {
                ask(http, "plain.example", "/");
            }
        });
        Self { stop }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.stop.send(());
    }
}
