//! Which networks the programs at the control group know a task to be in, and these programs themselves.

use std::collections::BTreeMap;
use std::path::PathBuf;

use shoal_ebpf_common::keys::ClientKey;
use shoal_ebpf_common::values::ClientVal;
use shoal_plan::object::{Client, Object};
use shoal_types::{MacAddr, TaskId, Vni};

use crate::drivers::bpf::{BpfDriver, BpfError, Connecting};
use crate::drivers::link::{LinkError, Writes};
use crate::drivers::overlay::Overlay;
use crate::netns::NetnsError;

use super::FacilityError;
use super::mesh::dual;

/// How connections of tasks are led to endpoints.
pub(super) struct Clients {
    /// Directory of the control group of the node's tasks; none where there is no unified hierarchy.
    group: Option<PathBuf>,
    /// Whether it is wanted and possible.
    enabled: bool,
    /// Whether the programs were in place when that was looked at last.
    whole: bool,
    /// Cookies of namespaces, which cost a thread to ask for: by task, with the inode number they hold for.
    cookies: BTreeMap<TaskId, (u64, u64)>,
}

impl Clients {
    /// Decides by what is wanted (`None`: what the kernel can) and by what is there.
    pub(super) fn new(wanted: Option<bool>, group: Option<PathBuf>, bpf: &BpfDriver) -> Self {
        let able = bpf.can_lead_connections() && group.is_some();
        if !able && wanted != Some(false) {
            let lacking = if group.is_none() {
                "no unified hierarchy of control groups is mounted (mount -t cgroup2)"
            } else {
                "the kernel takes no programs at control groups (CONFIG_CGROUP_BPF)"
            };
            tracing::warn!(lacking, "packets to virtual IPs are translated one by one");
        }
        Self { group, enabled: able && wanted != Some(false), whole: false, cookies: BTreeMap::new() }
    }

    /// Whether connections are led.
    pub(super) fn enabled(&self) -> bool {
        self.enabled
    }

    /// Whether the programs were in place and are not any more.
    pub(super) fn is_touched(&self, bpf: &BpfDriver) -> Result<bool, BpfError> {
        match &self.group {
            Some(group) if self.whole => Ok(bpf.connecting(group)? != Connecting::Whole),
            _ => Ok(false),
        }
    }

    /// What is in place. What is left of namespaces that are gone is cleared away.
    pub(super) fn observe(
        &mut self,
        overlay: &Overlay,
        bpf: &mut BpfDriver,
        writes: &Writes,
        found: &mut Vec<Object>,
    ) -> Result<(), FacilityError> {
        let group = self.group.clone().unwrap_or_default();
        let connecting = bpf.connecting(&group)?;
        self.whole = connecting == Connecting::Whole;
        match connecting {
            Connecting::Off => {}
            Connecting::Partly => found.push(Object::Connecting(false)),
            Connecting::Whole => found.push(Object::Connecting(true)),
        }
        let known = bpf.clients.dump()?;
        if known.is_empty() {
            self.cookies.clear();
            return Ok(());
        }
        let tasks = self.tasks(overlay)?;
        for (key, value) in known {
            let network = Vni::new(value.network);
            if let (Some(task), Some(network)) = (tasks.get(&key.netns), network) {
                found.push(Object::Client(Client {
                    task: task.clone(),
                    place: key.place,
                    addr: dual(value.ip4, value.ip6),
                    mac: MacAddr(value.mac),
                    network,
                }));
            } else {
                bpf.clients.remove(&key)?;
                writes.count();
            }
        }
        Ok(())
    }

    /// The tasks that have a namespace, by its cookie.
    fn tasks(&mut self, overlay: &Overlay) -> Result<BTreeMap<u64, TaskId>, FacilityError> {
        let names = overlay.namespaces().list().map_err(LinkError::from)?;
        let tasks: Vec<TaskId> = names.iter().filter_map(|name| name.parse().ok()).collect();
        self.cookies.retain(|task, _| tasks.contains(task));
        let mut by_cookie = BTreeMap::new();
        for task in tasks {
            match self.cookie(overlay, &task) {
                Ok(cookie) => {
                    by_cookie.insert(cookie, task);
                }
                Err(NetnsError::NotFound(_) | NetnsError::NotANamespace(_)) => {}
                Err(error) => return Err(LinkError::from(error).into()),
            }
        }
        Ok(by_cookie)
    }

    fn cookie(&mut self, overlay: &Overlay, task: &TaskId) -> Result<u64, NetnsError> {
        let netns = overlay.namespaces().open(task.as_str())?;
        let inode = netns.inode()?;
        match self.cookies.get(task) {
            Some((known, cookie)) if *known == inode => Ok(*cookie),
            _ => {
                let cookie = netns.cookie()?;
                self.cookies.insert(task.clone(), (inode, cookie));
                Ok(cookie)
            }
        }
    }

    /// Makes a task known, or puts the programs in place. Returns whether it wrote.
    pub(super) fn ensure(
        &mut self,
        overlay: &Overlay,
        bpf: &mut BpfDriver,
        object: &Object,
    ) -> Result<bool, FacilityError> {
        match (object, &self.group) {
            (Object::Client(client), _) => {
                let cookie = self.cookie(overlay, &client.task).map_err(LinkError::from)?;
                let value = ClientVal {
                    ip4: client.addr.v4.into(),
                    ip6: client.addr.v6.into(),
                    mac: client.mac.0,
                    pad: 0,
                    network: client.network.get(),
                };
                Ok(bpf.clients.upsert(&ClientKey::new(cookie, client.place), &value)?)
            }
            (Object::Connecting(_), Some(group)) => Ok(bpf.lead_connections(group)?),
            _ => Ok(false),
        }
    }

    /// Forgets a task, or takes the programs away. Returns whether it wrote. (Of a task whose namespace is gone, the
    /// next look clears away what is left.)
    pub(super) fn remove(
        &mut self,
        overlay: &Overlay,
        bpf: &mut BpfDriver,
        object: &Object,
    ) -> Result<bool, FacilityError> {
        let client = match object {
            Object::Client(client) => client,
            Object::Connecting(_) => return Ok(bpf.leave_connections()?),
            _ => return Ok(false),
        };
        match self.cookie(overlay, &client.task) {
            Ok(cookie) => Ok(bpf.clients.remove(&ClientKey::new(cookie, client.place))?),
            Err(NetnsError::NotFound(_) | NetnsError::NotANamespace(_)) => Ok(false),
            Err(error) => Err(LinkError::from(error).into()),
        }
    }
}
