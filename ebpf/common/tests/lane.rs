//! The fast lane's own means: what it puts around a frame, and which packets it leaves to the device.

#[path = "support/all.rs"]
mod support;

use shoal_ebpf_common::csum;
use shoal_ebpf_common::lane::{self, Form};
use shoal_ebpf_common::reason::Program;

use support::host::Host;
use support::lane_cases::{MEMBER, SELF, tunneled};
use support::packet::{Segment, TCP};
use support::world::{Action, IFINDEX, NETWORK, OTHER_ROUTER, TASK, V4, V6, World, addr, node};

fn frame(ecn: u8, v4: bool) -> Vec<u8> {
    let family = if v4 { V4 } else { V6 };
    let mut bytes =
        Segment::new(TCP, (family.client, 40_000), (family.task, 80)).macs(OTHER_ROUTER, TASK).bytes();
    bytes[15] |= if v4 { ecn } else { ecn << 4 };
    bytes
}

#[test]
fn what_goes_around_a_frame_is_whole() {
    for v4 in [true, false] {
        let inner = frame(0, v4);
        let outer = tunneled(&inner, 0x0012_3456);
        assert_eq!(&outer[12..14], &[8, 0]);
        assert_eq!(
            csum::fold(csum::sum(outer[14..34].first_chunk::<20>().unwrap(), 0)),
            0xffff,
            "IPv4 checksum"
        );
        assert_eq!(u16::from_be_bytes([outer[16], outer[17]]) as usize, outer.len() - 14, "IPv4 length");
        assert_eq!((&outer[26..30], &outer[30..34]), (&MEMBER[..], &SELF[..]));
        assert_eq!(u16::from_be_bytes([outer[38], outer[39]]) as usize, outer.len() - 34, "UDP length");
        assert_eq!(&outer[42..50], &[8, 0, 0, 0, 0x12, 0x34, 0x56, 0], "VXLAN");
        assert_eq!(&outer[50..], inner, "and the frame as it was");
    }
}

#[test]
fn congestion_is_announced_as_the_device_does() {
    for v4 in [true, false] {
        for (inside, outside) in [(0, 0), (1, 1), (2, 2), (3, 2)] {
            assert_eq!(tunneled(&frame(inside, v4), 1)[15], outside, "ECN {inside}");
        }
    }
}

#[test]
fn source_ports_are_those_of_the_device() {
    // By hand, from udp_flow_src_port of Linux 6.1 to 6.18 and its range of 32768 to 60999.
    for (hash, port) in
        [(0x0, 32_768), (0x1, 32_768), (0x8000_0000, 46_883), (0x1234_5678, 40_299), (0xffff_ffff, 32_768)]
    {
        assert_eq!(lane::source_port(hash), port, "{hash:#x}");
    }
}

#[test]
fn a_flow_with_merged_packets_stays_with_the_device() {
    let mut host = Host::default();
    node(&mut host);
    host.set_member(addr("192.0.2.201"));
    host.set_tunnel(NETWORK, IFINDEX);
    let packet = tunneled(&frame(0, true), NETWORK);
    let run = |host: &mut Host, form| host.run_as(Program::MeshIngress, &packet, form).action;
    assert_eq!(run(&mut host, Form::Single), Action::Redirect);
    assert_eq!(run(&mut host, Form::Other), Action::Pass);
    assert_eq!(run(&mut host, Form::Single), Action::Redirect, "what is beside one packet is no flow's");
    assert_eq!(run(&mut host, Form::Merged), Action::Pass);
    assert_eq!(run(&mut host, Form::Single), Action::Pass, "or it would overtake the merged one");
    let mut other = packet.clone();
    other[35] ^= 1;
    assert_eq!(host.run(Program::MeshIngress, &other).action, Action::Redirect, "another flow");
}
