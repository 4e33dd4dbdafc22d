//! Who controls an object: adoption of orphans by selector, release of what no longer matches.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::error::{Error, Trying};

/// What an object is to a possible controller of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It is controlled and matches.
    Mine,
    /// It matches and nobody controls it.
    Adopt,
    /// It is controlled but no longer matches.
    Release,
    /// It is none of the controller's business.
    Other,
}

/// The object's claim. `deleting` of either side forbids changes of ownership.
pub(crate) fn claim(
    owner_uid: &str,
    owner_deleting: bool,
    matches: bool,
    owners: &[OwnerReference],
    object_deleting: bool,
) -> Claim {
    match controller_of(owners) {
        Some(controller) if controller.uid != owner_uid => Claim::Other,
        Some(_) if matches => Claim::Mine,
        Some(_) if owner_deleting => Claim::Other,
        Some(_) => Claim::Release,
        None if matches && !owner_deleting && !object_deleting => Claim::Adopt,
        None => Claim::Other,
    }
}

/// The reference to the controller among the owners.
pub(crate) fn controller_of(owners: &[OwnerReference]) -> Option<&OwnerReference> {
    owners.iter().find(|owner| owner.controller == Some(true))
}

/// Makes `owner` the controller of the object. The UID in the patch keeps a successor of the same name untouched.
pub(crate) async fn adopt<K>(api: &Api<K>, name: &str, uid: &str, owner: &OwnerReference) -> Result<(), Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let patch = json!({ "metadata": { "uid": uid, "ownerReferences": [owner] } });
    api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop).trying("adopt", name)
}

/// Ends the control of `owner_uid` over the object. An object that is gone needs no release.
pub(crate) async fn release<K>(api: &Api<K>, name: &str, uid: &str, owner_uid: &str) -> Result<(), Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let owners = json!([{ "$patch": "delete", "uid": owner_uid }]);
    let patch = json!({ "metadata": { "uid": uid, "ownerReferences": owners } });
    match api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
        Err(error) if weir_client::is_not_found(&error) => Ok(()),
        other => other.map(drop).trying("release", name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controlled_by(uid: &str) -> Vec<OwnerReference> {
        vec![OwnerReference { uid: uid.into(), controller: Some(true), ..OwnerReference::default() }]
    }

    #[test]
    fn claims() {
        let orphan = Vec::new();
        assert_eq!(claim("me", false, true, &controlled_by("me"), true), Claim::Mine);
        assert_eq!(claim("me", false, false, &controlled_by("me"), false), Claim::Release);
        assert_eq!(claim("me", true, false, &controlled_by("me"), false), Claim::Other);
        assert_eq!(claim("me", false, true, &controlled_by("other"), false), Claim::Other);
        assert_eq!(claim("me", false, true, &orphan, false), Claim::Adopt);
        assert_eq!(claim("me", false, true, &orphan, true), Claim::Other);
        assert_eq!(claim("me", true, true, &orphan, false), Claim::Other);
        assert_eq!(claim("me", false, false, &orphan, false), Claim::Other);
    }
}
