mod change;
mod direct;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use shoal_plan::doors::Addresses;
use shoal_plan::object::Object;
use shoal_plan::{EgressFacts, Facts, Key, Objects, Slice};
use shoal_types::assignment::{AssignedNetwork, AssignedTask, Assignment, ClusterView, Object as Assigned};
use shoal_types::object::{Attachment, DesiredState, Health, Slot, TaskState};
use shoal_types::spec::{DnsSpec, HealthCheck, HealthProbe, ProcessSpec, Resources, RestartPolicy, TaskSpec};
use shoal_types::{
    ClusterId, DualAddr, DualNet, EndpointId, Generation, NetworkId, NodeId, ServiceId, TaskId, Vni,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::drivers::link::LinkError;
use crate::drivers::runtime::fake::FakeRuntime;
use crate::drivers::runtime::{ExitCause, ProbeEnd, ProbeOutcome, Runtime, StartFailure, StartStage};
use crate::facility::{FacilityError, Look};

/// How long a look at a slice takes in a slow kernel.
const SLOW: Duration = Duration::from_secs(8);

/// A kernel in memory: it holds what it was told, and can be made to refuse or to forget.
#[derive(Debug, Default, Clone)]
struct FakeKernel(Arc<Mutex<KernelState>>);

#[derive(Debug, Default)]
struct KernelState {
    objects: Objects,
    refuse: Option<&'static str>,
    writes: usize,
    observed: usize,
    /// What was looked at, each time.
    looks: Vec<Slice>,
    /// A device takes what hangs on it along when it is made anew.
    fragile: bool,
    /// It can't be told what there is of a slice.
    dark: Option<Slice>,
    /// Looking at a slice takes a while.
    slow: bool,
    /// Something was taken away that nobody tells of.
    touched: bool,
    removed: Vec<Key>,
}

impl FakeKernel {
    fn with<T>(&self, work: impl FnOnce(&mut KernelState) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn has(&self, kind: &str) -> bool {
        self.with(|state| state.objects.values().any(|object| object.kind() == kind))
    }

    fn writes(&self) -> usize {
        self.with(|state| state.writes)
    }
}

#[async_trait]
impl Facility for FakeKernel {
    async fn facts(&mut self, assignment: &Assignment, _node: &NodeId) -> Result<Facts, FacilityError> {
        let mut egress = EgressFacts {
            v4: "172.31.240.0/20".parse().expect("literal"),
            v6: "fd5a::/64".parse().expect("literal"),
            slots: BTreeMap::new(),
        };
        egress.assign(assignment.tasks().map(|task| &task.id));
        let data_addr = [192, 0, 2, 1].into();
        Ok(Facts {
            data_addr,
            underlay_mtu: 1500,
            uplinks: vec![],
            egress,
            engine: shoal_plan::Engine::Ebpf,
            firewall: true,
            fast_lane: true,
            connect_hooks: true,
            peers: Arc::default(),
        })
    }

    async fn observe(&mut self, _desired: &Objects, look: Look) -> Result<Objects, FacilityError> {
        if self.with(|state| state.slow) {
            tokio::time::sleep(SLOW).await;
        }
        if self.with(|state| state.dark) == Some(look.slice) {
            return Err(LinkError::Closed { action: "look".into() }.into());
        }
        Ok(self.with(|state| {
            state.observed += 1;
            state.looks.push(look.slice);
            let seen = state.objects.iter().filter(|(key, _)| Slice::of(key) == look.slice);
            seen.map(|(key, object)| (key.clone(), object.clone())).collect()
        }))
    }

    async fn ensure(&mut self, object: &Object) -> Result<(), FacilityError> {
        self.with(|state| {
            if state.refuse == Some(object.kind()) {
                return Err(LinkError::Closed { action: "do as told".into() }.into());
            }
            state.writes += 1;
            if state.fragile && matches!(object, Object::Vxlan(_)) {
                state.objects.retain(|key, _| Slice::of(key) == Slice::Few);
            }
            state.objects.insert(object.key(), object.clone());
            Ok(())
        })
    }

    async fn remove(&mut self, object: &Object) -> Result<(), FacilityError> {
        self.with(|state| {
            state.writes += 1;
            state.objects.remove(&object.key());
            state.removed.push(object.key());
        });
        Ok(())
    }

    fn is_touched(&self) -> bool {
        self.with(|state| state.touched)
    }

    fn sandbox_path(&self, task: &TaskId) -> PathBuf {
        PathBuf::from("/run/x/netns").join(task.as_str())
    }

    fn packets(&self) -> Vec<(&'static str, &'static str, u64)> {
        Vec::new()
    }

    fn search_domains(&self, _task: &TaskId) -> Vec<String> {
        vec!["corp.example".to_owned()]
    }

    fn drops(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::new()
    }

    fn doors(&self) -> BTreeMap<u32, Addresses> {
        let mut doors: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        self.with(|state| {
            for object in state.objects.values() {
                if let Object::Door(door) = object {
                    doors.entry(door.place.router).or_default().push(door.addr);
                }
            }
        });
        doors.into_iter().map(|(router, addrs)| (router, Addresses::of(addrs))).collect()
    }

    fn lb(&self) -> shoal_types::lb::LbInUse {
        shoal_types::lb::LbInUse::default()
    }
}

struct World {
    kernel: FakeKernel,
    runtime: Arc<FakeRuntime>,
    assignment: watch::Sender<Arc<Assignment>>,
    reports: Reports,
    stats: Arc<Stats>,
    closing: CancellationToken,
    events: mpsc::Sender<()>,
    running: JoinHandle<FakeKernel>,
    generation: u64,
    health: Arc<tempfile::TempDir>,
}

impl World {
    fn start() -> Self {
        Self::over(FakeKernel::default(), Arc::new(FakeRuntime::new()), Assignment::default(), 0)
    }

    fn over(kernel: FakeKernel, runtime: Arc<FakeRuntime>, first: Assignment, generation: u64) -> Self {
        let health = Arc::new(tempfile::tempdir().expect("a directory"));
        Self::with_health(kernel, runtime, first, generation, health)
    }

    fn with_health(
        kernel: FakeKernel,
        runtime: Arc<FakeRuntime>,
        first: Assignment,
        generation: u64,
        health: Arc<tempfile::TempDir>,
    ) -> Self {
        let (assignment, receiver) = watch::channel(Arc::new(first));
        let (reports, stats) = (Reports::default(), Arc::new(Stats::default()));
        let closing = CancellationToken::new();
        let (events, told) = mpsc::channel(1);
        let dynamic: Arc<dyn Runtime> = Arc::<FakeRuntime>::clone(&runtime);
        let reconciler = Reconciler::new(Context {
            facility: kernel.clone(),
            runtime: dynamic,
            assignment: receiver,
            reports: reports.clone(),
            stats: Arc::clone(&stats),
            node: node(),
            health_dir: health.path().to_owned(),
            events: KernelEvents::told_by(told),
            closing: closing.clone(),
        });
        let running = tokio::spawn(reconciler.run());
        Self { kernel, runtime, assignment, reports, stats, closing, events, running, generation, health }
    }

    fn assign(&mut self, desired: Option<DesiredState>) {
        self.generation += 1;
        self.assignment.send_replace(Arc::new(assigned(self.generation, desired)));
    }

    async fn applied(&self) -> Applied {
        let mut applied = self.reports.applied();
        let wanted = Generation(self.generation);
        let found = applied.wait_for(|a| a.as_ref().is_some_and(|a| a.generation == wanted));
        let found = timeout(Duration::from_mins(1), found).await.expect("in time").expect("runs");
        found.clone().expect("was waited for")
    }

    async fn state(&self, wanted: TaskState) {
        let mut statuses = self.reports.statuses();
        let found = statuses.wait_for(|all| all.get(&task()).is_some_and(|status| status.state == wanted));
        let outcome = timeout(Duration::from_mins(1), found).await;
        assert!(outcome.is_ok(), "never {wanted:?}; last is {:?}", self.reports.statuses().borrow());
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..2000 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!(
            "not in time: {what}; kernel: {:?}",
            self.kernel.with(|s| s.objects.keys().cloned().collect::<Vec<_>>())
        );
    }

    async fn stop(self) -> (FakeKernel, Arc<FakeRuntime>) {
        self.closing.cancel();
        (self.running.await.expect("no panic"), self.runtime)
    }
}

fn node() -> NodeId {
    NodeId::from_entropy(1)
}

fn task() -> TaskId {
    TaskId::from_entropy(77)
}

fn at(endpoint: u32) -> Attachment {
    let host = u8::try_from(endpoint).expect("small");
    Attachment {
        endpoint: EndpointId(endpoint),
        network: NetworkId::from_entropy(1 << 100),
        addr: DualAddr {
            v4: Ipv4Addr::new(10, 0, 0, host),
            v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into()),
        },
    }
}

fn assigned(generation: u64, desired: Option<DesiredState>) -> Assignment {
    let mut objects = vec![
        Assigned::Cluster(ClusterView {
            id: ClusterId::from_entropy(1),
            name: "otter".parse().expect("a label"),
            data_port: 7378,
            node: node(),
            node_name: "n1".parse().expect("a label"),
            router: at(1),
            lb_engine: shoal_types::LbEngine::Auto,
            direct: shoal_types::DirectRouting::Off,
            reserved: shoal_types::assignment::Reserved::default(),
        }),
        Assigned::Network(AssignedNetwork {
            id: NetworkId::from_entropy(1 << 100),
            name: "ingress".parse().expect("a label"),
            vni: Vni::new(5).expect("in range"),
            subnets: DualNet {
                v4: "10.0.0.0/16".parse().expect("literal"),
                v6: "fd00::/64".parse().expect("literal"),
            },
            internal: false,
            ingress: true,
        }),
    ];
    objects.extend(desired.map(|desired| {
        Assigned::Task(Box::new(AssignedTask {
            id: task(),
            service: ServiceId::from_entropy(1),
            service_name: "web".parse().expect("a label"),
            slot: Slot::Number(1),
            spec: task_spec(),
            desired,
            attachments: vec![at(9)],
            withdrawn: false,
            dns: DnsSpec { options: vec!["timeout:1".to_owned()], ..DnsSpec::default() },
        }))
    }));
    Assignment::new(Generation(generation), objects)
}

fn task_spec() -> TaskSpec {
    TaskSpec {
        process: ProcessSpec {
            command: vec!["web".into()],
            env: vec!["SLOT={{.Task.Slot}} on {{.Node.Hostname}}".into()],
            workdir: None,
            user: None,
            hostname: None,
            root: None,
            cap_add: vec![],
            read_only: false,
        },
        resources: Resources::default(),
        restart: RestartPolicy::default(),
        health: None,
        stop_grace_ms: 10_000,
        stop_signal: 15,
        constraints: vec![],
        max_per_node: 0,
        force_update: 0,
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_runs_in_what_was_made_for_it_and_leaves_nothing() {
    let mut world = World::start();
    world.assign(Some(DesiredState::Running));
    world.state(TaskState::Running).await;
    assert!(world.kernel.has("sandbox") && world.kernel.has("resolver"));
    let held = world.runtime.observe().await.expect("held");
    assert_eq!(held[0].spec.env, vec![("SLOT".to_owned(), "1 on n1".to_owned())]);
    assert_eq!(
        held[0].spec.resolv_conf,
        "nameserver 127.0.0.11\nsearch corp.example\noptions ndots:0 timeout:1\n"
    );
    world.assign(Some(DesiredState::Draining));
    world.applied().await;
    world.state(TaskState::Running).await;
    world.assign(Some(DesiredState::Shutdown));
    world.state(TaskState::Shutdown).await;
    world.until("its namespace goes", |world| !world.kernel.has("sandbox")).await;
    world.assign(None);
    world.applied().await;
    world.until("its record goes", |world| world.reports.statuses().borrow().is_empty()).await;
    let (_, runtime) = world.stop().await;
    assert!(runtime.observe().await.expect("held").is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_there_is_much_of_is_looked_at_once_when_what_it_hangs_on_is_there() {
    let mut world = World::start();
    world.assign(None);
    world.applied().await;
    let looks = world.kernel.with(|state| std::mem::take(&mut state.looks));
    let all = [Slice::ALL.as_slice(), &[Slice::Few]].concat();
    assert!(looks.starts_with(&all), "what is made changes the few only: {looks:?}");
    let wanted = world.kernel.with(|state| {
        let wanted = state.objects.clone();
        for object in state.objects.values_mut() {
            if let Object::Vxlan(vxlan) = object {
                vxlan.mtu += 1;
            }
        }
        // What hangs on the device goes with it when that is made anew.
        state.fragile = true;
        wanted
    });
    world.until("all is as before", |world| world.kernel.with(|state| state.objects == wanted)).await;
    let drift = world.stats.drift();
    assert_eq!(drift.into_keys().collect::<Vec<_>>(), ["vxlan"], "the rest went with it");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_running_task_keeps_its_network_until_it_has_stopped() {
    let mut world = World::start();
    world.runtime.ignore_stop_signals(true);
    world.assign(Some(DesiredState::Running));
    world.state(TaskState::Running).await;
    world.assign(Some(DesiredState::Remove));
    world.applied().await;
    assert!(world.kernel.has("leg"), "the grace period is not over");
    world.until("its interfaces go", |world| !world.kernel.has("leg")).await;
    let removed = world.kernel.with(|state| state.removed.clone());
    let position = |kind: fn(&Key) -> bool| removed.iter().position(kind).expect("was removed");
    assert!(position(|key| matches!(key, Key::Leg(_))) < position(|key| matches!(key, Key::Sandbox(_))));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_end_is_told_once_and_the_task_is_not_started_again() {
    let mut world = World::start();
    world.assign(Some(DesiredState::Running));
    world.state(TaskState::Running).await;
    assert!(world.runtime.end(task().as_str(), ExitCause::Code { code: 3 }));
    world.state(TaskState::Failed).await;
    let status = world.reports.statuses().borrow()[&task()].clone();
    assert_eq!((status.exit_code, status.message.as_str()), (Some(3), "exited with 3"));
    let writes = world.runtime.writes();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(world.runtime.writes(), writes);
    world.assign(Some(DesiredState::Shutdown));
    world.applied().await;
    // A state only moves forward: it failed before it was to be stopped.
    assert_eq!(world.reports.statuses().borrow()[&task()].state, TaskState::Failed);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_can_never_start_is_rejected_with_the_reason() {
    let mut world = World::start();
    world.runtime.reject_next(task().as_str(), StartFailure::new(StartStage::Program, "no such program"));
    world.assign(Some(DesiredState::Running));
    world.state(TaskState::Rejected).await;
    assert_eq!(world.reports.statuses().borrow()[&task()].message, "no such program");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_task_does_not_start_without_its_network_and_the_failure_is_named_until_it_is_over() {
    let mut world = World::start();
    world.kernel.with(|state| state.refuse = Some("leg"));
    world.assign(Some(DesiredState::Running));
    let applied = world.applied().await;
    assert!(applied.errors.iter().any(|error| error.contains("Leg")), "{:?}", applied.errors);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(world.runtime.observe().await.expect("held").is_empty());
    world.kernel.with(|state| state.refuse = None);
    world.state(TaskState::Running).await;
    world
        .until("no error is left", |world| {
            world.reports.applied().borrow().as_ref().is_some_and(|applied| applied.errors.is_empty())
        })
        .await;
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn drift_is_found_by_the_sweep_repaired_and_counted() {
    let mut world = World::start();
    world.assign(None);
    world.applied().await;
    world.until("it settles", |world| world.kernel.has("vxlan")).await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(world.stats.drift().is_empty());
    world.kernel.with(|state| state.objects.retain(|key, _| !matches!(key, Key::Vxlan(_))));
    world
        .until("it is repaired and counted", |world| {
            world.kernel.has("vxlan") && world.stats.drift().get("vxlan") == Some(&1)
        })
        .await;
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_adopts_and_writes_nothing() {
    let mut world = World::start();
    world.assign(Some(DesiredState::Running));
    world.state(TaskState::Running).await;
    world.applied().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (last, generation) = (assigned(world.generation, Some(DesiredState::Running)), world.generation);
    let (kernel, runtime) = world.stop().await;
    let (writes, started) = (kernel.writes(), runtime.writes());
    let world = World::over(kernel.clone(), Arc::clone(&runtime), last, generation);
    world.applied().await;
    world.state(TaskState::Running).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!((kernel.writes(), runtime.writes()), (writes, started));
    assert!(Stats::get(&world.stats.adopted) > 5);
    world.stop().await;
}

/// The same task with a health check.
fn checked(generation: u64, desired: DesiredState) -> Assignment {
    let mut assignment = assigned(generation, Some(desired));
    for object in assignment.objects.values_mut() {
        if let Assigned::Task(task) = object {
            let probe = HealthProbe::Command(vec!["true".to_owned()]);
            task.spec.health = Some(HealthCheck { interval_ms: 1_000, retries: 2, ..HealthCheck::of(probe) });
        }
    }
    assignment
}

fn exits_with(code: i32) -> ProbeOutcome {
    ProbeOutcome { end: ProbeEnd::Exited { code }, output: b"no database\n".to_vec() }
}

#[tokio::test(start_paused = true)]
async fn a_checked_task_runs_when_it_is_healthy_and_says_why_it_was_stopped() {
    let world = World::start();
    world.runtime.answer_probes(exits_with(1));
    world.assignment.send_replace(Arc::new(checked(1, DesiredState::Running)));
    world.state(TaskState::Starting).await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    world.state(TaskState::Starting).await;
    world.runtime.answer_probes(exits_with(0));
    world.state(TaskState::Running).await;
    let health = Arc::clone(&world.health);
    let (kernel, runtime) = world.stop().await;
    runtime.answer_probes(exits_with(1));
    let last = checked(1, DesiredState::Running);
    let world = World::with_health(kernel, runtime, last, 1, health);
    // Nothing worse is ever said of it on the way.
    let mut statuses = world.reports.statuses();
    statuses.wait_for(|all| all.contains_key(&task())).await.expect("runs");
    let first = statuses.borrow()[&task()].clone();
    assert_eq!((first.state, first.health), (TaskState::Running, Health::Healthy));
    statuses.wait_for(|all| all[&task()].health == Health::Unhealthy).await.expect("runs");
    world.assignment.send_replace(Arc::new(checked(2, DesiredState::Draining)));
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.state(TaskState::Running).await;
    world.assignment.send_replace(Arc::new(checked(3, DesiredState::Shutdown)));
    world.state(TaskState::Failed).await;
    let message = world.reports.statuses().borrow()[&task()].message.clone();
    assert_eq!(message, "unhealthy: exited with 1: no database");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn without_an_assignment_nothing_is_touched() {
    let world = World::start();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(world.kernel.writes(), 0);
    assert_eq!(*world.reports.applied().borrow(), None);
    world.stop().await;
}
