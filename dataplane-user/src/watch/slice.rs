//! From an `EndpointSlice` to the plan's model.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::unserved::protocol;
use crate::plan::model::{self, SlicePort};

/// The slice as the plan sees it. Wrong entries are left out: the slice's own controller wrote them, and nobody reads
/// Events of slices.
pub(super) fn slice(object: &EndpointSlice, node: &str) -> model::Slice {
    let ports = object.ports.as_deref().unwrap_or_default().iter().filter_map(|port| {
        Some(SlicePort {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol: protocol(port.protocol.as_deref(), 0, &mut Vec::new())?,
            port: u16::try_from(port.port?).ok().filter(|port| *port > 0)?,
        })
    });
    let mut zones = Vec::new();
    let endpoints = object.endpoints.iter().filter_map(|endpoint| {
        // More than one address means the same pod (the API's documentation); kube-proxy takes the first, too.
        let address: Option<IpAddr> = endpoint.addresses.first().and_then(|address| address.parse().ok());
        address.filter(|address| !address.is_loopback() && !address.is_unspecified()).map(|address| {
            let conditions = endpoint.conditions.as_ref();
            // Absent means yes, for both; `serving` follows `ready` where it is absent.
            let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            model::Endpoint {
                address,
                ready,
                serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
                terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
                local: endpoint.node_name.as_deref() == Some(node),
                zones: hints(endpoint, &mut zones),
            }
        })
    });
    let endpoints = endpoints.collect();
    model::Slice { ports: ports.collect(), endpoints, zones }
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
            slice(&serde_json::from_value(object).unwrap(), "here")
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
                {"addresses": ["127.0.0.1"]},
                {"addresses": []},
            ],
        });
        let slice = slice(&serde_json::from_value(object).unwrap(), "here");
        assert_eq!(slice.ports.len(), 1, "a port without a number is everyone's and so no one's");
        let states: Vec<_> =
            slice.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating, e.local)).collect();
        assert_eq!(states, [(true, true, false, true), (false, true, true, false)]);
    }
}
