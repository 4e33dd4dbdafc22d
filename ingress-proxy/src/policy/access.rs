//! Which addresses may come in.

use std::net::IpAddr;

use super::client::is_in;
use super::{By, Client, Reply};
use crate::config::Network;

/// Networks on one list. A list is gone through from its start, so this bounds what a request pays for it.
pub(crate) const MAX_NETWORKS: usize = 1_024;

/// `allowlist-source-range` (also `whitelist-source-range`) and `denylist-source-range`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sources {
    /// Nobody else may; `None` lets everybody in.
    pub(crate) allow: Option<Box<[Network]>>,
    /// These may not, even if they are on the other list.
    pub(crate) deny: Box<[Network]>,
}

impl Sources {
    pub(super) fn answer(&self, client: &Client) -> Option<Reply> {
        let admitted = |address: IpAddr| {
            !is_in(&self.deny, address) && self.allow.as_ref().is_none_or(|allow| is_in(allow, address))
        };
        let refuse = || Reply::new(403, By::SourceRange, format!("{} may not come here", client.address));
        (!admitted(client.address)).then(refuse)
    }

    /// Whether the client is out whatever else speaks for it.
    pub(super) fn denies(&self, client: &Client) -> bool {
        is_in(&self.deny, client.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Box<[Network]> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn denied_beats_allowed_and_unlisted_is_out() {
        let sources = Sources {
            allow: Some(networks(&["10.0.0.0/8", "2001:db8::/32"])),
            deny: networks(&["10.6.0.0/16"]),
        };
        for (address, status) in
            [("10.1.2.3", None), ("2001:db8::7", None), ("10.6.2.3", Some(403)), ("192.0.2.1", Some(403))]
        {
            let client = Client { address: address.parse().unwrap(), https: false, now_us: 0, dice: 0 };
            assert_eq!(sources.answer(&client).map(|reply| reply.status), status, "{address}");
        }
        let open = Client { address: "192.0.2.1".parse().unwrap(), https: false, now_us: 0, dice: 0 };
        assert_eq!(Sources::default().answer(&open), None);
    }
}
