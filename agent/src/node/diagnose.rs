//! `shoal doctor` on this node.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use shoal_api::pb;
use shoal_api::status::ApiError;
use shoal_types::ErrorCode;
use tonic::Status;

use super::Node;
use super::address::CONTROL_PORT;
use super::preflight::{no_data_plane, preflight};
use crate::cleanup;
use crate::doctor::{self, look};
use crate::reconciler::now;

impl Node {
    /// Looks at the host, and at the membership if there is one.
    pub async fn diagnose(&self, request: pb::DiagnoseRequest) -> Result<pb::Diagnosis, Status> {
        let mut managers = request.peers.iter().map(|text| peer(text)).collect::<Result<BTreeSet<_>, _>>()?;
        let config = Arc::clone(&self.config);
        let mut checks = tokio::task::spawn_blocking(move || look::host(&config))
            .await
            .map_err(|_| Status::internal("shoald failed; see its log"))?;
        // Whoever joins or leaves has it: what is tried below must not meet that.
        match self.member.try_lock() {
            Err(_) => checks.push(doctor::warn(
                "membership",
                "the node is joining or leaving, or taking up its membership",
                "look again when that is done",
            )),
            Ok(member) if member.is_none() => checks.extend(self.without_membership().await),
            Ok(_) => checks.extend(self.with_membership().await),
        }
        if let Some(record) = &*self.record.load() {
            managers.extend(&record.managers);
        }
        let managers = look::managers(managers.into_iter().collect());
        let (managers, peers) = tokio::join!(managers, self.with_peers());
        checks.extend(peers);
        checks.extend(managers);
        Ok(pb::Diagnosis { checks })
    }

    async fn without_membership(&self) -> Vec<pb::Check> {
        let leftovers = match cleanup::leftovers(&self.config).await {
            Ok(found) => {
                let own = [self.config.api_socket().display().to_string()];
                let found: Vec<String> = found.into_iter().filter(|object| !own.contains(object)).collect();
                doctor::leftovers(&found)
            }
            Err(error) => doctor::unseen("leftovers", &error),
        };
        // After it, as this makes pins, which it takes away again.
        let tried = preflight(&self.config).await;
        let able = match tried.and_then(|trial| trial.end().map_err(|error| no_data_plane(&error))) {
            Ok(()) => {
                doctor::ok("data-plane", "VXLAN, nftables and the programs work: this host can join a swarm")
            }
            Err(error) => doctor::fail("data-plane", error.message, error.help),
        };
        let mut checks = vec![leftovers, able];
        checks.extend(look::overlay(None).await);
        checks
    }

    async fn with_membership(&self) -> Vec<pb::Check> {
        let info = self.info();
        let mut checks = doctor::membership(&info);
        checks.push(doctor::maps(&info.maps));
        checks.push(doctor::certificate(&info, now().0));
        checks.push(look::sysctls());
        checks.push(doctor::published_ports(&info.shadowed));
        let data_addr = self.record.load().as_ref().map(|record| record.data_addr);
        checks.extend(look::overlay(data_addr).await);
        checks
    }
}

impl Node {
    /// Asks the other members through the tunnels.
    async fn with_peers(&self) -> Vec<pb::Check> {
        let probes = &self.stats.probes;
        if self.membership.load(Ordering::Relaxed) != i32::from(pb::Membership::Active) {
            return Vec::new();
        }
        let Some((reports, left_out)) = probes.check().await else {
            let why = probes.trouble().unwrap_or_else(|| "the probes were not over in time".to_owned());
            return vec![doctor::unseen("tunnels", &why)];
        };
        let mut checks = doctor::tunnels(&reports, left_out, |report| probes.told(report));
        checks.extend(doctor::clocks(&reports));
        checks
    }
}

fn peer(text: &str) -> Result<SocketAddr, Status> {
    let parsed = text.parse().or_else(|_| text.parse().map(|ip| SocketAddr::new(ip, CONTROL_PORT)));
    parsed.map_err(|_| {
        ApiError::new(ErrorCode::InvalidField, format!("peers: '{text}' is no address"))
            .with_help("give it as ADDRESS or ADDRESS:PORT, as 10.0.3.11:7377")
            .into()
    })
}
