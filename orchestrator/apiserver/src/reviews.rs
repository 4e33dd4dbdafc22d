//! Reviews: questions about users and rights, answered and forgotten.

use http::{Response, StatusCode};
use serde_json::{Value, json};
use weir_api::{Status, object};

use crate::authn::User;
use crate::authz::{self, Action, Allowed};
use crate::response::{self, Body};
use crate::server::Server;
use crate::verbs::Request;

/// Answers a review that was posted.
pub(crate) fn answer(server: &Server, request: &Request) -> Result<Response<Body>, Status> {
    let row = request.row();
    let mut review = request.decode(row.target())?.object;
    let status = match row.kind {
        "SelfSubjectAccessReview" => access(&request.user, &review["spec"])?,
        "SubjectAccessReview" => {
            let spec = &review["spec"];
            let groups = object::list_at(spec, &["groups"]).iter().filter_map(Value::as_str);
            let user = User {
                name: object::str_at(spec, &["user"]).to_owned(),
                uid: object::str_at(spec, &["uid"]).to_owned(),
                groups: groups.map(str::to_owned).collect(),
            };
            access(&user, spec)?
        }
        "SelfSubjectRulesReview" => rules(&request.user),
        "SelfSubjectReview" => json!({ "userInfo": info(&request.user) }),
        "TokenReview" => {
            let token = object::str_at(&review, &["spec", "token"]);
            match server.authenticator.user_of_token(token, &server.storage.cache) {
                Some(user) => json!({ "authenticated": true, "user": info(&user) }),
                None => json!({ "authenticated": false, "error": "the token is not valid" }),
            }
        }
        _ => return Err(Status::method_not_allowed(row, "create")),
    };
    review["status"] = status;
    object::set(&mut review, &["metadata", "creationTimestamp"], crate::verbs::now());
    let pretty = response::is_pretty(request.query.pretty, &request.headers);
    Ok(response::json(StatusCode::CREATED, &review, pretty))
}

fn info(user: &User) -> Value {
    let mut info = json!({ "username": user.name, "groups": user.groups });
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    info
}

fn access(user: &User, spec: &Value) -> Result<Value, Status> {
    let text = |path: &[&str]| object::str_at(spec, path);
    let (resource, path) =
        (object::get(spec, &["resourceAttributes"]), object::get(spec, &["nonResourceAttributes"]));
    let allowed = match (resource, path) {
        (Some(_), None) => {
            let field = |name| text(&["resourceAttributes", name]);
            let resource = match (field("resource"), field("subresource")) {
                (resource, "") => resource.to_owned(),
                (resource, subresource) => format!("{resource}/{subresource}"),
            };
            authz::authorize(
                user,
                &Action::Resource {
                    verb: field("verb"),
                    group: field("group"),
                    resource: &resource,
                    namespace: field("namespace"),
                    name: field("name"),
                },
            )
        }
        (None, Some(_)) => {
            let field = |name| text(&["nonResourceAttributes", name]);
            authz::authorize(user, &Action::Path { verb: field("verb"), path: field("path") })
        }
        _ => {
            return Err(Status::bad_request(
                "exactly one of spec.resourceAttributes and spec.nonResourceAttributes must be specified",
            ));
        }
    };
    Ok(json!({ "allowed": allowed }))
}

fn rules(user: &User) -> Value {
    let resources: Vec<Value> = authz::rules_of(user)
        .into_iter()
        .map(|Allowed { verbs, group, resources, names }| {
            let mut rule = json!({ "verbs": verbs, "apiGroups": [group], "resources": resources });
            if !names.is_empty() {
                rule["resourceNames"] = json!(names);
            }
            rule
        })
        .collect();
    let paths: &[&str] = if user.is_in(crate::authn::MASTERS) {
        &["*"]
    } else {
        &[
            "/healthz",
            "/livez",
            "/readyz",
            "/version",
            "/api",
            "/api/*",
            "/apis",
            "/apis/*",
            "/openapi",
            "/openapi/*",
        ]
    };
    json!({
        "resourceRules": resources,
        "nonResourceRules": [{ "verbs": ["get"], "nonResourceURLs": paths }],
        "incomplete": false,
    })
}
