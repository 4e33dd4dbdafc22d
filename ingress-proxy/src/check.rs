//! `weir ingress check`: what would be reported about a manifest, without a cluster.
//!
//! The manifest is compiled as a cluster's objects would be. What it does not hold cannot be judged: Services,
//! classes and secrets that are not in it are taken to be there, and to be what the Ingresses want of them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::Resource;
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::networking::v1::{Ingress, IngressBackend, IngressClass};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_yaml::Value;

use crate::compile::{
    CONTROLLER, ClassFact, IngressFact, ObjectKey, PortFact, Problem, SecretFact, ServiceFact, Snapshot,
    compile,
};
use crate::watch::read_secret;

/// The namespace of objects that name none, as kubectl's.
const DEFAULT_NAMESPACE: &str = "default";
/// The largest manifest that is read, in bytes.
const MAX_LEN: u64 = 64 << 20;

/// A manifest cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The file cannot be read.
    #[error("cannot read {0}: {1}")]
    File(String, std::io::Error),
    /// It is no YAML.
    #[error("{0}, document {1}: it is no YAML: {2}")]
    Yaml(String, usize, serde_yaml::Error),
    /// An object is not what its kind says.
    #[error("{0}, document {1}: it is no {2}: {3}")]
    Object(String, usize, &'static str, serde_yaml::Error),
    /// There is nothing to check.
    #[error("{0} holds no Ingress")]
    NoIngress(String),
}

/// What was found.
#[derive(Debug)]
pub struct Checked {
    /// Ingresses that were looked at.
    pub ingresses: usize,
    /// What is wrong with them.
    pub problems: Vec<Problem>,
}

impl Checked {
    /// One line for each problem, and one that adds up.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for problem in &self.problems {
            let _ = writeln!(text, "{}: {}: {}", problem.ingress, problem.reason.as_str(), problem.text);
        }
        let _ = writeln!(text, "Ingresses: {}, problems: {}", self.ingresses, self.problems.len());
        text
    }
}

/// Checks a file of YAML or JSON documents; `-` is standard input.
pub fn check(path: &Path, class_name: &str) -> Result<Checked, CheckError> {
    let (name, text) = open(path)?;
    check_text(&name, &text, class_name)
}

/// The objects of such a file.
pub(crate) fn snapshot(path: &Path) -> Result<Snapshot, CheckError> {
    let (name, text) = open(path)?;
    read(&name, &text)
}

/// The file's name and text.
fn open(path: &Path) -> Result<(String, String), CheckError> {
    use std::io::Read as _;
    let name = path.display().to_string();
    let mut text = String::new();
    let read = if name == "-" {
        std::io::stdin().take(MAX_LEN).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_LEN).read_to_string(&mut text))
    };
    read.map_err(|source| CheckError::File(name.clone(), source))?;
    Ok((name, text))
}

fn check_text(name: &str, text: &str, class_name: &str) -> Result<Checked, CheckError> {
    let mut snapshot = read(name, text)?;
    if snapshot.ingresses.is_empty() {
        return Err(CheckError::NoIngress(name.to_owned()));
    }
    assume_the_rest(&mut snapshot);
    let compiled = compile(&snapshot, class_name);
    Ok(Checked { ingresses: compiled.claimed.len(), problems: compiled.problems })
}

/// The objects of the manifest that matter. Lists, as `kubectl get -o yaml` writes them, are their items.
pub(crate) fn read(name: &str, text: &str) -> Result<Snapshot, CheckError> {
    let mut snapshot = Snapshot::default();
    for (index, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
        let number = index + 1;
        let yaml = |error| CheckError::Yaml(name.to_owned(), number, error);
        let mut documents = vec![Value::deserialize(document).map_err(yaml)?];
        while let Some(mut document) = documents.pop() {
            if let Some(Value::Sequence(items)) = document.get_mut("items").map(std::mem::take) {
                documents.extend(items.into_iter().rev());
                continue;
            }
            take(&mut snapshot, document)
                .map_err(|(kind, error)| CheckError::Object(name.to_owned(), number, kind, error))?;
        }
    }
    Ok(snapshot)
}

fn take(snapshot: &mut Snapshot, object: Value) -> Result<(), (&'static str, serde_yaml::Error)> {
    fn read<K: Resource + DeserializeOwned>(object: Value) -> Result<K, (&'static str, serde_yaml::Error)> {
        serde_yaml::from_value(object).map_err(|error| (K::KIND, error))
    }
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    let in_namespace = |mut key: ObjectKey| {
        if key.namespace.is_empty() {
            DEFAULT_NAMESPACE.clone_into(&mut key.namespace);
        }
        key
    };
    match kind.as_str() {
        "Ingress" => {
            let mut fact = IngressFact::from(read::<Ingress>(object)?);
            fact.key = in_namespace(fact.key);
            snapshot.ingresses.insert(fact.key.clone(), fact);
        }
        "IngressClass" => {
            let class = read::<IngressClass>(object)?;
            snapshot.classes.insert(class.metadata.name.clone().unwrap_or_default(), class.into());
        }
        "Service" => {
            let service = read::<Service>(object)?;
            snapshot.services.insert(in_namespace(ObjectKey::of(&service.metadata)), service.into());
        }
        "Secret" => {
            let secret = merge_string_data(read::<Secret>(object)?);
            snapshot.secrets.insert(in_namespace(ObjectKey::of(&secret.metadata)), read_secret(&secret));
        }
        _ => {}
    }
    Ok(())
}

/// What the API server does on writing.
fn merge_string_data(mut secret: Secret) -> Secret {
    for (key, text) in secret.string_data.take().unwrap_or_default() {
        let bytes = k8s_openapi::ByteString(text.into_bytes());
        secret.data.get_or_insert_default().insert(key, bytes);
    }
    secret
}

/// Adds the objects that the manifest's Ingresses refer to and that it does not hold.
pub(crate) fn assume_the_rest(snapshot: &mut Snapshot) {
    let ours = || ClassFact { controller: CONTROLLER.to_owned(), default: true };
    let ingresses: Vec<IngressFact> = snapshot.ingresses.values().cloned().collect();
    // A manifest that is on its way here may still name another class.
    if !snapshot.classes.values().any(|class| class.default) {
        snapshot.classes.insert(String::new(), ours());
    }
    let given: BTreeSet<ObjectKey> = snapshot.services.keys().cloned().collect();
    for ingress in &ingresses {
        let named = ingress.spec.ingress_class_name.iter().chain(&ingress.class_annotation);
        for class in named {
            snapshot.classes.entry(class.clone()).or_insert_with(ours);
        }
        let rules =
            ingress.spec.rules.iter().flatten().flat_map(|rule| &rule.http).flat_map(|http| &http.paths);
        let backends = rules.map(|path| &path.backend).chain(&ingress.spec.default_backend);
        for backend in backends {
            assume_backend(snapshot, ingress, backend, &given);
        }
        let fallback =
            |(key, name): (&String, &String)| key.ends_with("/default-backend").then(|| name.clone());
        for name in ingress.annotations.iter().filter_map(fallback) {
            let key = ObjectKey::new(&ingress.key.namespace, &name);
            let port = PortFact { name: String::new(), number: 80, protocol: None };
            snapshot
                .services
                .entry(key)
                .or_insert(ServiceFact { ports: vec![port], ..ServiceFact::default() });
        }
        for secret in ingress.spec.tls.iter().flatten().filter_map(|tls| tls.secret_name.as_deref()) {
            let key = ObjectKey::new(&ingress.key.namespace, secret);
            if let Ok(pair) = crate::tls::self_signed() {
                snapshot.secrets.entry(key).or_insert(SecretFact::Usable(Arc::new(pair), None));
            }
        }
    }
}

/// A Service with the port that the backend names, or that port for one that was assumed before.
fn assume_backend(
    snapshot: &mut Snapshot,
    ingress: &IngressFact,
    backend: &IngressBackend,
    given: &BTreeSet<ObjectKey>,
) {
    let Some(service) = &backend.service else { return };
    let key = ObjectKey::new(&ingress.key.namespace, &service.name);
    if given.contains(&key) {
        return;
    }
    let port = service.port.clone().unwrap_or_default();
    let number = port.number.and_then(|number| u16::try_from(number).ok());
    let name = port.name.unwrap_or_else(|| number.map(|number| number.to_string()).unwrap_or_default());
    let fact = PortFact { name, number: number.unwrap_or(80), protocol: None };
    let ports = &mut snapshot.services.entry(key).or_default().ports;
    if !ports.contains(&fact) {
        ports.push(fact);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: web
  annotations: {nginx.ingress.kubernetes.io/limit-rps: \"5\", nginx.ingress.kubernetes.io/default-backend: errors}
spec:
  ingressClassName: nginx
  tls: [{hosts: [a.example], secretName: pair}]
  rules:
  - host: a.example
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: a, port: {number: 80}}}}
      - {path: /b, pathType: Prefix, backend: {service: {name: a, port: {name: web}}}}
";

    fn problems(text: &str) -> Vec<String> {
        let checked = check_text("f", text, "weir").unwrap();
        checked.problems.iter().map(|p| format!("{}: {}", p.ingress, p.reason.as_str())).collect()
    }

    #[test]
    fn what_the_manifest_does_not_hold_is_taken_to_be_there() {
        assert_eq!(problems(GOOD), [""; 0]);
        assert_eq!(check_text("f", GOOD, "weir").unwrap().text(), "Ingresses: 1, problems: 0\n");
    }

    #[test]
    fn what_it_holds_is_judged() {
        let service =
            "---\nkind: Service\nmetadata: {name: a, namespace: default}\nspec: {ports: [{port: 81}]}\n";
        assert_eq!(problems(&format!("{GOOD}{service}")), ["default/web: BadPort", "default/web: BadPort"]);
        let secret = "---\nkind: Secret\nmetadata: {name: pair}\nstringData: {tls.crt: x, tls.key: y}\n";
        assert_eq!(problems(&format!("{GOOD}{secret}")), ["default/web: BadSecret"]);
        let bad = GOOD.replace("limit-rps: \"5\"", "limit-rps: \"x\"");
        let checked = check_text("f", &bad, "weir").unwrap();
        assert!(checked.text().starts_with(
            "default/web: BadAnnotation: annotation nginx.ingress.kubernetes.io/limit-rps: \"x\" is not"
        ));
    }

    #[test]
    fn passwords_in_the_manifest_are_read() {
        let auth =
            GOOD.replace("limit-rps: \"5\"", "auth-type: basic, nginx.ingress.kubernetes.io/auth-secret: s");
        let secret = |auth: &str| {
            format!("{auth}---\nkind: Secret\nmetadata: {{name: s}}\nstringData: {{auth: \"u:x\"}}\n")
        };
        assert_eq!(problems(&secret(&auth)), ["default/web: BadSecret", "default/web: BadSecret"]);
        assert_eq!(problems(&auth), [""; 0], "a secret that is not there cannot be judged");
    }

    #[test]
    fn lists_are_their_items() {
        let list = format!("kind: List\nitems:\n- {}\n", GOOD.trim().replace('\n', "\n  "));
        assert_eq!(check_text("f", &list, "weir").unwrap().ingresses, 1);
    }

    #[test]
    fn what_is_no_manifest_is_an_error() {
        let error = |text: &str| check_text("f", text, "weir").unwrap_err().to_string();
        assert_eq!(error("kind: Service\nspec: {}\n"), "f holds no Ingress");
        assert!(error("{").starts_with("f, document 1: it is no YAML"));
        assert!(error("kind: Ingress\nspec: 7\n").starts_with("f, document 1: it is no Ingress"));
        let missing = check(Path::new("/nonexistent/x.yaml"), "weir").unwrap_err().to_string();
        assert!(missing.starts_with("cannot read /nonexistent/x.yaml"), "{missing}");
    }
}
