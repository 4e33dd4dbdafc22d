use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::Path,
};

use tokio::sync::mpsc::Receiver;

use super::*;
use crate::plan::{desired::Verdict, model::ServiceKey};

fn question() -> Question {
    let service = ServiceKey::new("default", "web");
    Question::new(&PortName { service, port: "http".into(), protocol: 6 }, true, false)
}

fn judged(n: usize, verdict: Verdict) -> Judged {
    Judged { address: ([10, 0, (n >> 8) as u8, n as u8], 80).into(), verdict, listed: 1 }
}

/// An agent that answers everything with that.
async fn agent(mut asked: Receiver<Asked>, answers: impl Fn(&PortName) -> Answer) {
    while let Some(Asked { question, answer }) = asked.recv().await {
        answer.send(answers(&question.port.into())).ok();
    }
}

/// Asks while the runtime serves.
async fn asked(socket: &Path) -> Result<Answer, NoAnswer> {
    let socket = socket.to_owned();
    tokio::task::spawn_blocking(move || ask(&socket, &question())).await.unwrap()
}

#[tokio::test]
async fn an_agent_answers_one_after_the_other_and_the_next_agent_takes_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("reasons");
    assert!(matches!(asked(&socket).await, Err(NoAnswer::NoAgent)), "there was none yet");
    for complaint in ["first", "second"] {
        let answers = move |port: &PortName| {
            assert_eq!(port.to_string(), "default/web:http");
            let endpoints = vec![judged(1, Verdict::NotReady)];
            Answer::Reasons(Reasons::new(endpoints, Some("zone-a"), vec![complaint.to_owned()]))
        };
        let running = tokio::spawn(agent(serve(&socket), answers));
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        for _ in 0..2 {
            let Answer::Reasons(reasons) = asked(&socket).await.unwrap() else { panic!("no reasons") };
            assert_eq!((reasons.zone.as_deref(), reasons.more), (Some("zone-a"), 0));
            assert_eq!(reasons.endpoints, [judged(1, Verdict::NotReady)]);
            assert_eq!(reasons.complaints, [complaint]);
        }
        running.abort();
        running.await.unwrap_err();
    }
    // The socket goes with the task that accepts; its file stays.
    while UnixStream::connect(&socket).is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(socket.exists());
    assert!(matches!(asked(&socket).await, Err(NoAnswer::NoAgent)), "nobody has the socket");
}

#[tokio::test]
async fn who_asks_nonsense_is_let_go_and_the_next_one_answered() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("reasons");
    let _agent = tokio::spawn(agent(serve(&socket), |_| Answer::Unknown));
    let endless = vec![b'x'; LONGEST_QUESTION_BYTES as usize + 1];
    for nonsense in [b"\n".as_slice(), b"{}\n", &endless] {
        let (socket, nonsense) = (socket.clone(), nonsense.to_vec());
        let read = tokio::task::spawn_blocking(move || {
            let mut stream = UnixStream::connect(&socket).unwrap();
            stream.write_all(&nonsense).unwrap();
            let mut answer = Vec::new();
            // What was not read of the question makes the end of the connection a reset.
            stream.read_to_end(&mut answer).ok();
            answer
        });
        assert_eq!(read.await.unwrap(), b"");
    }
    assert_eq!(asked(&socket).await.unwrap(), Answer::Unknown);
}

#[tokio::test]
async fn an_agent_that_ends_while_it_is_asked_has_not_answered() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("reasons");
    let listener = UnixListener::bind(&socket).unwrap();
    let ended = tokio::task::spawn_blocking(move || drop(listener.accept().unwrap()));
    assert!(matches!(asked(&socket).await, Err(NoAnswer::Failed(_))));
    ended.await.unwrap();
}

#[test]
fn an_answer_tells_first_of_what_is_not_taken_and_has_a_bound() {
    let taken = (0..MOST_TOLD).map(|n| judged(n, Verdict::Ready));
    let all = taken.chain([judged(MOST_TOLD, Verdict::NotReady)]).collect();
    let reasons = Reasons::new(all, None, Vec::new());
    assert_eq!(reasons.endpoints[0], judged(MOST_TOLD, Verdict::NotReady));
    assert_eq!((reasons.endpoints.len(), reasons.more), (MOST_TOLD, 1));
    let bytes = serde_json::to_vec(&Answer::Reasons(reasons)).unwrap().len() as u64;
    assert!(bytes < LONGEST_ANSWER_BYTES / 4, "{bytes} bytes");
}
