//! Namespaces of tasks: made with the kernel parameters that tasks need.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use netlink_packet_route::neighbour::NeighbourMessage;
use shoal_plan::object::{Object, Place, Sandbox};
use shoal_types::TaskId;

use super::inside::{Inside, host_address};
use super::{Overlay, set_addresses};
use crate::drivers::link::{LinkError, LinkTable, Nl};
use crate::netns::Netns;

/// Kernel parameters of a task's namespace, in place before its first interface.
const SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    // A client comes in by the ingress leg and its route points to the egress leg.
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    // An interface answers for and speaks with its own addresses only: the data plane drops anything else.
    ("net/ipv4/conf/all/arp_ignore", "1"),
    ("net/ipv4/conf/all/arp_announce", "2"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    // No link-local addresses: addresses come from the cluster's state only.
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("net/ipv4/ip_unprivileged_port_start", "0"),
];

fn sysctl_path(path: &str) -> PathBuf {
    Path::new("/proc/sys").join(path)
}

/// Whether a kernel parameter has a value, however the kernel spaces it.
pub(crate) fn sysctl_is(path: &str, value: &str) -> io::Result<bool> {
    let found = fs::read_to_string(sysctl_path(path))?;
    Ok(found.split_whitespace().eq(value.split_whitespace()))
}

/// Sets a kernel parameter of the calling thread's namespace.
pub(crate) fn set_sysctl(path: &str, value: &str) -> io::Result<()> {
    fs::write(sysctl_path(path), value)
}

/// Sets the kernel parameters of the calling thread's namespace that differ. Returns how many.
pub(super) fn ensure_sysctls(wanted: &[(&str, &str)]) -> Result<u64, LinkError> {
    let mut written = 0;
    for (path, value) in wanted {
        let failed = |action| move |source| LinkError::File { action, path: sysctl_path(path), source };
        match sysctl_is(path, value) {
            Ok(true) => {}
            // A kernel without IPv6 has none of its parameters.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(false) => {
                set_sysctl(path, value).map_err(failed("write"))?;
                written += 1;
            }
            Err(error) => return Err(failed("read")(error)),
        }
    }
    Ok(written)
}

/// Whether the kernel parameters of the calling thread's namespace are so, as far as there are such.
pub(super) fn sysctls_are(wanted: &[(&str, &str)]) -> bool {
    wanted.iter().all(|(path, value)| match sysctl_is(path, value) {
        Ok(same) => same,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    })
}

/// Puts the virtual IPs of a task on its loopback, and takes others away.
async fn set_vips(nl: &Nl, sandbox: &Sandbox) -> Result<(), LinkError> {
    let inside = Inside::read(nl).await?;
    let found: Vec<_> = inside.own_addresses().into_iter().map(host_address).collect();
    let wanted: Vec<_> = sandbox.vips.iter().copied().map(host_address).collect();
    let (name, loopback) = inside.loopback()?;
    set_addresses(nl, loopback, &name, &found, &wanted).await
}

impl Overlay {
    /// Makes a task's namespace, or sets its parameters and loopback right.
    pub async fn ensure_sandbox(&self, sandbox: &Sandbox) -> Result<(), LinkError> {
        let name = sandbox.task.as_str();
        if self.namespaces.open(name).is_err() {
            self.nl.writes().count();
        }
        let netns = self.namespaces.ensure(name)?;
        self.nl.writes().add(netns.run(|| ensure_sysctls(SYSCTLS))??);
        let connection = netns.netlink()?;
        let nl = Nl::new(connection.handle(), self.nl.writes());
        let outcome = set_vips(&nl, sandbox).await;
        connection.close().await;
        outcome
    }

    /// Removes a task's namespace. It goes for good when the last process and socket in it do.
    pub fn remove_sandbox(&self, sandbox: &Sandbox) -> Result<(), LinkError> {
        self.namespaces.remove(sandbox.task.as_str())?;
        self.nl.writes().count();
        Ok(())
    }

    /// The namespaces of tasks with the interfaces in them.
    pub(super) async fn observe_sandboxes(
        &self,
        links: &LinkTable,
        forwarding: &[NeighbourMessage],
        found: &mut Vec<Object>,
    ) -> Result<(), LinkError> {
        let mut insides = std::collections::BTreeMap::new();
        for name in self.namespaces.list()? {
            if Place::of_namespace(&name).is_some() {
                continue;
            }
            let Ok(task) = name.parse::<TaskId>() else { continue };
            // One that vanishes between the two is not there.
            let Ok(netns) = self.namespaces.open(&name) else { continue };
            let intact = netns.run(|| sysctls_are(SYSCTLS))?;
            let inside = Inside::observe(&netns, self.nl.writes()).await?;
            found.push(Object::Sandbox(Sandbox { task: task.clone(), vips: inside.own_addresses(), intact }));
            insides.insert(task, inside);
        }
        for link in links.iter() {
            let leg = super::leg::observe(link, links, forwarding, &insides);
            found.extend(leg.map(Object::from));
        }
        Ok(())
    }

    /// Opens a task's namespace.
    pub(super) fn netns(&self, task: &TaskId) -> Result<Netns, LinkError> {
        Ok(self.namespaces.open(task.as_str())?)
    }
}
