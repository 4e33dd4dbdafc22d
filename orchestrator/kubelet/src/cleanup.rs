//! Takes away everything that the kubelet made on this machine, from what is on the machine alone.
//!
//! Called when `weir up` ends without `--keep`, also after a crash: no apiserver is asked, no state of a process is
//! needed, and doing it twice does no harm. Images and logs stay, since they are data and not traces.

use crate::{
    config::Config,
    error::{Error, Result},
    runtime, volumes,
};

/// Ends all containers and sandboxes, unmounts all volumes, removes the pods' directories.
pub async fn cleanup(config: &Config) -> Result<()> {
    let removed = runtime::embedded::cleanup(&config.runtime()).await;
    // Volumes after the processes that use them; but a container that stays must not keep the volumes of others.
    let dir = config.pods_dir();
    let swept = tokio::task::spawn_blocking(move || {
        volumes::unmount_below(&dir).and_then(|()| volumes::remove_dir(&dir))
    })
    .await;
    removed?;
    match swept {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Error::Volumes(Box::new(error))),
        Err(error) => Err(Error::io("remove", config.pods_dir())(std::io::Error::other(error))),
    }
}
