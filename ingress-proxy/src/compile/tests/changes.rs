//! What a change of one object has compiled. That the result is right is a property of all changes, and tested where they
//! come from.

use std::time::Instant;

use super::*;

/// Ingresses in a namespace; each has a host and a Service of its own.
fn many(count: usize) -> Snapshot {
    let mut snapshot = snapshot(BASE);
    for number in 0..count {
        add(&mut snapshot, number);
    }
    snapshot
}

fn add(snapshot: &mut Snapshot, number: usize) -> ObjectKey {
    let backend = |path: &str| serde_json::json!({"path": path, "pathType": "Prefix", "backend": {"service": {"name": format!("s{number}"), "port": {"number": 80}}}});
    let paths: Vec<_> = ["/", "/cart", "/api/v1", "/static"].map(backend).into();
    let tls = serde_json::json!([{"hosts": [format!("shop-{number}.example")], "secretName": format!("t{number}")}]);
    let object = serde_json::json!({
        "metadata": {"namespace": "n", "name": format!("i{number}"), "uid": number.to_string()},
        "spec": {
            "ingressClassName": "weir",
            "tls": if number.is_multiple_of(2) { tls } else { serde_json::json!([]) },
            "rules": [{"host": format!("shop-{number}.example"), "http": {"paths": paths}}],
        },
    });
    let fact = IngressFact::from(serde_json::from_value::<Ingress>(object).unwrap());
    let (key, service) = (fact.key.clone(), ObjectKey::new("n", &format!("s{number}")));
    let port = PortFact { name: String::new(), number: 80, protocol: None };
    snapshot.services.insert(service, ServiceFact { ports: vec![port], ..ServiceFact::default() });
    snapshot.ingresses.insert(key.clone(), fact);
    key
}

/// How many Ingresses are read and hosts are compiled for these changes.
fn counted(compiler: &mut Compiler, snapshot: &Snapshot, changes: &Changes) -> (usize, usize) {
    let update = compiler.update(snapshot, changes);
    (update.ingresses.len(), update.hosts.len())
}

#[test]
fn a_change_compiles_what_it_concerns() {
    let mut snapshot = many(100);
    let mut compiler = Compiler::new(CLASS);
    let everything = Changes::all(&snapshot);
    assert_eq!(counted(&mut compiler, &snapshot, &everything), (100, 100));
    let ingress = |key| Changes { ingresses: [key].into(), ..Changes::default() };
    let named = |name: &str| [ObjectKey::new("n", name)].into();

    let new = add(&mut snapshot, 100);
    assert_eq!(counted(&mut compiler, &snapshot, &ingress(new.clone())), (1, 1), "an Ingress comes");
    snapshot.ingresses.remove(&new);
    assert_eq!(counted(&mut compiler, &snapshot, &ingress(new)), (1, 1), "and goes");

    snapshot.services.remove(&ObjectKey::new("n", "s7"));
    let service = Changes { services: named("s7"), ..Changes::default() };
    assert_eq!(counted(&mut compiler, &snapshot, &service), (1, 1), "a Service goes");
    let other = Changes { services: named("a"), ..Changes::default() };
    assert_eq!(counted(&mut compiler, &snapshot, &other), (0, 0), "a Service that no Ingress names");

    snapshot.secrets.insert(ObjectKey::new("n", "t8"), SecretFact::Missing);
    let secret = Changes { secrets: named("t8"), ..Changes::default() };
    assert_eq!(counted(&mut compiler, &snapshot, &secret), (1, 1), "a secret is found missing");

    let class = |controller: &str| ClassFact { controller: controller.to_owned(), default: false };
    let classes = Changes { classes: true, ..Changes::default() };
    snapshot.classes.insert("another".to_owned(), class(CONTROLLER));
    assert_eq!(counted(&mut compiler, &snapshot, &classes), (0, 0), "a class that no Ingress names");
    snapshot.classes.insert(CLASS.to_owned(), class("another.example"));
    assert_eq!(counted(&mut compiler, &snapshot, &classes), (100, 100), "their class is another's");
}

#[test]
fn hosts_that_are_shared_are_compiled_from_all_who_share_them() {
    let mut snapshot = many(100);
    let mut compiler = Compiler::new(CLASS);
    compiler.update(&snapshot, &Changes::all(&snapshot));
    let change = |snapshot: &mut Snapshot, number: usize, change: &dyn Fn(&mut IngressFact)| {
        let key = ObjectKey::new("n", &format!("i{number}"));
        change(snapshot.ingresses.get_mut(&key).unwrap());
        Changes { ingresses: [key].into(), ..Changes::default() }
    };
    let moved = change(&mut snapshot, 1, &|ingress| {
        ingress.spec.rules.as_mut().unwrap()[0].host = Some("shop-2.example".to_owned());
    });
    assert_eq!(counted(&mut compiler, &snapshot, &moved), (1, 2), "the host that it had, and the one it has");

    let alias = change(&mut snapshot, 2, &|ingress| {
        ingress.annotations.insert("weir.dev/server-alias".to_owned(), "alias.example".to_owned());
    });
    assert_eq!(counted(&mut compiler, &snapshot, &alias), (1, 2), "an alias is one more host");
    let again = change(&mut snapshot, 1, &|ingress| ingress.created = 1);
    assert_eq!(
        counted(&mut compiler, &snapshot, &again),
        (1, 2),
        "which goes with the host whose rules it has"
    );

    let wildcard = |ingress: &mut IngressFact| {
        ingress.spec.tls.get_or_insert_default()[0].hosts = Some(vec!["*.example".to_owned()]);
    };
    let first = change(&mut snapshot, 4, &wildcard);
    let (ingresses, hosts) = counted(&mut compiler, &snapshot, &first);
    assert_eq!(ingresses, 1);
    assert_eq!(
        hosts,
        99 + 2,
        "the first wildcard: the hosts that are left, the alias, and the wildcard itself"
    );
    let second = change(&mut snapshot, 6, &wildcard);
    assert_eq!(counted(&mut compiler, &snapshot, &second), (1, 1), "the second: its own");
}

/// Figures for whoever changes the compiler: `cargo test -p weir-ingress --lib -- --ignored --nocapture`.
#[test]
#[ignore = "prints times, and checks nothing"]
fn times_of_one_change_among_5000_ingresses() {
    let mut snapshot = many(5_000);
    let mut compiler = Compiler::new(CLASS);
    let started = Instant::now();
    let mut compiled = Compiled::default();
    compiled.apply(compiler.update(&snapshot, &Changes::all(&snapshot)));
    println!("all: {:?}", started.elapsed());
    for number in 5_000..5_005 {
        let key = add(&mut snapshot, number);
        let started = Instant::now();
        let update = compiler.update(&snapshot, &Changes { ingresses: [key].into(), ..Changes::default() });
        let compiled_in = started.elapsed();
        let mut table = compiled.table.clone();
        for (host, update) in update.hosts {
            let HostUpdate::Rules(rules) = update else { panic!("{host:?}") };
            table.set(&host, Some(Arc::new(rules.build())));
        }
        let built_in = started.elapsed();
        drop(std::mem::replace(&mut compiled.table, table));
        println!(
            "one more: compiled in {compiled_in:?}, built in {built_in:?}, old gone in {:?}",
            started.elapsed()
        );
    }
}
