//! Endpoints that follow a script byte by byte.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::cluster::Cluster;

/// What an endpoint does on a connection. Behind its last act it keeps the connection open.
#[derive(Clone, Copy)]
pub(super) enum Act {
    /// Reads until what it has read ends so.
    Until(&'static str),
    Say(&'static str),
    Close,
}
pub(super) use Act::{Close, Say, Until};

/// An endpoint that follows one script per connection, in the order they come, and notes what each was sent.
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Endpoint {
    pub(super) async fn follow(scripts: &'static [&'static [Act]]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&heard);
        tokio::spawn(async move {
            for (number, script) in scripts.iter().enumerate() {
                let (stream, _) = listener.accept().await.unwrap();
                noted.lock().unwrap().push(String::new());
                tokio::spawn(play(stream, script, number, Arc::clone(&noted)));
            }
            // One connection more than there are scripts for fails the test that makes it.
            let _ = listener.accept().await;
        });
        Self { address, heard }
    }

    pub(super) fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    /// A proxy in front of it.
    pub(super) fn cluster(&self) -> Cluster {
        let cluster = Cluster::start();
        cluster.service("a", false, &[self.address]);
        cluster.route("x", "/", "a");
        cluster
    }
}

async fn play(mut stream: TcpStream, script: &[Act], number: usize, noted: Arc<Mutex<Vec<String>>>) {
    let mut heard = String::new();
    for act in script {
        match act {
            Until(end) => {
                let from = heard.len();
                while !heard[from..].ends_with(end) {
                    let Ok(byte) = stream.read_u8().await else { return };
                    heard.push(char::from(byte));
                    noted.lock().unwrap()[number].push(char::from(byte));
                }
            }
            Say(text) => stream.write_all(text.as_bytes()).await.unwrap(),
            Close => return,
        }
    }
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    noted.lock().unwrap()[number].push_str(&String::from_utf8_lossy(&rest));
}

/// A head.
pub(super) const END: Act = Until("\r\n\r\n");
/// A short answer.
pub(super) const OK: Act = Say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
