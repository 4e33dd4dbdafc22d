//! Address ranges: pod ranges, service ranges.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An address range of either family, with all host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is no [`Cidr`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not `ADDRESS/BITS`.
    #[error("`{0}` is not ADDRESS/BITS, as in 10.244.0.0/24")]
    Syntax(String),
    /// More bits than the family has.
    #[error("`{0}`: a prefix of this family has at most {1} bits")]
    Prefix(String, u8),
    /// The address is not the range's first.
    #[error("`{0}` has host bits set; the range that holds this address is {1}")]
    HostBits(String, Cidr),
}

impl Cidr {
    /// The range of `prefix` bits that holds `address`.
    pub fn containing(address: IpAddr, prefix: u8) -> Self {
        let address = match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4((address.to_bits() & mask).into())
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6((address.to_bits() & mask).into())
            }
        };
        Self { address, prefix }
    }

    /// The range of this address alone.
    pub fn of_host(address: IpAddr) -> Self {
        Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// The range's first address, with all host bits zero.
    pub fn network(&self) -> IpAddr {
        self.address
    }

    /// Bits of the prefix.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether the range holds `address`; never across families.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && Self::containing(address, self.prefix) == *self
    }

    /// The `n`th address of the range, counted from 0, or nothing beyond its end.
    pub fn nth(&self, n: u128) -> Option<IpAddr> {
        let bits = self.family_bits() - self.prefix;
        if u32::from(bits) < u128::BITS && n >> bits != 0 {
            return None;
        }
        Some(match self.address {
            IpAddr::V4(first) => IpAddr::V4((first.to_bits() + n as u32).into()),
            IpAddr::V6(first) => IpAddr::V6((first.to_bits() + n).into()),
        })
    }

    /// Addresses that pods may have: without the network's and, in IPv4, the broadcast address, and without the first
    /// one, which is the node's own.
    pub fn pod_addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let range = *self;
        let last = self.address.is_ipv4().then(|| {
            let host_bits = u128::from(self.family_bits() - self.prefix);
            (1 << host_bits) - 1
        });
        (2..).take_while(move |n| Some(*n) != last).map_while(move |n| range.nth(n))
    }

    /// The node's own address in its pod range: the first after the network's.
    pub fn node_address(&self) -> Option<IpAddr> {
        self.nth(1)
    }

    fn family_bits(&self) -> u8 {
        if self.address.is_ipv4() { 32 } else { 128 }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let syntax = || CidrError::Syntax(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(syntax)?;
        let address: IpAddr = address.parse().map_err(|_| syntax())?;
        let prefix: u8 = prefix.parse().map_err(|_| syntax())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if prefix > most {
            return Err(CidrError::Prefix(text.to_owned(), most));
        }
        let range = Self::containing(address, prefix);
        if range.address == address { Ok(range) } else { Err(CidrError::HostBits(text.to_owned(), range)) }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn parses_only_whole_ranges() {
        assert_eq!(cidr("10.244.0.0/24").to_string(), "10.244.0.0/24");
        assert_eq!(cidr("fd00:1::/64").prefix(), 64);
        assert_eq!(
            "10.244.0.1/24".parse::<Cidr>(),
            Err(CidrError::HostBits("10.244.0.1/24".into(), cidr("10.244.0.0/24")))
        );
        assert!(matches!("10.244.0.0/33".parse::<Cidr>(), Err(CidrError::Prefix(_, 32))));
        assert!(matches!("10.244.0.0".parse::<Cidr>(), Err(CidrError::Syntax(_))));
    }

    #[test]
    fn holds_its_own_family_only() {
        assert!(cidr("10.96.0.0/12").contains("10.111.255.255".parse().unwrap()));
        assert!(!cidr("10.96.0.0/12").contains("10.112.0.0".parse().unwrap()));
        assert!(!cidr("0.0.0.0/0").contains("::".parse().unwrap()));
        assert!(cidr("0.0.0.0/0").contains("255.255.255.255".parse().unwrap()));
    }

    #[test]
    fn pods_get_neither_the_nodes_nor_the_edge_addresses() {
        let pods: Vec<String> = cidr("10.0.0.0/29").pod_addresses().map(|a| a.to_string()).collect();
        assert_eq!(pods, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        assert_eq!(cidr("fd00::/126").pod_addresses().count(), 2);
        assert_eq!(cidr("10.0.0.0/31").pod_addresses().count(), 0);
        assert_eq!(cidr("10.0.0.0/32").pod_addresses().count(), 0);
        assert_eq!(cidr("10.0.0.0/30").node_address(), Some("10.0.0.1".parse().unwrap()));
    }
}
