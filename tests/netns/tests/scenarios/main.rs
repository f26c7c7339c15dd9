//! Scenarios: hosts as namespaces, real daemons, real traffic, told from the client's side.
//!
//! Scenarios of a group share one swarm, as forming one costs more than most of them. Each removes what it made, and
//! then the nodes must hold exactly what they held before it. A group ends with all nodes leaving, which must leave
//! nothing. What can't run here (no root, a program not built) fails; nothing is skipped.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test harness reports to its terminal")]

mod admission;
mod barriers;
mod bytes;
mod connect;
mod direct;
mod doctor;
mod engines;
mod faults;
mod flood;
mod flows;
mod harness;
mod health;
mod lane;
mod liveness;
mod load;
mod members;
mod mesh;
mod names;
mod outside;
mod packets;
mod pairs;
mod ports;
mod proxy;
mod refusals;
mod renewal;
mod repair;
mod rotation;
mod sameport;
mod sctp;
mod upstream;
mod ways;
mod weights;

use std::process::ExitCode;

use harness::{Group, run};

fn main() -> ExitCode {
    run(&[
        Group { name: "members", start: members::start, scenarios: members::SCENARIOS },
        Group { name: "mesh", start: harness::formed, scenarios: mesh::SCENARIOS },
        Group { name: "connect", start: harness::formed, scenarios: connect::SCENARIOS },
        Group { name: "lane", start: harness::formed, scenarios: lane::SCENARIOS },
        Group { name: "ports", start: harness::formed, scenarios: ports::SCENARIOS },
        Group { name: "proxy", start: harness::formed, scenarios: proxy::SCENARIOS },
        Group { name: "direct", start: harness::formed, scenarios: direct::SCENARIOS },
        Group { name: "flows", start: harness::formed, scenarios: flows::SCENARIOS },
        Group { name: "flood", start: flood::start, scenarios: flood::SCENARIOS },
        Group { name: "names", start: harness::formed, scenarios: names::SCENARIOS },
        Group { name: "answers", start: harness::formed, scenarios: names::ANSWERS },
        Group { name: "refusals", start: harness::formed, scenarios: refusals::SCENARIOS },
        Group { name: "admission", start: harness::formed, scenarios: admission::SCENARIOS },
        Group { name: "doctor", start: harness::formed, scenarios: doctor::SCENARIOS },
        Group { name: "faults", start: faults::start, scenarios: faults::SCENARIOS },
        Group { name: "barriers", start: barriers::start, scenarios: barriers::SCENARIOS },
        Group { name: "health", start: barriers::start, scenarios: health::SCENARIOS },
        Group { name: "liveness", start: liveness::start, scenarios: liveness::SCENARIOS },
        Group { name: "engines", start: engines::start, scenarios: engines::SCENARIOS },
        Group { name: "repair", start: harness::formed, scenarios: repair::SCENARIOS },
        Group { name: "renewal", start: renewal::start, scenarios: renewal::SCENARIOS },
    ])
}
