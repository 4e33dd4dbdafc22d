//! kube-proxy's iptables mode: one list of rules that a packet walks until its service comes, chains behind it.

use std::{collections::BTreeSet, fmt::Write as _};

use anyhow::Result;

use super::{Endpoint, Family, Node, ServicePort, names, nftables::feed, topology::Choices};
use crate::Namespace;

/// Endpoints from which on kube-proxy leaves comments out of the rules that there are most of.
const LARGE_CLUSTER: usize = 1_000;

/// Rules that lead from the built-in chains, each in its table.
const FILTER_JUMPS: &[(&str, &str, &str)] = &[
    ("INPUT", "-m conntrack --ctstate NEW", "KUBE-EXTERNAL-SERVICES"),
    ("FORWARD", "-m conntrack --ctstate NEW", "KUBE-EXTERNAL-SERVICES"),
    ("INPUT", "", "KUBE-NODEPORTS"),
    ("FORWARD", "-m conntrack --ctstate NEW", "KUBE-SERVICES"),
    ("OUTPUT", "-m conntrack --ctstate NEW", "KUBE-SERVICES"),
    ("FORWARD", "", "KUBE-FORWARD"),
    ("INPUT", "-m conntrack --ctstate NEW", "KUBE-PROXY-FIREWALL"),
    ("OUTPUT", "-m conntrack --ctstate NEW", "KUBE-PROXY-FIREWALL"),
    ("FORWARD", "-m conntrack --ctstate NEW", "KUBE-PROXY-FIREWALL"),
];
const NAT_JUMPS: &[(&str, &str)] =
    &[("OUTPUT", "KUBE-SERVICES"), ("PREROUTING", "KUBE-SERVICES"), ("POSTROUTING", "KUBE-POSTROUTING")];

/// What `iptables-restore --noflush` (or `ip6tables-restore`) reads.
pub fn render(node: &Node, family: Family, services: &[ServicePort]) -> String {
    let services: Vec<&ServicePort> = services.iter().filter(|service| service.family() == family).collect();
    let endpoints: usize = services.iter().map(|service| service.endpoints.len()).sum();
    let mut rules = Rules {
        range: node.pod_range(family),
        large: endpoints > LARGE_CLUSTER,
        filter: Table::new(&[
            "KUBE-NODEPORTS",
            "KUBE-SERVICES",
            "KUBE-EXTERNAL-SERVICES",
            "KUBE-FIREWALL",
            "KUBE-FORWARD",
            "KUBE-PROXY-FIREWALL",
        ]),
        nat: Table::new(&["KUBE-NODEPORTS", "KUBE-SERVICES", "KUBE-MARK-MASQ", "KUBE-POSTROUTING"]),
    };
    rules.base();
    for service in &services {
        rules.service(service);
    }
    rules.nat.rule(
        "KUBE-SERVICES",
        "-m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" \
         -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
    );
    rules.filter.rule("KUBE-FORWARD", "-m conntrack --ctstate INVALID -j DROP");
    rules.filter.rule("KUBE-FORWARD", "-m mark --mark 0x4000/0x4000 -j ACCEPT");
    rules.filter.rule("KUBE-FORWARD", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
    format!("*filter\n{}COMMIT\n*nat\n{}COMMIT\n", rules.filter.text(), rules.nat.text())
}

/// What kube-proxy's partial sync restores when one service changes: its chains, and the whole of the lists.
pub fn render_change(node: &Node, family: Family, services: &[ServicePort], changed: usize) -> String {
    const SHARED: [&str; 2] = ["KUBE-MARK-MASQ", "KUBE-POSTROUTING"];
    let nat = |text: &str| text.split_once("*nat\n").expect("it has the table").1.to_owned();
    // The same comments as in the whole.
    let (whole, alone) =
        (nat(&render(node, family, services)), nat(&render(node, family, &services[changed..=changed])));
    let own: BTreeSet<&str> =
        alone.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next()).collect();
    let lists = ["KUBE-SERVICES", "KUBE-NODEPORTS"];
    let is_wanted = |line: &str| {
        let words = line.strip_prefix(':').or_else(|| line.strip_prefix("-A "));
        words
            .and_then(|words| words.split(' ').next())
            .is_some_and(|chain| lists.contains(&chain) || own.contains(chain) && !SHARED.contains(&chain))
    };
    let lines: String =
        whole.lines().filter(|line| is_wanted(line)).map(|line| line.to_owned() + "\n").collect();
    format!("*nat\n{lines}COMMIT\n")
}

/// Loads a ruleset inside a namespace. By the legacy program: the one that writes nftables takes thirty times as long
/// for ten thousand services, and packets walk the same list either way.
pub fn load(namespace: &Namespace, family: Family, text: &str) -> Result<()> {
    let program = match family {
        Family::V4 => "iptables-legacy-restore",
        Family::V6 => "ip6tables-legacy-restore",
    };
    // The lock is a file of the machine's, and its holder may be somebody else.
    feed(namespace.command(program).args(["--noflush", "--wait"]), text)
}

/// Removes all chains and rules of the tables that [`render`] fills.
pub fn unload(namespace: &Namespace, family: Family) -> Result<()> {
    let program = match family {
        Family::V4 => "iptables-legacy-restore",
        Family::V6 => "ip6tables-legacy-restore",
    };
    // Without `--noflush` a table is what is read, and nothing is.
    feed(namespace.command(program).arg("--wait"), "*filter\nCOMMIT\n*nat\nCOMMIT\n")
}

/// Chains and rules of one table.
struct Table {
    chains: String,
    rules: String,
}

impl Table {
    fn new(chains: &[&str]) -> Self {
        let mut table = Self { chains: String::new(), rules: String::new() };
        for chain in chains {
            table.chain(chain);
        }
        table
    }

    fn chain(&mut self, chain: &str) {
        writeln!(self.chains, ":{chain} - [0:0]").expect("a string takes everything");
    }

    fn rule(&mut self, chain: &str, rule: &str) {
        writeln!(self.rules, "-A {chain} {rule}").expect("a string takes everything");
    }

    fn text(&self) -> String {
        format!("{}{}", self.chains, self.rules)
    }
}

struct Rules<'a> {
    range: &'a str,
    large: bool,
    filter: Table,
    nat: Table,
}

/// The match for a port of an address.
fn to(service: &ServicePort, address: impl std::fmt::Display) -> String {
    let protocol = service.protocol.name();
    format!("-m {protocol} -p {protocol} -d {address} --dport {}", service.port)
}

impl Rules<'_> {
    fn base(&mut self) {
        for (chain, condition, target) in FILTER_JUMPS {
            self.filter.rule(chain, &format!("{condition} -j {target}"));
        }
        for (chain, target) in NAT_JUMPS {
            self.nat.rule(chain, &format!("-j {target}"));
        }
        self.nat.rule("KUBE-POSTROUTING", "-m mark ! --mark 0x4000/0x4000 -j RETURN");
        self.nat.rule("KUBE-POSTROUTING", "-j MARK --xor-mark 0x4000");
        self.nat.rule(
            "KUBE-POSTROUTING",
            "-m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully",
        );
        self.nat.rule("KUBE-MARK-MASQ", "-j MARK --or-mark 0x4000");
    }

    /// A comment where kube-proxy affords one.
    fn comment(&self, text: &str) -> String {
        if self.large { String::new() } else { format!("-m comment --comment \"{text}\"") }
    }

    fn service(&mut self, service: &ServicePort) {
        let choices = Choices::of(service);
        let (hash, label) = (names::iptables_service(service), service.label());
        let policy =
            |local: bool| if local { format!("KUBE-SVL-{hash}") } else { format!("KUBE-SVC-{hash}") };
        let (internal, external) = (choices.has_internal(service), choices.has_external(service));
        self.capture(service, &choices, &hash);
        if internal {
            let chain = policy(service.internal_local);
            let condition = to(service, service.cluster_ip);
            let rule = format!(
                "-m comment --comment \"{label} cluster IP\" {condition} ! -s {} -j KUBE-MARK-MASQ",
                self.range
            );
            self.nat.rule(&chain, &rule);
        }
        if choices.any && service.is_externally_accessible() {
            let chain = format!("KUBE-EXT-{hash}");
            self.nat.chain(&chain);
            if service.external_local {
                let cluster = policy(false);
                self.nat.rule(&chain, &format!("-s {} -j {cluster}", self.range));
                self.nat.rule(&chain, "-m addrtype --src-type LOCAL -j KUBE-MARK-MASQ");
                self.nat.rule(&chain, &format!("-m addrtype --src-type LOCAL -j {cluster}"));
            } else {
                let comment = format!("masquerade traffic for {label} external destinations");
                self.nat.rule(&chain, &format!("-m comment --comment \"{comment}\" -j KUBE-MARK-MASQ"));
            }
            if external {
                self.nat.rule(&chain, &format!("-j {}", policy(service.external_local)));
            }
        }
        self.choose(service, &policy(false), &choices.cluster);
        self.choose(service, &policy(true), &choices.local);
        for endpoint in &choices.all {
            self.endpoint(service, endpoint);
        }
    }

    /// Rules that lead packets to the service's chains, or that refuse them.
    fn capture(&mut self, service: &ServicePort, choices: &Choices, hash: &str) {
        let label = service.label();
        let (internal, external) = (choices.has_internal(service), choices.has_external(service));
        let (refusal, why) =
            if choices.any { ("DROP", "has no local endpoints") } else { ("REJECT", "has no endpoints") };
        let refuse =
            |condition: &str| format!("-m comment --comment \"{label} {why}\" {condition} -j {refusal}");
        let cluster = to(service, service.cluster_ip);
        if internal {
            let target = if service.internal_local { "KUBE-SVL" } else { "KUBE-SVC" };
            let rule = format!("-m comment --comment \"{label} cluster IP\" {cluster} -j {target}-{hash}");
            self.nat.rule("KUBE-SERVICES", &rule);
        } else {
            self.filter.rule("KUBE-SERVICES", &refuse(&cluster));
        }
        let firewall = !service.load_balancer_ips.is_empty() && !service.source_ranges.is_empty();
        for (addresses, kind, target) in [
            (&service.external_ips, "external IP", "KUBE-EXT"),
            (&service.load_balancer_ips, "loadbalancer IP", if firewall { "KUBE-FW" } else { "KUBE-EXT" }),
        ] {
            for address in addresses {
                let condition = to(service, address);
                if choices.any {
                    let rule =
                        format!("-m comment --comment \"{label} {kind}\" {condition} -j {target}-{hash}");
                    self.nat.rule("KUBE-SERVICES", &rule);
                }
                if !external {
                    self.filter.rule("KUBE-EXTERNAL-SERVICES", &refuse(&condition));
                }
            }
        }
        if firewall && choices.any {
            self.firewall(service, hash);
        }
        let protocol = service.protocol.name();
        if let Some(port) = service.node_port {
            let condition = format!("-m {protocol} -p {protocol} --dport {port}");
            if choices.any {
                let rule = format!("-m comment --comment {label} {condition} -j KUBE-EXT-{hash}");
                self.nat.rule("KUBE-NODEPORTS", &rule);
            }
            if !external {
                let rule = refuse(&format!("-m addrtype --dst-type LOCAL {condition}"));
                self.filter.rule("KUBE-EXTERNAL-SERVICES", &rule);
            }
        }
        if let Some(port) = service.health_check_node_port {
            self.filter.rule("KUBE-NODEPORTS", &format!("-m tcp -p tcp --dport {port} -j ACCEPT"));
        }
    }

    fn firewall(&mut self, service: &ServicePort, hash: &str) {
        let chain = format!("KUBE-FW-{hash}");
        self.nat.chain(&chain);
        for range in &service.source_ranges {
            self.nat.rule(&chain, &format!("-s {range} -j KUBE-EXT-{hash}"));
        }
        for address in &service.load_balancer_ips {
            if service.node_in_source_ranges {
                self.nat.rule(&chain, &format!("-s {address} -j KUBE-EXT-{hash}"));
            }
            self.filter.rule("KUBE-PROXY-FIREWALL", &format!("{} -j DROP", to(service, address)));
        }
    }

    /// A choice among endpoints: the client's own first, any other by chance.
    fn choose(&mut self, service: &ServicePort, chain: &str, endpoints: &[Endpoint]) {
        if endpoints.is_empty() {
            return;
        }
        self.nat.chain(chain);
        let target =
            |endpoint: &Endpoint| format!("KUBE-SEP-{}", names::iptables_endpoint(service, endpoint));
        let comment = |rules: &Self, endpoint: &Endpoint| {
            rules.comment(&format!("{} -> {}", service.label(), endpoint.address))
        };
        if let Some(timeout_s) = service.affinity_timeout_s {
            for endpoint in endpoints {
                let (target, comment) = (target(endpoint), comment(self, endpoint));
                let recent = format!("-m recent --name {target} --rcheck --seconds {timeout_s} --reap");
                self.nat.rule(chain, &format!("{comment} {recent} -j {target}"));
            }
        }
        for (n, endpoint) in endpoints.iter().enumerate() {
            let left = endpoints.len() - n;
            let chance = if left == 1 {
                String::new()
            } else {
                format!("-m statistic --mode random --probability {:.10}", 1.0 / left as f64)
            };
            let rule = format!("{} {chance} -j {}", comment(self, endpoint), target(endpoint));
            self.nat.rule(chain, &rule);
        }
    }

    fn endpoint(&mut self, service: &ServicePort, endpoint: &Endpoint) {
        let chain = format!("KUBE-SEP-{}", names::iptables_endpoint(service, endpoint));
        self.nat.chain(&chain);
        let comment = self.comment(&service.label());
        self.nat.rule(&chain, &format!("{comment} -s {} -j KUBE-MARK-MASQ", endpoint.address.ip()));
        let recent = match service.affinity_timeout_s {
            Some(_) => format!("-m recent --name {chain} --set"),
            None => String::new(),
        };
        let (protocol, address) = (service.protocol.name(), endpoint.address);
        let dnat = format!("-m {protocol} -p {protocol} -j DNAT --to-destination {address}");
        self.nat.rule(&chain, &format!("{comment} {recent} {dnat}"));
    }
}
