//! The roles of a running cluster: killed, and waited for.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};

use crate::{Cluster, eventually, get};

/// Where each role that is a client of the API server says whether it is ready, on the node's loopback.
const METRICS_PORTS: [(&str, u16); 5] = [
    ("dataplane", 10249),
    ("ingress", 10254),
    ("kubelet", 10255),
    ("controllers", 10257),
    ("scheduler", 10259),
];

impl Cluster {
    /// `kill -9` of a role. Returns when another process of it is ready.
    pub fn kill_role(&self, role: &str) -> Result<()> {
        let victim = self.role(role)?;
        kill(victim, Signal::SIGKILL)?;
        eventually("a killed role comes back", || {
            ensure!(self.role(role)? != victim, "{role} has not been started again");
            self.role_is_ready(role)
        })
        .map_err(|error| error.context(self.logs()))
    }

    fn role_is_ready(&self, role: &str) -> Result<()> {
        let Some((_, port)) = METRICS_PORTS.into_iter().find(|(name, _)| *name == role) else {
            return self.kubectl(&["get", "--raw=/readyz"]).map(drop);
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let answer = self.node.run(|| get(address, "localhost", "/readyz", Duration::from_secs(5)))?;
        ensure!(answer.status == 200, "{role} is not ready: {}", answer.body);
        Ok(())
    }
}
