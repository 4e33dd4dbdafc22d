//! Sandboxes: made in an order in which every step is on disk before the next, and undone in reverse.

use std::{fs, sync::Arc, time::Duration};

use futures::future::try_join_all;
use jiff::Timestamp;
use nix::mount::{MsFlags, mount};

use super::{
    Cni, Inner, files,
    network::{Namespaces, unmount},
    state::{SandboxRecord, make_directory, new_id, remove_directory},
};
use crate::runtime::{ContainerId, Error, Result, Sandbox, SandboxId, SandboxSpec};

/// `/dev/shm` of a pod, as docker and containerd have it.
const SHM_OPTIONS: &str = "mode=1777,size=64m";

impl Inner {
    pub(super) async fn run_sandbox(self: Arc<Self>, spec: SandboxSpec) -> Result<Sandbox> {
        if spec.uid.is_empty() || !spec.uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            let problem =
                format!("its uid \"{}\" cannot name a cgroup; letters, digits and dashes can", spec.uid);
            return Err(Error::Invalid { object: format!("pod {}/{}", spec.namespace, spec.name), problem });
        }
        let id = SandboxId(new_id()?);
        let cni = self.state().cni.clone();
        let mut sandbox = SandboxRecord {
            netns: self.paths.netns(&id),
            cgroup: self.cgroup.join(format!("pod{}", spec.uid)),
            cni_config: (!spec.host_network).then(|| cni.config.clone()),
            cni_result: None,
            ips: Vec::new(),
            created_at: Timestamp::now(),
            ready: true,
            id,
            spec,
        };
        match self.build_sandbox(&mut sandbox, &cni).await {
            Ok(()) => {
                let status = sandbox.status();
                self.state().sandboxes.insert(sandbox.id.clone(), sandbox);
                Ok(status)
            }
            Err(error) => {
                // The first error is the one to tell; what cannot be undone now, `cleanup` finds.
                self.disconnect(&sandbox).await.ok();
                self.remove_sandbox_files(&sandbox).ok();
                Err(error)
            }
        }
    }

    async fn build_sandbox(&self, sandbox: &mut SandboxRecord, cni: &Cni) -> Result<()> {
        let directory = self.paths.sandbox(&sandbox.id);
        make_directory(&directory)?;
        self.paths.write_sandbox(sandbox)?;
        let group = self.group(&sandbox.cgroup);
        group.create(&sandbox.spec.resources).map_err(Error::io("create cgroup", &sandbox.cgroup))?;
        Namespaces::of(&sandbox.spec, &sandbox.netns, &directory).create(&sandbox.spec)?;
        if !sandbox.spec.host_ipc {
            let shm = directory.join("shm");
            make_directory(&shm)?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("shm"), &shm, Some("tmpfs"), flags, Some(SHM_OPTIONS))
                .map_err(Error::io("mount a tmpfs on", shm))?;
        }
        if !sandbox.spec.host_network {
            let (ips, result) = cni.add(sandbox).await?;
            sandbox.ips = ips;
            sandbox.cni_result = Some(result);
        }
        files::write(&sandbox.spec, &sandbox.ips, &directory)?;
        self.paths.write_sandbox(sandbox)
    }

    pub(super) async fn stop_sandbox(&self, id: &SandboxId) -> Result<()> {
        let Ok(mut sandbox) = self.sandbox_record(id) else { return Ok(()) };
        // Whoever wanted the containers to have time has stopped them before.
        let containers = self.containers_of(id);
        try_join_all(containers.iter().map(|container| self.stop_container(container, Duration::ZERO)))
            .await?;
        if !sandbox.ready {
            return Ok(());
        }
        self.disconnect(&sandbox).await?;
        Namespaces::of(&sandbox.spec, &sandbox.netns, &self.paths.sandbox(id)).remove()?;
        sandbox.ready = false;
        self.paths.write_sandbox(&sandbox)?;
        self.state().sandboxes.insert(id.clone(), sandbox);
        Ok(())
    }

    pub(super) async fn remove_sandbox(self: Arc<Self>, id: &SandboxId) -> Result<()> {
        self.stop_sandbox(id).await?;
        for container in self.containers_of(id) {
            self.clone().remove_container(&container).await?;
        }
        let Ok(sandbox) = self.sandbox_record(id) else { return Ok(()) };
        self.remove_sandbox_files(&sandbox)?;
        self.state().sandboxes.remove(id);
        Ok(())
    }

    async fn disconnect(&self, sandbox: &SandboxRecord) -> Result<()> {
        if sandbox.spec.host_network || !sandbox.netns.exists() {
            return Ok(());
        }
        let cni = self.state().cni.clone();
        cni.del(sandbox).await
    }

    fn containers_of(&self, sandbox: &SandboxId) -> Vec<ContainerId> {
        let state = self.state();
        let own = state.containers.values().filter(|container| container.record.sandbox == *sandbox);
        own.map(|container| container.record.id.clone()).collect()
    }

    fn remove_sandbox_files(&self, sandbox: &SandboxRecord) -> Result<()> {
        let directory = self.paths.sandbox(&sandbox.id);
        Namespaces::of(&sandbox.spec, &sandbox.netns, &directory).remove()?;
        let shm = directory.join("shm");
        if shm.exists() {
            unmount(&shm, false)?;
            fs::remove_dir(&shm).map_err(Error::io("remove", &shm))?;
        }
        // A later sandbox of the same pod, after a failed one, has the same cgroup.
        let shared = self
            .state()
            .sandboxes
            .values()
            .any(|other| other.id != sandbox.id && other.cgroup == sandbox.cgroup);
        if !shared {
            self.group(&sandbox.cgroup).remove().map_err(Error::io("remove cgroup", &sandbox.cgroup))?;
        }
        remove_directory(&directory)
    }
}
