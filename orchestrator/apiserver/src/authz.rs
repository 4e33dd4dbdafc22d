//! Who may do what: a table.
//!
//! Administrators may do everything, each component what it needs, everybody who is known may look around and ask about
//! themselves, and anybody may ask whether the server is well. [`authorize`] is the only question the rest of the server
//! asks; when roles and bindings become objects, they answer it here.

use weir_api::Status;

use crate::authn::{AUTHENTICATED, MASTERS, User};

/// What somebody wants to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action<'a> {
    /// Something to a resource.
    Resource {
        verb: &'a str,
        group: &'a str,
        /// With its subresource: `pods/log`.
        resource: &'a str,
        namespace: &'a str,
        name: &'a str,
    },
    /// Something to another path.
    Path { verb: &'a str, path: &'a str },
}

const READ: &[&str] = &["get", "list", "watch"];
const EDIT: &[&str] = &["create", "update", "patch"];
const CHANGE: &[&str] = &["update", "patch"];
const CREATE: &[&str] = &["create"];
const DELETE: &[&str] = &["delete"];
const RENEW: &[&str] = &["get", "update"];
const HOLD_LEASES: &[&str] = &["get", "list", "watch", "create", "update", "patch", "delete"];
const ALL: &[&str] = &["*"];

#[derive(Clone, Copy)]
enum Who {
    User(&'static str),
    Group(&'static str),
    /// A node, for objects that bear its own name.
    OwnNode,
}

struct Rule {
    who: Who,
    verbs: &'static [&'static str],
    group: &'static str,
    resources: &'static [&'static str],
    /// Objects that it is about; all, if it names none.
    names: &'static [&'static str],
}

impl Rule {
    const fn named(self, names: &'static [&'static str]) -> Self {
        Self { names, ..self }
    }
}

const fn rule(
    who: Who,
    verbs: &'static [&'static str],
    group: &'static str,
    resources: &'static [&'static str],
) -> Rule {
    Rule { who, verbs, group, resources, names: &[] }
}

const SCHEDULER: Who = Who::User("system:kube-scheduler");
const CONTROLLERS: Who = Who::User("system:kube-controller-manager");
const DATAPLANE: Who = Who::User("system:weir:dataplane");
const INGRESS: Who = Who::User("system:weir:ingress");
const NODES: Who = Who::Group("system:nodes");
const ANYONE_KNOWN: Who = Who::Group(AUTHENTICATED);

const RULES: &[Rule] = &[
    rule(SCHEDULER, READ, "", &["nodes", "namespaces", "pods", "services"]),
    rule(SCHEDULER, READ, "apps", &["replicasets"]),
    rule(SCHEDULER, CREATE, "", &["pods/binding"]),
    rule(SCHEDULER, CHANGE, "", &["pods/status"]),
    rule(SCHEDULER, DELETE, "", &["pods"]),
    // One identity for all controllers: garbage collection deletes objects of any kind.
    rule(CONTROLLERS, ALL, "*", &["*"]),
    rule(NODES, READ, "", &["pods", "services", "configmaps", "secrets", "namespaces", "nodes"]),
    rule(NODES, READ, "discovery.k8s.io", &["endpointslices"]),
    rule(NODES, CREATE, "", &["nodes", "serviceaccounts/token"]),
    rule(Who::OwnNode, CHANGE, "", &["nodes", "nodes/status"]),
    rule(NODES, CHANGE, "", &["pods/status"]),
    rule(NODES, DELETE, "", &["pods"]),
    rule(DATAPLANE, READ, "", &["services", "nodes", "pods", "namespaces"]),
    rule(DATAPLANE, READ, "discovery.k8s.io", &["endpointslices"]),
    rule(INGRESS, READ, "networking.k8s.io", &["ingresses", "ingressclasses"]),
    rule(INGRESS, READ, "", &["services", "secrets", "namespaces"]),
    rule(INGRESS, READ, "discovery.k8s.io", &["endpointslices"]),
    rule(INGRESS, CHANGE, "networking.k8s.io", &["ingresses/status"]),
    rule(SCHEDULER, HOLD_LEASES, "coordination.k8s.io", &["leases"]),
    rule(NODES, HOLD_LEASES, "coordination.k8s.io", &["leases"]),
    rule(INGRESS, CREATE, "coordination.k8s.io", &["leases"]),
    rule(INGRESS, RENEW, "coordination.k8s.io", &["leases"]).named(&["weir-ingress"]),
    rule(SCHEDULER, EDIT, "", &["events"]),
    rule(SCHEDULER, EDIT, "events.k8s.io", &["events"]),
    rule(NODES, EDIT, "", &["events"]),
    rule(NODES, EDIT, "events.k8s.io", &["events"]),
    rule(DATAPLANE, EDIT, "", &["events"]),
    rule(DATAPLANE, EDIT, "events.k8s.io", &["events"]),
    rule(INGRESS, EDIT, "", &["events"]),
    rule(INGRESS, EDIT, "events.k8s.io", &["events"]),
    rule(
        ANYONE_KNOWN,
        CREATE,
        "authorization.k8s.io",
        &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
    ),
    rule(ANYONE_KNOWN, CREATE, "authentication.k8s.io", &["selfsubjectreviews"]),
];

/// Paths that anybody may read.
const PUBLIC_PATHS: &[&str] = &["/healthz", "/livez", "/readyz", "/version"];
/// Trees that everybody who is known may read.
const KNOWN_PATHS: &[&str] = &["/api", "/apis", "/openapi"];

/// Whether `user` may do that.
pub(crate) fn authorize(user: &User, action: &Action<'_>) -> bool {
    if user.is_in(MASTERS) {
        return true;
    }
    match action {
        Action::Resource { verb, group, resource, name, .. } => RULES.iter().any(|rule| {
            let covers = |list: &[&str], wanted: &str| list.iter().any(|own| *own == "*" || *own == wanted);
            covers(rule.verbs, verb)
                && (rule.group == "*" || rule.group == *group)
                && covers(rule.resources, resource)
                && (rule.names.is_empty() || rule.names.contains(name))
                && rule.who.is(user, name)
        }),
        Action::Path { verb, path } => {
            let path = path.trim_end_matches('/');
            let below = |tree: &&str| {
                path.strip_prefix(*tree).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            *verb == "get"
                && (PUBLIC_PATHS.iter().any(below)
                    || user.is_in(AUTHENTICATED) && (path.is_empty() || KNOWN_PATHS.iter().any(below)))
        }
    }
}

impl Who {
    fn is(self, user: &User, name: &str) -> bool {
        match self {
            Who::User(own) => user.name == own,
            Who::Group(group) => user.is_in(group),
            Who::OwnNode => {
                user.is_in("system:nodes") && user.name.strip_prefix("system:node:") == Some(name)
            }
        }
    }
}

/// Why not, in upstream's words.
pub(crate) fn refusal(user: &User, action: &Action<'_>) -> Status {
    let user = &user.name;
    match action {
        Action::Resource { verb, group, resource, namespace, name } => {
            let scope = if namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace {namespace:?}")
            };
            let why =
                format!("User {user:?} cannot {verb} resource {resource:?} in API group {group:?} {scope}");
            let plural = resource.split('/').next().unwrap_or_default();
            Status::forbidden_for(group, plural, name, &why)
        }
        Action::Path { verb, path } => {
            Status::forbidden_for("", "", "", &format!("User {user:?} cannot {verb} path {path:?}"))
        }
    }
}

/// What a rule allows, as a `SelfSubjectRulesReview` lists it.
pub(crate) struct Allowed {
    pub(crate) verbs: &'static [&'static str],
    pub(crate) group: &'static str,
    pub(crate) resources: &'static [&'static str],
    /// All, if there are none.
    pub(crate) names: &'static [&'static str],
}

/// The rules that hold for `user`.
pub(crate) fn rules_of(user: &User) -> Vec<Allowed> {
    if user.is_in(MASTERS) {
        return vec![Allowed { verbs: ALL, group: "*", resources: ALL, names: &[] }];
    }
    let own_name = user.name.strip_prefix("system:node:").unwrap_or_default();
    let mine = RULES.iter().filter(|rule| rule.who.is(user, own_name));
    mine.map(|&Rule { verbs, group, resources, names, .. }| Allowed { verbs, group, resources, names })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, group: &str) -> User {
        User::authenticated(name.to_owned(), String::new(), vec![group.to_owned()])
    }

    fn may(user: &User, verb: &str, group: &str, resource: &str, name: &str) -> bool {
        authorize(user, &Action::Resource { verb, group, resource, namespace: "default", name })
    }

    #[test]
    fn each_may_do_its_part() {
        let admin = user("kubernetes-admin", MASTERS);
        let node = user("system:node:n1", "system:nodes");
        let scheduler = user("system:kube-scheduler", "");
        let ingress = user("system:weir:ingress", "");
        let stranger = user("stranger", "");
        let table = [
            (&admin, "deletecollection", "any", "thing", true),
            (&scheduler, "create", "", "pods/binding", true),
            (&scheduler, "get", "", "secrets", false),
            (&node, "update", "", "pods/status", true),
            (&node, "create", "", "pods/binding", false),
            (&ingress, "watch", "", "secrets", true),
            (&ingress, "update", "networking.k8s.io", "ingresses/status", true),
            (&ingress, "update", "networking.k8s.io", "ingresses", false),
            (&stranger, "list", "", "pods", false),
            (&stranger, "create", "authorization.k8s.io", "selfsubjectaccessreviews", true),
        ];
        for (user, verb, group, resource, expected) in table {
            assert_eq!(may(user, verb, group, resource, ""), expected, "{} {verb} {resource}", user.name);
        }
        assert!(may(&node, "patch", "", "nodes/status", "n1"));
        assert!(!may(&node, "patch", "", "nodes/status", "n2"), "a node writes no other node");
        let lease = |verb, name| may(&ingress, verb, "coordination.k8s.io", "leases", name);
        assert!(lease("create", "") && lease("get", "weir-ingress") && lease("update", "weir-ingress"));
        assert!(!lease("update", "kube-scheduler") && !lease("list", "") && !lease("delete", "weir-ingress"));
    }

    #[test]
    fn paths_are_public_known_or_closed() {
        let anonymous = User::anonymous();
        let known = user("stranger", "");
        let get = |user: &User, path: &str| authorize(user, &Action::Path { verb: "get", path });
        for path in ["/healthz", "/livez/ping", "/readyz", "/version", "/version/"] {
            assert!(get(&anonymous, path), "{path}");
        }
        for path in ["/api", "/apis/apps/v1", "/openapi/v3", "/"] {
            assert!(get(&known, path) && !get(&anonymous, path), "{path}");
        }
        for path in ["/metrics", "/healthzz", "/apiserver"] {
            assert!(!get(&known, path), "{path}");
        }
    }

    #[test]
    fn refusals_are_upstreams() {
        let stranger = user("stranger", "");
        let action =
            Action::Resource { verb: "list", group: "", resource: "pods", namespace: "default", name: "" };
        assert_eq!(
            refusal(&stranger, &action).message,
            r#"pods is forbidden: User "stranger" cannot list resource "pods" in API group "" in the namespace "default""#
        );
        let path = Action::Path { verb: "get", path: "/metrics" };
        assert_eq!(
            refusal(&stranger, &path).message,
            r#"forbidden: User "stranger" cannot get path "/metrics""#
        );
    }
}
