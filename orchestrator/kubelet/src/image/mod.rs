//! Images on this machine: a content store, filled from archives.
//!
//! An archive (an OCI image layout or what `docker save` writes, as a tar file) is imported once: its manifest and
//! configuration are kept as they are, its layers are unpacked, each once for all images that have it. Compressed
//! layers are not kept: nothing here would ever read them again. A container's root file system is then an overlay
//! mount over directories that are already there, which takes no time.
//!
//! Callers: `weir image …` ([`Command`]) and the embedded runtime ([`Store`]). Both may run at once; imports and
//! removals take a lock, and readers see the index before or after, never between.

mod archive;
mod command;
mod error;
mod layer;
mod reference;
mod store;

pub use self::{
    command::{Args, Command},
    error::{Error, Result},
    reference::Reference,
    store::Store,
};
