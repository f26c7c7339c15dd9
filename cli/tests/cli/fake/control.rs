//! The manager's socket.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use shoal_api::pb;
use shoal_api::pb::control_server::Control;
use shoal_api::status::ApiError;
use shoal_types::ErrorCode;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::World;
use super::node::in_a_day;
use super::world::Step;

pub(super) struct FakeControl(pub(super) Arc<Mutex<World>>);

type Answer<T> = Result<Response<T>, Status>;
type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn no_such(kind: &str, target: &str) -> Status {
    ApiError::new(ErrorCode::NotFound, format!("no {kind} '{target}'")).into()
}

impl FakeControl {
    /// The state, unless the call is to be refused.
    fn enter(&self, call: &str, request_id: Option<&str>) -> Result<MutexGuard<'_, World>, Status> {
        let mut world = self.0.lock().unwrap();
        world.request_ids.extend(request_id.map(str::to_owned));
        world.check(call)?;
        Ok(world)
    }
}

fn find_service(world: &World, target: &str) -> Result<usize, Status> {
    let fits =
        |s: &pb::ServiceInfo| s.id == target || s.spec.as_ref().is_some_and(|spec| spec.name == target);
    world.services.iter().position(fits).ok_or_else(|| no_such("service", target))
}

#[tonic::async_trait]
impl Control for FakeControl {
    async fn get_cluster(&self, _: Request<pb::Empty>) -> Answer<pb::ClusterInfo> {
        Ok(Response::new(self.enter("get_cluster", None)?.cluster.clone()))
    }

    async fn update_cluster(&self, request: Request<pb::UpdateClusterRequest>) -> Answer<pb::ClusterInfo> {
        let request = request.into_inner();
        let mut world = self.enter("update_cluster", Some(&request.request_id))?;
        let after = pb::ClusterInfo { lb_engine: request.lb_engine.clone(), ..world.cluster.clone() };
        if !request.dry_run {
            world.cluster = after.clone();
        }
        world.cluster_requests.push(request);
        Ok(Response::new(after))
    }

    async fn list_nodes(&self, _: Request<pb::Empty>) -> Answer<pb::NodeList> {
        Ok(Response::new(pb::NodeList { nodes: self.enter("list_nodes", None)?.nodes.clone() }))
    }

    async fn update_node(&self, request: Request<pb::UpdateNodeRequest>) -> Answer<pb::NodeInfo> {
        let request = request.into_inner();
        let mut world = self.enter("update_node", Some(&request.request_id))?;
        let at = world.nodes.iter().position(|n| n.id == request.target);
        let at = at.ok_or_else(|| no_such("node", &request.target))?;
        let mut after = world.nodes[at].clone();
        if request.availability() != pb::Availability::Unspecified {
            after.availability = request.availability;
        }
        if request.weight.is_some() {
            after.weight = request.weight;
        }
        request.labels_remove.iter().for_each(|key| drop(after.labels.remove(key)));
        after.labels.extend(request.labels_add);
        if !request.dry_run {
            world.nodes[at] = after.clone();
        }
        if request.weight == Some(0) {
            after.notes.push(format!("service 'web' takes no new connection: {}", after.name));
        }
        Ok(Response::new(after))
    }

    async fn remove_node(&self, request: Request<pb::RemoveNodeRequest>) -> Answer<pb::ObjectRef> {
        let request = request.into_inner();
        let mut world = self.enter("remove_node", Some(&request.request_id))?;
        let at = world.nodes.iter().position(|n| n.name == request.target);
        let at = at.ok_or_else(|| no_such("node", &request.target))?;
        let node = if request.dry_run { world.nodes[at].clone() } else { world.nodes.remove(at) };
        Ok(Response::new(pb::ObjectRef { id: node.id, name: node.name }))
    }

    async fn create_network(&self, request: Request<pb::CreateNetworkRequest>) -> Answer<pb::NetworkInfo> {
        let request = request.into_inner();
        let mut world = self.enter("create_network", Some(&request.request_id))?;
        let info = pb::NetworkInfo { id: "netnew".into(), spec: request.spec.clone(), ..Default::default() };
        if !request.dry_run {
            world.networks.push(info.clone());
        }
        world.network_requests.push(request);
        Ok(Response::new(info))
    }

    async fn list_networks(&self, _: Request<pb::Empty>) -> Answer<pb::NetworkList> {
        Ok(Response::new(pb::NetworkList { networks: self.enter("list_networks", None)?.networks.clone() }))
    }

    async fn remove_network(&self, request: Request<pb::RemoveRequest>) -> Answer<pb::ObjectRef> {
        let request = request.into_inner();
        let mut world = self.enter("remove_network", Some(&request.request_id))?;
        let fits = |n: &pb::NetworkInfo| n.spec.as_ref().is_some_and(|spec| spec.name == request.target);
        let at = world.networks.iter().position(fits).ok_or_else(|| no_such("network", &request.target))?;
        let network = world.networks.remove(at);
        Ok(Response::new(pb::ObjectRef { id: network.id, name: request.target }))
    }

    async fn create_service(&self, request: Request<pb::CreateServiceRequest>) -> Answer<pb::ServiceInfo> {
        let request = request.into_inner();
        let mut world = self.enter("create_service", Some(&request.request_id))?;
        let spec = request.spec.clone().unwrap();
        let info = pb::ServiceInfo {
            ports: published(&spec),
            spec: Some(spec.clone()),
            ..super::service("svc1", &spec.name, 1)
        };
        if !request.dry_run {
            world.services.push(info.clone());
        }
        world.created.push(request);
        Ok(Response::new(info))
    }

    async fn update_service(&self, request: Request<pb::UpdateServiceRequest>) -> Answer<pb::ServiceInfo> {
        let request = request.into_inner();
        let mut world = self.enter("update_service", Some(&request.request_id))?;
        let at = find_service(&world, &request.target)?;
        let mut info = world.services[at].clone();
        info.spec.clone_from(&request.spec);
        info.ports = published(request.spec.as_ref().unwrap());
        if !request.dry_run {
            world.services[at] = info.clone();
        }
        world.updated.push(request);
        Ok(Response::new(info))
    }

    async fn scale_service(&self, request: Request<pb::ScaleServiceRequest>) -> Answer<pb::ServiceInfo> {
        let request = request.into_inner();
        let mut world = self.enter("scale_service", Some(&request.request_id))?;
        let at = find_service(&world, &request.target)?;
        if !request.dry_run {
            let name = world.services[at].spec.clone().unwrap().name;
            let id = world.services[at].id.clone();
            world.services[at] = super::service(&id, &name, request.replicas);
        }
        Ok(Response::new(world.services[at].clone()))
    }

    async fn remove_service(&self, request: Request<pb::RemoveRequest>) -> Answer<pb::ObjectRef> {
        let request = request.into_inner();
        let mut world = self.enter("remove_service", Some(&request.request_id))?;
        let at = find_service(&world, &request.target)?;
        let info = if request.dry_run { world.services[at].clone() } else { world.services.remove(at) };
        Ok(Response::new(pb::ObjectRef { id: info.id, name: info.spec.unwrap().name }))
    }

    async fn list_services(&self, _: Request<pb::Empty>) -> Answer<pb::ServiceList> {
        Ok(Response::new(pb::ServiceList { services: self.enter("list_services", None)?.services.clone() }))
    }

    async fn list_tasks(&self, request: Request<pb::ListTasksRequest>) -> Answer<pb::TaskList> {
        let request = request.into_inner();
        let world = self.enter("list_tasks", None)?;
        if !request.service.is_empty() {
            find_service(&world, &request.service)?;
        }
        let fits = |t: &&pb::TaskInfo| {
            (request.service.is_empty() || t.service_name == request.service)
                && (request.node.is_empty() || t.node == request.node || t.node_name == request.node)
        };
        Ok(Response::new(pb::TaskList { tasks: world.tasks.iter().filter(fits).cloned().collect() }))
    }

    type WatchServiceStream = Messages<pb::ServiceProgress>;

    async fn watch_service(
        &self,
        request: Request<pb::WatchServiceRequest>,
    ) -> Answer<Self::WatchServiceStream> {
        let target = request.into_inner().target;
        let mut world = self.enter("watch_service", None)?;
        let silent = world.silent;
        let steps = match world.watches.pop_front() {
            Some(steps) => steps,
            None => present(&world, &target)?,
        };
        let script = tokio_stream::iter(steps);
        if silent {
            return Ok(Response::new(Box::pin(script.chain(tokio_stream::pending()))));
        }
        Ok(Response::new(Box::pin(script)))
    }

    type ServiceLogsStream = Messages<pb::LogEntry>;

    async fn service_logs(&self, request: Request<pb::LogsRequest>) -> Answer<Self::ServiceLogsStream> {
        let mut world = self.enter("service_logs", None)?;
        world.log_requests.push(request.into_inner());
        let entries: Vec<_> = world.logs.iter().cloned().map(Ok).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(entries))))
    }

    async fn create_token(&self, request: Request<pb::CreateTokenRequest>) -> Answer<pb::TokenSecret> {
        let request = request.into_inner();
        let mut world = self.enter("create_token", Some(&request.request_id))?;
        let info = pb::TokenInfo {
            id: "tok1".into(),
            role: request.role,
            expires_at_ms: in_a_day(),
            uses_left: Some(request.uses).filter(|n| *n > 0),
            created_at_ms: in_a_day() - 86_400_000,
        };
        world.tokens.push(info);
        world.token_requests.push(request);
        Ok(Response::new(pb::TokenSecret {
            info: world.tokens.last().cloned(),
            token: "SHOAL-1-digest-tok1-secret".into(),
            manager_addrs: vec!["10.0.3.11:7377".into()],
        }))
    }

    async fn list_tokens(&self, _: Request<pb::Empty>) -> Answer<pb::TokenList> {
        Ok(Response::new(pb::TokenList { tokens: self.enter("list_tokens", None)?.tokens.clone() }))
    }

    async fn remove_token(&self, request: Request<pb::RemoveRequest>) -> Answer<pb::ObjectRef> {
        let request = request.into_inner();
        let mut world = self.enter("remove_token", Some(&request.request_id))?;
        let at = world.tokens.iter().position(|t| t.id == request.target);
        let token = world.tokens.remove(at.ok_or_else(|| no_such("token", &request.target))?);
        Ok(Response::new(pb::ObjectRef { id: token.id, name: String::new() }))
    }
}

/// What a watch without a script says: the present; gone when there is no such service.
fn present(world: &World, target: &str) -> Result<Vec<Step>, Status> {
    let info = world.services[find_service(world, target)?].clone();
    let name = info.spec.clone().unwrap().name;
    let (desired, state) = (pb::DesiredState::Running, pb::TaskState::Running);
    let task = |n: u32| super::task(&format!("{name}{n}"), &format!("{name}.{n}"), "n1", desired, state, "");
    let tasks = (1..=info.wanted).map(task).collect();
    Ok(vec![Ok(pb::ServiceProgress { converged: info.converged, service: Some(info), tasks, gone: false })])
}

/// What a spec's ports become: 30000 where none was asked for.
fn published(spec: &pb::ServiceSpec) -> Vec<pb::PublishedPort> {
    let one = |p: &pb::PortSpec| pb::PublishedPort {
        protocol: p.protocol,
        published: if p.published == 0 { 30_000 } else { p.published },
        target: p.target,
        mode: p.mode,
        ip: p.ip.clone(),
        proxy: p.proxy,
        dsr: p.dsr,
    };
    spec.ports.iter().map(one).collect()
}
