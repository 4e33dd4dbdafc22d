//! Tagged frames over a real link, where the kernel has taken the tag out of the frame before TC sees it.

#![expect(unsafe_code, reason = "no library sends frames")]

mod node;
mod packets;

use std::net::{Ipv4Addr, SocketAddr};

use node::{
    NODE_ADDRESS, TestNode,
    echo::{echo_pod, udp},
};
use packets::{
    Frame,
    frame::{C_TAG, S_TAG},
};
use weir_tests::Namespace;

/// Sends a frame by a link.
fn send(from: &Namespace, link: &str, frame: &[u8]) {
    from.inside(|| {
        let index = nix::net::if_::if_nametoindex(link).unwrap();
        // SAFETY: plain numbers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index.cast_signed();
        // SAFETY: the calls take numbers, a live slice with its length, and a live address with its size.
        let sent = unsafe {
            let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            assert!(socket >= 0, "{}", std::io::Error::last_os_error());
            let sent = libc::sendto(
                socket,
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of_val(&address) as u32,
            );
            libc::close(socket);
            sent
        };
        assert_eq!(sent, frame.len().cast_signed(), "{}", std::io::Error::last_os_error());
    });
}

/// The link address of a link.
fn link_address(namespace: &Namespace, link: &str) -> [u8; 6] {
    let text = namespace.ip(&format!("-o link show {link}")).unwrap();
    let address = text.split_once("link/ether ").unwrap().1;
    let mut bytes = address[..17].split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap());
    [(); 6].map(|()| bytes.next().unwrap())
}

#[test]
fn tagged_frames_are_another_links() {
    let mut node = TestNode::new(false);
    let (_pod, address) = echo_pod(&node, "a");
    node.serve(1, &[address]);
    let (near, far) = (link_address(&node.client, "up1"), link_address(&node.namespace, "up0"));
    let node_port = SocketAddr::from((NODE_ADDRESS, 30_001));
    let datagram = |port: u16| {
        let client = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 2), port));
        packets::frame::udp(&client.to_string(), &node_port.to_string()).link(near, far)
    };
    let frames: [Frame; 5] = [
        datagram(40_000),
        datagram(40_001).tag(C_TAG, 5),
        datagram(40_002).tag(C_TAG, 0),
        datagram(40_003).tag(S_TAG, 5),
        datagram(40_004).tag(S_TAG, 5).tag(C_TAG, 6),
    ];
    for frame in &frames {
        send(&node.client, "up1", &frame.bytes());
    }
    // Links keep the order of what they carry.
    assert_eq!(udp(&node.client, node_port).unwrap().0, "a hello");
    let maps = node.maps();
    let (flows, opening) = (maps.v4.flows.entries().unwrap(), maps.v4.opening.entries().unwrap());
    let keys = flows.iter().chain(&opening).map(|(key, _)| key.source_port.get());
    let ours: Vec<u16> = keys.filter(|port| (40_000..40_005).contains(port)).collect();
    assert_eq!(ours, [40_000], "the one without a tag is served");
}
