//! Addresses and ports with their byte order in the type.

use core::hash::Hash;

/// A 16-bit number in network byte order, as it stands in a packet.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Be16(u16);

impl Be16 {
    /// From host order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// From the bits as they were read from a packet or a kernel structure.
    #[inline(always)]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// To host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The bits as they stand in a packet.
    #[inline(always)]
    pub const fn bits(self) -> u16 {
        self.0
    }
}

/// A 32-bit number in network byte order, as it stands in a packet.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Be32(u32);

impl Be32 {
    /// From host order.
    #[inline(always)]
    pub const fn new(host: u32) -> Self {
        Self(host.to_be())
    }

    /// From the bits as they were read from a packet or a kernel structure.
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// To host order.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        u32::from_be(self.0)
    }

    /// The bits as they stand in a packet.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// An IPv4 address.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ip4(pub Be32);

/// An IPv6 address, as four words.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ip6(pub [Be32; 4]);

/// What both families have in common: everything the dataplane needs of an address.
pub trait Address: Copy + Eq + Default + Hash + sealed::Sealed + 'static {
    /// The address as words in network order, for hashes and checksum deltas.
    type Words: AsRef<[Be32]>;
    /// Whether a packet's network header can name its frontend in an option ([`crate::FrontendOption`]).
    const HAS_OPTIONS: bool;

    /// Those words.
    fn words(&self) -> Self::Words;
}

mod sealed {
    /// The layouts are laid out for these two addresses, and no others.
    pub trait Sealed {}
    impl Sealed for super::Ip4 {}
    impl Sealed for super::Ip6 {}
}

impl Address for Ip4 {
    type Words = [Be32; 1];
    const HAS_OPTIONS: bool = true;

    #[inline(always)]
    fn words(&self) -> [Be32; 1] {
        [self.0]
    }
}

impl Address for Ip6 {
    type Words = [Be32; 4];
    const HAS_OPTIONS: bool = false;

    #[inline(always)]
    fn words(&self) -> [Be32; 4] {
        self.0
    }
}

impl From<core::net::Ipv4Addr> for Ip4 {
    fn from(address: core::net::Ipv4Addr) -> Self {
        Self(Be32::new(address.to_bits()))
    }
}

impl From<Ip4> for core::net::Ipv4Addr {
    fn from(address: Ip4) -> Self {
        Self::from_bits(address.0.get())
    }
}

impl From<core::net::Ipv6Addr> for Ip6 {
    fn from(address: core::net::Ipv6Addr) -> Self {
        let bits = address.to_bits();
        Self([96, 64, 32, 0].map(|shift| Be32::new((bits >> shift) as u32)))
    }
}

impl From<Ip6> for core::net::Ipv6Addr {
    fn from(address: Ip6) -> Self {
        Self::from_bits(address.0.iter().fold(0, |bits, word| bits << 32 | u128::from(word.get())))
    }
}

/// A link-layer address.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

super::layout!(Be16 = 2, Be32 = 4, Ip4 = 4, Ip6 = 16, Mac = 6);
