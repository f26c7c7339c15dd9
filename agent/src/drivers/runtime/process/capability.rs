//! Capabilities: their names and what a task is left with.

use std::io;

use crate::netns::sys;

/// In the order of their numbers, from 0.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The number of a capability, by its name with or without `CAP_`.
pub(in crate::drivers::runtime) fn capability(name: &str) -> Option<u32> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    NAMES.iter().position(|known| *known == name).and_then(|index| u32::try_from(index).ok())
}

/// The set of these capabilities. Unknown names were refused with the spec.
pub(super) fn capability_set(names: &[String]) -> u64 {
    names.iter().filter_map(|name| capability(name)).fold(0, |set, number| set | 1 << number)
}

/// Takes everything but `keep` out of the bounding set. Needs `CAP_SETPCAP`, so it comes before
/// [`keep_only`].
pub(super) fn bound_to(keep: u64) -> io::Result<()> {
    for number in 0..64 {
        match sys::has_bounding_capability(number) {
            Ok(true) if keep & (1 << number) == 0 => sys::drop_bounding_capability(number)?,
            Ok(_) => {}
            // The kernel knows no capability with this number, nor any after it.
            Err(_) => break,
        }
    }
    Ok(())
}

/// Leaves the calling thread with exactly these capabilities, also across exec and for every user.
pub(super) fn keep_only(keep: u64) -> io::Result<()> {
    sys::clear_ambient_capabilities()?;
    sys::set_capabilities(keep)?;
    for number in (0..64).filter(|number| keep & (1 << number) != 0) {
        sys::raise_ambient_capability(number)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_kernel_s_numbers() {
        assert_eq!(capability("CAP_CHOWN"), Some(0));
        assert_eq!(capability("net_raw"), Some(13));
        assert_eq!(capability("CAP_SYS_ADMIN"), Some(21));
        assert_eq!(capability("CAP_BPF"), Some(39));
        assert_eq!(capability("CHECKPOINT_RESTORE"), Some(40));
        assert_eq!(capability("CAP_"), None);
        assert_eq!(capability_set(&["CHOWN".to_owned(), "CAP_FOWNER".to_owned()]), 0b1001);
    }
}
