//! `serviceaccounts/token`: a token for a pod, good for a while (`TokenRequest`).

use http::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use weir_api::resource::{self, TOKEN_REQUEST};
use weir_api::validation::FieldError;
use weir_api::{Status, object};

use crate::authn::{AUDIENCE, Bound, ServiceAccount};
use crate::response::{self, Body};
use crate::server::Server;
use crate::verbs::{Request, at, now};

/// What a client gets that does not say how long.
const SECONDS_DEFAULT: i64 = 3600;
/// Upstream's bounds: ten minutes, and what fits 32 bits.
const SECONDS_MIN: i64 = 600;
const SECONDS_MAX: i64 = 1 << 32;

pub(super) async fn create(server: &Server, request: &Request) -> Result<Response<Body>, Status> {
    let path = &request.path;
    let mut review = request.decode(TOKEN_REQUEST)?.object;
    let account = server.storage.get(path.row, &path.namespace, &path.name).await?;

    let seconds = object::int_at(&review, &["spec", "expirationSeconds"]).unwrap_or(SECONDS_DEFAULT);
    let invalid = |field: &str, value: i64, why: &str| {
        let error = FieldError::invalid(field, value, why);
        Status::invalid_kind(TOKEN_REQUEST.group, TOKEN_REQUEST.kind, &path.name, &[error])
    };
    if seconds < SECONDS_MIN {
        return Err(invalid(
            "spec.expirationSeconds",
            seconds,
            "may not specify a duration less than 10 minutes",
        ));
    }
    if seconds > SECONDS_MAX {
        return Err(invalid(
            "spec.expirationSeconds",
            seconds,
            "may not specify a duration larger than 2^32 seconds",
        ));
    }
    let expires = Timestamp::now() + SignedDuration::from_secs(seconds);
    let audiences = object::list_at(&review, &["spec", "audiences"]).iter().filter_map(|text| text.as_str());
    let mut audiences: Vec<String> = audiences.map(str::to_owned).collect();
    if audiences.is_empty() {
        audiences.push(AUDIENCE.to_owned());
    }

    let bound_uid = bound_uid(server, request, &review).await?;
    let reference = object::get(&review, &["spec", "boundObjectRef"]);
    let claim = reference.map(|reference| object::str_at(reference, &["kind"]).to_lowercase());
    let bound = match (reference, &claim, &bound_uid) {
        (Some(reference), Some(claim), Some(uid)) => {
            Some(Bound { claim, name: object::str_at(reference, &["name"]), uid })
        }
        _ => None,
    };
    let account = ServiceAccount { namespace: &path.namespace, name: &path.name, uid: object::uid(&account) };
    let token = server.authenticator.issuer.issue(account, bound, &audiences, expires);
    let token = token.map_err(|_| Status::internal("the token cannot be signed"))?;

    object::set(&mut review, &["spec", "expirationSeconds"], seconds);
    object::set(&mut review, &["spec", "audiences"], audiences);
    object::set(&mut review, &["metadata", "name"], path.name.clone());
    object::set(&mut review, &["metadata", "namespace"], path.namespace.clone());
    object::set(&mut review, &["metadata", "creationTimestamp"], now());
    object::set(&mut review, &["status"], json!({ "token": token, "expirationTimestamp": at(expires) }));
    let pretty = response::is_pretty(request.query.pretty, &request.headers);
    Ok(response::json(StatusCode::CREATED, &review, pretty))
}

/// The UID of the object that the token is to end with; `None` if there is to be none.
async fn bound_uid(
    server: &Server,
    request: &Request,
    review: &serde_json::Value,
) -> Result<Option<String>, Status> {
    let Some(reference) = object::get(review, &["spec", "boundObjectRef"]) else { return Ok(None) };
    let plural = match object::str_at(reference, &["kind"]) {
        "Pod" => "pods",
        "Secret" => "secrets",
        other => return Err(Status::bad_request(format!("cannot bind token to object of type {other:?}"))),
    };
    let row = resource::find("", "v1", plural).expect("the registry has pods and secrets");
    let name = object::str_at(reference, &["name"]);
    let found = server.storage.get(row, &request.path.namespace, name).await?;
    let (wanted, uid) = (object::str_at(reference, &["uid"]), object::uid(&found));
    if !wanted.is_empty() && wanted != uid {
        let why = format!(
            "the UID in the bound object reference ({wanted}) does not match the UID in record ({uid})"
        );
        return Err(Status::conflict(row, name, &why));
    }
    Ok(Some(uid.to_owned()))
}
