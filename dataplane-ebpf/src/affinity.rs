//! Session affinity: the backend that a client of a service was given last.
//!
//! Clients are told apart as `sessionAffinity: ClientIP` says: by their address. A socket has none yet when it asks, so
//! that there a client is a network namespace, which is one pod or the host.

use crate::{family_layout, layout};

/// A network namespace by its cookie, unique while the machine runs: low word, high word. Two words, since a `u64` would
/// bring hidden padding into the key.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Namespace(pub [u32; 2]);

impl Namespace {
    /// From the kernel's number.
    #[inline(always)]
    pub const fn new(cookie: u64) -> Self {
        Self([cookie as u32, (cookie >> 32) as u32])
    }
}

/// Key of `affinity_v4` and `affinity_v6`, by a client's address, and of `socket_affinity_v4` and `socket_affinity_v6`,
/// by its [`Namespace`]. As in kube-proxy, a client has one backend for all addresses of a service port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AffinityKey<C> {
    /// Who asks.
    pub client: C,
    /// [`crate::Frontend::service`].
    pub service: u32,
}

/// Value of all four: a choice, which stands while it is used often enough.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Affinity {
    /// Backend id in the map's family. It may not serve any more, or serve another service by now.
    pub backend: u32,
    /// When the client was last heard, in seconds since boot, time asleep included (`CLOCK_BOOTTIME`).
    pub last_used_s: u32,
}

impl Affinity {
    /// Seconds for which the choice still stands, unless it is used again; nothing when that is over.
    #[inline(always)]
    pub const fn left_s(&self, now_s: u32, timeout_s: u32) -> Option<u32> {
        // Another CPU may have written the entry after `now_s` was read.
        let idle_s = now_s.saturating_sub(self.last_used_s);
        if idle_s < timeout_s { Some(timeout_s - idle_s) } else { None }
    }
}

layout!(Namespace = 8, AffinityKey<Namespace> = 12, Affinity = 8);
family_layout!(AffinityKey = 8, 20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_stands_for_its_timeout() {
        let affinity = Affinity { backend: 1, last_used_s: 100 };
        assert_eq!(affinity.left_s(100, 60), Some(60));
        assert_eq!(affinity.left_s(159, 60), Some(1));
        assert_eq!(affinity.left_s(160, 60), None);
        assert_eq!(affinity.left_s(99, 60), Some(60), "written by a CPU that is ahead");
        assert_eq!(affinity.left_s(100, 0), None, "without affinity nothing stands");
    }
}
