//! ls, ps, inspect, logs, status, version: layouts.

use serde_json::Value;
use shoal_api::pb;

use crate::fake::{Fake, service, task};
use crate::run::{Outcome, quiet_success, run};

fn two_services() -> Fake {
    let fake = Fake::start();
    let mut web = service("websvcidwebsvcidwebsvcid1", "web", 3);
    web.running = 2;
    web.ports = vec![pb::PublishedPort {
        protocol: pb::Protocol::Tcp.into(),
        published: 8080,
        target: 80,
        ..Default::default()
    }];
    web.vips = vec![pb::Attachment { network: "neta".into(), v4: "10.9.0.2".into(), ..Default::default() }];
    fake.world().services = vec![web, service("apisvcidapisvcidapisvcid1", "api", 1)];
    fake
}

#[tokio::test]
async fn service_ls_in_every_form() {
    let fake = two_services();
    assert_eq!(
        fake.run("service ls").await,
        quiet_success(
            "ID            NAME  MODE        REPLICAS  COMMAND                    PORTS\n\
             apisvcidapis  api   replicated  1/1       python3 -m http.server 80  -\n\
             websvcidwebs  web   replicated  2/3       python3 -m http.server 80  *:8080->80/tcp\n"
        )
    );
    assert_eq!(fake.run("service ls -q").await, quiet_success("apisvcidapis\nwebsvcidwebs\n"));
    assert_eq!(
        fake.run("service ls -q --no-trunc --filter name=web").await,
        quiet_success("websvcidwebsvcidwebsvcid1\n")
    );
    assert_eq!(
        fake.run("service ls --format {{.Name}}:{{.Replicas}}").await,
        quiet_success("api:1/1\nweb:2/3\n")
    );
    let words = ["service", "ls", "--format", r"table {{.Name}}\t{{.VIPs}}"];
    assert_eq!(
        crate::run::run_words(&fake.host(), &words).await,
        quiet_success("NAME  VIPS\napi\nweb   app:10.9.0.2\n")
    );
    let lines = fake.run("service ls --format json").await.stdout;
    let objects: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects[1]["Ports"], "*:8080->80/tcp");
}

#[tokio::test]
async fn json_is_one_document_of_a_named_version() {
    let fake = two_services();
    let document: Value = serde_json::from_str(&fake.run("service ls --json").await.stdout).unwrap();
    assert_eq!(
        (document["apiVersion"].as_str(), document["kind"].as_str()),
        (Some("shoal/v1"), Some("ServiceList"))
    );
    let web = &document["items"][1];
    assert_eq!(
        (web["name"].as_str(), web["running"].as_u64(), web["wanted"].as_u64()),
        (Some("web"), Some(2), Some(3))
    );
    assert_eq!(web["vips"][0]["network"], "app");
    assert_eq!(web["spec"]["process"]["command"][0], "python3");
    let empty: Value = serde_json::from_str(&fake.run("swarm token ls --json").await.stdout).unwrap();
    assert_eq!(empty["items"], serde_json::json!([]));
}

#[tokio::test]
async fn inspect_takes_names_prefixes_and_templates() {
    let fake = two_services();
    let array: Value = serde_json::from_str(&fake.run("service inspect web api").await.stdout).unwrap();
    assert_eq!(
        (array[0]["Spec"]["Name"].as_str(), array[1]["Spec"]["Name"].as_str()),
        (Some("web"), Some("api"))
    );
    assert_eq!(
        fake.run("service inspect --format {{.Spec.Name}}={{.Spec.Mode.Replicated.Replicas}} webs").await,
        quiet_success("web=3\n")
    );
    let missing = fake.run("service inspect nobody").await;
    assert_eq!((missing.stdout.as_str(), missing.code), ("", Some(4)));
    assert!(missing.stderr.starts_with("error[E0200]: no service has the name, id or id prefix 'nobody'\n"));
    let network: Value = serde_json::from_str(&fake.run("network inspect app").await.stdout).unwrap();
    assert_eq!(network[0]["IPAM"]["Config"][0]["Subnet"], "10.9.0.0/20");
    let wrong = fake.run("service inspect --format {{.Spec.Image}} web").await;
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.stderr.contains("no field '.Spec.Image'"), "{}", wrong.stderr);
}

#[tokio::test]
async fn ps_shows_where_and_why() {
    let fake = two_services();
    let mut up = task("t1", "web.1", "n2", pb::DesiredState::Running, pb::TaskState::Running, "");
    up.attachments = vec![
        pb::Attachment { network: "neti".into(), v4: "10.255.0.9".into(), ..Default::default() },
        pb::Attachment { network: "neta".into(), v4: "10.9.0.12".into(), ..Default::default() },
    ];
    let reason = "0 of 3 nodes fit: 3 are drained";
    let waiting = task("t2", "web.2", "", pb::DesiredState::Running, pb::TaskState::Pending, reason);
    fake.world().tasks = vec![waiting, up];
    let words = [
        "service",
        "ps",
        "web",
        "--format",
        "table {{.Name}}\\t{{.Node}}\\t{{.State}}\\t{{.Address}}\\t{{.Reason}}",
    ];
    assert_eq!(
        crate::run::run_words(&fake.host(), &words).await,
        quiet_success(
            "NAME   NODE  STATE    ADDRESS    REASON\n\
             web.1  n2    running  10.9.0.12\n\
             web.2        pending             0 of 3 nodes fit: 3 are drained\n"
        )
    );
    let table = fake.run("service ps web").await.stdout;
    assert!(
        table.starts_with("NAME   COMMAND  NODE  DESIRED  STATE      HEALTH  ADDRESS    REASON\n"),
        "{table}"
    );
    assert_eq!(fake.run("service ps nobody").await.code, Some(4));
}

#[tokio::test]
async fn node_and_network_ls() {
    let fake = Fake::start();
    let node = |id: &str, name: &str, role: pb::NodeRole, leader: bool| pb::NodeInfo {
        id: id.into(),
        name: name.into(),
        role: role.into(),
        availability: pb::Availability::Active.into(),
        state: pb::NodeState::Ready.into(),
        data_addr: "10.0.3.11".into(),
        weight: (!leader).then_some(20),
        leader,
        ..Default::default()
    };
    fake.world().nodes = vec![
        node("n2idaaaaaaaaaaaaaaaaaaaaa", "n2", pb::NodeRole::Worker, false),
        node("4kq2aaaaaaaaaaaaaaaaaaaaa", "n1", pb::NodeRole::Manager, true),
    ];
    assert_eq!(
        fake.run("node ls").await.stdout,
        "ID              NAME  STATUS  AVAILABILITY  WEIGHT  ROLE              ADDRESS    TASKS  VERSION\n\
         4kq2aaaaaaaa *  n1    ready   active        1       manager (leader)  10.0.3.11  0      -\n\
         n2idaaaaaaaa    n2    ready   active        20      worker            10.0.3.11  0      -\n"
    );
    assert_eq!(fake.run("node ls -q --filter role=worker").await, quiet_success("n2idaaaaaaaa\n"));
    assert_eq!(fake.run("node inspect self --format {{.Description.Hostname}}").await, quiet_success("n1\n"));
    assert_eq!(fake.run("node inspect n2 --format {{.Spec.Weight}}").await, quiet_success("20\n"));
    let item: serde_json::Value = serde_json::from_str(&fake.run("node ls --json").await.stdout).unwrap();
    assert_eq!((&item["items"][0]["weight"], &item["items"][1]["weight"]), (&1.into(), &20.into()));
    assert_eq!(
        fake.run("network ls").await.stdout,
        "ID    NAME     SUBNET         SUBNET6    VNI   ADDRESSES  SERVICES\n\
         neta  app      10.9.0.0/20    fd53::/64  4097  3/4093     0\n\
         neti  ingress  10.255.0.0/16  fd53::/64  4097  3/4093     0\n"
    );
}

#[tokio::test]
async fn logs_name_the_task_and_send_gaps_to_stderr() {
    let fake = two_services();
    let line = |line: &[u8], stderr, gap: &str| pb::LogEntry {
        task_name: "web.1".into(),
        node_name: "n2".into(),
        time_ms: 1_772_359_920_500,
        stderr,
        line: line.to_vec(),
        gap: gap.into(),
    };
    fake.world().logs =
        vec![line(b"GET /", false, ""), line(b"oops", true, ""), line(b"", false, "n3: no session")];
    let out = fake.run("service logs --tail 5 web").await;
    assert_eq!(
        out,
        Outcome {
            stdout: "web.1.n2 | GET /\n".into(),
            stderr: "web.1.n2 | oops\nwarning: n3: no session\n".into(),
            code: Some(0),
        }
    );
    assert_eq!(fake.world().log_requests[0].tail, Some(5));
    let stamped = fake.run("service logs -t --raw web").await.stdout;
    assert_eq!(stamped, "2026-03-01T10:12:00.500Z GET /\n");
}

#[tokio::test]
async fn status_and_version() {
    let fake = Fake::start();
    fake.world().cluster =
        pb::ClusterInfo { name: "otter".into(), leader: Some("n1".into()), ..Default::default() };
    let status = fake.run("status").await;
    assert!(status.stdout.starts_with("Swarm otter   leader n1 (term 0)"), "{status:?}");
    assert!(status.stdout.contains("\nNode n1   manager   session"), "{status:?}");
    fake.world().local.set_role(pb::NodeRole::Worker);
    let worker = fake.run("status").await;
    assert!(worker.stdout.starts_with("Node n1   worker of swarm otter"), "{worker:?}");
    assert_eq!((status.code, worker.code), (Some(0), Some(0)));
    let version = fake.run("version").await.stdout;
    assert!(version.contains("\nshoald  0.1.0"), "{version}");
    let alone = run("unix:///nonexistent/api.sock", "version").await;
    assert_eq!(alone.code, Some(0));
    assert!(alone.stderr.contains("does not answer at /nonexistent/api.sock"));
}

#[tokio::test]
async fn doctor_fails_by_its_exit_code() {
    let fake = Fake::start();
    let check = |name: &str, verdict: pb::Verdict, fix: &str| pb::Check {
        name: name.into(),
        verdict: verdict.into(),
        evidence: "seen".into(),
        fix: fix.into(),
    };
    fake.world().checks =
        vec![check("kernel", pb::Verdict::Ok, ""), check("disk", pb::Verdict::Warn, "make room")];
    let well = fake.run("doctor --peer 10.0.3.11").await;
    assert_eq!(well.code, Some(0), "{well:?}");
    assert_eq!(
        well.stdout,
        "ok    kernel        seen\nwarn  disk          seen\n      help: make room\n\
         ok    managers      10.0.3.11:7377 answers\n2 ok, 1 warned of, 0 failed\n"
    );
    let description = Some(pb::NodeDescription { version: "0.0.9".into(), ..Default::default() });
    fake.world().nodes = vec![pb::NodeInfo { name: "old".into(), description, ..Default::default() }];
    let mixed = fake.run("-q doctor").await;
    assert_eq!(mixed.code, Some(0), "{mixed:?}");
    assert!(mixed.stdout.contains("warn  versions      this node has 0.1.0, old has 0.0.9\n"), "{mixed:?}");
    fake.world().nodes.clear();
    fake.world().checks.push(check("mtu", pb::Verdict::Fail, "raise it"));
    let ill = fake.run("-q doctor").await;
    assert_eq!((ill.code, ill.stdout.lines().count()), (Some(9), 4), "{ill:?}");
    let json = fake.run("doctor --json").await;
    assert_eq!(json.code, Some(9));
    assert!(json.stdout.contains("\"verdict\":\"fail\"") || json.stdout.contains("\"verdict\": \"fail\""));
}
