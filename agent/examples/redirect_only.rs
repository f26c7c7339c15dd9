//! Attaches two programs that look at nothing: whatever comes in by an uplink goes into the namespace behind a veth, and
//! whatever that sends goes out of the uplink. Detaches them when its input ends.
//!
//! For `cargo xtask bench mesh`, path `devices`: what the devices on the way to a task of the same node cost, whatever the programs
//! there do. As of Linux 6.6 (TCX).

use std::io::{Read as _, stdin};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::Context as _;
use clap::Parser;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
/// `BPF_PROG_TYPE_SCHED_CLS`.
const CLASSIFIER: u64 = 3;
/// `BPF_TCX_INGRESS`.
const INGRESS: u64 = 46;
/// Codes of instructions (`linux/bpf_common.h`): move a value to a register, call a helper, return.
const MOVE: u8 = 0xb7;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const BPF_REDIRECT: i32 = 23;
const BPF_REDIRECT_PEER: i32 = 155;

#[derive(Parser)]
struct Args {
    /// Index of the uplink
    uplink: u32,
    /// Index of the host side of the veth
    veth: u32,
}

fn main() -> anyhow::Result<()> {
    let Args { uplink, veth } = Args::parse();
    let _in = attach(uplink, &redirection(BPF_REDIRECT_PEER, veth)?).context("attach to the uplink")?;
    let _out = attach(veth, &redirection(BPF_REDIRECT, uplink)?).context("attach to the veth")?;
    stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// `return helper(device, 0)`, as instructions (`linux/bpf.h`).
fn redirection(helper: i32, device: u32) -> anyhow::Result<[u64; 4]> {
    let device = i32::try_from(device).context("an interface index")?;
    // Code, registers (destination in the low half), offset, immediate value.
    let instruction = |code: u8, registers: u8, value: i32| {
        let [a, b, c, d] = value.to_le_bytes();
        u64::from_le_bytes([code, registers, 0, 0, a, b, c, d])
    };
    Ok([
        instruction(MOVE, 1, device),
        instruction(MOVE, 2, 0),
        instruction(CALL, 0, helper),
        instruction(EXIT, 0, 0),
    ])
}

/// Loads a program and attaches it to the ingress of a device, until what is returned is dropped.
fn attach(device: u32, instructions: &[u64; 4]) -> anyhow::Result<OwnedFd> {
    let address = |of: *const u8| of.expose_provenance() as u64;
    let license = c"GPL";
    let count = instructions.len() as u64;
    let code = address(instructions.as_ptr().cast());
    // Type and number of instructions, the instructions, the license; the rest is zero.
    let load = [CLASSIFIER | count << 32, code, address(license.as_ptr().cast()), 0, 0, 0, 0, 0, 0];
    let program = bpf(BPF_PROG_LOAD, &load).context("load a program")?;
    let descriptor = u64::try_from(program.as_raw_fd()).context("a descriptor")?;
    // Program and device, where and no flags, relative to nothing.
    bpf(BPF_LINK_CREATE, &[descriptor | u64::from(device) << 32, INGRESS, 0, 0]).context("make a link")
}

fn bpf<const N: usize>(command: libc::c_int, attributes: &[u64; N]) -> std::io::Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes as it is told of; pointers in them are to what outlives the call.
    let descriptor =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    match i32::try_from(descriptor) {
        // SAFETY: the kernel has just given it to us.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(std::io::Error::last_os_error()),
    }
}
