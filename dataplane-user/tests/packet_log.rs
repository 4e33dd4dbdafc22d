//! What the programs say about packets that they drop.

mod packets;

use std::sync::{Arc, Mutex};

use packets::{
    Dataplane, Program,
    frame::{SYN, TCP, tcp},
};
use weir_dataplane_ebpf::{Ip4, Ip6, Scope};

/// Keeps lines.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

/// Runs a SYN to a service without backends through `tc_pod`, in both families.
fn lines_of(mut dataplane: Dataplane) -> Vec<String> {
    dataplane.service::<Ip4>(Scope::INTERNAL, TCP, "10.96.0.1:80", &[], true);
    dataplane.service::<Ip6>(Scope::INTERNAL, TCP, "[fd00:96::1]:80", &[], true);
    let lines = Lines::default();
    let mut log = dataplane.packet_log(lines.clone());
    for frame in [tcp("10.244.0.5:40000", "10.96.0.1:80"), tcp("[fd00:244::5]:40000", "[fd00:96::1]:80")] {
        dataplane.run(Program::TcPod, &frame.flags(SYN).bytes());
    }
    log.flush();
    let lines = lines.0.lock().unwrap();
    lines.clone()
}

#[test]
fn a_dropped_packet_is_one_line_with_its_tuple_and_the_reason() {
    let lines = lines_of(Dataplane::with_packet_log());
    let [v4, v6] = &lines[..] else { panic!("{lines:?}") };
    assert!(
        v4.starts_with("dropped: no-backend, protocol 6, 10.244.0.5:40000 to 10.96.0.1:80, interface "),
        "{v4}"
    );
    assert!(
        v6.starts_with("dropped: no-backend, protocol 6, fd00:244::5:40000 to fd00:96::1:80, interface "),
        "{v6}"
    );
}

#[test]
fn without_the_log_nothing_is_said() {
    assert_eq!(lines_of(Dataplane::new()), Vec::<String>::new());
}
