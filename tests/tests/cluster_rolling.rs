//! A Deployment is rolled, again and again, while its Ingress is asked at a steady rate: by the cluster's own ingress, and
//! by one beside it that is replaced by its successor each time. Nobody asks in vain.

use std::{
    cell::RefCell,
    net::SocketAddr,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use weir_tests::{Cluster, Load, NODE_ADDRESS, Options, eventually, get};

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: echo
          image: weir.dev/echo:latest
          imagePullPolicy: Never
          readinessProbe: {httpGet: {path: /status/200, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  ingressClassName: weir
  rules:
    - host: web.example
      http:
        paths:
          - {path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}
";
const HOST: &str = "web.example";
/// How often everything is rolled.
const TURNS: usize = 3;
/// A client waits no longer.
const DEADLINE: Duration = Duration::from_secs(10);
/// A load that got fewer answers was not there all the time. Rolled in two seconds, it gets a hundred.
const ENOUGH: u32 = 10;

/// A process of `weir ingress` that takes over from the one before it.
struct Beside(RefCell<Child>);

impl Beside {
    const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(NODE_ADDRESS), 8080);

    /// Starts one and waits until it is it that serves.
    fn start(cluster: &Cluster) -> Result<Self> {
        let (data, run) = (cluster.data_dir(), cluster.run_dir());
        let kubeconfig = format!("--kubeconfig={}", data.join("kubeconfig/ingress.kubeconfig").display());
        let handover = format!("--handover={}", run.join("beside.sock").display());
        let words = [
            "ingress",
            &kubeconfig,
            &handover,
            "--http-address=0.0.0.0:8080",
            "--https-address=0.0.0.0:8443",
            "--metrics-address=127.0.0.1:18080",
            "--access-log=off",
            "--workers=1",
            "--log=warn",
        ];
        let mut command = cluster.weir(&words);
        let child = command.stdin(Stdio::null()).spawn().context("starting an ingress")?;
        Ok(Self(RefCell::new(child)))
    }

    /// Waits for its end, which comes when it has handed over.
    fn wait(self) -> Result<()> {
        let status = eventually("the ingress before has handed over", || {
            self.0.borrow_mut().try_wait()?.context("it runs")
        })?;
        ensure!(status.success(), "the ingress before: {status}");
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let child = self.0.get_mut();
        // One that was waited for is no more.
        if let Ok(None) = child.try_wait() {
            let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
            let _ = child.wait();
        }
    }
}

#[test]
fn nobody_asks_in_vain_while_deployments_roll_and_proxies_are_replaced() -> Result<()> {
    let cluster = Cluster::start(Options::from_environment()?)?;
    cluster.apply(WEB)?;
    cluster.kubectl(&["rollout", "status", "--timeout=60s", "deployment/web"])?;
    cluster.wait_for_200(HOST, "/", DEADLINE)?;
    let mut beside = Beside::start(&cluster)?;
    let serves = || {
        let answer = get(Beside::ADDRESS, HOST, "/", DEADLINE)?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.body);
        Ok(())
    };
    cluster.outside.run(|| eventually("the ingress beside serves", serves))?;

    let own = SocketAddr::from((NODE_ADDRESS, 80));
    let loads = [("own", own), ("beside", Beside::ADDRESS)]
        .map(|(name, address)| (name, Load::start(&cluster.outside, address, HOST, "/")));
    for turn in 0..TURNS {
        // As `rollout restart`, which may be asked for once in a second.
        let patch =
            format!(r#"{{"spec": {{"template": {{"metadata": {{"annotations": {{"turn": "{turn}"}}}}}}}}}}"#);
        cluster.kubectl(&["patch", "deployment/web", "-p", &patch])?;
        let next = Beside::start(&cluster)?;
        std::mem::replace(&mut beside, next).wait()?;
        cluster.kubectl(&["rollout", "status", "--timeout=60s", "deployment/web"])?;
    }
    for (name, load) in loads {
        let outcome = load.finish();
        eprintln!("{name}: {outcome}");
        ensure!(outcome.failed.is_empty() && outcome.succeeded >= ENOUGH, "{name}: {outcome}");
    }
    Ok(())
}
