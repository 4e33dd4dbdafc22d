//! Which kernels will do.

use std::io;

use nix::sys::utsname::uname;

/// Major and minor number of the oldest kernel that reads and writes tries in batches, as the agent does with source ranges.
/// That is the youngest of what it cannot do without: links of XDP are from 5.9, those of cgroups from 5.7, and for tcx
/// (6.6) there is [`super::clsact`].
pub const OLDEST_KERNEL: (u32, u32) = (5, 13);

/// Why the running kernel will not do.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It does not say what it is.
    #[error("ask the kernel for its version: {0}")]
    Unknown(#[source] io::Error),
    /// It lacks what the programs need.
    #[error(
        "kernel {release} is too old, since it cannot write tries in batches: boot {}.{} or newer",
        OLDEST_KERNEL.0,
        OLDEST_KERNEL.1
    )]
    TooOld {
        /// What it calls itself.
        release: String,
    },
}

/// Checks the running kernel.
pub fn require() -> Result<(), KernelError> {
    let name = uname().map_err(|errno| KernelError::Unknown(errno.into()))?;
    judge(&name.release().to_string_lossy())
}

fn judge(release: &str) -> Result<(), KernelError> {
    if parse(release) >= Some(OLDEST_KERNEL) {
        Ok(())
    } else {
        Err(KernelError::TooOld { release: release.to_owned() })
    }
}

/// Major and minor number of a kernel release such as `6.12.9-amd64`.
fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_refused_by_number_and_not_by_text() {
        for good in ["5.13.0", "6.1.0-50-amd64", "6.18.2-fc", "7.0-rc1", "10.1.2"] {
            assert!(judge(good).is_ok(), "{good}");
        }
        for old in ["2.6.78", "5.4.0", "5.10.0-9-amd64", "strange"] {
            let error = judge(old).unwrap_err().to_string();
            assert!(error.contains(old) && error.contains("5.13 or newer"), "{error}");
        }
    }
}
