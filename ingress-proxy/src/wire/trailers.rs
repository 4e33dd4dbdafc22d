//! Fields behind a chunked body, for who does not take its chunks as they are.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::framing::BadChunk;
use super::head::{Known, MAX_FIELDS};

/// Trailer fields as they come. [`super::Body`] bounds how many bytes they are.
#[derive(Debug, Default)]
pub(crate) struct Trailers(Vec<u8>);

impl Trailers {
    /// More of them.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The fields, if there were any; without those that must not stand there, since they are about framing, routing or the
    /// connection (RFC 9110 §6.5.1).
    pub(crate) fn fields(&self) -> Result<Option<HeaderMap>, BadChunk> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let mut space = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let text = [&self.0, b"\r\n".as_slice()].concat();
        let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(&text, &mut space) else {
            return Err(BadChunk);
        };
        let mut map = HeaderMap::with_capacity(fields.len());
        for field in fields {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| BadChunk)?;
            if may_stand(&name) {
                map.append(name, HeaderValue::from_bytes(field.value).map_err(|_| BadChunk)?);
            }
        }
        Ok(Some(map))
    }
}

/// Writes what may stand behind the last chunk, up to the end of the message.
pub(crate) fn write_trailers(out: &mut impl Extend<u8>, trailers: Option<&HeaderMap>) {
    for (name, value) in trailers.into_iter().flatten().filter(|(name, _)| may_stand(name)) {
        out.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    out.extend(*b"\r\n");
}

fn may_stand(name: &HeaderName) -> bool {
    Known::of(name.as_str()) == Known::Other && *name != http::header::TRAILER
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Body, Part};

    fn trailers(body: &[u8], cut: usize) -> Result<Option<Vec<String>>, BadChunk> {
        let (mut state, mut trailers, mut data) = (Body::CHUNKED, Trailers::default(), Vec::new());
        for bytes in [&body[..cut], &body[cut..]] {
            state.read_parts(bytes, |part| match part {
                Part::Data(bytes) => data.extend_from_slice(bytes),
                Part::Trailers(bytes) => trailers.push(bytes),
            })?;
        }
        assert!(state.is_done());
        assert_eq!(data, b"hello");
        let text = |(name, value): (&HeaderName, &HeaderValue)| format!("{name}={}", value.to_str().unwrap());
        Ok(trailers.fields()?.map(|fields| fields.iter().map(text).collect()))
    }

    #[test]
    fn fields_behind_a_body_are_found_however_it_is_cut() {
        let body =
            b"5\r\nhello\r\n0;x\r\nGrpc-Status: 0\r\nX-Sum: a b\r\nContent-Length: 3\r\nHost: evil\r\n\r\n";
        for cut in 0..body.len() {
            let expected = vec!["grpc-status=0".to_owned(), "x-sum=a b".to_owned()];
            assert_eq!(trailers(body, cut), Ok(Some(expected)), "{cut}");
        }
        assert_eq!(trailers(b"5\r\nhello\r\n0\r\n\r\n", 3), Ok(None));
    }

    #[test]
    fn what_is_no_field_is_refused() {
        assert_eq!(trailers(b"5\r\nhello\r\n0\r\nno colon\r\n\r\n", 3), Err(BadChunk));
    }
}
