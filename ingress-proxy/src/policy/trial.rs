//! Requests that are let in only after something was waited for: a password's hash, another server's answer.

use super::auth::Check;
use super::external::{Asker, Question};
use super::{Passage, Reply};

/// A request that is not let in yet.
#[derive(Debug)]
pub(crate) struct Trial {
    pub(super) passage: Box<Passage>,
    /// One that finds for the client is enough: `satisfy: any`.
    pub(super) any: bool,
    /// What the client hears of those that found against it at once, if no other finds for it.
    pub(super) refusal: Option<Reply>,
    pub(super) check: Option<Check>,
    pub(super) question: Option<Box<Question>>,
}

impl Trial {
    /// What is different about the request on its way, as far as is known.
    pub(super) fn passage(&self) -> &Passage {
        &self.passage
    }

    /// The same, for who only asks.
    pub(crate) fn into_passage(self) -> Box<Passage> {
        self.passage
    }

    /// Waits for the verdict. Dropped, it waits no more, and the request's place among those in flight is free.
    pub(super) async fn run(self, asker: &impl Asker) -> Result<Box<Passage>, Reply> {
        let Self { mut passage, any, mut refusal, check, question } = self;
        if let Some(check) = check {
            match check.run().await {
                Ok(()) if any => return Ok(passage),
                Ok(()) => {}
                Err(reply) if any && is_refusal(&reply) => refusal = Some(better(refusal, reply)),
                Err(reply) => return Err(passage.marked(reply)),
            }
        }
        if let Some(question) = question {
            let heard = asker.ask(&question).await;
            match question.judge(heard) {
                Ok(answer) => {
                    passage.granted = Some(answer);
                    return Ok(passage);
                }
                Err(reply) if any && is_refusal(&reply) => refusal = Some(better(refusal, reply)),
                Err(reply) => return Err(passage.marked(reply)),
            }
        }
        match refusal {
            None => Ok(passage),
            Some(reply) => Err(passage.marked(reply)),
        }
    }
}

/// Whether it is a no, and not that nobody could say.
fn is_refusal(reply: &Reply) -> bool {
    reply.status < 500
}

/// Of two refusals the one that says how to get in, as in nginx.
pub(super) fn better(first: Option<Reply>, second: Reply) -> Reply {
    match first {
        Some(first) if second.status == 403 => first,
        _ => second,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::external::Heard;
    use super::super::external::tests::{answer, at};
    use super::super::fake::get;
    use super::super::{BasicAuth, Client, Decision, Memory, Policy, Settings, Users};
    use super::*;
    use crate::metrics::PolicyMetrics;

    /// A server that always answers so.
    struct Answers(u16);

    impl Asker for Answers {
        async fn ask(&self, _: &Question) -> Heard {
            if self.0 == 0 { Heard::Nothing("is away") } else { answer(self.0, &[("x-user", "ann")]) }
        }
    }

    /// What becomes of a request with this password for `secret`, and whether the server's word goes on.
    async fn verdict(any: bool, password: &str, server: u16) -> (u16, bool) {
        use base64::Engine as _;
        let (users, _) = Users::from_file("bob:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=");
        let challenge = BasicAuth::challenge("here").unwrap();
        let settings = Settings {
            auth: Some(BasicAuth { challenge, users: Arc::new(users) }),
            external: Some(Arc::new(at("http://auth"))),
            satisfy_any: any,
            ..Settings::default()
        };
        let policy = Arc::new(Policy { settings: Arc::new(settings), ..Policy::default() });
        let token = base64::engine::general_purpose::STANDARD.encode(format!("bob:{password}"));
        let field = format!("Basic {token}");
        let fields = [("authorization", field.as_str())];
        let head = get("http://a/", if password.is_empty() { &[] } else { &fields });
        let client = Client { address: "192.0.2.1".parse().unwrap(), https: false, now_us: 0, dice: 0 };
        let decision = policy.before(&head, &client, &Memory::new(&PolicyMetrics::default()));
        assert!(!matches!(decision, Decision::Forward(_)));
        match decision.settled(&Answers(server)).await {
            Ok(passage) => (200, passage.fields().any(|(name, _)| name == "x-user")),
            Err(reply) => (reply.status, false),
        }
    }

    #[tokio::test]
    async fn all_or_one_of_several() {
        for (any, password, server, expected) in [
            (false, "secret", 200, (200, true)),
            (false, "secret", 401, (401, false)),
            (false, "secret", 0, (500, false)),
            (false, "wrong", 200, (401, false)),
            (false, "", 200, (401, false)),
            (true, "secret", 403, (200, false)),
            (true, "secret", 0, (200, false)),
            (true, "wrong", 200, (200, true)),
            (true, "", 200, (200, true)),
            (true, "wrong", 403, (401, false)),
            (true, "", 403, (401, false)),
            (true, "wrong", 0, (500, false)),
        ] {
            assert_eq!(verdict(any, password, server).await, expected, "{any} {password:?} {server}");
        }
    }
}
