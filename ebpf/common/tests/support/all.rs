//! What the tests of both crates share.

pub(crate) mod cases;
pub(crate) mod memory;
pub(crate) mod mesh_cases;
pub(crate) mod overlay_cases;
pub(crate) mod packet;
pub(crate) mod task_cases;
pub(crate) mod world;
