//! shoald, the node daemon.

use std::process::ExitCode;

use shoal_agent::drivers::runtime::process;

fn main() -> ExitCode {
    // A task's monitor and first steps are this binary too, and must not have any thread yet.
    if let Some(code) = process::run_subcommand(std::env::args_os()) {
        return code;
    }
    ExitCode::FAILURE
}
