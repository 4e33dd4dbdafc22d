//! The driver programs of `dataplane-ebpf/src/bin/bench`, and how a program under test is put behind them.

use aya::{
    Ebpf, Pod, TestRun, TestRunAttrs, TestRunOptions,
    maps::{Array, ProgramArray},
    programs::{Program, ProgramFd, SchedClassifier, Xdp},
};
use weir_dataplane_ebpf::bench::{FRAME_LENGTH, Load};

/// Bytes of the longest network header.
const LONGEST_HEADER: usize = 40;

/// The object as the build script made it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weir-bench-programs"));

/// Where a program is attached; a driver can call only its own kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Xdp,
    Tc,
}

/// How the driver varies the flow, see [`Load`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flows {
    /// A power of two.
    pub(crate) count: u32,
    pub(crate) stride: u32,
    /// Number of the first packet.
    pub(crate) first: u32,
}

/// What a test run says.
pub(crate) struct Outcome {
    /// Mean of all packets; the kernel rounds down to a whole nanosecond.
    pub(crate) nanoseconds: f64,
    /// Of the last packet.
    pub(crate) verdict: i32,
    /// The last packet, as the program left it.
    pub(crate) frame: Vec<u8>,
}

/// Both drivers and the empty programs, loaded.
pub(crate) struct Driver {
    ebpf: Ebpf,
}

impl Driver {
    pub(crate) fn new() -> Self {
        let mut ebpf = Ebpf::load(OBJECT).expect("maps need root");
        for (name, program) in ebpf.programs_mut() {
            match program {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                Program::CgroupSockAddr(program) => program.load(),
                _ => panic!("{name} has a type that nobody loads"),
            }
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        Self { ebpf }
    }

    /// A program that the bench attaches itself.
    pub(crate) fn program_mut(&mut self, name: &str) -> &mut Program {
        self.ebpf.program_mut(name).unwrap_or_else(|| panic!("no program {name}"))
    }

    /// One of the empty programs.
    pub(crate) fn empty(&self, name: &str) -> &Program {
        self.ebpf.program(name).unwrap_or_else(|| panic!("no program {name}"))
    }

    /// Runs `packets` frames through the empty program.
    pub(crate) fn run_empty(&mut self, hook: Hook, frame: &[u8], flows: Flows, packets: u32) -> Outcome {
        let name = match hook {
            Hook::Xdp => "empty_xdp",
            Hook::Tc => "empty_tc",
        };
        let target = fd(self.empty(name));
        self.run(hook, &target, frame, flows, packets)
    }

    /// Runs `packets` frames through a program.
    pub(crate) fn run(
        &mut self,
        hook: Hook,
        target: &ProgramFd,
        frame: &[u8],
        flows: Flows,
        packets: u32,
    ) -> Outcome {
        self.prepare(hook, target, frame, flows);
        let driver = match hook {
            Hook::Xdp => "drive_xdp",
            Hook::Tc => "drive_tc",
        };
        // A frame may come out inside another packet.
        let mut output = vec![0; FRAME_LENGTH + LONGEST_HEADER];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut output),
            repeat: packets,
            ..TestRunOptions::default()
        };
        let program = self.ebpf.program(driver).expect("in the object");
        let result = match hook {
            Hook::Xdp => <&Xdp>::try_from(program).expect("its type").test_run(options),
            Hook::Tc => <&SchedClassifier>::try_from(program).expect("its type").test_run(options),
        }
        .expect("BPF_PROG_TEST_RUN");
        Outcome {
            nanoseconds: result.duration.as_nanos() as f64,
            verdict: result.return_value as i32,
            frame: output,
        }
    }

    /// Sends frames through an XDP program as if they came from a link, and lets it send them.
    pub(crate) fn run_live(
        &mut self,
        target: &ProgramFd,
        frame: &[u8],
        flows: Flows,
        frames: u32,
        ifindex: u32,
    ) {
        /// Frames between two looks at the queues; the kernel's own default.
        const BATCH: u32 = 64;
        self.prepare(Hook::Xdp, target, frame, flows);
        // `struct xdp_md`: data, end, metadata, interface, queue, interface to leave by.
        let context: Vec<u8> =
            [0, FRAME_LENGTH as u32, 0, ifindex, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        let program: &Xdp =
            self.ebpf.program("drive_xdp").expect("in the object").try_into().expect("its type");
        program.test_run(options).expect("BPF_PROG_TEST_RUN with live frames");
    }

    /// Puts a program behind the driver of its kind, and the frame where the driver finds it.
    fn prepare(&mut self, hook: Hook, target: &ProgramFd, frame: &[u8], flows: Flows) {
        let mut load =
            Load { stride: flows.stride, mask: flows.count - 1, count: flows.first, ..Load::default() };
        assert_eq!(frame.len(), FRAME_LENGTH);
        for (word, bytes) in load.frame.iter_mut().zip(frame.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        self.array("load").set(0, load, 0).expect("one entry");
        let map = match hook {
            Hook::Xdp => "target_xdp",
            Hook::Tc => "target_tc",
        };
        let mut targets =
            ProgramArray::try_from(self.ebpf.map_mut(map).expect("in the object")).expect("its kind");
        targets.set(0, target, 0).expect("the driver's type");
    }

    fn array<V: Pod>(&mut self, name: &str) -> Array<&mut aya::maps::MapData, V> {
        Array::try_from(self.ebpf.map_mut(name).expect("in the object")).expect("its layout")
    }
}

/// A descriptor of a loaded program.
pub(crate) fn fd(program: &Program) -> ProgramFd {
    program.fd().and_then(|fd| Ok(fd.try_clone()?)).expect("it is loaded")
}
