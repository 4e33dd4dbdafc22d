//! What a service has, what it wants, and the difference.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ring::rand::SystemRandom;
use serde_json::{Value as Json, json};
use weir_api::validation::FieldError;
use weir_api::{Resource, Status, object};
use weir_store::{Error, Range, Store};

use super::bitmap::Bitmap;
use super::range::{PortRange, ServiceRange};
use super::{CLUSTER_IPS, NODE_PORTS, Reservation, Value};
use crate::keys;
use crate::metrics::Metrics;

/// Gives out the addresses and ports of services.
pub(crate) struct ServiceAllocator {
    addresses: ServiceRange,
    ports: PortRange,
    random: SystemRandom,
    taken: Mutex<Taken>,
    metrics: Metrics,
}

struct Taken {
    addresses: Bitmap,
    ports: Bitmap,
}

impl ServiceAllocator {
    /// Reads from the store what is taken.
    pub(crate) async fn load(
        store: &dyn Store,
        addresses: ServiceRange,
        ports: PortRange,
        metrics: Metrics,
    ) -> Result<ServiceAllocator, Error> {
        let taken = Taken { addresses: Bitmap::new(addresses.size()), ports: Bitmap::new(ports.size()) };
        let random = SystemRandom::new();
        let allocator = ServiceAllocator { addresses, ports, random, taken: Mutex::new(taken), metrics };
        let mut values = Vec::new();
        for key in allocated(store, CLUSTER_IPS).await? {
            values.extend(key.parse().map(Value::Address));
        }
        for key in allocated(store, NODE_PORTS).await? {
            values.extend(key.parse().map(Value::Port));
        }
        allocator.mark(&values);
        Ok(allocator)
    }

    /// Completes `new` with the addresses and ports it needs beyond those of `old`, or says why it cannot have those it
    /// names. Objects other than services need none.
    pub(crate) fn reserve(
        &self,
        row: &Resource,
        old: Option<&Json>,
        new: &mut Json,
    ) -> Result<Reservation<'_>, Status> {
        let mut reservation = self.nothing(new);
        if !is_service(row) {
            return Ok(reservation);
        }
        let before = old.map(values).unwrap_or_default();
        if let Err(error) = self.complete(new, &before, &mut reservation) {
            // What was taken so far is given back when the reservation goes.
            return Err(Status::invalid(row, object::name(new), &[error]));
        }
        let after = values(new);
        reservation.released = before.difference(&after).copied().collect();
        Ok(reservation)
    }

    /// Gives back what a service that goes away has.
    pub(crate) fn release(&self, row: &Resource, old: &Json) -> Reservation<'_> {
        let mut reservation = self.nothing(old);
        if is_service(row) {
            reservation.released = values(old).into_iter().collect();
        }
        reservation
    }

    fn nothing(&self, value: &Json) -> Reservation<'_> {
        let owner = keys::object(object::namespace(value), object::name(value));
        Reservation { allocator: self, owner, taken: Vec::new(), released: Vec::new() }
    }

    fn complete(
        &self,
        service: &mut Json,
        before: &BTreeSet<Value>,
        reservation: &mut Reservation<'_>,
    ) -> Result<(), FieldError> {
        self.complete_address(service, before, reservation)?;
        self.complete_ports(service, before, reservation)
    }

    fn complete_address(
        &self,
        service: &mut Json,
        before: &BTreeSet<Value>,
        reservation: &mut Reservation<'_>,
    ) -> Result<(), FieldError> {
        if object::str_at(service, &["spec", "type"]) == "ExternalName" {
            return Ok(());
        }
        match object::str_at(service, &["spec", "clusterIP"]).to_owned().as_str() {
            "None" => Ok(()),
            "" => {
                let number = self.lock().addresses.take_any(self.addresses.dynamic_start(), &self.random);
                let address = self.addresses.address(number.ok_or_else(|| {
                    let why = "failed to allocate a serviceIP: range is full";
                    FieldError::invalid("spec.clusterIPs", json!([]), why)
                })?);
                reservation.taken.push(Value::Address(address));
                object::set(service, &["spec", "clusterIP"], address.to_string());
                object::set(service, &["spec", "clusterIPs"], json!([address.to_string()]));
                Ok(())
            }
            text => {
                let invalid = |why: String| FieldError::invalid("spec.clusterIPs", json!([text]), why);
                let address: IpAddr =
                    text.parse().map_err(|_| invalid("must be a valid IP address".to_owned()))?;
                if before.contains(&Value::Address(address)) {
                    return Ok(());
                }
                let number = self.addresses.number(address).ok_or_else(|| {
                    invalid(format!(
                        "failed to allocate IP {address}: the provided IP ({address}) is not in the valid range. \
                         The range of valid IPs is {}",
                        self.addresses
                    ))
                })?;
                if !self.lock().addresses.take(number) {
                    return Err(invalid(format!(
                        "failed to allocate IP {address}: provided IP is already allocated"
                    )));
                }
                reservation.taken.push(Value::Address(address));
                Ok(())
            }
        }
    }

    fn complete_ports(
        &self,
        service: &mut Json,
        before: &BTreeSet<Value>,
        reservation: &mut Reservation<'_>,
    ) -> Result<(), FieldError> {
        if !has_node_ports(service) {
            return Ok(());
        }
        let mut own: BTreeSet<u16> = BTreeSet::new();
        // The ports that are named come first, so that none of them is given to another by chance.
        for (index, port) in object::list_at(service, &["spec", "ports"]).iter().enumerate() {
            let Some(wanted) = node_port(port) else { continue };
            // One number may serve TCP and UDP of the same service.
            if !own.insert(wanted) || before.contains(&Value::Port(wanted)) {
                continue;
            }
            self.take_port(wanted)
                .map_err(|why| FieldError::invalid(format!("spec.ports[{index}].nodePort"), wanted, why))?;
            reservation.taken.push(Value::Port(wanted));
        }
        for (index, port) in object::list_at_mut(service, &["spec", "ports"]).iter_mut().enumerate() {
            if node_port(port).is_some() {
                continue;
            }
            let number = self.lock().ports.take_any(self.ports.dynamic_start(), &self.random);
            let number = number.ok_or_else(|| {
                let why = "failed to allocate a nodePort: range is full";
                FieldError::invalid(format!("spec.ports[{index}].nodePort"), 0, why)
            })?;
            let given = self.ports.port(number);
            reservation.taken.push(Value::Port(given));
            port["nodePort"] = json!(given);
        }
        self.complete_health_check(service, before, reservation)
    }

    /// A load balancer that keeps traffic local asks each node at a port of its own whether it has backends.
    fn complete_health_check(
        &self,
        service: &mut Json,
        before: &BTreeSet<Value>,
        reservation: &mut Reservation<'_>,
    ) -> Result<(), FieldError> {
        if !needs_health_check(service) {
            return Ok(());
        }
        let field = ["spec", "healthCheckNodePort"];
        let port = match object::int_at(service, &field).and_then(|port| u16::try_from(port).ok()) {
            Some(port) if port > 0 => {
                if before.contains(&Value::Port(port)) {
                    return Ok(());
                }
                self.take_port(port)
                    .map_err(|why| FieldError::invalid("spec.healthCheckNodePort", port, why))?;
                port
            }
            _ => {
                let number = self.lock().ports.take_any(self.ports.dynamic_start(), &self.random);
                let number = number.ok_or_else(|| {
                    let why = "failed to allocate a nodePort: range is full";
                    FieldError::invalid("spec.healthCheckNodePort", 0, why)
                })?;
                self.ports.port(number)
            }
        };
        reservation.taken.push(Value::Port(port));
        object::set(service, &field, port);
        Ok(())
    }

    fn take_port(&self, port: u16) -> Result<(), String> {
        let Some(number) = self.ports.number(port) else {
            return Err(format!(
                "provided port is not in the valid range. The range of valid ports is {}",
                self.ports
            ));
        };
        if self.lock().ports.take(number) {
            Ok(())
        } else {
            Err("provided port is already allocated".to_owned())
        }
    }

    /// Takes values whoever has them.
    fn mark(&self, values: &[Value]) {
        let mut taken = self.lock();
        for value in values {
            match *value {
                Value::Address(address) => self.addresses.number(address).map(|n| taken.addresses.take(n)),
                Value::Port(port) => self.ports.number(port).map(|n| taken.ports.take(n)),
            };
        }
        self.measure(&taken);
    }

    pub(super) fn free(&self, values: &[Value]) {
        let mut taken = self.lock();
        for value in values {
            match *value {
                Value::Address(address) => self.addresses.number(address).map(|n| taken.addresses.release(n)),
                Value::Port(port) => self.ports.number(port).map(|n| taken.ports.release(n)),
            };
        }
        self.measure(&taken);
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Nothing in the critical sections can panic half-way through a change.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn measure(&self, taken: &Taken) {
        self.metrics.cluster_ips.set(taken.addresses.taken() as i64);
        self.metrics.node_ports.set(taken.ports.taken() as i64);
    }
}

/// The values that the store says are taken.
async fn allocated(store: &dyn Store, what: &str) -> Result<Vec<String>, Error> {
    let prefix = keys::allocated(what, "");
    let page = store.range(Range::prefix(prefix.clone())).await?;
    let value = |key: &[u8]| String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
    Ok(page.entries.iter().map(|entry| value(&entry.key)).collect())
}

fn is_service(row: &Resource) -> bool {
    row.group.is_empty() && row.plural == "services"
}

fn has_node_ports(service: &Json) -> bool {
    match object::str_at(service, &["spec", "type"]) {
        "NodePort" => true,
        "LoadBalancer" => {
            object::get(service, &["spec", "allocateLoadBalancerNodePorts"]).and_then(Json::as_bool)
                != Some(false)
        }
        _ => false,
    }
}

fn needs_health_check(service: &Json) -> bool {
    object::str_at(service, &["spec", "type"]) == "LoadBalancer"
        && object::str_at(service, &["spec", "externalTrafficPolicy"]) == "Local"
}

fn node_port(port: &Json) -> Option<u16> {
    object::int_at(port, &["nodePort"]).and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)
}

/// The values that a stored service has.
fn values(service: &Json) -> BTreeSet<Value> {
    let mut values = BTreeSet::new();
    if object::str_at(service, &["spec", "type"]) != "ExternalName" {
        values.extend(object::str_at(service, &["spec", "clusterIP"]).parse().map(Value::Address));
    }
    if matches!(object::str_at(service, &["spec", "type"]), "NodePort" | "LoadBalancer") {
        values.extend(
            object::list_at(service, &["spec", "ports"]).iter().filter_map(node_port).map(Value::Port),
        );
        let health = object::int_at(service, &["spec", "healthCheckNodePort"]);
        values.extend(
            health.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0).map(Value::Port),
        );
    }
    values
}
