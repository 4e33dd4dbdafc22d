//! kube-proxy's nftables mode: verdict maps from addresses to chains, one chain for each service and endpoint.

use std::{
    fmt::Write as _,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{Endpoint, Family, Node, ServicePort, names, topology::Choices};
use crate::Namespace;

/// Services that one transaction adds. The kernel looks for a free name for every anonymous map among those of the
/// transaction and of the table, and validates a table as a whole: all in one takes four times as long as these take together.
const CHUNK: usize = 500;

/// Words that differ between the families.
struct Words {
    table: &'static str,
    address: &'static str,
    kind: &'static str,
}

impl Words {
    fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self { table: "ip kube-proxy", address: "ip", kind: "ipv4_addr" },
            Family::V6 => Self { table: "ip6 kube-proxy", address: "ip6", kind: "ipv6_addr" },
        }
    }
}

/// Transactions for `nft -f`, in order: what every node has, then the services.
pub fn render(node: &Node, family: Family, services: &[ServicePort]) -> Vec<String> {
    let services: Vec<&ServicePort> = services.iter().filter(|service| service.family() == family).collect();
    let mut all = vec![base(node, family)];
    all.extend(services.chunks(CHUNK).map(|chunk| {
        let mut rules = Rules { words: Words::of(family), node, family, text: String::new() };
        for service in chunk {
            rules.service(service);
        }
        rules.text
    }));
    all
}

/// Runs the transactions inside a namespace.
pub fn load(namespace: &Namespace, transactions: &[String]) -> Result<()> {
    for transaction in transactions {
        let mut nft = namespace.command("nft");
        feed(nft.args(["-f", "-"]), transaction)?;
    }
    Ok(())
}

/// Removes both families' rules.
pub fn unload(namespace: &Namespace) -> Result<()> {
    for table in [Words::of(Family::V4).table, Words::of(Family::V6).table] {
        // To delete what is not there is an error; to add what is there is none.
        let transaction = format!("add table {table}\ndelete table {table}\n");
        feed(namespace.command("nft").args(["-f", "-"]), &transaction)?;
    }
    Ok(())
}

/// Gives a command its standard input and expects success.
pub(super) fn feed(command: &mut Command, text: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    let written = child.stdin.take().expect("asked for").write_all(text.as_bytes());
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{:?}: {}",
        command.get_args().collect::<Vec<_>>(),
        String::from_utf8_lossy(&output.stderr).lines().take(5).collect::<Vec<_>>().join("\n")
    );
    Ok(written?)
}

/// Chains, sets and maps that do not depend on services.
fn base(node: &Node, family: Family) -> String {
    let Words { table, address, kind } = Words::of(family);
    let mut text = format!("add table {table} {{ comment \"rules for kube-proxy\" ; }}\n");
    let mut line = |words: String| {
        text.push_str(&words);
        text.push('\n');
    };
    for (chain, hook) in [
        ("filter-prerouting-pre-dnat", "filter hook prerouting priority -110"),
        ("filter-output-pre-dnat", "filter hook output priority -110"),
        ("filter-forward", "filter hook forward priority 0"),
        ("filter-input", "filter hook input priority 0"),
        ("filter-output", "filter hook output priority 0"),
        ("nat-output", "nat hook output priority -100"),
        ("nat-postrouting", "nat hook postrouting priority 100"),
        ("nat-prerouting", "nat hook prerouting priority -100"),
    ] {
        line(format!("add chain {table} {chain} {{ type {hook} ; }}"));
    }
    for chain in [
        "cluster-ips-check",
        "firewall-check",
        "mark-for-masquerade",
        "masquerading",
        "nodeport-endpoints-check",
        "reject-chain",
        "services",
        "service-endpoints-check",
    ] {
        line(format!("add chain {table} {chain}"));
    }
    for set in ["cluster-ips", "nodeport-ips"] {
        line(format!("add set {table} {set} {{ type {kind} ; }}"));
    }
    for map in ["firewall-ips", "no-endpoint-services", "service-ips"] {
        line(format!("add map {table} {map} {{ type {kind} . inet_proto . inet_service : verdict ; }}"));
    }
    for map in ["no-endpoint-nodeports", "service-nodeports"] {
        line(format!("add map {table} {map} {{ type inet_proto . inet_service : verdict ; }}"));
    }
    let service = format!("{address} daddr . meta l4proto . th dport");
    let node_port = format!("{address} daddr @nodeport-ips meta l4proto . th dport");
    let range = node.service_range(family);
    for (chain, rule) in [
        ("filter-prerouting-pre-dnat", "ct state new jump firewall-check".into()),
        ("filter-output-pre-dnat", "ct state new jump firewall-check".into()),
        ("filter-forward", "ct state new jump service-endpoints-check".into()),
        ("filter-forward", "ct state new jump cluster-ips-check".into()),
        ("filter-input", "ct state new jump nodeport-endpoints-check".into()),
        ("filter-input", "ct state new jump service-endpoints-check".into()),
        ("filter-output", "ct state new jump service-endpoints-check".into()),
        ("filter-output", "ct state new jump cluster-ips-check".into()),
        ("nat-output", "jump services".into()),
        ("nat-prerouting", "jump services".into()),
        ("nat-postrouting", "jump masquerading".into()),
        ("cluster-ips-check", format!("{address} daddr @cluster-ips reject")),
        ("cluster-ips-check", format!("{address} daddr {{ {range} }} drop")),
        ("mark-for-masquerade", "mark set mark or 0x4000".into()),
        ("masquerading", "mark and 0x4000 == 0 return".into()),
        ("masquerading", "mark set mark xor 0x4000".into()),
        ("masquerading", "masquerade fully-random".into()),
        ("reject-chain", "reject".into()),
        ("service-endpoints-check", format!("{service} vmap @no-endpoint-services")),
        ("nodeport-endpoints-check", format!("{node_port} vmap @no-endpoint-nodeports")),
        ("firewall-check", format!("{service} vmap @firewall-ips")),
        ("services", format!("{service} vmap @service-ips")),
        ("services", format!("{node_port} vmap @service-nodeports")),
    ] {
        line(format!("add rule {table} {chain} {rule}"));
    }
    for address in node.addresses(family) {
        line(format!("add element {table} nodeport-ips {{ {address} }}"));
    }
    text
}

/// Rules of services as they are written.
struct Rules<'a> {
    words: Words,
    node: &'a Node,
    family: Family,
    text: String,
}

impl Rules<'_> {
    fn add(&mut self, what: &str, name: &str, rest: &str) {
        let table = self.words.table;
        writeln!(self.text, "add {what} {table} {name} {rest}").expect("a string takes everything");
    }

    fn rule(&mut self, chain: &str, rule: &str) {
        self.add("rule", chain, rule);
    }

    fn element(&mut self, map: &str, element: &str) {
        self.add("element", map, &format!("{{ {element} }}"));
    }

    fn service(&mut self, service: &ServicePort) {
        let choices = Choices::of(service);
        let base = names::nftables_service(service);
        let (cluster, local) = (format!("service-{base}"), format!("local-{base}"));
        for endpoint in &choices.all {
            self.add("chain", &format!("endpoint-{}", names::nftables_endpoint(service, endpoint)), "");
        }
        if !choices.cluster.is_empty() {
            self.add("chain", &cluster, "");
        }
        if !choices.local.is_empty() {
            self.add("chain", &local, "");
        }
        if choices.any && service.is_externally_accessible() {
            self.add("chain", &format!("external-{base}"), "");
        }
        self.dispatch(service, &choices, &base);
        self.external(service, &choices, &base);
        if choices.has_internal(service) {
            let chain = if service.internal_local { &local } else { &cluster };
            let rule = format!(
                "{address} daddr {ip} {protocol} dport {port} {address} saddr != {range} jump mark-for-masquerade",
                address = self.words.address,
                ip = service.cluster_ip,
                protocol = service.protocol.name(),
                port = service.port,
                range = self.node.pod_range(self.family),
            );
            self.rule(chain, &rule);
        }
        if let Some(timeout_s) = service.affinity_timeout_s {
            for endpoint in &choices.all {
                let set = format!("affinity-{}", names::nftables_endpoint(service, endpoint));
                let kind = self.words.kind;
                let flags = format!("{{ type {kind} ; flags dynamic,timeout ; timeout {timeout_s}s ; }}");
                self.add("set", &set, &flags);
            }
        }
        self.choose(service, &cluster, &choices.cluster);
        self.choose(service, &local, &choices.local);
        for endpoint in &choices.all {
            self.endpoint(service, endpoint);
        }
    }

    /// Elements that lead packets to the chains, or to what refuses them.
    fn dispatch(&mut self, service: &ServicePort, choices: &Choices, base: &str) {
        let protocol = service.protocol.name();
        let (label, port) = (service.label(), service.port);
        let (internal, external) = (choices.has_internal(service), choices.has_external(service));
        let refusal = if choices.any { "drop" } else { "goto reject-chain" };
        let policy = if service.internal_local { "local" } else { "service" };
        self.element("cluster-ips", &service.cluster_ip.to_string());
        let key = format!("{} . {protocol} . {port}", service.cluster_ip);
        if internal {
            self.element("service-ips", &format!("{key} : goto {policy}-{base}"));
        } else {
            self.element("no-endpoint-services", &format!("{key} comment \"{label}\" : {refusal}"));
        }
        let outside = service.external_ips.iter().chain(&service.load_balancer_ips);
        for address in outside {
            let key = format!("{address} . {protocol} . {port}");
            if choices.any {
                self.element("service-ips", &format!("{key} : goto external-{base}"));
            }
            if !external {
                self.element("no-endpoint-services", &format!("{key} comment \"{label}\" : {refusal}"));
            }
        }
        if let Some(node_port) = service.node_port {
            if choices.any {
                self.element(
                    "service-nodeports",
                    &format!("{protocol} . {node_port} : goto external-{base}"),
                );
            }
            if !external {
                let element = format!("{protocol} . {node_port} comment \"{label}\" : {refusal}");
                self.element("no-endpoint-nodeports", &element);
            }
        }
        if service.load_balancer_ips.is_empty() || service.source_ranges.is_empty() {
            return;
        }
        let firewall = format!("firewall-{base}");
        self.add("chain", &firewall, "");
        let mut sources = service.source_ranges.clone();
        if service.node_in_source_ranges {
            sources.extend(service.load_balancer_ips.iter().map(ToString::to_string));
        }
        let address = self.words.address;
        self.rule(&firewall, &format!("{address} saddr != {{ {} }} drop", sources.join(" , ")));
        for address in &service.load_balancer_ips {
            let element = format!("{address} . {protocol} . {port} comment \"{label}\" : goto {firewall}");
            self.element("firewall-ips", &element);
        }
    }

    /// The chain of addresses that clients outside use: who is masqueraded, and whom the policy does not bind.
    fn external(&mut self, service: &ServicePort, choices: &Choices, base: &str) {
        if !choices.any || !service.is_externally_accessible() {
            return;
        }
        let chain = format!("external-{base}");
        if service.external_local {
            let (address, range) = (self.words.address, self.node.pod_range(self.family));
            self.rule(&chain, &format!("{address} saddr {range} goto service-{base}"));
            self.rule(&chain, "fib saddr type local jump mark-for-masquerade");
            self.rule(&chain, &format!("fib saddr type local goto service-{base}"));
        } else {
            self.rule(&chain, "jump mark-for-masquerade");
        }
        if choices.has_external(service) {
            let policy = if service.external_local { "local" } else { "service" };
            self.rule(&chain, &format!("goto {policy}-{base}"));
        }
    }

    /// A choice among endpoints: the client's own first, any other by chance.
    fn choose(&mut self, service: &ServicePort, chain: &str, endpoints: &[Endpoint]) {
        if endpoints.is_empty() {
            return;
        }
        let names: Vec<String> =
            endpoints.iter().map(|endpoint| names::nftables_endpoint(service, endpoint)).collect();
        if service.affinity_timeout_s.is_some() {
            for name in &names {
                let address = self.words.address;
                self.rule(chain, &format!("{address} saddr @affinity-{name} goto endpoint-{name}"));
            }
        }
        let elements: Vec<String> =
            names.iter().enumerate().map(|(n, name)| format!("{n} : goto endpoint-{name}")).collect();
        let rule = format!("numgen random mod {} vmap {{ {} }}", names.len(), elements.join(" , "));
        self.rule(chain, &rule);
    }

    fn endpoint(&mut self, service: &ServicePort, endpoint: &Endpoint) {
        let name = names::nftables_endpoint(service, endpoint);
        let (chain, address) = (format!("endpoint-{name}"), self.words.address);
        self.rule(&chain, &format!("{address} saddr {} jump mark-for-masquerade", endpoint.address.ip()));
        if service.affinity_timeout_s.is_some() {
            self.rule(&chain, &format!("update @affinity-{name} {{ {address} saddr }}"));
        }
        let protocol = service.protocol.name();
        self.rule(&chain, &format!("meta l4proto {protocol} dnat to {}", endpoint.address));
    }
}
