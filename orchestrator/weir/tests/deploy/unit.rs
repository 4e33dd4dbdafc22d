//! The dataplane's units under a real systemd.

use std::{fs, net::SocketAddr};

use weir_tests::{eventually, get};

use super::systemd::Systemd;
use crate::{CLUSTER_IP, Machine, NODE, NODE_ADDRESS, NODE_PORT, PATIENCE, bits, greet, manifest};

/// A service of the node that asks another, by the address that is to follow.
const ASK: &str = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nType=oneshot\nStandardOutput=truncate:/run/answer\n\
                   ExecStart=curl -sS --max-time 5 http://";

/// A process of the node, where socket hooks see it; and a client outside, by the NodePort.
fn is_served(machine: &Machine, systemd: &Systemd) {
    eventually("the ClusterIP from the node", || {
        systemd.systemctl("start ask")?;
        let said = systemd.run("cat", "/run/answer")?;
        anyhow::ensure!(said == "hello", "{said}");
        Ok(())
    })
    .unwrap();
    eventually("the NodePort from outside", || {
        let address = SocketAddr::from((NODE_ADDRESS, NODE_PORT));
        let answer = machine.client.run(|| get(address, "hello", "/", PATIENCE))?;
        anyhow::ensure!(answer.body == "hello", "{answer:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn the_units_serve_and_what_they_pinned_does_between_two_agents() {
    let machine = Machine::new();
    machine.node.ip("route add default via 192.0.2.2 dev up0").unwrap();
    let kubeconfig = machine.directory.path().join("agent.kubeconfig");
    let systemd = Systemd::boot(&machine.node, &[(&kubeconfig, "/etc/weir/dataplane.kubeconfig")]);
    systemd.run("hostname", NODE).unwrap();
    systemd.write("/etc/systemd/system/ask.service", &format!("{ASK}{CLUSTER_IP}/\n")).unwrap();
    machine.serve(NODE_ADDRESS);
    greet(&machine.node);

    assert_eq!(machine.forwarding(), "0");
    systemd.systemctl("enable --now weir-dataplane").unwrap();
    assert_eq!(machine.forwarding(), "1");
    assert_eq!(systemd.property("run-weir-bpf.mount", "ActiveState"), "active");
    assert_eq!(systemd.run("stat", "--file-system --format=%T /run/weir/bpf").unwrap(), "bpf_fs");
    machine.is_ready(&manifest::unit_flags());
    let process = systemd.property("weir-dataplane", "MainPID");
    let status = systemd.run("cat", &format!("/proc/{process}/status")).unwrap();
    let all = format!("{:016x}", bits(&manifest::unit_capabilities()));
    for (field, wanted) in [("CapEff", all.as_str()), ("CapBnd", &all), ("NoNewPrivs", "1"), ("Seccomp", "2")]
    {
        let line = format!("{field}:\t{wanted}");
        assert!(status.lines().any(|it| it == line), "{line} is not in {status}");
    }
    is_served(&machine, &systemd);

    systemd.systemctl("stop weir-dataplane").unwrap();
    assert_eq!(systemd.property("weir-dataplane", "Result"), "success");
    is_served(&machine, &systemd);
    systemd.systemctl("start weir-dataplane").unwrap();
    systemd.systemctl("kill --signal=KILL weir-dataplane").unwrap();
    eventually("it is started again", || {
        let [state, restarts] = ["SubState", "NRestarts"].map(|it| systemd.property("weir-dataplane", it));
        anyhow::ensure!(state == "running" && restarts == "1", "{state} after {restarts}");
        Ok(())
    })
    .unwrap();
    is_served(&machine, &systemd);
}

#[test]
fn it_is_tried_again_until_it_can_start() {
    let machine = Machine::new();
    let systemd = Systemd::boot(&machine.node, &[]);
    systemd.run("hostname", NODE).unwrap();
    // As on a machine whose kubeconfig comes later.
    systemd.systemctl("start weir-dataplane").unwrap_err();
    eventually("more starts than systemd allows by itself", || {
        let [state, restarts] = ["SubState", "NRestarts"].map(|it| systemd.property("weir-dataplane", it));
        anyhow::ensure!(state == "auto-restart" && restarts.parse::<u32>()? > 5, "{state} after {restarts}");
        Ok(())
    })
    .unwrap();
    let kubeconfig = fs::read_to_string(machine.directory.path().join("agent.kubeconfig")).unwrap();
    systemd.write("/etc/weir/dataplane.kubeconfig", &kubeconfig).unwrap();
    machine.is_ready(&manifest::unit_flags());
}
