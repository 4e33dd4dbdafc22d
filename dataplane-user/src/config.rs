//! The dataplane's configuration: one struct, parsed once.

use std::{path::PathBuf, str::FromStr};

use crate::{cidr::Cidr, kernel::xdp::Acceleration};

/// Links to the outside, where `NodePort`s and other external addresses are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Uplinks {
    /// The links of the default routes.
    #[default]
    Auto,
    /// None: only processes and pods of this node reach services.
    None,
    /// These, by name.
    Named(Vec<String>),
}

impl FromStr for Uplinks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            "" => Err("no interface is named; say auto, none, or names with commas between them".into()),
            names => Ok(Self::Named(names.split(',').map(|name| name.trim().to_owned()).collect())),
        }
    }
}

impl std::fmt::Display for Uplinks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::Named(names) => f.write_str(&names.join(",")),
        }
    }
}

/// How packets from outside get to backends on other nodes, and the answers back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardingMode {
    /// With this node's address as their source, and back through this node.
    #[default]
    Snat,
    /// Inside packets to the backend's node, which answers the client itself (direct server return). The network must let
    /// nodes send with each other's addresses.
    Dsr,
    /// As they are but for their destination, the pod, with an option that names the frontend in the first of them; the
    /// backend's node answers the client itself. The network must route pods' addresses between nodes, let packets through that
    /// have options and clients' addresses, and let nodes send with each other's. IPv6, which has no such option, and Services
    /// with hints for zones take [`ForwardingMode::Dsr`].
    DsrOption,
}

impl FromStr for ForwardingMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "snat" => Ok(Self::Snat),
            "dsr" => Ok(Self::Dsr),
            "dsr-option" => Ok(Self::DsrOption),
            other => Err(other.to_owned()),
        }
    }
}

impl std::fmt::Display for ForwardingMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Snat => "snat",
            Self::Dsr => "dsr",
            Self::DsrOption => "dsr-option",
        })
    }
}

/// Whose packets to the outside leave with an uplink's own address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Masquerade {
    /// Nobody's: the CNI plugin sees to it, or the network knows the way to pods.
    #[default]
    None,
    /// Pods' IPv4 packets.
    Ipv4,
    /// Pods' packets of both families.
    Both,
}

impl FromStr for Masquerade {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "ipv4" => Ok(Self::Ipv4),
            "both" => Ok(Self::Both),
            other => Err(format!("`{other}` is none of none, ipv4 and both")),
        }
    }
}

impl std::fmt::Display for Masquerade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Ipv4 => "ipv4",
            Self::Both => "both",
        })
    }
}

/// Flags of `weir dataplane`.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Name of this machine's Node object; the host name when it is not given.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub node_name: String,
    /// Links to the outside: `auto` (those of the default routes), `none`, or names with commas between them.
    #[arg(long, default_value_t)]
    pub uplink: Uplinks,
    /// Where the XDP program of uplinks runs: `auto` (in the driver if it can, else TC serves alone; a veth's counts as one
    /// that cannot), `native`, `generic` (in the stack, at the price of a copy of most packets), or `off`.
    #[arg(long, value_enum, default_value_t)]
    pub xdp: Acceleration,
    /// Directory in the cgroup2 mount whose processes reach services through socket hooks; the mount itself when it is
    /// not given.
    #[arg(long)]
    pub cgroup_root: Option<PathBuf>,
    /// Where pins, pod addresses and other state that ends with a reboot are kept.
    #[arg(long, default_value = "/run/weir")]
    pub run_dir: PathBuf,
    /// Translate service addresses when a process connects, once, instead of in every packet.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub socket_lb: bool,
    /// How packets from outside get to backends on other nodes: `snat`, `dsr` (direct server return, inside IP in IP), or
    /// `dsr-option` (the same by an IPv4 option in a connection's first packets; IPv6, and Services with hints for zones, take
    /// `dsr`). A Service's annotation weir.dev/forwarding-mode decides for itself.
    #[arg(long, default_value_t, value_parser = forwarding_mode)]
    pub forwarding_mode: ForwardingMode,
    /// Give pods' packets that leave the cluster by an uplink its own address: `none` (the CNI plugin does it), `ipv4` or
    /// `both` families.
    #[arg(long, default_value_t)]
    pub masquerade: Masquerade,
    /// Ranges that pods reach with their own addresses; those of pods, services and nodes when none is given. Name
    /// networks outside that send datagrams to pods by the pods' own addresses: answers would get the node's.
    #[arg(long, value_delimiter = ',')]
    pub non_masquerade_cidr: Vec<Cidr>,
    /// Write a line into the log for each packet that a program drops, and why. For finding a fault, not for always: a
    /// flood of bad packets becomes a flood of lines.
    #[arg(long)]
    pub packet_log: bool,
    /// Ranges of node addresses that node ports are served on; all of them (but loopback) when none is given.
    #[arg(long, value_delimiter = ',')]
    pub nodeport_addresses: Vec<Cidr>,
    /// The cluster's pod ranges: packets for pods that do not exist end here.
    #[arg(long, value_delimiter = ',', default_value = "10.244.0.0/16")]
    pub pod_cidr: Vec<Cidr>,
    /// The cluster's service ranges: packets for services that do not exist end here.
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.0/12")]
    pub service_cidr: Vec<Cidr>,
}

fn forwarding_mode(text: &str) -> Result<ForwardingMode, String> {
    text.parse().map_err(|other| format!("`{other}` is none of snat, dsr and dsr-option"))
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            uplink: Uplinks::Auto,
            xdp: Acceleration::Auto,
            cgroup_root: None,
            run_dir: "/run/weir".into(),
            socket_lb: true,
            forwarding_mode: ForwardingMode::Snat,
            masquerade: Masquerade::None,
            non_masquerade_cidr: Vec::new(),
            packet_log: false,
            nodeport_addresses: Vec::new(),
            pod_cidr: vec![Cidr::containing([10, 244, 0, 0].into(), 16)],
            service_cidr: vec![Cidr::containing([10, 96, 0, 0].into(), 12)],
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        config: Config,
    }

    #[test]
    fn flags_are_the_fields_and_their_defaults_the_same() {
        let parsed = Command::parse_from(["weir"]).config;
        assert_eq!(format!("{parsed:?}"), format!("{:?}", Config::default()));
        let parsed = Command::parse_from(["weir", "--uplink", "eth0,eth1", "--socket-lb", "false"]).config;
        assert_eq!(parsed.uplink, Uplinks::Named(vec!["eth0".into(), "eth1".into()]));
        assert!(!parsed.socket_lb);
        for mode in [ForwardingMode::Snat, ForwardingMode::Dsr, ForwardingMode::DsrOption] {
            let parsed = Command::parse_from(["weir", "--forwarding-mode", &mode.to_string()]).config;
            assert_eq!(parsed.forwarding_mode, mode);
        }
        let words = ["--masquerade", "ipv4", "--non-masquerade-cidr", "10.0.0.0/8,192.0.2.0/24"];
        let words = [&["weir"], &words[..], &["--non-masquerade-cidr", "198.51.100.0/24"]].concat();
        let parsed = Command::parse_from(words).config;
        assert_eq!((parsed.masquerade, parsed.non_masquerade_cidr.len()), (Masquerade::Ipv4, 3));
        let wrong = Command::try_parse_from(["weir", "--masquerade", "all"]);
        assert!(wrong.is_err_and(|error| error.to_string().contains("none of none, ipv4 and both")));
    }
}
