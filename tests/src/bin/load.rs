//! `load ADDRESS:PORT HOST PATH`: a steady load until standard input ends, then what it came to.
//!
//! A process of its own, so that a test can put it into a namespace and a cgroup.

use std::{
    io::Read,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [address, host, path] = words.as_slice() else { bail!("load ADDRESS:PORT HOST PATH") };
    let address = address.parse().with_context(|| format!("{address} is no ADDRESS:PORT"))?;
    let stop = AtomicBool::new(false);
    let outcome = thread::scope(|scope| {
        scope.spawn(|| {
            // Whatever ends it, nobody waits for more.
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            stop.store(true, Ordering::Relaxed);
        });
        weir_tests::ask_steadily(address, host, path, &stop)
    });
    print!("{}", outcome.written());
    Ok(())
}
