//! A real browser, driven by the few commands of its developer tools' protocol that a test of one page takes: bindings of
//! the whole protocol would be the largest dependency of the workspace.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    time::{Duration, sleep, timeout},
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};
use weir_tests::eventually;

/// Longer than anything takes on a busy machine: what takes longer hangs.
const HANGS: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A tab, gone with its browser when dropped.
pub(crate) struct Tab {
    browser: Child,
    socket: WebSocketStream<TcpStream>,
    session: String,
    commands: u64,
    /// What the console says that is no mere message.
    pub(crate) errors: Vec<String>,
    _profile: TempDir,
}

impl Tab {
    /// Starts a browser that knows nothing and asks nobody, with one empty tab.
    pub(crate) async fn open() -> Self {
        let profile = TempDir::new().unwrap();
        let browser = Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .arg("--disable-dev-shm-usage")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .args(["--remote-debugging-port=0", "about:blank"])
            .stderr(Stdio::null())
            .spawn()
            .expect("chromium is there: cargo xtask setup, or install the package chromium");
        let (port, path) = eventually("the browser listens", || listens(profile.path())).unwrap();
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (socket, _) = client_async(format!("ws://127.0.0.1:{port}{path}"), stream).await.unwrap();
        let (session, errors) = (String::new(), Vec::new());
        let mut tab = Self { browser, socket, session, commands: 0, errors, _profile: profile };
        let target = tab.command("Target.createTarget", json!({"url": "about:blank"})).await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = tab.command("Target.attachToTarget", attach).await;
        attached["sessionId"].as_str().unwrap().clone_into(&mut tab.session);
        for domain in ["Page", "Runtime", "Log"] {
            tab.command(&format!("{domain}.enable"), json!({})).await;
        }
        tab
    }

    /// Ends the browser as it wants to be ended: then it waits for its own processes.
    pub(crate) async fn close(mut self) {
        self.session.clear();
        self.command("Browser.close", json!({})).await;
        let ended = timeout(HANGS, async {
            while self.browser.try_wait().unwrap().is_none() {
                sleep(LOOK_AGAIN).await;
            }
        });
        ended.await.expect("the browser ends");
    }

    pub(crate) async fn go(&mut self, url: &str) {
        self.command("Page.navigate", json!({ "url": url })).await;
    }

    /// The value of an expression in the page.
    pub(crate) async fn value(&mut self, expression: &str) -> Value {
        let words = json!({"expression": expression, "returnByValue": true});
        let result = self.command("Runtime.evaluate", words).await;
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// Waits until an expression is true. It may speak of what is not there yet.
    pub(crate) async fn shows(&mut self, expression: &str) {
        let tried = format!("(() => {{ try {{ return {expression}; }} catch {{ return false; }} }})()");
        let showing = async {
            while self.value(&tried).await != true {
                sleep(LOOK_AGAIN).await;
            }
        };
        if timeout(HANGS, showing).await.is_err() {
            let page = self.value("document.body.innerText").await;
            panic!(
                "{expression} does not come true; the console says {:?}; the page says\n{page}",
                self.errors
            );
        }
    }

    pub(crate) async fn command(&mut self, method: &str, params: Value) -> Value {
        self.commands += 1;
        let id = self.commands;
        let mut command = json!({"id": id, "method": method, "params": params});
        if !self.session.is_empty() {
            command["sessionId"] = json!(self.session);
        }
        self.socket.send(Message::text(command.to_string())).await.unwrap();
        let answered = async {
            loop {
                let message = self.socket.next().await.expect("the browser lives").unwrap();
                let Message::Text(text) = message else { continue };
                let said: Value = serde_json::from_str(&text).unwrap();
                if said["id"] == id {
                    assert!(said["error"].is_null(), "{method}: {said}");
                    break said["result"].clone();
                }
                self.errors.extend(complaint(&said));
            }
        };
        timeout(HANGS, answered).await.unwrap_or_else(|_| panic!("{method} has no answer"))
    }
}

impl Drop for Tab {
    fn drop(&mut self) {
        let _ = self.browser.kill();
        let _ = self.browser.wait();
    }
}

/// Where the browser says that it is driven: a port and a path.
fn listens(profile: &Path) -> anyhow::Result<(u16, String)> {
    let text = fs::read_to_string(profile.join("DevToolsActivePort"))?;
    let (port, path) = text.split_once('\n').context("it is being written")?;
    ensure!(path.starts_with("/devtools/"), "it is being written");
    Ok((port.parse()?, path.trim().to_owned()))
}

/// What is wrong, if an event says so.
fn complaint(event: &Value) -> Option<String> {
    let params = &event["params"];
    let is_one = match event["method"].as_str()? {
        "Runtime.exceptionThrown" => true,
        "Runtime.consoleAPICalled" => matches!(params["type"].as_str(), Some("error" | "warning" | "assert")),
        "Log.entryAdded" => matches!(params["entry"]["level"].as_str(), Some("error" | "warning")),
        _ => false,
    };
    is_one.then(|| params.to_string())
}
