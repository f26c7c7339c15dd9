use std::net::TcpListener;

use shoal_types::object::TaskStatus;
use shoal_types::spec::HealthProbe;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::ask::{Reply, ask};
use super::*;
use crate::drivers::runtime::fake::FakeRuntime;
use crate::drivers::runtime::{ExitCause, ProbeEnd, ProbeOutcome, RuntimeSpec};

struct World {
    runtime: Arc<FakeRuntime>,
    reports: Reports,
    stats: Arc<Stats>,
    dir: Arc<tempfile::TempDir>,
    checks: Checks,
    id: TaskId,
    check: HealthCheck,
}

impl World {
    async fn new() -> Self {
        let (runtime, id) = (Arc::new(FakeRuntime::new()), TaskId::from_entropy(5));
        runtime.set_clock(now().0);
        let spec = RuntimeSpec::new(id.as_str(), vec!["httpd".to_owned()], "/run/x");
        runtime.prepare(&spec).await.expect("prepared");
        runtime.start(id.as_str()).await.expect("started");
        Self::over(runtime, Arc::new(tempfile::tempdir().expect("a directory")), id)
    }

    fn over(runtime: Arc<FakeRuntime>, dir: Arc<tempfile::TempDir>, id: TaskId) -> Self {
        let (reports, stats) = (Reports::default(), Arc::new(Stats::default()));
        let dynamic: Arc<dyn Runtime> = Arc::<FakeRuntime>::clone(&runtime);
        let checks = Checks::new(dynamic, reports.clone(), Arc::clone(&stats), dir.path().join("health"));
        let probe = HealthProbe::Command(vec!["true".to_owned()]);
        let check = HealthCheck { interval_ms: 10_000, retries: 2, ..HealthCheck::of(probe) };
        Self { runtime, reports, stats, dir, checks, id, check }
    }

    /// An agent that starts again: everything but the runtime and the disk is new.
    fn again(self) -> Self {
        let (runtime, dir, id) = (Arc::clone(&self.runtime), Arc::clone(&self.dir), self.id.clone());
        drop(self);
        Self::over(runtime, dir, id)
    }

    fn follow(&mut self) {
        let netns = Path::new("/run/x");
        let started_at_ms = now().0;
        self.checks.follow(&Subject { id: &self.id, check: &self.check, netns, pid: 7, started_at_ms });
    }

    fn answers(&self, end: ProbeEnd, output: &str) {
        self.runtime.answer_probes(ProbeOutcome { end, output: output.as_bytes().to_vec() });
    }

    fn said(&self) -> TaskStatus {
        self.reports.statuses().borrow().get(&self.id).cloned().expect("told")
    }

    async fn until(&self, health: Health) -> TaskStatus {
        let mut statuses = self.reports.statuses();
        let found = statuses.wait_for(|all| all.get(&self.id).is_some_and(|status| status.health == health));
        let found = timeout(Duration::from_hours(1), found).await.expect("in time").expect("kept");
        found.get(&self.id).cloned().expect("was waited for")
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_runs_from_its_first_good_answer_on() {
    let mut world = World::new().await;
    world.answers(ProbeEnd::Exited { code: 3 }, "starting up\nnot yet\n");
    world.follow();
    assert_eq!((world.said().state, world.said().health), (TaskState::Starting, Health::Starting));
    sleep(Duration::from_secs(3)).await;
    assert_eq!(world.said().message, "waiting for health: exited with 3: not yet");
    world.answers(ProbeEnd::Exited { code: 0 }, "fine");
    let status = world.until(Health::Healthy).await;
    assert_eq!((status.state, status.message.as_str(), status.pid), (TaskState::Running, "", Some(7)));
    assert!(world.stats.health_checks()[WRONG] > 1, "asked more often than the interval: {:?}", world.stats);
}

#[tokio::test(start_paused = true)]
async fn silence_is_a_wrong_answer_and_enough_of_them_make_it_unhealthy() {
    let mut world = World::new().await;
    world.follow();
    world.until(Health::Healthy).await;
    world.answers(ProbeEnd::TimedOut, "connecting");
    let status = world.until(Health::Unhealthy).await;
    assert_eq!(status.state, TaskState::Running, "it still runs");
    assert_eq!(status.message, "unhealthy: no answer within 30 s: connecting");
    assert_eq!(world.stats.health_checks()[SILENT], 2);
    assert_eq!(world.checks.verdict(&world.id).as_deref(), Some("no answer within 30 s: connecting"));
    world.answers(ProbeEnd::Exited { code: 0 }, "");
    assert_eq!(world.until(Health::Healthy).await.message, "");
}

#[tokio::test(start_paused = true)]
async fn a_question_that_can_not_be_put_is_no_answer() {
    let mut world = World::new().await;
    world.follow();
    world.until(Health::Healthy).await;
    world.runtime.refuse_probes(nix::libc::EMFILE);
    sleep(Duration::from_mins(5)).await;
    assert_eq!(world.said().health, Health::Healthy);
    assert!(world.stats.health_checks()[UNASKED] > 10, "and it is asked on: {:?}", world.stats);
    world.runtime.refuse_probes(nix::libc::EINVAL);
    assert!(world.until(Health::Unhealthy).await.message.contains("Invalid argument"));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_again_says_what_the_one_before_it_said() {
    let mut world = World::new().await;
    world.follow();
    world.until(Health::Healthy).await;
    let mut world = world.again();
    world.answers(ProbeEnd::Exited { code: 1 }, "");
    world.follow();
    assert_eq!((world.said().state, world.said().health), (TaskState::Running, Health::Healthy), "at once");
    let status = world.until(Health::Unhealthy).await;
    let mut world = world.again();
    world.follow();
    let TaskStatus { state, health, message, .. } = world.said();
    assert_eq!((state, health, message), (status.state, status.health, status.message));
}

#[tokio::test(start_paused = true)]
async fn nobody_asks_a_task_that_is_gone_and_its_record_goes() {
    let mut world = World::new().await;
    world.follow();
    world.until(Health::Healthy).await;
    world.runtime.end(world.id.as_str(), ExitCause::Code { code: 0 });
    world.checks.rest(&world.id);
    let asked = world.stats.health_checks();
    sleep(Duration::from_mins(5)).await;
    assert_eq!(world.stats.health_checks(), asked);
    world.checks.retain(|_| false);
    assert_eq!(std::fs::read_dir(world.dir.path().join("health")).expect("made").count(), 0);
}

/// Asks a server on this machine's own loopback: our own namespace stands for a task's.
async fn asked(probe: impl FnOnce(u16) -> HealthProbe, answer: &'static str) -> Reply {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    listener.set_nonblocking(true).expect("set");
    let listener = tokio::net::TcpListener::from_std(listener).expect("registered");
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let mut request = vec![0; 4096];
        let read = stream.read(&mut request).await.unwrap_or(0);
        let _gone = stream.write_all(answer.as_bytes()).await;
        String::from_utf8_lossy(request.get(..read).unwrap_or_default()).into_owned()
    });
    let runtime = FakeRuntime::new();
    let netns = Path::new("/proc/self/ns/net");
    let reply = ask(&runtime, &TaskId::from_entropy(1), netns, &probe(port), Duration::from_secs(1)).await;
    let request = server.await.expect("no panic");
    if !request.is_empty() {
        assert!(request.starts_with("GET /healthz HTTP/1.1\r\nHost: "), "{request}");
    }
    reply
}

fn http(port: u16) -> HealthProbe {
    HealthProbe::Http { to: port.to_string().parse().expect("a port"), path: "/healthz".to_owned() }
}

#[tokio::test]
async fn statuses_from_200_to_399_are_good() {
    for (answer, good) in [
        ("HTTP/1.1 200 OK\r\n\r\n", true),
        ("HTTP/1.0 302 Found\r\nLocation: /\r\n\r\n", true),
        ("HTTP/1.1 404 Not Found\r\n\r\n", false),
        ("HTTP/1.1 100 Continue\r\n\r\n", false),
        ("SSH-2.0-OpenSSH\r\n", false),
        ("", false),
    ] {
        assert_eq!(asked(http, answer).await == Reply::Good, good, "{answer}");
    }
}

#[tokio::test]
async fn a_refusal_says_why() {
    let answer = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 17\r\n\r\nno database yet\r\n";
    let Reply::Wrong(why) = asked(http, answer).await else { panic!("good") };
    assert!(why.ends_with("/healthz: 503 Service Unavailable: no database yet"), "{why}");
    let Reply::Wrong(why) = asked(http, "").await else { panic!("good") };
    assert!(why.ends_with("closed without an answer") || why.contains("reset"), "{why}");
}

#[tokio::test]
async fn a_connection_is_good_and_a_refused_one_says_so() {
    let tcp = |port: u16| HealthProbe::Tcp(port.to_string().parse().expect("a port"));
    assert_eq!(asked(tcp, "").await, Reply::Good);
    let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let netns = Path::new("/proc/self/ns/net");
    let limit = Duration::from_secs(1);
    let reply = ask(&FakeRuntime::new(), &TaskId::from_entropy(1), netns, &tcp(free), limit).await;
    let Reply::Wrong(why) = reply else { panic!("{reply:?}") };
    assert!(why.starts_with(&format!("localhost:{free}: ")) && why.contains("refused"), "{why}");
    let gone =
        ask(&FakeRuntime::new(), &TaskId::from_entropy(1), Path::new("/no/such"), &tcp(free), limit).await;
    assert!(matches!(gone, Reply::Wrong(why) if why.contains("does not exist")));
}
