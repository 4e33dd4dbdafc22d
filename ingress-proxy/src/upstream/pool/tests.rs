//! Choices among endpoints, and what is learnt of them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::Method;
use super::*;
use crate::compile::ObjectKey;

const MS: u64 = 1_000;
const S: u64 = 1_000_000;
const EWMA: Balance = Balance { method: Method::Ewma, slow_start: None, most: None };
const ROUND_ROBIN: Balance = Balance { method: Method::RoundRobin, slow_start: None, most: None };
const LEAST_REQUEST: Balance = Balance { method: Method::LeastRequest, slow_start: None, most: None };

fn wanted(addresses: &[&str]) -> Endpoints {
    Endpoints { addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(), ..Endpoints::default() }
}

fn backend() -> BackendKey {
    BackendKey::new(ObjectKey::new("n", "a"), "")
}

/// Of endpoints `10.0.0.1:80` to `10.0.0.size:80`.
fn pool(size: usize) -> Pool {
    let pool = Pool::default();
    resize(&pool, size);
    pool
}

fn resize(pool: &Pool, size: usize) {
    let addresses: Vec<String> = (1..=size).map(|n| format!("10.0.0.{n}:80")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    assert!(pool.update(&backend(), &wanted(&addresses), &Timeouts::default()));
}

fn metrics() -> Metrics {
    Metrics::register(&mut prometheus_client::registry::Registry::default())
}

fn address(n: usize) -> SocketAddr {
    format!("10.0.0.{n}:80").parse().unwrap()
}

impl Pool {
    /// Which endpoint is chosen for a request at this time.
    fn pick(&self, balance: Balance, now_us: u64) -> Chosen {
        self.choose_at(now_us, balance, None, &[]).unwrap()
    }

    /// How often each endpoint is chosen for `requests` that are over at once, and leave no trace.
    fn shares(&self, balance: Balance, requests: usize, now_us: u64) -> BTreeMap<SocketAddr, usize> {
        let mut shares = BTreeMap::new();
        for _ in 0..requests {
            *shares.entry(self.pick(balance, now_us).address()).or_default() += 1;
        }
        shares
    }

    /// An endpoint fails so many times at once.
    fn fails(&self, endpoint: &Endpoint, times: usize, now_us: u64) {
        for _ in 0..times {
            self.note_failure(endpoint, now_us, &metrics());
        }
    }

    /// Endpoint `n` answers a request in so long.
    fn answers(&self, n: usize, took_us: u64, now_us: u64) {
        let list = self.list.load();
        list.endpoints[n - 1].latency.answered(took_us, now_us);
    }
}

#[test]
fn an_empty_pool_chooses_nothing() {
    for balance in [EWMA, ROUND_ROBIN, LEAST_REQUEST] {
        assert_eq!(pool(1).choose(balance, None, &[address(1)]).unwrap_err(), Unchosen::NoneLeft);
        for rank_by in [None, Some(1)] {
            assert_eq!(Pool::default().choose(balance, rank_by, &[]).unwrap_err(), Unchosen::NoneLeft);
        }
    }
}

#[test]
fn two_endpoints_share_evenly_when_requests_stay_in_flight() {
    for balance in [EWMA, ROUND_ROBIN, LEAST_REQUEST] {
        let pool = pool(2);
        let held: Vec<_> = (0..100).map(|_| pool.pick(balance, S)).collect();
        assert_eq!(held.iter().filter(|chosen| chosen.address() == address(1)).count(), 50);
    }
}

#[test]
fn every_endpoint_is_drawn() {
    for balance in [EWMA, ROUND_ROBIN, LEAST_REQUEST] {
        assert_eq!(pool(4).shares(balance, 200, S).len(), 4, "{balance:?}");
    }
}

#[test]
fn the_slow_one_is_chosen_when_the_others_have_more_ahead() {
    let pool = pool(2);
    pool.answers(1, 5 * MS, S);
    pool.answers(2, 48 * MS, S);
    // A tenth of the speed, a tenth of what is in flight.
    let held: Vec<_> = (0..110).map(|_| pool.pick(EWMA, S)).collect();
    assert_eq!(held.iter().filter(|chosen| chosen.address() == address(2)).count(), 10);
}

#[test]
fn the_slow_one_is_asked_again_when_its_peak_is_forgiven() {
    let pool = pool(2);
    pool.answers(1, MS, S);
    pool.answers(2, 500 * MS, S);
    assert_eq!(pool.shares(EWMA, 100, S), [(address(1), 100)].into());
    assert_eq!(pool.shares(EWMA, 100, 121 * S).len(), 2);
    assert_eq!(pool.shares(LEAST_REQUEST, 100, S).len(), 2, "it does not look at latencies");
}

#[test]
fn one_that_never_answered_is_neither_flooded_nor_left_out() {
    for took_us in [MS, 2 * S] {
        let pool = pool(2);
        pool.answers(1, took_us, S);
        let held: Vec<_> = (0..20).map(|_| pool.pick(EWMA, S)).collect();
        assert_eq!(held.iter().filter(|chosen| chosen.address() == address(2)).count(), 10, "{took_us}");
    }
}

#[test]
fn what_is_told_of_a_request_is_learnt_once() {
    let pool = pool(1);
    let chosen = pool.choose(EWMA, None, &[]).unwrap();
    chosen.answered(false);
    let learnt = chosen.latency.estimate_us(now_us());
    assert!(learnt.is_some());
    std::thread::sleep(Duration::from_millis(5));
    pool.failed(&chosen, &metrics());
    chosen.answered(false);
    assert_eq!(chosen.latency.estimate_us(now_us()), learnt);
}

#[test]
fn turns_go_round_and_over_those_that_failed() {
    let pool = pool(3);
    let turns: Vec<_> = (0..6).map(|_| pool.pick(ROUND_ROBIN, S).address()).collect();
    assert_eq!(turns, [1, 2, 3, 1, 2, 3].map(address));
    let turns: Vec<_> =
        (0..3).map(|_| pool.choose(ROUND_ROBIN, None, &[address(2)]).unwrap().address()).collect();
    assert_eq!(turns, [1, 3, 3].map(address));
    resize(&pool, 2);
    assert_eq!(pool.shares(ROUND_ROBIN, 10, S), [(address(1), 5), (address(2), 5)].into());
}

#[test]
fn failed_endpoints_are_never_chosen() {
    for balance in [EWMA, ROUND_ROBIN, LEAST_REQUEST] {
        let pool = pool(2);
        for _ in 0..20 {
            assert_eq!(pool.choose(balance, None, &[address(1)]).unwrap().address(), address(2));
        }
        assert!(pool.choose(balance, None, &[address(1), address(2)]).is_err());
        assert!(pool.has_other(&[address(1)], None) && !pool.has_other(&[address(1)], Some(address(2))));
    }
}

#[test]
fn a_key_keeps_its_endpoint_while_others_come_and_go() {
    let (seven, eight) = (pool(7), pool(8));
    let of = |pool: &Pool, key| pool.choose(EWMA, Some(key), &[]).unwrap().address();
    let moved: Vec<u64> = (0..800).filter(|key| of(&seven, *key) != of(&eight, *key)).collect();
    assert!(moved.iter().all(|key| of(&eight, *key) == address(8)));
    assert!((50..150).contains(&moved.len()), "an eighth of the keys, not {}", moved.len());
    let second = eight.choose(EWMA, Some(1), &[of(&eight, 1)]).unwrap();
    assert_ne!(second.address(), of(&eight, 1));
    let first = of(&eight, 1);
    eight.fails(&eight.choose(EWMA, Some(1), &[]).unwrap(), 3, now_us());
    assert_eq!(of(&eight, 1), second.address(), "the first is ejected");
    let ejected = eight.choose_at(now_us() + 2 * S, EWMA, Some(1), &[]).unwrap();
    assert_eq!(ejected.address(), first, "it is back");
}

#[test]
fn an_update_keeps_the_endpoints_that_stay() {
    let pool = pool(1);
    let held = pool.pick(EWMA, S);
    assert!(!pool.update(&backend(), &wanted(&["10.0.0.1:80"]), &Timeouts::default()));
    resize(&pool, 2);
    // The held one has a request in flight, so the new one is preferred.
    assert_eq!(pool.pick(EWMA, S).address(), address(2));
    drop(held);
    assert_eq!(pool.len(), 2);
}

#[test]
fn ejected_endpoints_come_last_and_back() {
    for balance in [EWMA, ROUND_ROBIN, LEAST_REQUEST] {
        let pool = pool(2);
        let first = pool.choose_at(S, balance, None, &[address(2)]).unwrap();
        pool.fails(&first, 3, S);
        assert_eq!(pool.shares(balance, 20, S), [(address(2), 20)].into());
        assert_eq!(pool.choose_at(S, balance, None, &[address(2)]).unwrap().address(), address(1), "last");
        drop(first);
        assert_eq!(pool.shares(balance, 100, 2 * S).len(), 2);
    }
}

#[test]
fn at_most_half_are_ejected() {
    let pool = pool(5);
    let list = pool.list.load_full();
    for endpoint in &list.endpoints {
        pool.fails(endpoint, 10, S);
    }
    assert_eq!(list.ejected(S), 2);
    assert_eq!(pool.shares(ROUND_ROBIN, 30, S).len(), 3);
    // Room for those that go on failing is there when others are back.
    pool.fails(&list.endpoints[4], 1, 2 * S);
    assert_eq!((list.ejected(2 * S), list.endpoints[4].ejection.is_on(2 * S)), (1, true));
    let alone = super::tests::pool(1);
    alone.fails(&alone.pick(EWMA, S), 10, S);
    assert_eq!(alone.list.load().ejected(S), 0);
}

#[test]
fn an_answer_ends_a_row_of_failures() {
    let (pool, metrics) = (pool(2), metrics());
    let asked = || pool.choose(EWMA, None, &[address(2)]).unwrap();
    let fails = || pool.failed(&asked(), &metrics);
    fails();
    fails();
    asked().answered(true);
    fails();
    fails();
    assert_eq!((pool.ejected(), metrics.ejections.get()), (0, 0));
    fails();
    assert_eq!((pool.ejected(), metrics.ejections.get()), (1, 1));
}

#[test]
fn one_that_went_is_not_ejected() {
    let pool = pool(3);
    let gone = pool.choose_at(S, EWMA, None, &[address(1), address(2)]).unwrap();
    resize(&pool, 2);
    pool.fails(&gone, 3, S);
    assert!(!gone.ejection.is_on(S));
}

#[test]
fn who_comes_later_gets_its_share_by_and_by() {
    let pool = pool(3);
    let before_us = now_us();
    resize(&pool, 4);
    let gets = |balance: Balance, slow_start, age_us| {
        let shares =
            pool.shares(Balance { slow_start: Some(slow_start), ..balance }, 8_000, before_us + age_us);
        shares.get(&address(4)).copied().unwrap_or_default()
    };
    let window = Duration::from_secs(100);
    for balance in [EWMA, ROUND_ROBIN, LEAST_REQUEST] {
        for (age_s, expected) in [(0, 200), (50, 1_000), (200, 2_000)] {
            let got = gets(balance, window, age_s * S);
            assert!(got.abs_diff(expected) < expected / 3, "{got} of 8000 after {age_s} s of {balance:?}");
        }
    }
    // What is tied to it stays so.
    let slow = Balance { slow_start: Some(window), ..EWMA };
    let of = |balance, key| pool.choose(balance, Some(key), &[]).unwrap().address();
    assert!((0..100).all(|key| of(slow, key) == of(EWMA, key)));
    // Where the others failed, it gets all.
    assert_eq!(pool.choose(slow, None, &[1, 2, 3].map(address)).unwrap().address(), address(4));
}

#[test]
fn a_full_endpoint_is_passed_over_and_full_ones_are_refused() {
    for balance in [EWMA, ROUND_ROBIN, LEAST_REQUEST] {
        for rank_by in [None, Some(1)] {
            let pool = pool(2);
            let balance = Balance { most: Some(2), ..balance };
            let mut held: Vec<_> = (0..4).map(|_| pool.choose(balance, rank_by, &[]).unwrap()).collect();
            let first = held.iter().filter(|chosen| chosen.address() == address(1)).count();
            assert_eq!(first, 2, "{balance:?} by {rank_by:?}");
            assert_eq!(pool.choose(balance, rank_by, &[]).unwrap_err(), Unchosen::Full);
            assert_eq!(pool.choose(balance, rank_by, &[1, 2].map(address)).unwrap_err(), Unchosen::NoneLeft);
            let freed = held.swap_remove(1).address();
            assert_eq!(pool.choose(balance, rank_by, &[]).unwrap().address(), freed);
            // Another rule of the same endpoints may want more of them.
            assert!(pool.choose(Balance { most: None, ..balance }, rank_by, &[]).is_ok());
        }
    }
}

#[test]
fn who_asks_at_the_same_time_gets_no_place_twice() {
    // Both have chosen it while it had one place.
    let alone = pool(1);
    let endpoint = &alone.list.load().endpoints[0];
    let first = Chosen::take(endpoint, S, Some(1));
    assert!(first.is_some() && Chosen::take(endpoint, S, Some(1)).is_none());
    drop(first);
    assert_eq!(endpoint.in_flight(), 0, "who got no place counts for nothing");

    let pool = pool(3);
    let balance = Balance { most: Some(5), ..EWMA };
    let held = std::thread::scope(|scope| {
        let ask = || (0..10).filter_map(|_| pool.choose(balance, None, &[]).ok()).collect::<Vec<_>>();
        let asking: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().flat_map(|asked| asked.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(held.len(), 15, "40 asked");
    assert!(pool.state().iter().all(|endpoint| endpoint.in_flight == 5));
}

#[test]
fn a_key_that_finds_its_endpoint_full_comes_back_to_it() {
    let pool = pool(3);
    let one = Balance { most: Some(1), ..EWMA };
    let first = pool.choose(one, Some(7), &[]).unwrap();
    let second = pool.choose(one, Some(7), &[]).unwrap();
    assert_ne!(second.address(), first.address());
    let tied = first.address();
    drop(first);
    assert_eq!(pool.choose(one, Some(7), &[]).unwrap().address(), tied);
}

#[test]
fn what_checks_took_out_gets_nothing_while_another_is_in() {
    let pool = pool(3);
    let list = pool.list.load_full();
    let is_tried = |failed: &[SocketAddr]| pool.choose(EWMA, None, failed).is_ok();
    for balance in [EWMA, ROUND_ROBIN, LEAST_REQUEST] {
        list.endpoints[0].ejection.take_out(true);
        list.endpoints[1].ejection.take_out(true);
        assert_eq!(pool.shares(balance, 30, S), [(address(3), 30)].into());
        assert!((0..20).all(|key| pool.choose(balance, Some(key), &[]).unwrap().address() == address(3)));
        assert!(!is_tried(&[address(3)]) && !pool.has_other(&[address(3)], None), "not for a retry either");
        assert!(!pool.has_other(&[], Some(address(3))));
        // One that requests ejected comes last, but before them.
        list.endpoints[2].ejection.begin(S);
        assert_eq!(pool.shares(balance, 30, S), [(address(3), 30)].into());
        list.endpoints[2].ejection.take_out(true);
        assert_eq!(
            (pool.unhealthy(), pool.shares(balance, 200, S).len()),
            (3, 3),
            "all are out: all are used"
        );
        assert!(is_tried(&[address(3)]) && pool.has_other(&[address(3)], None));
        for endpoint in &list.endpoints {
            endpoint.ejection.take_out(false);
        }
        assert_eq!((pool.unhealthy(), pool.shares(balance, 200, S).len()), (0, 3));
    }
}

#[test]
fn who_is_out_counts_in_what_may_be_ejected() {
    let pool = pool(4);
    let list = pool.list.load_full();
    list.endpoints[0].ejection.take_out(true);
    list.endpoints[1].ejection.take_out(true);
    pool.fails(&list.endpoints[2], 10, S);
    assert!(!list.endpoints[2].ejection.is_on(S), "half of them get nothing already");
    assert_eq!((pool.ejected(), pool.unhealthy()), (0, 2));
}
