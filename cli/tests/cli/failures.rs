//! Errors: text, code, exit code; nothing of the transport shows.

use std::time::Duration;

use shoal_api::pb;
use shoal_api::status::ApiError;
use shoal_types::ErrorCode;
use tonic::{Code, Status};

use crate::fake::Fake;
use crate::run::{finish, quiet_success, run, start};

#[tokio::test]
async fn without_a_daemon() {
    let out = run("unix:///nonexistent/api.sock", "service ls").await;
    assert_eq!((out.stdout.as_str(), out.code), ("", Some(6)));
    assert_eq!(
        out.stderr,
        "error[E0300]: no shoald at /nonexistent/api.sock: there is no such socket\n  \
         help: is shoald running? 'systemctl status shoald' shows it; -H names another socket\n  \
         more: shoal explain E0300\n"
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let out = run(&format!("unix://{}", path.display()), "status").await;
    assert_eq!(out.code, Some(6));
    assert!(out.stderr.contains("nobody listens"), "{}", out.stderr);
}

#[tokio::test]
async fn outside_a_swarm_and_on_a_worker() {
    let fake = Fake::start();
    fake.world().local.set_role(pb::NodeRole::Worker);
    fake.world().local.manager_addrs = vec!["10.0.3.11:7377".into()];
    let out = fake.run("service ls").await;
    assert_eq!(
        (out.stderr.as_str(), out.code),
        (
            "error[E0412]: this node is a worker; run it on a manager\n  asked: node 'n1' of swarm 'otter'\n  \
             help: managers: 10.0.3.11:7377\n  more: shoal explain E0412\n",
            Some(1)
        )
    );
    fake.world().local.set_membership(pb::Membership::None);
    for line in ["service ls", "status", "swarm leave --force"] {
        let out = fake.run(line).await;
        assert_eq!(out.code, Some(1));
        assert!(
            out.stderr.starts_with("error[E0411]: this node is in no swarm\n  help: 'shoal swarm init'"),
            "{out:?}"
        );
    }
}

#[tokio::test]
async fn an_error_of_the_manager_is_shown_whole() {
    let fake = Fake::start();
    let error = ApiError::new(ErrorCode::PortTaken, "port 8080/tcp is already published by service 'api'")
        .with_context("asked by: service 'web' (ingress)")
        .with_context("held by: api, since 2026-03-01 10:12")
        .with_help("choose another port, or 'shoal service update --publish-rm 80 api'");
    fake.world().refuse("create_service", error);
    let out = fake.run("service create --name web -p 8080:80 true").await;
    assert_eq!((out.stdout.as_str(), out.code), ("", Some(5)));
    assert_eq!(
        out.stderr,
        "error[E0214]: port 8080/tcp is already published by service 'api'\n  \
         asked by: service 'web' (ingress)    held by: api, since 2026-03-01 10:12\n  \
         help: choose another port, or 'shoal service update --publish-rm 80 api'\n  \
         more: shoal explain E0214\n"
    );
}

#[tokio::test]
async fn a_status_of_the_transport_never_shows() {
    for (code, exit) in [(Code::Internal, 1), (Code::Unimplemented, 1), (Code::PermissionDenied, 7)] {
        let fake = Fake::start();
        let status = Status::new(code, "h2 transport goo");
        fake.world().refuse.entry("list_services").or_default().push_back(status);
        let out = fake.run("service ls").await;
        assert_eq!(out.code, Some(exit), "{code:?}");
        assert!(out.stderr.starts_with("error[E0") && !out.stderr.contains("goo"), "{}", out.stderr);
    }
}

#[tokio::test]
async fn a_manager_that_is_coming_up_is_waited_for() {
    let fake = Fake::without_manager();
    let child = start(&fake.host(), &["network", "ls", "-q"]);
    tokio::time::sleep(Duration::from_millis(800)).await;
    fake.start_manager();
    assert_eq!(finish(child).await, quiet_success("neta\nneti\n"));
    let loud = Fake::without_manager();
    let child = start(&loud.host(), &["network", "ls", "--format", "{{.Name}}"]);
    tokio::time::sleep(Duration::from_millis(800)).await;
    loud.start_manager();
    let out = finish(child).await;
    assert_eq!(out.stdout, "app\ningress\n");
    assert_eq!(out.stderr, "waiting for the manager process on this node\n");
}

#[tokio::test]
async fn no_leader_is_asked_again_with_the_same_request_id() {
    let fake = Fake::start();
    for _ in 0..2 {
        fake.world().refuse("create_service", ApiError::new(ErrorCode::NoLeader, "no leader"));
    }
    let out = fake.run("service create -d --name web true").await;
    assert_eq!(out.code, Some(0), "{}", out.stderr);
    let world = fake.world();
    assert_eq!(world.request_ids.len(), 3);
    assert!(world.request_ids.iter().all(|id| id == &world.request_ids[0]));
    assert_eq!(world.created.len(), 1);
}

#[tokio::test]
async fn a_manager_that_stays_away_is_exit_code_6() {
    let fake = Fake::without_manager();
    let out = fake.run("--timeout 1s service ls").await;
    assert_eq!(out.code, Some(6));
    assert!(
        out.stderr.contains("\nerror[E0300]: the manager on this node does not answer\n"),
        "{}",
        out.stderr
    );
}

#[tokio::test]
async fn usage_errors_are_exit_code_2() {
    let fake = Fake::start();
    for line in [
        "service create --name web",
        "service create --name web -p 8080-8090:80 true",
        "service create --name web -p published=80,target=80,mode=mesh true",
        "service create --name web -p published=80,target=80,proxy-protocol=v1 true",
        "service create --name web -p published=80,target=80,dsr=on true",
        "service create --name web -p 80/dccp true",
        "service create --name web -p 127.0.0.1:8080:80 true",
        "service create --name web --limit-memory lots true",
        "service create --name web --env-file /nonexistent true",
        "service create --name web --mode global --replicas 2 true",
        "service ls --format {{.Nope",
        "service ls --filter color=red",
        "service frobnicate",
        "network create --subnet 10.0.0.0/24 --subnet 10.1.0.0/24 app",
        "explain E9999",
        "swarm leave",
    ] {
        let out = fake.run(line).await;
        assert_eq!((out.stdout.as_str(), out.code), ("", Some(2)), "{line}: {}", out.stderr);
        assert!(out.stderr.starts_with("error: "), "{line}: {}", out.stderr);
    }
    assert!(fake.world().request_ids.is_empty());
}

#[tokio::test]
async fn explain_and_completion_need_no_daemon() {
    let nowhere = "unix:///nonexistent/api.sock";
    let out = run(nowhere, "explain E0214").await;
    assert!(out.stdout.starts_with("E0214: another service publishes the port\n\n"));
    for (shell, sign) in [("bash", "_shoal()"), ("zsh", "#compdef shoal"), ("fish", "complete -c shoal")] {
        let out = run(nowhere, &format!("completion {shell}")).await;
        assert_eq!(out.code, Some(0));
        assert!(out.stdout.contains(sign), "{shell}");
    }
}

#[test]
fn a_reader_that_went_away_is_no_drama() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_shoal"))
        .args(["explain", "E0214"])
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!((out.stderr.as_slice(), out.status.code()), (&b""[..], Some(141)));
}
