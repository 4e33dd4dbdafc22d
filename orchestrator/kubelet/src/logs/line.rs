//! One entry of a CRI log.

use jiff::Timestamp;

/// `<RFC 3339 time> <stream> <tags> <text>`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// The time as written.
    pub(super) stamp: &'a str,
    /// The line goes on in the next entry (`P`).
    pub(super) partial: bool,
    /// The text without its newline.
    pub(super) text: &'a [u8],
}

impl<'a> Line<'a> {
    /// None if this is no entry, for instance the torn end of a file after a crash of the machine.
    pub(super) fn parse(raw: &'a [u8]) -> Option<Self> {
        let raw = raw.strip_suffix(b"\n").unwrap_or(raw);
        let (stamp, rest) = split(raw)?;
        let (stream, rest) = split(rest)?;
        let (tags, text) = split(rest).unwrap_or((rest, b""));
        if stream != b"stdout" && stream != b"stderr" {
            return None;
        }
        // Tags are separated by colons; only the first has a meaning so far.
        let partial = tags.split(|byte| *byte == b':').next() == Some(b"P");
        Some(Self { stamp: std::str::from_utf8(stamp).ok()?, partial, text })
    }

    /// The time.
    pub(super) fn time(&self) -> Option<Timestamp> {
        self.stamp.parse().ok()
    }
}

fn split(raw: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = raw.iter().position(|byte| *byte == b' ')?;
    Some((&raw[..at], &raw[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_from_rubbish() {
        let line = Line::parse(b"2026-11-23T21:00:00.5Z stdout P a b\n").unwrap();
        assert_eq!((line.stamp, line.partial, line.text), ("2026-11-23T21:00:00.5Z", true, &b"a b"[..]));
        assert!(line.time().is_some());
        assert_eq!(Line::parse(b"2026-11-23T21:00:00Z stdout F \n").unwrap().text, b"");
        assert_eq!(Line::parse(b"torn"), None);
        assert_eq!(Line::parse(b"a stdin F x"), None);
    }
}
