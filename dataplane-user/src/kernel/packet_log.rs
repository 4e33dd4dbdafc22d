//! What the programs say about single packets (aya-log), taken out of the kernel's ring buffer.

use std::{io, os::fd::AsFd as _};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::Log;

use super::sys;

/// Why there is no packet log.
#[derive(Debug, thiserror::Error)]
pub enum PacketLogError {
    /// The programs' ring buffer.
    #[error("open the packet log: {0}")]
    Open(#[from] aya_log::Error),
    /// Waiting for it.
    #[error("wait for the packet log: {0}")]
    Wait(#[source] io::Error),
}

/// The reader of the programs' ring buffer. The buffer holds 128 KiB; what does not fit is lost, packets are not.
pub struct PacketLog<T>(EbpfLogger<T>);

impl<T: Log> PacketLog<T> {
    /// Takes the ring buffer of programs that were loaded with [`crate::programs::Options::packet_log`].
    pub fn open(ebpf: &mut Ebpf, logger: T) -> Result<Self, PacketLogError> {
        Ok(Self(EbpfLogger::init_with_logger(ebpf, logger)?))
    }

    /// Hands every line that is there to the logger.
    pub fn flush(&mut self) {
        self.0.flush();
    }

    /// Goes on handing lines over, for as long as it is polled.
    pub async fn follow(mut self) -> Result<(), PacketLogError> {
        let buffer = self.0.as_fd().try_clone_to_owned().map_err(PacketLogError::Wait)?;
        let ready = sys::watch(buffer).map_err(PacketLogError::Wait)?;
        loop {
            let mut readable = ready.readable().await.map_err(PacketLogError::Wait)?;
            readable.clear_ready();
            self.flush();
        }
    }
}
