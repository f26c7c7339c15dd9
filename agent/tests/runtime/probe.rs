//! Programs that are run beside a task's: in its world, as its user, and never left behind.

use std::fs;
use std::time::Duration;

use shoal_agent::drivers::runtime::process::ProcessRuntime;
use shoal_agent::drivers::runtime::{ProbeEnd, ProbeOutcome, Runtime, RuntimeError, RuntimeSpec};

use crate::fixture::{Node, pid_of, processes_naming};

const LIMIT: Duration = Duration::from_secs(20);

async fn start(runtime: &ProcessRuntime, spec: &RuntimeSpec) -> i32 {
    runtime.prepare(spec).await.expect("prepares");
    pid_of(&runtime.start(&spec.task).await.expect("starts"))
}

async fn probe(runtime: &ProcessRuntime, task: &str, script: &str, limit: Duration) -> ProbeOutcome {
    let command = ["/bin/sh", "-c", script].map(str::to_owned);
    runtime.probe(task, &command, limit).await.expect("asks")
}

fn text(outcome: &ProbeOutcome) -> String {
    String::from_utf8_lossy(&outcome.output).into_owned()
}

#[tokio::test]
async fn a_probe_is_in_the_task_s_world_with_no_more_than_the_task_has() {
    let node = Node::new();
    let runtime = node.runtime();
    let mut spec = node.spec("t1", "echo mark >/dev/shm/mark; exec sleep 1000");
    spec.user = Some("nobody".to_owned());
    spec.hostname = "web-1".to_owned();
    spec.env = vec![("A".to_owned(), "b c".to_owned())];
    spec.workdir = Some("/usr".into());
    spec.hosts = "10.1.2.3 web-1\n".to_owned();
    let pid = start(&runtime, &spec).await;
    let script = "until cat /dev/shm/mark; do sleep 0.05; done 2>/dev/null; id -u; hostname; pwd; echo $A; \
                  grep -c 10.1.2.3 /etc/hosts; ls /sys/class/net; pidof sleep >/dev/null && echo saw the task; \
                  grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status; echo to stderr >&2";
    let outcome = probe(&runtime, "t1", script, LIMIT).await;
    assert_eq!(outcome.end, ProbeEnd::Exited { code: 0 }, "{}", text(&outcome));
    assert_eq!(
        text(&outcome),
        "mark\n65534\nweb-1\n/usr\nb c\n1\nlo\nsaw the task\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n\
         NoNewPrivs:\t1\nto stderr\n"
    );
    // The same namespaces and the same control groups.
    for name in ["pid", "net", "mnt", "uts", "ipc"] {
        let own = fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("a namespace");
        let seen = probe(&runtime, "t1", &format!("readlink /proc/self/ns/{name}"), LIMIT).await;
        assert_eq!(text(&seen).trim(), own.display().to_string());
    }
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("groups");
    let outcome = probe(&runtime, "t1", "cat /proc/self/cgroup", LIMIT).await;
    let tail = text(&outcome);
    assert!(
        groups.ends_with(tail.split_once('\n').map_or("", |(_, rest)| rest)),
        "{tail} is not the end of {groups}"
    );
    node.finish(runtime).await;
}

#[tokio::test]
async fn a_probe_says_how_it_ended_and_the_last_it_wrote() {
    let node = Node::new();
    let runtime = node.runtime();
    start(&runtime, &node.spec("t1", "exec sleep 1000")).await;
    let outcome = probe(&runtime, "t1", "yes 0123456789 | head -100000; echo bad; exit 7", LIMIT).await;
    assert_eq!(outcome.end, ProbeEnd::Exited { code: 7 });
    assert!(text(&outcome).ends_with("\nbad\n") && outcome.output.len() <= 512, "{}", text(&outcome));
    let outcome = probe(&runtime, "t1", "kill -6 $$", LIMIT).await;
    assert_eq!(outcome.end, ProbeEnd::Killed { signal: 6 });
    let outcome = runtime.probe("t1", &["no-such-program".to_owned()], LIMIT).await.expect("asks");
    assert!(
        matches!(&outcome.end, ProbeEnd::Failed { reason } if reason.contains("not found")),
        "{outcome:?}"
    );
    runtime.stop("t1", Duration::ZERO).await.expect("stops");
    let outcome = runtime.probe("t1", &["true".to_owned()], LIMIT).await.expect("asks");
    assert!(matches!(outcome.end, ProbeEnd::Failed { .. }), "{outcome:?}");
    let unknown = runtime.probe("t2", &["true".to_owned()], LIMIT).await;
    assert!(matches!(unknown, Err(RuntimeError::NotFound(_))), "{unknown:?}");
    node.finish(runtime).await;
}

#[tokio::test]
async fn a_probe_that_takes_too_long_is_killed_with_its_whole_group() {
    let node = Node::new();
    let runtime = node.runtime();
    start(&runtime, &node.spec("t1", "exec sleep 1000")).await;
    let mark = format!("98765{}", std::process::id());
    let script = format!("sleep {mark} & trap '' TERM; echo waiting; sleep {mark}");
    let outcome = probe(&runtime, "t1", &script, Duration::from_millis(300)).await;
    assert_eq!((outcome.end.clone(), text(&outcome)), (ProbeEnd::TimedOut, "waiting\n".to_owned()));
    gone(&mark).await;
    // What it leaves in the background when it ends by itself goes, too, and does not hold it up.
    let outcome = probe(&runtime, "t1", &format!("sleep {mark} & echo left one"), LIMIT).await;
    assert_eq!(
        (outcome.end.clone(), text(&outcome)),
        (ProbeEnd::Exited { code: 0 }, "left one\n".to_owned())
    );
    gone(&mark).await;
    // Nobody waits for the answer any more.
    let script = format!("exec sleep {mark}");
    let asking =
        tokio::time::timeout(Duration::from_millis(300), probe(&runtime, "t1", &script, LIMIT)).await;
    assert!(asking.is_err());
    gone(&mark).await;
    node.finish(runtime).await;
}

/// Waits until no process names the mark.
async fn gone(mark: &str) {
    for _ in 0..500 {
        if processes_naming(mark).is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("left: {:?}", processes_naming(mark));
}
