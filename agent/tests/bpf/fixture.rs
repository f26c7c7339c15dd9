//! A data plane of its own for each test, gone when the test is.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use shoal_agent::drivers::bpf::{BpfConfig, BpfDriver, Opened};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A place for a data plane that nobody else has.
pub(crate) fn place() -> BpfConfig {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = PathBuf::from(format!("/tmp/shoal-bpf-test-{}-{number}", std::process::id()));
    BpfConfig { flow_entries: 4096, slot_entries: 4096, endpoint_entries: 1024, ..BpfConfig::new(dir) }
}

/// A driver on a bpffs of its own.
pub(crate) struct Plane {
    pub(crate) config: BpfConfig,
    driver: Option<BpfDriver>,
}

impl Plane {
    pub(crate) fn new() -> Self {
        let config = place();
        let (driver, opened) = BpfDriver::open(&config).expect("load the data plane (needs root)");
        assert_eq!(opened, Opened::Loaded { replaced: 0 });
        Self { config, driver: Some(driver) }
    }

    pub(crate) fn driver(&mut self) -> &mut BpfDriver {
        self.driver.as_mut().expect("open until the test ends")
    }

    pub(crate) fn opened(&self) -> &BpfDriver {
        self.driver.as_ref().expect("open until the test ends")
    }

    /// Opens it again, as a restarted daemon does.
    pub(crate) fn reopen(&mut self) -> Opened {
        self.driver = None;
        self.open()
    }

    /// Does something between one daemon and the next.
    pub(crate) fn while_closed<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.driver = None;
        let done = work();
        self.open();
        done
    }

    fn open(&mut self) -> Opened {
        let (driver, opened) = BpfDriver::open(&self.config).expect("open the data plane again");
        self.driver = Some(driver);
        opened
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        let removed = self.driver.take().map(BpfDriver::remove_all);
        if !std::thread::panicking() {
            removed.expect("open until the test ends").expect("remove the data plane");
            assert!(!self.config.dir.exists(), "nothing is left of {}", self.config.dir.display());
        }
    }
}

/// Calls bpf(2) with the words of its attribute, of which a pair of u32 makes one.
///
/// # Safety
/// Addresses among the words must be of what the command reads or writes there.
pub(crate) unsafe fn bpf(command: libc::c_int, words: &[u64]) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is live and of the size passed; the rest is the caller's.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, words.as_ptr(), size_of_val(words)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// What became of a packet: the program's verdict, and the packet.
pub(crate) struct Ran {
    pub(crate) verdict: u32,
    pub(crate) bytes: Vec<u8>,
}

/// Runs a program on a packet once. `summed`: with a checksum over all of it as a device computes one (`CHECKSUM_COMPLETE`),
/// if the kernel can (6.17). It then looks whether what the program did to the packet was done to that sum, too.
pub(crate) fn run(program: impl AsFd, packet: &[u8], summed: bool) -> Ran {
    const SUMMED: u64 = 1 << 2;
    match test_run(&program, packet, if summed { SUMMED } else { 0 }) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            test_run(&program, packet, 0).expect("BPF_PROG_TEST_RUN")
        }
        ran => ran.expect("BPF_PROG_TEST_RUN; EBADMSG: the device's checksum is not that of the packet"),
    }
}

fn test_run(program: impl AsFd, packet: &[u8], flags: u64) -> io::Result<Ran> {
    const PROG_TEST_RUN: libc::c_int = 10;
    // Room for more than went in: a program that made the packet longer would be seen.
    let mut bytes = vec![0_u8; packet.len() + 64];
    let sizes = packet.len() as u64 | (bytes.len() as u64) << 32;
    let data_in = packet.as_ptr().expose_provenance() as u64;
    let data_out = bytes.as_mut_ptr().expose_provenance() as u64;
    // Program and verdict, sizes, the packet and what becomes of it, one run, no context, flags.
    let mut words = [word(program), sizes, data_in, data_out, 1, 0, 0, 0, flags, 0];
    let (pointer, size) = (words.as_mut_ptr(), size_of_val(&words));
    // SAFETY: the attribute is live and of the size passed; the addresses in it are of so many bytes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, pointer, size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let high = |word: u64| (word >> 32) as u32;
    bytes.truncate(high(words[1]) as usize);
    Ok(Ran { verdict: high(words[0]), bytes })
}

/// Keeps this thread on one CPU, whose memory the programs use that it runs.
pub(crate) fn stay_here() {
    // SAFETY: a set is made of zeroes, written within its size, and read by the kernel only.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(usize::try_from(libc::sched_getcpu()).expect("a number"), &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &raw const set), 0, "stay on a CPU");
    }
}

/// Takes over a descriptor that a command of [`bpf`] has just returned.
pub(crate) fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: nobody else has it.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")) }
}

/// A descriptor as a word.
pub(crate) fn word(fd: impl AsFd) -> u64 {
    u64::from(fd.as_fd().as_raw_fd().unsigned_abs())
}

/// Lets the quarantine of freed slots pass.
pub(crate) fn rest() {
    rest_for(std::time::Duration::from_millis(60));
}

/// Lets time pass.
pub(crate) fn rest_for(time: std::time::Duration) {
    let until = std::time::Instant::now() + time;
    while std::time::Instant::now() < until {
        std::thread::yield_now();
    }
}
