//! Assignments: objects, keys, deltas.

use shoal_types::assignment::{
    AssignedNetwork, AssignedService, AssignedTask, ClusterView, Delta, Endpoint, Member, Object, ObjectKey,
    Reserved, Vip,
};
use shoal_types::id::Name;
use shoal_types::object::Generation;
use shoal_types::{DualNet, EndpointId, LbPolicy, PortForm, ServiceIndex, Vni, Weight};

use super::WireError;
use super::base::{attachment, attachment_to, field, port, required, weight, word};
use crate::pb;
use crate::pb::assignment_key::Key;
use crate::pb::assignment_object::Object as Wire;

impl TryFrom<pb::AssignmentKey> for ObjectKey {
    type Error = WireError;
    fn try_from(key: pb::AssignmentKey) -> Result<Self, WireError> {
        Ok(match required("key", key.key)? {
            Key::Cluster(_) => Self::Cluster,
            Key::Member(id) => Self::Member(field("key.member", &id)?),
            Key::Network(id) => Self::Network(field("key.network", &id)?),
            Key::Endpoint(id) => Self::Endpoint(EndpointId(id)),
            Key::Service(id) => Self::Service(field("key.service", &id)?),
            Key::Task(id) => Self::Task(field("key.task", &id)?),
        })
    }
}

impl From<&ObjectKey> for pb::AssignmentKey {
    fn from(key: &ObjectKey) -> Self {
        let key = match key {
            ObjectKey::Cluster => Key::Cluster(pb::Empty {}),
            ObjectKey::Member(id) => Key::Member(id.to_string()),
            ObjectKey::Network(id) => Key::Network(id.to_string()),
            ObjectKey::Endpoint(id) => Key::Endpoint(id.0),
            ObjectKey::Service(id) => Key::Service(id.to_string()),
            ObjectKey::Task(id) => Key::Task(id.to_string()),
        };
        Self { key: Some(key) }
    }
}

impl TryFrom<pb::AssignmentObject> for Object {
    type Error = WireError;
    fn try_from(object: pb::AssignmentObject) -> Result<Self, WireError> {
        match required("object", object.object)? {
            Wire::Cluster(c) => cluster(&c).map(Self::Cluster).map_err(|e| e.within("cluster")),
            Wire::Member(m) => member(&m).map(Self::Member).map_err(|e| e.within("member")),
            Wire::Network(n) => network(&n).map(Self::Network).map_err(|e| e.within("network")),
            Wire::Endpoint(e) => endpoint(e).map(Self::Endpoint).map_err(|e| e.within("endpoint")),
            Wire::Service(s) => service(s).map(Self::Service).map_err(|e| e.within("service")),
            Wire::Task(t) => task(*t).map(|t| Self::Task(Box::new(t))).map_err(|e| e.within("task")),
        }
    }
}

fn cluster(c: &pb::ClusterView) -> Result<ClusterView, WireError> {
    Ok(ClusterView {
        id: field("id", &c.id)?,
        name: field("name", &c.name)?,
        data_port: port("data_port", c.data_port)?,
        node: field("node", &c.node)?,
        node_name: field("node_name", &c.node_name)?,
        router: attachment(required("router", c.router.as_ref())?)?,
        lb_engine: word("lb_engine", &c.lb_engine)?,
        direct: word("direct", &c.direct)?,
        reserved: c.reserved.as_ref().map(reserved).transpose()?.unwrap_or_default(),
    })
}

fn reserved(r: &pb::Reserved) -> Result<Reserved, WireError> {
    Ok(Reserved {
        networks: r.networks.iter().map(|t| field("reserved.networks", t)).collect::<Result<_, _>>()?,
        subnets: r.subnets.iter().map(|t| field("reserved.subnets", t)).collect::<Result<_, _>>()?,
    })
}

fn member(m: &pb::Member) -> Result<Member, WireError> {
    Ok(Member {
        node: field("node", &m.node)?,
        name: field("name", &m.name)?,
        data_addr: field("data_addr", &m.data_addr)?,
        router: attachment(required("router", m.router.as_ref())?)?,
    })
}

fn network(n: &pb::AssignedNetwork) -> Result<AssignedNetwork, WireError> {
    Ok(AssignedNetwork {
        id: field("id", &n.id)?,
        name: field("name", &n.name)?,
        vni: Vni::try_from(n.vni).map_err(|e| WireError::new("vni", e))?,
        subnets: DualNet { v4: field("subnet4", &n.subnet4)?, v6: field("subnet6", &n.subnet6)? },
        internal: n.internal,
        ingress: n.ingress,
    })
}

fn endpoint(e: pb::Endpoint) -> Result<Endpoint, WireError> {
    let at = attachment(required("at", e.at.as_ref())?)?;
    Ok(Endpoint {
        id: at.endpoint,
        network: at.network,
        addr: at.addr,
        node: field("node", &e.node)?,
        task: field("task", &e.task)?,
        service: field("service", &e.service)?,
        slot: required("slot", e.slot)?.try_into()?,
        serving: e.serving,
        weight: e.weight.map_or(Ok(Weight::default()), weight)?,
    })
}

fn vip(v: &pb::Vip) -> Result<Vip, WireError> {
    Ok(Vip {
        at: attachment(required("at", v.at.as_ref())?)?,
        aliases: v.aliases.iter().map(|t| field::<Name>("aliases", t)).collect::<Result<_, _>>()?,
    })
}

fn service(s: pb::AssignedService) -> Result<AssignedService, WireError> {
    Ok(AssignedService {
        id: field("id", &s.id)?,
        index: ServiceIndex(s.index),
        name: field("name", &s.name)?,
        vips: s.vips.iter().map(vip).collect::<Result<_, _>>()?,
        ports: s
            .ports
            .into_iter()
            .chain(s.bound_ports)
            .chain(s.sctp_ports)
            .chain(s.proxy_ports)
            .map(TryInto::try_into)
            .collect::<Result<_, _>>()?,
        lb: word("lb", if s.newer_lb.is_empty() { &s.lb } else { &s.newer_lb })?,
        dnsrr: s.dnsrr.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
    })
}

fn task(t: pb::AssignedTask) -> Result<AssignedTask, WireError> {
    let desired = t.desired().try_into()?;
    Ok(AssignedTask {
        id: field("id", &t.id)?,
        service: field("service", &t.service)?,
        service_name: field("service_name", &t.service_name)?,
        slot: required("slot", t.slot)?.try_into()?,
        spec: required("spec", t.spec)?.try_into()?,
        desired,
        withdrawn: t.withdrawn,
        attachments: t.attachments.iter().map(attachment).collect::<Result<_, _>>()?,
        dns: t.dns.map(TryInto::try_into).transpose()?.unwrap_or_default(),
    })
}

impl From<&Object> for pb::AssignmentObject {
    fn from(object: &Object) -> Self {
        let object = match object {
            Object::Cluster(c) => Wire::Cluster(pb::ClusterView {
                id: c.id.to_string(),
                name: c.name.to_string(),
                data_port: c.data_port.into(),
                node: c.node.to_string(),
                node_name: c.node_name.to_string(),
                router: Some(attachment_to(&c.router)),
                lb_engine: c.lb_engine.to_string(),
                direct: c.direct.to_string(),
                reserved: Some(pb::Reserved {
                    networks: c.reserved.networks.iter().map(ToString::to_string).collect(),
                    subnets: c.reserved.subnets.iter().map(ToString::to_string).collect(),
                }),
            }),
            Object::Member(m) => Wire::Member(pb::Member {
                node: m.node.to_string(),
                name: m.name.to_string(),
                data_addr: m.data_addr.to_string(),
                router: Some(attachment_to(&m.router)),
            }),
            Object::Network(n) => Wire::Network(pb::AssignedNetwork {
                id: n.id.to_string(),
                name: n.name.to_string(),
                vni: n.vni.get(),
                subnet4: n.subnets.v4.to_string(),
                subnet6: n.subnets.v6.to_string(),
                internal: n.internal,
                ingress: n.ingress,
            }),
            Object::Endpoint(e) => Wire::Endpoint(endpoint_to(e)),
            Object::Service(s) => Wire::Service(service_to(s)),
            Object::Task(t) => Wire::Task(Box::new(task_to(t))),
        };
        Self { object: Some(object) }
    }
}

fn endpoint_to(e: &Endpoint) -> pb::Endpoint {
    pb::Endpoint {
        at: Some(pb::Attachment {
            endpoint: e.id.0,
            network: e.network.to_string(),
            v4: e.addr.v4.to_string(),
            v6: e.addr.v6.to_string(),
        }),
        node: e.node.to_string(),
        task: e.task.to_string(),
        service: e.service.to_string(),
        slot: Some((&e.slot).into()),
        serving: e.serving,
        weight: (e.weight != Weight::default()).then(|| e.weight.into()),
    }
}

/// A policy, or the nearest that every version knows.
const fn known_to_all(lb: LbPolicy) -> LbPolicy {
    match lb {
        LbPolicy::Random => LbPolicy::RoundRobin,
        _ => lb,
    }
}

fn service_to(s: &AssignedService) -> pb::AssignedService {
    let ports = |form: PortForm| -> Vec<pb::PublishedPort> {
        s.ports.iter().copied().filter(|port| port.form() == form).map(Into::into).collect()
    };
    pb::AssignedService {
        id: s.id.to_string(),
        index: s.index.0,
        name: s.name.to_string(),
        vips: s
            .vips
            .iter()
            .map(|v| pb::Vip {
                at: Some(attachment_to(&v.at)),
                aliases: v.aliases.iter().map(ToString::to_string).collect(),
            })
            .collect(),
        ports: ports(PortForm::Everywhere),
        lb: known_to_all(s.lb).to_string(),
        newer_lb: if known_to_all(s.lb) == s.lb { String::new() } else { s.lb.to_string() },
        bound_ports: ports(PortForm::Bound),
        sctp_ports: ports(PortForm::Sctp),
        proxy_ports: ports(PortForm::Headed),
        dnsrr: s.dnsrr.iter().map(Into::into).collect(),
    }
}

fn task_to(t: &AssignedTask) -> pb::AssignedTask {
    pb::AssignedTask {
        id: t.id.to_string(),
        service: t.service.to_string(),
        service_name: t.service_name.to_string(),
        slot: Some((&t.slot).into()),
        spec: Some((&t.spec).into()),
        desired: pb::DesiredState::from(t.desired).into(),
        withdrawn: t.withdrawn,
        attachments: t.attachments.iter().map(attachment_to).collect(),
        dns: Some((&t.dns).into()),
    }
}

impl TryFrom<pb::DeltaMessage> for Delta {
    type Error = WireError;
    fn try_from(d: pb::DeltaMessage) -> Result<Self, WireError> {
        Ok(Self {
            from: Generation(d.from),
            to: Generation(d.to),
            upserts: d.upserts.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            removes: d.removes.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&Delta> for pb::DeltaMessage {
    fn from(d: &Delta) -> Self {
        Self {
            from: d.from.0,
            to: d.to.0,
            upserts: d.upserts.iter().map(Into::into).collect(),
            removes: d.removes.iter().map(Into::into).collect(),
        }
    }
}
