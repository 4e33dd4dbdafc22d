//! The files below `/etc` that a pod's containers share.

use std::{fmt::Write, fs, net::IpAddr, path::Path};

use crate::runtime::{DnsConfig, Error, Result, SandboxSpec};

/// Writes them into the sandbox's directory.
pub(super) fn write(spec: &SandboxSpec, ips: &[IpAddr], directory: &Path) -> Result<()> {
    let hosts = if spec.host_network {
        format!("{}{}", fs::read_to_string("/etc/hosts").unwrap_or_default(), aliases(spec))
    } else {
        hosts(spec, ips)
    };
    let resolv = match &spec.dns {
        Some(dns) => resolv_conf(dns),
        None => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    for (name, content) in
        [("hosts", hosts), ("hostname", format!("{}\n", spec.hostname)), ("resolv.conf", resolv)]
    {
        let path = directory.join(name);
        fs::write(&path, content).map_err(Error::io("write", path))?;
    }
    Ok(())
}

/// Like the kubelet's own file for pods.
fn hosts(spec: &SandboxSpec, ips: &[IpAddr]) -> String {
    let mut text = "# Written by Weir for this pod.\n\
        127.0.0.1\tlocalhost\n\
        ::1\tlocalhost ip6-localhost ip6-loopback\n\
        fe00::0\tip6-localnet\n\
        fe00::0\tip6-mcastprefix\n\
        fe00::1\tip6-allnodes\n\
        fe00::2\tip6-allrouters\n"
        .to_owned();
    for ip in ips {
        match &spec.fqdn {
            Some(fqdn) => writeln!(text, "{ip}\t{fqdn}\t{}", spec.hostname),
            None => writeln!(text, "{ip}\t{}", spec.hostname),
        }
        .expect("writing to a string cannot fail");
    }
    text + &aliases(spec)
}

fn aliases(spec: &SandboxSpec) -> String {
    if spec.host_aliases.is_empty() {
        return String::new();
    }
    let lines =
        spec.host_aliases.iter().map(|alias| format!("{}\t{}\n", alias.ip, alias.hostnames.join("\t")));
    std::iter::once("\n# From the pod's hostAliases.\n".to_owned()).chain(lines).collect()
}

fn resolv_conf(dns: &DnsConfig) -> String {
    let line = |name: &str, values: &[String]| match values {
        [] => String::new(),
        values => format!("{name} {}\n", values.join(" ")),
    };
    let servers = dns.servers.iter().map(|server| format!("nameserver {server}\n"));
    let search = line("search", &dns.searches);
    std::iter::once(search).chain(servers).chain([line("options", &dns.options)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::HostAlias;

    #[test]
    fn the_pods_own_names_and_aliases_are_in_hosts() {
        let spec = SandboxSpec {
            hostname: "web-0".into(),
            fqdn: Some("web-0.web.shop.svc.cluster.local".into()),
            host_aliases: vec![HostAlias {
                ip: "10.0.0.9".into(),
                hostnames: vec!["db".into(), "db.local".into()],
            }],
            ..SandboxSpec::default()
        };
        let text = hosts(&spec, &["10.244.0.7".parse().expect("an address")]);
        assert!(text.contains("10.244.0.7\tweb-0.web.shop.svc.cluster.local\tweb-0\n"));
        assert!(text.ends_with("10.0.0.9\tdb\tdb.local\n"));
    }

    #[test]
    fn resolv_conf_has_search_servers_and_options() {
        let dns = DnsConfig {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["shop.svc.cluster.local".into(), "cluster.local".into()],
            options: vec!["ndots:5".into()],
        };
        let expected =
            "search shop.svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n";
        assert_eq!(resolv_conf(&dns), expected);
    }
}
