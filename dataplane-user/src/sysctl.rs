//! Kernel settings below `/proc/sys`.

use std::{fs, io};

/// Reads a setting such as `net/ipv4/ip_forward`.
pub(crate) fn read(name: &str) -> io::Result<String> {
    fs::read_to_string(format!("/proc/sys/{name}")).map(|text| text.trim().to_owned())
}

/// Writes a setting, unless it has that value already: in a container `/proc/sys` may be read-only and right.
pub(crate) fn write(name: &str, value: &str) -> io::Result<()> {
    if read(name)? == value {
        return Ok(());
    }
    fs::write(format!("/proc/sys/{name}"), value)
}
