//! Sockets of one network namespace, over netlink (`sock_diag(7)`): listed, and destroyed.
//!
//! The messages are `struct inet_diag_req_v2` and `struct inet_diag_msg` of `linux/inet_diag.h`, whose only readers are
//! here; the crates for netlink that are at hand know none of them, or cannot destroy.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
        sockopt::ReceiveTimeout,
    },
    time::TimeVal,
};
use weir_dataplane_ebpf::Protocol;

/// Message types (`linux/sock_diag.h`, `linux/netlink.h`).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Flags of a request: that it is one, that it wants an answer, that it wants all there are.
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;

/// Lengths of `struct nlmsghdr`, of what stands before `struct inet_diag_sockid` in a request and in an answer, of that,
/// and of a whole answer.
const HEADER: usize = 16;
const REQUEST_HEAD: usize = 8;
const ANSWER_HEAD: usize = 4;
const ID: usize = 48;
const ANSWER: usize = 72;
/// Bytes that the kernel puts into one datagram of a dump at most.
const DATAGRAM: usize = 32 * 1024;
/// The kernel answers at once; this ends a wait for an answer that got lost.
const PATIENCE_S: i64 = 5;

/// States of a socket (`net/tcp_states.h`) as bits. A UDP socket is established when it is connected, else closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct States(u32);

impl States {
    /// Those with a peer that they may still talk to: from `TCP_ESTABLISHED` to `TCP_FIN_WAIT2`, and `TCP_CLOSE_WAIT` to
    /// `TCP_LAST_ACK`.
    pub(crate) const CONNECTED: Self = Self(0b11_0011_1110);
    /// Those that wait for peers: `TCP_LISTEN`, and `TCP_CLOSE` for UDP.
    pub(crate) const BOUND: Self = Self(1 << 10 | 1 << 7);
}

/// A socket as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Socket {
    family: u8,
    protocol: Protocol,
    /// `struct inet_diag_sockid`, as it came: what names the socket to the kernel.
    id: [u8; ID],
}

impl Socket {
    /// Its own address and port.
    pub(crate) fn local(&self) -> SocketAddr {
        SocketAddr::new(self.address(4), u16::from_be_bytes([self.id[0], self.id[1]]))
    }

    /// Whom it talks to.
    pub(crate) fn peer(&self) -> SocketAddr {
        SocketAddr::new(self.address(20), u16::from_be_bytes([self.id[2], self.id[3]]))
    }

    /// Unique while the machine runs.
    pub(crate) fn cookie(&self) -> u64 {
        let word = |at: usize| u64::from(u32_at(&self.id, at));
        word(40) | word(44) << 32
    }

    /// An address of either family; an IPv4 one in disguise (RFC 4291, 2.5.5.2) is IPv4.
    fn address(&self, at: usize) -> IpAddr {
        let bytes: [u8; 16] = self.id[at..at + 16].try_into().expect("sixteen bytes");
        if i32::from(self.family) == libc::AF_INET {
            IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])
        } else {
            Ipv6Addr::from(bytes).to_canonical()
        }
    }
}

/// A connection to the sockets of one namespace.
#[derive(Debug)]
pub(crate) struct Diag {
    socket: OwnedFd,
}

impl Diag {
    /// Of the namespace that the calling thread is in now, wherever it goes later.
    pub(crate) fn open() -> io::Result<Self> {
        let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkSockDiag);
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(PATIENCE_S, 0))?;
        Ok(Self { socket })
    }

    /// Sockets of a protocol in these states, of both families.
    pub(crate) fn list(&self, protocol: Protocol, states: States) -> io::Result<Vec<Socket>> {
        let mut all = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let family = family as u8;
            self.ask(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, protocol, states, &[0; ID])?;
            self.read(|answer| {
                if let Some(id) = answer.get(ANSWER_HEAD..ANSWER_HEAD + ID).filter(|_| answer.len() >= ANSWER)
                {
                    let id = id.try_into().expect("its length was asked for");
                    all.push(Socket { family: answer[0], protocol, id });
                }
            })?;
        }
        Ok(all)
    }

    /// Ends a socket: whoever reads from it gets ECONNABORTED. `false` when it was gone already.
    pub(crate) fn destroy(&self, socket: &Socket) -> io::Result<bool> {
        self.ask(SOCK_DESTROY, NLM_F_ACK, socket.family, socket.protocol, States(u32::MAX), &socket.id)?;
        match self.read(|_| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn ask(
        &self,
        kind: u16,
        flags: u16,
        family: u8,
        protocol: Protocol,
        states: States,
        id: &[u8; ID],
    ) -> io::Result<()> {
        let length = HEADER + REQUEST_HEAD + ID;
        let mut message = Vec::with_capacity(length);
        message.extend((length as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        // Sequence and port: one question at a time needs neither.
        message.extend([0; 8]);
        message.extend([family, protocol.0, 0, 0]);
        message.extend(states.0.to_ne_bytes());
        message.extend(id);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    /// Reads answers up to the one that says that there are no more, or how the request ended.
    fn read(&self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..length];
            while rest.len() >= HEADER {
                let size = (u32_at(rest, 0) as usize).clamp(HEADER, rest.len());
                let payload = &rest[HEADER..size];
                match u16::from_ne_bytes([rest[4], rest[5]]) {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR if payload.len() >= 4 => {
                        return match u32_at(payload, 0).cast_signed() {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    _ => take(payload),
                }
                rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        net::{TcpListener, TcpStream, UdpSocket},
    };

    use super::*;

    #[test]
    fn sockets_are_found_and_destroyed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let diag = Diag::open().unwrap();
        let find = |protocol, states, local: SocketAddr| -> Vec<Socket> {
            let all = diag.list(protocol, states).unwrap();
            all.into_iter().filter(|socket| socket.local() == local).collect()
        };
        let connected = find(Protocol::TCP, States::CONNECTED, client.local_addr().unwrap());
        assert_eq!(connected[0].peer(), listener.local_addr().unwrap());
        let bound = find(Protocol::TCP, States::BOUND, listener.local_addr().unwrap());
        assert_ne!(connected[0].cookie(), bound[0].cookie());
        // Destroying takes a privilege that a unit test does not have everywhere.
        match diag.destroy(&connected[0]) {
            Ok(found) => {
                assert!(found);
                let error = client.read(&mut [0]).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
                assert!(!diag.destroy(&connected[0]).unwrap(), "it is gone");
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
    }

    #[test]
    fn an_ipv4_peer_of_an_ipv6_socket_is_ipv4() {
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let peer = peer.local_addr().unwrap();
        let socket = UdpSocket::bind("[::]:0").unwrap();
        socket.connect(("::ffff:127.0.0.1", peer.port())).unwrap();
        let all = Diag::open().unwrap().list(Protocol::UDP, States::CONNECTED).unwrap();
        let port = socket.local_addr().unwrap().port();
        let found = all.iter().find(|socket| socket.local().port() == port).unwrap();
        assert_eq!((found.peer(), found.local().ip()), (peer, "127.0.0.1".parse().unwrap()));
    }
}
