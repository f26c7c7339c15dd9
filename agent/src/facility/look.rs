//! Looking at everything of ours on the node, part by part.

use std::fs;
use std::path::Path;

use rtnetlink::packet_route::AddressFamily;
use shoal_plan::desired::{HOST_SYSCTLS, RESERVED_PORTS};
use shoal_plan::object::{Object, Sysctl};
use shoal_plan::{Key, Objects, Slice};
use tokio::task::yield_now;

use super::{FacilityError, HostFacility, mesh, tables};

/// Objects that are put in order without a pause.
const PIECE: usize = 2048;

impl HostFacility {
    /// The few, as [`super::Facility::observe`] tells them, and why parts of them could not be looked at: of those, nothing is
    /// told, or what was seen up to there.
    pub async fn look_at_few(&mut self, desired: &Objects, thorough: bool) -> (Objects, Vec<FacilityError>) {
        let (mut found, mut failures) = (Objects::new(), Vec::new());
        failures.extend(self.look_at_links(&mut found).await.err());
        let mut more: Vec<Object> = sysctls().collect();
        failures.extend(self.look_at_reserved(desired, &mut more).err());
        failures.extend(self.look_at_mesh(desired, thorough, &mut more).await.err());
        self.look_at_resolvers(&mut more);
        found.extend(more.into_iter().map(|object| (object.key(), object)));
        yield_now().await;
        failures.extend(self.balancers.observe(&self.overlay, desired, thorough, &mut found).err());
        if thorough && failures.is_empty() {
            failures.extend(self.remove_other_layouts(desired, &found).err());
        }
        failures.extend(self.look_at_firewall(thorough, &mut found).await.err());
        (found, failures)
    }

    /// What there is much of, by the links as they were when the few were looked at, or were made last.
    pub async fn look_at_many(&mut self, slice: Slice) -> Result<Objects, FacilityError> {
        let (overlay, links) = (&self.overlay, &self.links);
        Ok(match slice {
            Slice::Few => Objects::new(),
            Slice::Forwarding => in_order(overlay.forwarding(links).await?).await,
            Slice::Neighbors4 => in_order(overlay.neighbors(links, AddressFamily::Inet).await?).await,
            Slice::Neighbors6 => in_order(overlay.neighbors(links, AddressFamily::Inet6).await?).await,
            Slice::Peers => in_order(mesh::peers(&self.bpf, links)?).await,
            Slice::Endpoints => in_order(mesh::endpoints(&self.bpf, links)?).await,
        })
    }

    async fn look_at_links(&mut self, found: &mut Objects) -> Result<(), FacilityError> {
        self.refresh_links().await?;
        found.extend(self.overlay.observe(&self.links).await?);
        Ok(())
    }

    fn look_at_reserved(&self, desired: &Objects, found: &mut Vec<Object>) -> Result<(), FacilityError> {
        let wanted = match desired.get(&Key::Sysctl(RESERVED_PORTS.to_owned())) {
            Some(Object::Sysctl(wanted)) => wanted.value.as_str(),
            _ => "",
        };
        let value = self.reserved.observe(wanted)?;
        found.push(Object::Sysctl(Sysctl { path: RESERVED_PORTS.to_owned(), value }));
        Ok(())
    }

    async fn look_at_mesh(
        &mut self,
        desired: &Objects,
        thorough: bool,
        found: &mut Vec<Object>,
    ) -> Result<(), FacilityError> {
        mesh::observe(&self.bpf, &self.links, found)?;
        if self.bpf.is_pinned() {
            found.push(Object::Pins);
        }
        let turn = thorough.then_some(&mut self.turn);
        tables::observe(&self.bpf, desired, turn, found).await?;
        mesh::ways_in(&self.bpf, &self.links, found).await?;
        self.clients.observe(&self.overlay, &mut self.bpf, &self.writes, found)
    }

    fn look_at_resolvers(&mut self, found: &mut Vec<Object>) {
        let serving = self.dns.observe();
        self.resolvers.retain(|task, _| serving.contains(task.as_str()));
        found.extend(self.resolvers.values().cloned().map(Object::from));
    }

    /// Programs of another version go once ours are at work everywhere.
    fn remove_other_layouts(&mut self, desired: &Objects, found: &Objects) -> Result<(), FacilityError> {
        let mut hooks = desired.keys().filter(|key| matches!(key, Key::Hook(..)));
        if hooks.all(|key| found.contains_key(key)) && self.bpf.remove_other_layouts()? {
            tracing::info!("removed the programs of another version");
        }
        Ok(())
    }

    /// A table that is not known is not there, as far as it goes: writing it makes it so, or says what is wrong.
    async fn look_at_firewall(&mut self, thorough: bool, found: &mut Objects) -> Result<(), FacilityError> {
        if thorough && self.takes_table != Some(false) {
            self.firewall = None;
            self.firewall = self.egress.observe().await?;
        }
        found.extend(self.firewall.clone().map(|firewall| (Key::Firewall, Object::Firewall(firewall))));
        Ok(())
    }
}

/// Puts objects in order, in pieces, between which a look may be given up.
async fn in_order(objects: impl IntoIterator<Item = Object>) -> Objects {
    let mut ordered = Objects::new();
    for object in objects {
        ordered.insert(object.key(), object);
        if ordered.len().is_multiple_of(PIECE) {
            yield_now().await;
        }
    }
    ordered
}

fn sysctls() -> impl Iterator<Item = Object> {
    HOST_SYSCTLS.iter().filter_map(|(path, wanted)| {
        let value = match fs::read_to_string(Path::new("/proc/sys").join(path)) {
            Ok(value) => value.trim().to_owned(),
            // A kernel without IPv6 has no such parameter, and no need of it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (*wanted).to_owned(),
            Err(_) => return None,
        };
        Some(Object::Sysctl(Sysctl { path: (*path).to_owned(), value }))
    })
}
