//! create, update, scale, rm: what is asked for, what is printed.

use shoal_api::pb;
use shoal_api::status::ApiError;
use shoal_types::ErrorCode;

use crate::fake::{Fake, service};
use crate::run::{Outcome, quiet_success};

fn result(code: i32, stdout: &str, stderr: &str) -> Outcome {
    Outcome { stdout: stdout.into(), stderr: stderr.into(), code: Some(code) }
}

#[tokio::test]
async fn create_asks_for_what_the_flags_say_and_waits() {
    let fake = Fake::start();
    let line = "service create --name web --replicas 3 -p 8080:80 --network app -- python3 -m http.server 80";
    assert_eq!(fake.run(line).await, result(0, "svc1\n", "web  1/1 running\nweb  1/1 running  stable 1 s\n"));
    let world = fake.world();
    let spec = world.created[0].spec.clone().unwrap();
    assert_eq!(spec.mode, Some(pb::service_spec::Mode::Replicas(3)));
    assert_eq!(spec.task.unwrap().process.unwrap().command, ["python3", "-m", "http.server", "80"]);
    assert_eq!(spec.networks[0].network, "app");
    assert_eq!(world.request_ids[0].len(), 32);
}

#[tokio::test]
async fn detach_does_not_wait_and_tells_the_port_chosen() {
    let fake = Fake::start();
    let line = "service create -d --name web -p 80 true";
    assert_eq!(fake.run(line).await, result(0, "svc1\n", "port 30000 was chosen for target port 80\n"));
    assert_eq!(fake.run("service create -d -q --name api -p 80 true").await, quiet_success("svc1\n"));
    let json = fake.run("service create -d --json -q --name db true").await.stdout;
    let document: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(document["items"][0], serde_json::json!({ "id": "svc1", "name": "db" }));
    let world = fake.world();
    assert_ne!(world.request_ids[0], world.request_ids[1]);
}

#[tokio::test]
async fn what_nodes_say_of_the_ports_is_told_with_the_change() {
    let fake = Fake::start();
    let line =
        |name: &str| format!("seen from n2: service '{name}' publishes 22/tcp, and a program here listens");
    fake.world().cluster.warnings = vec![line("web"), line("api"), "n3 is late".into()];
    fake.world().services = vec![service("svc9", "api", 1)];
    let told = |name: &str| format!("warning: {}\n", line(name));
    assert_eq!(
        fake.run("service create -d --name web -p 22:80 true").await,
        result(0, "svc1\n", &told("web"))
    );
    // Without a port it can't be of its own.
    assert_eq!(fake.run("service create -d --name api true").await, quiet_success("svc1\n"));
    let out = fake.run("service update -d --publish-add 22:80 api").await;
    assert_eq!(out, result(0, "api\n", &told("api")));
}

#[tokio::test]
async fn update_reads_modifies_and_writes_with_the_version() {
    let fake = Fake::start();
    fake.world().services = vec![service("svc1", "web", 2)];
    let out = fake.run("service update -d --env-add A=1 --label-rm x --args 81 web").await;
    assert_eq!(out, result(0, "web\n", "warning: --label-rm x: there is none\n"));
    {
        let world = fake.world();
        let update = &world.updated[0];
        assert_eq!(update.expect_version, 7);
        let process = update.spec.clone().unwrap().task.unwrap().process.unwrap();
        assert_eq!(
            (process.env, process.command),
            (vec!["A=1".to_owned()], vec!["python3".into(), "81".into()])
        );
    }
    fake.run("service update -d --force-version --replicas 4 svc").await;
    assert_eq!(fake.world().updated[1].expect_version, 0);
}

#[tokio::test]
async fn a_policy_is_asked_for_shown_and_changed() {
    let fake = Fake::start();
    fake.run("service create -d --name web --lb leastconn true").await;
    assert_eq!(fake.world().created[0].spec.clone().unwrap().lb, "leastconn");
    let shown = fake.run("service inspect web --format {{.Endpoint.LB}}").await;
    assert_eq!(shown, quiet_success("leastconn\n"));
    assert_eq!(fake.run("service ls --format {{.Name}}={{.LB}}").await, quiet_success("web=leastconn\n"));
    assert_eq!(
        fake.run("service update --dry-run --lb rr web").await,
        result(10, "web\n  ~ lb: \"leastconn\" -> \"rr\"\n", "")
    );
    fake.run("service update -d --lb rr web").await;
    assert_eq!(fake.world().updated[1].spec.clone().unwrap().lb, "rr");
    fake.run("service update -d --replicas 2 web").await;
    assert_eq!(fake.world().updated[2].spec.clone().unwrap().lb, "rr", "it stays");
    let out = fake.run("service create --name api --lb least true").await;
    assert_eq!(out.code, Some(2));
    assert!(out.stderr.contains("use auto, rr, leastconn, maglev, source or random"), "{}", out.stderr);
}

#[tokio::test]
async fn a_conflict_is_exit_code_5() {
    let fake = Fake::start();
    fake.world().services = vec![service("svc1", "web", 2)];
    let error = ApiError::new(ErrorCode::VersionConflict, "service 'web' was changed at 10:12")
        .with_help("re-run, or --force-version");
    fake.world().refuse("update_service", error);
    assert_eq!(
        fake.run("service update --force web").await,
        result(
            5,
            "",
            "error[E0211]: service 'web' was changed at 10:12\n  help: re-run, or --force-version\n  \
             more: shoal explain E0211\n"
        )
    );
}

#[tokio::test]
async fn a_dry_run_lists_changes_and_makes_none() {
    let fake = Fake::start();
    fake.world().services = vec![service("svc1", "web", 2)];
    assert_eq!(
        fake.run("service update --dry-run --replicas 5 --publish-add 8080:80 web").await,
        result(10, "web\n  ~ ports: [] -> [\"*:8080->80/tcp\"]\n  ~ replicas: 2 -> 5\n", "")
    );
    assert!(fake.world().updated[0].dry_run);
    assert_eq!(fake.run("service update --dry-run web").await, quiet_success("web: no change\n"));
    assert_eq!(
        fake.run("service scale --dry-run web=5").await,
        result(10, "web\n  ~ replicas: 2 -> 5\n", "")
    );
    assert_eq!(fake.run("service scale --dry-run web=2").await, quiet_success("web: no change\n"));
    assert_eq!(fake.run("service rm --dry-run web").await, result(10, "web\n  - service 'web'\n", ""));
    assert_eq!(fake.run("service create --dry-run --name api true").await.code, Some(10));
    let world = fake.world();
    assert_eq!(world.services, [service("svc1", "web", 2)]);
}

#[tokio::test]
async fn scale_and_rm_take_several_and_report_each() {
    let fake = Fake::start();
    fake.world().services = vec![service("svc1", "web", 2), service("svc2", "api", 1)];
    let out = fake.run("service scale -d web=5 nobody=1 api=2").await;
    assert_eq!((out.stdout.as_str(), out.code), ("web\napi\n", Some(4)));
    assert!(out.stderr.starts_with("error[E0200]: no service 'nobody'\n"), "{}", out.stderr);
    assert_eq!(fake.world().services[0].wanted, 5);
    let out = fake.run("service rm web nobody api").await;
    assert_eq!((out.stdout.as_str(), out.code), ("web\napi\n", Some(4)));
    assert!(fake.world().services.is_empty());
}

#[tokio::test]
async fn networks() {
    let fake = Fake::start();
    let line = "network create --subnet 10.50.0.0/24 --subnet fd00:50::/64 --internal --label team=blue back";
    assert_eq!(fake.run(line).await, quiet_success("netnew\n"));
    let spec = fake.world().network_requests[0].spec.clone().unwrap();
    assert_eq!(spec.subnet4.as_deref(), Some("10.50.0.0/24"));
    assert_eq!(spec.subnet6.as_deref(), Some("fd00:50::/64"));
    assert!(spec.internal);
    assert_eq!(fake.run("network rm back").await, quiet_success("back\n"));
    let error = ApiError::new(ErrorCode::SubnetOverlap, "10.9.0.0/24 overlaps network 'app'");
    fake.world().refuse("create_network", error);
    let out = fake.run("network create --subnet 10.9.0.0/24 two").await;
    assert_eq!((out.stdout.as_str(), out.code), ("", Some(5)));
    assert!(out.stderr.starts_with("error[E0215]: 10.9.0.0/24 overlaps network 'app'\n"));
}

#[tokio::test]
async fn several_targets_are_one_document() {
    let fake = Fake::start();
    fake.world().services = vec![service("svc1", "web", 2), service("svc2", "api", 1)];
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let dry = fake.run("service scale --json --dry-run web=5 api=1").await;
    assert_eq!(dry.code, Some(10));
    let want = serde_json::json!([
        { "name": "web", "changes": ["~ replicas: 2 -> 5"] },
        { "name": "api", "changes": [] },
    ]);
    assert_eq!(
        (parse(&dry.stdout)["items"].clone(), parse(&dry.stdout)["kind"].as_str()),
        (want, Some("ServiceDryRun"))
    );
    let gone = fake.run("service rm --json -q web nobody api").await;
    assert_eq!(gone.code, Some(4));
    let want = serde_json::json!([{ "id": "svc1", "name": "web" }, { "id": "svc2", "name": "api" }]);
    assert_eq!(parse(&gone.stdout)["items"], want);
    let none = fake.run("service rm --json web").await;
    assert_eq!((none.stdout.as_str(), none.code), ("", Some(4)));
}

#[tokio::test]
async fn a_node_is_drained_and_labelled() {
    let fake = Fake::start();
    let node = |id: &str, name: &str| pb::NodeInfo {
        id: id.into(),
        name: name.into(),
        availability: pb::Availability::Active.into(),
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        ..Default::default()
    };
    fake.world().nodes =
        vec![node("4kq2aaaaaaaaaaaaaaaaaaaaa", "n1"), node("7zz2aaaaaaaaaaaaaaaaaaaaa", "n2")];
    let line = "node update --availability drain --label-add rack=3 --label-rm zone --label-rm x n2";
    let would =
        "n2\n  ~ availability: \"active\" -> \"drain\"\n  - labels.zone: \"a\"\n  + labels.rack: \"3\"\n";
    let warning = "warning: --label-rm x: there is none\n";
    assert_eq!(fake.run(&format!("{line} --dry-run")).await, result(10, would, warning));
    assert_eq!(fake.run(line).await, result(0, "n2\n", warning));
    assert_eq!(fake.world().nodes[1].availability(), pb::Availability::Drain);
    assert_eq!(fake.run("node update --availability pause self").await, quiet_success("n1\n"));
    assert_eq!(fake.world().nodes[0].availability(), pb::Availability::Pause);
    let missing = fake.run("node update --availability active n9").await;
    assert_eq!((missing.code, missing.stdout.as_str()), (Some(4), ""));
    assert_eq!(fake.world().request_ids.len(), 3, "each carries its own");
}

#[tokio::test]
async fn a_node_is_given_a_weight() {
    let fake = Fake::start();
    let node = |id: &str, name: &str, weight| pb::NodeInfo {
        id: id.into(),
        name: name.into(),
        availability: pb::Availability::Active.into(),
        weight,
        ..Default::default()
    };
    fake.world().nodes = vec![
        node("4kq2aaaaaaaaaaaaaaaaaaaaa", "n1", Some(1)),
        node("7zz2aaaaaaaaaaaaaaaaaaaaa", "n2", Some(1)),
    ];
    let would = "n2\n  ~ weight: 1 -> 100\n";
    assert_eq!(fake.run("node update --weight 100 --dry-run n2").await, result(10, would, ""));
    assert_eq!(fake.world().nodes[1].weight, Some(1));
    assert_eq!(fake.run("node update --weight 100 n2").await, quiet_success("n2\n"));
    assert_eq!(fake.run("node update --weight 100 --dry-run n2").await, quiet_success("n2: no change\n"));
    // Other changes leave it.
    assert_eq!(fake.run("node update --availability pause n2").await, quiet_success("n2\n"));
    assert_eq!(fake.world().nodes[1].weight, Some(100));
    // What the manager has to say about it.
    let note = "warning: service 'web' takes no new connection: n1\n";
    assert_eq!(fake.run("node update --weight 0 n1").await, result(0, "n1\n", note));
    for wrong in ["101", "-1", "1.5", "much"] {
        let refused = fake.run(&format!("node update --weight={wrong} n1")).await;
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(2), ""), "{}", refused.stderr);
        assert!(refused.stderr.contains("--weight <N>"), "{}", refused.stderr);
    }
    assert_eq!(fake.world().nodes[0].weight, Some(0));
    // A manager that would leave it out is not asked.
    fake.world().nodes[0].weight = None;
    let requests = fake.world().request_ids.len();
    let refused = fake.run("node update --weight 2 n1").await;
    assert_eq!((refused.code, fake.world().request_ids.len()), (Some(2), requests));
    assert!(refused.stderr.contains("version without weights"), "{}", refused.stderr);
}

#[tokio::test]
async fn ports_are_shown_as_ranges_and_told_one_by_one() {
    let fake = Fake::start();
    fake.run("service create -d --name web -p 8000-8099:8000-8099/udp -p 10.0.0.1:443:80 true").await;
    let listed = fake.run("service ls --format {{.Ports}}").await;
    assert_eq!(listed, quiet_success("*:8000-8099->8000-8099/udp, 10.0.0.1:443->80/tcp\n"));
    let json: serde_json::Value = serde_json::from_str(&fake.run("service ls --json").await.stdout).unwrap();
    let ports = json["items"][0]["ports"].as_array().unwrap();
    assert_eq!(ports.len(), 101);
    assert_eq!(
        ports[100],
        serde_json::json!({ "protocol": "tcp", "published": 443, "target": 80, "mode": "ingress", "ip": "10.0.0.1", "proxyProtocol": null, "dsr": false })
    );
    let inspected: serde_json::Value =
        serde_json::from_str(&fake.run("service inspect web").await.stdout).unwrap();
    let last = &inspected[0]["Endpoint"]["Ports"][100];
    assert_eq!((last["HostIp"].as_str(), last["PublishMode"].as_str()), (Some("10.0.0.1"), Some("ingress")));
    let update = "service update --dry-run --publish-rm 8000-8099 --publish-add target=53,mode=host web";
    let outcome = fake.run(update).await;
    assert_eq!(
        outcome.stdout,
        "web\n  ~ ports: [\"*:8000-8099->8000-8099/udp\",\"10.0.0.1:443->80/tcp\"] -> \
         [\"10.0.0.1:443->80/tcp\",\"*:auto->53/tcp (host)\"]\n"
    );
}

#[tokio::test]
async fn the_header_of_a_port_is_shown_wherever_the_port_is() {
    let fake = Fake::start();
    let create =
        "service create -d --name web -p published=443-444,target=80-81,proxy-protocol=v2 -p 8080:82 true";
    fake.run(create).await;
    let listed = fake.run("service ls --format {{.Ports}}").await;
    assert_eq!(listed, quiet_success("*:443-444->80-81/tcp (proxy v2), *:8080->82/tcp\n"));
    let json: serde_json::Value = serde_json::from_str(&fake.run("service ls --json").await.stdout).unwrap();
    let proxies: Vec<_> = (0..3).map(|n| json["items"][0]["ports"][n]["proxyProtocol"].as_str()).collect();
    assert_eq!(proxies, [Some("v2"), Some("v2"), None]);
    let inspected: serde_json::Value =
        serde_json::from_str(&fake.run("service inspect web").await.stdout).unwrap();
    for ports in [&inspected[0]["Endpoint"]["Ports"], &inspected[0]["Spec"]["EndpointSpec"]["Ports"]] {
        assert_eq!(ports[0]["ProxyProtocol"].as_str(), Some("v2"), "{ports}");
        assert_eq!(ports[2].get("ProxyProtocol"), None, "{ports}");
    }
    let update = "service update --dry-run --publish-rm 444 --publish-add 443:80 web";
    assert_eq!(
        fake.run(update).await.stdout,
        "web\n  ~ ports: [\"*:443-444->80-81/tcp (proxy v2)\",\"*:8080->82/tcp\"] -> \
         [\"*:8080->82/tcp\",\"*:443->80/tcp\"]\n"
    );
}

#[tokio::test]
async fn direct_return_of_a_port_is_shown_switched_and_removed_by() {
    let fake = Fake::start();
    let create = "service create -d --name web -p published=443-444,target=80-81,dsr=true -p 8080:82 true";
    fake.run(create).await;
    let listed = fake.run("service ls --format {{.Ports}}").await;
    assert_eq!(listed, quiet_success("*:443-444->80-81/tcp (dsr), *:8080->82/tcp\n"));
    let json: serde_json::Value = serde_json::from_str(&fake.run("service ls --json").await.stdout).unwrap();
    let direct: Vec<_> = (0..3).map(|n| json["items"][0]["ports"][n]["dsr"].as_bool()).collect();
    assert_eq!(direct, [Some(true), Some(true), Some(false)]);
    let inspected: serde_json::Value =
        serde_json::from_str(&fake.run("service inspect web").await.stdout).unwrap();
    for ports in [&inspected[0]["Endpoint"]["Ports"], &inspected[0]["Spec"]["EndpointSpec"]["Ports"]] {
        assert_eq!(ports[0]["Dsr"].as_bool(), Some(true), "{ports}");
        assert_eq!(ports[2].get("Dsr"), None, "{ports}");
    }
    let update = "service update --dry-run --publish-rm published=1-8080,dsr=true \
                  --publish-add published=8080,target=82,dsr=true web";
    assert_eq!(
        fake.run(update).await.stdout,
        "web\n  ~ ports: [\"*:443-444->80-81/tcp (dsr)\",\"*:8080->82/tcp\"] -> [\"*:8080->82/tcp (dsr)\"]\n"
    );
    let update = "service update -d --publish-add 443:80 --publish-add published=444,target=81,dsr=false web";
    assert_eq!(fake.run(update).await, quiet_success("web\n"));
    assert!(fake.world().services[0].ports.iter().all(|port| !port.dsr));
}

#[tokio::test]
async fn an_update_tells_the_port_chosen_once() {
    let fake = Fake::start();
    fake.world().services = vec![service("svc1", "web", 2)];
    let first = fake.run("service update -d --publish-add 80 web").await;
    assert_eq!(first, result(0, "web\n", "port 30000 was chosen for target port 80\n"));
    let second = fake.run("service update -d --publish-add 80 web").await;
    assert_eq!(second, quiet_success("web\n"));
    // The number that was chosen names it.
    assert_eq!(fake.run("service update -d --publish-rm 30000 web").await, quiet_success("web\n"));
    assert_eq!(fake.world().services[0].ports, []);
}
