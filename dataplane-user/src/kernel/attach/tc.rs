//! How TC programs get onto interfaces: by tcx links where the kernel has those (Linux 6.6), by filters of `clsact` where
//! it has not.
//!
//! A link is pinned, and goes with its pin. A filter is the interface's, so that its pin, which is the program's, only says
//! that it is there: whoever lists, replaces and removes what is attached does so by pins in both ways. What is attached in
//! one way stays in it when its program is replaced.

use std::{
    fmt, fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType, links::FdLink, tc::TcAttachOptions,
};
use nix::net::if_::if_nametoindex;

use super::{AttachError, BoxError, NEXT, POD_EGRESS, POD_LINK, pin_error, remove};
use crate::{
    kernel::{
        clsact::{self, Side},
        sys,
    },
    programs,
};

/// One of the two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tc {
    /// Links.
    Tcx,
    /// Filters.
    Clsact,
}

impl Tc {
    /// The way that the running kernel has; links where it has both.
    pub fn of_kernel() -> Self {
        // A kernel without tcx does not know the kind of attachment that is asked about, whatever there is.
        match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
            Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EINVAL) => {
                Self::Clsact
            }
            _ => Self::Tcx,
        }
    }
}

impl fmt::Display for Tc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// Attaches a TC program that is loaded, where none of that pin is attached: `tc_egress` to the way out of an interface,
/// the others to the way in.
pub fn attach(
    tc: Tc,
    program: &mut SchedClassifier,
    name: &str,
    link: &str,
    pin: &Path,
) -> Result<(), BoxError> {
    let egress = name == programs::TC_EGRESS;
    match tc {
        Tc::Tcx => {
            let direction = if egress { TcAttachType::Egress } else { TcAttachType::Ingress };
            let options = TcAttachOptions::TcxOrder(LinkOrder::default());
            let id = program.attach_with_options(link, direction, options)?;
            let attached: FdLink = program.take_link(id)?.try_into()?;
            attached.pin(pin)?;
        }
        Tc::Clsact => {
            let fd = program.fd()?.as_fd();
            // The pin first: what is attached is known to be.
            pin_program(fd, pin)?;
            let put = if_nametoindex(link).map_err(io::Error::from);
            let put = put.and_then(|ifindex| clsact::put(Side { ifindex, egress }, name, fd));
            // And none of what is not.
            put.inspect_err(|_| drop(fs::remove_file(pin)))?;
        }
    }
    Ok(())
}

/// Puts a program behind a pin that says that a filter is there. `false`: its interface is gone, and so is the pin.
pub(super) fn replace_filter(pin: &Path, name: &str, program: BorrowedFd<'_>) -> io::Result<bool> {
    let put = side(pin).map(|(side, _)| clsact::put(side, name, program));
    match put {
        Some(Ok(())) => pin_program(program, pin).map(|()| true),
        Some(Err(error)) if error.raw_os_error() != Some(libc::ENODEV) => Err(error),
        Some(Err(_)) | None => fs::remove_file(pin).map(|()| false),
    }
}

/// In place of what is pinned there.
fn pin_program(program: BorrowedFd<'_>, pin: &Path) -> io::Result<()> {
    let name = pin.file_name().unwrap_or_default().to_string_lossy();
    let next = pin.with_file_name(format!("{NEXT}{name}"));
    match fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    sys::pin(program, &next)?;
    fs::rename(&next, pin)
}

/// Detaches what a pin stands for, and removes the pin. What is from nothing any more goes with it.
pub fn detach(pin: &Path) -> Result<(), AttachError> {
    let Ok(pinned) = sys::open_pin(pin) else { return remove(pin) };
    if sys::is_program(pinned.as_fd()).map_err(pin_error("look at", pin))? {
        if let Some((side, name)) = side(pin) {
            clsact::remove(side, name).map_err(pin_error("remove the filter of", pin))?;
        }
    } else if let Err(error) = sys::detach_link(pinned.as_fd()) {
        tracing::debug!(%error, pin = %pin.display(), "goes with its pin");
    }
    remove(pin)
}

/// How a pinned program is attached, in a word.
pub fn mode(pin: &Path) -> &'static str {
    let is_filter = || sys::is_program(sys::open_pin(pin)?.as_fd());
    let name = pin.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with(programs::XDP_UPLINK) {
        "xdp"
    } else if name.starts_with("cgroup_") {
        "cgroup"
    } else if is_filter().unwrap_or(false) {
        "clsact"
    } else {
        "tcx"
    }
}

/// Where a TC program's pin says that it is, and its name; nothing when that interface is gone.
fn side(pin: &Path) -> Option<(Side, &'static str)> {
    let pin = pin.file_name()?.to_str()?;
    let of_pod = |prefix: &str| Some(if_nametoindex(pin.strip_prefix(prefix)?).ok());
    let of_uplink = |name: &str| pin.strip_prefix(name)?.strip_prefix('_')?.parse().ok();
    let (name, ifindex) = if let Some(found) = of_pod(POD_EGRESS) {
        (programs::TC_EGRESS, found?)
    } else if let Some(found) = of_pod(POD_LINK) {
        (programs::TC_POD, found?)
    } else {
        let names = [programs::TC_UPLINK, programs::TC_EGRESS];
        names.into_iter().find_map(|name| Some((name, of_uplink(name)?)))?
    };
    Some((Side { ifindex, egress: name == programs::TC_EGRESS }, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_says_where_its_program_is() {
        let found = |pin: &str| side(Path::new("/run/weir/bpf/v3/links").join(pin).as_path());
        let at = |ifindex, egress, name| Some((Side { ifindex, egress }, name));
        assert_eq!(found("tc_uplink_7"), at(7, false, "tc_uplink"));
        assert_eq!(found("tc_egress_7"), at(7, true, "tc_egress"));
        let lo = if_nametoindex("lo").unwrap();
        assert_eq!(found("pod_lo"), at(lo, false, "tc_pod"));
        assert_eq!(found("podegress_lo"), at(lo, true, "tc_egress"));
        for other in ["pod_weir-none", "xdp_uplink_7", "cgroup_1_connect4", "next_tc_uplink_7", "tc_uplink_x"]
        {
            assert_eq!(found(other), None, "{other}");
        }
    }
}
