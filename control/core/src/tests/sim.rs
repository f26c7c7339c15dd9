//! A cluster without machines: the state, nodes that do as they are told, and a clock that is turned by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use shoal_types::assignment::Assignment;
use shoal_types::id::{ClusterId, Name, NetworkId, NodeId, ServiceId, TaskId, TokenId};
use shoal_types::lb::{LbEngine, LbInUse, LbPolicy, Weight};
use shoal_types::net::Protocol;
use shoal_types::object::{
    Availability, DesiredState, Health, NodeDescription, NodeRole, NodeState, Task, TaskState, TaskStatus,
    Timestamp,
};
use shoal_types::port::Binding;
use shoal_types::spec::{
    AttachmentSpec, DnsSpec, EndpointMode, NetworkSpec, PortSpec, ProcessSpec, Resources, RestartPolicy,
    ServiceMode, ServiceSpec, TaskSpec, UpdateConfig,
};

use super::checks;
use crate::command::{FirstManager, InitCluster, Join, Pools};
use crate::leader::{self, LeaderView};
use crate::{Command, Entry, Outcome, Rejection, State, assignment};

pub(crate) const GIB: u64 = 1 << 30;

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// A whole cluster in one struct.
pub(crate) struct Sim {
    pub(crate) state: State,
    pub(crate) index: u64,
    pub(crate) now: Timestamp,
    pub(crate) view: LeaderView,
    pub(crate) log: Vec<(u64, Entry)>,
    /// Nodes that do not answer: they neither report nor program anything.
    pub(crate) mute: BTreeSet<NodeId>,
    /// Tasks that end with this code right after they start.
    pub(crate) crashing: BTreeMap<ServiceId, i32>,
    /// Services whose tasks start and give no good answer to their health check.
    pub(crate) unready: BTreeSet<ServiceId>,
    /// Nodes say that tasks which drain have no connection.
    pub(crate) idle: bool,
    entropy: u128,
}

impl Sim {
    /// A founded cluster of one manager `n1`.
    pub(crate) fn new() -> Self {
        Self::founded(|_| ())
    }

    pub(crate) fn with_pools(v4: &str, prefix: u8) -> Self {
        Self::founded(|init| {
            init.pools.v4 = vec![v4.parse().expect("a net")];
            init.pools.v4_prefix = prefix;
        })
    }

    /// As [`Self::new`], founded in another way.
    pub(crate) fn founded(change: impl FnOnce(&mut InitCluster)) -> Self {
        let mut sim = Self {
            state: State::default(),
            index: 0,
            now: Timestamp(1_772_359_920_000),
            view: LeaderView::default(),
            log: Vec::new(),
            mute: BTreeSet::new(),
            crashing: BTreeMap::new(),
            unready: BTreeSet::new(),
            idle: false,
            entropy: 1,
        };
        let mut init = sim.init();
        change(&mut init);
        let id = init.manager.id.clone();
        sim.must(Command::InitCluster(Box::new(init)));
        sim.hello(&id);
        sim
    }

    pub(crate) fn init(&mut self) -> InitCluster {
        InitCluster {
            id: ClusterId::from_entropy(self.draw()),
            name: name("otter"),
            data_port: 7378,
            cert_lifetime_ms: 7 * 86_400_000,
            ca_cert_der: vec![1],
            ca_key_sealed: vec![2],
            pools: Pools {
                v4: vec!["10.0.0.0/8".parse().expect("a net")],
                v4_prefix: 20,
                v6: "fd12:3456:789a::/48".parse().expect("a net"),
            },
            ingress: NetworkId::from_entropy(self.draw()),
            manager: FirstManager {
                id: NodeId::from_entropy(self.draw()),
                name_hint: "n1".to_owned(),
                control_addr: SocketAddr::from(([192, 168, 7, 1], 7377)),
                data_addr: IpAddr::V4(Ipv4Addr::new(192, 168, 7, 1)),
                description: NodeDescription::default(),
            },
        }
    }

    /// A cluster of `n1` to `n<count>`, all ready.
    pub(crate) fn of(count: u8) -> Self {
        let mut sim = Self::new();
        for n in 2..=count {
            sim.join(n);
        }
        sim
    }

    pub(crate) fn draw(&mut self) -> u128 {
        self.entropy += 1;
        // Spread over the id space, so that prefixes differ.
        self.entropy.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
    }

    /// Proposes a command and checks every invariant after it.
    pub(crate) fn propose(&mut self, command: Command) -> Result<Outcome, Rejection> {
        self.propose_as(None, command)
    }

    pub(crate) fn propose_as(
        &mut self,
        request: Option<&str>,
        command: Command,
    ) -> Result<Outcome, Rejection> {
        self.index += 1;
        let entry = Entry { now: self.now, request_id: request.map(str::to_owned), command };
        let before = self.state.hash();
        let result = self.state.apply(self.index, &entry);
        if result.is_err() {
            assert_eq!(self.state.hash(), before, "{:?} was refused and changed the state", entry.command);
        }
        checks::check(&self.state);
        self.log.push((self.index, entry));
        result
    }

    /// Proposes what may well be refused.
    pub(crate) fn try_it(&mut self, command: Command) {
        drop(self.propose(command));
    }

    pub(crate) fn must(&mut self, command: Command) -> Outcome {
        let kind = command.kind();
        self.propose(command).unwrap_or_else(|r| panic!("{kind} was refused: {r}"))
    }

    pub(crate) fn set_availability(&mut self, id: &NodeId, availability: Availability) {
        self.must(Command::UpdateNode {
            id: id.clone(),
            availability: Some(availability),
            labels_add: BTreeMap::new(),
            labels_remove: Vec::new(),
        });
    }

    pub(crate) fn weigh(&mut self, text: &str, weight: u32) -> Outcome {
        let command = Command::WeighNode {
            id: self.node(text),
            weight: Weight::try_from(weight).expect("in range"),
            availability: None,
            labels_add: BTreeMap::new(),
            labels_remove: Vec::new(),
        };
        self.must(command)
    }

    pub(crate) fn token(&mut self, role: NodeRole, uses: Option<u32>) -> (TokenId, [u8; 32]) {
        let id = TokenId::from_entropy(self.draw());
        let secret_sha256 = [7; 32];
        self.must(Command::CreateToken { id: id.clone(), role, secret_sha256, ttl_ms: 86_400_000, uses });
        (id, secret_sha256)
    }

    /// Host `n<number>` joins as a worker and opens its session.
    pub(crate) fn join(&mut self, number: u8) -> NodeId {
        let (token, secret_sha256) = self.token(NodeRole::Worker, Some(1));
        let node = NodeId::from_entropy(self.draw());
        let data_addr = IpAddr::V4(Ipv4Addr::new(192, 168, 7, number));
        let name_hint = format!("n{number}");
        self.must(Command::Join(Box::new(Join {
            token,
            secret_sha256,
            node: node.clone(),
            name_hint,
            data_addr,
        })));
        self.hello(&node);
        node
    }

    pub(crate) fn hello(&mut self, id: &NodeId) {
        let node = self.state.nodes()[id].clone();
        let description = NodeDescription {
            hostname: node.name.to_string(),
            cpu_milli: 4_000,
            memory: 8 * GIB,
            ..NodeDescription::default()
        };
        self.must(Command::NodeHello { id: id.clone(), description, data_addr: node.data_addr });
    }

    /// A node says how it balances.
    pub(crate) fn balances(&mut self, text: &str, engine: LbEngine, ipvs: bool, lingering: bool) {
        let (node, lb) = (self.node(text), LbInUse { engine, ipvs, lingering });
        self.must(Command::ReportLb { node, lb });
    }

    pub(crate) fn node(&self, text: &str) -> NodeId {
        crate::view::find_node(&self.state, text).expect("a node").id.clone()
    }

    pub(crate) fn network(&mut self, text: &str, subnet4: Option<&str>) -> NetworkId {
        let id = NetworkId::from_entropy(self.draw());
        let spec = network_spec(text, subnet4);
        self.must(Command::CreateNetwork { id: id.clone(), spec });
        id
    }

    pub(crate) fn create(&mut self, spec: &ServiceSpec) -> ServiceId {
        let id = ServiceId::from_entropy(self.draw());
        self.must(Command::CreateService { id: id.clone(), spec: Box::new(spec.clone()) });
        id
    }

    pub(crate) fn update(&mut self, id: &ServiceId, change: impl FnOnce(&mut ServiceSpec)) {
        let mut spec = self.state.services()[id].spec.clone();
        change(&mut spec);
        self.must(Command::UpdateService { id: id.clone(), spec: Box::new(spec), expect_version: None });
    }

    pub(crate) fn set_node(&mut self, text: &str, state: NodeState) {
        let id = self.node(text);
        if state == NodeState::Ready {
            self.mute.remove(&id);
            self.hello(&id);
        } else {
            self.mute.insert(id.clone());
            self.must(Command::SetNodeState { id, state });
        }
    }

    pub(crate) fn report(&mut self, task: &TaskId, state: TaskState, exit_code: Option<i32>) {
        let node = self.state.tasks()[task].node.clone().expect("placed");
        let status = TaskStatus {
            state,
            since: self.now,
            message: String::new(),
            exit_code,
            pid: None,
            health: Health::Unchecked,
            connections: None,
        };
        self.must(Command::ReportTasks { node, updates: vec![(task.clone(), status)] });
    }

    /// A node says what the health check of one of its tasks comes to; its state stays.
    pub(crate) fn report_health(&mut self, task: &TaskId, health: Health) {
        let task = self.state.tasks()[task].clone();
        let node = task.node.clone().expect("placed");
        let message = if health == Health::Unhealthy { "no answer" } else { "" };
        let status = TaskStatus { health, message: message.to_owned(), ..task.status };
        self.must(Command::ReportTasks { node, updates: vec![(task.id, status)] });
    }

    /// A node says how many connections one of its tasks has; its state stays.
    pub(crate) fn report_connections(&mut self, task: &TaskId, connections: u32) {
        let task = self.state.tasks()[task].clone();
        let node = task.node.clone().expect("placed");
        let status = TaskStatus { connections: Some(connections), ..task.status };
        self.must(Command::ReportTasks { node, updates: vec![(task.id, status)] });
    }

    pub(crate) fn assignment(&self, text: &str) -> Assignment {
        assignment::for_node(&self.state, &self.node(text), self.index).expect("a member")
    }

    /// One turn of the leader; how many commands it proposed.
    pub(crate) fn lead(&mut self) -> usize {
        let mut entropy = self.entropy;
        let mut ids = || {
            entropy += 1;
            entropy.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
        };
        let commands = leader::plan(&self.state, self.now, &self.view, &mut ids);
        self.entropy = entropy;
        assert!(commands.len() < leader::COMMANDS_PER_CALL + 100, "a call is bounded: {}", commands.len());
        for command in commands.clone() {
            checks::barrier_holds(&self.state, &self.view, &command);
            checks::direct_routing_is_everywhere(&self.state, &self.view, &command);
            self.propose(command.clone())
                .unwrap_or_else(|r| panic!("the leader's {command:?} was refused: {r}"));
        }
        commands.len()
    }

    /// Every node that answers does one step of what it was told, then programs it.
    pub(crate) fn work(&mut self) -> usize {
        let nodes: Vec<NodeId> = self.state.nodes().keys().cloned().collect();
        nodes.iter().map(|node| self.work_one(node)).sum()
    }

    pub(crate) fn work_one(&mut self, node: &NodeId) -> usize {
        let answers = !self.mute.contains(node) && self.state.nodes()[node].state == NodeState::Ready;
        if !answers {
            return 0;
        }
        let index = self.index;
        let told = assignment::for_node(&self.state, node, index).expect("a member");
        let updates: Vec<(TaskId, TaskStatus)> = told
            .tasks()
            .filter_map(|t| Some((t.id.clone(), self.step(&t.id, t.desired, t.withdrawn)?)))
            .collect();
        let moved = updates.len();
        if moved > 0 {
            self.must(Command::ReportTasks { node: node.clone(), updates });
        }
        self.view.applied.insert(node.clone(), index);
        moved
    }

    fn step(&self, id: &TaskId, desired: DesiredState, withdrawn: bool) -> Option<TaskStatus> {
        let task = &self.state.tasks()[id];
        let crash = self.crashing.get(&task.service).copied();
        let (state, exit_code) = match task.status.state {
            state if state.is_terminal() => return None,
            _ if desired >= DesiredState::Shutdown => (TaskState::Shutdown, Some(0)),
            TaskState::Assigned => (TaskState::Starting, None),
            TaskState::Starting if self.unready.contains(&task.service) => return None,
            TaskState::Starting => (TaskState::Running, None),
            TaskState::Running if crash.is_some() => (TaskState::Failed, crash),
            TaskState::Running if self.idle && withdrawn && task.status.connections.is_none() => {
                return Some(TaskStatus { connections: Some(0), ..task.status.clone() });
            }
            _ => return None,
        };
        let health = match (&task.spec.health, state) {
            (Some(_), TaskState::Starting) => Health::Starting,
            (Some(_), TaskState::Running) => Health::Healthy,
            _ => Health::Unchecked,
        };
        Some(TaskStatus {
            state,
            health,
            since: self.now,
            message: String::new(),
            exit_code,
            pid: None,
            connections: None,
        })
    }

    /// Until nobody has anything to do without the clock; panics if that never comes.
    pub(crate) fn rest(&mut self) {
        for _ in 0..2_000 {
            let acks = self.view.applied.clone();
            if self.lead() + self.work() == 0 && acks == self.view.applied {
                return self.sleeps_exactly();
            }
        }
        panic!("no rest after 2000 turns: {:?}", leader::plan(&self.state, self.now, &self.view, &mut || 0));
    }

    /// Up to the next deadline, time alone changes nothing.
    fn sleeps_exactly(&self) {
        let deadline = leader::next_deadline(&self.state, self.now);
        let before = deadline.map_or(self.now.0 + 864_000_000, |at| at.0 - 1);
        let early = leader::plan(&self.state, Timestamp(before), &self.view, &mut || 0);
        assert!(early.is_empty(), "before the deadline {deadline:?} (now {:?}): {early:?}", self.now);
    }

    /// Turns the clock to the next deadline, if it comes within that time.
    pub(crate) fn tick_within(&mut self, ms: u64) -> bool {
        match leader::next_deadline(&self.state, self.now) {
            Some(at) if at.since_ms(self.now) <= ms => {
                assert!(at > self.now, "a deadline lies ahead");
                self.now = at;
                true
            }
            _ => false,
        }
    }

    /// Rest, and again after every deadline within that time.
    pub(crate) fn run(&mut self, ms: u64) {
        let end = Timestamp(self.now.0 + ms);
        self.rest();
        while self.tick_within(end.since_ms(self.now)) {
            self.rest();
        }
        self.now = end;
        self.rest();
    }

    /// `slot node state` of every live task of a service.
    pub(crate) fn ps(&self, service: &ServiceId) -> Vec<String> {
        let mut tasks: Vec<&Task> =
            self.state.tasks_of_service(service).filter(|t| t.desired == DesiredState::Running).collect();
        tasks.sort_by_key(|t| (t.slot.clone(), t.created_at));
        tasks
            .iter()
            .map(|t| {
                let node = t.node.as_ref().and_then(|n| self.state.nodes().get(n));
                format!(
                    "{} {} {:?}",
                    crate::view::task_name(&self.state, t),
                    node.map_or("-", |n| n.name.as_str()),
                    t.status.state
                )
            })
            .collect()
    }

    pub(crate) fn live_task(&self, text: &str) -> Task {
        crate::view::find_task(&self.state, text).expect("a task").clone()
    }

    pub(crate) fn serving(&self, service: &ServiceId) -> usize {
        let ready = |t: &&Task| {
            let node = t.node.as_ref().and_then(|n| self.state.nodes().get(n));
            t.is_serving() && node.is_some_and(|n| n.state == NodeState::Ready)
        };
        self.state.tasks_of_service(service).filter(ready).count()
    }

    pub(crate) fn converged(&self, service: &ServiceId) -> bool {
        crate::view::convergence(&self.state, service, Some(&self.view)).is_some_and(|c| c.converged)
    }
}

pub(crate) fn network_spec(text: &str, subnet4: Option<&str>) -> NetworkSpec {
    NetworkSpec {
        name: name(text),
        subnet4: subnet4.map(|s| s.parse().expect("a net")),
        subnet6: None,
        internal: false,
        labels: BTreeMap::new(),
    }
}

pub(crate) fn tcp(published: u16, target: u16) -> PortSpec {
    PortSpec {
        protocol: Protocol::Tcp,
        published: Some(published),
        target,
        binding: Binding::EVERYWHERE,
        proxy: None,
        dsr: false,
    }
}

pub(crate) fn service(text: &str, replicas: u32, networks: &[&NetworkId], ports: &[PortSpec]) -> ServiceSpec {
    ServiceSpec {
        name: name(text),
        mode: ServiceMode::Replicated { replicas },
        task: TaskSpec {
            process: ProcessSpec {
                command: vec!["/usr/bin/httpd".to_owned()],
                env: Vec::new(),
                workdir: None,
                user: None,
                hostname: None,
                root: None,
                cap_add: Vec::new(),
                read_only: false,
            },
            resources: Resources::default(),
            restart: RestartPolicy::default(),
            health: None,
            stop_grace_ms: 10_000,
            stop_signal: 15,
            constraints: Vec::new(),
            max_per_node: 0,
            force_update: 0,
        },
        networks: networks
            .iter()
            .map(|n| AttachmentSpec { network: (*n).clone(), aliases: Vec::new() })
            .collect(),
        ports: ports.to_vec(),
        update: UpdateConfig::default(),
        drain_ms: 5_000,
        lb: LbPolicy::Auto,
        endpoint: EndpointMode::Vip,
        dns: DnsSpec::default(),
        labels: BTreeMap::new(),
    }
}
