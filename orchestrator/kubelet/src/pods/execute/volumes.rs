//! Volumes: made before the first container with the objects and tokens that they hold, removed after the last.

use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ServiceAccount},
};
use kube::{Api, api::PostParams};

use super::{Failed, Outcome, Shared, blocking};
use crate::{
    env::{EnvContext, namespace},
    events::Kind,
    objects::references,
    pods::view::after,
    runtime::Runtime,
    volumes,
};

/// Lifetime of tokens that say nothing about it.
const TOKEN_SECONDS: i64 = 3600;

impl<R: Runtime> Shared<R> {
    /// Makes the pod's volumes, or brings them up to date. Returns when its tokens should be renewed.
    pub(crate) async fn prepare(&self, pod: &Arc<Pod>) -> Outcome<Option<Timestamp>> {
        let result = self.try_prepare(pod).await;
        if let Err(failed) = &result {
            self.events.pod(pod, None, Kind::Warning, "FailedMount", failed.message.clone());
        }
        result
    }

    async fn try_prepare(&self, pod: &Arc<Pod>) -> Outcome<Option<Timestamp>> {
        let failed = |error: String| Failed { reason: "ContainerCreating", message: error };
        let objects = self.objects.get(&references(pod)).await.map_err(|e| failed(e.to_string()))?;
        let (tokens, renew_at) = self.tokens(pod).await?;
        let (pod, dir) = (pod.clone(), self.defaults.pod_dir(pod));
        let (node_ip, allocatable) = (self.node_ip, self.allocatable.clone());
        blocking(move || {
            fs::create_dir_all(&dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
            let context = EnvContext {
                pod: &pod,
                pod_ips: &[],
                node_ip,
                allocatable: &allocatable,
                objects: &objects,
                services: &BTreeMap::new(),
            };
            volumes::set_up(&dir, &context, &tokens).map_err(|error| error.to_string())
        })
        .await
        .map_err(failed)?;
        Ok(renew_at)
    }

    /// Service account tokens of the pod's volumes, and when four fifths of the shortest life are over.
    async fn tokens(&self, pod: &Pod) -> Outcome<(volumes::Tokens, Option<Timestamp>)> {
        let mut tokens = volumes::Tokens::new();
        let mut renew_at: Option<Timestamp> = None;
        let spec = pod.spec.as_ref();
        let account =
            spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_else(|| "default".to_owned());
        for volume in spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
            for token in sources.filter_map(|source| source.service_account_token.as_ref()) {
                let seconds = token.expiration_seconds.unwrap_or(TOKEN_SECONDS);
                let request = TokenRequest {
                    spec: TokenRequestSpec {
                        audiences: token.audience.iter().cloned().collect(),
                        expiration_seconds: Some(seconds),
                        bound_object_ref: Some(BoundObjectReference {
                            api_version: Some("v1".to_owned()),
                            kind: Some("Pod".to_owned()),
                            name: pod.metadata.name.clone(),
                            uid: pod.metadata.uid.clone(),
                        }),
                    },
                    ..TokenRequest::default()
                };
                let answer = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace(pod))
                    .create_token_request(&account, &PostParams::default(), &request)
                    .await
                    .map_err(|error| {
                        let message = format!("no token for service account \"{account}\": {error}");
                        Failed { reason: "ContainerCreating", message }
                    })?;
                let text = answer.status.map(|status| status.token).unwrap_or_default();
                tokens.insert((volume.name.clone(), token.path.clone()), Bytes::from(text));
                let life = Duration::from_secs(seconds.max(60).unsigned_abs() / 5 * 4);
                let at = after(Timestamp::now(), life);
                renew_at = Some(renew_at.map_or(at, |earlier| earlier.min(at)));
            }
        }
        Ok((tokens, renew_at))
    }

    /// Unmounts and removes the pod's volumes.
    pub(crate) async fn tear_down(&self, pod: &Pod) -> Outcome {
        let dir = self.defaults.pod_dir(pod);
        blocking(move || volumes::tear_down(&dir).map_err(|error| error.to_string()))
            .await
            .map_err(|error| Failed::new("FailedUnMount", error))
    }

    /// Removes the pod's directories and logs.
    pub(crate) async fn finish(&self, pod: &Pod) -> Outcome {
        let (dir, logs) = (self.defaults.pod_dir(pod), self.defaults.pod_log_dir(pod));
        blocking(move || {
            volumes::tear_down(&dir)
                .and_then(|()| volumes::remove_dir(&dir))
                .and_then(|()| volumes::remove_dir(&logs))
                .map_err(|error| error.to_string())
        })
        .await
        .map_err(|error| Failed::new("FailedUnMount", error))
    }
}
