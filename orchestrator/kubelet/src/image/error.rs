//! Why an image operation failed: which file, what about it, and what to do.

use std::{io, path::PathBuf};

use crate::error::{Refused, refused};

/// The result of an image operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed image operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is not an image reference.
    #[error(
        "\"{reference}\" is not an image reference: {problem}; write it like docker.io/library/nginx:1.27"
    )]
    Reference {
        /// The name as given.
        reference: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The file is no image archive, or a broken one.
    #[error(
        "cannot import {}: {problem}; expected an OCI image layout or a `docker save` archive, as a tar file",
        file.display()
    )]
    Archive {
        /// The archive.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The archive does not say how its image is called.
    #[error("cannot import {}: it does not name its image; name it with: weir image import {} --name REFERENCE", file.display(), file.display())]
    Unnamed {
        /// The archive.
        file: PathBuf,
    },
    /// Content is not what its digest says.
    #[error("{object} in {} is damaged: its digest is {actual}, expected {expected}; get the archive again", file.display())]
    Digest {
        /// The archive.
        file: PathBuf,
        /// Layer, configuration or manifest.
        object: String,
        /// The digest that was asked for.
        expected: String,
        /// The digest of what was there.
        actual: String,
    },
    /// A layer holds something that cannot or must not be unpacked.
    #[error("layer {layer}: entry \"{entry}\": {problem}")]
    Layer {
        /// The layer's digest.
        layer: String,
        /// The path in the layer.
        entry: String,
        /// Why not.
        problem: String,
    },
    /// No such image.
    #[error("image \"{reference}\" is not on this node; see: weir image list")]
    NotFound {
        /// The name as given.
        reference: String,
    },
    /// A container uses the image.
    #[error("image \"{reference}\" is in use by a container; delete its pods first")]
    InUse {
        /// The name as given.
        reference: String,
    },
    /// The store holds something that cannot be read.
    #[error("image store file {} is damaged: {problem}; remove {} and import the images again", file.display(), directory.display())]
    Store {
        /// The file.
        file: PathBuf,
        /// The store's directory.
        directory: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The system refused.
    #[error(transparent)]
    Io(#[from] Refused),
}

impl Error {
    /// [`refused`], as this error.
    pub(super) fn io<S: Into<io::Error>>(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(S) -> Self {
        refused(operation, path)
    }
}
