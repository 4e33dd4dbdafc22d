//! Where a request stands in a trace, as `traceparent` says it (W3C Trace Context).

use opentelemetry::trace::{SpanId, TraceId};

use crate::upstream::random;

/// Bytes of `traceparent` in version 00; later ones may say more behind them.
const LEN: usize = 55;
/// The bits of a trace's id that are random whoever made it (Trace Context level 2, §3.2.2.3), which whether it is
/// recorded hangs on, so that all who are asked for the same share choose the same traces.
const RANDOM_BITS: u32 = 56;

/// What a caller says: its span, and the trace that it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parent {
    pub(super) trace: TraceId,
    pub(super) span: SpanId,
    pub(super) is_sampled: bool,
}

impl Parent {
    /// Reads `traceparent`; `None` if it is malformed, which starts a new trace.
    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let (known, more) = text.split_at_checked(LEN)?;
        let (version, rest) = known.split_at(2);
        let fields: Vec<&str> = rest.strip_prefix('-')?.split('-').collect();
        let &[trace, span, flags] = &fields[..] else { return None };
        let is_hex = |text: &str, len: usize| {
            text.len() == len && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let fits = match version {
            "ff" => false,
            "00" => more.is_empty(),
            _ => more.is_empty() || more.starts_with('-'),
        };
        if !(fits && is_hex(version, 2) && is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2)) {
            return None;
        }
        let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
        let is_sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        (trace != TraceId::INVALID && span != SpanId::INVALID).then_some(Self { trace, span, is_sampled })
    }

    /// The trace's id.
    pub(crate) fn trace(&self) -> TraceId {
        self.trace
    }
}

/// A request's own place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) id: TraceId,
    pub(super) span: SpanId,
    pub(super) parent: Option<SpanId>,
    /// Whether it is recorded, here and behind.
    pub(crate) is_sampled: bool,
}

impl Trace {
    /// Goes on with the caller's trace, or begins one. What the caller says of recording counts if it is `trusted`; else this
    /// share of all traces is recorded.
    pub(super) fn begin(parent: Option<Parent>, trusted: bool, share: Share) -> Self {
        let id = parent.map_or_else(fresh_trace, |parent| parent.trace);
        let said = parent.filter(|_| trusted).map(|parent| parent.is_sampled);
        Self {
            id,
            span: SpanId::from_bytes((random() | 1).to_be_bytes()),
            parent: parent.map(|parent| parent.span),
            is_sampled: said.unwrap_or_else(|| share.takes(id)),
        }
    }

    /// Whether it began here.
    pub(crate) fn is_new(&self) -> bool {
        self.parent.is_none()
    }

    /// `traceparent` for the endpoint.
    pub(crate) fn header(&self) -> String {
        format!("00-{}-{}-{:02x}", self.id, self.span, u8::from(self.is_sampled))
    }
}

fn fresh_trace() -> TraceId {
    TraceId::from_bytes((u128::from(random()) << 64 | u128::from(random() | 1)).to_be_bytes())
}

/// A share of all traces.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    /// Traces whose random bits are below are not taken (OpenTelemetry's rejection threshold).
    threshold: u64,
}

impl Share {
    /// From 0, none, to 1, all.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "in 0..=2^56"
    )]
    pub(super) fn of(ratio: f64) -> Self {
        Self { threshold: ((1.0 - ratio) * (1_u64 << RANDOM_BITS) as f64) as u64 }
    }

    fn takes(self, trace: TraceId) -> bool {
        let low = u64::from_be_bytes(std::array::from_fn(|at| trace.to_bytes()[8 + at]));
        low & ((1 << RANDOM_BITS) - 1) >= self.threshold
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn a_traceparent_is_read_as_the_standard_has_it() {
        let sampled = |text: &str| Parent::parse(text.as_bytes()).map(|parent| parent.is_sampled);
        for (text, expected) in [
            (format!("00-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-00"), Some(false)),
            (format!("00-{TRACE}-{SPAN}-03"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-01-more"), None),
            (format!("cc-{TRACE}-{SPAN}-01-more"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01.more"), None),
            (format!("ff-{TRACE}-{SPAN}-01"), None),
            (format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), None),
            (format!("00-{}-{SPAN}-01", "0".repeat(32)), None),
            (format!("00-{TRACE}-{}-01", "0".repeat(16)), None),
            (format!("00-{TRACE}-{SPAN}-0"), None),
            (format!("00-{TRACE}-{SPAN}-0x"), None),
            (format!("00-{}-{SPAN}-01", "+".repeat(32)), None),
            (String::new(), None),
            ("\u{e4}".repeat(40), None),
        ] {
            assert_eq!(sampled(&text), expected, "{text}");
        }
    }

    #[test]
    fn a_request_goes_on_with_the_callers_trace_in_a_span_of_its_own() {
        let parent = Parent::parse(format!("00-{TRACE}-{SPAN}-01").as_bytes());
        let header = |trusted, ratio| Trace::begin(parent, trusted, Share::of(ratio)).header();
        let believed = header(true, 0.0);
        assert!(believed.starts_with(&format!("00-{TRACE}-")) && believed.ends_with("-01"), "{believed}");
        assert!(!believed.contains(SPAN), "{believed}");
        assert!(Parent::parse(believed.as_bytes()).is_some(), "{believed}");
        assert!(header(false, 0.0).ends_with("-00"), "anyone could have everything recorded");
        assert!(header(false, 1.0).ends_with("-01"));
    }

    #[test]
    fn as_many_traces_are_recorded_as_were_asked_for() {
        let taken =
            |ratio| (0..10_000).filter(|_| Trace::begin(None, false, Share::of(ratio)).is_sampled).count();
        assert_eq!((taken(0.0), taken(1.0)), (0, 10_000));
        let tenth = taken(0.1);
        assert!((700..1_300).contains(&tenth), "{tenth}");
        let trace = TraceId::from_hex(TRACE).unwrap();
        let all: Vec<bool> =
            [0.1, 0.3, 0.5, 0.9].iter().map(|ratio| Share::of(*ratio).takes(trace)).collect();
        assert!(all.is_sorted(), "a larger share has all of a smaller one: {all:?}");
    }
}
