//! The explanation for people: one line for each thing that there is to say.

use std::fmt::{self, Write as _};
use std::time::Duration;

use super::{Backend, CertificateReport, Endpoint, Explanation, Rule};

impl Explanation {
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        // Writing into a string does not fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "{} {} from {}", self.method, self.url, self.client)?;
        if let Some(certificate) = &self.certificate {
            writeln!(out, "  certificate: {certificate}")?;
        }
        if let (Some(host), Some(path)) = (&self.host, &self.path) {
            writeln!(out, "  routed on host {host:?} and path {path:?}")?;
        }
        match &self.rule {
            Some(rule) => writeln!(out, "  rule: {rule}")?,
            None if self.host.is_some() => writeln!(out, "  rule: none")?,
            None => {}
        }
        for lost in &self.lost {
            writeln!(out, "    lost: {}: {}", lost.rule, lost.why)?;
        }
        for conflict in &self.conflicts {
            writeln!(out, "    not in use, of Ingress {}: {}", conflict.ingress, conflict.why)?;
        }
        for policy in &self.policies {
            match policy.status {
                Some(status) => writeln!(out, "  {}: answers {status}, {}", policy.policy, policy.why)?,
                None => writeln!(out, "  {}: passes, {}", policy.policy, policy.why)?,
            }
        }
        if let Some(answer) = &self.answer {
            writeln!(out, "  the client gets {}: {}", answer.status, answer.why)?;
        }
        self.backends.iter().try_for_each(|backend| write!(out, "{backend}"))
    }
}

impl fmt::Display for CertificateReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.secret {
            Some(secret) => write!(f, "Secret {secret}")?,
            None => f.write_str("the default one, for no Ingress has one for this host")?,
        }
        let names = if self.names.is_empty() { "no name".to_owned() } else { self.names.join(", ") };
        write!(f, "; for {names}; from {} to {}", self.not_before, self.not_after)?;
        if !self.covers {
            f.write_str("; it is not for this host, and clients will say so")?;
        }
        Ok(())
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { String::new() } else { format!(" {}", self.path) };
        let host = if self.host == "*" { "any host" } else { &self.host };
        write!(f, "{host}, {}{path}, of Ingress {}", self.kind, self.ingress)?;
        if self.service.is_empty() { Ok(()) } else { write!(f, ", to Service {}", self.service) }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self.role {
            "rule" => "",
            "canary" => "canary: ",
            _ => "default backend, for the rule's Service has no endpoints: ",
        };
        let number = self.endpoints.len();
        let endpoints = if number == 1 { "the endpoint" } else { "one of the endpoints" };
        let most = self.max_connections.map(|most| format!(", at most {most} in flight to each"));
        let most = most.unwrap_or_default();
        writeln!(
            f,
            "  {role}{endpoints} of Service {} by {}, {} of {number}{most}",
            self.service, self.protocol, self.balance
        )?;
        for endpoint in &self.endpoints {
            let tied = if self.tied == Some(endpoint.address) { "  <- tied to it" } else { "" };
            writeln!(f, "    {endpoint}{tied}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.address)?;
        if let Some(why) = &self.unhealthy {
            write!(f, "taken out by its health check ({why}), ")?;
        }
        if let Some(left) = self.ejected_ms {
            let left = Duration::from_millis(left);
            write!(f, "ejected for another {:.1} s, ", left.as_secs_f64())?;
        }
        write!(f, "{} in flight, ", self.in_flight)?;
        match self.latency_ms {
            // What is faster counts as this.
            Some(0 | 1) => f.write_str("latency 1 ms or less, ")?,
            Some(latency) => write!(f, "latency {latency} ms, ")?,
            None => f.write_str("no answer yet, ")?,
        }
        let plural = if self.connections == 1 { "" } else { "s" };
        write!(f, "{} connection{plural} kept", self.connections)
    }
}
