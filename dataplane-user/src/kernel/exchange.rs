//! One netlink request and its answers, for what no crate at hand has messages for.

use std::io;

use rtnetlink::sys::{Socket, SocketAddr as Peer};

/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_DUMP`.
pub(super) const REQUEST: u16 = 0x1;
pub(super) const ACKNOWLEDGE: u16 = 0x4;
pub(super) const DUMP: u16 = 0x300;
/// `NLM_F_ECHO`: what others would be told is told to who asks.
pub(super) const ECHO: u16 = 0x8;
/// `NLM_F_CREATE` with `NLM_F_EXCL`: make what must not be there yet.
pub(super) const CREATE_NEW: u16 = 0x600;
/// `NLMSG_ERROR`, `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A request.
pub(super) fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend(((HEADER + payload.len()) as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port: one exchange for each socket needs neither.
    bytes.extend([0; 8]);
    bytes.extend(payload);
    bytes
}

/// An attribute, as long as its value and padded.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Sends one request and hands every answer's type and payload over, until the kernel says that this was all.
pub(super) fn exchange(protocol: isize, request: &[u8], mut take: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&Peer::new(0, 0))?;
    socket.send(request, 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while let Some((kind, payload, next)) = split_message(rest) {
            rest = next;
            match kind {
                DONE => return Ok(()),
                ERROR => {
                    let code =
                        payload.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
                    return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                kind => take(kind, payload),
            }
        }
    }
}

/// The first message of a datagram: its type, its payload, and what comes after.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let payload = bytes.get(HEADER..length)?;
    Some((kind, payload, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// Attributes one after the other: type without flags, and value.
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// The value of the first attribute of a type.
pub(super) fn find(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    Attributes(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_as_they_were_written() {
        let bytes = [attribute(1, b"abc"), attribute(2 | 1 << 15, &attribute(7, b"x"))].concat();
        assert_eq!(find(&bytes, 1), Some(b"abc".as_slice()));
        assert_eq!(find(find(&bytes, 2).unwrap(), 7), Some(b"x".as_slice()));
        assert_eq!(find(&bytes, 3), None);
    }

    #[test]
    fn bytes_that_end_early_are_nothing() {
        assert!(split_message(&[255, 255, 0, 0, 3, 0]).is_none());
        assert!(Attributes(&[3, 0, 1, 0, 9]).next().is_none(), "shorter than its own header");
    }
}
