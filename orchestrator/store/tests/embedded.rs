//! The embedded engine: the suite, and what only a file can do.

mod suite;

use std::path::Path;
use std::sync::Arc;

use futures::StreamExt;
use weir_store::{Embedded, Error, Metrics, Options, Range, Revision, Store, Txn, TxnOutcome};

fn open(directory: &Path) -> Result<Embedded, Error> {
    Embedded::open(&directory.join("store.redb"), &Options::default(), Metrics::default())
}

async fn put(store: &Embedded, key: String) -> Revision {
    match store.txn(Txn::default().put(key, "value")).await.expect("it runs") {
        TxnOutcome::Committed { revision } => revision,
        TxnOutcome::Mismatch { .. } => unreachable!("nothing is compared"),
    }
}

#[tokio::test]
async fn keeps_every_promise_of_the_trait() {
    suite::suite(|| async {
        let directory = tempfile::tempdir().expect("a directory");
        let store: Arc<dyn Store> = Arc::new(open(directory.path()).expect("it opens"));
        (store, directory)
    })
    .await;
}

#[tokio::test]
async fn a_restart_keeps_entries_and_goes_on_counting() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path()).expect("it opens");
    let made = put(&store, "/a".into()).await;
    let TxnOutcome::Committed { revision: deleted } =
        store.txn(Txn::delete("/a", made)).await.expect("it runs")
    else {
        panic!("the key is there")
    };
    drop(store);

    let store = open(directory.path()).expect("it opens again");
    assert_eq!(
        store.head().await.expect("head"),
        deleted,
        "a deletion leaves no entry, but it moved the head"
    );
    let early = store.watch("/".into(), made).await.err();
    assert!(
        matches!(early, Some(Error::Compacted { oldest, .. }) if oldest == deleted),
        "the past before a restart is gone, and said to be: {early:?}"
    );
    let mut watch = store.watch("/".into(), deleted).await.expect("who had seen everything goes on");
    let again = put(&store, "/a".into()).await;
    assert_eq!(again, Revision(deleted.0 + 1));
    let batch = watch.next().await.expect("goes on").expect("goes on");
    assert_eq!((batch.revision, batch.events.len()), (again, 1));
}

#[tokio::test]
async fn a_watcher_that_falls_behind_is_dropped_and_never_skips() {
    let directory = tempfile::tempdir().expect("a directory");
    let metrics = Metrics::default();
    let options = Options { history_events: 10, ..Options::default() };
    let store =
        Embedded::open(&directory.path().join("store.redb"), &options, metrics.clone()).expect("opens");
    let head = store.head().await.expect("head");
    let mut slow = store.watch("/".into(), head).await.expect("starts");
    let mut fast = store.watch("/".into(), head).await.expect("starts");
    for number in 0..30 {
        let revision = put(&store, format!("/{number}")).await;
        let batch = fast.next().await.expect("goes on").expect("keeps up");
        assert_eq!(batch.revision, revision);
    }
    assert_eq!(metrics.history_events.get(), 10);
    assert_eq!(metrics.watchers.get(), 2);
    assert!(matches!(slow.next().await, Some(Err(Error::Compacted { .. }))));
    assert!(slow.next().await.is_none());
    assert_eq!((metrics.watchers.get(), metrics.watchers_dropped.get()), (1, 1));
}

#[tokio::test]
async fn concurrent_writes_share_commits() {
    let directory = tempfile::tempdir().expect("a directory");
    let metrics = Metrics::default();
    let store = Embedded::open(&directory.path().join("store.redb"), &Options::default(), metrics.clone())
        .expect("opens");
    futures::future::join_all((0..200).map(|number| put(&store, format!("/{number}")))).await;
    assert_eq!(metrics.committed.get(), 200);
    let mut registry = prometheus_client::registry::Registry::default();
    registry.register("batch", "", metrics.batch_size.clone());
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("it encodes");
    let commits = text.lines().find_map(|line| line.strip_prefix("batch_count ")).expect("a count");
    assert!(commits.parse::<u64>().expect("a number") < 50, "200 writes took {commits} commits");
}

#[tokio::test]
async fn watches_end_when_the_store_does() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path()).expect("it opens");
    let mut watch = store.watch("/".into(), store.head().await.expect("head")).await.expect("starts");
    drop(store);
    assert!(matches!(watch.next().await, Some(Err(Error::Closed))));
}

#[tokio::test]
async fn an_open_file_is_refused_with_its_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let _store = open(directory.path()).expect("it opens");
    let error = open(directory.path()).err().expect("it is locked");
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    assert!(error.to_string().contains("store.redb"), "{error}");
}

#[tokio::test]
async fn a_directory_that_is_not_there_or_a_file_that_is_not_ours_is_a_clear_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = open(&directory.path().join("missing")).err().expect("it cannot be made");
    assert!(missing.to_string().contains("must exist and be writable"), "{missing}");

    std::fs::write(directory.path().join("store.redb"), [7; 8192]).expect("written");
    let foreign = open(directory.path()).err().expect("it is not a store");
    assert!(matches!(foreign, Error::Open { .. }), "{foreign}");

    // Permission bits do not bind root, so what cannot be written is shown by a directory in the file's place.
    let occupied = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(occupied.path().join("store.redb")).expect("made");
    let error = open(occupied.path()).err().expect("it is not a file");
    assert!(error.to_string().contains("cannot open the store"), "{error}");
}

#[tokio::test]
async fn ranges_read_what_was_written_before_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path()).expect("it opens");
    for number in 0..50 {
        put(&store, format!("/k/{number:02}")).await;
    }
    drop(store);
    let store = open(directory.path()).expect("it opens again");
    assert_eq!(store.range(Range::prefix("/k/")).await.expect("reads").entries.len(), 50);
}
