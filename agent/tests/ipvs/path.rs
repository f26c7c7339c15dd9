//! A client, a director and servers as namespaces. Replies come back through the director, by routing alone.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use shoal_agent::netns::Netns;

pub(crate) const VIP4: &str = "10.91.0.100:80";
pub(crate) const VIP6: &str = "[fd91::100]:80";
/// Packets to it carry mark 7 at the director.
pub(crate) const MARKED: &str = "10.91.0.101:80";
pub(crate) const CLIENT4: &str = "10.91.0.2";
pub(crate) const CLIENT6: &str = "fd91::2";
pub(crate) const SERVERS4: [&str; 2] = ["10.92.0.11:8080", "10.92.0.12:8080"];
pub(crate) const SERVERS6: [&str; 2] = ["[fd92::11]:8080", "[fd92::12]:8080"];
const PATIENCE: Duration = Duration::from_secs(10);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The namespaces and what runs in them, gone when this is.
pub(crate) struct Path {
    names: [String; 3],
    pub(crate) director: Netns,
    client: Netns,
}

/// What a server saw of a connection.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) server: SocketAddr,
    pub(crate) seen: IpAddr,
    pub(crate) port: u16,
    /// The port that the client has itself.
    pub(crate) own_port: u16,
}

impl Path {
    pub(crate) fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("ipvst{}-{number}", std::process::id());
        let names = ["c", "d", "s"].map(|part| format!("{prefix}{part}"));
        let [client, director, servers] = &names;
        for name in &names {
            ip(&format!("netns add {name}"));
        }
        ip(&format!("-n {client} link add c0 type veth peer name d0 netns {director}"));
        ip(&format!("-n {servers} link add s0 type veth peer name d1 netns {director}"));
        let addresses = [
            (client, "c0", &["10.91.0.2/24", "fd91::2/64"][..]),
            (
                director,
                "d0",
                &["10.91.0.1/24", "10.91.0.100/32", "10.91.0.101/32", "fd91::1/64", "fd91::100/128"],
            ),
            (director, "d1", &["10.92.0.1/24", "fd92::1/64"]),
            (servers, "s0", &["10.92.0.11/24", "10.92.0.12/24", "fd92::11/64", "fd92::12/64"]),
        ];
        for (name, link, addresses) in addresses {
            for address in addresses {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                ip(&format!("-n {name} addr add {address} dev {link} {nodad}"));
            }
            ip(&format!("-n {name} link set {link} up"));
            ip(&format!("-n {name} link set lo up"));
        }
        ip(&format!("-n {servers} route add default via 10.92.0.1"));
        ip(&format!("-n {servers} -6 route add default via fd92::1"));
        for forwarding in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            within(director, &format!("echo 1 > /proc/sys/{forwarding}"));
        }
        // The mark comes from traffic control, as in the data plane: no netfilter on the path.
        within(director, "tc qdisc add dev d0 clsact");
        within(
            director,
            "tc filter add dev d0 ingress protocol ip u32 match ip dst 10.91.0.101/32 action skbedit mark 7",
        );
        let open = |name: &str| Netns::open(std::path::Path::new(&format!("/run/netns/{name}"))).unwrap();
        let (director, client, serving) = (open(director), open(client), open(servers));
        for address in SERVERS4.into_iter().chain(SERVERS6) {
            let listener = serving.run(|| TcpListener::bind(address)).unwrap().unwrap();
            // Ends with the test's process, which every test binary's does.
            std::thread::spawn(move || serve(&listener));
        }
        Self { names, director, client }
    }

    pub(crate) fn connect(&self, front: &str) -> TcpStream {
        let front = front.parse().unwrap();
        let stream = self.client.run(|| TcpStream::connect_timeout(&front, PATIENCE)).unwrap();
        let stream = stream.unwrap_or_else(|error| panic!("{front}: {error}"));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub(crate) fn ask(&self, front: &str) -> Answer {
        let mut stream = self.connect(front);
        talk(&mut stream)
    }

    /// Whether the director tracked any connection.
    pub(crate) fn has_conntrack_entries(&self) -> bool {
        let read = || std::fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack");
        match self.director.run(read).unwrap() {
            // Lines of hexadecimal numbers for each CPU below a header; the first one counts entries.
            Ok(text) => text.lines().skip(1).any(|line| !line.starts_with("00000000 ")),
            Err(_) => false,
        }
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        for name in &self.names {
            ip(&format!("netns del {name}"));
        }
    }
}

/// One question on a connection.
pub(crate) fn talk(stream: &mut TcpStream) -> Answer {
    stream.write_all(b"who\n").unwrap();
    let mut line = String::new();
    BufReader::new(&*stream).read_line(&mut line).unwrap();
    let (server, client) = line.trim().split_once(' ').expect("an answer of two addresses");
    let client: SocketAddr = client.parse().unwrap();
    let own_port = stream.local_addr().unwrap().port();
    Answer { server: server.parse().unwrap(), seen: client.ip(), port: client.port(), own_port }
}

/// Answers each line of each connection with both addresses.
fn serve(listener: &TcpListener) {
    for stream in listener.incoming() {
        let mut stream = stream.expect("accept");
        std::thread::spawn(move || {
            let answer = format!("{} {}\n", stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while let Some(Ok(_)) = lines.next() {
                if stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        });
    }
}

fn ip(arguments: &str) {
    run(Command::new("ip").args(arguments.split_whitespace()));
}

fn within(name: &str, script: &str) {
    run(Command::new("ip").args(["netns", "exec", name, "sh", "-c", script]));
}

fn run(command: &mut Command) {
    let output = command.output().expect("ip");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
