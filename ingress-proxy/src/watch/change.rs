//! One change of the cluster, and what it makes stale.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};

use crate::compile::{
    Address, ClassFact, IngressFact, ObjectKey, SecretFact, ServiceFact, SliceFact, Snapshot,
};

/// The kinds that are watched whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Class,
    Ingress,
    Service,
    Slice,
}

const KINDS: usize = 4;

/// An object that came, changed or went (`None`), or the bounds of a list.
#[derive(Debug)]
pub(super) enum Change {
    ListBegins(Kind),
    ListEnds(Kind),
    Class(ObjectKey, Option<ClassFact>),
    Ingress(ObjectKey, Option<Box<IngressFact>>),
    Service(ObjectKey, Option<ServiceFact>),
    Slice(ObjectKey, Option<SliceFact>),
    Secret(ObjectKey, SecretFact),
}

impl Change {
    pub(super) fn class(object: IngressClass, here: bool) -> Self {
        Self::Class(ObjectKey::of(&object.metadata), here.then(|| object.into()))
    }

    pub(super) fn ingress(object: Ingress, here: bool) -> Self {
        Self::Ingress(ObjectKey::of(&object.metadata), here.then(|| Box::new(object.into())))
    }

    /// `published` is the Service whose addresses are needed.
    pub(super) fn service(object: Service, here: bool, published: Option<&ObjectKey>) -> Self {
        let key = ObjectKey::of(&object.metadata);
        let addresses = if published == Some(&key) { Address::of_service(&object) } else { Vec::new() };
        Self::Service(key, here.then(|| ServiceFact { addresses, ..object.into() }))
    }

    pub(super) fn slice(object: EndpointSlice, here: bool) -> Self {
        let key = ObjectKey::of(&object.metadata);
        Self::Slice(key, if here { SliceFact::read(object) } else { None })
    }
}

/// What a change makes stale.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Whose Ingresses are.
    Classes,
    /// What this Ingress asks for.
    Ingress(ObjectKey),
    /// Only its published status.
    Status(ObjectKey),
    /// The ports of this Service, or where it is reached.
    Service(ObjectKey),
    /// The endpoints of this Service.
    Endpoints(ObjectKey),
    /// What this secret is good for.
    Secret(ObjectKey),
    /// Only which pair of certificate and key is in it.
    Pair(ObjectKey),
}

/// Applies changes to a snapshot, and knows of each kind what a running list has shown so far: what the list
/// did not show is gone when it ends.
#[derive(Debug, Default)]
pub(super) struct Relists {
    listed: [bool; KINDS],
    shown: [Option<BTreeSet<ObjectKey>>; KINDS],
    /// The Service of each EndpointSlice, by the slice's own key.
    homes: HashMap<ObjectKey, ObjectKey>,
}

impl Relists {
    /// Whether every kind was listed to its end once.
    pub(super) fn all_listed(&self) -> bool {
        self.listed.iter().all(|listed| *listed)
    }

    pub(super) fn apply(&mut self, snapshot: &mut Snapshot, change: Change, stale: &mut impl FnMut(Effect)) {
        match change {
            Change::ListBegins(kind) => self.shown[kind as usize] = Some(BTreeSet::new()),
            Change::ListEnds(kind) => {
                self.listed[kind as usize] = true;
                if let Some(shown) = self.shown[kind as usize].take() {
                    for key in known(snapshot, kind) {
                        if !shown.contains(&key) {
                            set(snapshot, &mut self.homes, gone(kind, key), stale);
                        }
                    }
                }
            }
            Change::Secret(key, fact) => set_secret(snapshot, key, fact, stale),
            change => {
                let (kind, key) = change.object();
                if let Some(shown) = &mut self.shown[kind as usize] {
                    shown.insert(key.clone());
                }
                set(snapshot, &mut self.homes, change, stale);
            }
        }
    }
}

impl Change {
    fn object(&self) -> (Kind, &ObjectKey) {
        match self {
            Self::Class(key, _) => (Kind::Class, key),
            Self::Ingress(key, _) => (Kind::Ingress, key),
            Self::Service(key, _) => (Kind::Service, key),
            Self::Slice(key, _) => (Kind::Slice, key),
            Self::ListBegins(_) | Self::ListEnds(_) | Self::Secret(..) => {
                unreachable!("lists and secrets are applied on their own")
            }
        }
    }
}

fn known(snapshot: &Snapshot, kind: Kind) -> Vec<ObjectKey> {
    match kind {
        Kind::Class => snapshot.classes.keys().map(|name| ObjectKey::new("", name)).collect(),
        Kind::Ingress => snapshot.ingresses.keys().cloned().collect(),
        Kind::Service => snapshot.services.keys().cloned().collect(),
        Kind::Slice => snapshot
            .slices
            .iter()
            .flat_map(|(service, slices)| slices.keys().map(|name| ObjectKey::new(&service.namespace, name)))
            .collect(),
    }
}

fn gone(kind: Kind, key: ObjectKey) -> Change {
    match kind {
        Kind::Class => Change::Class(key, None),
        Kind::Ingress => Change::Ingress(key, None),
        Kind::Service => Change::Service(key, None),
        Kind::Slice => Change::Slice(key, None),
    }
}

fn set(
    snapshot: &mut Snapshot,
    homes: &mut HashMap<ObjectKey, ObjectKey>,
    change: Change,
    stale: &mut impl FnMut(Effect),
) {
    match change {
        Change::Class(key, fact) => {
            if replace(&mut snapshot.classes, key.name, fact) {
                stale(Effect::Classes);
            }
        }
        Change::Ingress(key, fact) => set_ingress(snapshot, key, fact.map(|fact| *fact), stale),
        Change::Service(key, fact) => {
            if replace(&mut snapshot.services, key.clone(), fact) {
                stale(Effect::Service(key));
            }
        }
        Change::Slice(key, fact) => set_slice(snapshot, homes, key, fact, stale),
        Change::ListBegins(_) | Change::ListEnds(_) | Change::Secret(..) => {}
    }
}

fn set_ingress(
    snapshot: &mut Snapshot,
    key: ObjectKey,
    fact: Option<IngressFact>,
    stale: &mut impl FnMut(Effect),
) {
    let before = snapshot.ingresses.get(&key);
    // Our own status comes back as a change: it must not cause a compilation.
    let only_status = match (before, &fact) {
        (Some(before), Some(now)) => {
            before.published != now.published
                && IngressFact { published: now.published.clone(), ..before.clone() } == *now
        }
        _ => false,
    };
    if replace(&mut snapshot.ingresses, key.clone(), fact) {
        stale(if only_status { Effect::Status(key) } else { Effect::Ingress(key) });
    }
}

/// A certificate that is renewed changes nothing of who is served with it.
fn set_secret(snapshot: &mut Snapshot, key: ObjectKey, fact: SecretFact, stale: &mut impl FnMut(Effect)) {
    let effect = match (snapshot.secrets.get(&key), &fact) {
        (Some(before), now) if before.is_as_good_as(now) => None,
        (Some(SecretFact::Usable(_, before)), SecretFact::Usable(_, now)) if before == now => {
            Some(Effect::Pair(key.clone()))
        }
        _ => Some(Effect::Secret(key.clone())),
    };
    snapshot.secrets.insert(key, fact);
    effect.into_iter().for_each(stale);
}

fn set_slice(
    snapshot: &mut Snapshot,
    homes: &mut HashMap<ObjectKey, ObjectKey>,
    key: ObjectKey,
    fact: Option<SliceFact>,
    stale: &mut impl FnMut(Effect),
) {
    // A slice names its Service in a label, which may change, and a deleted one may say nothing.
    let home = fact.as_ref().map(|fact| fact.service.clone());
    let before = match &home {
        Some(service) => homes.insert(key.clone(), service.clone()),
        None => homes.remove(&key),
    };
    if let Some(old) = before.filter(|old| home.as_ref() != Some(old)) {
        if let Some(slices) = snapshot.slices.get_mut(&old) {
            slices.remove(&key.name);
            if slices.is_empty() {
                snapshot.slices.remove(&old);
            }
        }
        stale(Effect::Endpoints(old));
    }
    if let (Some(service), Some(fact)) = (home, fact)
        && replace(snapshot.slices.entry(service.clone()).or_default(), key.name, Some(fact))
    {
        stale(Effect::Endpoints(service));
    }
}

/// Puts, replaces or removes; whether anything is different now.
fn replace<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    match value {
        None => map.remove(&key).is_some(),
        Some(value) => {
            if map.get(&key) == Some(&value) {
                return false;
            }
            map.insert(key, value);
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::networking::v1::IngressSpec;

    use super::*;

    fn service(number: u16) -> Change {
        let port = crate::compile::PortFact { name: String::new(), number, protocol: None };
        let fact = ServiceFact { ports: vec![port], ..ServiceFact::default() };
        Change::Service(ObjectKey::new("n", "s"), Some(fact))
    }

    fn slice(name: &str, service: Option<&str>) -> Change {
        let fact = service.map(|service| SliceFact {
            service: ObjectKey::new("n", service),
            ports: vec![],
            endpoints: vec![],
        });
        Change::Slice(ObjectKey::new("n", name), fact)
    }

    fn effects(relists: &mut Relists, snapshot: &mut Snapshot, change: Change) -> Vec<Effect> {
        let mut effects = Vec::new();
        relists.apply(snapshot, change, &mut |effect| effects.push(effect));
        effects
    }

    #[test]
    fn what_changes_nothing_makes_nothing_stale() {
        let (mut relists, mut snapshot) = (Relists::default(), Snapshot::default());
        let stale = || [Effect::Service(ObjectKey::new("n", "s"))];
        assert_eq!(effects(&mut relists, &mut snapshot, service(80)), stale());
        assert_eq!(effects(&mut relists, &mut snapshot, service(80)), []);
        assert_eq!(effects(&mut relists, &mut snapshot, service(81)), stale());
    }

    #[test]
    fn a_renewed_certificate_compiles_nothing() {
        let (mut relists, mut snapshot) = (Relists::default(), Snapshot::default());
        let key = || ObjectKey::new("n", "s");
        let pair = || SecretFact::Usable(Arc::new(crate::tls::self_signed().unwrap()), None);
        let opaque = |users: &str| {
            let data = BTreeMap::from([("auth".to_owned(), users.as_bytes().to_vec())]);
            SecretFact::Opaque(Arc::new(data))
        };
        let (secret, renewed) = (Some(Effect::Secret(key())), Some(Effect::Pair(key())));
        for (what, fact, expected) in [
            ("not there", SecretFact::Missing, &secret),
            ("still not there", SecretFact::Missing, &None),
            ("made", pair(), &secret),
            ("renewed", pair(), &renewed),
            ("users", opaque("ann"), &secret),
            ("the same users", opaque("ann"), &None),
            ("others", opaque("bob"), &secret),
            ("broken", SecretFact::Broken("a".into()), &secret),
            ("the same fault", SecretFact::Broken("a".into()), &None),
            ("another fault", SecretFact::Broken("b".into()), &secret),
        ] {
            let found = effects(&mut relists, &mut snapshot, Change::Secret(key(), fact));
            assert_eq!(found.first(), expected.as_ref(), "{what}");
        }
    }

    #[test]
    fn a_list_removes_what_it_does_not_show() {
        let (mut relists, mut snapshot) = (Relists::default(), Snapshot::default());
        effects(&mut relists, &mut snapshot, service(80));
        effects(&mut relists, &mut snapshot, Change::ListBegins(Kind::Service));
        assert_eq!(snapshot.services.len(), 1, "still served while the list runs");
        effects(&mut relists, &mut snapshot, Change::ListEnds(Kind::Service));
        assert_eq!(snapshot.services.len(), 0);
        assert!(!relists.all_listed());
        for kind in [Kind::Class, Kind::Ingress, Kind::Slice] {
            effects(&mut relists, &mut snapshot, Change::ListEnds(kind));
        }
        assert!(relists.all_listed());
    }

    #[test]
    fn a_slice_that_moves_or_goes_leaves_its_old_service() {
        let (mut relists, mut snapshot) = (Relists::default(), Snapshot::default());
        let endpoints = |service| Effect::Endpoints(ObjectKey::new("n", service));
        assert_eq!(effects(&mut relists, &mut snapshot, slice("x", Some("a"))), [endpoints("a")]);
        assert_eq!(effects(&mut relists, &mut snapshot, slice("x", Some("a"))), []);
        assert_eq!(
            effects(&mut relists, &mut snapshot, slice("x", Some("b"))),
            [endpoints("a"), endpoints("b")]
        );
        assert_eq!(effects(&mut relists, &mut snapshot, slice("x", None)), [endpoints("b")]);
        assert!(snapshot.slices.is_empty());
    }

    #[test]
    fn a_published_status_compiles_nothing() {
        let (mut relists, mut snapshot) = (Relists::default(), Snapshot::default());
        let ingress = |published: &[&str]| {
            let fact = IngressFact {
                key: ObjectKey::new("n", "i"),
                uid: String::new(),
                created: 0,
                class_annotation: None,
                annotations: BTreeMap::new(),
                spec: IngressSpec::default(),
                published: published.iter().copied().map(Address::from).collect(),
            };
            Change::Ingress(ObjectKey::new("n", "i"), Some(Box::new(fact)))
        };
        let key = || ObjectKey::new("n", "i");
        assert_eq!(effects(&mut relists, &mut snapshot, ingress(&[])), [Effect::Ingress(key())]);
        assert_eq!(effects(&mut relists, &mut snapshot, ingress(&["192.0.2.1"])), [Effect::Status(key())]);
    }
}
