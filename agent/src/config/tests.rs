use std::path::Path;

use super::*;

fn settings(files: &[(&str, &str)]) -> Result<Settings, ConfigError> {
    let mut settings = Settings::default();
    for (path, text) in files {
        settings.take_text(Path::new(path), text)?;
    }
    Ok(settings)
}

#[test]
fn a_certificate_s_life_has_a_unit() {
    for (text, seconds) in [("60s", 60), ("90m", 5_400), ("12h", 43_200), ("7d", 604_800)] {
        let mut settings = Settings::default();
        settings.take_env(|name| (name == "SHOAL_SECURITY_CERT_LIFETIME").then(|| text.to_owned()));
        let config = Config::from_settings(&settings).expect(text);
        assert_eq!(config.cert_lifetime, Duration::from_secs(seconds));
    }
}

#[test]
fn the_defaults_are_valid() {
    let config = Config::from_settings(&Settings::default()).expect("valid");
    assert_eq!(config.listen, Listen { address: "[::]:7377".parse().expect("literal"), is_set: false });
    assert_eq!(config.mtu, None);
    assert_eq!(config.lb_engine, LbEngine::Auto);
    assert_eq!((config.suspect_after, config.down_after), (Duration::from_secs(2), Duration::from_secs(10)));
    assert!(config.dns_search);
}

#[test]
fn a_listening_address_that_was_chosen_is_known_from_the_default() {
    let settings = settings(&[("/etc/x.toml", "[node]\nlisten = \"[::]:7377\"\n")]).expect("valid");
    assert!(Config::from_settings(&settings).expect("valid").listen.is_set);
}

#[test]
fn search_domains_can_be_turned_off() {
    let settings =
        |value| settings(&[("/etc/x.toml", &format!("[dns]\nsearch = {value}\n"))]).expect("valid");
    assert!(!Config::from_settings(&settings("false")).expect("valid").dns_search);
    let error = Config::from_settings(&settings("\"off\"")).expect_err("no truth value").to_string();
    assert!(error.contains("use true or false"), "{error}");
}

#[test]
fn a_node_may_have_an_engine_of_its_own() {
    let mut settings = settings(&[("/etc/x.toml", "[network]\nlb_engine = \"ipvs\"\n")]).expect("valid");
    assert_eq!(settings.get("network.lb_engine").origin, Origin::File("/etc/x.toml".into()));
    assert_eq!(Config::from_settings(&settings).expect("valid").lb_engine, LbEngine::Ipvs);
    settings.take_env(|name| (name == "SHOAL_NETWORK_LB_ENGINE").then(|| "ebpf".to_owned()));
    assert_eq!(settings.get("network.lb_engine").origin, Origin::Env("SHOAL_NETWORK_LB_ENGINE"));
    assert_eq!(Config::from_settings(&settings).expect("valid").lb_engine, LbEngine::Ebpf);
    settings.take_env(|name| (name == "SHOAL_NETWORK_LB_ENGINE").then(|| "iptables".to_owned()));
    let error = Config::from_settings(&settings).expect_err("no engine").to_string();
    let said = "network.lb_engine = 'iptables' (from environment SHOAL_NETWORK_LB_ENGINE): use auto";
    assert!(error.starts_with(said) && error.contains("ipvs or ebpf"), "{error}");
}

#[test]
fn the_later_source_counts_and_is_named() {
    let mut settings = settings(&[
        ("/etc/main.toml", "[node]\nname = \"a\"\n[observe]\nlog = \"warn\"\n"),
        ("/etc/conf.d/1.toml", "[node]\nname = \"b\"\n"),
    ])
    .expect("valid");
    assert_eq!(settings.get("node.name").origin, Origin::File("/etc/conf.d/1.toml".into()));
    settings.take_env(|name| (name == "SHOAL_NODE_NAME").then(|| "c".to_owned()));
    assert_eq!(settings.get("node.name").origin, Origin::Env("SHOAL_NODE_NAME"));
    settings.take_flag("node.name", Some("d".into()));
    let config = Config::from_settings(&settings).expect("valid");
    assert_eq!((config.name.as_str(), config.log.as_str()), ("d", "warn"));
}

#[test]
fn an_unknown_key_names_the_nearest() {
    let error = settings(&[("/etc/x.toml", "[observe]\nmetric = \"off\"\n")]).expect_err("unknown");
    assert!(error.to_string().contains("did you mean 'observe.metrics'"), "{error}");
    // The node's own paths are not for files.
    assert!(settings(&[("/etc/x.toml", "state_dir = \"/x\"\n")]).is_err());
}

#[test]
fn netkit_goes_with_engine_ebpf_alone() {
    let chosen = |text| Config::from_settings(&settings(&[("/etc/x.toml", text)]).expect("keys are known"));
    let netkit = |text| chosen(text).expect("valid").netkit;
    assert_eq!(netkit(""), Some(false));
    assert_eq!(netkit("[network]\nlb_engine = \"ebpf\"\nnetkit = \"auto\"\n"), None);
    assert_eq!(netkit("[network]\nlb_engine = \"ebpf\"\nnetkit = \"on\"\n"), Some(true));
    // Whatever the swarm is set to now: it can be set to another.
    let error = chosen("[network]\nnetkit = \"on\"\n").expect_err("engine auto").to_string();
    assert!(error.contains("set network.lb_engine to ebpf, which is 'auto' (default)"), "{error}");
}

#[test]
fn a_wrong_value_says_where_it_came_from() {
    for (text, key) in [
        ("[node]\nlisten = \"here\"\n", "node.listen"),
        ("[node]\nlisten = \"[::]:0\"\n", "node.listen"),
        ("[network]\nmtu = 100\n", "network.mtu"),
        ("[network]\nlb_engine = \"IPVS\"\n", "network.lb_engine"),
        ("[network]\nfast_lane = \"yes\"\n", "network.fast_lane"),
        ("[network]\nnetkit = \"veth\"\n", "network.netkit"),
        ("[network]\nnetkit = \"auto\"\n", "network.netkit"),
        ("[network]\nnetkit = \"on\"\nlb_engine = \"ipvs\"\n", "network.netkit"),
        ("[network]\nflow_entries = 4095\n", "network.flow_entries"),
        ("[network]\nconnect_hooks = \"yes\"\n", "network.connect_hooks"),
        ("[node]\nname = \"Not A Label\"\n", "node.name"),
        ("[observe]\nlog_format = \"xml\"\n", "observe.log_format"),
        ("[agent]\nsuspect_after = \"900ms\"\n", "agent.suspect_after"),
        ("[agent]\nsuspect_after = 2\n", "agent.suspect_after"),
        ("[agent]\nsuspect_after = \"2d\"\n", "agent.suspect_after"),
        ("[agent]\ndown_after = \"2h\"\n", "agent.down_after"),
        ("[agent]\nsuspect_after = \"5s\"\ndown_after = \"5s\"\n", "agent.down_after"),
        ("[security]\ncert_lifetime = \"59s\"\n", "security.cert_lifetime"),
        ("[security]\ncert_lifetime = \"4000d\"\n", "security.cert_lifetime"),
        ("[security]\ncert_lifetime = 600\n", "security.cert_lifetime"),
        ("[security]\ncert_lifetime = \"d\"\n", "security.cert_lifetime"),
    ] {
        let settings = settings(&[("/etc/x.toml", text)]).expect("keys are known");
        let error = Config::from_settings(&settings).expect_err("invalid").to_string();
        assert!(error.contains(key) && error.contains("/etc/x.toml"), "{error}");
    }
}
