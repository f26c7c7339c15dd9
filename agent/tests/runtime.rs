//! The process runtime against the real kernel, as root: each test has its own directories, control group name
//! and network namespaces, and leaves none of them.

#[path = "runtime/fixture.rs"]
mod fixture;
#[path = "runtime/probe.rs"]
mod probe;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use shoal_agent::drivers::runtime::process::ProcessRuntime;
use shoal_agent::drivers::runtime::{
    ExitCause, LogQuery, LogSource, ObservedTask, Runtime, RuntimeSpec, RuntimeState, StartStage, Ulimit,
};
use shoal_agent::netns::NetnsDir;

use fixture::{Node, config, output, pid_of, processes_naming, refusal, run, spec_of};

type Change = Box<dyn Fn(&mut RuntimeSpec)>;

#[tokio::test]
async fn a_task_ends_with_its_code_and_its_output_is_kept() {
    let node = Node::new();
    let runtime = node.runtime();
    let mut ends = runtime.subscribe();
    let exit = run(&runtime, &node.spec("t1", "echo out; echo err >&2; exit 7")).await;
    assert_eq!(exit.cause, ExitCause::Code { code: 7 });
    assert_eq!(ends.recv().await.expect("told").task, "t1");
    let mut entries = runtime.logs("t1", LogQuery::default()).await.expect("log");
    let mut seen = Vec::new();
    while let Some(entry) = entries.next().await {
        let entry = entry.expect("entry");
        seen.push((entry.source, String::from_utf8(entry.line).expect("UTF-8")));
    }
    seen.sort_by_key(|(source, _)| *source == LogSource::Stderr);
    assert_eq!(seen, [(LogSource::Stdout, "out".to_owned()), (LogSource::Stderr, "err".to_owned())]);
    assert!(matches!(runtime.start("t1").await, Ok(RuntimeState::Exited(_))), "never run twice");
    node.finish(runtime).await;
}

#[tokio::test]
async fn a_task_ends_by_any_signal() {
    let node = Node::new();
    let runtime = node.runtime();
    for (task, signal) in [("t1", 6), ("t2", 35)] {
        let exit = run(&runtime, &node.spec(task, &format!("kill -{signal} $$"))).await;
        assert_eq!(exit.cause, ExitCause::Signal { signal });
    }
    node.finish(runtime).await;
}

#[tokio::test]
async fn a_task_sees_its_own_world() {
    let node = Node::new();
    let runtime = node.runtime();
    let mut spec = node.spec(
        "t1",
        "hostname; cat /etc/resolv.conf /etc/hosts; echo pid $$ of $(ls -d /proc/[0-9]* | wc -l); pwd; \
         echo \"env $A $HOME $UNSET\"; ls /sys/class/net; \
         grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs)' /proc/self/status",
    );
    spec.hostname = "web-1".to_owned();
    spec.resolv_conf = "nameserver 127.0.0.11\n".to_owned();
    spec.hosts = "10.1.2.3 web-1\n".to_owned();
    spec.env = vec![("A".to_owned(), "b c".to_owned())];
    spec.workdir = Some("/usr".into());
    let exit = run(&runtime, &spec).await;
    let text = output(&runtime, "t1").await;
    assert!(exit.is_success(), "{text}");
    for expected in [
        "web-1\nnameserver 127.0.0.11\n10.1.2.3 web-1\n",
        "\n/usr\n",
        "\nenv b c /root \n",
        "\nlo\n",
        "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
         CapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\n",
    ] {
        assert!(text.contains(expected), "{expected:?} not in:\n{text}");
    }
    assert!(text.contains("pid 2 of"), "{text}");
    node.finish(runtime).await;
}

#[tokio::test]
async fn a_task_cannot_reach_the_host() {
    let node = Node::new();
    let runtime = node.runtime();
    fs::create_dir_all(node.dir.path().join("run")).expect("run directory");
    fs::write(node.dir.path().join("run/api.sock"), "secret").expect("file");
    let run_dir = node.dir.path().join("run").display().to_string();
    // Each line prints something only if the task got where it must not.
    let script = format!(
        "for f in /etc/x /usr/x /proc/sys/kernel/core_pattern /sys/kernel/x; do \
           (echo x >$f) 2>/dev/null && echo wrote $f; done
         ls {run_dir}/api.sock 2>/dev/null
         ls -A {run_dir} {tasks} 2>/dev/null | grep -v :
         ls /proc/1/root/ 2>/dev/null
         ls -l /proc/1/fd 2>/dev/null | grep -- '->'
         mount -t tmpfs x /mnt 2>/dev/null && echo mounted
         mknod /tmp/x-{pid} b 8 0 2>/dev/null && echo device
         ls /dev | grep -E '^(vd|sd|kvm|mem|kmsg)'
         kill -9 1 2>/dev/null; kill -0 {pid} 2>/dev/null && echo saw the host
         ls /sys/fs/cgroup 2>/dev/null | head -1
         echo done",
        tasks = node.dir.path().join("state").display(),
        pid = std::process::id(),
    );
    let exit = run(&runtime, &node.spec("t1", &script)).await;
    let text = output(&runtime, "t1").await;
    assert!(exit.is_success(), "{exit:?} {text}");
    assert_eq!(text.trim(), "done");
    node.finish(runtime).await;
}

#[tokio::test]
async fn capabilities_and_user_are_as_given() {
    let node = Node::new();
    let runtime = node.runtime();
    let script = "id -u >/dev/stdout; id -g; grep -E '^Cap(Eff|Bnd|Amb)' /proc/self/status; ulimit -n";
    let mut spec = node.spec("t1", script);
    spec.user = Some("nobody".to_owned());
    spec.capabilities = vec!["CAP_NET_RAW".to_owned()];
    spec.ulimits = vec![Ulimit { name: "nofile".to_owned(), soft: 77, hard: 99 }];
    run(&runtime, &spec).await;
    let text = output(&runtime, "t1").await;
    let raw = "0000000000002000";
    assert_eq!(text, format!("65534\n65534\nCapEff:\t{raw}\nCapBnd:\t{raw}\nCapAmb:\t{raw}\n77\n"));
    node.finish(runtime).await;
}

#[tokio::test]
async fn a_task_has_the_limit_of_open_files_that_the_agent_was_started_with() {
    let node = Node::new();
    let mut config = config(node.dir.path(), &node.cgroup);
    config.open_files = Some(200);
    let runtime = ProcessRuntime::open(config).expect("runtime opens");
    let hard = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("a limit").1;
    run(&runtime, &node.spec("t1", "ulimit -Sn; ulimit -Hn")).await;
    assert_eq!(output(&runtime, "t1").await, format!("200\n{hard}\n"));
    runtime.prepare(&node.spec("t2", "exec sleep 1000")).await.expect("prepares");
    runtime.start("t2").await.expect("starts");
    let command = ["/bin/sh", "-c", "ulimit -Sn"].map(str::to_owned);
    let probe = runtime.probe("t2", &command, Duration::from_secs(20)).await.expect("asks");
    assert_eq!(String::from_utf8_lossy(&probe.output), "200\n");
    node.finish(runtime).await;
}

#[tokio::test]
async fn a_low_port_needs_no_capability() {
    let node = Node::new();
    let runtime = node.runtime();
    let mut spec = node.spec("t1", "");
    let program = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 80)); print('bound')";
    spec.command = ["python3", "-c", program].map(str::to_owned).to_vec();
    spec.user = Some("nobody".to_owned());
    run(&runtime, &spec).await;
    assert_eq!(output(&runtime, "t1").await, "bound\n");
    node.finish(runtime).await;
}

#[tokio::test]
async fn starts_that_cannot_be_are_refused_with_the_reason() {
    let node = Node::new();
    let runtime = node.runtime();
    let bad_interpreter = node.dir.path().join("bad");
    fs::write(&bad_interpreter, "#!/no/such/interpreter\n").expect("file");
    Command::new("chmod").arg("755").arg(node.dir.path()).arg(&bad_interpreter).status().expect("chmod");
    let command = |path: &str| -> Change {
        let path = path.to_owned();
        Box::new(move |spec| spec.command = vec![path.clone()])
    };
    let cases: Vec<(Change, StartStage, &str)> = vec![
        (command("/no/such"), StartStage::Program, "/no/such"),
        (command("no-such-program"), StartStage::Program, "not found in PATH"),
        (command("/etc/passwd"), StartStage::Program, "not executable"),
        (command(bad_interpreter.to_str().expect("UTF-8")), StartStage::Program, "interpreter"),
        (Box::new(|spec| spec.user = Some("nobody-here".to_owned())), StartStage::User, "nobody-here"),
        (Box::new(|spec| spec.workdir = Some("/no/dir".into())), StartStage::Workdir, "/no/dir"),
        (Box::new(|spec| spec.root = Some("/no/root".into())), StartStage::Root, "/no/root"),
        (Box::new(|spec| spec.netns = "/no/netns".into()), StartStage::Namespaces, "/no/netns"),
        (Box::new(|spec| spec.netns = "/etc/passwd".into()), StartStage::Namespaces, "/etc/passwd"),
    ];
    for (number, (change, stage, reason)) in cases.into_iter().enumerate() {
        let mut spec = node.spec(&format!("t{number}"), "true");
        change(&mut spec);
        let (was_stage, was_reason) = refusal(&runtime, &spec).await;
        assert_eq!(was_stage, stage, "{was_reason}");
        assert!(was_reason.contains(reason), "{was_reason}");
        let state = runtime.state(&spec.task).await.expect("state").expect("known");
        assert!(matches!(state, RuntimeState::Rejected(_)), "{state:?}");
    }
    node.finish(runtime).await;
}

#[tokio::test]
async fn a_stop_asks_first_and_kills_all_of_it_then() {
    // Tasks start with signals as they should be, however the agent was started.
    SigSet::all().thread_block().expect("blocked");
    let node = Node::new();
    let runtime = node.runtime();
    let polite = node.spec("polite", "trap 'exit 3' TERM; while :; do sleep 0.05; done");
    let stubborn = node.spec("stubborn", "trap '' TERM; setsid sleep 1000 & while :; do sleep 0.05; done");
    let other = RuntimeSpec {
        stop_signal: "USR1".to_owned(),
        ..node.spec("other", "trap 'exit 4' USR1; while :; do sleep 0.05; done")
    };
    let plain = node.spec("plain", "exec sleep 1000");
    for spec in [&polite, &stubborn, &other, &plain] {
        runtime.prepare(spec).await.expect("prepares");
        runtime.start(&spec.task).await.expect("starts");
    }
    // Until the traps are set.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let grace = Duration::from_secs(10);
    let exit = runtime.stop("polite", grace).await.expect("stops");
    assert_eq!(exit.cause, ExitCause::Code { code: 3 });
    let exit = runtime.stop("other", grace).await.expect("stops");
    assert_eq!(exit.cause, ExitCause::Code { code: 4 });
    let exit = runtime.stop("plain", grace).await.expect("stops");
    assert_eq!(exit.cause, ExitCause::Signal { signal: 15 });
    let begun = Instant::now();
    let exit = runtime.stop("stubborn", Duration::from_millis(500)).await.expect("stops");
    assert_eq!(exit.cause, ExitCause::Signal { signal: 9 });
    assert!((500..5000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    node.finish(runtime).await;
}

#[tokio::test]
async fn a_killed_task_is_noticed_at_once() {
    let node = Node::new();
    let runtime = node.runtime();
    let mut delays = Vec::new();
    for number in 0..5 {
        let spec = node.spec(&format!("t{number}"), "sleep 1000 & exec sleep 1000");
        runtime.prepare(&spec).await.expect("prepares");
        let pid = pid_of(&runtime.start(&spec.task).await.expect("starts"));
        let mut ends = runtime.subscribe();
        let begun = Instant::now();
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kills");
        let ended = ends.recv().await.expect("told");
        delays.push(begun.elapsed());
        assert_eq!(ended.exit.cause, ExitCause::Signal { signal: 9 });
    }
    // The median: other tests want the processors too.
    delays.sort();
    assert!(delays[2] < Duration::from_millis(50), "{delays:?}");
    node.finish(runtime).await;
}

#[tokio::test]
async fn a_task_has_a_group_of_processor_time_only_for_a_limit() {
    let node = Node::new();
    let runtime = node.runtime();
    let mut limited = node.spec("limited", "cat /proc/self/cgroup");
    limited.limits.cpu_millis = Some(500);
    for spec in [node.spec("free", "cat /proc/self/cgroup"), limited] {
        let exit = run(&runtime, &spec).await;
        let text = output(&runtime, &spec.task).await;
        assert!(exit.is_success(), "{text}");
        assert!(text.contains(&node.cgroup), "no group:\n{text}");
        // Where `cpu` has a hierarchy of its own.
        let cpu = text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let is_cpu = fields.next()?.split(',').any(|controller| controller == "cpu");
            is_cpu.then(|| fields.next()).flatten()
        });
        if let Some(group) = cpu {
            assert_eq!(group.contains(&node.cgroup), spec.limits.cpu_millis.is_some(), "{text}");
        }
    }
    node.finish(runtime).await;
}

#[tokio::test]
async fn limits_are_kept() {
    let node = Node::new();
    let runtime = node.runtime();
    let mut hungry = node.spec("hungry", "");
    let eat = "b = bytearray(200 << 20); print('full')";
    hungry.command = ["python3", "-c", eat].map(str::to_owned).to_vec();
    hungry.limits.memory_bytes = Some(64 << 20);
    let exit = run(&runtime, &hungry).await;
    assert_eq!(exit.cause, ExitCause::Signal { signal: 9 }, "{}", output(&runtime, "hungry").await);
    assert!(exit.out_of_memory);

    let mut forks = node.spec("forks", "");
    let fork = "import os, time\nn = 0\ntry:\n  while n < 50:\n    if os.fork() == 0: time.sleep(100)\n    n += 1\n\
                except OSError: print('refused after', n)";
    forks.command = ["python3", "-c", fork].map(str::to_owned).to_vec();
    forks.limits.pids = Some(10);
    let exit = run(&runtime, &forks).await;
    assert!(exit.is_success());
    assert_eq!(output(&runtime, "forks").await, "refused after 9\n");

    let mut busy = node.spec("busy", "");
    let spin = "import time\nbegun, end = time.process_time(), time.monotonic() + 2\n\
                while time.monotonic() < end: pass\nprint(time.process_time() - begun)";
    busy.command = ["python3", "-c", spin].map(str::to_owned).to_vec();
    busy.limits.cpu_millis = Some(200);
    run(&runtime, &busy).await;
    let used: f64 = output(&runtime, "busy").await.trim().parse().expect("seconds");
    assert!(used < 1.0, "used {used} s of two seconds with a limit of 0.2 CPU");
    node.finish(runtime).await;
}

/// Names the node of [`an_agent_to_be_killed`]: its directory and its control group.
const NODE: &str = "SHOAL_TEST_NODE";

#[tokio::test]
#[ignore = "not a test: the agent that an_agent_that_is_killed_leaves_its_tasks_running starts and kills"]
async fn an_agent_to_be_killed() {
    let node = std::env::var(NODE).expect("a node");
    let (dir, cgroup) = node.split_once(' ').expect("two words");
    let runtime = ProcessRuntime::open(config(Path::new(dir), cgroup)).expect("opens");
    let netns = NetnsDir::new(&Path::new(dir).join("run"));
    for task in ["stays", "goes"] {
        let script = match task {
            "stays" => "n=0; while :; do n=$((n+1)); echo line $n; sleep 0.02; done",
            _ => "sleep 0.5; exit 5",
        };
        runtime.prepare(&spec_of(&netns, task, script)).await.expect("prepares");
        runtime.start(task).await.expect("starts");
    }
    println!("\nready");
    tokio::time::sleep(Duration::from_secs(30)).await;
}

#[tokio::test]
async fn an_agent_that_is_killed_leaves_its_tasks_running() {
    let node = Node::new();
    let mut agent = Command::new(std::env::current_exe().expect("own program"))
        .args(["an_agent_to_be_killed", "--exact", "--ignored", "--nocapture"])
        .env(NODE, format!("{} {}", node.dir.path().display(), node.cgroup))
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut said = BufReader::new(agent.stdout.take().expect("output")).lines();
    assert!(said.any(|line| line.expect("reads") == "ready"), "the agent failed");
    let before = node.runtime().observe().await.expect("observes");
    agent.kill().expect("kills");
    agent.wait().expect("reaps");
    let lines = output(&node.runtime(), "stays").await.lines().count();
    // While no agent is there: output goes on, one task ends.
    tokio::time::sleep(Duration::from_secs(1)).await;

    let runtime = node.runtime();
    let after = runtime.observe().await.expect("observes");
    let of = |tasks: &[ObservedTask], task: &str| {
        tasks.iter().find(|observed| observed.spec.task == task).expect("observed").clone()
    };
    assert_eq!(of(&before, "stays"), of(&after, "stays"), "same spec, process and start");
    let RuntimeState::Exited(exit) = of(&after, "goes").state else { panic!("{after:?}") };
    assert_eq!(exit.cause, ExitCause::Code { code: 5 });
    let text = output(&runtime, "stays").await;
    assert!(text.lines().count() > lines + 3, "no output while no agent was there");
    assert!(text.lines().zip(1..).all(|(line, number)| line == format!("line {number}")), "a gap:\n{text}");

    let mut ends = runtime.subscribe();
    runtime.stop("stays", Duration::from_secs(5)).await.expect("stops");
    assert_eq!(ends.recv().await.expect("told").task, "stays");
    node.finish(runtime).await;
}

#[tokio::test]
async fn what_a_power_cut_leaves_is_cleared_away() {
    let node = Node::new();
    let runtime = node.runtime();
    for task in ["half", "damaged", "lost"] {
        runtime.prepare(&node.spec(task, "true")).await.expect("prepares");
        runtime.start(task).await.expect("starts");
        runtime.wait(task).await.expect("ends");
    }
    let file = |task: &str, name: &str| node.dir.path().join("state/tasks").join(task).join(name);
    fs::remove_file(file("half", "task.json")).expect("removes");
    fs::write(file("damaged", "task.json"), "").expect("writes");
    fs::write(file("lost", "status.json"), "{").expect("writes");
    drop(runtime);
    let runtime = node.runtime();
    let observed = runtime.observe().await.expect("observes");
    assert_eq!(observed.len(), 1, "{observed:?}");
    let RuntimeState::Exited(exit) = &observed[0].state else { panic!("{observed:?}") };
    assert_eq!((observed[0].spec.task.as_str(), exit.cause), ("lost", ExitCause::Lost));
    node.finish(runtime).await;
}

#[tokio::test]
async fn a_task_without_a_record_is_found_by_its_group() {
    let node = Node::new();
    let runtime = node.runtime();
    let spec = node.spec("t1", "sleep 1000");
    runtime.prepare(&spec).await.expect("prepares");
    let pid = pid_of(&runtime.start("t1").await.expect("starts"));
    drop(runtime);
    fs::remove_dir_all(node.dir.path().join("state")).expect("removes the state");
    let runtime = node.runtime();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !processes_naming(node.dir.path().to_str().expect("UTF-8")).is_empty() {
        assert!(Instant::now() < deadline, "process {pid} still runs");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.finish(runtime).await;
}

#[tokio::test]
async fn a_killed_monitor_takes_its_task_along() {
    let node = Node::new();
    let runtime = node.runtime();
    let spec = node.spec("t1", "setsid sleep 1000 & sleep 1000");
    runtime.prepare(&spec).await.expect("prepares");
    let pid = pid_of(&runtime.start("t1").await.expect("starts"));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("parent");
    let monitor = Pid::from_raw(parent.trim().parse().expect("number"));
    kill(monitor, Signal::SIGKILL).expect("kills");
    let exit = runtime.wait("t1").await.expect("ends");
    assert_eq!(exit.cause, ExitCause::Lost);
    assert_eq!(runtime.wait("t1").await.expect("ends"), exit, "the verdict is final");
    node.finish(runtime).await;
}

#[tokio::test]
async fn logs_can_be_followed_and_cut() {
    let node = Node::new();
    let runtime = node.runtime();
    let script = "trap go=1 USR1; printf '1\\n2\\n3\\n'; until [ $go ]; do sleep 0.05; done; echo 4";
    runtime.prepare(&node.spec("t1", script)).await.expect("prepares");
    runtime.start("t1").await.expect("starts");
    while output(&runtime, "t1").await != "1\n2\n3\n" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let query = LogQuery { tail: Some(2), follow: true, since: None };
    let (mut entries, mut all) = (runtime.logs("t1", query).await.expect("log"), vec![]);
    while let Some(entry) = entries.next().await {
        all.push(String::from_utf8(entry.expect("entry").line).expect("UTF-8"));
        if all.len() == 2 {
            runtime.signal("t1", "USR1").await.expect("signalled");
        }
    }
    assert_eq!(all, ["2", "3", "4"]);
    let since = Some(std::time::SystemTime::now() + Duration::from_hours(1));
    let late = runtime.logs("t1", LogQuery { since, ..LogQuery::default() }).await.expect("log");
    assert_eq!(late.count().await, 0);
    node.finish(runtime).await;
}

#[tokio::test]
async fn a_task_can_have_a_root_of_its_own() {
    let node = Node::new();
    let runtime = node.runtime();
    let root = node.dir.path().join("root");
    // The host's programs, seen through links of a file system that is otherwise the task's own.
    for name in ["bin", "lib", "lib64", "usr"] {
        let host = Path::new("/").join(name);
        if host.is_symlink() {
            let to = fs::read_link(&host).expect("link");
            fs::create_dir_all(&root).expect("root");
            std::os::unix::fs::symlink(to, root.join(name)).expect("link");
        } else if host.is_dir() {
            fs::create_dir_all(root.join(name)).expect("root");
        }
    }
    let copy = |path: &str| {
        let to = root.join(path);
        fs::create_dir_all(to.parent().expect("parent")).expect("directory");
        fs::copy(Path::new("/").join(path), to).expect("copy");
    };
    for program in ["usr/bin/sh", "usr/bin/cat", "usr/bin/ls"] {
        copy(program);
        let libraries = Command::new("ldd").arg(Path::new("/").join(program)).output().expect("ldd");
        for word in String::from_utf8_lossy(&libraries.stdout).split_whitespace() {
            if let Some(path) = word.strip_prefix('/').filter(|_| Path::new(word).is_file()) {
                let real = fs::canonicalize(word).expect("library");
                let to =
                    root.join(if path.starts_with("usr") { path.to_owned() } else { format!("usr/{path}") });
                fs::create_dir_all(to.parent().expect("parent")).expect("directory");
                fs::copy(real, to).expect("copy");
            }
        }
    }
    let mut spec = node.spec("t1", "ls /; cat /etc/hosts /etc/resolv.conf; echo x >/x && echo wrote");
    spec.root = Some(root.clone());
    spec.hosts = "10.0.0.1 me\n".to_owned();
    spec.resolv_conf = "nameserver 127.0.0.11\n".to_owned();
    let exit = run(&runtime, &spec).await;
    let text = output(&runtime, "t1").await;
    assert!(exit.is_success(), "{exit:?} {text}");
    assert!(text.ends_with("10.0.0.1 me\nnameserver 127.0.0.11\nwrote\n"), "{text}");
    assert!(!text.contains("home"), "the host's root shows: {text}");
    assert!(!root.join("etc/hosts").exists(), "the root directory itself was changed");

    let mut spec = RuntimeSpec { task: "t2".to_owned(), read_only: true, ..spec };
    spec.command[2] = "echo x >/y && echo wrote; echo done".to_owned();
    run(&runtime, &spec).await;
    assert!(!output(&runtime, "t2").await.contains("wrote"));
    node.finish(runtime).await;
}

#[tokio::test]
async fn a_read_only_view_of_the_host_runs_programs_and_takes_no_files() {
    let node = Node::new();
    let runtime = node.runtime();
    let script = "echo x >/dev/null && ! echo x >/shoal-ro && echo kept out; cat /etc/hosts";
    let (read_only, hosts) = (true, "10.0.0.1 me\n".to_owned());
    let spec = RuntimeSpec { read_only, hosts, ..node.spec("t1", script) };
    let exit = run(&runtime, &spec).await;
    let text = output(&runtime, "t1").await;
    assert!(exit.is_success(), "{exit:?} {text}");
    assert!(text.contains("10.0.0.1 me\n") && text.contains("kept out\n"), "{text}");
    node.finish(runtime).await;
}
