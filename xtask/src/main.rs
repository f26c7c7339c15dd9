//! Tasks of the repository: `cargo xtask <task>`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod build_ebpf;
mod ci;
mod demo;
mod interrupt;
mod test;
mod tidy;
mod tools;
mod vm;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of the repository")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the eBPF programs, installing their toolchain if it is missing
    BuildEbpf(build_ebpf::Args),
    /// Measure shoal beside what it replaces
    Bench(bench::Args),
    /// Three hosts and a client as namespaces: the mesh, to look at or to verify
    Demo(demo::Args),
    /// Run the tests, all tiers without a flag
    Test(test::Args),
    /// Run a command as root on another kernel: user-mode Linux, or Debian's under QEMU
    Vm(vm::Args),
    /// Check the laws of the repository that no other tool knows
    Tidy,
    /// Everything a change must pass: fmt, clippy, tidy, test
    Ci,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::BuildEbpf(args) => build_ebpf::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Vm(args) => vm::run(&args),
        Task::Tidy => tidy::run(),
        Task::Ci => ci::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        #[expect(clippy::print_stderr, reason = "a command line tool reports to its terminal")]
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
