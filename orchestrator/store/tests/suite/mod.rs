//! What every engine must do, written against the trait alone.
//!
//! `suite` runs each case on a store of its own. A case may assume an empty store, but not what its first revision is.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt, join_all};
use weir_store::{
    Batch, Change, Compare, Entry, Error, Event, Operation, Range, Revision, Store, Txn, TxnOutcome, Watch,
};

/// Long enough for any engine on a busy machine; a watch that stays silent for this long is broken.
const PATIENCE: Duration = Duration::from_secs(20);

type Shared = Arc<dyn Store>;
type Case = fn(Shared) -> BoxFuture<'static, ()>;

/// Runs every case; `make` answers a fresh store and whatever must live as long as it.
pub(crate) async fn suite<G, F: Future<Output = (Shared, G)>>(make: impl Fn() -> F) {
    let cases: &[(&str, Case)] = &[
        ("create, read, update, delete", |store| crud(store).boxed()),
        ("a compare that does not hold writes nothing", |store| mismatch(store).boxed()),
        ("a transaction is one revision", |store| one_revision(store).boxed()),
        ("a transaction without effect moves nothing", |store| no_effect(store).boxed()),
        ("a key is written at most once", |store| duplicate(store).boxed()),
        ("ranges come in pages and in key order", |store| pages(store).boxed()),
        ("a prefix is not a directory", |store| prefixes(store).boxed()),
        ("one of many racing creates wins", |store| race(store).boxed()),
        ("counters lose no increment", |store| counters(store).boxed()),
        ("a watch replays from a revision, then follows", |store| watch_replays(store).boxed()),
        ("a watch sees its prefix only, and progress", |store| watch_prefix(store).boxed()),
        ("a transaction is not split over batches", |store| watch_whole(store).boxed()),
        ("a watch under load has every event in order", |store| watch_load(store).boxed()),
        ("a watch may start in the future", |store| watch_future(store).boxed()),
        ("a compacted past is an error", |store| compaction(store).boxed()),
        ("a write is in the watch once it is acknowledged", |store| own_write(store).boxed()),
    ];
    for (name, case) in cases {
        println!("case: {name}");
        let (store, _guard) = make().await;
        case(store).await;
    }
}

async fn commit(store: &Shared, txn: Txn) -> Revision {
    match store.txn(txn).await.expect("the transaction runs") {
        TxnOutcome::Committed { revision } => revision,
        TxnOutcome::Mismatch { current } => panic!("unexpected mismatch: {current:?}"),
    }
}

async fn put(store: &Shared, key: &'static str, value: &'static str) -> Revision {
    commit(store, Txn::default().put(key, value)).await
}

async fn get(store: &Shared, key: &'static str) -> Option<Entry> {
    store.get(Bytes::from(key)).await.expect("the read works")
}

async fn keys(store: &Shared, range: Range) -> Vec<String> {
    let page = store.range(range).await.expect("the read works");
    page.entries.iter().map(|entry| String::from_utf8_lossy(&entry.key).into_owned()).collect()
}

/// Reads batches until `count` events have come.
async fn take(watch: &mut Watch, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < count {
        events.extend(next(watch).await.expect("the watch goes on").events);
    }
    assert_eq!(events.len(), count, "no more than was asked for: {events:?}");
    events
}

async fn next(watch: &mut Watch) -> Result<Batch, Error> {
    tokio::time::timeout(PATIENCE, watch.next())
        .await
        .expect("the watch answers")
        .expect("the watch did not end")
}

fn summary(events: &[Event]) -> Vec<(u64, String, Option<String>)> {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let value = |event: &Event| match &event.change {
        Change::Put(entry) => Some(text(&entry.value)),
        Change::Delete { .. } => None,
    };
    events.iter().map(|event| (event.revision.0, text(event.key()), value(event))).collect()
}

async fn crud(store: Shared) {
    let start = store.head().await.expect("head");
    let created = commit(&store, Txn::create("/a", "one")).await;
    assert!(created > start);
    let entry = get(&store, "/a").await.expect("it exists");
    assert_eq!(
        entry,
        Entry {
            key: "/a".into(),
            value: "one".into(),
            create_revision: created,
            mod_revision: created,
            version: 1
        }
    );

    let updated = commit(&store, Txn::update("/a", created, "two")).await;
    assert_eq!(updated, Revision(created.0 + 1));
    let entry = get(&store, "/a").await.expect("it exists");
    assert_eq!((entry.create_revision, entry.mod_revision, entry.version), (created, updated, 2));
    assert_eq!(entry.value, "two");

    commit(&store, Txn::delete("/a", updated)).await;
    assert_eq!(get(&store, "/a").await, None);

    let again = commit(&store, Txn::create("/a", "three")).await;
    let entry = get(&store, "/a").await.expect("it exists");
    assert_eq!((entry.create_revision, entry.version), (again, 1), "a key made again is a new key");
    assert_eq!(store.head().await.expect("head"), again);
}

async fn mismatch(store: Shared) {
    let first = put(&store, "/a", "one").await;
    for txn in [
        Txn::create("/a", "again"),
        Txn::update("/a", Revision(first.0 - 1), "stale"),
        Txn::delete("/a", Revision(first.0 + 1)),
        Txn::default().put("/b", "b").expect("/a", Revision::ABSENT),
    ] {
        let TxnOutcome::Mismatch { current } = store.txn(txn).await.expect("it runs") else {
            panic!("it must not hold")
        };
        assert_eq!(current, vec![get(&store, "/a").await]);
    }
    let absent = store.txn(Txn::update("/b", first, "b")).await.expect("it runs");
    assert_eq!(absent, TxnOutcome::Mismatch { current: vec![None] });
    assert_eq!(get(&store, "/b").await, None);
    assert_eq!(store.head().await.expect("head"), first, "nothing was written");
}

async fn one_revision(store: Shared) {
    let old = put(&store, "/old", "x").await;
    let txn = Txn::default().put("/a", "1").put("/b", "2").delete_if("/old", old);
    let revision = commit(&store, txn).await;
    assert_eq!(revision, Revision(old.0 + 1));
    for key in ["/a", "/b"] {
        assert_eq!(get(&store, key).await.expect("it exists").mod_revision, revision);
    }
    assert_eq!(get(&store, "/old").await, None);
}

async fn no_effect(store: Shared) {
    let head = put(&store, "/a", "1").await;
    let gone = Txn { operations: vec![Operation::Delete { key: "/none".into() }], ..Txn::default() };
    assert_eq!(commit(&store, gone).await, head);
    let only_compare =
        Txn { compares: vec![Compare { key: "/a".into(), mod_revision: head }], ..Txn::default() };
    assert_eq!(commit(&store, only_compare).await, head);
}

async fn duplicate(store: Shared) {
    let result = store.txn(Txn::default().put("/a", "1").put("/a", "2")).await;
    assert!(matches!(result, Err(Error::DuplicateKey { .. })), "{result:?}");
    assert_eq!(get(&store, "/a").await, None);
}

async fn pages(store: Shared) {
    for key in ["/p/c", "/p/a", "/p/e", "/p/b", "/p/d"] {
        put(&store, key, key).await;
    }
    let mut range = Range { prefix: "/p/".into(), after: None, limit: 2 };
    let mut seen = Vec::new();
    loop {
        let page = store.range(range.clone()).await.expect("the read works");
        assert!(page.entries.len() <= 2);
        assert_eq!(page.revision, store.head().await.expect("head"));
        range.after = page.entries.last().map(|entry| entry.key.clone());
        seen.extend(page.entries.iter().map(|entry| String::from_utf8_lossy(&entry.key).into_owned()));
        if !page.more {
            break;
        }
    }
    assert_eq!(seen, ["/p/a", "/p/b", "/p/c", "/p/d", "/p/e"]);

    let all = store.range(Range::prefix("/p/")).await.expect("the read works");
    assert_eq!((all.entries.len(), all.more), (5, false));
    let exact = store.range(Range { limit: 5, ..Range::prefix("/p/") }).await.expect("the read works");
    assert!(!exact.more, "a page that holds the rest is the last");
    let none = store.range(Range::prefix("/q/")).await.expect("the read works");
    assert_eq!((none.entries.len(), none.more), (0, false));
}

async fn prefixes(store: Shared) {
    for key in ["/pods/a", "/pods/ab", "/podsx", "/pod"] {
        put(&store, key, "").await;
    }
    assert_eq!(keys(&store, Range::prefix("/pods/")).await, ["/pods/a", "/pods/ab"]);
    assert_eq!(keys(&store, Range::prefix("/pods")).await, ["/pods/a", "/pods/ab", "/podsx"]);
    let after = Range { prefix: "/pods/".into(), after: Some("/pods/a".into()), limit: 0 };
    assert_eq!(keys(&store, after).await, ["/pods/ab"], "after a key comes the key that it begins");
}

async fn race(store: Shared) {
    let attempts = (0..32).map(|number| {
        let store = Arc::clone(&store);
        async move { store.txn(Txn::create("/name", format!("{number}"))).await.expect("it runs") }
    });
    let outcomes = join_all(attempts).await;
    let winners: Vec<_> = outcomes.iter().filter(|o| matches!(o, TxnOutcome::Committed { .. })).collect();
    assert_eq!(winners.len(), 1);
}

async fn counters(store: Shared) {
    put(&store, "/count", "0").await;
    let workers = (0..8).map(|_| {
        let store = Arc::clone(&store);
        async move {
            for _ in 0..10 {
                loop {
                    let entry = store.get("/count".into()).await.expect("get").expect("it exists");
                    let count: u32 = String::from_utf8_lossy(&entry.value).parse().expect("a number");
                    let txn = Txn::update("/count", entry.mod_revision, (count + 1).to_string());
                    if matches!(store.txn(txn).await.expect("it runs"), TxnOutcome::Committed { .. }) {
                        break;
                    }
                }
            }
        }
    });
    join_all(workers).await;
    assert_eq!(get(&store, "/count").await.expect("it exists").value, "80");
}

async fn watch_replays(store: Shared) {
    let start = store.head().await.expect("head");
    let one = put(&store, "/a", "1").await;
    let two = put(&store, "/a", "2").await;
    let mut from_start = store.watch("/".into(), start).await.expect("the watch starts");
    let mut from_one = store.watch("/".into(), one).await.expect("the watch starts");
    let three = commit(&store, Txn::delete("/a", two)).await;

    let a = || "/a".to_owned();
    let tail = [(two.0, a(), Some("2".to_owned())), (three.0, a(), None)];
    assert_eq!(summary(&take(&mut from_one, 2).await), tail);
    let events = take(&mut from_start, 3).await;
    assert_eq!(summary(&events)[1..], tail);
    let Change::Put(first) = &events[0].change else { panic!("a put") };
    assert_eq!((first.create_revision, first.mod_revision, first.version), (one, one, 1));
}

async fn watch_prefix(store: Shared) {
    let start = store.head().await.expect("head");
    let mut watch = store.watch("/pods/".into(), start).await.expect("the watch starts");
    put(&store, "/podsx", "no").await;
    put(&store, "/pods/a", "yes").await;
    let last = put(&store, "/nodes/a", "no").await;
    let mut seen = Vec::new();
    loop {
        let batch = next(&mut watch).await.expect("the watch goes on");
        seen.extend(batch.events);
        if batch.revision >= last {
            break;
        }
    }
    assert_eq!(seen.iter().map(|event| event.key().clone()).collect::<Vec<_>>(), ["/pods/a"]);
}

async fn watch_whole(store: Shared) {
    let start = store.head().await.expect("head");
    for _ in 0..20 {
        let txn = (0..100).fold(Txn::default(), |txn, number| txn.put(format!("/k/{number}"), "v"));
        commit(&store, txn).await;
    }
    let mut watch = store.watch("/k/".into(), start).await.expect("the watch starts");
    let mut count = 0;
    while count < 2000 {
        let batch = next(&mut watch).await.expect("the watch goes on");
        let mut sizes = BTreeMap::<Revision, usize>::new();
        for event in &batch.events {
            *sizes.entry(event.revision).or_default() += 1;
        }
        assert!(sizes.values().all(|size| *size == 100), "{sizes:?}");
        assert_eq!(sizes.keys().next_back(), Some(&batch.revision));
        count += batch.events.len();
    }
}

async fn watch_load(store: Shared) {
    const WRITERS: usize = 8;
    const WRITES: usize = 50;
    let start = store.head().await.expect("head");
    let mut watch = store.watch("/load/".into(), start).await.expect("the watch starts");
    let writers = (0..WRITERS).map(|writer| {
        let store = Arc::clone(&store);
        async move {
            for number in 0..WRITES {
                commit(&store, Txn::default().put(format!("/load/{writer}"), format!("{number}"))).await;
            }
        }
    });
    let (events, _) = futures::join!(take(&mut watch, WRITERS * WRITES), join_all(writers));

    assert!(events.is_sorted_by(|a, b| a.revision < b.revision), "revision order, one event each");
    let mut last = BTreeMap::new();
    for (_, key, value) in summary(&events) {
        let number: usize = value.expect("a put").parse().expect("a number");
        let expected = last.insert(key, number).map_or(0, |previous| previous + 1);
        assert_eq!(number, expected, "each key's values come in order, none is missing");
    }
}

async fn watch_future(store: Shared) {
    let head = store.head().await.expect("head");
    let mut watch = store.watch("/".into(), Revision(head.0 + 2)).await.expect("the watch starts");
    for value in ["1", "2", "3"] {
        put(&store, "/a", value).await;
    }
    assert_eq!(summary(&take(&mut watch, 1).await), [(head.0 + 3, "/a".to_owned(), Some("3".to_owned()))]);
}

async fn compaction(store: Shared) {
    let start = store.head().await.expect("head");
    let one = put(&store, "/a", "1").await;
    let two = put(&store, "/a", "2").await;
    put(&store, "/a", "3").await;
    store.compact(two).await.expect("it compacts");

    for early in [start, one] {
        let watch = store.watch("/".into(), early).await;
        // An engine behind a network may say so in the stream instead of at once.
        let error = match watch {
            Err(error) => error,
            Ok(mut watch) => next(&mut watch).await.expect_err("the past is gone"),
        };
        assert!(matches!(error, Error::Compacted { .. }), "{error}");
    }
    let mut watch = store.watch("/".into(), two).await.expect("the boundary itself is kept");
    assert_eq!(summary(&take(&mut watch, 1).await)[0].2.as_deref(), Some("3"));
    assert_eq!(get(&store, "/a").await.expect("it exists").value, "3", "compaction loses no value");

    assert!(matches!(store.compact(one).await, Err(Error::Compacted { .. })));
    assert!(matches!(store.compact(Revision(two.0 + 1000)).await, Err(Error::Future { .. })));
}

async fn own_write(store: Shared) {
    for number in 0..20 {
        let before = store.head().await.expect("head");
        let revision = commit(&store, Txn::default().put("/own", format!("{number}"))).await;
        assert!(store.head().await.expect("head") >= revision);
        let mut watch = store.watch("/own".into(), before).await.expect("the watch starts");
        assert_eq!(take(&mut watch, 1).await[0].revision, revision);
    }
}
