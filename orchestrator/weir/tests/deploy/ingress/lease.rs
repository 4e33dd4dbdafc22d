//! A replica that has no right to its Lease.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use weir_tests::eventually;

use super::{Machine, NAMESPACE, container, shipped};
use crate::deploy::proxy::Asked;

/// So many refusals are enough to see whether each is told.
const REFUSALS: u64 = 5;

#[test]
fn a_replica_that_is_refused_its_lease_serves_and_publishes_once_it_is_granted() {
    let machine = Machine::with_roles(vec![shipped::role_without_lease()]);
    machine.balance("192.0.2.1");
    let shipped_container = shipped::container();
    let [http, admin] = ["http", "admin"].map(|name| shipped::port(&shipped_container, name));
    let replica = container::start(&machine, &["--lease-retry-period=50ms".to_owned()], "refused");
    machine.answers(200, admin, "weir", "/readyz");
    let metric = |name: &str| -> anyhow::Result<u64> {
        let text = machine.get(admin, "weir", "/metrics")?.body;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("{name} is not in {text}"))?.parse()?)
    };
    eventually("it goes on trying", || {
        let refused = metric("weir_ingress_lease_errors_total")?;
        ensure!(refused >= REFUSALS, "{refused}");
        Ok(())
    })
    .unwrap();
    let is_of_lease = |asked: &Asked| asked.action.2 == "leases";
    let refused = machine.proxy.seen().refused;
    assert!(
        refused.iter().filter(|it| is_of_lease(it)).all(|it| it.namespace.as_deref() == Some(NAMESPACE)),
        "its own namespace is in the service account's file: {refused:?}"
    );
    assert!(refused.iter().any(is_of_lease));
    let said = replica.said();
    let told: Vec<&str> = said.lines().filter(|line| line.to_lowercase().contains("lease")).collect();
    let [warning] = told[..] else { panic!("once is enough: {said}") };
    assert!(warning.contains("WARN") && warning.contains("forbidden"), "{warning}");

    machine.answers(200, http, "plain.example", "/");
    assert_eq!(metric("weir_ingress_leader").unwrap(), 0);
    let mirror = machine.server().mirror();
    let plain = mirror.get("ingresses/default/plain").expect("it is there");
    assert_eq!(plain["status"]["loadBalancer"]["ingress"], Value::Null);

    machine.proxy.bind(shipped::lease_role());
    machine.is_published("192.0.2.1");
    assert_eq!(metric("weir_ingress_leader").unwrap(), 1);
    assert!(mirror.get(&format!("leases/{NAMESPACE}/weir-ingress")).is_some());
}
