//! Between the plan's objects and the maps and programs of the data plane. The plan speaks of links by name, the maps
//! by interface index: an index whose link is gone or was made anew shows as a difference.

use std::collections::BTreeMap;
use std::net::IpAddr;

use shoal_ebpf_common::addr::Addr;
use shoal_ebpf_common::direct;
use shoal_ebpf_common::keys::{DoorKey, LocalKey, PortKey, RouterKey, VipKey};
use shoal_ebpf_common::maglev::{self, Policy};
use shoal_ebpf_common::values::{
    self, ENDPOINT_DRAINING, ENDPOINT_DSR, ENDPOINT_IDLE, ENDPOINT_LOCAL, EndpointVal, LEG_EGRESS,
    LEG_INGRESS, LEG_OVERLAY, LocalVal, NodeConfig, PORT_DSR, PORT_PROXY, PeerVal, PortVal, TotalVal, VipVal,
};
use shoal_plan::IfName;
use shoal_plan::doors::Addresses;
use shoal_plan::object::{
    BalancerIf, Door, DoorPlace, FirewallMark, IngressBalancer, IngressPlace, LbEndpoint, LbService, LegRole,
    Local, LocalAddr, MeshConfig, Object, Peer, Port, Program, ServiceKey, Takes, TaskIf, Tunnel, Vip,
};
use shoal_types::{DualAddr, EndpointId, LbPolicy, MacAddr, PortPlace, Protocol, Vni};
use tokio::task::yield_now;

use crate::drivers::bpf::{BpfDriver, BpfError, Collected, Program as BpfProgram, ServiceSpec};
use crate::drivers::link::LinkTable;
use crate::in_use::{Bytes, EndpointUse, Flows};

use super::FacilityError;

/// The links an object names.
pub(super) fn links_of(object: &Object) -> Vec<&IfName> {
    match object {
        Object::TaskIf(o) => {
            let mut links = vec![&o.host];
            links.extend(o.network.iter().map(|(_, vxlan)| vxlan));
            links.extend(o.ingress.iter().map(|place| &place.vxlan));
            links
        }
        Object::Local(o) => vec![&o.vxlan, &o.veth],
        Object::LbEndpoint(o) => vec![&o.link],
        Object::BalancerIf(o) => vec![&o.host, &o.vxlan],
        Object::Tunnel(o) => vec![&o.vxlan],
        Object::Peer(o) => vec![&o.vxlan],
        Object::MeshConfig(o) => match &o.balancer {
            Some(balancer) => vec![&balancer.gate, &balancer.leg, &balancer.vxlan],
            None => Vec::new(),
        },
        Object::Vip(o) => o.balancer.iter().collect(),
        Object::Hook(link, _) => vec![link],
        _ => Vec::new(),
    }
}

pub(super) fn dual(v4: Addr, v6: Addr) -> DualAddr {
    let v6 = std::net::Ipv6Addr::from(v6.octets());
    DualAddr { v4: v4.v4_octets().into(), v6 }
}

fn bpf_program(program: Program) -> BpfProgram {
    match program {
        Program::MeshIngress => BpfProgram::MeshIngress,
        Program::OverlayRx => BpfProgram::OverlayRx,
        Program::TaskTx => BpfProgram::TaskTx,
        Program::BalancerTx => BpfProgram::BalancerTx,
        Program::GateTx => BpfProgram::GateTx,
        Program::HostTx => BpfProgram::HostTx,
    }
}

fn plan_program(program: BpfProgram) -> Program {
    match program {
        BpfProgram::MeshIngress => Program::MeshIngress,
        BpfProgram::OverlayRx => Program::OverlayRx,
        BpfProgram::TaskTx => Program::TaskTx,
        BpfProgram::BalancerTx => Program::BalancerTx,
        BpfProgram::GateTx => Program::GateTx,
        BpfProgram::HostTx => Program::HostTx,
    }
}

fn protocol(number: u8) -> Protocol {
    [Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.number() == number).unwrap_or(Protocol::Tcp)
}

/// The highest VNI.
const NO_NETWORK: Vni = match Vni::new(0x00ff_ffff) {
    Some(vni) => vni,
    None => panic!("a VNI has 24 bits"),
};

/// A service key; for a number that is none of ours, one that no service of ours has.
pub(super) fn service_key(value: u64) -> ServiceKey {
    ServiceKey::from_u64(value).unwrap_or(ServiceKey { network: NO_NETWORK, index: u32::MAX, own: true })
}

/// Flows by table, from those that were counted and what a look at them found.
pub(super) fn flows(new: &BTreeMap<u64, u64>, found: &Collected) -> BTreeMap<ServiceKey, Flows> {
    let mut flows: BTreeMap<ServiceKey, Flows> = BTreeMap::new();
    let mut add = |id: u64, more: Flows| {
        if let Some(key) = ServiceKey::from_u64(id) {
            flows.entry(key).or_default().add(more);
        }
    };
    for (id, new) in new {
        add(*id, Flows { new: *new, ..Flows::default() });
    }
    for (id, live) in &found.live {
        add(*id, Flows { live: *live, ..Flows::default() });
    }
    for (key, total) in &found.bytes {
        add(key.service, Flows { bytes: bytes(*total), ..Flows::default() });
    }
    flows
}

/// Flows by endpoint. A number that is none of ours is left out.
pub(super) fn by_endpoint(found: &Collected) -> BTreeMap<EndpointId, EndpointUse> {
    let mut endpoints: BTreeMap<EndpointId, EndpointUse> = BTreeMap::new();
    let mut add = |id: u64, more: EndpointUse| {
        // 0 stands for those that are gone.
        if let (Ok(id), true) = (u32::try_from(id), id != 0) {
            endpoints.entry(EndpointId(id)).or_default().add(more);
        }
    };
    for (id, live) in &found.endpoints {
        add(*id, EndpointUse { live: *live, ..EndpointUse::default() });
    }
    for (key, total) in &found.bytes {
        add(key.endpoint, EndpointUse { bytes: bytes(*total), live: 0 });
    }
    endpoints
}

const fn bytes(total: TotalVal) -> Bytes {
    Bytes { requests: total.requests, answers: total.answers, one_way: false }
}

/// What there is little of in the maps, and all attachments.
pub(super) fn observe(bpf: &BpfDriver, links: &LinkTable, found: &mut Vec<Object>) -> Result<(), BpfError> {
    let config = bpf.config()?;
    if config != NodeConfig::default() {
        found.push(Object::from(MeshConfig {
            addr: dual(config.router_ip4, config.router_ip6),
            router: MacAddr(config.router_mac),
            data_port: config.vxlan_port,
            balancer: (config.gate != 0).then(|| IngressBalancer {
                gate: links.name(config.gate),
                leg: links.name(config.balancer),
                vxlan: links.name(config.ingress_vxlan),
            }),
        }));
    }
    found.extend(bpf.members.dump()?.keys().map(|addr| Object::Member((*addr).into())));
    let local_addr = |(addr, value): (&Addr, &u32)| {
        Object::LocalAddr(LocalAddr {
            addr: (*addr).into(),
            door: direct::door_number(*value),
            device: direct::door_device(*value),
        })
    };
    found.extend(bpf.local_addrs.dump()?.iter().map(local_addr));
    found.extend(bpf.outward.dump()?.into_keys().map(Object::Outward));
    found.extend(bpf.routers.dump()?.keys().map(|key| Object::Router(MacAddr(key.mac))));
    found.extend(bpf.task_ifs.dump()?.iter().map(|(index, value)| task_if(*index, value, links)));
    found.extend(bpf.local.dump()?.iter().filter_map(|(key, value)| {
        Some(Object::from(Local {
            vxlan: links.name(key.vxlan),
            mac: MacAddr(key.mac),
            addr: dual(value.ip4, value.ip6),
            veth: links.name(value.veth),
            network: Vni::new(value.network)?,
        }))
    }));
    found.extend(bpf.tunnels.dump()?.iter().filter_map(|(vni, index)| {
        Some(Object::Tunnel(Tunnel { vni: Vni::new(*vni)?, vxlan: links.name(*index) }))
    }));
    found.extend(bpf.balancer_ifs.dump()?.iter().map(|(index, value)| {
        Object::BalancerIf(BalancerIf {
            host: links.name(*index),
            vxlan: links.name(value.vxlan),
            steers: value.steer != 0,
        })
    }));
    found.extend(
        bpf.attached()?
            .into_iter()
            .map(|attachment| Object::Hook(links.name(attachment.ifindex), plan_program(attachment.program))),
    );
    Ok(())
}

/// The endpoints in the maps.
pub(super) fn endpoints<'a>(
    bpf: &BpfDriver,
    links: &'a LinkTable,
) -> Result<impl Iterator<Item = Object> + use<'a>, BpfError> {
    let object = |(id, value): (u64, EndpointVal)| {
        Some(Object::LbEndpoint(LbEndpoint {
            id: EndpointId(u32::try_from(id).ok()?),
            addr: dual(value.ip4, value.ip6),
            mac: MacAddr(value.mac),
            local: value.is_local(),
            takes: match (value.is_draining(), value.is_idle()) {
                (true, _) => Takes::None,
                (false, true) => Takes::Own,
                (false, false) => Takes::All,
            },
            dsr: value.may_answer(),
            link: links.name(value.ifindex),
        }))
    };
    Ok(bpf.endpoints.scan()?.into_iter().filter_map(object))
}

/// The forwarding entries in the maps.
pub(super) fn peers<'a>(
    bpf: &BpfDriver,
    links: &'a LinkTable,
) -> Result<impl Iterator<Item = Object> + use<'a>, BpfError> {
    let object = |(key, value): (LocalKey, PeerVal)| {
        Some(Object::Peer(Peer {
            vxlan: links.name(key.vxlan),
            mac: MacAddr(key.mac),
            vtep: value.vtep.to_ne_bytes().into(),
            source: value.source.to_ne_bytes().into(),
            vni: Vni::new(value.vni)?,
            mtu: value.mtu,
        }))
    };
    Ok(bpf.peers.scan()?.into_iter().filter_map(object))
}

/// The reverse of [`door_entry`].
fn door(key: DoorKey, addr: Addr) -> Door {
    let place = DoorPlace { router: key.router, number: key.number, family: key.family };
    Door { place, addr: addr.into() }
}

/// The addresses that this node may answer from, by the low half of their routers' addresses.
pub(super) fn doors(bpf: &BpfDriver) -> BTreeMap<u32, Addresses> {
    let entries = bpf.doors.dump().unwrap_or_else(|error| {
        tracing::debug!(error = &error as &dyn std::error::Error, "addresses of others are learned anew");
        BTreeMap::new()
    });
    let mut of_router: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
    for (key, addr) in entries {
        of_router.entry(key.router).or_default().push(addr.into());
    }
    of_router.into_iter().map(|(router, addrs)| (router, Addresses::of(addrs))).collect()
}

/// The ways in: addresses of other nodes, virtual IPs, and published ports.
pub(super) async fn ways_in(
    bpf: &BpfDriver,
    links: &LinkTable,
    found: &mut Vec<Object>,
) -> Result<(), BpfError> {
    found.extend(bpf.doors.dump()?.iter().map(|(key, addr)| Object::Door(door(*key, *addr))));
    yield_now().await;
    found.extend(bpf.vips.dump()?.iter().filter_map(|(key, value)| {
        Some(Object::Vip(Vip {
            network: Vni::new(key.network)?,
            addr: key.addr.into(),
            service: service_key(value.service),
            mac: MacAddr(value.mac),
            balancer: (value.balancer != 0).then(|| links.name(value.balancer)),
            mark: FirewallMark::new(value.mark),
        }))
    }));
    yield_now().await;
    found.extend(bpf.ports.dump()?.iter().map(|(key, value)| Object::Port(port(key, value))));
    yield_now().await;
    Ok(())
}

/// The reverse of [`port_entry`].
fn port(key: &PortKey, value: &PortVal) -> Port {
    Port {
        place: PortPlace {
            protocol: protocol(key.proto),
            port: key.port,
            addr: (!key.addr.is_any()).then(|| key.addr.into()),
        },
        service: service_key(value.service),
        target: value.target_port,
        mark: FirewallMark::new(value.mark),
        proxy: value.flags & PORT_PROXY != 0,
        dsr: value.flags & PORT_DSR != 0,
    }
}

fn task_if(index: u32, value: &values::TaskIf, links: &LinkTable) -> Object {
    let network = Vni::new(value.network).map(|vni| (vni, links.name(value.vxlan)));
    let ingress = (value.ingress_vxlan != 0).then(|| IngressPlace {
        addr: dual(value.ingress_ip4, value.ingress_ip6),
        mac: MacAddr(value.ingress_mac),
        vxlan: links.name(value.ingress_vxlan),
    });
    let role = match value.leg {
        LEG_INGRESS => LegRole::Ingress,
        LEG_EGRESS => LegRole::Egress,
        _ => LegRole::Overlay,
    };
    Object::from(TaskIf {
        host: links.name(index),
        addr: dual(value.ip4, value.ip6),
        mac: MacAddr(value.mac),
        network,
        ingress,
        role,
        vip: (!value.vip_ip4.is_any()).then(|| dual(value.vip_ip4, value.vip_ip6)),
    })
}

pub(super) fn spec(service: &LbService) -> ServiceSpec {
    let member = |(id, share): &(EndpointId, u8)| maglev::Member {
        endpoint: u64::from(id.0),
        weight: u16::from(*share),
    };
    let members = service.members.iter().map(member).collect();
    ServiceSpec::new(service.seed, policy(service.policy), members)
}

/// How the programs read a table. Desired tables have no other policies than these.
const fn policy(policy: LbPolicy) -> Policy {
    match policy {
        LbPolicy::RoundRobin => Policy::Turn,
        LbPolicy::Source => Policy::Source,
        LbPolicy::Random => Policy::Random,
        LbPolicy::Auto | LbPolicy::LeastConnections | LbPolicy::Maglev => Policy::Flow,
    }
}

/// Whether a published port or virtual IP leads to a virtual service.
pub(super) fn leads_to_balancers(bpf: &BpfDriver) -> Result<bool, BpfError> {
    let ports = bpf.ports.dump()?.values().any(|port| port.mark != 0);
    Ok(ports || bpf.vips.dump()?.values().any(|vip| vip.mark != 0))
}

/// Makes an object so. Returns whether it wrote.
pub(super) fn ensure(bpf: &mut BpfDriver, links: &LinkTable, object: &Object) -> Result<bool, FacilityError> {
    let index = |name: &IfName| links.index(name);
    Ok(match object {
        Object::MeshConfig(o) => bpf.set_config(node_config(o, links)?)?,
        Object::Member(addr) => bpf.members.upsert(&(*addr).into(), &1)?,
        Object::LocalAddr(o) => {
            bpf.local_addrs.upsert(&o.addr.into(), &direct::door_value(o.device, o.door))?
        }
        Object::Door(o) => {
            let (key, addr) = door_entry(o);
            bpf.doors.upsert(&key, &addr)?
        }
        Object::Outward(index) => bpf.outward.upsert(index, &1)?,
        Object::Router(mac) => bpf.routers.upsert(&RouterKey::new(mac.0), &1)?,
        Object::Tunnel(o) => bpf.tunnels.upsert(&o.vni.get(), &index(&o.vxlan)?)?,
        Object::Peer(o) => {
            let (key, value) = peer_entry(o, links)?;
            bpf.peers.upsert(&key, &value)?
        }
        Object::TaskIf(o) => {
            let value = task_if_value(o, links)?;
            bpf.task_ifs.upsert(&index(&o.host)?, &value)?
        }
        Object::Local(o) => bpf.local.upsert(
            &LocalKey::new(index(&o.vxlan)?, o.mac.0),
            &LocalVal {
                ip4: o.addr.v4.into(),
                ip6: o.addr.v6.into(),
                veth: index(&o.veth)?,
                network: o.network.get(),
            },
        )?,
        Object::LbEndpoint(o) => {
            let (key, value) = endpoint_entry(o, links)?;
            bpf.endpoints.upsert(&key, &value)?
        }
        Object::BalancerIf(o) => bpf.balancer_ifs.upsert(
            &index(&o.host)?,
            &values::BalancerIf { vxlan: index(&o.vxlan)?, steer: u32::from(o.steers) },
        )?,
        Object::LbService(o) => bpf.upsert_service(o.key.to_u64(), &spec(o))?,
        Object::Hook(link, program) => bpf.attach(index(link)?, bpf_program(*program))?,
        Object::Vip(o) => {
            let (key, value) = vip_entry(o, links)?;
            bpf.vips.upsert(&key, &value)?
        }
        Object::Port(o) => {
            let (key, value) = port_entry(o);
            bpf.ports.upsert(&key, &value)?
        }
        _ => false,
    })
}

/// Makes objects of one kind so, by few calls. Returns how many of the first of them are.
pub(super) fn ensure_many(
    bpf: &mut BpfDriver,
    links: &LinkTable,
    objects: &[&Object],
) -> Result<usize, FacilityError> {
    let (mut peers, mut endpoints, mut vips, mut ports) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut doors = Vec::new();
    for object in objects {
        match object {
            Object::Peer(o) => peers.push(peer_entry(o, links)?),
            Object::Door(o) => doors.push(door_entry(o)),
            Object::LbEndpoint(o) => endpoints.push(endpoint_entry(o, links)?),
            Object::Vip(o) => vips.push(vip_entry(o, links)?),
            Object::Port(o) => ports.push(port_entry(o)),
            _ => return Ok(0),
        }
    }
    bpf.peers.write_all(&peers)?;
    bpf.doors.write_all(&doors)?;
    bpf.endpoints.write_all(&endpoints)?;
    bpf.vips.write_all(&vips)?;
    bpf.ports.write_all(&ports)?;
    Ok(objects.len())
}

fn peer_entry(o: &Peer, links: &LinkTable) -> Result<(LocalKey, PeerVal), FacilityError> {
    let value = PeerVal {
        vtep: u32::from_ne_bytes(o.vtep.octets()),
        source: u32::from_ne_bytes(o.source.octets()),
        vni: o.vni.get(),
        mtu: o.mtu,
    };
    Ok((LocalKey::new(links.index(&o.vxlan)?, o.mac.0), value))
}

fn door_entry(o: &Door) -> (DoorKey, Addr) {
    (door_key(o.place), o.addr.into())
}

const fn door_key(place: DoorPlace) -> DoorKey {
    DoorKey { router: place.router, number: place.number, family: place.family }
}

fn endpoint_entry(o: &LbEndpoint, links: &LinkTable) -> Result<(u64, EndpointVal), FacilityError> {
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    let value = EndpointVal {
        ip4: o.addr.v4.into(),
        ip6: o.addr.v6.into(),
        mac: o.mac.0,
        flags: flag(o.local, ENDPOINT_LOCAL)
            | flag(o.takes == Takes::None, ENDPOINT_DRAINING)
            | flag(o.takes == Takes::Own, ENDPOINT_IDLE)
            | flag(o.dsr, ENDPOINT_DSR),
        ifindex: links.index(&o.link)?,
        pad: 0,
    };
    Ok((u64::from(o.id.0), value))
}

fn vip_entry(o: &Vip, links: &LinkTable) -> Result<(VipKey, VipVal), FacilityError> {
    let value = VipVal {
        service: o.service.to_u64(),
        mac: o.mac.0,
        pad: 0,
        balancer: o.balancer.as_ref().map_or(Ok(0), |name| links.index(name))?,
        mark: o.mark.map_or(0, FirewallMark::get),
    };
    Ok((VipKey { addr: o.addr.into(), network: o.network.get() }, value))
}

fn port_entry(o: &Port) -> (PortKey, PortVal) {
    let mark = o.mark.map_or(0, FirewallMark::get);
    let flags = if o.proxy { PORT_PROXY } else { 0 } | if o.dsr { PORT_DSR } else { 0 };
    (port_key(o.place), PortVal { flags, ..PortVal::balanced(o.service.to_u64(), o.target, mark) })
}

fn port_key(place: PortPlace) -> PortKey {
    PortKey::new(place.addr.map_or(Addr::ANY, Addr::from), place.port, place.protocol.number())
}

fn node_config(o: &MeshConfig, links: &LinkTable) -> Result<NodeConfig, FacilityError> {
    let mut config = NodeConfig {
        router_mac: o.router.0,
        vxlan_port: o.data_port,
        router_ip4: o.addr.v4.into(),
        router_ip6: o.addr.v6.into(),
        ..NodeConfig::default()
    };
    if let Some(balancer) = &o.balancer {
        config.gate = links.index(&balancer.gate)?;
        config.balancer = links.index(&balancer.leg)?;
        config.ingress_vxlan = links.index(&balancer.vxlan)?;
    }
    Ok(config)
}

fn task_if_value(o: &TaskIf, links: &LinkTable) -> Result<values::TaskIf, FacilityError> {
    let mut value = values::TaskIf {
        ip4: o.addr.v4.into(),
        ip6: o.addr.v6.into(),
        mac: o.mac.0,
        leg: match o.role {
            LegRole::Overlay => LEG_OVERLAY,
            LegRole::Ingress => LEG_INGRESS,
            LegRole::Egress => LEG_EGRESS,
        },
        ..values::TaskIf::default()
    };
    if let Some((vni, vxlan)) = &o.network {
        value.network = vni.get();
        value.vxlan = links.index(vxlan)?;
    }
    if let Some(vip) = &o.vip {
        value.vip_ip4 = vip.v4.into();
        value.vip_ip6 = vip.v6.into();
    }
    if let Some(place) = &o.ingress {
        value.ingress_ip4 = place.addr.v4.into();
        value.ingress_ip6 = place.addr.v6.into();
        value.ingress_mac = place.mac.0;
        value.ingress_vxlan = links.index(&place.vxlan)?;
    }
    Ok(value)
}

/// The index of a link, or the one it had.
fn index_or_gone(links: &LinkTable, name: &IfName) -> Option<u32> {
    name.gone_index().or_else(|| links.index(name).ok())
}

/// Removes an object. Returns whether it wrote. Flows of UDP, which would live on by their packets alone, are purged when
/// the phase is done.
pub(super) fn remove(bpf: &mut BpfDriver, links: &LinkTable, object: &Object) -> Result<bool, FacilityError> {
    Ok(match object {
        Object::MeshConfig(_) => bpf.set_config(NodeConfig::default())?,
        Object::Member(addr) => bpf.members.remove(&(*addr).into())?,
        Object::LocalAddr(o) => bpf.local_addrs.remove(&o.addr.into())?,
        Object::Door(o) => bpf.doors.remove(&door_key(o.place))?,
        Object::Outward(index) => bpf.outward.remove(index)?,
        Object::Router(mac) => bpf.routers.remove(&RouterKey::new(mac.0))?,
        Object::Tunnel(o) => bpf.tunnels.remove(&o.vni.get())?,
        Object::Peer(o) => match index_or_gone(links, &o.vxlan) {
            Some(index) => bpf.peers.remove(&LocalKey::new(index, o.mac.0))?,
            None => false,
        },
        Object::TaskIf(o) => match index_or_gone(links, &o.host) {
            Some(index) => bpf.task_ifs.remove(&index)?,
            None => false,
        },
        Object::BalancerIf(o) => match index_or_gone(links, &o.host) {
            Some(index) => bpf.balancer_ifs.remove(&index)?,
            None => false,
        },
        Object::Local(o) => match index_or_gone(links, &o.vxlan) {
            Some(index) => bpf.local.remove(&LocalKey::new(index, o.mac.0))?,
            None => false,
        },
        Object::LbEndpoint(o) => bpf.remove_endpoint(u64::from(o.id.0))?,
        Object::LbService(o) => bpf.remove_service(o.key.to_u64())?,
        Object::Hook(link, program) => match index_or_gone(links, link) {
            Some(index) => bpf.detach(index, bpf_program(*program))?,
            None => false,
        },
        Object::Vip(o) => bpf.vips.remove(&VipKey { addr: o.addr.into(), network: o.network.get() })?,
        Object::Port(o) => bpf.withdraw(&port_key(o.place))?,
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_port_is_read_as_it_was_written() {
        let service = ServiceKey { network: NO_NETWORK, index: 7, own: true };
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            for addr in [None, Some([192, 0, 2, 1].into())] {
                for (mark, proxy, dsr, flags) in [
                    (None, true, false, PORT_PROXY),
                    (None, false, true, PORT_DSR),
                    (None, false, false, 0),
                    (FirewallMark::new(608_080), false, false, 0),
                ] {
                    let place = PortPlace { protocol, port: 8080, addr };
                    let written = Port { place, service, target: 80, mark, proxy, dsr };
                    let (key, value) = port_entry(&written);
                    assert_eq!(port(&key, &value), written);
                    assert_eq!(value.flags, flags);
                }
            }
        }
    }

    #[test]
    fn a_door_is_read_as_it_was_written() {
        for (addr, v4) in [("192.0.2.7", true), ("2001:db8::7", false)] {
            let place = DoorPlace { router: 0x01_02_03, number: 63, family: if v4 { 4 } else { 6 } };
            let written = Door { place, addr: addr.parse().expect("an address") };
            let (key, value) = door_entry(&written);
            assert_eq!(door(key, value), written);
            assert_eq!(key, DoorKey::new(0x01_02_03, 63, v4));
        }
    }
}
