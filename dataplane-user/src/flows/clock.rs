//! The clock that flow entries are aged by.

use std::time::{Duration, Instant};

use crate::kernel::sys::Jiffies;

/// The kernel's tick as a clock: its rate is not told anywhere, so it is measured.
#[derive(Debug)]
pub struct TickClock {
    jiffies: Jiffies,
    first: (Instant, u32),
}

/// Two readings this far apart tell the rate to a percent.
const SHORTEST_MEASUREMENT: Duration = Duration::from_millis(400);

impl TickClock {
    /// Takes the first reading.
    pub fn start() -> std::io::Result<Self> {
        let jiffies = Jiffies::new()?;
        let first = (Instant::now(), jiffies.now()?);
        Ok(Self { jiffies, first })
    }

    /// The tick now, and how many there are in a second. Nothing while it is too early to tell.
    pub fn read(&self) -> std::io::Result<Option<(u32, f64)>> {
        let (elapsed, now) = (self.first.0.elapsed(), self.jiffies.now()?);
        if elapsed < SHORTEST_MEASUREMENT {
            return Ok(None);
        }
        Ok(Some((now, f64::from(now.wrapping_sub(self.first.1)) / elapsed.as_secs_f64())))
    }
}
