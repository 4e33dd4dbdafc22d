//! The columns of services, endpoint slices, ingresses and ingress classes.

use serde_json::{Value, json};

use super::{Column, Printer, age::age, name, text_or};
use crate::object;

/// How many addresses of a slice are shown.
const ENDPOINTS_SHOWN_MAX: usize = 3;

pub(crate) static SERVICE: Printer = Printer {
    columns: &[
        Column::NAME,
        Column::text("Type"),
        Column::text("Cluster-IP"),
        Column::text("External-IP"),
        Column::text("Port(s)"),
        Column::AGE,
        Column::wide("Selector"),
    ],
    cells: |service, now| {
        let selector: Vec<String> = object::map_at(service, &["spec", "selector"])
            .into_iter()
            .flatten()
            .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
            .collect();
        vec![
            name(service),
            json!(object::str_at(service, &["spec", "type"])),
            text_or(object::str_at(service, &["spec", "clusterIP"]), "<none>"),
            text_or(&external_ip(service), "<none>"),
            text_or(&service_ports(service), "<none>"),
            age(service, now),
            text_or(&selector.join(","), "<none>"),
        ]
    },
};

fn external_ip(service: &Value) -> String {
    let given = texts(object::list_at(service, &["spec", "externalIPs"]).iter().filter_map(Value::as_str));
    match object::str_at(service, &["spec", "type"]) {
        "ExternalName" => object::str_at(service, &["spec", "externalName"]).to_owned(),
        "LoadBalancer" => {
            let balanced = load_balancer(service);
            match (balanced.is_empty(), given.is_empty()) {
                (true, true) => "<pending>".to_owned(),
                (true, false) => given,
                (false, true) => balanced,
                (false, false) => format!("{balanced},{given}"),
            }
        }
        _ => given,
    }
}

fn load_balancer(object: &Value) -> String {
    let ingress = object::list_at(object, &["status", "loadBalancer", "ingress"]);
    texts(ingress.iter().map(|point| match object::str_at(point, &["ip"]) {
        "" => object::str_at(point, &["hostname"]),
        ip => ip,
    }))
}

fn texts<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join(",")
}

fn service_ports(service: &Value) -> String {
    let ports: Vec<String> = object::list_at(service, &["spec", "ports"])
        .iter()
        .map(|port| {
            let number = object::int_at(port, &["port"]).unwrap_or(0);
            let protocol = object::str_at(port, &["protocol"]);
            match object::int_at(port, &["nodePort"]).filter(|node_port| *node_port > 0) {
                Some(node_port) => format!("{number}:{node_port}/{protocol}"),
                None => format!("{number}/{protocol}"),
            }
        })
        .collect();
    ports.join(",")
}

pub(crate) static ENDPOINT_SLICE: Printer = Printer {
    columns: &[
        Column::NAME,
        Column::text("AddressType"),
        Column::text("Ports"),
        Column::text("Endpoints"),
        Column::AGE,
    ],
    cells: |slice, now| {
        let ports: Vec<String> = object::list_at(slice, &["ports"])
            .iter()
            .map(|port| match object::int_at(port, &["port"]) {
                Some(number) => number.to_string(),
                None => "*".to_owned(),
            })
            .collect();
        vec![
            name(slice),
            json!(object::str_at(slice, &["addressType"])),
            text_or(&shortened(&ports, ENDPOINTS_SHOWN_MAX), "<unset>"),
            text_or(&endpoints(slice), "<unset>"),
            age(slice, now),
        ]
    },
};

fn endpoints(slice: &Value) -> String {
    let addresses: Vec<String> = object::list_at(slice, &["endpoints"])
        .iter()
        .flat_map(|endpoint| object::list_at(endpoint, &["addresses"]))
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    shortened(&addresses, ENDPOINTS_SHOWN_MAX)
}

/// `a,b,c + 2 more...`
fn shortened(list: &[String], limit: usize) -> String {
    let shown = list[..list.len().min(limit)].join(",");
    if list.len() > limit { format!("{shown} + {} more...", list.len() - limit) } else { shown }
}

pub(crate) static INGRESS: Printer = Printer {
    columns: &[
        Column::NAME,
        Column::text("Class"),
        Column::text("Hosts"),
        Column::text("Address"),
        Column::text("Ports"),
        Column::AGE,
    ],
    cells: |ingress, now| {
        let hosts: Vec<&str> = object::list_at(ingress, &["spec", "rules"])
            .iter()
            .map(|rule| object::str_at(rule, &["host"]))
            .filter(|host| !host.is_empty())
            .collect();
        let has_tls = !object::list_at(ingress, &["spec", "tls"]).is_empty();
        vec![
            name(ingress),
            text_or(object::str_at(ingress, &["spec", "ingressClassName"]), "<none>"),
            text_or(&hosts.join(","), "*"),
            json!(load_balancer(ingress)),
            json!(if has_tls { "80, 443" } else { "80" }),
            age(ingress, now),
        ]
    },
};

pub(crate) static INGRESS_CLASS: Printer = Printer {
    columns: &[Column::NAME, Column::text("Controller"), Column::text("Parameters"), Column::AGE],
    cells: |class, now| {
        let parameters = object::get(class, &["spec", "parameters"]).map(|parameters| {
            let group = object::str_at(parameters, &["apiGroup"]);
            let dot = if group.is_empty() { "" } else { "." };
            let kind = object::str_at(parameters, &["kind"]);
            format!("{kind}{dot}{group}/{}", object::str_at(parameters, &["name"]))
        });
        vec![
            name(class),
            json!(object::str_at(class, &["spec", "controller"])),
            json!(parameters.as_deref().unwrap_or("<none>")),
            age(class, now),
        ]
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(printer: &Printer, object: &Value) -> Vec<Value> {
        let cells = (printer.cells)(object, "2026-01-01T00:01:00Z".parse().expect("a time"));
        assert_eq!(cells.len(), printer.columns.len());
        cells
    }

    #[test]
    fn services_show_where_they_are_reached() {
        let table = [
            (
                json!({"type": "ClusterIP", "clusterIP": "10.96.0.1", "ports": [{"port": 443, "protocol": "TCP"}]}),
                ["ClusterIP", "10.96.0.1", "<none>", "443/TCP"],
            ),
            (
                json!({"type": "NodePort", "clusterIP": "10.96.0.2", "externalIPs": ["192.0.2.1"],
                       "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "nodePort": 30053, "protocol": "UDP"}]}),
                ["NodePort", "10.96.0.2", "192.0.2.1", "80:30080/TCP,53:30053/UDP"],
            ),
            (
                json!({"type": "LoadBalancer", "clusterIP": "10.96.0.3", "ports": []}),
                ["LoadBalancer", "10.96.0.3", "<pending>", "<none>"],
            ),
            (
                json!({"type": "ExternalName", "externalName": "example.com"}),
                ["ExternalName", "<none>", "example.com", "<none>"],
            ),
        ];
        for (spec, expected) in table {
            assert_eq!(cells(&SERVICE, &json!({"spec": spec}))[1..5], expected.map(Value::from));
        }
    }

    #[test]
    fn slices_show_the_first_addresses() {
        let slice = json!({
            "addressType": "IPv4",
            "ports": [{"port": 80}],
            "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}, {"addresses": ["10.0.0.3"]}, {"addresses": ["10.0.0.4"]}],
        });
        assert_eq!(
            cells(&ENDPOINT_SLICE, &slice)[2..4],
            [json!("80"), json!("10.0.0.1,10.0.0.2,10.0.0.3 + 1 more...")]
        );
        assert_eq!(cells(&ENDPOINT_SLICE, &json!({}))[2..4], [json!("<unset>"), json!("<unset>")]);
    }

    #[test]
    fn ingresses_show_hosts_and_ports() {
        let ingress = json!({
            "spec": {"ingressClassName": "weir", "tls": [{}], "rules": [{"host": "a.example"}, {"host": "b.example"}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}},
        });
        assert_eq!(
            cells(&INGRESS, &ingress)[1..5],
            ["weir", "a.example,b.example", "192.0.2.1", "80, 443"].map(Value::from)
        );
        assert_eq!(cells(&INGRESS, &json!({}))[1..5], ["<none>", "*", "", "80"].map(Value::from));
    }
}
