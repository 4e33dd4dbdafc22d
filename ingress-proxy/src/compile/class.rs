//! Whose Ingress it is.

use super::{CONTROLLER, IngressFact, Snapshot};

pub(super) enum Claim {
    Ours,
    Theirs,
    /// It names a class that does not exist, so that nobody serves it: somebody has to say so.
    UnknownClass(String),
}

/// `spec.ingressClassName` first, then the annotation that came before it, then the default class.
pub(super) fn claim(snapshot: &Snapshot, ingress: &IngressFact, class_name: &str) -> Claim {
    let ours = |controller: &str| if controller == CONTROLLER { Claim::Ours } else { Claim::Theirs };
    if let Some(name) = &ingress.spec.ingress_class_name {
        return match snapshot.classes.get(name) {
            Some(class) => ours(&class.controller),
            None => Claim::UnknownClass(name.clone()),
        };
    }
    if let Some(name) = &ingress.class_annotation {
        // The annotation is older than IngressClass: it may name a controller that has no such object.
        return match snapshot.classes.get(name) {
            Some(class) => ours(&class.controller),
            None if name == class_name => Claim::Ours,
            None => Claim::Theirs,
        };
    }
    if snapshot.classes.values().any(|class| class.default && class.controller == CONTROLLER) {
        Claim::Ours
    } else {
        Claim::Theirs
    }
}
