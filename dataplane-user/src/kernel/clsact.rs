//! TC programs where the kernel has no tcx (before Linux 6.6): filters of the queueing discipline `clsact`, over rtnetlink.
//!
//! A filter has a priority and a handle, one pair for all of Weir's, and the name of its program. By these three it is found
//! again, by whatever process, replaced in one step and removed; what bears another name is somebody else's and is never
//! touched. The discipline itself stays when the filters go: others may have come to rely on it, and empty it costs next
//! to nothing.
//!
//! Programs run as they do through tcx (`direct-action`), and what they leave goes on to the filters behind, of higher
//! priority numbers.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::exchange::{ACKNOWLEDGE, CREATE_NEW, DUMP, ECHO, REQUEST, attribute, exchange, find, message};
use crate::programs;

/// Priority of the filters; `tc filter show` calls it `pref`. Low numbers come first, and those that people and other tools
/// choose begin at 1: whoever wants to see packets before they are translated can. The same number marks routes.
pub const PRIORITY: u16 = 87;
/// Handle of the filters: "Weir".
pub const HANDLE: u32 = u32::from_be_bytes(*b"Weir");

/// Programs that become filters.
const PROGRAMS: [&str; 3] = [programs::TC_UPLINK, programs::TC_POD, programs::TC_EGRESS];

/// `RTM_NEWQDISC`, `RTM_GETQDISC`, `RTM_NEWTFILTER`, `RTM_DELTFILTER`, `RTM_GETTFILTER`.
const NEW_DISCIPLINE: u16 = 36;
const GET_DISCIPLINE: u16 = 38;
const NEW_FILTER: u16 = 44;
const DELETE_FILTER: u16 = 45;
const GET_FILTER: u16 = 46;
/// The discipline's kind.
const NAME: &[u8] = b"clsact\0";
/// `TC_H_CLSACT` and its handle; `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` below it.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// `TCA_KIND`, `TCA_OPTIONS`.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
/// `TCA_BPF_FD`, `TCA_BPF_NAME`, `TCA_BPF_FLAGS`, `TCA_BPF_ID`.
const BPF_FD: u16 = 6;
const BPF_NAME: u16 = 7;
const BPF_FLAGS: u16 = 8;
const BPF_ID: u16 = 11;
/// `TCA_BPF_FLAG_ACT_DIRECT`: what the program returns is what becomes of the packet.
const DIRECT_ACTION: u32 = 1;
/// Bytes of `struct tcmsg`.
const TC_HEADER: usize = 20;

/// One side of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// The interface's index.
    pub ifindex: u32,
    /// The way out; otherwise the way in.
    pub egress: bool,
}

/// A filter that has Weir's priority and handle.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    name: String,
    program: u32,
}

/// Makes the program of that name the one that a side has: in place of the one that is there, in one step, or as a new
/// filter. Fails where a filter of somebody else has the priority and handle.
pub fn put(side: Side, name: &str, program: BorrowedFd<'_>) -> io::Result<()> {
    let how = match find_filter(side)? {
        Some(found) if found.name == name => 0,
        Some(found) => return Err(foreign(&found)),
        None => {
            add_discipline(side.ifindex)?;
            CREATE_NEW
        }
    };
    let mut options = attribute(BPF_FD, &program.as_raw_fd().to_ne_bytes());
    options.extend(attribute(BPF_NAME, &[name.as_bytes(), &[0]].concat()));
    options.extend(attribute(BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes()));
    let mut payload = filter_header(side).to_vec();
    payload.extend(attribute(KIND, b"bpf\0"));
    payload.extend(attribute(OPTIONS, &options));
    ask(NEW_FILTER, how, &payload)
}

/// Id of the program of that name that a side has.
pub fn program(side: Side, name: &str) -> io::Result<Option<u32>> {
    Ok(find_filter(side)?.filter(|found| found.name == name).map(|found| found.program))
}

/// Takes the program of that name from a side; none there, or the interface gone, is success.
pub fn remove(side: Side, name: &str) -> io::Result<()> {
    if program(side, name)?.is_none() {
        return Ok(());
    }
    match ask(DELETE_FILTER, 0, &filter_header(side)) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
        other => other,
    }
}

/// Takes all of Weir's programs from an interface, whoever forgot them there.
pub fn remove_all(ifindex: u32) -> io::Result<()> {
    for egress in [false, true] {
        for name in PROGRAMS {
            remove(Side { ifindex, egress }, name)?;
        }
    }
    Ok(())
}

fn foreign(found: &Found) -> io::Error {
    let name = if found.name.is_empty() { "no name" } else { &found.name };
    let text = format!("a filter of somebody else ({name}) has priority {PRIORITY} and handle {HANDLE:#x}");
    io::Error::new(io::ErrorKind::AlreadyExists, text)
}

/// The filter with Weir's priority and handle. A side without any, and one of no interface, has none.
fn find_filter(side: Side) -> io::Result<Option<Found>> {
    let (handle, info) = (HANDLE.to_ne_bytes(), info().to_ne_bytes());
    let mut found = None;
    exchange(NETLINK_ROUTE, &message(GET_FILTER, REQUEST | DUMP, &header(side, 0, 0)), |kind, payload| {
        // The handle and `tcm_info`; entries of a priority alone have the handle 0.
        if kind == NEW_FILTER && payload.get(8..12) == Some(&handle) && payload.get(16..20) == Some(&info) {
            found = found.take().or(payload.get(TC_HEADER..).map(filter));
        }
    })?;
    Ok(found)
}

/// A filter from its attributes; of another kind than `bpf` it has no name.
fn filter(attributes: &[u8]) -> Found {
    let is_bpf = find(attributes, KIND) == Some(b"bpf\0");
    let options = find(attributes, OPTIONS).filter(|_| is_bpf).unwrap_or_default();
    let name = find(options, BPF_NAME).unwrap_or_default();
    let id = find(options, BPF_ID).and_then(|id| id.try_into().ok()).map_or(0, u32::from_ne_bytes);
    Found { name: String::from_utf8_lossy(name).trim_end_matches('\0').to_owned(), program: id }
}

/// Makes `clsact` what an interface has beside its queues, unless it is that already. There is one place for it, which the
/// older `ingress` may have: that has no way out.
fn add_discipline(ifindex: u32) -> io::Result<()> {
    let mut head = [0; TC_HEADER];
    for (place, word) in head.chunks_exact_mut(4).skip(1).zip([ifindex, CLSACT_HANDLE, CLSACT]) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    let payload = [head.to_vec(), attribute(KIND, NAME)].concat();
    match ask(NEW_DISCIPLINE, CREATE_NEW, &payload) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
        other => return other,
    }
    let mut is_clsact = false;
    exchange(NETLINK_ROUTE, &message(GET_DISCIPLINE, REQUEST | ACKNOWLEDGE | ECHO, &head), |_, payload| {
        is_clsact |= payload.get(TC_HEADER..).and_then(|attributes| find(attributes, KIND)) == Some(NAME);
    })?;
    if is_clsact {
        return Ok(());
    }
    let text = "it has an `ingress` queueing discipline, which serves no way out: put `clsact` in its place";
    Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
}

fn ask(kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
    exchange(NETLINK_ROUTE, &message(kind, REQUEST | ACKNOWLEDGE | flags, payload), |_, _| ())
}

/// The priority, and all protocols (`ETH_P_ALL`).
fn info() -> u32 {
    const ALL: u16 = 3;
    u32::from(PRIORITY) << 16 | u32::from(ALL.to_be())
}

fn filter_header(side: Side) -> [u8; TC_HEADER] {
    header(side, HANDLE, info())
}

/// `struct tcmsg`: family 0, interface, handle, parent, information.
fn header(side: Side, handle: u32, info: u32) -> [u8; TC_HEADER] {
    let parent = if side.egress { EGRESS } else { INGRESS };
    let mut bytes = [0; TC_HEADER];
    for (place, word) in bytes.chunks_exact_mut(4).skip(1).zip([side.ifindex, handle, parent, info]) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_has_a_name_only_when_it_is_a_program() {
        let options = [attribute(BPF_NAME, b"tc_pod\0"), attribute(BPF_ID, &7_u32.to_ne_bytes())].concat();
        let bytes = |kind: &[u8]| [attribute(KIND, kind), attribute(OPTIONS | 1 << 15, &options)].concat();
        assert_eq!(filter(&bytes(b"bpf\0")), Found { name: "tc_pod".into(), program: 7 });
        assert_eq!(filter(&bytes(b"flower\0")), Found { name: String::new(), program: 0 });
    }
}
