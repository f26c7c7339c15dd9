use super::*;

fn task(
    id: &str,
    slot: &str,
    desired: pb::DesiredState,
    state: pb::TaskState,
    message: &str,
) -> pb::TaskInfo {
    pb::TaskInfo {
        id: id.into(),
        name: slot.into(),
        node_name: "n2".into(),
        desired: desired.into(),
        status: Some(pb::TaskStatus { state: state.into(), message: message.into(), ..Default::default() }),
        ..Default::default()
    }
}

fn wanted(id: &str, slot: &str, state: pb::TaskState) -> pb::TaskInfo {
    task(id, slot, pb::DesiredState::Running, state, "")
}

fn progress(running: u32, of: u32, tasks: Vec<pb::TaskInfo>) -> pb::ServiceProgress {
    let service = pb::ServiceInfo { running, wanted: of, updated: running, ..Default::default() };
    pb::ServiceProgress { service: Some(service), tasks, converged: false, gone: false }
}

#[test]
fn the_line_counts_what_is_on_its_way() {
    let tracker = Tracker::new(Goal::Updated, "web");
    let message = progress(
        4,
        10,
        vec![
            wanted("a", "web.1", pb::TaskState::Running),
            wanted("b", "web.2", pb::TaskState::Starting),
            wanted("c", "web.3", pb::TaskState::Assigned),
            task("d", "web.4", pb::DesiredState::Running, pb::TaskState::Pending, "0 of 3 nodes fit"),
            task("e", "web.2", pb::DesiredState::Draining, pb::TaskState::Running, ""),
        ],
    );
    assert_eq!(
        tracker.summary(&message),
        "web  4/10 updated  1 pending  2 starting  1 stopping   web.4 on n2: 0 of 3 nodes fit"
    );
    assert_eq!(Tracker::new(Goal::Gone, "web").summary(&message), "web  5 to stop");
}

#[test]
fn a_failure_is_told_once_and_history_never() {
    let failed = task("a", "web.1", pb::DesiredState::Shutdown, pb::TaskState::Failed, "no such file");
    let message = progress(0, 1, vec![failed]);
    let mut create = Tracker::new(Goal::Running, "web");
    assert_eq!(create.events(&message), ["web.1 on n2 failed: no such file"]);
    assert_eq!(create.events(&message), Vec::<String>::new());
    assert_eq!(create.summary(&message), "web  0/1 running  1 failed");
    assert_eq!(Tracker::new(Goal::Updated, "web").events(&message), Vec::<String>::new());
}

/// Five failures of one slot, so far apart, and what is made of them.
fn after_failures(apart_ms: u64) -> (Tracker, Verdict) {
    let mut tracker = Tracker::new(Goal::Running, "web");
    let message = |n: u64| {
        let (desired, state) = (pb::DesiredState::Shutdown, pb::TaskState::Rejected);
        let mut failed = task(&n.to_string(), "web.1", desired, state, "no such user");
        failed.status.as_mut().unwrap().since_ms = n * apart_ms;
        progress(0, 1, vec![failed])
    };
    for n in 1..=5 {
        assert_eq!(tracker.verdict(&message(n)), Verdict::GoOn);
        tracker.events(&message(n));
    }
    let verdict = tracker.verdict(&message(5));
    (tracker, verdict)
}

#[test]
fn a_slot_that_keeps_failing_is_hopeless() {
    let (tracker, verdict) = after_failures(1_250);
    let why = "task web.1 failed 5 times and does not come up: web.1 on n2 rejected: no such user";
    assert_eq!(verdict, Verdict::Hopeless(why.to_owned()));
    let up = progress(0, 1, vec![wanted("y", "web.1", pb::TaskState::Running)]);
    assert_eq!(tracker.verdict(&up), Verdict::GoOn);
}

#[test]
fn a_burst_of_failures_may_pass() {
    assert_eq!(after_failures(1_000).1, Verdict::GoOn);
}

#[test]
fn failures_while_stopping_are_nobodys_business() {
    let failed = task("a", "web.1", pb::DesiredState::Remove, pb::TaskState::Failed, "late");
    let mut tracker = Tracker::new(Goal::Gone, "web");
    tracker.events(&progress(0, 1, vec![]));
    assert_eq!(tracker.events(&progress(0, 1, vec![failed])), Vec::<String>::new());
}

#[test]
fn what_is_not_restarted_is_hopeless_at_once() {
    let mut tracker = Tracker::new(Goal::Running, "web");
    let failed = task("a", "web.1", pb::DesiredState::Shutdown, pb::TaskState::Failed, "exit code 1");
    let mut message = progress(0, 1, vec![failed]);
    let mut restart = pb::RestartPolicy::default();
    restart.set_condition(pb::RestartCondition::None);
    let task = pb::TaskSpec { restart: Some(restart), ..Default::default() };
    message.service.as_mut().unwrap().spec = Some(pb::ServiceSpec { task: Some(task), ..Default::default() });
    tracker.events(&message);
    for converged in [false, true] {
        message.converged = converged;
        assert!(matches!(tracker.verdict(&message), Verdict::Hopeless(_)));
    }
}

#[test]
fn an_unhealthy_task_has_failed_once_whatever_comes_of_it() {
    let mut tracker = Tracker::new(Goal::Running, "web");
    let with = |state: pb::TaskState, health: pb::Health, desired: pb::DesiredState| {
        let mut task = task("a", "web.1", desired, state, "unhealthy: no answer within 1 s");
        task.status.as_mut().unwrap().health = health.into();
        progress(0, 1, vec![task])
    };
    let (starting, running) = (pb::TaskState::Starting, pb::DesiredState::Running);
    assert_eq!(tracker.events(&with(starting, pb::Health::Starting, running)), Vec::<String>::new());
    let sick = with(pb::TaskState::Running, pb::Health::Unhealthy, running);
    assert_eq!(tracker.events(&sick), ["web.1 on n2 unhealthy: no answer within 1 s"]);
    assert_eq!(tracker.summary(&sick), "web  0/1 running  1 unhealthy  1 failed");
    let ended = with(pb::TaskState::Failed, pb::Health::Unspecified, pb::DesiredState::Shutdown);
    assert_eq!(tracker.events(&ended), Vec::<String>::new());
    // Not replaced: it does not count as up.
    let mut restart = pb::RestartPolicy::default();
    restart.set_condition(pb::RestartCondition::None);
    let mut message = sick;
    let task = pb::TaskSpec { restart: Some(restart), ..Default::default() };
    message.service.as_mut().unwrap().spec = Some(pb::ServiceSpec { task: Some(task), ..Default::default() });
    assert!(matches!(tracker.verdict(&message), Verdict::Hopeless(why) if why.contains("no answer")));
}

#[test]
fn converged_gone_and_removed_meanwhile() {
    let tracker = Tracker::new(Goal::Running, "web");
    let mut message = progress(1, 1, vec![wanted("a", "web.1", pb::TaskState::Running)]);
    message.converged = true;
    assert_eq!(tracker.verdict(&message), Verdict::Converged(BTreeSet::from(["a".to_owned()])));
    assert_eq!(Tracker::new(Goal::Gone, "web").verdict(&message), Verdict::GoOn);
    message.converged = false;
    message.service.as_mut().unwrap().removing = true;
    assert!(matches!(tracker.verdict(&message), Verdict::Hopeless(_)));
    message.gone = true;
    assert_eq!(tracker.verdict(&message), Verdict::Gone);
    assert_eq!(tracker.summary(&message), "web  gone");
}
