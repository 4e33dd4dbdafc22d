//! Events: what a role tells people about an object.
//!
//! Telling must never slow or fail the work, so [`Recorder::record`] only puts the Event on a bounded queue; at
//! the bound it is dropped and counted. An [`EventWriter`] writes them, and is as sparing as client-go: the
//! same Event again raises `count` of the first one; more than [`SIMILAR_MAX`] messages that differ but are
//! about the same object for the same reason become one; and an object that keeps crying is throttled to
//! one Event in five minutes after a burst of [`BURST`].
//!
//! Core `v1` Events are written, because `kubectl describe` selects on their `involvedObject`.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::registered;

/// Events that wait to be written; more are dropped and counted.
const QUEUE_MAX: usize = 1000;
/// Objects and reasons that are remembered; at the bound the memory starts empty again.
const REMEMBERED_MAX: usize = 4096;
/// Bytes of a message; the API takes 1024, and "combined from similar events" stands before some.
const MESSAGE_MAX: usize = 960;
/// Different messages about one object for one reason, before they are written as one Event.
const SIMILAR_MAX: u32 = 10;
/// Messages further apart than this are not "similar events".
const SIMILAR_WINDOW: Duration = Duration::from_mins(10);
/// Events that one object may cause at once.
const BURST: f64 = 25.0;
/// Time after which a throttled object may cause one more Event.
const REFILL: Duration = Duration::from_mins(5);

/// How alarming an Event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Information.
    Normal,
    /// Something that a person may have to look at.
    Warning,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

#[derive(Debug)]
struct Message {
    object: ObjectReference,
    kind: Kind,
    reason: &'static str,
    text: String,
}

impl Message {
    fn identity(&self) -> Identity {
        let object: Arc<str> = match &self.object.uid {
            Some(uid) => uid.as_str().into(),
            None => format!("{:?}/{:?}", self.object.namespace, self.object.name).into(),
        };
        ((object, self.kind, self.reason), self.object.field_path.clone(), self.text.clone())
    }
}

/// The handle through which a role tells what happened. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    sender: mpsc::Sender<Message>,
    dropped: Counter,
}

impl Recorder {
    /// A recorder, and the writer that has to run for its Events to be written. `source` says who tells; it has a host
    /// if there is one such role on each node.
    pub fn new(client: Client, source: EventSource, metrics: &mut Registry) -> (Self, EventWriter) {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let help = "Events not written: queue full or throttled";
        let dropped = registered(metrics, "events_dropped", help, Counter::default());
        let memory = Memory::default();
        let writer = EventWriter { client, source, receiver, dropped: dropped.clone(), memory };
        (Self { sender, dropped }, writer)
    }

    /// Tells about `object`. Never blocks. A text beyond [`MESSAGE_MAX`] is cut.
    pub fn record(&self, object: ObjectReference, kind: Kind, reason: &'static str, mut text: String) {
        text.truncate(text.floor_char_boundary(MESSAGE_MAX));
        if self.sender.try_send(Message { object, kind, reason, text }).is_err() {
            self.dropped.inc();
        }
    }
}

/// The reference by which an Event names an object.
pub fn object_reference<K: Resource<DynamicType = ()>>(meta: &ObjectMeta) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

/// Who says what about whom; the message is left out to find similar ones.
type Subject = (Arc<str>, Kind, &'static str);

/// A subject, the part of the object that is meant (a container of a pod), and the message.
type Identity = (Subject, Option<String>, String);

#[derive(Debug)]
struct Similar {
    since: Instant,
    different: u32,
}

#[derive(Debug)]
struct Written {
    namespace: String,
    name: String,
    count: i32,
}

#[derive(Debug, Default)]
struct Memory {
    written: HashMap<Identity, Written>,
    similar: HashMap<Subject, Similar>,
    buckets: HashMap<Arc<str>, (f64, Instant)>,
}

/// What to do with a message.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Create { text: String },
    Count { namespace: String, name: String, count: i32, text: String },
    Throttle,
}

impl Memory {
    fn judge(&mut self, message: &Message, now: Instant) -> Verdict {
        if self.written.len().max(self.similar.len()).max(self.buckets.len()) >= REMEMBERED_MAX {
            *self = Self::default();
        }
        let (subject, ..) = message.identity();
        if !self.admit(&subject.0, now) {
            return Verdict::Throttle;
        }
        if let Some(written) = self.written.get_mut(&message.identity()) {
            return written.again(message.text.clone());
        }
        let similar = self.similar.entry(subject.clone()).or_insert(Similar { since: now, different: 0 });
        if now.duration_since(similar.since) > SIMILAR_WINDOW {
            *similar = Similar { since: now, different: 0 };
        }
        similar.different += 1;
        if similar.different <= SIMILAR_MAX {
            return Verdict::Create { text: message.text.clone() };
        }
        let text = format!("(combined from similar events): {}", message.text);
        match self.written.get_mut(&combined(subject)) {
            Some(written) => written.again(text),
            None => Verdict::Create { text },
        }
    }

    /// A token bucket for each object.
    fn admit(&mut self, object: &Arc<str>, now: Instant) -> bool {
        let (tokens, since) = self.buckets.entry(object.clone()).or_insert((BURST, now));
        *tokens = (*tokens + now.duration_since(*since).as_secs_f64() / REFILL.as_secs_f64()).min(BURST);
        *since = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }

    fn remember(&mut self, message: &Message, text: &str, event: &Event) {
        let identity = message.identity();
        let identity = if text == message.text { identity } else { combined(identity.0) };
        let written = Written {
            namespace: event.metadata.namespace.clone().unwrap_or_default(),
            name: event.metadata.name.clone().unwrap_or_default(),
            count: 1,
        };
        self.written.insert(identity, written);
    }
}

/// Combined Events are remembered under the empty message: each has another text.
fn combined(subject: Subject) -> Identity {
    (subject, None, String::new())
}

impl Written {
    fn again(&mut self, text: String) -> Verdict {
        self.count += 1;
        Verdict::Count { namespace: self.namespace.clone(), name: self.name.clone(), count: self.count, text }
    }
}

/// Writes what its [`Recorder`] was told.
pub struct EventWriter {
    client: Client,
    source: EventSource,
    receiver: mpsc::Receiver<Message>,
    dropped: Counter,
    memory: Memory,
}

impl fmt::Debug for EventWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventWriter").field("source", &self.source).finish_non_exhaustive()
    }
}

impl EventWriter {
    /// Writes until `shutdown`, or until the last recorder is gone.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let message = tokio::select! {
                () = shutdown.cancelled() => return,
                message = self.receiver.recv() => match message {
                    Some(message) => message,
                    None => return,
                },
            };
            if let Err(error) = self.write(&message).await {
                let object = message.object.name.as_deref().unwrap_or_default();
                tracing::debug!(object, reason = message.reason, %error, "Event not written");
            }
        }
    }

    async fn write(&mut self, message: &Message) -> Result<(), kube::Error> {
        match self.memory.judge(message, Instant::now()) {
            Verdict::Throttle => {
                self.dropped.inc();
                Ok(())
            }
            Verdict::Count { namespace, name, count, text } => {
                let patch = json!({ "count": count, "lastTimestamp": crate::now(), "message": text });
                let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
                match api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                    // Events expire; the next one of its kind is a first one again.
                    Err(error) if crate::is_not_found(&error) => self.create(message, text).await,
                    other => other.map(drop),
                }
            }
            Verdict::Create { text } => self.create(message, text).await,
        }
    }

    async fn create(&mut self, message: &Message, text: String) -> Result<(), kube::Error> {
        let event = new_event(message, &text, &self.source, crate::now());
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        api.create(&PostParams::default(), &event).await?;
        self.memory.remember(message, &text, &event);
        Ok(())
    }
}

fn new_event(message: &Message, text: &str, source: &EventSource, now: Time) -> Event {
    // Cluster-scoped objects have their Events in `default`, where kubectl looks for them.
    let namespace = message.object.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let object_name = message.object.name.as_deref().unwrap_or_default();
    let unique = jiff::Timestamp::now().as_nanosecond() as u64;
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{object_name}.{unique:x}")),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        involved_object: message.object.clone(),
        reason: Some(message.reason.to_owned()),
        message: Some(text.to_owned()),
        type_: Some(message.kind.as_str().to_owned()),
        count: Some(1),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        event_time: None::<MicroTime>,
        source: Some(source.clone()),
        reporting_component: source.component.clone(),
        reporting_instance: Some(source.host.clone().unwrap_or_default()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Message {
        let object = ObjectReference { uid: Some("u".into()), ..ObjectReference::default() };
        Message { object, kind: Kind::Normal, reason: "Because", text: text.into() }
    }

    fn write(memory: &mut Memory, text: &str, now: Instant) -> Verdict {
        write_message(memory, message(text), now)
    }

    fn write_message(memory: &mut Memory, message: Message, now: Instant) -> Verdict {
        let verdict = memory.judge(&message, now);
        if let Verdict::Create { text } = &verdict {
            memory.remember(
                &message,
                text,
                &new_event(&message, text, &EventSource::default(), crate::now()),
            );
        }
        verdict
    }

    #[test]
    fn the_same_again_is_counted() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        assert!(matches!(write(&mut memory, "a", now), Verdict::Create { .. }));
        assert!(matches!(write(&mut memory, "a", now), Verdict::Count { count: 2, .. }));
        assert!(matches!(write(&mut memory, "b", now), Verdict::Create { .. }));
    }

    #[test]
    fn the_same_about_another_part_is_not_the_same() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let mut about = |part: &str| {
            let mut message = message("a");
            message.object.field_path = Some(part.into());
            write_message(&mut memory, message, now)
        };
        assert!(matches!(about("spec.containers{one}"), Verdict::Create { .. }));
        assert!(matches!(about("spec.containers{two}"), Verdict::Create { .. }));
        assert!(matches!(about("spec.containers{one}"), Verdict::Count { count: 2, .. }));
    }

    #[test]
    fn many_similar_messages_become_one() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        for number in 0..SIMILAR_MAX {
            let verdict = write(&mut memory, &number.to_string(), now);
            assert!(matches!(verdict, Verdict::Create { .. }));
        }
        let combined = "(combined from similar events): x".to_owned();
        assert_eq!(write(&mut memory, "x", now), Verdict::Create { text: combined });
        assert!(matches!(write(&mut memory, "y", now), Verdict::Count { count: 2, .. }));
    }

    #[test]
    fn an_object_that_keeps_crying_is_throttled_and_recovers() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        for _ in 0..BURST as u32 {
            assert_ne!(write(&mut memory, "a", now), Verdict::Throttle);
        }
        assert_eq!(write(&mut memory, "a", now), Verdict::Throttle);
        assert_ne!(write(&mut memory, "a", now + REFILL), Verdict::Throttle);
    }
}
