//! Embeds the eBPF object, which another compiler builds beforehand.

#![allow(clippy::print_stdout, reason = "a build script speaks to cargo on standard output")]

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=SHOAL_EBPF_OBJECT");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let object = env::var_os("SHOAL_EBPF_OBJECT")
        .map_or_else(|| manifest.join("../target/bpf/shoal-ebpf.o"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(path) => println!("cargo::rustc-env=SHOAL_EBPF_OBJECT_PATH={}", path.display()),
        Err(error) => println!(
            "cargo::error=no eBPF object at {}: {error}; run `cargo xtask build-ebpf` first, or name another \
             object in SHOAL_EBPF_OBJECT",
            object.display()
        ),
    }
}
