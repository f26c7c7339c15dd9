//! Waiting: progress, failures, time limits, Ctrl-C.

use std::time::Duration;

use shoal_api::pb;
use shoal_api::pb::DesiredState::{Running, Shutdown};
use tokio::process::Command;
use tonic::Status;

use crate::fake::{Fake, progress, service, task};
use crate::run::{finish, start};

fn on(id: &str, name: &str, state: pb::TaskState) -> pb::TaskInfo {
    task(id, name, "n2", Running, state, "")
}

#[tokio::test]
async fn one_plain_line_per_change_and_a_broken_watch_is_taken_up_again() {
    let fake = Fake::start();
    fake.world().watches = [
        vec![
            Ok(progress(0, 2, vec![on("a", "web.1", pb::TaskState::Starting)])),
            Ok(progress(0, 2, vec![on("a", "web.1", pb::TaskState::Starting)])),
            Err(Status::unavailable("h2 protocol error")),
        ],
        vec![Ok(progress(1, 2, vec![on("a", "web.1", pb::TaskState::Running)]))],
        vec![Ok(progress(
            2,
            2,
            vec![on("a", "web.1", pb::TaskState::Running), on("b", "web.2", pb::TaskState::Running)],
        ))],
        vec![Ok(progress(
            2,
            2,
            vec![on("a", "web.1", pb::TaskState::Running), on("b", "web.2", pb::TaskState::Running)],
        ))],
    ]
    .into();
    let out = fake.run("service create --name web --replicas 2 true").await;
    assert_eq!(
        out.stderr,
        "web  0/2 running  1 starting\nweb  1/2 running\nweb  2/2 running\nweb  2/2 running  stable 1 s\n"
    );
    assert_eq!((out.stdout.as_str(), out.code), ("svc1\n", Some(0)));
}

#[tokio::test]
async fn a_program_that_ends_after_its_start_does_not_count_as_converged() {
    let fake = Fake::start();
    let dead = || task("a", "web.1", "n2", Shutdown, pb::TaskState::Failed, "exited");
    fake.world().watches = [
        vec![Ok(progress(1, 1, vec![on("a", "web.1", pb::TaskState::Running)]))],
        vec![Ok(progress(1, 1, vec![on("b", "web.1", pb::TaskState::Running)]))],
        vec![
            Ok(progress(0, 1, vec![dead(), on("b", "web.1", pb::TaskState::Starting)])),
            Ok(progress(1, 1, vec![dead(), on("b", "web.1", pb::TaskState::Running)])),
        ],
        vec![Ok(progress(1, 1, vec![dead(), on("b", "web.1", pb::TaskState::Running)]))],
    ]
    .into();
    let out = fake.run("service create --name web true").await;
    assert_eq!(
        out.stderr,
        "web  1/1 running\nweb.1 on n2 failed: exited\nweb  0/1 running  1 starting  1 failed\n\
         web  1/1 running  1 failed\nweb  1/1 running  1 failed  stable 1 s\n"
    );
    assert_eq!(out.code, Some(0));
}

#[tokio::test]
async fn tasks_that_keep_failing_end_the_wait_with_their_message() {
    let fake = Fake::start();
    let failed = |n: u64| {
        let mut task =
            task(&n.to_string(), "web.1", "n2", Shutdown, pb::TaskState::Rejected, "no program 'nope'");
        task.status.as_mut().unwrap().since_ms = n * 2_000;
        Ok(progress(0, 1, vec![task]))
    };
    fake.world().watches = [(1..=5).map(failed).collect()].into();
    let out = fake.run("service create --name web nope").await;
    assert_eq!((out.stdout.as_str(), out.code), ("svc1\n", Some(1)));
    assert_eq!(out.stderr.matches("web.1 on n2 rejected: no program 'nope'\n").count(), 6, "{}", out.stderr);
    assert!(
        out.stderr.contains("error[E0310]: task web.1 failed 5 times and does not come up"),
        "{}",
        out.stderr
    );
}

#[tokio::test]
async fn a_wait_ends_at_its_time_limit_and_says_what_goes_on() {
    let fake = Fake::start();
    fake.world().silent = true;
    fake.world().watches = [vec![Ok(progress(
        0,
        1,
        vec![task("a", "web.1", "", Running, pb::TaskState::Pending, "no node fits")],
    ))]]
    .into();
    let out = fake.run("service create --name web --timeout 700ms true").await;
    assert_eq!((out.stdout.as_str(), out.code), ("svc1\n", Some(8)));
    assert_eq!(
        out.stderr,
        "web  0/1 running  1 pending   web.1: no node fits\n\
         error[E0500]: service 'web' has not converged after 700ms; it goes on in the background\n  \
         help: 'shoal service ps web' shows where it stands\n  more: shoal explain E0500\n"
    );
}

#[tokio::test]
async fn control_c_leaves_and_says_what_goes_on() {
    let fake = Fake::start();
    fake.world().silent = true;
    fake.world().services = vec![service("svc1", "web", 1)];
    fake.world().watches = [vec![Ok(progress(0, 3, vec![]))]].into();
    let child = start(&fake.host(), &["service", "scale", "web=3"]);
    let watched = async {
        while !fake.world().watches.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    tokio::time::timeout(Duration::from_secs(20), watched).await.expect("never watched");
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
    let out = finish(child).await;
    assert_eq!(out.code, Some(130));
    assert_eq!(
        out.stderr,
        "web  0/3 running\ninterrupted: service 'web' goes on converging in the background; \
         'shoal service ps web' shows it\n"
    );
}

#[tokio::test]
async fn an_update_counts_what_is_updated_and_a_removal_meanwhile_ends_it() {
    let fake = Fake::start();
    fake.world().services = vec![service("svc1", "web", 2)];
    let mut gone = progress(0, 2, vec![]);
    gone.gone = true;
    let old = task("old", "web.1", "n1", Shutdown, pb::TaskState::Failed, "history");
    fake.world().watches = [vec![Ok(progress(1, 2, vec![old])), Ok(gone)]].into();
    let out = fake.run("service update --force web").await;
    assert_eq!((out.stdout.as_str(), out.code), ("web\n", Some(4)));
    assert!(out.stderr.starts_with("web  1/2 updated\nweb  gone\n"), "{}", out.stderr);
    assert!(out.stderr.contains("error[E0200]: service 'web' was removed meanwhile\n"), "{}", out.stderr);
}

#[tokio::test]
async fn rm_waits_until_the_tasks_are_gone() {
    let fake = Fake::start();
    fake.world().services = vec![service("svc1", "web", 1)];
    let mut gone = progress(0, 1, vec![]);
    gone.gone = true;
    let stopping = task("a", "web.1", "n1", pb::DesiredState::Draining, pb::TaskState::Running, "");
    fake.world().watches = [vec![Ok(progress(1, 1, vec![stopping])), Ok(gone)]].into();
    let out = fake.run("service rm web").await;
    assert_eq!((out.stdout.as_str(), out.code), ("web\n", Some(0)));
    assert_eq!(out.stderr, "web  1 to stop\nweb  gone\n");
}
