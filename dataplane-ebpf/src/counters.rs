//! Why a packet was dropped: one counter for each reason, per CPU.

/// Declares the reasons once: the enum, their names and their count.
macro_rules! drop_reasons {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal),+ $(,)?) => {
        /// Index into the `drops` map. Each value has one meaning for ever; new ones go to the end.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DropReason {
            $($(#[$doc])+ $variant),+
        }

        impl DropReason {
            /// The reason that an index stands for.
            #[inline(always)]
            pub const fn from_index(index: u32) -> Option<Self> {
                match index {
                    $(index if index == Self::$variant as u32 => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// The name that metrics, logs and `weir dataplane drops` show.
            #[inline(always)]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }

        /// Every reason with the name that metrics and `weir dataplane drops` show, by index.
        pub const DROP_REASONS: &[(DropReason, &str)] = &[$((DropReason::$variant, $name)),+];
    };
}

drop_reasons! {
    /// The service has no endpoint at all. The sender of a packet is told so.
    NoBackend = "no-backend",
    /// A traffic policy asks for local endpoints, and all that serve are elsewhere.
    NoLocalBackend = "no-local-backend",
    /// The chosen backend id was not in use: the maps changed under the packet, the client's retry finds the new ones.
    StaleBackend = "stale-backend",
    /// The packet ends before its headers do.
    Truncated = "truncated",
    /// The flow table is full and the packet cannot be served without an entry.
    FlowTableFull = "flow-table-full",
    /// The kernel refused to change the packet.
    RewriteFailed = "rewrite-failed",
    /// The time to live ran out.
    TtlExceeded = "ttl-exceeded",
    /// No source port was free to keep this flow apart from the others of its backend.
    PortsExhausted = "ports-exhausted",
    /// The flow needs the node's own address as its source, and `node_config` has none.
    NoGateway = "no-gateway",
    /// The client is in none of the ranges that may use the load balancer's address.
    SourceRange = "source-range",
    /// The packet does not fit through the tunnel to its backend's node, or not with the option that it needs. The sender is
    /// told what would.
    TooBig = "too-big",
    /// A packet from inside is for a cluster IP and a port that its service does not have. The sender is told so.
    UnknownPort = "unknown-port",
    /// An option names a frontend that the packet's backend does not serve as far as this node knows. Somebody outside forged
    /// it, or this node has not heard of a change yet; the client's retry finds it then.
    UnknownFrontend = "unknown-frontend",
}
