//! From an `EndpointSlice` to the plan's model.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::{
    peers::Peers,
    unserved::{SliceProblem, protocol, unreachable},
};
use crate::plan::model::{self, SlicePort, protocol_name};

/// The slice as the plan sees it, and what of it is left out.
pub(super) fn slice(
    object: &EndpointSlice,
    node: &str,
    peers: &mut Peers,
) -> (model::Slice, Vec<SliceProblem>) {
    let mut problems = Vec::new();
    let ipv4 = match object.address_type.as_str() {
        "IPv4" => true,
        "IPv6" => false,
        other => return (model::Slice::default(), vec![SliceProblem::AddressType(other.to_owned())]),
    };
    let ports = object.ports.as_deref().unwrap_or_default().iter().filter_map(|port| {
        let number = port.port?;
        let Some(number) = u16::try_from(number).ok().filter(|number| *number > 0) else {
            problems.push(SliceProblem::PortNumber(number));
            return None;
        };
        Some(SlicePort {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol: protocol(port.protocol.as_deref(), 0, &mut Vec::new())?,
            port: number,
        })
    });
    let ports = ports.collect();
    let (mut zones, mut endpoints) = (Vec::new(), Vec::with_capacity(object.endpoints.len()));
    let mut left_out: Option<(usize, String, &'static str)> = None;
    for endpoint in &object.endpoints {
        // More than one address means the same pod (the API's documentation); kube-proxy takes the first, too.
        let Some(text) = endpoint.addresses.first() else { continue };
        let address = match address(text, ipv4) {
            Ok(address) => address,
            Err(kind) => {
                left_out.get_or_insert_with(|| (0, text.clone(), kind)).0 += 1;
                continue;
            }
        };
        let conditions = endpoint.conditions.as_ref();
        // Absent means yes, for both; `serving` follows `ready` where it is absent.
        let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
        endpoints.push(model::Endpoint {
            address,
            ready,
            serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
            terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
            local: endpoint.node_name.as_deref() == Some(node),
            node: peers.id(endpoint.node_name.as_deref()),
            zones: hints(endpoint, &mut zones),
        });
    }
    problems.extend(left_out.map(|(count, first, kind)| SliceProblem::Addresses { count, first, kind }));
    (model::Slice { ports, endpoints, zones }, problems)
}

/// An endpoint's address, or what is wrong with it.
fn address(text: &str, ipv4: bool) -> Result<IpAddr, &'static str> {
    let address: IpAddr = text.parse().map_err(|_| "no IP address")?;
    if address.is_ipv4() != ipv4 {
        return Err("not of the slice's addressType");
    }
    unreachable(address).map_or(Ok(address), Err)
}

/// What of a slice cannot be served because of what the Service is.
pub(super) fn mismatches(service: &model::Service, slice: &model::Slice) -> Vec<SliceProblem> {
    let mut problems = Vec::new();
    for port in &slice.ports {
        let known = service.ports.iter().any(|own| own.name == port.name && own.protocol == port.protocol);
        if !known {
            problems
                .push(SliceProblem::Port { name: port.name.clone(), protocol: protocol_name(port.protocol) });
        }
    }
    // All of one slice are of one family.
    let family = slice.endpoints.first().map(|endpoint| endpoint.address.is_ipv4());
    if family.is_some_and(|ipv4| !service.cluster_ips.iter().any(|own| own.is_ipv4() == ipv4)) {
        problems.push(SliceProblem::Family);
    }
    problems
}

/// Bits of the zones that an endpoint's hints name; `zones` gives each its bit. An endpoint whose hints do not fit has
/// none, and so its service is served without regard to zones.
fn hints(endpoint: &Endpoint, zones: &mut Vec<Box<str>>) -> u64 {
    let named = endpoint.hints.as_ref().and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
    let bit = |name: &str| {
        let known = zones.iter().position(|zone| **zone == *name);
        let bit = known.unwrap_or_else(|| {
            zones.push(name.into());
            zones.len() - 1
        });
        (bit < model::Slice::MOST_ZONES).then(|| 1_u64 << bit)
    };
    let bits: Option<Vec<u64>> = named.iter().map(|zone| zone.name.as_str()).map(bit).collect();
    bits.unwrap_or_default().into_iter().fold(0, |all, bit| all | bit)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hints_become_bits() {
        let hinted = |zones: &[String]| {
            let zones: Vec<_> = zones.iter().map(|name| json!({"name": name})).collect();
            json!({"addresses": ["10.244.0.2"], "hints": {"forZones": zones}})
        };
        let read = |endpoints: Vec<serde_json::Value>| {
            let object = json!({"metadata": {}, "addressType": "IPv4", "endpoints": endpoints});
            slice(&serde_json::from_value(object).unwrap(), "here", &mut Peers::default()).0
        };
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let few = read(vec![
            hinted(&names(&["z1"])),
            hinted(&names(&["z2", "z1"])),
            json!({"addresses": ["10.244.0.3"], "hints": {}}),
            json!({"addresses": ["10.244.0.4"]}),
        ]);
        assert_eq!(few.endpoints.iter().map(|e| e.zones).collect::<Vec<_>>(), [1, 3, 0, 0]);
        assert_eq!(few.zones, ["z1".into(), "z2".into()]);
        let many = (0..=model::Slice::MOST_ZONES).map(|n| hinted(&[format!("z{n}")])).collect();
        let many = read(many);
        assert_eq!(many.endpoints.last().map(|e| e.zones), Some(0), "no hint instead of a wrong one");
        assert!(many.endpoints.iter().rev().skip(1).all(|e| e.zones != 0));
    }

    #[test]
    fn absent_conditions_mean_ready() {
        let object = json!({
            "metadata": {"name": "s-1"}, "addressType": "IPv4", "ports": [{"name": "", "port": 8080}, {"name": "any"}],
            "endpoints": [
                {"addresses": ["10.244.0.2"], "nodeName": "here"},
                {"addresses": ["10.244.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": []},
            ],
        });
        let (slice, problems) =
            slice(&serde_json::from_value(object).unwrap(), "here", &mut Peers::default());
        assert_eq!(problems, []);
        assert_eq!(slice.ports.len(), 1, "a port without a number is everyone's and so no one's");
        let states: Vec<_> =
            slice.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating, e.local)).collect();
        assert_eq!(states, [(true, true, false, true), (false, true, true, false)]);
    }

    #[test]
    fn what_is_left_out_is_named_and_the_rest_served() {
        let read = |object: serde_json::Value| {
            let (slice, problems) =
                slice(&serde_json::from_value(object).unwrap(), "here", &mut Peers::default());
            let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
            (slice.ports.len(), slice.endpoints.len(), texts)
        };
        let endpoints = |addresses: &[&str]| -> Vec<_> {
            addresses.iter().map(|address| json!({"addresses": [address]})).collect()
        };
        let bad =
            ["169.254.0.1", "127.0.0.1", "224.0.0.1", "0.0.0.0", "fd00::1", "web.example", "10.244.0.2"];
        let object = json!({
            "metadata": {"name": "s-1"}, "addressType": "IPv4", "endpoints": endpoints(&bad),
            "ports": [{"name": "a", "port": 70_000}, {"name": "b", "port": 8080}],
        });
        let left_out = "6 endpoints are left out; the first has the address `169.254.0.1`, which is a link-local address, \
                        which ends at the next router: give the pods' own";
        let number = "ports.port 70000 is not a port; ports are 1 to 65535";
        assert_eq!(read(object), (1, 1, vec![number.into(), left_out.into()]));
        let mixed = json!({"metadata": {}, "addressType": "IPv6", "endpoints": endpoints(&["fd00::1", "10.244.0.2"])});
        assert!(read(mixed).2[0].contains("`10.244.0.2`, which is not of the slice's addressType"));
        let names = json!({"metadata": {}, "addressType": "FQDN", "endpoints": endpoints(&["web.example"])});
        assert_eq!(read(names), (0, 0, vec!["addressType FQDN is not served; IPv4 and IPv6 are".into()]));
    }
}
