//! A daemon started by `ip netns exec` must not keep what has to survive it in mounts that die with it. As root.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Started {
    namespace: String,
    daemon: Child,
}

impl Drop for Started {
    fn drop(&mut self) {
        let _gone = self.daemon.kill();
        let _reaped = self.daemon.wait();
        let _removed = Command::new("ip").args(["netns", "del", &self.namespace]).status();
        let _removed = fs::remove_dir_all(Path::new("/etc/netns").join(&self.namespace));
    }
}

#[test]
fn a_daemon_started_by_ip_netns_exec_goes_back_to_the_hosts_mounts() {
    let dir = tempfile::tempdir().expect("directory");
    let namespace = format!("shmnt{}", std::process::id());
    assert!(Command::new("ip").args(["netns", "add", &namespace]).status().expect("ip runs").success());
    let etc = Path::new("/etc/netns").join(&namespace);
    fs::create_dir_all(&etc).expect("directory");
    fs::write(etc.join("resolv.conf"), "nameserver 192.0.2.7\n").expect("file");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let daemon = Command::new("ip")
        .args(["netns", "exec", &namespace, env!("CARGO_BIN_EXE_shoald"), "--name", "m1"])
        .args(["--state-dir", &path("state"), "--run-dir", &path("run")])
        .args(["--bpf-dir", &format!("/sys/fs/bpf/{namespace}"), "--cgroup", &namespace])
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let started = Started { namespace, daemon };
    let begun = Instant::now();
    while !dir.path().join("run/ready").exists() {
        assert!(begun.elapsed() < Duration::from_secs(30), "shoald is not ready");
        std::thread::yield_now();
    }
    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).expect("namespace");
    let pid = started.daemon.id().to_string();
    assert_eq!(of(&pid), of("self"));
    assert_ne!(fs::read_link(format!("/proc/{pid}/ns/net")).ok(), fs::read_link("/proc/self/ns/net").ok());
    // The resolvers that were given for the namespace stay in reach.
    let kept = fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").flatten();
    let texts: Vec<_> = kept
        .filter(|fd| fs::metadata(fd.path()).is_ok_and(|of| of.is_file() && of.len() < 100))
        .filter_map(|fd| fs::read_to_string(fd.path()).ok())
        .collect();
    assert!(texts.iter().any(|text| text == "nameserver 192.0.2.7\n"), "{texts:?}");
}
