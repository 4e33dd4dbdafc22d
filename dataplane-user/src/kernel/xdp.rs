//! Which XDP an uplink gets.
//!
//! In the driver XDP comes before everything that the kernel spends on a packet. In the stack (generic mode) it comes after
//! that, and the kernel first makes a copy of every packet whose buffer is in pieces or leaves no room in front, which is
//! every stream's: TC then serves faster alone. So by itself an uplink gets the first or none. A veth's driver takes
//! programs, but keeps the frames that they send back until somebody else's come, unless its peer has a program too, and copies
//! packets as the stack does.

use aya::programs::XdpMode;
use clap::ValueEnum;

use crate::{netlink::Link, programs};

/// How uplinks get their XDP program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Acceleration {
    /// In the driver where it can, but for a veth; elsewhere TC serves alone.
    #[default]
    Auto,
    /// In the driver, or not at all: one that cannot is an error.
    Native,
    /// In the stack, which every link can.
    Generic,
    /// Nowhere.
    Off,
}

/// The kind of link whose driver keeps what XDP sends back.
const VETH: &str = "veth";

impl Acceleration {
    /// The mode to try on a link.
    pub(super) fn mode(self, link: &Link) -> Option<Mode> {
        match self {
            Self::Auto if link.kind.as_deref() == Some(VETH) => None,
            Self::Auto | Self::Native => Some(Mode::Native),
            Self::Generic => Some(Mode::Generic),
            Self::Off => None,
        }
    }
}

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the stack.
    Generic,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 2] = [Self::Native, Self::Generic];

    /// As logs and status say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    /// As the kernel wants it.
    pub(super) fn to_kernel(self) -> XdpMode {
        match self {
            Self::Native => XdpMode::Driver,
            Self::Generic => XdpMode::Skb,
        }
    }

    /// Name below which the program on a link is pinned; it tells the mode, which the kernel does not.
    pub fn pin(self, index: u32) -> String {
        match self {
            Self::Native => format!("{}_{index}", programs::XDP_UPLINK),
            Self::Generic => format!("{}_generic_{index}", programs::XDP_UPLINK),
        }
    }
}
