//! A cluster's objects, listed once, as the ingress watches them: secrets by name, and only those that Ingresses name.

use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::api::ListParams;
use kube::{Api, Client};
use serde::de::DeserializeOwned;

use super::{DiffError, named_secrets};
use crate::compile::{IngressFact, ObjectKey, SecretFact, Snapshot};
use crate::watch::read_secret;

/// All that decides about routes. Endpoints do not.
pub(super) async fn list(client: &Client) -> Result<Snapshot, DiffError> {
    let mut snapshot = Snapshot::default();
    for class in all::<IngressClass>(client, "IngressClasses").await? {
        snapshot.classes.insert(class.metadata.name.clone().unwrap_or_default(), class.into());
    }
    for ingress in all::<Ingress>(client, "Ingresses").await? {
        let fact = IngressFact::from(ingress);
        snapshot.ingresses.insert(fact.key.clone(), fact);
    }
    for service in all::<Service>(client, "Services").await? {
        snapshot.services.insert(ObjectKey::of(&service.metadata), service.into());
    }
    Ok(snapshot)
}

async fn all<K>(client: &Client, what: &'static str) -> Result<Vec<K>, DiffError>
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let listed = Api::<K>::all(client.clone()).list(&ListParams::default()).await;
    listed.map(|list| list.items).map_err(|error| DiffError::Cluster(what, Box::new(error)))
}

/// Adds the secrets that either names. One that may not be read is as broken as it is for the ingress.
pub(super) async fn add_secrets(
    client: &Client,
    now: &mut Snapshot,
    then: &mut Snapshot,
    class_name: &str,
) -> Result<(), DiffError> {
    for key in named_secrets([now, then], class_name) {
        if now.secrets.contains_key(&key) {
            continue;
        }
        let one = ListParams::default().fields(&format!("metadata.name={}", key.name));
        let fact = match Api::<Secret>::namespaced(client.clone(), &key.namespace).list(&one).await {
            Ok(list) => list.items.first().map_or(SecretFact::Missing, read_secret),
            Err(kube::Error::Api(status)) => SecretFact::Unreadable(status.message.clone()),
            Err(error) => return Err(DiffError::Cluster("Secrets", Box::new(error))),
        };
        then.secrets.entry(key.clone()).or_insert_with(|| fact.clone());
        now.secrets.insert(key, fact);
    }
    Ok(())
}
