//! The option of IPv4 that tells a backend's node which frontend a client asked for.

use crate::{Be16, Ip4, checksum};

/// The option as it stands in a packet, first behind the header's fixed part, so that nobody searches for it.
///
/// Kind, layout and place are those of Cilium's: an option that is copied into every fragment, of the class of control, with
/// a number that nobody has registered (RFC 791, 3.1). Routers forward options that they do not know (RFC 1812, 4.2.2.6).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrontendOption {
    /// [`FrontendOption::KIND`].
    pub kind: Be16,
    /// The frontend's port.
    pub port: Be16,
    /// Its address.
    pub address: Ip4,
}

impl FrontendOption {
    /// Type and length.
    pub const KIND: Be16 = Be16::new(0x9a08);
    /// Bytes of it: two of the header's words.
    pub const LENGTH: usize = size_of::<Self>();
    /// The most that a header's first byte can be, version and words, before this option has no room: 15 words are the
    /// longest.
    pub const MOST_BEFORE: u8 = 0x4f - Self::WORDS;
    /// Words of it.
    pub const WORDS: u8 = (Self::LENGTH / 4) as u8;

    /// Of this frontend.
    #[inline(always)]
    pub const fn new(address: Ip4, port: Be16) -> Self {
        Self { kind: Self::KIND, port, address }
    }

    /// Its words in a checksum.
    #[inline(always)]
    pub fn sum(&self) -> checksum::Sum {
        checksum::Sum::default().add_word(self.kind).add_word(self.port).add_address(&self.address)
    }
}

const _: () = assert!(FrontendOption::LENGTH == 8);
