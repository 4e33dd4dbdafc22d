//! What `weir up` can be told, by flags or by one YAML file with the same names. A flag wins over the file.

use std::{
    fmt::Display,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Deserializer};
use weir_apiserver::{PortRange, ServiceRange};
use weir_dataplane::{Masquerade, Uplinks, cidr::Cidr};
use weir_kubelet::Thresholds;

/// What a machine that is not only a node must keep free.
const EVICTION_HARD: &str =
    "memory.available<100Mi,nodefs.available<1Gi,nodefs.inodesFree<1%,pid.available<1000";

/// Flags of `weir up`.
#[derive(clap::Args)]
pub(crate) struct Flags {
    /// A YAML file with these same settings; a flag wins over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    said: Said,
}

/// Declares every setting once: its doc, its name in the file and on the command line, its type and its default.
macro_rules! settings {
    ($($(#[$doc:meta])+ $name:ident: $type:ty = $default:expr,)+) => {
        /// What was said, in words; what was not said stays open.
        #[derive(clap::Args, Default, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
        struct Said {
            $($(#[$doc])+ #[arg(long)] $name: Option<Words>,)+
            /// On Ctrl-C leave the pods and the traffic running; the next `weir up` takes them over.
            #[arg(long)]
            keep: bool,
        }

        /// Every setting, decided.
        #[derive(Clone, Debug)]
        pub(super) struct Config {
            $($(#[$doc])+ pub(super) $name: $type,)+
            /// On Ctrl-C leave the pods and the traffic running.
            pub(super) keep: bool,
        }

        /// The name of every setting, as fields have it.
        #[cfg(test)]
        const NAMES: &[&str] = &[$(stringify!($name),)+ "keep"];

        impl Said {
            fn decide(self, file: Self) -> Result<Config> {
                Ok(Config {
                    $($name: match self.$name.or(file.$name) {
                        Some(words) => words.parse(stringify!($name))?,
                        None => $default,
                    },)+
                    keep: self.keep || file.keep,
                })
            }
        }
    };
}

settings! {
    /// Interfaces that outside traffic arrives on: `auto` (those of the default routes), `none`, or names with commas
    /// [default: auto].
    uplink: Uplinks = Uplinks::Auto,
    /// Whose packets to addresses outside leave with the uplink's own: pods' of `ipv4`, of `both` families, or `none`
    /// [default: ipv4].
    masquerade: Masquerade = Masquerade::Ipv4,
    /// This node's name [default: the host name].
    node_name: String = host_name()?,
    /// This node's address [default: that of the default route, else the first global one].
    node_ip: IpAddr = weir_kubelet::Config::default().resolved_node_ip()?,
    /// Addresses of pods; each node gets a /24 of them [default: 10.244.0.0/16].
    pod_cidr: Cidr = Words::from("10.244.0.0/16").parse("pod_cidr")?,
    /// Addresses of Services [default: 10.96.0.0/12].
    service_cidr: ServiceRange = Words::from("10.96.0.0/12").parse("service_cidr")?,
    /// Ports for Services of type `NodePort` [default: 30000-32767].
    node_port_range: PortRange = Words::from("30000-32767").parse("node_port_range")?,
    /// What outlives a reboot: the store, certificates, images, volumes, logs [default: /var/lib/weir].
    data_dir: PathBuf = "/var/lib/weir".into(),
    /// What a reboot clears: pins, namespaces, sockets, the lock [default: /run/weir].
    run_dir: PathBuf = "/run/weir".into(),
    /// The directory in the cgroup2 mount that holds this node's processes [default: the mount itself].
    cgroup_root: CgroupRoot = CgroupRoot::default(),
    /// What must stay free for the node to take pods [default: 1Gi of disk, 1% of its inodes, 100Mi of memory and 1000
    /// process ids; the kubelet's own default of 10% is tens of gigabytes on a desk's machine].
    eviction_hard: Thresholds = Words::from(EVICTION_HARD).parse("eviction_hard")?,
    /// Port of the API server [default: 6443].
    api_port: u16 = 6443,
    /// Where the ingress serves HTTP [default: 0.0.0.0:80].
    ingress_http: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 80)),
    /// Where the ingress serves HTTPS [default: 0.0.0.0:443].
    ingress_https: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 443)),
}

/// A value as it was written: a file may leave the quotes off a number.
#[derive(Clone)]
struct Words(String);

impl Words {
    /// Reads the value of the setting with this field name.
    fn parse<T: FromStr<Err: Display>>(&self, field: &str) -> Result<T> {
        let flag = field.replace('_', "-");
        self.0.parse().map_err(|error| anyhow!("--{flag} {}: {error}", self.0))
    }
}

impl From<&str> for Words {
    fn from(words: &str) -> Self {
        Self(words.to_owned())
    }
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_yaml::Value::deserialize(deserializer)? {
            serde_yaml::Value::String(words) => Ok(Self(words)),
            serde_yaml::Value::Number(number) => Ok(Self(number.to_string())),
            other => Err(serde::de::Error::custom(format!("expected text or a number, found {other:?}"))),
        }
    }
}

/// A cgroup directory, or the choice to take the whole mount.
#[derive(Clone, Debug, Default)]
pub(super) struct CgroupRoot(Option<PathBuf>);

impl CgroupRoot {
    pub(super) fn path(&self) -> Option<&Path> {
        self.0.as_deref()
    }
}

impl FromStr for CgroupRoot {
    type Err = std::convert::Infallible;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        Ok(Self(Some(path.into())))
    }
}

impl Config {
    /// Reads the file, if one is named, and lets the flags win.
    pub(super) fn read(flags: Flags) -> Result<Self> {
        let file = match &flags.config {
            Some(path) => read_file(path).with_context(|| format!("--config {}", path.display()))?,
            None => Said::default(),
        };
        flags.said.decide(file)
    }

    /// The kubeconfig of a role, or of the administrator.
    pub(super) fn kubeconfig(&self, who: &str) -> PathBuf {
        self.data_dir.join("kubeconfig").join(format!("{who}.kubeconfig"))
    }
}

fn read_file(path: &Path) -> Result<Said> {
    read_text(&fs::read_to_string(path)?)
}

fn read_text(text: &str) -> Result<Said> {
    // A file of comments alone is an empty one.
    match serde_yaml::from_str::<Option<Said>>(text) {
        Ok(said) => Ok(said.unwrap_or_default()),
        Err(error) => match culprit(text) {
            Some(name) => Err(anyhow!("{name}: {error}")),
            None => Err(error.into()),
        },
    }
}

/// The first setting that alone cannot be read either: errors about values do not name it.
fn culprit(text: &str) -> Option<String> {
    let settings = serde_yaml::from_str::<serde_yaml::Mapping>(text).ok()?;
    settings.into_iter().find_map(|(name, value)| {
        let words = name.as_str().unwrap_or("a setting that is no text").to_owned();
        let alone = serde_yaml::Mapping::from_iter([(name, value)]);
        serde_yaml::from_value::<Said>(alone.into()).is_err().then_some(words)
    })
}

fn host_name() -> Result<String> {
    let name = nix::unistd::gethostname().context("reading the host name")?;
    name.into_string()
        .map(|name| name.to_ascii_lowercase())
        .map_err(|name| anyhow!("the host name {} is not UTF-8: pass --node-name", name.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(flags: &str, file: &str) -> Result<Config> {
        read_text(flags)?.decide(read_text(file)?)
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() -> Result<()> {
        let node_ip = "node-ip: 198.51.100.1";
        let config = decide("api-port: 7443", &format!("{{api-port: 8443, node-name: a, {node_ip}}}"))?;
        assert_eq!((config.api_port, config.node_name.as_str()), (7443, "a"));
        assert_eq!(config.ingress_http.port(), 80);
        Ok(())
    }

    #[test]
    fn a_wrong_value_is_named_with_its_flag() {
        let error = decide("{pod-cidr: nonsense, node-ip: 198.51.100.1}", "{}").unwrap_err().to_string();
        assert!(error.starts_with("--pod-cidr nonsense: "), "{error}");
    }

    /// `examples/weir.yaml` shows every setting, says what it is for, and changes nothing.
    #[test]
    fn the_example_shows_every_setting_with_its_default() -> Result<()> {
        const EXAMPLE: &str = include_str!("../../../../examples/weir.yaml");
        let shown: Vec<_> = EXAMPLE
            .lines()
            .filter(|line| !line.starts_with(['#', ' ']))
            .filter_map(|l| l.split_once(':'))
            .collect();
        let shown: Vec<_> = shown.into_iter().map(|(name, _)| name.replace('-', "_")).collect();
        assert_eq!(shown, NAMES, "examples/weir.yaml has other settings than weir up");
        for (above, line) in EXAMPLE.lines().zip(EXAMPLE.lines().skip(1)) {
            assert!(
                line.is_empty() || line.starts_with('#') || above.starts_with('#'),
                "no comment above {line}"
            );
        }
        let machine = "node-ip: 198.51.100.1";
        let (example, default) = (decide(machine, EXAMPLE)?, decide(machine, "{}")?);
        assert_eq!(format!("{example:?}"), format!("{default:?}"));
        // What the machine decides is left open, so that nothing is hidden by the comparison.
        assert!(EXAMPLE.lines().any(|line| line == "node-ip:"));
        Ok(())
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (file, words) in [
            ("pod-cdir: 10.0.0.0/8", "pod-cdir: unknown field `pod-cdir`, expected one of `uplink`"),
            ("{uplink: none, api-port: [6443]}", "api-port: expected text or a number"),
            ("keep: perhaps", "keep: "),
            ("{keep: true, keep: false}", "duplicate"),
            ("uplink", "expected struct"),
        ] {
            let error = read_text(file).err().expect(file).to_string();
            assert!(error.contains(words), "{file}: {error}");
        }
        assert!(read_text("# nothing\n").is_ok());
    }
}
