//! `transfer ADDRESS:PORT MEBIBYTES`: sends bytes to a TCP echo server at a steady pace and checks each that comes back.
//!
//! A process of its own, so that a test can put it into a namespace and a cgroup.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

/// Bytes written at a time.
const CHUNK: usize = 1 << 16;
/// Pause between writes: about 60 MiB/s, so that a test has time to break something.
const PACE: Duration = Duration::from_millis(1);
/// A connection that moves nothing for so long has stalled.
const STALL: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let address: SocketAddr = words.next().context("transfer ADDRESS:PORT MEBIBYTES")?.parse()?;
    let mebibytes: usize = words.next().context("transfer ADDRESS:PORT MEBIBYTES")?.parse()?;
    let chunks = mebibytes * (1 << 20) / CHUNK;

    let mut stream = TcpStream::connect_timeout(&address, STALL).context("connecting")?;
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    let mut writer = stream.try_clone()?;
    let sent = thread::spawn(move || -> Result<()> {
        let mut bytes = Bytes::default();
        for _ in 0..chunks {
            writer.write_all(&bytes.chunk()).context("sending stalled")?;
            thread::sleep(PACE);
        }
        Ok(writer.shutdown(Shutdown::Write)?)
    });

    let mut expected = Bytes::default();
    let mut received = vec![0; CHUNK];
    for number in 0..chunks {
        stream.read_exact(&mut received).with_context(|| format!("receiving chunk {number} of {chunks}"))?;
        ensure!(received == expected.chunk(), "chunk {number} came back changed");
    }
    ensure!(stream.read(&mut received)? == 0, "more came back than was sent");
    sent.join().expect("the sender returns its errors")?;
    println!("{mebibytes} MiB came back as they were sent");
    Ok(())
}

/// The same unguessable bytes at each run (xorshift64).
struct Bytes(u64);

impl Default for Bytes {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Bytes {
    fn chunk(&mut self) -> Vec<u8> {
        let mut chunk = Vec::with_capacity(CHUNK);
        while chunk.len() < CHUNK {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.extend_from_slice(&self.0.to_le_bytes());
        }
        chunk
    }
}
