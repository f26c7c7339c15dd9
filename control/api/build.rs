//! Compiles the protobuf files without protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["ca", "control", "dispatcher", "node", "raft", "types"]
        .map(|name| format!("proto/shoal/v1/{name}.proto"));
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    // By far the largest of the objects.
    tonic_prost_build::configure().boxed("shoal.v1.AssignmentObject.object.task").compile_fds(descriptors)?;
    Ok(())
}
