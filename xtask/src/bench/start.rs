//! How long a cluster takes to serve, and what it weighs.

use std::{fs, time::Duration};

use anyhow::Result;
use weir_tests::{Cluster, Options, Row};

use crate::{
    build::{self, Profile},
    image, root, setup,
};

/// Starts that are measured, each of a fresh cluster.
const RUNS: usize = 5;
/// No start takes longer.
const DEADLINE: Duration = Duration::from_secs(30);

/// Measures from `weir up` to the first 200 through the ingress, `kubectl apply` included, and the memory then.
pub(super) fn measure() -> Result<Vec<Row>> {
    setup::run()?;
    let weir = build::weir(Profile::Release)?;
    let image = image::echo()?;
    let example = fs::read_to_string(root().join("examples/shop.yaml"))?;

    let (mut first_200_ms, mut pss_mib) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let options = Options { weir: weir.clone(), images: vec![image.clone()], flags: Vec::new() };
        let mut cluster = Cluster::prepare(options)?;
        cluster.up()?;
        cluster.wait_for_line("API server on port")?;
        cluster.apply(&example)?;
        cluster.wait_for_200("shop.example", "/", DEADLINE)?;
        first_200_ms.push(cluster.started.elapsed().as_secs_f64() * 1e3);
        pss_mib.push(cluster.pss_bytes()? as f64 / f64::from(1 << 20));
        cluster.down()?;
    }
    Ok(vec![Row::of("first_200", "ms", &first_200_ms), Row::of("pss", "MiB", &pss_mib)])
}
