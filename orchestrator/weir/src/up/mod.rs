//! `weir up`: a one-node cluster, every role a process of its own.

mod config;
mod lock;
mod preflight;
mod roles;
mod supervisor;

use std::{fs, time::Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::{
    core::v1::Node,
    networking::v1::{IngressClass, IngressClassSpec},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::wait::await_condition,
};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use self::{
    config::Config,
    supervisor::{Places, Supervised},
};
use crate::role::{end_on_signals, install_tls_provider};

pub(crate) use self::config::Flags;

/// The class that this cluster's own ingress serves.
const INGRESS_CLASS: &str = "weir";
/// The controller name that marks it.
const INGRESS_CONTROLLER: &str = "weir.dev/ingress";

/// Runs until Ctrl-C, then takes everything down again.
pub(crate) fn main(flags: Flags) -> Result<()> {
    let config = Config::read(flags)?;
    let mut lock = preflight::check(&config)?;
    install_tls_provider();
    roles::enter_cgroup(&config)?;
    lock.begin();

    // One thread: children must be started by the thread that lives as long as the process.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = LocalSet::new().block_on(&runtime, run(&config));
    if config.keep {
        println!("weir up: pods and traffic keep running; the next weir up takes them over");
        return outcome;
    }
    let cleaned = runtime.block_on(roles::clean_up(&config));
    outcome.and(cleaned)
}

async fn run(config: &Config) -> Result<()> {
    let started = Instant::now();
    let milestone = |what: &str| println!("weir up: {what} ({:.2} s)", started.elapsed().as_secs_f32());

    let shutdown = CancellationToken::new();
    end_on_signals(shutdown.clone())?;

    let places = Places { logs: config.data_dir.join("roles"), sockets: config.run_dir.join("roles") };
    for dir in [&places.logs, &places.sockets] {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }

    let mut apiserver = Supervised::start(roles::apiserver(config), &places)?;
    let mut clients = Vec::new();
    let started_up = async {
        apiserver.ready().await?;
        milestone(&format!("API server on port {}", config.api_port));
        milestone(&format!("kubeconfig: {}", config.kubeconfig("admin").display()));

        for role in roles::clients(config) {
            clients.push(Supervised::start(role, &places)?);
        }
        let client = admin_client(config).await?;
        ensure_ingress_class(&client).await?;
        await_condition(Api::<Node>::all(client), &config.node_name, is_ready).await?;
        milestone(&format!("node {} is ready", config.node_name));
        for role in &mut clients {
            role.ready().await?;
        }
        milestone(&format!("ingress on http://{} and https://{}", config.ingress_http, config.ingress_https));
        milestone("all roles run; Ctrl-C ends them");
        anyhow::Ok(())
    };
    let outcome = tokio::select! {
        outcome = started_up => outcome,
        () = shutdown.cancelled() => Ok(()),
    };
    if outcome.is_ok() {
        shutdown.cancelled().await;
    }

    println!("weir up: ending");
    futures::future::join_all(clients.into_iter().map(Supervised::end)).await;
    apiserver.end().await;
    outcome
}

async fn admin_client(config: &Config) -> Result<Client> {
    let file = Kubeconfig::read_from(config.kubeconfig("admin"))?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Makes the class that `spec.ingressClassName: weir` names, and the default one.
async fn ensure_ingress_class(client: &Client) -> Result<()> {
    let default = ("ingressclass.kubernetes.io/is-default-class".to_owned(), "true".to_owned());
    let class = IngressClass {
        metadata: ObjectMeta {
            name: Some(INGRESS_CLASS.to_owned()),
            annotations: Some([default].into()),
            ..ObjectMeta::default()
        },
        spec: Some(IngressClassSpec { controller: Some(INGRESS_CONTROLLER.to_owned()), parameters: None }),
    };
    match Api::all(client.clone()).create(&PostParams::default(), &class).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(error).context("making the ingress class"),
    }
}

fn is_ready(node: Option<&Node>) -> bool {
    node.and_then(|node| node.status.as_ref()?.conditions.as_ref())
        .is_some_and(|conditions| conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}
