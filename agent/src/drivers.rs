//! What reads and writes the kernel: one module for each facility, each with observe, ensure and remove.

pub mod bpf;
pub mod dns;
pub mod egress;
pub mod ipvs;
pub mod link;
pub mod overlay;
pub mod runtime;
