//! The disk fills up under a running manager: nothing is acknowledged that is not kept, and it comes back by itself
//! once there is room.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use shoal_api::pb;
use shoal_api::pb::control_client::ControlClient;

use crate::fixture::{command_line, free_port, local_channel, network, wait_for};

/// Starts the manager with a small file system of its own over its state directory, visible to it alone.
fn start(dir: &Path, line: &[String], fresh: bool) -> Child {
    let mount = "mount -t tmpfs -o size=3m,mode=700 tmpfs \"$STATE\"";
    let saved = dir.join("saved");
    let script = if fresh {
        format!("{mount} && exec \"$@\"")
    } else {
        format!("{mount} && cp -a \"{}\"/. \"$STATE\"/ && exec \"$@\"", saved.display())
    };
    let state = dir.join("state");
    std::fs::create_dir_all(&state).expect("directory");
    Command::new("unshare")
        .args(["--mount", "sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_shoal-control")])
        .args(line)
        .env("STATE", state)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts")
}

fn ready(child: &mut Child) {
    let mut word = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut word).expect("says something");
    if word != "ready\n" {
        let mut said = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut said).expect("readable");
        panic!("not ready: {said}");
    }
}

async fn names(dir: &Path) -> Vec<String> {
    let mut client = ControlClient::new(local_channel(dir).await);
    let networks = client.list_networks(pb::Empty {}).await.expect("answers").into_inner().networks;
    networks.into_iter().filter_map(|n| n.spec).map(|spec| spec.name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_ends_the_manager_and_loses_nothing_it_acknowledged() {
    let home = tempfile::tempdir().expect("temporary directory");
    let dir = home.path();
    let line = command_line(dir, free_port());
    let mut child = start(dir, &line, true);
    ready(&mut child);
    let inside = format!("/proc/{}/root{}", child.id(), dir.join("state").display());

    let mut client = ControlClient::new(local_channel(dir).await);
    let mut kept = Vec::new();
    for n in 0..5 {
        client.create_network(network(&format!("before-{n}"))).await.expect("there is room");
        kept.push(format!("before-{n}"));
    }
    // The file system lives as long as somebody holds it.
    let held = std::fs::File::open(&inside).expect("root sees it");
    let inside = format!("/proc/{}/fd/{}", std::process::id(), held.as_raw_fd());
    let mut fill = std::fs::File::create(format!("{inside}/fill")).expect("root sees it");
    while fill.write_all(&[1; 4096]).is_ok() {}
    let mut failed = false;
    for n in 0..400 {
        let name = format!("after-{n}");
        let labels = [("ballast".to_owned(), "x".repeat(20_000))].into();
        let spec = pb::NetworkSpec { name: name.clone(), labels, ..pb::NetworkSpec::default() };
        let request = pb::CreateNetworkRequest { spec: Some(spec), ..pb::CreateNetworkRequest::default() };
        if client.create_network(request).await.is_err() {
            failed = true;
            break;
        }
        kept.push(name);
    }
    assert!(failed, "the disk was full");
    let status = wait_for("the manager ends by itself", async || child.try_wait().expect("ours")).await;
    assert_eq!(status.code(), Some(1));
    let saved = dir.join("saved");
    let copied = Command::new("cp").arg("-a").arg(format!("{inside}/.")).arg(&saved).status().expect("runs");
    assert!(copied.success());
    std::fs::remove_file(saved.join("fill")).expect("there");

    let mut child = start(dir, &line, false);
    ready(&mut child);
    let there = names(dir).await;
    for name in &kept {
        assert!(there.contains(name), "{name} was acknowledged; there are {there:?}");
    }
    child.kill().expect("ours");
    child.wait().expect("ours");
}
