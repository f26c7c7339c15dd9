//! A name server outside the cluster: it knows one answer.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, ensure};
use shoal_netns::{Host, Swarm};

/// How often a server looks whether it is to end.
const POLL: Duration = Duration::from_millis(20);

/// What every name resolves to.
pub(crate) const ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

/// A server at the address that the machine's `resolv.conf` names, which is where the hosts' daemons ask.
pub(crate) struct Upstream {
    questions: Arc<AtomicUsize>,
    ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Upstream {
    /// Puts the server on the client's host, and routes to it on every node; or on each node if it is a loopback.
    pub(crate) fn start(swarm: &Swarm) -> anyhow::Result<Self> {
        let config = std::fs::read_to_string("/etc/resolv.conf")?;
        let server = config.lines().find_map(|line| line.strip_prefix("nameserver "));
        let server: IpAddr = server.context("/etc/resolv.conf names no server")?.trim().parse()?;
        let mut this = Self { questions: Arc::default(), ending: Arc::default(), threads: Vec::new() };
        if server.is_loopback() {
            for node in &swarm.nodes {
                this.serve(&node.host, server)?;
            }
            return Ok(this);
        }
        ensure!(server.is_ipv4(), "the scenario can't route to {server}");
        swarm.client.ip(&format!("addr replace {server}/32 dev lo"))?;
        for node in &swarm.nodes {
            node.host.ip(&format!("route replace {server}/32 via {}", swarm.client_place.v4))?;
        }
        this.serve(&swarm.client, server)?;
        Ok(this)
    }

    /// A server at the client's own address, which nothing but a service's settings can lead to.
    pub(crate) fn on_client(swarm: &Swarm) -> anyhow::Result<Self> {
        let mut this = Self { questions: Arc::default(), ending: Arc::default(), threads: Vec::new() };
        this.serve(&swarm.client, swarm.client_place.v4.into())?;
        Ok(this)
    }

    /// Questions seen so far.
    pub(crate) fn questions(&self) -> usize {
        self.questions.load(Ordering::SeqCst)
    }

    fn serve(&mut self, host: &Host, server: IpAddr) -> anyhow::Result<()> {
        let address = SocketAddr::new(server, 53);
        let (udp, tcp) = host.enter(|| Ok((UdpSocket::bind(address)?, TcpListener::bind(address)?)))?;
        udp.set_read_timeout(Some(POLL))?;
        tcp.set_nonblocking(true)?;
        let (questions, ending) = (Arc::clone(&self.questions), Arc::clone(&self.ending));
        self.threads.push(thread::spawn(move || {
            let mut buffer = [0; 1500];
            while !ending.load(Ordering::SeqCst) {
                let Ok((length, peer)) = udp.recv_from(&mut buffer) else { continue };
                questions.fetch_add(1, Ordering::SeqCst);
                udp.send_to(&reply(&buffer[..length]), peer).ok();
            }
        }));
        let (questions, ending) = (Arc::clone(&self.questions), Arc::clone(&self.ending));
        self.threads.push(thread::spawn(move || {
            while !ending.load(Ordering::SeqCst) {
                let Ok((stream, _)) = tcp.accept() else {
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "a server that looks whether it is to end"
                    )]
                    thread::sleep(POLL);
                    continue;
                };
                questions.fetch_add(1, Ordering::SeqCst);
                stream.set_nonblocking(false).and_then(|()| serve_tcp(stream)).ok();
            }
        }));
        Ok(())
    }
}

impl Drop for Upstream {
    /// Its address is free for the next one.
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

fn serve_tcp(mut stream: TcpStream) -> std::io::Result<()> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut request = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut request)?;
    let reply = reply(&request);
    let length = u16::try_from(reply.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &reply].concat())
}

/// The question again, with one A record of [`ANSWER`] (RFC 1035, section 4).
fn reply(request: &[u8]) -> Vec<u8> {
    let name_end = request.iter().skip(12).position(|&byte| byte == 0).map_or(request.len(), |end| end + 13);
    let question = &request[12.min(request.len())..(name_end + 4).min(request.len())];
    let mut reply = request[..2.min(request.len())].to_vec();
    // A response, recursion desired and available; one question, one answer.
    reply.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    reply.extend(question);
    // The name by a pointer to the question, type A, class IN, TTL 60, four bytes.
    reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    reply.extend(ANSWER.octets());
    reply
}
