//! What may not pass: tunnel frames from outside, and tasks that lie about who they are.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};
use shoal_netns::{Attachment, Node, Swarm, Task, enter, wait_for};

use crate::harness::{
    PATIENCE, PUBLISHED_WHOAMI, Scenario, WHOAMI, ask_node, create, node_of, running, scenario, web,
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("tunnel_frames_from_outside_are_dropped_and_counted", rogue_frames),
    scenario("a_task_can_t_send_from_an_address_that_isn_t_its_own", spoofing),
];

const VXLAN_PORT: u16 = 7378;
const DROPS: &str = "shoal_drops_total";

fn rogue_frames(swarm: &mut Swarm) -> anyhow::Result<()> {
    const FRAMES: u16 = 200;
    let tasks = web(swarm, 3)?;
    let networks = swarm.manager().items(&["network", "ls"])?;
    let vnis: Vec<u64> = networks.iter().filter_map(|network| network["vni"].as_u64()).collect();
    ensure!(vnis.len() >= 2, "the ingress network and one more: {networks:?}");
    for task in &tasks {
        let node = node_of(swarm, task)?;
        let before = node.metric(DROPS)?;
        let seen_before = overlay_packets(node)?;
        let inside = task.attachment("front")?;
        let socket = swarm.client.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        for number in 0..FRAMES {
            let vni = vnis[usize::from(number) % vnis.len()];
            socket.send_to(&tunnel_frame(vni, inside, number)?, (node.place.v4, VXLAN_PORT))?;
        }
        wait_for_drops(node, before + f64::from(FRAMES))?;
        let passed = overlay_packets(node)? - seen_before;
        ensure!(passed < u64::from(FRAMES) / 4, "{passed} packets reached the overlay of {}", node.name());
    }
    // Members' frames still pass.
    for node in &swarm.nodes {
        ask_node(swarm, node.place.v4.into(), PUBLISHED_WHOAMI, false, 20)?.complete()?;
    }
    Ok(())
}

/// The counter is read from the kernel now and then, not at each question.
fn wait_for_drops(node: &Node, count: f64) -> anyhow::Result<()> {
    wait_for(&format!("{} to count {count} drops", node.name()), PATIENCE, || {
        let now = node.metric(DROPS).map_err(|error| format!("{error:#}"))?;
        if now >= count { Ok(()) } else { Err(now.to_string()) }
    })
}

/// Packets that the node's VXLAN devices delivered.
fn overlay_packets(node: &Node) -> anyhow::Result<u64> {
    let text = node.host.ip("-j -s link show type vxlan")?;
    let links: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    Ok(links.iter().filter_map(|link| link["stats64"]["rx"]["packets"].as_u64()).sum())
}

/// A VXLAN datagram (RFC 7348) with a broadcast frame to a task's address in it.
fn tunnel_frame(vni: u64, to: &Attachment, number: u16) -> anyhow::Result<Vec<u8>> {
    let vni = u32::try_from(vni)?.to_be_bytes();
    let mut frame = vec![8, 0, 0, 0, vni[1], vni[2], vni[3], 0];
    frame.extend([0xff; 6]);
    frame.extend([2, 0, 0, 0, 0, 0x66]);
    frame.extend([8, 0]);
    // IPv4, 20 + 8 + 4 bytes, UDP, from a made-up neighbor; the checksum is left to the receiver's mercy.
    let mut header = vec![0x45, 0, 0, 32];
    header.extend(number.to_be_bytes());
    header.extend([0, 0, 64, 17, 0, 0]);
    let mut from = to.v4.octets();
    from[3] ^= 0x40;
    header.extend(from);
    header.extend(to.v4.octets());
    let sum =
        header.chunks(2).fold(0_u32, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16))?;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(header);
    frame.extend([4, 0]);
    frame.extend(WHOAMI.to_be_bytes());
    frame.extend([0, 12, 0, 0]);
    frame.extend(*b"spy?");
    Ok(frame)
}

fn spoofing(swarm: &mut Swarm) -> anyhow::Result<()> {
    let tasks = web(swarm, 2)?;
    create(swarm, "liar", "front", &[])?;
    let liar = running(swarm, "liar", 1)?.pop().context("one task")?;
    let own = liar.attachment("front")?.clone();
    let device = device_of(&liar, own.v4.into())?;
    let node = node_of(swarm, &liar)?;
    for target in &tasks {
        let there = target.attachment("front")?;
        for (own, stolen, there, bits) in [
            (
                IpAddr::from(own.v4),
                IpAddr::from(tasks[0].attachment("front")?.v4),
                IpAddr::from(there.v4),
                32,
            ),
            (own.v6.into(), tasks[0].attachment("front")?.v6.into(), there.v6.into(), 128),
        ] {
            if stolen == there {
                continue;
            }
            let there = SocketAddr::new(there, WHOAMI);
            // The node may be putting its addresses right after the round before.
            wait_for(&format!("{there} to answer the task's own address"), PATIENCE, || {
                answers_from(&liar, own, there)
                    .map_err(|error| format!("{error:#}"))?
                    .then_some(())
                    .ok_or_else(|| "no answer".to_owned())
            })?;
            let before = node.metric(DROPS)?;
            liar.run_line(&format!("ip addr add {stolen}/{bits} dev {device} nodad"))?
                .stdout()
                .or_else(|_| liar.run_line(&format!("ip addr add {stolen}/{bits} dev {device}"))?.stdout())?;
            // An error is no answer: the node took the address away again.
            let answered = answers_from(&liar, stolen, there).unwrap_or(false);
            // Unless the node noticed first and put the task's addresses right.
            drop(liar.run_line(&format!("ip addr del {stolen}/{bits} dev {device}"))?.stdout());
            ensure!(!answered, "{there} answers an address that was stolen");
            wait_for_drops(node, before + 1.0)?;
        }
    }
    Ok(())
}

/// The device in a task's namespace that has this address.
fn device_of(task: &Task, address: IpAddr) -> anyhow::Result<String> {
    let text = task.run_line("ip -o addr show")?.stdout()?;
    let line = text.lines().find(|line| line.contains(&format!(" {address}/")));
    let line = line.with_context(|| format!("no device with {address}: {text}"))?;
    Ok(line.split_whitespace().nth(1).context("ip prints a device")?.to_owned())
}

/// Whether a question sent from this address of a task gets an answer.
fn answers_from(task: &Task, from: IpAddr, to: SocketAddr) -> anyhow::Result<bool> {
    enter(&task.netns()?, || {
        let socket = UdpSocket::bind((from, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        socket.connect(to)?;
        for _ in 0..3 {
            socket.send(b"?")?;
            if socket.recv(&mut [0; 512]).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    })
}
