//! Which kernels will do.

use std::io;

use nix::sys::utsname::uname;

/// Major and minor number of the oldest kernel whose tcx links can be pinned, which is how traffic outlives the agent.
/// They are the youngest of what the dataplane cannot do without.
pub const OLDEST_KERNEL: (u32, u32) = (6, 6);

/// Why the running kernel will not do.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It does not say what it is.
    #[error("ask the kernel for its version: {0}")]
    Unknown(#[source] io::Error),
    /// It lacks what the programs need.
    #[error(
        "Linux {release} is too old: attaching TC programs by link (tcx) needs {}.{} or newer",
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
    let release = name.release().to_string_lossy();
    if parse(&release) >= Some(OLDEST_KERNEL) {
        Ok(())
    } else {
        Err(KernelError::TooOld { release: release.into_owned() })
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
    fn reads_kernel_releases() {
        assert_eq!(parse("6.12.9-amd64"), Some((6, 12)));
        assert_eq!(parse("6.6"), Some((6, 6)));
        assert!(parse("5.10.0-28-amd64") < Some(OLDEST_KERNEL) && parse("strange") < Some(OLDEST_KERNEL));
    }
}
