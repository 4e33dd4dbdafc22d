//! What is loaded, where it is attached, and what the programs know of their node.

use serde::Serialize;
use weir_dataplane_ebpf::{LAYOUT_VERSION, NodeConfig, Uplink};

use super::{CliError, Output, json, table};
use crate::{
    kernel::{
        attach,
        maps::{Family as _, Maps},
        xdp::Mode,
    },
    paths::Paths,
};

/// One attachment.
#[derive(Clone, Debug, Serialize)]
pub struct LinkRow {
    /// Name of its pin.
    pub link: String,
    /// How it is attached: `tcx`, `clsact`, `xdp` or `cgroup`.
    pub mode: &'static str,
}

/// One link to the outside.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UplinkRow {
    /// Its name.
    pub name: String,
    /// Where its XDP program runs: `native`, `generic` or `none`.
    pub xdp: &'static str,
    /// The source of what is sent to other nodes in a client's stead, IPv4.
    pub address_v4: String,
    /// The same, IPv6.
    pub address_v6: String,
}

/// What is loaded.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the maps' layout.
    pub layout: u32,
    /// The node's address in the pod network, IPv4.
    pub gateway_v4: String,
    /// The same, IPv6.
    pub gateway_v6: String,
    /// Socket hooks translate.
    pub socket_lb: bool,
    /// Pods' packets to the outside leave with an uplink's address, IPv4.
    pub masquerade_v4: bool,
    /// The same, IPv6.
    pub masquerade_v6: bool,
    /// Links to the outside.
    pub uplinks: Vec<UplinkRow>,
    /// Pinned programs.
    pub programs: Vec<String>,
    /// Attachments.
    pub links: Vec<LinkRow>,
}

/// Reads and prints it.
pub(super) fn status(maps: &Maps, paths: &Paths, output: Output) -> Result<String, CliError> {
    let config = maps.node_config.at(0)?;
    let status = Status {
        layout: LAYOUT_VERSION,
        gateway_v4: config.gateway_v4.ip().to_string(),
        gateway_v6: config.gateway_v6.ip().to_string(),
        socket_lb: config.flags & NodeConfig::FLAG_SOCKET_LB != 0,
        masquerade_v4: config.flags & NodeConfig::FLAG_MASQUERADE_V4 != 0,
        masquerade_v6: config.flags & NodeConfig::FLAG_MASQUERADE_V6 != 0,
        uplinks: uplinks(maps, paths)?,
        programs: attach::list(&paths.programs())?,
        links: links(paths)?,
    };
    Ok(match output {
        Output::Json => json(&status),
        Output::Table => table(&["WHAT", "VALUE"], &rows(status)),
    })
}

fn links(paths: &Paths) -> Result<Vec<LinkRow>, CliError> {
    let pins = attach::list(&paths.links())?.into_iter();
    Ok(pins.map(|link| LinkRow { mode: attach::mode(&paths.link(&link)), link }).collect())
}

fn uplinks(maps: &Maps, paths: &Paths) -> Result<Vec<UplinkRow>, CliError> {
    let mut found = maps.uplinks.entries()?;
    found.sort_by_key(|(index, _)| *index);
    let row = |(index, uplink): (u32, Uplink)| UplinkRow {
        name: interface_name(index),
        xdp: Mode::ALL
            .into_iter()
            .find(|mode| paths.link(&mode.pin(index)).exists())
            .map_or("none", Mode::name),
        address_v4: uplink.address_v4.ip().to_string(),
        address_v6: uplink.address_v6.ip().to_string(),
    };
    Ok(found.into_iter().map(row).collect())
}

/// The name of an interface, or its number when it is gone.
pub(super) fn interface_name(index: u32) -> String {
    let name = nix::net::if_::if_indextoname(index).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("interface {index}"))
}

fn on(is: bool) -> &'static str {
    if is { "on" } else { "off" }
}

fn rows(status: Status) -> Vec<Vec<String>> {
    let mut rows = vec![
        vec!["layout".into(), status.layout.to_string()],
        vec!["gateway".into(), format!("{}, {}", status.gateway_v4, status.gateway_v6)],
        vec!["socket load balancing".into(), on(status.socket_lb).into()],
        vec![
            "masquerade".into(),
            format!("IPv4 {}, IPv6 {}", on(status.masquerade_v4), on(status.masquerade_v6)),
        ],
        vec!["programs".into(), status.programs.join(", ")],
    ];
    rows.extend(status.uplinks.into_iter().map(|uplink| {
        let UplinkRow { name, xdp, address_v4, address_v6 } = uplink;
        vec!["uplink".into(), format!("{name}: {address_v4}, {address_v6}, XDP {xdp}")]
    }));
    let row = |link: LinkRow| vec!["attached".into(), format!("{} ({})", link.link, link.mode)];
    rows.extend(status.links.into_iter().map(row));
    rows
}
