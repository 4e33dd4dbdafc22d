//! The ranges that values are given out of.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A range that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Not of the form ADDRESS/BITS.
    #[error("{0:?} is no address range: write it as 10.96.0.0/12")]
    Addresses(String),
    /// Bits are set behind the prefix.
    #[error("{0:?} has bits set behind its prefix: did you mean {1}?")]
    HostBits(String, String),
    /// Fewer than 8 or more than 2^20 addresses.
    #[error("{0:?} has a size that services cannot use: it must have between 8 and 1048576 addresses")]
    Size(String),
    /// Not of the form FIRST-LAST.
    #[error("{0:?} is no port range: write it as 30000-32767")]
    Ports(String),
}

/// Upstream's bounds: an IPv4 range of at most /12, an IPv6 range of at most /108.
const BITS_MIN: u32 = 3;
const BITS_MAX: u32 = 20;

/// The addresses of services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceRange {
    base: IpAddr,
    /// Bits that differ within the range.
    bits: u32,
}

impl ServiceRange {
    /// The address of the `kubernetes` service.
    pub fn first(&self) -> IpAddr {
        self.address(0)
    }

    /// How many addresses are given out: all but the network's own, and IPv4's broadcast.
    pub(super) fn size(&self) -> usize {
        let all = 1_usize << self.bits;
        if self.base.is_ipv4() { all - 2 } else { all - 1 }
    }

    /// The address of a number.
    pub(super) fn address(&self, number: usize) -> IpAddr {
        match self.base {
            IpAddr::V4(base) => IpAddr::V4((u32::from(base) + 1 + number as u32).into()),
            IpAddr::V6(base) => IpAddr::V6((u128::from(base) + 1 + number as u128).into()),
        }
    }

    /// The number of an address; `None` if it is not given out.
    pub(super) fn number(&self, address: IpAddr) -> Option<usize> {
        let offset = match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                u128::from(u32::from(address).checked_sub(u32::from(base))?)
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => u128::from(address).checked_sub(u128::from(base))?,
            _ => return None,
        };
        let number = usize::try_from(offset).ok()?.checked_sub(1)?;
        (number < self.size()).then_some(number)
    }

    /// Where automatic picks begin: the addresses below are for those who name one, such as a cluster's DNS (KEP-3070).
    pub(super) fn dynamic_start(&self) -> usize {
        let size = self.size();
        if size <= 16 { 0 } else { (size / 16).clamp(16, 256) }
    }
}

impl fmt::Display for ServiceRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = if self.base.is_ipv4() { 32 } else { 128 };
        write!(f, "{}/{}", self.base, width - self.bits)
    }
}

impl FromStr for ServiceRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let wrong = || RangeError::Addresses(text.to_owned());
        let (base, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let base: IpAddr = base.parse().map_err(|_| wrong())?;
        let prefix: u32 = prefix.parse().map_err(|_| wrong())?;
        let width = if base.is_ipv4() { 32_u32 } else { 128 };
        let bits = width.checked_sub(prefix).ok_or_else(wrong)?;
        if !(BITS_MIN..=BITS_MAX).contains(&bits) {
            return Err(RangeError::Size(text.to_owned()));
        }
        let masked = match base {
            IpAddr::V4(base) => IpAddr::V4((u32::from(base) & (u32::MAX << bits)).into()),
            IpAddr::V6(base) => IpAddr::V6((u128::from(base) & (u128::MAX << bits)).into()),
        };
        if masked != base {
            return Err(RangeError::HostBits(text.to_owned(), format!("{masked}/{prefix}")));
        }
        Ok(ServiceRange { base, bits })
    }
}

/// The ports that nodes open for services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    pub(super) fn size(self) -> usize {
        usize::from(self.last - self.first) + 1
    }

    pub(super) fn port(self, number: usize) -> u16 {
        self.first + number as u16
    }

    pub(super) fn number(self, port: u16) -> Option<usize> {
        (self.first..=self.last).contains(&port).then(|| usize::from(port - self.first))
    }

    /// Where automatic picks begin: the ports below are for those who name one (KEP-3668).
    pub(super) fn dynamic_start(self) -> usize {
        let size = self.size();
        if size <= 16 { 0 } else { (size / 32).clamp(16, 128) }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let range = text.split_once('-').and_then(|(first, last)| {
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (0 < first && first <= last).then_some(PortRange { first, last })
        });
        range.ok_or_else(|| RangeError::Ports(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_numbers_are_the_same_thing() {
        let range: ServiceRange = "10.96.0.0/12".parse().expect("a range");
        assert_eq!(range.first(), IpAddr::from([10, 96, 0, 1]));
        assert_eq!(range.size(), (1 << 20) - 2);
        assert_eq!(range.number(IpAddr::from([10, 96, 0, 10])), Some(9));
        assert_eq!(range.address(9), IpAddr::from([10, 96, 0, 10]));
        for outside in [[10, 96, 0, 0], [10, 95, 255, 255], [10, 111, 255, 255], [10, 112, 0, 0]] {
            assert_eq!(range.number(IpAddr::from(outside)), None, "{outside:?}");
        }
        assert_eq!(range.to_string(), "10.96.0.0/12");

        let six: ServiceRange = "fd00:10::/112".parse().expect("a range");
        assert_eq!(six.number("fd00:10::a".parse().expect("an address")), Some(9));
    }

    #[test]
    fn what_is_no_range_is_refused_with_a_hint() {
        for text in ["", "10.96.0.0", "10.96.0.0/33", "x/12"] {
            assert!(matches!(text.parse::<ServiceRange>(), Err(RangeError::Addresses(_))), "{text}");
        }
        let error = "10.96.0.1/12".parse::<ServiceRange>().expect_err("host bits");
        assert!(error.to_string().contains("10.96.0.0/12"), "{error}");
        assert!(matches!("10.0.0.0/8".parse::<ServiceRange>(), Err(RangeError::Size(_))));
        for text in ["", "30000", "2-1", "0-5", "1-70000"] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
        assert_eq!("30000-32767".parse::<PortRange>().expect("a range").size(), 2768);
    }
}
