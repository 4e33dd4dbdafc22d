//! The cluster's certificates, keys and kubeconfigs: made on the first start, kept fresh afterwards.
//!
//! [`ensure`] is level-triggered: it looks at what lies in the data directory and makes whatever is missing, near its
//! end, for other names, or of another CA. The apiserver calls it at its start and then periodically, so that
//! certificates rotate without a restart; `weir up` calls it before it starts anything, so that every role finds its
//! kubeconfig. A machine that was off for years comes back: expired certificates are reissued from the CA key, and the
//! CA certificate itself is renewed under the same key, which keeps everything it ever signed valid.
//!
//! Every file is written whole (temporary file, sync, rename) with mode 0600: a crash leaves the old one or the new one.

mod files;
mod issue;
mod kubeconfig;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub use kubeconfig::KUBECONFIGS;

use issue::{Authority, Profile, Usage};

/// An error of the certificates' upkeep.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error(
        "cannot {action} {path}: {source}; the data directory must be writable by the user that runs weir"
    )]
    File {
        /// What was tried: `read`, `write`, `make`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is there and is not what it should be.
    #[error("{path} is not usable: {why}; restore it, or remove it to have it made anew")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The CA's certificate is there without its key.
    #[error(
        "{key} is missing, but {certificate} is there: restore the key, or remove the certificate to start a new CA \
             (every kubeconfig that was handed out then stops working)"
    )]
    MissingCaKey {
        /// The missing key.
        key: PathBuf,
        /// The certificate that is there.
        certificate: PathBuf,
    },
    /// A certificate cannot be made.
    #[error("cannot issue the certificate of {name}: {source}")]
    Issue {
        /// Whose certificate.
        name: String,
        /// What the library said.
        source: rcgen::Error,
    },
}

/// What the certificates are for.
#[derive(Clone, Debug)]
pub struct PkiConfig {
    /// Where `pki/` and `kubeconfig/` are.
    pub data_dir: PathBuf,
    /// This node's name: in the kubelet's identity and among the names of the serving certificates.
    pub node_name: String,
    /// Further names and addresses of this machine, by which clients reach the apiserver and the kubelet.
    pub addresses: Vec<IpAddr>,
    /// The address of the `kubernetes` service.
    pub service_address: IpAddr,
    /// Where local clients find the apiserver: host of the kubeconfigs' `server`.
    pub server_host: IpAddr,
    /// Port of the kubeconfigs' `server`.
    pub server_port: u16,
}

/// Where everything is. The files exist once [`ensure`] has answered.
#[derive(Clone, Debug)]
pub struct Pki {
    directory: PathBuf,
    kubeconfigs: PathBuf,
}

impl Pki {
    /// The layout below `data_dir`; makes nothing.
    pub fn at(data_dir: &Path) -> Pki {
        Pki { directory: data_dir.join("pki"), kubeconfigs: data_dir.join("kubeconfig") }
    }

    /// `pki/NAME.crt`, PEM. Names: `ca`, `apiserver`, `apiserver-kubelet-client`, `kubelet`.
    pub fn certificate(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.crt"))
    }

    /// `pki/NAME.key`, PKCS#8 PEM. Names: those of the certificates, and `sa`.
    pub fn key(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.key"))
    }

    /// The public half of the key that signs tokens of service accounts.
    pub fn service_account_public_key(&self) -> PathBuf {
        self.directory.join("sa.pub")
    }

    /// `kubeconfig/NAME.kubeconfig`; the names are in [`KUBECONFIGS`].
    pub fn kubeconfig(&self, name: &str) -> PathBuf {
        self.kubeconfigs.join(format!("{name}.kubeconfig"))
    }
}

/// Makes whatever is missing or no longer good. Blocks on the disk.
pub fn ensure(config: &PkiConfig) -> Result<Pki, Error> {
    let pki = Pki::at(&config.data_dir);
    files::make_directory(&pki.directory)?;
    files::make_directory(&pki.kubeconfigs)?;

    let authority = Authority::ensure(&pki.certificate("ca"), &pki.key("ca"))?;
    for (name, profile) in profiles(config) {
        authority.ensure_files(&profile, &pki.certificate(name), &pki.key(name))?;
    }
    issue::ensure_signing_key(&pki.key("sa"), &pki.service_account_public_key())?;
    for identity in KUBECONFIGS {
        kubeconfig::ensure(&authority, identity, config, &pki.kubeconfig(identity.file))?;
    }
    Ok(pki)
}

/// The certificates that live in files of their own.
fn profiles(config: &PkiConfig) -> [(&'static str, Profile); 3] {
    let loopback = [IpAddr::from([127, 0, 0, 1]), std::net::Ipv6Addr::LOCALHOST.into()];
    let own_names = [config.node_name.clone(), "localhost".to_owned()];
    let own_addresses = loopback.into_iter().chain(config.addresses.iter().copied());
    let service_names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];

    let apiserver = Profile {
        common_name: "kube-apiserver".to_owned(),
        organization: None,
        dns_names: own_names.iter().cloned().chain(service_names.map(str::to_owned)).collect(),
        addresses: own_addresses.clone().chain([config.service_address, config.server_host]).collect(),
        usage: Usage::Server,
    };
    let kubelet_client = Profile {
        common_name: "kube-apiserver-kubelet-client".to_owned(),
        organization: Some("system:masters".to_owned()),
        dns_names: Vec::new(),
        addresses: Vec::new(),
        usage: Usage::Client,
    };
    let kubelet = Profile {
        common_name: format!("system:node:{}", config.node_name),
        organization: Some("system:nodes".to_owned()),
        dns_names: own_names.to_vec(),
        addresses: own_addresses.collect(),
        usage: Usage::Server,
    };
    [("apiserver", apiserver), ("apiserver-kubelet-client", kubelet_client), ("kubelet", kubelet)]
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(data_dir: &Path) -> PkiConfig {
        PkiConfig {
            data_dir: data_dir.to_owned(),
            node_name: "node-1".to_owned(),
            addresses: vec![IpAddr::from([192, 0, 2, 7])],
            service_address: IpAddr::from([10, 96, 0, 1]),
            server_host: IpAddr::from([127, 0, 0, 1]),
            server_port: 6443,
        }
    }

    fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut all = Vec::new();
        for sub in ["pki", "kubeconfig"] {
            for entry in fs::read_dir(directory.join(sub)).expect("it is there") {
                let path = entry.expect("an entry").path();
                all.push((path.clone(), fs::read(&path).expect("readable")));
            }
        }
        all.sort();
        all
    }

    #[test]
    fn a_second_run_changes_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        ensure(&config(directory.path())).expect("made");
        let before = contents(directory.path());
        assert_eq!(before.len(), 8 + 2 + KUBECONFIGS.len());
        ensure(&config(directory.path())).expect("kept");
        assert!(before == contents(directory.path()), "good files are left alone");
        for (path, _) in before {
            assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600, "{path:?}");
        }
    }

    #[test]
    fn a_new_address_reissues_what_names_it_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut config = config(directory.path());
        ensure(&config).expect("made");
        let before = contents(directory.path());
        config.addresses.push(IpAddr::from([192, 0, 2, 8]));
        ensure(&config).expect("reissued");
        let changed: Vec<_> = before
            .iter()
            .zip(contents(directory.path()))
            .filter(|(old, new)| **old != *new)
            .map(|(old, _)| old.0.file_name().expect("a name").to_string_lossy().into_owned())
            .collect();
        assert_eq!(changed, ["apiserver.crt", "apiserver.key", "kubelet.crt", "kubelet.key"]);
    }

    #[test]
    fn a_new_ca_reissues_everything_it_signs() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = config(directory.path());
        let pki = ensure(&config).expect("made");
        let old = fs::read(pki.certificate("apiserver")).expect("readable");
        let old_admin = fs::read(pki.kubeconfig("admin")).expect("readable");
        fs::remove_file(pki.certificate("ca")).expect("removed");
        fs::remove_file(pki.key("ca")).expect("removed");
        ensure(&config).expect("made anew");
        assert_ne!(old, fs::read(pki.certificate("apiserver")).expect("readable"));
        assert_ne!(old_admin, fs::read(pki.kubeconfig("admin")).expect("readable"));
    }

    #[test]
    fn damage_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = config(directory.path());
        let pki = ensure(&config).expect("made");
        let key = fs::read(pki.key("ca")).expect("readable");
        fs::remove_file(pki.key("ca")).expect("removed");
        assert!(matches!(ensure(&config), Err(Error::MissingCaKey { .. })));

        fs::write(pki.key("ca"), fs::read(pki.key("kubelet")).expect("readable")).expect("written");
        let error = ensure(&config).expect_err("the wrong key");
        assert!(error.to_string().contains("does not belong to"), "{error}");

        fs::write(pki.key("ca"), key).expect("written");
        fs::write(pki.certificate("ca"), "junk").expect("written");
        let error = ensure(&config).expect_err("no certificate");
        assert!(error.to_string().contains("ca.crt is not usable"), "{error}");
    }
}
