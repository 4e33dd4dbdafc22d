//! Commands in running containers.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::UnixStream,
    process::Command,
    time::timeout,
};

use super::Inner;
use crate::{
    runtime::{ContainerId, ContainerState, EXEC_OUTPUT_LIMIT_BYTES, Error, ExecOutput, Result},
    shim::record::Message,
};

/// What the shim may take beyond the command's own time: for entering the container, and for killing.
const MARGIN: Duration = Duration::from_secs(10);
/// The shim's answer is one short line.
const ANSWER_LIMIT_BYTES: u64 = 64 * 1024;

impl Inner {
    pub(super) async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        limit: Duration,
    ) -> Result<ExecOutput> {
        let name = self.running_name(id)?;
        let (program, args) = self.config.shim.split_first().expect("a shim is configured");
        let failed = |e| Error::io("run the shim", program)(e);
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let theirs = theirs.into_std().map_err(failed)?;
        theirs.set_nonblocking(false).map_err(failed)?;
        let mut child = Command::new(program)
            .args(args)
            .arg("exec")
            .arg("--timeout-ms")
            .arg(limit.as_millis().to_string())
            .arg(self.paths.container(id))
            .arg("--")
            .args(command)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut answer = Vec::new();
        let exchange = async {
            // The answer, not the end of the output, is the end: the command may leave something in the background
            // that holds its output open.
            let (answered, stdout, stderr) = tokio::join!(
                async { ours.take(ANSWER_LIMIT_BYTES).read_to_end(&mut answer).await },
                bounded(stdout),
                bounded(stderr),
            );
            answered.map(|_| (stdout, stderr))
        };
        let too_long = || Error::Timeout {
            operation: "exec",
            object: format!("container \"{name}\""),
            limit_ms: limit.as_millis() as u64,
        };
        let (stdout, stderr) =
            timeout(limit + MARGIN, exchange).await.map_err(|_| too_long())?.map_err(failed)?;
        child.wait().await.map_err(failed)?;
        match serde_json::from_slice(&answer) {
            Ok(Message::Executed { exit_code }) => Ok(ExecOutput { exit_code, stdout, stderr }),
            Ok(Message::TimedOut) => Err(too_long()),
            Ok(Message::Failed { reason }) => Err(Error::Exec { container: name, reason }),
            Ok(Message::Started(_)) | Err(_) => {
                Err(Error::Exec { container: name, reason: "the process that runs it was killed".into() })
            }
        }
    }

    fn running_name(&self, id: &ContainerId) -> Result<String> {
        let status = self.state().containers.get(id).map(super::Container::status);
        let status = status.ok_or_else(|| Error::NotFound { kind: "container", id: id.to_string() })?;
        let state = match status.state {
            ContainerState::Running => return Ok(status.spec.name),
            ContainerState::Created => "not started",
            ContainerState::Exited => "over",
        };
        Err(Error::State { operation: "run a command in", id: id.to_string(), state })
    }
}

/// The beginning of an output. The rest is read and dropped, so that the command does not block on it.
async fn bounded(output: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut kept = Vec::new();
    if let Some(mut output) = output {
        (&mut output).take(EXEC_OUTPUT_LIMIT_BYTES as u64).read_to_end(&mut kept).await.ok();
        tokio::io::copy(&mut output, &mut tokio::io::sink()).await.ok();
    }
    kept
}
