//! An API server as a process of its own, so that it can be killed.
//!
//! The test binary runs itself: with `DIRECTORY` set, [`serve_when_asked`] is a server, and otherwise a test that passes.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use weir_apiserver::Apiserver;
use weir_tests_apiserver::{config, free_port, install_tls};

const DIRECTORY: &str = "WEIR_APISERVER_TEST_DIRECTORY";
const PORT: &str = "WEIR_APISERVER_TEST_PORT";
const READY: &str = "the apiserver is ready";

/// A running server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    directory: PathBuf,
    port: u16,
}

impl Server {
    /// Starts a server on a free port of the loopback address, and waits until it serves.
    pub(crate) fn start(directory: &Path) -> Server {
        Server::start_at(directory, free_port())
    }

    fn start_at(directory: &Path, port: u16) -> Server {
        let mut child = Command::new(std::env::current_exe().expect("a path"))
            .args(["--exact", "serve_when_asked", "--nocapture"])
            .env(DIRECTORY, directory)
            .env(PORT, port.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let ready = lines.by_ref().map_while(Result::ok).any(|line| line.contains(READY));
        assert!(ready, "the server stopped before it was ready");
        // Nobody reads the pipe from here on; the server prints nothing more.
        Server { child, directory: directory.to_owned(), port }
    }

    /// `kill -9`, and a new server on the same files and port.
    pub(crate) fn kill_and_restart(mut self) -> Server {
        self.kill();
        Server::start_at(&self.directory.clone(), self.port)
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("SIGKILL is sent");
        self.child.wait().expect("it is gone");
    }

    pub(crate) fn kubeconfig(&self, name: &str) -> PathBuf {
        self.directory.join(format!("kubeconfig/{name}.kubeconfig"))
    }

    /// A client with the identity of that kubeconfig.
    pub(crate) async fn client(&self, name: &str) -> kube::Client {
        weir_tests_apiserver::client(&self.directory, name).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be dead already, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves until it is killed, if the environment says so.
pub(crate) fn serve_when_asked() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let port = std::env::var(PORT).expect("set by the test").parse().expect("a port");
    install_tls();
    let config = config(Path::new(&directory), "node-1", port);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = runtime.expect("a runtime").block_on(async {
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            if is_ready.await.is_ok() {
                println!("\n{READY}");
            }
        });
        let server = Apiserver::new(config, &mut Registry::default()).expect("a server");
        server.run(ready, CancellationToken::new()).await
    });
    panic!("the server stopped by itself: {result:?}");
}
