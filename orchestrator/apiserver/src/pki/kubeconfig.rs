//! The kubeconfigs of the administrator and of each role.
//!
//! A kubeconfig carries everything it needs, so that it can be copied to where its owner is. The client certificate in
//! it lives nowhere else; whether it is still good is read from the file itself.

use std::net::SocketAddr;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::issue::{Authority, Issued, Profile, Usage};
use super::{Error, PkiConfig, files};

/// Who a kubeconfig is for.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The file's name, without `.kubeconfig`.
    pub file: &'static str,
    /// The user: the certificate's common name. `{node}` stands for the node's name.
    pub user: &'static str,
    /// The group: the certificate's organization.
    pub group: Option<&'static str>,
}

/// Every kubeconfig that is made.
pub const KUBECONFIGS: &[Identity] = &[
    Identity { file: "admin", user: "kubernetes-admin", group: Some("system:masters") },
    Identity { file: "scheduler", user: "system:kube-scheduler", group: None },
    Identity { file: "controllers", user: "system:kube-controller-manager", group: None },
    Identity { file: "kubelet", user: "system:node:{node}", group: Some("system:nodes") },
    Identity { file: "dataplane", user: "system:weir:dataplane", group: None },
    Identity { file: "ingress", user: "system:weir:ingress", group: None },
];

const CLUSTER: &str = "weir";

/// Keeps one kubeconfig good.
pub(super) fn ensure(
    authority: &Authority,
    identity: &Identity,
    config: &PkiConfig,
    path: &Path,
) -> Result<(), Error> {
    let profile = Profile {
        common_name: identity.user.replace("{node}", &config.node_name),
        organization: identity.group.map(str::to_owned),
        dns_names: Vec::new(),
        addresses: Vec::new(),
        usage: Usage::Client,
    };
    let server = format!("https://{}", SocketAddr::new(config.server_host, config.server_port));
    let stored = files::read(path)?.and_then(|text| serde_yaml::from_str::<Value>(&text).ok());
    let kept = stored
        .as_ref()
        .and_then(credentials)
        .filter(|kept| authority.is_good(&profile, &kept.certificate, &kept.key));
    let fresh = match kept {
        Some(kept) => render(authority, &profile.common_name, &server, &kept),
        None => render(authority, &profile.common_name, &server, &authority.issue(&profile)?),
    };
    if stored.as_ref() != Some(&fresh) {
        let text = serde_yaml::to_string(&fresh)
            .map_err(|error| Error::Unusable { path: path.to_owned(), why: error.to_string() })?;
        files::write(path, &text)?;
    }
    Ok(())
}

fn credentials(kubeconfig: &Value) -> Option<Issued> {
    let user = kubeconfig.pointer("/users/0/user")?;
    let pem = |field: &str| String::from_utf8(STANDARD.decode(user.get(field)?.as_str()?).ok()?).ok();
    Some(Issued { certificate: pem("client-certificate-data")?, key: pem("client-key-data")? })
}

fn render(authority: &Authority, user: &str, server: &str, credentials: &Issued) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": CLUSTER,
            "cluster": {
                "server": server,
                "certificate-authority-data": STANDARD.encode(&authority.certificate),
            },
        }],
        "users": [{
            "name": user,
            "user": {
                "client-certificate-data": STANDARD.encode(&credentials.certificate),
                "client-key-data": STANDARD.encode(&credentials.key),
            },
        }],
        "contexts": [{ "name": CLUSTER, "context": { "cluster": CLUSTER, "user": user } }],
        "current-context": CLUSTER,
    })
}
