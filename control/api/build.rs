//! Compiles the protobuf files without protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["ca", "control", "dispatcher", "node", "raft", "types"]
        .map(|name| format!("proto/shoal/v1/{name}.proto"));
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    // A task is far larger than what else an assignment holds.
    tonic_prost_build::configure()
        .boxed(".shoal.v1.AssignmentObject.object.task")
        .compile_fds(descriptors)?;
    Ok(())
}
