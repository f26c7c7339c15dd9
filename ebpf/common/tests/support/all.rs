//! What the tests of both crates share.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![allow(dead_code, unused_macros, unused_imports, reason = "each test binary uses its own part")]

pub(crate) mod alias_cases;
pub(crate) mod balancer_cases;
pub(crate) mod bytes_cases;
pub(crate) mod cases;
pub(crate) mod direct_cases;
pub(crate) mod fragment_cases;
pub(crate) mod fuzz;
pub(crate) mod host;
pub(crate) mod icmp_cases;
pub(crate) mod lane_cases;
pub(crate) mod life_cases;
pub(crate) mod local_cases;
pub(crate) mod memory;
pub(crate) mod mesh_cases;
pub(crate) mod overlay_cases;
pub(crate) mod packet;
pub(crate) mod proxy_cases;
pub(crate) mod sctp_cases;
pub(crate) mod task_cases;
pub(crate) mod world;
