//! When the flow tables are read: one reading at a time, beside the agent's task, which says what it needs to know.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex},
};

use tokio::{
    select,
    task::{JoinHandle, spawn_blocking},
    time::{Interval, MissedTickBehavior, interval},
};
use tracing::{debug, warn};
use weir_dataplane_ebpf::maps::{FLOWS, OPENING_FLOWS, TRAFFIC};

use super::{LOOK_INTERVAL, Lost, PASS_INTERVAL, forget, is_crowded, pass};
use crate::{
    filter::Bits,
    kernel::maps::{Maps, TableError},
    metrics::{Metrics, observe},
    traffic::{Ledger, Sums},
};

/// What a pass asks the agent.
#[derive(Debug)]
pub(crate) enum Progress {
    /// A pass is due; the answer goes to [`Passes::begin`]. These services have lost UDP endpoints since the last regular one.
    Due(BTreeSet<u32>),
    /// These services have just lost UDP endpoints; the answer goes to [`Passes::forget`].
    Lost(BTreeSet<u32>),
    /// What a pass found in use, and the traffic of services by id.
    Passed(Bits, HashMap<u32, Sums>),
}

/// What a pass must know of the agent.
#[derive(Debug)]
pub(crate) struct Setting {
    /// The tick now, and how many there are in a second.
    pub(crate) clock: (u32, f64),
    /// Service ids that mean something.
    pub(crate) services: HashSet<u32>,
    /// Whose UDP flows are over.
    pub(crate) lost: Lost,
}

/// What a reading came to.
type Done = Result<Option<Progress>, TableError>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Passes {
    maps: Arc<Maps>,
    metrics: Metrics,
    /// The traffic that passes add up. Held by one pass for as long as it takes.
    ledger: Arc<Mutex<Ledger>>,
    regular: Interval,
    looks: Interval,
    /// Services whose flows are to be looked at at once.
    lost: BTreeSet<u32>,
    /// And those that the next regular pass looks at once more.
    again: BTreeSet<u32>,
    running: Option<JoinHandle<Done>>,
}

impl Passes {
    /// Goes on where the maps stand.
    pub(crate) fn new(maps: Arc<Maps>, metrics: Metrics) -> Result<Self, TableError> {
        let [mut regular, mut looks] = [PASS_INTERVAL, LOOK_INTERVAL].map(interval);
        regular.set_missed_tick_behavior(MissedTickBehavior::Delay);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ledger = Arc::new(Mutex::new(Ledger::adopt(&maps)?));
        Ok(Self {
            maps,
            metrics,
            ledger,
            regular,
            looks,
            lost: BTreeSet::new(),
            again: BTreeSet::new(),
            running: None,
        })
    }

    /// These services have lost UDP endpoints.
    pub(crate) fn lost(&mut self, services: BTreeSet<u32>) {
        self.lost.extend(services);
    }

    /// The next thing to do. May be dropped and asked again.
    pub(crate) async fn progress(&mut self) -> Progress {
        loop {
            if let Some(running) = &mut self.running {
                let done = running.await;
                self.running = None;
                // Passes that take long leave the machine some time between them.
                self.looks.reset();
                match done {
                    Ok(Ok(Some(progress))) => return progress,
                    Ok(Ok(None)) => {}
                    Ok(Err(error)) => warn!(%error, "cannot look after flows"),
                    Err(error) => warn!(%error, "a pass over the flows ended early"),
                }
            }
            if !self.lost.is_empty() {
                let lost = std::mem::take(&mut self.lost);
                self.again.extend(&lost);
                return Progress::Lost(lost);
            }
            select! {
                _ = self.regular.tick() => return Progress::Due(std::mem::take(&mut self.again)),
                _ = self.looks.tick() => self.look(),
            }
        }
    }

    /// Looks whether a pass must come before its time.
    fn look(&mut self) {
        let (maps, metrics) = (Arc::clone(&self.maps), self.metrics.clone());
        self.running = Some(spawn_blocking(move || {
            let crowded = is_crowded(&maps)?;
            metrics.early_passes.inc_by(u64::from(crowded));
            Ok(crowded.then(|| Progress::Due(BTreeSet::new())))
        }));
    }

    /// Ends the UDP flows that services have lost.
    pub(crate) fn forget(&mut self, lost: Lost) {
        let (maps, metrics) = (Arc::clone(&self.maps), self.metrics.clone());
        self.running = Some(spawn_blocking(move || {
            let forgotten = forget(&maps, &lost)?;
            metrics.flows_lost.inc_by(forgotten);
            if forgotten > 0 {
                debug!(entries = forgotten, "ended UDP flows to endpoints that their services lost");
            }
            Ok(None)
        }));
    }

    /// Starts a pass.
    pub(crate) fn begin(&mut self, setting: Setting) {
        let (maps, metrics, ledger) =
            (Arc::clone(&self.maps), self.metrics.clone(), Arc::clone(&self.ledger));
        self.running = Some(spawn_blocking(move || {
            let mut ledger = ledger.lock().expect("a pass does not panic");
            let Setting { clock: (now, rate), services, lost } = setting;
            let started = std::time::Instant::now();
            let pass = pass(&maps, now, rate, &mut ledger, &services, &lost)?;
            let drops = maps.drops()?;
            observe(&metrics.flow_pass, started.elapsed());
            metrics.flows_removed.inc_by(pass.removed);
            metrics.flows_removed_early.inc_by(pass.early);
            metrics.set_fill("flows_v4", pass.live[0], FLOWS);
            metrics.set_fill("flows_v6", pass.live[1], FLOWS);
            metrics.set_fill("opening_v4", pass.opening[0], OPENING_FLOWS);
            metrics.set_fill("opening_v6", pass.opening[1], OPENING_FLOWS);
            metrics.set_fill("traffic", ledger.len(), TRAFFIC);
            metrics.set_drops(&drops);
            Ok(Some(Progress::Passed(pass.uses, ledger.services())))
        }));
    }
}
