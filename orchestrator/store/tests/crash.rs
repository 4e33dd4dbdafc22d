//! `kill -9` in the middle of a load: every acknowledged write is there afterwards, and revisions go on.
//!
//! The test runs itself as the writer: a child process with `WEIR_STORE_CRASH_DIR` set writes until it is killed, and
//! prints each key after its acknowledgement.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use futures::future::join_all;
use weir_store::{Embedded, Metrics, Options, Revision, Store, Txn, TxnOutcome};

const DIRECTORY: &str = "WEIR_STORE_CRASH_DIR";
const ACKNOWLEDGED: usize = 400;
const ROUNDS: usize = 3;

fn open(directory: &Path) -> Embedded {
    Embedded::open(&directory.join("store.redb"), &Options::default(), Metrics::default()).expect("it opens")
}

#[tokio::test]
async fn acknowledged_writes_survive_kill_9() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        write_until_killed(&PathBuf::from(directory)).await;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let mut acknowledged = Vec::new();
    for round in 0..ROUNDS {
        acknowledged.extend(load_and_kill(directory.path(), round));
        let store = open(directory.path());
        let head = store.head().await.expect("head");
        for (key, revision) in &acknowledged {
            let entry = store.get(key.clone().into()).await.expect("it reads");
            let entry = entry.unwrap_or_else(|| panic!("{key} was acknowledged and is gone"));
            assert_eq!(entry.mod_revision, *revision);
            assert!(*revision <= head);
        }
        let outcome = store.txn(Txn::default().put("/probe", "")).await.expect("it still writes");
        assert_eq!(outcome, TxnOutcome::Committed { revision: Revision(head.0 + 1) });
    }
}

/// Starts the writer, kills it once it has acknowledged enough, and answers what it had acknowledged.
fn load_and_kill(directory: &Path, round: usize) -> Vec<(String, Revision)> {
    let mut child = Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "acknowledged_writes_survive_kill_9", "--nocapture"])
        .env(DIRECTORY, directory)
        .env("WEIR_STORE_CRASH_ROUND", round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the writer starts");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut acknowledged = Vec::new();
    for line in lines {
        let Ok(line) = line else { break };
        // The kill may cut the last line short; only a line with its end mark counts.
        if let Some((key, revision)) = line.strip_suffix(" ok").and_then(|line| line.split_once(' ')) {
            acknowledged.push((key.to_owned(), revision.parse().expect("a revision")));
        }
        if acknowledged.len() == ACKNOWLEDGED {
            child.kill().expect("SIGKILL is sent");
        }
    }
    child.wait().expect("it is gone");
    assert!(acknowledged.len() >= ACKNOWLEDGED, "the writer died early");
    acknowledged
}

async fn write_until_killed(directory: &Path) {
    let round = std::env::var("WEIR_STORE_CRASH_ROUND").expect("set by the test");
    let store = open(directory);
    let writers = (0..16).map(|writer| {
        let (store, round) = (&store, &round);
        async move {
            // Far more than the test waits for; the bound is for the case that nobody kills us.
            for number in 0..10_000 {
                let key = format!("/crash/{round}/{writer}/{number}");
                let outcome = store.txn(Txn::create(key.clone(), vec![b'x'; 512])).await.expect("it runs");
                let TxnOutcome::Committed { revision } = outcome else { panic!("{key} was there") };
                println!("{key} {revision} ok");
            }
        }
    });
    join_all(writers).await;
    panic!("nobody killed the writer");
}
