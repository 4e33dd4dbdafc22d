//! What can go wrong, and how it is said.

use std::fmt::Display;

/// Why a controller could not start, or why one reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused a request, or could not be reached. Retried with backoff.
    #[error("cannot {operation} {object}: {source}")]
    Request {
        /// What was tried.
        operation: &'static str,
        /// What it was tried on.
        object: String,
        /// The answer.
        #[source]
        source: kube::Error,
    },
    /// Several requests of one reconcile failed; the first stands for them. Retried with backoff.
    #[error("{failed} of {all} requests failed, the first: {first}")]
    Several {
        /// How many failed.
        failed: usize,
        /// How many were made.
        all: usize,
        /// The first failure.
        #[source]
        first: Box<Error>,
    },
    /// A label selector that the API server should not have let in. The object is left alone until it changes.
    #[error("{object} has an invalid selector: {source}; correct spec.selector")]
    Selector {
        /// Whose selector.
        object: String,
        /// What is wrong with it.
        #[source]
        source: kube::core::ParseExpressionError,
    },
    /// `--cluster-cidr` is no address range.
    #[error("cluster CIDR {value:?} is not an address range such as 10.244.0.0/16: correct --cluster-cidr")]
    ClusterCidr {
        /// The value given.
        value: String,
    },
    /// `--node-cidr-mask-size` does not fit the cluster's range.
    #[error(
        "nodes cannot have /{size} ranges out of {cluster}: --node-cidr-mask-size must be {min} to {max}"
    )]
    NodeMask {
        /// The value given.
        size: u8,
        /// The cluster's range.
        cluster: String,
        /// Smallest size that fits.
        min: u8,
        /// Largest size that makes sense.
        max: u8,
    },
    /// Every range of the cluster is taken.
    #[error("no free /{size} range for node {node} in {cluster}: remove nodes or widen --cluster-cidr")]
    RangesExhausted {
        /// The node without a range.
        node: String,
        /// Size of a node's range.
        size: u8,
        /// The cluster's range.
        cluster: String,
    },
    /// Another copy took over; the supervisor starts this one again as a follower.
    #[error("leadership of Lease kube-system/kube-controller-manager was lost; restart to stand again")]
    LeadershipLost,
}

/// Adds to an API error what was tried on what.
pub(crate) trait Trying<T> {
    fn trying(self, operation: &'static str, object: impl Display) -> Result<T, Error>;
}

impl<T> Trying<T> for Result<T, kube::Error> {
    fn trying(self, operation: &'static str, object: impl Display) -> Result<T, Error> {
        self.map_err(|source| Error::Request { operation, object: object.to_string(), source })
    }
}

/// Turns many results into one.
pub(crate) fn all_of<T>(results: Vec<Result<T, Error>>) -> Result<Vec<T>, Error> {
    let all = results.len();
    let mut good = Vec::with_capacity(all);
    let mut first = None;
    let mut failed = 0;
    for result in results {
        match result {
            Ok(value) => good.push(value),
            Err(error) => {
                failed += 1;
                first.get_or_insert(error);
            }
        }
    }
    match first {
        None => Ok(good),
        Some(first) if all == 1 => Err(first),
        Some(first) => Err(Error::Several { failed, all, first: Box::new(first) }),
    }
}
