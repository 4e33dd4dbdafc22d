//! The difference for people.

use std::fmt;

use super::{CertificateChange, Change, Difference, Report, Served};

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.requests.iter().try_for_each(|change| writeln!(f, "{change}"))?;
        self.certificates.iter().try_for_each(|change| writeln!(f, "{change}"))?;
        self.problems.iter().try_for_each(|report| writeln!(f, "new problem: {report}"))?;
        self.mended.iter().try_for_each(|report| writeln!(f, "no problem any more: {report}"))?;
        let (requests, certificates) = (self.requests.len(), self.certificates.len());
        let problems = self.problems.len();
        writeln!(f, "Rules: {requests}, certificates: {certificates}, new problems: {problems}")
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.host == "*" { "other hosts" } else { &self.host };
        match self.kind {
            "exact" => write!(f, "requests for {} of {host} ", self.path)?,
            "prefix" => write!(f, "requests below {} of {host} ", self.path)?,
            "pattern" => write!(f, "requests that match {} of {host} ", self.path)?,
            _ => write!(f, "requests of {host} that no rule matches ")?,
        }
        match (&self.before, &self.after) {
            (Some(before), Some(after)) if before.service == after.service && before.fault == after.fault => {
                write!(f, "stay with {before}")?;
            }
            (Some(before), Some(after)) => write!(f, "go to {before}, would go to {after}")?,
            (None, Some(after)) if self.kind == "pattern" => write!(f, "would go to {after}")?,
            (None, Some(after)) => write!(f, "get 404, would go to {after}")?,
            (Some(before), None) if self.kind == "pattern" => write!(f, "go to {before}, and would not")?,
            (Some(before), None) => write!(f, "go to {before}, would get 404")?,
            (None, None) => {}
        }
        if self.settings.is_empty() { Ok(()) } else { write!(f, "; other {}", self.settings.join(", ")) }
    }
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fault {
            None => write!(f, "{} of Ingress {}", self.service, self.ingress),
            Some(why) => write!(f, "nobody by Ingress {} ({why})", self.ingress),
        }
    }
}

impl fmt::Display for CertificateChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |secret: &Option<String>| match secret {
            Some(secret) => format!("Secret {secret}"),
            None => "the default certificate".to_owned(),
        };
        write!(f, "handshakes for {} are answered with {}", self.host, name(&self.before))?;
        if self.before == self.after {
            f.write_str(", in which another certificate would be")
        } else {
            write!(f, ", would be with {}", name(&self.after))
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.ingress, self.reason, self.text)
    }
}
