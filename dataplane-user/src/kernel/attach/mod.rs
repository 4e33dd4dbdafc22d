//! Programs into the kernel, and onto interfaces and the cgroup root, so that they outlive this process.
//!
//! A start loads the programs against the maps that are pinned already, and replaces the program of every link that is
//! pinned already in one step each. There is no moment in which a packet or a connection meets no program.

mod tc;

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::MapInfo,
    programs::{CgroupAttachMode, Program, ProgramError, SchedClassifier, links::FdLink},
};
use tracing::info;
use weir_dataplane_ebpf::DROP_REASONS;

pub use self::tc::{Tc, attach as attach_tc, detach, mode};
use super::{
    bpffs,
    migrate::{self, Handover},
    packet_log::{PacketLog, PacketLogError},
    release::{self, KernelError},
    sys,
    xdp::{Acceleration, Mode},
};
use crate::{netlink::Link, paths::Paths, programs};

/// Prefix of the pins of pod links, which the CNI plugin makes.
const POD_LINK: &str = "pod_";
/// Prefix of the pins of the egress side of pod links.
const POD_EGRESS: &str = "podegress_";
/// Prefix of a pin that is about to replace another. bpffs allows no dot in a name.
const NEXT: &str = "next_";

/// Why the programs do not serve.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Not allowed to.
    #[error("the dataplane needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (root has them): {0}")]
    Privilege(#[source] io::Error),
    /// A kernel without what the programs need.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// No place for the pins.
    #[error(transparent)]
    Bpffs(#[from] bpffs::BpffsError),
    /// The object, its maps, or the verifier.
    #[error("{error}{}", source_chain(.error))]
    Load {
        /// What the loader says.
        error: programs::Error,
    },
    /// One program cannot be attached in one place.
    #[error("attach {program} to {target}: {source}{}", source_chain(.source.as_ref()))]
    Attach {
        /// The program.
        program: String,
        /// The interface or cgroup.
        target: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A pin or lock.
    #[error("{operation} {path}: {source}")]
    Pin {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn source_chain(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(source.to_string().lines().next().unwrap_or_default());
        next = source.source();
    }
    text
}

/// Where to attach.
#[derive(Debug)]
pub struct Targets<'a> {
    /// Links to the outside.
    pub uplinks: &'a [Link],
    /// Where their XDP program runs.
    pub acceleration: Acceleration,
    /// Directory in the cgroup2 mount whose processes get socket hooks; none without socket load balancing.
    pub cgroup: Option<&'a Path>,
    /// How TC programs are attached where none is yet.
    pub tc: Tc,
}

/// The loaded programs. Dropping it detaches nothing: links and programs are pinned.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
    paths: Paths,
}

impl Programs {
    /// Loads the programs, taking over the maps that are pinned, and what those of an older layout hold. With `packet_log` they say what they drop.
    pub fn load(paths: &Paths, packet_log: bool) -> Result<Self, AttachError> {
        release::require()?;
        bpffs::ensure(paths)?;
        migrate::share(paths)?;
        forget_shorter_drops(paths)?;
        let pins = paths.maps();
        let options = programs::Options { pins: Some(&pins), packet_log, ..programs::Options::default() };
        let ebpf = programs::load(&options).map_err(|error| match not_permitted(&error) {
            Some(error) => AttachError::Privilege(error),
            None => AttachError::Load { error },
        })?;
        migrate::copy_books(paths);
        Ok(Self { ebpf, paths: paths.clone() })
    }

    /// What the programs say about single packets, for this process's log.
    pub fn packet_log(&mut self) -> Result<PacketLog<&'static dyn log::Log>, PacketLogError> {
        PacketLog::open(&mut self.ebpf, log::logger())
    }

    /// Pins the programs, replaces those of all pinned links, attaches where nothing is attached yet, and detaches from
    /// where nothing should be.
    pub fn attach(&mut self, targets: &Targets<'_>) -> Result<(), AttachError> {
        let path = self.paths.attach_lock();
        let lock = File::create(&path).and_then(|file| file.lock().map(|()| file));
        let _lock = lock.map_err(pin_error("lock", &path))?;
        migrate::take_links(&self.paths)?;
        self.pin_programs()?;

        let mut wanted = Vec::new();
        if let Some(cgroup) = targets.cgroup {
            wanted.extend(self.attach_hooks(cgroup)?);
        }
        let paths = self.paths.clone();
        let handover = Handover::begin(&paths, targets.cgroup.is_some());
        for link in targets.uplinks {
            wanted.extend(self.attach_uplink(link, targets)?);
        }
        for pin in list(&self.paths.links())? {
            let path = self.paths.link(&pin);
            if let Some(link) = pin.strip_prefix(POD_LINK) {
                if self.replace(&pin, programs::TC_POD)? {
                    self.attach_tc(programs::TC_EGRESS, link, &egress_pin(link), targets.tc)?;
                } else {
                    // Its interface is gone: a plugin's DEL that was cut short.
                    remove(&path)?;
                }
            } else if let Some(link) = pin.strip_prefix(POD_EGRESS) {
                if !self.paths.link(&pod_pin(link)).exists() {
                    detach(&path)?;
                }
            } else if !wanted.contains(&pin) {
                info!(link = pin, "detaching what this configuration does not ask for");
                detach(&path)?;
            }
        }
        handover.finish()
    }

    fn pin_programs(&mut self) -> Result<(), AttachError> {
        for (name, program) in self.ebpf.programs() {
            let (path, next) = (self.paths.program(name), self.paths.program(&format!("{NEXT}{name}")));
            remove(&next)?;
            let fd = program.fd().map_err(attach_error(name, &path.display()))?;
            sys::pin(fd.as_fd(), &next).map_err(pin_error("pin", &next))?;
            // A plugin that opens the pin at any moment finds a program.
            fs::rename(&next, &path).map_err(pin_error("replace", &path))?;
        }
        Ok(())
    }

    fn attach_uplink(&mut self, link: &Link, targets: &Targets<'_>) -> Result<Vec<String>, AttachError> {
        let mut pins = Vec::new();
        for program in [programs::TC_UPLINK, programs::TC_EGRESS] {
            let pin = format!("{program}_{}", link.index);
            self.attach_tc(program, &link.name, &pin, targets.tc)?;
            pins.push(pin);
        }
        pins.extend(self.attach_xdp(link, targets.acceleration)?);
        Ok(pins)
    }

    /// A TC program in its direction, unless it is there already.
    fn attach_tc(&mut self, name: &str, link: &str, pin: &str, tc: Tc) -> Result<(), AttachError> {
        if self.replace(pin, name)? {
            return Ok(());
        }
        let pin = self.paths.link(pin);
        let program: &mut SchedClassifier = self.program(name);
        attach_tc(tc, program, name, link, &pin).map_err(attach_error(name, &link))
    }

    /// The pin of XDP on this link, if there is any. What is there in another mode goes first: a link takes one at a time,
    /// and `tc_uplink` serves meanwhile.
    fn attach_xdp(&mut self, link: &Link, acceleration: Acceleration) -> Result<Option<String>, AttachError> {
        let wanted = acceleration.mode(link);
        for other in Mode::ALL.into_iter().filter(|mode| Some(*mode) != wanted) {
            detach(&self.paths.link(&other.pin(link.index)))?;
        }
        let Some(mode) = wanted else {
            info!(uplink = link.name, "no XDP; TC serves this uplink alone");
            return Ok(None);
        };
        let pin = mode.pin(link.index);
        if self.replace(&pin, programs::XDP_UPLINK)? {
            return Ok(Some(pin));
        }
        let program: &mut aya::programs::Xdp = self.program(programs::XDP_UPLINK);
        let mut attach = || -> Result<FdLink, BoxError> {
            let id = program.attach_to_if_index(link.index, mode.to_kernel())?;
            Ok(program.take_link(id)?.try_into()?)
        };
        match attach() {
            Ok(attached) => {
                self.pin_link(attached, &pin)?;
                info!(uplink = link.name, mode = mode.name(), "XDP attached");
                Ok(Some(pin))
            }
            Err(error) if acceleration == Acceleration::Auto => {
                let reason = source_chain(error.as_ref());
                info!(uplink = link.name, reason, "the driver takes no XDP; TC serves this uplink alone");
                Ok(None)
            }
            Err(error) => Err(attach_error(&format!("{} XDP", mode.name()), &link.name)(error)),
        }
    }

    fn attach_hooks(&mut self, cgroup: &Path) -> Result<Vec<String>, AttachError> {
        let directory = File::open(cgroup).map_err(pin_error("open cgroup", cgroup))?;
        // The directory's number names the cgroup: another directory is another link.
        let id = directory.metadata().map_err(pin_error("look at cgroup", cgroup))?.ino();
        let mut pins = Vec::new();
        for name in programs::SOCKET_HOOKS {
            let pin = format!("cgroup_{id}_{name}");
            if !self.replace(&pin, name)? {
                let program: &mut aya::programs::CgroupSockAddr = self.program(name);
                let mut attach = || -> Result<FdLink, BoxError> {
                    // A link takes no flags: it always shares its place with others.
                    let id = program.attach(&directory, CgroupAttachMode::Single)?;
                    Ok(program.take_link(id)?.try_into()?)
                };
                let attached = attach().map_err(attach_error(name, &cgroup.display()))?;
                self.pin_link(attached, &pin)?;
            }
            pins.push(pin);
        }
        Ok(pins)
    }

    /// Puts the loaded program behind a pinned link. `false`: there is no such link, or what it was attached to is gone.
    fn replace(&self, pin: &str, program: &str) -> Result<bool, AttachError> {
        let path = self.paths.link(pin);
        let link = match sys::open_pin(&path) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(pin_error("open", &path)(error)),
        };
        if sys::is_program(link.as_fd()).map_err(pin_error("look at", &path))? {
            let replaced = tc::replace_filter(&path, program, self.fd(program)?);
            return replaced.map_err(pin_error("replace the filter of", &path));
        }
        match sys::update_link(link.as_fd(), self.fd(program)?) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
                remove(&path)?;
                Ok(false)
            }
            Err(error) => Err(pin_error("replace the program of", &path)(error)),
        }
    }

    fn pin_link(&self, link: FdLink, pin: &str) -> Result<(), AttachError> {
        link.pin(self.paths.link(pin)).map(drop).map_err(attach_error(pin, &"its pin"))
    }

    fn fd(&self, program: &str) -> Result<BorrowedFd<'_>, AttachError> {
        let found = self.ebpf.program(program).expect("the object has all programs that `programs` names");
        found.fd().map(|fd| fd.as_fd()).map_err(attach_error(program, &"the kernel"))
    }

    fn program<'a, P>(&'a mut self, name: &str) -> &'a mut P
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let program = self.ebpf.program_mut(name).expect("the object has all programs that `programs` names");
        program.try_into().expect("a program has the type that its section says")
    }
}

/// Name below which `tc_pod` on a pod link is pinned.
pub fn pod_pin(host_link: &str) -> String {
    format!("{POD_LINK}{host_link}")
}

/// The same of `tc_egress`.
pub fn egress_pin(host_link: &str) -> String {
    format!("{POD_EGRESS}{host_link}")
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A `drops` map of an agent that knew fewer reasons has no room for the new ones; its counters start again.
fn forget_shorter_drops(paths: &Paths) -> Result<(), AttachError> {
    let path = paths.map("drops");
    match MapInfo::from_pin(&path) {
        Ok(info) if info.max_entries() < DROP_REASONS.len() as u32 => remove(&path),
        _ => Ok(()),
    }
}

/// The kernel's "not permitted" somewhere below an error.
fn not_permitted(error: &(dyn std::error::Error + 'static)) -> Option<io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::PermissionDenied
        {
            return io.raw_os_error().map(io::Error::from_raw_os_error);
        }
        next = error.source();
    }
    None
}

/// Names below a directory of pins.
pub fn list(directory: &Path) -> Result<Vec<String>, AttachError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(pin_error("list", directory)(error)),
    };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

fn remove(path: &Path) -> Result<(), AttachError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(pin_error("remove", path)(error)),
        _ => Ok(()),
    }
}

fn pin_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AttachError {
    let path = path.to_owned();
    move |source| AttachError::Pin { operation, path, source }
}

fn attach_error<E: Into<BoxError>>(program: &str, target: &impl ToString) -> impl FnOnce(E) -> AttachError {
    let (program, target) = (program.to_owned(), target.to_string());
    move |source| AttachError::Attach { program, target, source: source.into() }
}
