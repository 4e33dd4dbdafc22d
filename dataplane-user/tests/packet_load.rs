//! The kernel's verifier takes every program.

use weir_dataplane::programs::{self, MAPS, Options, SOCKET_HOOKS, TC_POD, TC_UPLINK, XDP_UPLINK};

/// Small maps: the bounds of the real ones are memory that a test has no use for.
const SMALL: &[(&str, u32)] = &[("flows_v4", 64), ("flows_v6", 64), ("maglev", 256)];

#[test]
fn every_program_loads() {
    let ebpf = programs::load(&Options { max_entries: SMALL, ..Options::default() })
        .expect("needs root and a kernel with BTF");
    let loaded: Vec<&str> = ebpf.programs().map(|(name, _)| name).collect();
    for name in [XDP_UPLINK, TC_UPLINK, TC_POD].iter().chain(&SOCKET_HOOKS) {
        assert!(loaded.contains(name), "{name} is not in the object: {loaded:?}");
    }
    let maps: Vec<&str> = ebpf.maps().map(|(name, _)| name).collect();
    for name in MAPS {
        assert!(maps.contains(&name), "{name} is not in the object: {maps:?}");
    }
}
