//! Compiles the protobuf files without protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["ca", "control", "dispatcher", "node", "raft", "types"]
        .map(|name| format!("proto/shoal/v1/{name}.proto"));
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
