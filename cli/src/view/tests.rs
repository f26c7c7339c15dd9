use serde_json::Value;
use shoal_api::pb;

use super::ports::{chosen, ports_text};
use super::words::{command_text, protocol};
use super::*;
use crate::output::listing::{Row, check_columns};

fn lookup() -> Lookup {
    let network = |id: &str, name: &str, ingress| pb::NetworkInfo {
        id: id.into(),
        spec: Some(pb::NetworkSpec { name: name.into(), ..Default::default() }),
        ingress,
        ..Default::default()
    };
    Lookup::new(&[network("ni", "ingress", true), network("na", "app", false)], false, 1_000_000)
}

fn attachment(network: &str, v4: &str) -> pb::Attachment {
    pb::Attachment { endpoint: 7, network: network.into(), v4: v4.into(), v6: "fd00::7".into() }
}

fn task() -> pb::TaskInfo {
    pb::TaskInfo {
        id: "abcdefghijklmnopqrstuvwxy".into(),
        name: "web.1".into(),
        service_name: "web".into(),
        node_name: "n2".into(),
        slot: Some(pb::Slot { slot: Some(pb::slot::Slot::Number(1)) }),
        desired: pb::DesiredState::Running.into(),
        status: Some(pb::TaskStatus {
            state: pb::TaskState::Failed.into(),
            since_ms: 880_000,
            message: "ended\nat once".into(),
            exit_code: Some(3),
            ..Default::default()
        }),
        attachments: vec![attachment("ni", "10.255.0.3"), attachment("na", "10.9.0.12")],
        ..Default::default()
    }
}

fn field<'a>(row: &'a Row, name: &str) -> &'a Value {
    row.fields.get(name).unwrap_or(&Value::Null)
}

#[test]
fn every_default_column_has_its_field() {
    let l = lookup();
    check_columns(SERVICE_COLUMNS, &service_row(&pb::ServiceInfo::default(), &l));
    check_columns(TASK_COLUMNS, &task_row(&pb::TaskInfo::default(), &l));
    check_columns(NODE_COLUMNS, &node_row(&pb::NodeInfo::default(), "", &l));
    check_columns(NETWORK_COLUMNS, &network_row(&pb::NetworkInfo::default(), &l));
    check_columns(TOKEN_COLUMNS, &token_row(&pb::TokenInfo::default(), &l));
}

#[test]
fn a_task_that_drains_says_what_it_waits_for() {
    let draining = |connections, drain_ends_ms| pb::TaskInfo {
        desired: pb::DesiredState::Draining.into(),
        status: Some(pb::TaskStatus {
            state: pb::TaskState::Running.into(),
            connections,
            ..Default::default()
        }),
        drain_ends_ms,
        ..task()
    };
    for (connections, end, words) in [
        (None, None, "draining: not yet withdrawn by every node"),
        (None, Some(1_006_500), "draining: 7 s left"),
        (Some(1), Some(1_000_001), "draining: 1 connection, 1 s left"),
        (Some(12), Some(900_000), "draining: 12 connections, 0 s left"),
    ] {
        let row = task_row(&draining(connections, end), &lookup());
        assert_eq!(field(&row, "Reason"), words);
        assert_eq!(row.item["connections"], serde_json::json!(connections));
    }
    let over = pb::TaskInfo { desired: pb::DesiredState::Shutdown.into(), ..draining(None, None) };
    assert_eq!(field(&task_row(&over, &lookup()), "Reason"), "");
}

#[test]
fn a_task_shows_age_overlay_address_and_reason() {
    let row = task_row(&task(), &lookup());
    assert_eq!(row.id, "abcdefghijkl");
    assert_eq!(field(&row, "CurrentState"), "failed 2m");
    assert_eq!(field(&row, "Address"), "10.9.0.12");
    assert_eq!(field(&row, "Reason"), "ended at once (exit code 3)");
    assert_eq!(row.item["addresses"][1]["network"], "app");
    assert_eq!(row.item["exitCode"], 3);
    let mut alone = task();
    alone.attachments.truncate(1);
    assert_eq!(field(&task_row(&alone, &lookup()), "Address"), "10.255.0.3");
}

#[test]
fn a_checked_task_shows_its_health_and_another_none() {
    let row = task_row(&task(), &lookup());
    assert_eq!((field(&row, "Health"), &row.item["health"]), (&Value::from(""), &Value::Null));
    for (health, word) in [
        (pb::Health::Starting, "starting"),
        (pb::Health::Healthy, "healthy"),
        (pb::Health::Unhealthy, "unhealthy"),
    ] {
        let mut checked = task();
        checked.status.as_mut().unwrap().health = health.into();
        let row = task_row(&checked, &lookup());
        assert_eq!((field(&row, "Health"), &row.item["health"]), (&word.into(), &word.into()));
    }
}

#[test]
fn tasks_are_ordered_by_slot_then_newest() {
    let with = |slot, created_at_ms| {
        let slot = Some(pb::Slot { slot: Some(pb::slot::Slot::Number(slot)) });
        pb::TaskInfo { slot, created_at_ms, ..task() }
    };
    let mut tasks = [with(10, 1), with(2, 1), with(2, 9)];
    tasks.sort_by_key(task_order);
    let order: Vec<_> =
        tasks.iter().map(|t| (t.slot.clone().unwrap().slot.unwrap(), t.created_at_ms)).collect();
    assert_eq!(
        order,
        [(pb::slot::Slot::Number(2), 9), (pb::slot::Slot::Number(2), 1), (pb::slot::Slot::Number(10), 1)]
    );
}

#[test]
fn ports_and_commands_as_text() {
    let port = |proto: pb::Protocol, published, target| pb::PublishedPort {
        protocol: proto.into(),
        published,
        target,
        ..Default::default()
    };
    assert_eq!(
        ports_text(&[port(pb::Protocol::Tcp, 8080, 80), port(pb::Protocol::Udp, 53, 53)]),
        "*:8080->80/tcp, *:53->53/udp"
    );
    assert_eq!(protocol(pb::Protocol::Unspecified), "tcp");
    let own = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let long = own(&["sleep", &"1".repeat(50)]);
    assert_eq!(lookup().command(&long), format!("sleep {}…", "1".repeat(33)));
    assert_eq!(Lookup { no_trunc: true, ..lookup() }.command(&long), format!("sleep {}", "1".repeat(50)));
    assert_eq!(command_text(&own(&["sh", "-c", "echo 'a b'", ""])), r"sh -c 'echo '\''a b'\''' ''");
}

#[test]
fn inspect_has_dockers_shape() {
    let info = pb::ServiceInfo {
        id: "s1".into(),
        version: 4,
        spec: Some(pb::ServiceSpec {
            name: "web".into(),
            mode: Some(pb::service_spec::Mode::Replicas(2)),
            networks: vec![pb::AttachmentSpec { network: "na".into(), aliases: vec!["www".into()] }],
            drain_ms: 5,
            lb: "leastconn".into(),
            endpoint_mode: "dnsrr".into(),
            ..Default::default()
        }),
        vips: vec![attachment("na", "10.9.0.2")],
        ..Default::default()
    };
    let row = service_object(&info, &lookup());
    assert_eq!(field(&row, "Version")["Index"], 4);
    assert_eq!(field(&row, "Spec")["Mode"]["Replicated"]["Replicas"], 2);
    assert_eq!(field(&row, "Spec")["TaskTemplate"]["Networks"][0]["Name"], "app");
    assert_eq!(field(&row, "Endpoint")["VirtualIPs"][0]["Addr"], "10.9.0.2");
    assert_eq!(row.item["spec"]["networks"][0]["network"], "app");
    assert_eq!(row.item["vips"][0]["v6"], "fd00::7");
    assert_eq!(field(&row, "Endpoint")["LB"], "leastconn");
    assert_eq!(field(&row, "Spec")["EndpointSpec"]["LB"], "leastconn");
    assert_eq!((&row.item["lb"], &row.item["spec"]["lb"]), (&"leastconn".into(), &"leastconn".into()));
    assert_eq!(field(&row, "Spec")["EndpointSpec"]["Mode"], "dnsrr");
    assert_eq!(field(&row, "Spec")["TaskTemplate"]["Networks"][0]["Aliases"][0], "www");
    assert_eq!(
        (&row.item["endpointMode"], &row.item["spec"]["endpointMode"]),
        (&"dnsrr".into(), &"dnsrr".into())
    );
    assert_eq!(row.item["spec"]["networks"][0]["aliases"][0], "www");
    // A manager of the first version knows no policies and no endpoint modes.
    let old = service_object(&pb::ServiceInfo::default(), &lookup());
    assert_eq!((&field(&old, "Endpoint")["LB"], &old.item["lb"]), (&"auto".into(), &"auto".into()));
    assert_eq!((&field(&old, "Endpoint")["Mode"], &old.item["endpointMode"]), (&"vip".into(), &"vip".into()));
}

#[test]
fn a_node_shows_what_is_known_of_its_balancing() {
    let description = pb::NodeDescription {
        lb_engine: "ebpf".into(),
        ipvs: true,
        lb_lingering: true,
        lb_setting: "ebpf".into(),
        ..Default::default()
    };
    let node = pb::NodeInfo { description: Some(description), ..Default::default() };
    let row = node_object(&node, &lookup());
    let engine = &field(&row, "Description")["Engine"];
    assert_eq!((&engine["LBEngine"], &engine["LBSetting"]), (&"ebpf".into(), &"ebpf".into()));
    assert_eq!((&engine["IPVS"], &engine["LBLingering"]), (&true.into(), &true.into()));
    assert_eq!((&row.item["lbEngine"], &row.item["lbSetting"]), (&"ebpf".into(), &"ebpf".into()));
    assert_eq!((&row.item["ipvs"], &row.item["lbLingering"]), (&true.into(), &true.into()));
    // It has not said anything yet.
    let row = node_object(&pb::NodeInfo::default(), &lookup());
    let engine = &field(&row, "Description")["Engine"];
    assert_eq!((&engine["LBEngine"], &engine["IPVS"]), (&Value::Null, &Value::Null));
    assert_eq!((&row.item["ipvs"], &row.item["lbSetting"]), (&Value::Null, &"auto".into()));
}

#[test]
fn neighbors_are_shown_as_ranges() {
    let port = |published, target, mode: pb::PublishMode, ip: &str| pb::PublishedPort {
        protocol: pb::Protocol::Tcp.into(),
        published,
        target,
        mode: mode.into(),
        ip: ip.to_owned(),
        ..Default::default()
    };
    let (ingress, host) = (pb::PublishMode::Ingress, pb::PublishMode::Host);
    let mut ports: Vec<_> = (8000..=8010).map(|n| port(n, n - 7920, ingress, "")).collect();
    assert_eq!(ports_text(&ports), "*:8000-8010->80-90/tcp");
    ports.push(port(8011, 91, host, ""));
    ports.push(port(8012, 92, host, ""));
    ports.push(port(8013, 93, host, "192.0.2.1"));
    ports.push(port(8014, 94, ingress, "2001:db8::1"));
    ports.push(port(8015, 94, ingress, "2001:db8::1"));
    let headed = |port: pb::PublishedPort| pb::PublishedPort { proxy: pb::ProxyProtocol::V2.into(), ..port };
    ports.push(headed(port(8016, 95, ingress, "")));
    ports.push(headed(port(8017, 96, ingress, "")));
    ports.push(port(8018, 97, ingress, ""));
    ports.push(headed(port(8019, 98, host, "")));
    let direct = |port: pb::PublishedPort| pb::PublishedPort { dsr: true, ..port };
    ports.extend((8020..=8022).map(|n| direct(port(n, n - 7921, ingress, ""))));
    ports.push(port(8023, 102, ingress, ""));
    ports.push(direct(port(8024, 103, ingress, "192.0.2.1")));
    assert_eq!(
        ports_text(&ports),
        "*:8000-8010->80-90/tcp, *:8011-8012->91-92/tcp (host), 192.0.2.1:8013->93/tcp (host), \
         [2001:db8::1]:8014->94/tcp, [2001:db8::1]:8015->94/tcp, \
         *:8016-8017->95-96/tcp (proxy v2), *:8018->97/tcp, *:8019->98/tcp (host, proxy v2), \
         *:8020-8022->99-101/tcp (dsr), *:8023->102/tcp, 192.0.2.1:8024->103/tcp (dsr)"
    );
}

#[test]
fn chosen_ports_are_told_once() {
    let asked = |published, target| pb::PortSpec { published, target, ..Default::default() };
    let given = |published, target| pb::PublishedPort { published, target, ..Default::default() };
    let spec = [asked(0, 80), asked(8080, 81), asked(0, 82), asked(0, 83)];
    let now = [given(30_007, 80), given(8080, 81), given(30_010, 82), given(30_011, 83)];
    assert_eq!(
        chosen(&spec, &now, &[]),
        ["port 30007 was chosen for target port 80", "ports 30010-30011 were chosen for target ports 82-83"]
    );
    assert_eq!(chosen(&spec, &now, &now), Vec::<String>::new());
    let udp = pb::PublishedPort { protocol: pb::Protocol::Udp.into(), ..given(30_007, 80) };
    assert_eq!(chosen(&spec[..1], &[udp], &[]), ["port 30007/udp was chosen for target port 80/udp"]);
}
