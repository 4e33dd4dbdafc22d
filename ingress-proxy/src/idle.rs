//! Connections to an endpoint that wait for their next request.
//!
//! They belong to their endpoint and go with it: when it leaves its Service, what waits is closed, and what is in use is
//! closed when its request ends.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::stream::Stream;

/// Connections that wait at one endpoint. Fewer than there are requests at once would make a busy proxy connect anew for
/// each of them.
const MAX_IDLE: usize = 1_024;

/// One endpoint's waiting connections, the ones used last in front.
#[derive(Debug)]
pub(crate) struct Idle {
    longest: Duration,
    connections: Mutex<VecDeque<(Stream, Instant)>>,
}

impl Idle {
    /// For connections that may wait for so long.
    pub(crate) fn new(longest: Duration) -> Self {
        Self { longest, connections: Mutex::default() }
    }

    /// A connection that the endpoint has not closed, as far as the kernel has told. Cost: a lock that is free, no syscall.
    pub(crate) fn take(&self, now: Instant) -> Option<Stream> {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((stream, since)) = connections.pop_front() {
            if now.duration_since(since) < self.longest && stream.is_silent() {
                return Some(stream);
            }
        }
        None
    }

    /// Keeps a connection; beyond the bound the one that waited longest is closed.
    pub(crate) fn put(&self, stream: Stream, now: Instant) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if connections.len() == MAX_IDLE {
            connections.pop_back();
        }
        connections.push_front((stream, now));
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Closes those that waited too long, or that the endpoint has closed. Returns how many are left.
    pub(crate) fn sweep(&self) -> usize {
        let now = Instant::now();
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|(stream, since)| now.duration_since(*since) < self.longest && stream.is_silent());
        connections.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    async fn pair(listener: &TcpListener) -> (Stream, TcpStream) {
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (Stream::Plain(near.unwrap()), far.unwrap().0)
    }

    fn tcp(stream: &Stream) -> &TcpStream {
        match stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(_) => unreachable!("none is made here"),
        }
    }

    #[tokio::test]
    async fn the_one_used_last_is_taken_first_and_each_only_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let idle = Idle::new(Duration::from_hours(1));
        let (first, second) = (pair(&listener).await, pair(&listener).await);
        let port = |stream: &Stream| tcp(stream).local_addr().unwrap().port();
        let ports = [port(&second.0), port(&first.0)];
        let now = Instant::now();
        idle.put(first.0, now);
        idle.put(second.0, now);
        assert_eq!([(); 2].map(|()| port(&idle.take(now).unwrap())), ports);
        assert!(idle.take(now).is_none());
    }

    #[tokio::test]
    async fn closed_and_talking_and_old_ones_are_not_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let idle = Idle::new(Duration::from_mins(1));
        let (closed, talking, old) = (pair(&listener).await, pair(&listener).await, pair(&listener).await);
        drop(closed.1);
        let mut far = talking.1;
        far.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
        for stream in [&closed.0, &talking.0] {
            tcp(stream).readable().await.unwrap();
        }
        let now = Instant::now();
        idle.put(old.0, now);
        assert!(idle.take(now + Duration::from_mins(1)).is_none());
        idle.put(closed.0, now);
        idle.put(talking.0, now);
        assert!(idle.take(now).is_none());
    }

    #[tokio::test]
    async fn beyond_the_bound_the_oldest_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let idle = Idle::new(Duration::from_hours(1));
        let mut far = Vec::new();
        let now = Instant::now();
        for _ in 0..MAX_IDLE + 2 {
            let (near, other) = pair(&listener).await;
            idle.put(near, now);
            far.push(other);
        }
        for stream in &far[..2] {
            stream.readable().await.unwrap();
        }
        assert_eq!(idle.connections.lock().unwrap().len(), MAX_IDLE);
    }
}
