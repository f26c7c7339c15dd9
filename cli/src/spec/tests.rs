use clap::Parser as _;

use super::*;
use crate::args::{Cli, Command, ServiceCommand};

fn create(flags: &[&str]) -> Result<pb::ServiceSpec, Failure> {
    let cli =
        Cli::try_parse_from(["shoal", "service", "create", "--name", "web"].iter().chain(flags)).unwrap();
    match cli.command {
        Command::Service(ServiceCommand::Create(args)) => created(&args),
        other => panic!("{other:?}"),
    }
}

fn update(spec: pb::ServiceSpec, flags: &[&str]) -> Result<(pb::ServiceSpec, Vec<String>), Failure> {
    let cli = Cli::try_parse_from(["shoal", "service", "update"].iter().chain(flags)).unwrap();
    let names = BTreeMap::from([("net1".to_owned(), "app".to_owned())]);
    match cli.command {
        Command::Service(ServiceCommand::Update(args)) => updated(&args, spec, &[], &names),
        other => panic!("{other:?}"),
    }
}

fn process(spec: &pb::ServiceSpec) -> pb::ProcessSpec {
    spec.task.clone().unwrap().process.unwrap()
}

#[test]
fn defaults_are_those_of_the_surface_and_the_wire_takes_them() {
    let spec = create(&["true"]).unwrap();
    assert_eq!(spec.mode, Some(service_spec::Mode::Replicas(1)));
    assert_eq!(spec.drain_ms, 5_000);
    assert_eq!(spec.update.unwrap().order(), pb::UpdateOrder::StartFirst);
    let task = spec.task.clone().unwrap();
    assert_eq!((task.stop_signal, task.stop_grace_ms), (15, 10_000));
    let typed = shoal_types::spec::ServiceSpec::try_from(spec.clone()).unwrap();
    assert_eq!(pb::ServiceSpec::from(&typed), spec);
}

#[test]
fn everything_given_arrives() {
    let line = "--replicas 3 -p 8080:80 -p 53:53/udp --network app,alias=www -e A=1 -e A=2 \
        --constraint node.role==worker --label team=blue --workdir /srv --user nobody --hostname h \
        --cap-add cap_net_raw --read-only --limit-cpu 0.5 --limit-memory 64m --limit-pids 10 --reserve-cpu 0.1 \
        --reserve-memory 32m --replicas-max-per-node 1 --restart-condition on-failure --restart-delay 1s \
        --restart-max-attempts 3 --restart-window 1m --update-parallelism 2 --update-delay 3s \
        --update-order stop-first --stop-signal INT --stop-grace-period 2s --drain 0 --lb source \
        -- python3 -m http.server 80";
    let spec = create(&line.split_whitespace().collect::<Vec<_>>()).unwrap();
    assert_eq!(spec.mode, Some(service_spec::Mode::Replicas(3)));
    assert_eq!(spec.ports.len(), 2);
    assert_eq!(spec.networks[0].aliases, ["www"]);
    assert_eq!((spec.drain_ms, spec.labels["team"].as_str()), (0, "blue"));
    assert_eq!(spec.lb, "source");
    let update = spec.update.unwrap();
    assert_eq!((update.parallelism, update.delay_ms, update.order()), (2, 3_000, pb::UpdateOrder::StopFirst));
    let task = spec.task.clone().unwrap();
    assert_eq!(task.constraints, ["node.role==worker"]);
    assert_eq!((task.stop_signal, task.stop_grace_ms, task.max_per_node), (2, 2_000, 1));
    let restart = task.restart.unwrap();
    assert_eq!(restart.condition(), pb::RestartCondition::OnFailure);
    assert_eq!((restart.delay_ms, restart.max_attempts, restart.window_ms), (1_000, 3, 60_000));
    let want = pb::Resources {
        limit_cpu_milli: 500,
        limit_memory: 64 << 20,
        limit_pids: 10,
        reserve_cpu_milli: 100,
        reserve_memory: 32 << 20,
    };
    assert_eq!(task.resources, Some(want));
    let process = process(&spec);
    assert_eq!(process.command, ["python3", "-m", "http.server", "80"]);
    assert_eq!(process.env, ["A=2"]);
    assert_eq!(process.cap_add, ["NET_RAW"]);
    assert!(process.read_only);
    assert_eq!(process.user.as_deref(), Some("nobody"));
}

#[test]
fn global_has_no_replicas() {
    assert_eq!(
        create(&["--mode", "global", "true"]).unwrap().mode,
        Some(service_spec::Mode::Global(pb::Empty {}))
    );
    assert!(matches!(create(&["--mode", "global", "--replicas", "2", "true"]), Err(Failure::Usage(_))));
    let global = create(&["--mode", "global", "true"]).unwrap();
    assert!(matches!(update(global, &["--replicas", "2", "web"]), Err(Failure::Usage(_))));
}

#[test]
fn an_update_without_flags_changes_nothing() {
    let spec = create(&["-p", "8080:80", "-e", "A=1", "--label", "x=y", "true"]).unwrap();
    assert_eq!(update(spec.clone(), &["web"]).unwrap(), (spec, vec![]));
}

#[test]
fn lists_are_edited_in_place() {
    let mut spec =
        create(&["-p", "8080:80", "-p", "9000:90", "-e", "A=1", "-e", "B=2", "--label", "x=y", "true"])
            .unwrap();
    spec.networks.push(pb::AttachmentSpec { network: "net1".into(), aliases: vec![] });
    let (new, warnings) = update(
        spec,
        &[
            "--publish-rm",
            "80",
            "--publish-add",
            "9000:91",
            "--env-rm",
            "A",
            "--env-add",
            "B=3",
            "--env-add",
            "C=4",
            "--label-rm",
            "x",
            "--label-add",
            "z=1",
            "--network-rm",
            "app",
            "--network-add",
            "back",
            "--constraint-add",
            "node.role==worker",
            "--replicas",
            "7",
            "--limit-memory",
            "1g",
            "--force",
            "web",
        ],
    )
    .unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    let want = pb::PortSpec { protocol: 1, published: 9000, target: 91, mode: 1, ..Default::default() };
    assert_eq!(new.ports, [want]);
    assert_eq!(process(&new).env, ["B=3", "C=4"]);
    assert_eq!(new.labels.into_iter().collect::<Vec<_>>(), [("z".to_owned(), "1".to_owned())]);
    assert_eq!(new.networks.iter().map(|n| n.network.as_str()).collect::<Vec<_>>(), ["back"]);
    assert_eq!(new.mode, Some(service_spec::Mode::Replicas(7)));
    let task = new.task.unwrap();
    assert_eq!((task.force_update, task.constraints.len()), (1, 1));
    assert_eq!(task.resources.unwrap().limit_memory, 1 << 30);
}

#[test]
fn removing_what_is_not_there_warns() {
    let spec = create(&["true"]).unwrap();
    let flags = ["--publish-rm", "80/udp", "--env-rm", "A", "--network-rm", "app", "--label-rm", "x", "web"];
    let (new, warnings) = update(spec.clone(), &flags).unwrap();
    assert_eq!(new, spec);
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    assert!(warnings.contains(&"--publish-rm 80/udp: no such port is published".to_owned()));
}

#[test]
fn the_command_can_be_replaced_whole_or_in_part() {
    let spec = create(&["python3", "-m", "http.server", "80"]).unwrap();
    for (flags, want) in [
        (vec!["web", "--", "sh", "-c", "exit 1"], vec!["sh", "-c", "exit 1"]),
        (vec!["--args", "-m http.server 81", "web"], vec!["python3", "-m", "http.server", "81"]),
        (vec!["--command", "sleep 'a b'", "web"], vec!["sleep", "a b"]),
        (vec!["--command", "sleep", "--args", "5", "web"], vec!["sleep", "5"]),
    ] {
        assert_eq!(process(&update(spec.clone(), &flags).unwrap().0).command, want);
    }
    assert!(update(spec.clone(), &["--command", " ", "web"]).is_err());
    assert!(update(spec, &["--args", "'", "web"]).is_err());
}

#[test]
fn a_policy_is_changed_alone() {
    let spec = create(&["true"]).unwrap();
    assert_eq!(spec.lb, "auto");
    for policy in ["auto", "rr", "leastconn", "maglev", "source", "random"] {
        let want = pb::ServiceSpec { lb: policy.into(), ..spec.clone() };
        assert_eq!(update(spec.clone(), &["--lb", policy, "web"]).unwrap().0, want);
        assert_eq!(update(want.clone(), &["web"]).unwrap().0, want, "not given: as it was");
    }
}

#[test]
fn an_endpoint_mode_is_changed_alone() {
    let spec = create(&["true"]).unwrap();
    assert_eq!(spec.endpoint_mode, "vip");
    assert_eq!(create(&["--endpoint-mode", "dnsrr", "true"]).unwrap().endpoint_mode, "dnsrr");
    for mode in ["vip", "dnsrr"] {
        let want = pb::ServiceSpec { endpoint_mode: mode.into(), ..spec.clone() };
        assert_eq!(update(spec.clone(), &["--endpoint-mode", mode, "web"]).unwrap().0, want);
        assert_eq!(update(want.clone(), &["web"]).unwrap().0, want, "not given: as it was");
    }
}

#[test]
fn resolver_settings_are_lists() {
    let flags = [
        "--dns",
        "192.0.2.53",
        "--dns",
        "fd00::53",
        "--dns-search",
        "corp.example",
        "--dns-option",
        "ndots:2",
    ];
    let spec = create(&[&flags[..], &["true"]].concat()).unwrap();
    let dns = |servers: &[&str], search: &[&str], options: &[&str]| {
        let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Some(pb::DnsSpec { servers: own(servers), search: own(search), options: own(options) })
    };
    assert_eq!(spec.dns, dns(&["192.0.2.53", "fd00::53"], &["corp.example"], &["ndots:2"]));
    let flags = ["--dns-rm", "192.0.2.53", "--dns-add", "fd00:0::53", "--dns-search-rm", "corp.example"];
    let more = ["--dns-search-add", ".", "--dns-option-rm", "rotate", "--dns-option-add", "rotate", "web"];
    let (new, warnings) = update(spec.clone(), &[&flags[..], &more].concat()).unwrap();
    assert_eq!(new.dns, dns(&["fd00::53"], &["."], &["ndots:2", "rotate"]));
    assert_eq!(warnings, ["--dns-option-rm rotate: there is none"]);
    assert_eq!(update(spec.clone(), &["web"]).unwrap().0, spec, "not given: as it was");
    assert!(
        Cli::try_parse_from(["shoal", "service", "create", "--name", "web", "--dns", "ns.example", "true"])
            .is_err()
    );
}

#[test]
fn an_empty_text_takes_a_setting_away() {
    let spec = create(&["--workdir", "/srv", "true"]).unwrap();
    assert_eq!(process(&update(spec, &["--workdir", "", "web"]).unwrap().0).workdir, None);
}

#[test]
fn a_health_check_is_given_changed_and_taken_away() {
    use pb::health_check::Probe;
    let spec = create(&["--health-cmd", "curl -f localhost", "--health-retries", "5", "true"]).unwrap();
    let health = |spec: &pb::ServiceSpec| spec.task.clone().unwrap().health.unwrap();
    let command =
        pb::HealthCommand { words: ["/bin/sh", "-c", "curl -f localhost"].map(str::to_owned).to_vec() };
    let first = health(&spec);
    assert_eq!(first.probe, Some(Probe::Command(command)));
    assert_eq!(
        (first.interval_ms, first.timeout_ms, first.retries, first.start_period_ms),
        (30_000, 30_000, 5, 0)
    );
    let flags = ["--health-http", "8080/healthz", "--health-interval", "2s", "web"];
    let (spec, _) = update(spec, &flags).unwrap();
    let http = pb::HealthHttp { target: "localhost:8080".into(), path: "/healthz".into() };
    let second = health(&spec);
    assert_eq!((second.probe, second.interval_ms, second.retries), (Some(Probe::Http(http)), 2_000, 5));
    let (same, _) = update(spec.clone(), &["--replicas", "2", "web"]).unwrap();
    assert_eq!(health(&same), health(&spec));
    let flags = ["--health-tcp", "[::1]:53", "--health-timeout", "1s", "--health-start-period", "1m", "web"];
    let (spec, _) = update(spec, &flags).unwrap();
    let third = health(&spec);
    assert_eq!(third.probe, Some(Probe::Tcp("[::1]:53".into())));
    assert_eq!((third.timeout_ms, third.start_period_ms), (1_000, 60_000));
    assert!(shoal_types::spec::ServiceSpec::try_from(spec.clone()).is_ok());
    let (spec, warnings) = update(spec, &["--no-healthcheck", "web"]).unwrap();
    assert_eq!((spec.task.clone().unwrap().health, warnings), (None, vec![]));
    let (_, warnings) = update(spec, &["--no-healthcheck", "web"]).unwrap();
    assert_eq!(warnings, ["--no-healthcheck: there is none"]);
}

#[test]
fn times_without_a_check_are_refused() {
    assert!(matches!(create(&["--health-interval", "1s", "true"]), Err(Failure::Usage(_))));
    let spec = create(&["true"]).unwrap();
    assert!(matches!(update(spec, &["--health-retries", "2", "web"]), Err(Failure::Usage(_))));
}

#[test]
fn ports_are_added_replaced_and_removed_in_every_form() {
    let texts = |spec: &pb::ServiceSpec| -> Vec<String> {
        let text =
            |p: &pb::PortSpec| format!("{} {}->{} {}", p.ip, p.published, p.target, p.mode().as_str_name());
        spec.ports.iter().map(text).collect()
    };
    let spec = create(&["-p", "8000-8002:80-82", "-p", "90", "true"]).unwrap();
    assert_eq!(spec.ports.len(), 4);
    let (same, _) = update(spec.clone(), &["--publish-add", "90", "web"]).unwrap();
    assert_eq!(same, spec, "an automatic port is not asked for twice");
    let flags =
        ["--publish-rm", "8000-8001:80-81", "--publish-add", "published=8002,target=82,mode=host", "web"];
    let (new, warnings) = update(spec.clone(), &flags).unwrap();
    assert_eq!(texts(&new), [" 0->90 PUBLISH_MODE_INGRESS", " 8002->82 PUBLISH_MODE_HOST"]);
    assert!(warnings.is_empty());
    // From every address to two, and back.
    let flags = ["--publish-add", "10.0.0.1:8002:82", "--publish-add", "10.0.0.2:8002:83", "web"];
    let (narrow, _) = update(spec, &flags).unwrap();
    assert_eq!(
        texts(&narrow)[3..],
        ["10.0.0.1 8002->82 PUBLISH_MODE_INGRESS", "10.0.0.2 8002->83 PUBLISH_MODE_INGRESS"]
    );
    let (wide, _) = update(narrow, &["--publish-add", "8002:82", "web"]).unwrap();
    assert_eq!(texts(&wide)[3..], [" 8002->82 PUBLISH_MODE_INGRESS"]);
}

#[test]
fn a_port_in_host_mode_makes_stop_first_the_default() {
    let order = |flags: &[&str]| create(flags).unwrap().update.unwrap().order();
    let host = "published=8080,target=80,mode=host";
    assert_eq!(order(&["-p", "8080:80", "true"]), pb::UpdateOrder::StartFirst);
    assert_eq!(order(&["-p", host, "true"]), pb::UpdateOrder::StopFirst);
    assert_eq!(order(&["-p", host, "--update-order", "start-first", "true"]), pb::UpdateOrder::StartFirst);
}
