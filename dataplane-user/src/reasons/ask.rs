//! The end of `weir explain`.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use super::{Answer, LONGEST_ANSWER_BYTES, Question};

/// How long to wait for an agent that is busy: longer than it plans all services of a large cluster.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// There is nobody to ask.
    #[error("no agent runs here")]
    NoAgent,
    /// It was asked in vain.
    #[error("the agent does not answer: {0}")]
    Failed(#[source] io::Error),
}

/// Asks the agent whose socket this is.
pub fn ask(socket: &Path, question: &Question) -> Result<Answer, NoAnswer> {
    let stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        // A socket that an agent left behind.
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => NoAnswer::NoAgent,
        _ => NoAnswer::Failed(error),
    })?;
    talk(stream, question).map_err(NoAnswer::Failed)
}

fn talk(mut stream: UnixStream, question: &Question) -> io::Result<Answer> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    line.clear();
    BufReader::new(stream.take(LONGEST_ANSWER_BYTES)).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}
