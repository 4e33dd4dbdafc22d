//! The agent's end: a task that takes questions to the one that owns everything, one after the other.

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt as _, net},
    path::Path,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{debug, warn};

use super::{Answer, LONGEST_QUESTION_BYTES, Question};

/// Who takes longer to ask and to read the answer is let go: others wait.
const DEADLINE: Duration = Duration::from_secs(5);
/// Pause after an accept that failed, as it does while there are no descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// A question on its way to the agent's task.
pub(crate) struct Asked {
    pub(crate) question: Question,
    pub(crate) answer: oneshot::Sender<Answer>,
}

/// Listens in place of whoever did before. An agent that cannot still serves, and never hears a question.
pub(crate) fn serve(socket: &Path) -> mpsc::Receiver<Asked> {
    // One at a time: more wait to be accepted.
    let (questions, asked) = mpsc::channel(1);
    match listen(socket) {
        Ok(listener) => drop(tokio::spawn(accept(listener, questions))),
        Err(error) => {
            warn!(%error, socket = %socket.display(), "nobody can ask why endpoints are not taken");
        }
    }
    asked
}

fn listen(socket: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = net::UnixListener::bind(socket)?;
    // As private as the pins.
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

async fn accept(listener: UnixListener, questions: mpsc::Sender<Asked>) {
    loop {
        let stream = tokio::select! {
            () = questions.closed() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    debug!(%error, "a question cannot be heard");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            },
        };
        match timeout(DEADLINE, talk(stream, &questions)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "a question stays without an answer"),
            Err(_) => debug!("a question took too long"),
        }
    }
}

async fn talk(mut stream: UnixStream, questions: &mpsc::Sender<Asked>) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = Vec::new();
    BufReader::new(reader.take(LONGEST_QUESTION_BYTES)).read_until(b'\n', &mut line).await?;
    let question = serde_json::from_slice(&line)?;
    let (answer, answered) = oneshot::channel();
    let asked = Asked { question, answer };
    let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
    questions.send(asked).await.map_err(|_| gone())?;
    let mut line = serde_json::to_vec(&answered.await.map_err(|_| gone())?)?;
    line.push(b'\n');
    writer.write_all(&line).await
}
