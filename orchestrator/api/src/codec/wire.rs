//! Reading the protobuf wire format: numbered fields, four ways to be long.

/// What a field holds on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

impl<'a> Wire<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8], String> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            other => Err(format!("expected bytes, found {other:?}")),
        }
    }

    pub(super) fn text(self) -> Result<&'a str, String> {
        std::str::from_utf8(self.bytes()?).map_err(|error| format!("a text is not UTF-8: {error}"))
    }

    /// Negative numbers are sign-extended to 64 bits, whatever their width in the type.
    pub(super) fn int(self) -> Result<i64, String> {
        match self {
            Self::Varint(number) => Ok(number as i64),
            other => Err(format!("expected a number, found {other:?}")),
        }
    }
}

/// The fields of one message, in the order they were written.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn of(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// Numbers packed without field numbers between them, as proto3 writes repeated numbers.
    pub(super) fn packed(bytes: &'a [u8]) -> Result<Vec<i64>, String> {
        let mut reader = Self { rest: bytes };
        let mut numbers = Vec::new();
        while !reader.rest.is_empty() {
            numbers.push(reader.varint()? as i64);
        }
        Ok(numbers)
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut number = 0u64;
        for index in 0..10 {
            let (&byte, rest) = self.rest.split_first().ok_or("the message ends within a number")?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("a number is longer than 64 bits".to_owned())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or_else(|| format!("the message ends {length} bytes early"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u32, Wire<'a>), String> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| "a field number is too large")?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| "a length is too large")?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(self.array()?)),
            other => return Err(format!("wire type {other} is not known")),
        };
        Ok((number, wire))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| "wrong length".to_owned())
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_order() {
        let message = [0x08, 0x96, 0x01, 0x12, 0x02, b'h', b'i', 0x1d, 1, 0, 0, 0];
        let fields: Result<Vec<_>, _> = Fields::of(&message).collect();
        assert_eq!(
            fields.expect("reads"),
            [(1, Wire::Varint(150)), (2, Wire::Bytes(b"hi")), (3, Wire::Fixed32(1))]
        );
    }

    #[test]
    fn broken_messages_are_errors_not_panics() {
        for message in
            [&[0x08][..], &[0x12, 0x05, 1], &[0x0b], &[0x80; 11], &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]]
        {
            assert!(Fields::of(message).any(|field| field.is_err()), "{message:?}");
        }
    }
}
