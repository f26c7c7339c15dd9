use clap::CommandFactory as _;
use clap::error::ErrorKind;

use super::*;

fn parse_line(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

fn command_of(line: &str) -> Vec<String> {
    match parse_line(line).unwrap().command {
        Command::Service(ServiceCommand::Create(args)) => args.command,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn what_follows_the_program_is_its_own() {
    let want = ["python3", "-m", "http.server", "80"];
    for line in [
        "shoal service create --name web --replicas 3 -p 8080:80 --network app -- python3 -m http.server 80",
        "shoal service create --name web --replicas 3 python3 -m http.server 80",
        "shoal -q service create --runtime process --name web python3 -m http.server 80",
    ] {
        assert_eq!(command_of(line), want, "{line}");
    }
    assert_eq!(command_of("shoal service create --name web a --name b -q"), ["a", "--name", "b", "-q"]);
    assert_eq!(command_of("shoal service create --name web -- -x"), ["-x"]);
}

#[test]
fn unknown_flags_before_the_program_are_refused() {
    for line in [
        "shoal service create --name web --replcas 3 true",
        "shoal service create --name web --mount type=bind true",
        "shoal service create true",
        "shoal service create --name web",
        "shoal service create --name web --runtime containerd true",
        "shoal service create --name web --mode job true",
        "shoal service create --name web --endpoint-mode dns true",
        "shoal service create --name web --network name=app,alias= true",
        "shoal service rollback web",
        "shoal service scale web",
        "shoal service scale web=x",
        "shoal swarm unlock",
        "shoal swarm update",
        "shoal swarm update --lb-engine nft",
        "shoal swarm init --lb-engine IPVS",
        "shoal service create --name web --lb fastest true",
        "shoal service update --lb least web",
        "shoal swarm join-token manager",
        "shoal swarm join 10.0.0.1",
        "shoal swarm join --token T",
        "shoal swarm token create --uses 0",
        "shoal swarm token create --ttl 0",
        "shoal network create",
        "shoal network create --subnet 10.0.0.0 app",
        "shoal network create -d bridge app",
        "shoal network prune",
        "shoal node update n1",
        "shoal node update --availability gone n1",
        "shoal node update --availability drain",
        "shoal node update --weight 101 n1",
        "shoal node update --weight -1 n1",
        "shoal node update --weight half n1",
        "shoal node update --weight 5",
        "shoal service create --name web --health-cmd true --health-tcp 80 true",
        "shoal service create --name web --health-http 80 --health-tcp 80 true",
        "shoal service create --name web --health-http https://localhost/ true",
        "shoal service create --name web --health-tcp web:80 true",
        "shoal service create --name web --health-retries 0 --health-tcp 80 true",
        "shoal service create --name web --health-grpc 80 true",
        "shoal service create --name web --no-healthcheck true",
        "shoal service update --no-healthcheck --health-interval 1s web",
        "shoal doctor --peer n2",
        "shoal doctor now",
        "shoal completion powershell",
        "shoal -H tcp://10.0.0.1:7377 status",
        "shoal --timeout 5 status",
        "shoal service ls --json --format json",
        "shoal",
    ] {
        let error = parse_line(line).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}: {error}");
    }
}

#[test]
fn global_flags_go_anywhere() {
    for line in [
        "shoal -H unix:///tmp/x --json -v --no-color --timeout 10s --yes service ls",
        "shoal service ls -H unix:///tmp/x --json -v --no-color --timeout 10s --yes",
        "shoal service -H /tmp/x --json ls -v --no-color --timeout 10s --yes",
    ] {
        let global = parse_line(line).unwrap().global;
        assert_eq!(global.host, PathBuf::from("/tmp/x"));
        assert!(global.json && global.verbose && global.no_color && global.yes && !global.quiet);
        assert_eq!(global.timeout, Duration::from_secs(10));
    }
}

#[test]
fn help_and_version_are_no_errors() {
    assert_eq!(parse_line("shoal --help").unwrap_err().kind(), ErrorKind::DisplayHelp);
    assert_eq!(parse_line("shoal service create --help").unwrap_err().kind(), ErrorKind::DisplayHelp);
    assert_eq!(parse_line("shoal --version").unwrap_err().kind(), ErrorKind::DisplayVersion);
}

#[test]
fn swarm_lines() {
    let line = "shoal swarm init --name otter --advertise-addr eth1 --data-path-addr eth2 --data-path-port 7000 \
                --default-addr-pool 10.20.0.0/14 --default-addr-pool fd00::/48 --default-addr-pool-mask-length 24";
    let Command::Swarm(SwarmCommand::Init(init)) = parse_line(line).unwrap().command else {
        panic!("{line}")
    };
    assert_eq!(init.default_addr_pool, ["10.20.0.0/14", "fd00::/48"]);
    assert_eq!((init.data_path_port, init.default_addr_pool_mask_length), (7000, 24));
    assert_eq!(init.lb_engine, shoal_types::LbEngine::Auto);
    let line = "shoal swarm join --token SHOAL-1-a-b-c 10.0.3.11 10.0.3.12:7377";
    let Command::Swarm(SwarmCommand::Join(join)) = parse_line(line).unwrap().command else {
        panic!("{line}")
    };
    assert_eq!(join.managers, ["10.0.3.11", "10.0.3.12:7377"]);
}
