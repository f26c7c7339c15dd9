//! The state behind the fakes.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use shoal_api::pb;
use shoal_api::status::ApiError;

/// One message of a watch, or how it breaks.
pub(crate) type Step = Result<pb::ServiceProgress, tonic::Status>;

/// Everything a test looks at or prepares.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) local: pb::LocalNode,
    pub(crate) cluster: pb::ClusterInfo,
    pub(crate) nodes: Vec<pb::NodeInfo>,
    pub(crate) networks: Vec<pb::NetworkInfo>,
    pub(crate) services: Vec<pb::ServiceInfo>,
    pub(crate) tasks: Vec<pb::TaskInfo>,
    pub(crate) tokens: Vec<pb::TokenInfo>,
    pub(crate) logs: Vec<pb::LogEntry>,
    /// What the node finds when it looks at itself.
    pub(crate) checks: Vec<pb::Check>,
    /// Calls that are refused, with what, in order; the call works again when its list is empty.
    pub(crate) refuse: BTreeMap<&'static str, VecDeque<tonic::Status>>,
    /// Scripts of watches in order; a watch without a script tells the present and ends.
    pub(crate) watches: VecDeque<Vec<Step>>,
    /// A watch goes silent after its script instead of ending.
    pub(crate) silent: bool,
    /// Requests that wanted to change something.
    pub(crate) created: Vec<pb::CreateServiceRequest>,
    pub(crate) updated: Vec<pb::UpdateServiceRequest>,
    pub(crate) request_ids: Vec<String>,
    pub(crate) cluster_requests: Vec<pb::UpdateClusterRequest>,
    pub(crate) inits: Vec<pb::InitRequest>,
    pub(crate) joins: Vec<pb::LocalJoinRequest>,
    pub(crate) leaves: Vec<pb::LeaveRequest>,
    pub(crate) token_requests: Vec<pb::CreateTokenRequest>,
    pub(crate) network_requests: Vec<pb::CreateNetworkRequest>,
    pub(crate) log_requests: Vec<pb::LogsRequest>,
}

/// A task as a watch shows it.
pub(crate) fn task(
    id: &str,
    name: &str,
    node: &str,
    desired: pb::DesiredState,
    state: pb::TaskState,
    message: &str,
) -> pb::TaskInfo {
    let number = name.rsplit_once('.').and_then(|(_, n)| n.parse().ok()).unwrap_or(1);
    pb::TaskInfo {
        id: id.into(),
        service: "svc1".into(),
        service_name: name.split('.').next().unwrap_or(name).into(),
        name: name.into(),
        slot: Some(pb::Slot { slot: Some(pb::slot::Slot::Number(number)) }),
        node_name: node.into(),
        desired: desired.into(),
        status: Some(pb::TaskStatus { state: state.into(), message: message.into(), ..Default::default() }),
        ..Default::default()
    }
}

/// A replicated service that has converged.
pub(crate) fn service(id: &str, name: &str, replicas: u32) -> pb::ServiceInfo {
    pb::ServiceInfo {
        id: id.into(),
        version: 7,
        spec: Some(pb::ServiceSpec {
            name: name.into(),
            mode: Some(pb::service_spec::Mode::Replicas(replicas)),
            task: Some(pb::TaskSpec {
                process: Some(pb::ProcessSpec {
                    command: ["python3", "-m", "http.server", "80"].map(String::from).to_vec(),
                    ..Default::default()
                }),
                stop_signal: 15,
                ..Default::default()
            }),
            ..Default::default()
        }),
        running: replicas,
        wanted: replicas,
        updated: replicas,
        converged: true,
        ..Default::default()
    }
}

/// A message of a watch of service `web`.
pub(crate) fn progress(running: u32, wanted: u32, tasks: Vec<pb::TaskInfo>) -> pb::ServiceProgress {
    let service = pb::ServiceInfo {
        running,
        updated: running,
        converged: running == wanted,
        ..service("svc1", "web", wanted)
    };
    pb::ServiceProgress { converged: service.converged, service: Some(service), tasks, gone: false }
}

impl World {
    /// A manager with an ingress network and one overlay.
    pub(crate) fn new(control: &Path) -> Self {
        let network = |id: &str, name: &str, subnet: &str, ingress| pb::NetworkInfo {
            id: id.into(),
            spec: Some(pb::NetworkSpec { name: name.into(), ..Default::default() }),
            vni: 4097,
            subnet4: subnet.into(),
            subnet6: "fd53::/64".into(),
            ingress,
            addresses_used: 3,
            addresses_total: 4093,
            ..Default::default()
        };
        Self {
            local: pb::LocalNode {
                version: "0.1.0".into(),
                membership: pb::Membership::Active.into(),
                node_id: "4kq2aaaaaaaaaaaaaaaaaaaaa".into(),
                node_name: "n1".into(),
                cluster_id: "c1".into(),
                cluster_name: "otter".into(),
                role: pb::NodeRole::Manager.into(),
                control_socket: control.display().to_string(),
                connected: true,
                ..Default::default()
            },
            networks: vec![
                network("neti", "ingress", "10.255.0.0/16", true),
                network("neta", "app", "10.9.0.0/20", false),
            ],
            ..Default::default()
        }
    }

    /// Refuses the next call of that name.
    pub(crate) fn refuse(&mut self, call: &'static str, error: ApiError) {
        self.refuse.entry(call).or_default().push_back(error.into());
    }

    /// The refusal prepared for a call.
    pub(crate) fn check(&mut self, call: &str) -> Result<(), tonic::Status> {
        self.refuse.get_mut(call).and_then(VecDeque::pop_front).map_or(Ok(()), Err)
    }
}
