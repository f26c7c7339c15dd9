//! These make real namespaces, so they need root.

use super::*;
use std::net::{TcpListener, UdpSocket};

fn run_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("shoal-netns-").tempdir().expect("directory")
}

fn mounts_below(path: &Path) -> usize {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    mounts.lines().filter(|line| line.contains(path.to_str().expect("UTF-8"))).count()
}

#[test]
fn a_named_namespace_lives_until_it_is_removed() {
    let run = run_dir();
    let dir = NetnsDir::new(run.path());
    assert_eq!(dir.list().expect("lists"), Vec::<String>::new());
    let made = dir.ensure("task-1").expect("makes").inode().expect("inode");
    let own = Netns::current().expect("own").inode().expect("inode");
    assert_ne!(made, own);
    // As after a restart: nothing but the directory is known.
    let again = NetnsDir::new(run.path());
    assert_eq!(again.list().expect("lists"), ["task-1"]);
    assert_eq!(again.ensure("task-1").expect("finds").inode().expect("inode"), made);
    again.remove("task-1").expect("removes");
    again.remove("task-1").expect("removes what is gone");
    assert!(matches!(again.open("task-1"), Err(NetnsError::NotFound(_))));
    again.remove_all().expect("removes the directory");
    again.remove_all().expect("removes what is gone");
    assert_eq!(mounts_below(run.path()), 0);
}

#[test]
fn a_mount_point_that_a_crash_left_is_swept_and_a_namespace_is_not() {
    let run = run_dir();
    let dir = NetnsDir::new(run.path());
    assert_eq!(dir.sweep().expect("nothing there"), 0);
    dir.ensure("task-1").expect("makes");
    std::fs::write(dir.root().join("task-2"), "").expect("written");
    assert_eq!(dir.sweep().expect("sweeps"), 1);
    assert!(!dir.root().join("task-2").exists());
    assert_eq!(dir.list().expect("lists"), ["task-1"]);
    dir.remove_all().expect("removes the directory");
}

#[test]
fn ip_netns_knows_a_namespace_by_name_and_names_of_others_stay() {
    let run = run_dir();
    let names = run.path().join("names");
    let dir = NetnsDir::with_names(run.path(), &names);
    dir.ensure("task-1").expect("makes");
    dir.ensure("task-1").expect("finds");
    assert_eq!(std::fs::read_link(names.join("shoal-task-1")).expect("a link"), dir.root().join("task-1"));
    assert!(Netns::open(&names.join("shoal-task-1")).is_ok());
    // Somebody else's of the same name, one that leads nowhere, and one that a crash left.
    std::os::unix::fs::symlink("/elsewhere", names.join("shoal-task-2")).expect("linked");
    std::os::unix::fs::symlink(dir.root().join("task-3"), names.join("shoal-task-3")).expect("linked");
    dir.ensure("task-2").expect("makes");
    dir.sweep().expect("sweeps");
    dir.remove("task-1").expect("removes");
    dir.remove_all().expect("removes the rest");
    let left: Vec<_> =
        std::fs::read_dir(&names).expect("lists").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["shoal-task-2"]);
}

#[test]
fn names_stay_inside_the_directory() {
    let dir = NetnsDir::new(Path::new("/nowhere"));
    for name in ["", ".", "..", "a/b", "../x", "a b", &"x".repeat(65)] {
        assert!(matches!(dir.path(name), Err(NetnsError::Name(_))), "{name:?}");
    }
}

#[test]
fn a_mount_point_left_by_a_crash_is_used_again() {
    let run = run_dir();
    let dir = NetnsDir::new(run.path());
    std::fs::create_dir(dir.root()).expect("directory");
    std::fs::write(dir.root().join("x"), "").expect("file");
    assert_eq!(dir.list().expect("lists"), Vec::<String>::new(), "no namespace");
    dir.ensure("x").expect("makes");
    assert_eq!(dir.list().expect("lists"), ["x"]);
    dir.remove_all().expect("removes");
    assert_eq!(mounts_below(run.path()), 0);
}

#[test]
fn sockets_stay_where_they_were_made_and_loopback_is_up() {
    let netns = Netns::anonymous().expect("makes");
    let (inside, client) = netns
        .run(|| {
            let inside = TcpListener::bind("127.0.0.1:0").expect("binds");
            let client = std::net::TcpStream::connect(inside.local_addr().expect("address"));
            (inside, client)
        })
        .expect("runs");
    client.expect("connects over the namespace's loopback");
    let port = inside.local_addr().expect("address").port();
    // The same port is free out here: another namespace.
    UdpSocket::bind(("127.0.0.1", port)).expect("binds outside");
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    assert_ne!(
        Netns::current().expect("own").inode().expect("inode"),
        netns.inode().expect("inode"),
        "this thread has not moved"
    );
}

#[test]
fn what_is_no_namespace_is_refused() {
    assert!(matches!(Netns::open(Path::new("/etc/passwd")), Err(NetnsError::NotANamespace(_))));
    assert!(matches!(Netns::open(Path::new("/no/such")), Err(NetnsError::NotFound(_))));
}

#[test]
fn a_panic_inside_is_an_error_outside() {
    let netns = Netns::current().expect("own");
    let outcome = netns.run(|| panic!("on purpose"));
    assert!(matches!(outcome, Err(NetnsError::Thread(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn netlink_speaks_to_the_namespace_it_was_made_for() {
    use futures_util::TryStreamExt as _;
    use netlink_packet_route::link::LinkAttribute;

    let netns = Netns::anonymous().expect("makes");
    let netlink = netns.netlink().expect("connects");
    let links: Vec<_> = netlink.link().get().execute().try_collect().await.expect("lists links");
    let names: Vec<_> = links
        .iter()
        .flat_map(|link| &link.attributes)
        .filter_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        })
        .collect();
    assert!(names.contains(&"lo"), "{names:?}");
    assert!(!names.iter().any(|name| name.starts_with("eth")), "{names:?}");
    netlink.close().await;
    // And the runtime's own threads are still outside.
    let outside = Netns::current().expect("own").inode().expect("inode");
    let seen = tokio::task::spawn_blocking(|| Netns::current().expect("own").inode().expect("inode"));
    assert_eq!(seen.await.expect("runs"), outside);
    assert_ne!(outside, netns.inode().expect("inode"));
}

/// A namespace whose last holder is gone can be told by its veth: the other end goes with it.
#[tokio::test]
async fn nothing_keeps_a_removed_namespace_alive() {
    let run = run_dir();
    let dir = NetnsDir::new(run.path());
    let outer = Netns::anonymous().expect("makes");
    let netns = dir.ensure("x").expect("makes");
    let netlink = netns.netlink().expect("connects");
    let (add, file) = (outer.netlink().expect("connects"), std::fs::File::open(netns.path()).expect("opens"));
    let veth = rtnetlink::LinkVeth::new("a0", "b0").build();
    add.link().add(veth).execute().await.expect("adds");
    let index_of = |handle: rtnetlink::Handle, name: &'static str| async move {
        use futures_util::TryStreamExt as _;
        let found = handle.link().get().match_name(name.to_owned()).execute().try_next().await;
        found.ok().flatten().map(|link| link.header.index)
    };
    let b0 = index_of(add.handle().clone(), "b0").await.expect("there");
    let moved =
        rtnetlink::LinkUnspec::new_with_index(b0).setns_by_fd(std::os::fd::AsRawFd::as_raw_fd(&file)).build();
    add.link().set(moved).execute().await.expect("moves");
    assert!(index_of(netlink.handle().clone(), "b0").await.is_some(), "moved into the namespace");
    drop((file, netns));
    netlink.close().await;
    dir.remove_all().expect("removes");
    // The kernel takes namespaces apart in the background.
    for _ in 0..500 {
        if index_of(add.handle().clone(), "a0").await.is_none() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the namespace is still alive");
}
