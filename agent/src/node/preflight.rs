//! What the host must have, asked before anything is changed.

use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::LinkVxlan;
use shoal_api::status::ApiError;
use shoal_types::ErrorCode;

use crate::config::Config;
use crate::drivers::bpf::{BpfError, Trial};
use crate::drivers::egress::Egress;
use crate::drivers::link::{Nl, Writes};
use crate::netns::Netns;
use crate::reconciler::chain;

fn lacks(what: &str, error: &dyn std::error::Error, help: &str) -> ApiError {
    ApiError::new(ErrorCode::Preflight, format!("{what}: {}", chain(error))).with_help(help)
}

/// Whether the host has all a member needs. A host that is refused afterwards keeps nothing of the data plane, which was
/// loaded to see whether it does.
pub async fn preflight(config: &Config) -> Result<Trial, ApiError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(ApiError::new(ErrorCode::Preflight, "shoald does not run as root")
            .with_help("start it by its unit, or as root"));
    }
    vxlan().await?;
    Egress::probe().await.map_err(|error| lacks("no nftables", &error, "install the package nftables"))?;
    Trial::load(config.data_plane()).map_err(|error| no_data_plane(&error))
}

/// The data plane could not be loaded, or not be taken away.
pub(super) fn no_data_plane(error: &BpfError) -> ApiError {
    lacks(
        "the data plane does not load",
        error,
        "it needs a kernel of 5.15 or later with BPF, and a bpffs at --bpf-dir",
    )
}

/// Makes a VXLAN device where it bothers nobody.
async fn vxlan() -> Result<(), ApiError> {
    let help = "load the kernel module vxlan";
    let netns = Netns::anonymous()
        .map_err(|error| lacks("no network namespaces", &error, "the kernel needs CONFIG_NET_NS"))?;
    let connection = netns.netlink().map_err(|error| lacks("no netlink", &error, help))?;
    let nl = Nl::new(connection.handle(), &Writes::default());
    let message = LinkVxlan::new("probe", 1).port(7378).build();
    let made = nl.create("make a VXLAN device", RouteNetlinkMessage::NewLink(message)).await;
    connection.close().await;
    made.map_err(|error| lacks("no VXLAN", &error, help))
}
