//! Where a body ends.
//!
//! Bodies are forwarded as they come, chunk by chunk with their sizes, so nothing is decoded or put together again. But
//! whoever finds the end of a body by other rules than the next reader lets a second request hide in the first. So every
//! byte of the framing is read strictly here, and a body that is not exactly what RFC 9112 §7.1 says ends the exchange.

/// Digits of a chunk's size: more would not fit in 60 bits.
const MAX_SIZE_DIGITS: u8 = 15;
/// Bytes of one chunk's extensions.
const MAX_EXTENSION: u16 = 256;
/// Bytes of all trailer fields.
const MAX_TRAILERS: u16 = 8 * 1024;

/// A body that is not framed as it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body has a malformed chunk")]
pub(crate) struct BadChunk;

/// What of some bytes belongs to a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// So many, with their framing.
    pub(crate) bytes: usize,
    /// So many without it.
    pub(crate) data: usize,
}

/// What a body is made of, besides framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part<'b> {
    Data(&'b [u8]),
    /// Lines of trailer fields, or parts of them.
    Trailers(&'b [u8]),
}

impl Piece {
    /// Without framing.
    fn plain(bytes: usize) -> Self {
        Self { bytes, data: bytes }
    }
}

/// A body, as far as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    /// All of it was read.
    Done,
    /// So many bytes are to come.
    Length(u64),
    /// Chunks are to come.
    Chunked(Chunk),
    /// It ends with the connection.
    UntilClose,
    /// No body at all: bytes of another protocol, until either side ends it.
    Tunnel,
}

/// What the next byte of a chunked body belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunk {
    Size {
        size: u64,
        digits: u8,
    },
    Extension {
        size: u64,
        length: u16,
    },
    SizeEnd {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// At the start of a line behind the last chunk.
    Trailer {
        length: u16,
    },
    TrailerField {
        length: u16,
    },
    TrailerLf {
        length: u16,
    },
    End,
}

impl Chunk {
    const START: Self = Self::Size { size: 0, digits: 0 };
}

impl Body {
    /// A chunked body from its start on.
    pub(crate) const CHUNKED: Self = Self::Chunked(Chunk::START);

    /// A body of this many bytes.
    pub(crate) fn of(length: u64) -> Self {
        if length == 0 { Self::Done } else { Self::Length(length) }
    }

    pub(crate) fn is_done(self) -> bool {
        self == Self::Done
    }

    /// How many of these bytes belong to the body; those behind them only if it is done.
    ///
    /// Cost: a few instructions per chunk and line of framing, nothing per byte of data.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Result<Piece, BadChunk> {
        self.read_parts(bytes, |_| {})
    }

    /// The same; `take` gets the data without its framing, in one call for each chunk, and trailer fields.
    pub(crate) fn read_parts(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(Part<'_>),
    ) -> Result<Piece, BadChunk> {
        match self {
            Self::Done => Ok(Piece::plain(0)),
            Self::UntilClose | Self::Tunnel => {
                take(Part::Data(bytes));
                Ok(Piece::plain(bytes.len()))
            }
            Self::Length(left) => {
                let count = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *self = Self::of(*left - count as u64);
                take(Part::Data(&bytes[..count]));
                Ok(Piece::plain(count))
            }
            Self::Chunked(state) => {
                let (mut chunk, mut at, mut data) = (*state, 0, 0);
                while let Some(&byte) = bytes.get(at) {
                    if let Chunk::Data { left } = chunk {
                        let count = (bytes.len() - at).min(usize::try_from(left).unwrap_or(usize::MAX));
                        let left = left - count as u64;
                        take(Part::Data(&bytes[at..at + count]));
                        chunk = if left == 0 { Chunk::DataCr } else { Chunk::Data { left } };
                        at += count;
                        data += count;
                        continue;
                    }
                    if chunk.is_in_trailer(byte) {
                        take(Part::Trailers(&bytes[at..=at]));
                    }
                    at += 1;
                    let Some(next) = chunk.step(byte)? else {
                        *self = Self::Done;
                        return Ok(Piece { bytes: at, data });
                    };
                    chunk = next;
                }
                *self = Self::Chunked(chunk);
                Ok(Piece { bytes: at, data })
            }
        }
    }
}

impl Chunk {
    /// Whether this byte belongs to a trailer field's line.
    fn is_in_trailer(self, byte: u8) -> bool {
        matches!((self, byte), (Self::TrailerField { .. } | Self::TrailerLf { .. }, _))
            || (matches!(self, Self::Trailer { .. }) && byte != b'\r')
    }

    /// What the byte behind this one belongs to; nothing when it is the body's last.
    fn step(self, byte: u8) -> Result<Option<Self>, BadChunk> {
        let next = match (self, byte) {
            (Self::Size { size, digits }, _) if byte.is_ascii_hexdigit() && digits < MAX_SIZE_DIGITS => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                Self::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (Self::Size { size, digits: 1.. } | Self::Extension { size, .. }, b'\r') => {
                Self::SizeEnd { size }
            }
            (Self::Size { size, digits: 1.. }, b';') => Self::Extension { size, length: 0 },
            (Self::Extension { size, length }, _) if is_text(byte) && length < MAX_EXTENSION => {
                Self::Extension { size, length: length + 1 }
            }
            (Self::SizeEnd { size: 0 }, b'\n') => Self::Trailer { length: 0 },
            (Self::SizeEnd { size }, b'\n') => Self::Data { left: size },
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::START,
            (Self::Trailer { .. }, b'\r') => Self::End,
            (Self::TrailerField { length }, b'\r') => Self::TrailerLf { length },
            (Self::Trailer { length }, _) if is_name(byte) => Self::TrailerField { length: length + 1 },
            (Self::TrailerField { length }, _) if is_text(byte) && length < MAX_TRAILERS => {
                Self::TrailerField { length: length + 1 }
            }
            (Self::TrailerLf { length }, b'\n') => Self::Trailer { length },
            (Self::End, b'\n') => return Ok(None),
            _ => return Err(BadChunk),
        };
        Ok(Some(next))
    }
}

/// What a field's value or an extension may have.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// What a field's name may begin with.
fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(bytes: &[u8]) -> Result<(usize, bool), BadChunk> {
        let mut body = Body::CHUNKED;
        Ok((body.read(bytes)?.bytes, body.is_done()))
    }

    #[test]
    fn lengths_end_where_they_say() {
        let mut body = Body::of(5);
        assert_eq!(body.read(b"abc"), Ok(Piece::plain(3)));
        assert_eq!(body.read(b"defgh"), Ok(Piece::plain(2)));
        assert!(body.is_done());
        assert_eq!(body.read(b"next"), Ok(Piece::plain(0)));
        assert!(Body::of(0).is_done());
    }

    #[test]
    fn chunked_bodies_end_behind_their_trailers() {
        for (bytes, expected) in [
            (&b"0\r\n\r\nGET"[..], Ok((5, true))),
            (b"5\r\nhello\r\n0\r\n\r\n", Ok((15, true))),
            (b"00A\r\n0123456789\r\n0\r\n\r\n", Ok((22, true))),
            (b"3;name=value\r\nabc\r\n0;last\r\n\r\n", Ok((29, true))),
            (b"0\r\nX-Sum: 1\r\nY: 2\r\n\r\nrest", Ok((21, true))),
            (b"5\r\nhel", Ok((6, false))),
            (b"", Ok((0, false))),
        ] {
            assert_eq!(whole(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for bytes in [
            &b"\r\n"[..],
            b"zz\r\n",
            b"-1\r\n",
            b"+1\r\n",
            b"0x1\r\n",
            b" 1\r\n",
            b"1 \r\n",
            b"1\n",
            b"1;a\nb\r\n",
            b"1\r\nab\r\n",
            b"1\r\na\n",
            b"1\r\na\rb",
            b"0\r\n\n",
            b"0\r\n folded\r\n",
            b"0\r\n: no name\r\n",
            b"0\r\nX: a\nY: b\r\n\r\n",
            b"0\r\n\rX",
            b"1000000000000000\r\n",
        ] {
            assert_eq!(whole(bytes), Err(BadChunk), "{:?}", String::from_utf8_lossy(bytes));
        }
        let long = [b"1;".as_slice(), &[b'a'; MAX_EXTENSION as usize + 1]].concat();
        assert_eq!(whole(&long), Err(BadChunk));
        let long = [b"0\r\n".as_slice(), &b"x:y\r\n".repeat(MAX_TRAILERS as usize / 2)].concat();
        assert_eq!(whole(&long), Err(BadChunk));
    }

    proptest! {
        #[test]
        fn however_it_is_cut_it_ends_at_the_same_byte(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
            cuts in prop::collection::vec(1_usize..30, 0..40),
        ) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\nA: b\r\n\r\n");
            let length = bytes.len();
            bytes.extend(b"GET / HTTP/1.1\r\n");
            let (mut body, mut at, mut data) = (Body::CHUNKED, 0, 0);
            for cut in cuts.into_iter().chain([length]) {
                let piece = body.read(&bytes[at..(at + cut).min(bytes.len())]).unwrap();
                at += piece.bytes;
                data += piece.data;
            }
            prop_assert!(body.is_done());
            prop_assert_eq!(data, chunks.iter().map(Vec::len).sum::<usize>());
            prop_assert_eq!(at, length);
        }
    }
}
