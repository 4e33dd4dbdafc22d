//! Follows shims: one task per container that lives, from its start or its adoption to its end.

use std::sync::Arc;

use jiff::Timestamp;
use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    process::Child,
    sync::{mpsc, watch},
};

use super::{Container, Inner, Phase, container::ORDER_LIMIT, state::ContainerRecord};
use crate::{
    runtime::{ContainerId, Error, Event, Result, SandboxId},
    shim::record::{self, Exit, Message, Order, Running},
};

impl Inner {
    /// Takes over a container found on disk.
    pub(super) async fn adopt_container(self: &Arc<Self>, found: ContainerRecord) -> Result<()> {
        let directory = self.paths.container(&found.id);
        let unreadable = |e| Error::io("read a record in", &directory)(e);
        let exit: Option<Exit> = record::read(&directory, record::EXIT_FILE).map_err(unreadable)?;
        let running: Option<Running> = record::read(&directory, record::RUNNING_FILE).map_err(unreadable)?;
        let socket = directory.join(record::SOCKET_FILE);
        let is_live = exit.is_none() && socket.exists();
        let id = found.id.clone();
        let (orders, taken) = mpsc::channel(ORDER_LIMIT);
        let container = Container {
            record: found,
            phase: watch::Sender::new(Phase { running, exit }),
            orders: is_live.then_some(orders),
        };
        self.state().containers.insert(id.clone(), container);
        if is_live {
            match UnixStream::connect(&socket).await {
                Ok(stream) => drop(tokio::spawn(self.clone().follow(id, stream, taken, None))),
                // Nobody listens: the shim is dead.
                Err(_) => self.finish(&id).await,
            }
        }
        Ok(())
    }

    /// Listens to a shim until it ends. `child` is the shim if this process started it, and so must reap it.
    pub(super) async fn follow(
        self: Arc<Self>,
        id: ContainerId,
        mut stream: UnixStream,
        mut orders: mpsc::Receiver<Order>,
        child: Option<Child>,
    ) {
        let (reader, mut writer) = stream.split();
        let mut lines = BufReader::new(reader).lines();
        loop {
            tokio::select! {
                line = lines.next_line() => match line {
                    Ok(Some(line)) => self.hear(&id, &line),
                    Ok(None) | Err(_) => break,
                },
                Some(order) = orders.recv() => {
                    // If it cannot be written the shim is gone, which the next read says.
                    writer.write_all(&record::line(&order)).await.ok();
                }
            }
        }
        if let Some(mut child) = child {
            child.wait().await.ok();
        }
        self.finish(&id).await;
    }

    fn hear(&self, id: &ContainerId, line: &str) {
        // A failure is in the exit record, too, which comes last and is the one that counts.
        let Ok(Message::Started(running)) = serde_json::from_str(line) else { return };
        let mut is_news = false;
        let sandbox = self.update(id, |phase| is_news = phase.running.replace(running).is_none());
        // An adopted container's shim says what is known.
        let Some(sandbox) = sandbox.filter(|_| is_news) else { return };
        self.emit(Event::Started { sandbox, container: id.clone() });
    }

    /// The shim is over, so the container is.
    async fn finish(self: &Arc<Self>, id: &ContainerId) {
        let (this, ended) = (self.clone(), id.clone());
        let exit = tokio::task::spawn_blocking(move || this.exit_record(&ended)).await;
        let Ok(exit) = exit else { return };
        if let Some(sandbox) = self.update(id, |phase| phase.exit = Some(exit)) {
            self.emit(Event::Exited { sandbox, container: id.clone() });
        }
    }

    /// What the shim wrote; or, if it was killed, what can still be said once nothing of the container is left.
    fn exit_record(&self, id: &ContainerId) -> Exit {
        let directory = self.paths.container(id);
        if let Ok(Some(exit)) = record::read(&directory, record::EXIT_FILE) {
            return exit;
        }
        let record = self.state().containers.get(id).map(|container| container.record.clone());
        if let Some(group) = record.map(|record| self.group(&record.cgroup)) {
            group.kill();
            group.remove().ok();
        }
        let running: Option<Running> = record::read(&directory, record::RUNNING_FILE).ok().flatten();
        let exit = Exit {
            exit_code: 128 + Signal::SIGKILL as i32,
            signal: Some(Signal::SIGKILL as i32),
            oom_killed: false,
            started_at: running.map(|running| running.started_at),
            finished_at: Timestamp::now(),
            message: Some(
                "the process that owned the container was killed, and the container with it".into(),
            ),
        };
        if let Err(error) = record::write(&directory, record::EXIT_FILE, &exit) {
            tracing::warn!(container = %id, %error, "cannot write the record of its end");
        }
        exit
    }

    fn update(&self, id: &ContainerId, change: impl FnOnce(&mut Phase)) -> Option<SandboxId> {
        let state = self.state();
        let container = state.containers.get(id)?;
        container.phase.send_modify(change);
        Some(container.record.sandbox.clone())
    }
}
