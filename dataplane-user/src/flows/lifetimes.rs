//! How long flow entries stay, and when somebody looks.

use std::time::Duration;

use weir_dataplane_ebpf::{FlowState, Protocol};

/// How often the flow tables are read. Lifetimes are exact to this.
pub const PASS_INTERVAL: Duration = Duration::from_secs(15);
/// How full a table of established flows may be before it is read at every look ([`LOOK_INTERVAL`]), and its closed flows rest
/// for less long ([`rest`]).
pub const CROWDED: f64 = 0.5;
/// How often somebody looks how full those tables are: a hundred thousand flows cannot come between two looks.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A SYN or first datagram without an answer. TCP gives up connecting after about two minutes; its retries renew this.
pub const OPENING: Duration = Duration::from_mins(1);
/// An idle TCP connection: more than the two hours after which keepalive speaks (RFC 9293, 3.8.4; RFC 5382, REQ-5).
pub const ESTABLISHED_TCP: Duration = Duration::from_secs(8_000);
/// A datagram flow with both directions seen (RFC 4787, REQ-5 asks for two minutes at least; five are recommended).
pub const ESTABLISHED_UDP: Duration = Duration::from_mins(5);
/// An answered echo (RFC 5508, REQ-2: a minute).
pub const ESTABLISHED_ECHO: Duration = Duration::from_mins(1);
/// One side said FIN and the other may still send (RFC 5382, REQ-5: four minutes).
pub const CLOSING: Duration = Duration::from_mins(4);
/// Both said FIN, or one RST: only late duplicates come.
pub const CLOSED: Duration = Duration::from_secs(10);

/// The same in a table that is full: a round trip's time for what is still on its way.
pub const CLOSED_AT_LEAST: Duration = Duration::from_secs(1);

/// How long closed flows rest in a table that is so full, from 0 to 1: [`CLOSED`] until it is [`CROWDED`], and from there on
/// evenly less, down to [`CLOSED_AT_LEAST`]. With a table of 262,144 entries some 40,000 connections may come and go in a
/// second. No other flow has less time for it: nobody knows of those that they are over.
pub fn rest(fill: f64) -> Duration {
    let room = ((1.0 - fill) / (1.0 - CROWDED)).clamp(0.0, 1.0);
    CLOSED_AT_LEAST + CLOSED.saturating_sub(CLOSED_AT_LEAST).mul_f64(room)
}

/// How long an idle entry of this protocol and state stays in a table whose closed flows rest so long.
pub fn lifetime(protocol: Protocol, state: FlowState, rest: Duration) -> Duration {
    match state {
        FlowState::OPENING => OPENING,
        FlowState::ESTABLISHED if protocol == Protocol::UDP => ESTABLISHED_UDP,
        FlowState::ESTABLISHED if matches!(protocol, Protocol::ICMP | Protocol::ICMPV6) => ESTABLISHED_ECHO,
        FlowState::ESTABLISHED => ESTABLISHED_TCP,
        FlowState::CLOSING => CLOSING,
        _ => rest,
    }
}

/// Readable name of a state.
pub fn state_name(state: FlowState) -> &'static str {
    match state {
        FlowState::OPENING => "opening",
        FlowState::ESTABLISHED => "established",
        FlowState::CLOSING => "closing",
        _ => "closed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_flows_rest_less_long_the_fuller_their_table_is() {
        let rows = [
            (0.0, 10_000),
            (0.5, 10_000),
            (0.6, 8_200),
            (0.75, 5_500),
            (0.9, 2_800),
            (1.0, 1_000),
            (1.2, 1_000),
        ];
        for (fill, rest_ms) in rows {
            assert_eq!((rest(fill).as_secs_f64() * 1e3).round() as u32, rest_ms, "{fill}");
        }
    }

    #[test]
    fn no_other_flow_has_less_time_in_a_full_table() {
        for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
            for state in [FlowState::OPENING, FlowState::ESTABLISHED, FlowState::CLOSING] {
                assert_eq!(
                    lifetime(protocol, state, rest(1.0)),
                    lifetime(protocol, state, CLOSED),
                    "{state:?}"
                );
            }
        }
    }
}
