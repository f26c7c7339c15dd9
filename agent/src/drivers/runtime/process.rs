//! The `process` runtime: host programs in namespaces of their own.

mod capability;
mod cgroup;

pub use cgroup::CgroupError;

pub(in crate::drivers::runtime) use capability::capability;
