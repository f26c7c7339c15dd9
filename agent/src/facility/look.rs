//! Looking at everything of ours on the node, part by part.

use std::fs;
use std::path::Path;

use shoal_plan::desired::{HOST_SYSCTLS, RESERVED_PORTS};
use shoal_plan::object::{Object, Sysctl};
use shoal_plan::{Key, Objects};
use tokio::task::yield_now;

use super::{FacilityError, HostFacility, Look, mesh};

impl HostFacility {
    /// What there is, as [`super::Facility::observe`] tells it, and why parts of it could not be looked at: of those, nothing
    /// is told, or what was seen up to there.
    pub async fn look_at_parts(&mut self, desired: &Objects, look: Look) -> (Objects, Vec<FacilityError>) {
        let (mut found, mut failures) = (Objects::new(), Vec::new());
        failures.extend(self.look_at_links(look, &mut found).await.err());
        let mut more: Vec<Object> = sysctls().collect();
        failures.extend(self.look_at_reserved(desired, &mut more).err());
        failures.extend(self.look_at_mesh(desired, look, &mut more).await.err());
        self.look_at_resolvers(&mut more);
        found.extend(more.into_iter().map(|object| (object.key(), object)));
        yield_now().await;
        failures.extend(self.balancers.observe(&self.overlay, desired, look.thorough, &mut found).err());
        if look.thorough && failures.is_empty() {
            failures.extend(self.remove_other_layouts(desired, &found).err());
        }
        failures.extend(self.look_at_firewall(look, &mut found).await.err());
        (found, failures)
    }

    async fn look_at_links(&mut self, look: Look, found: &mut Objects) -> Result<(), FacilityError> {
        self.refresh_links().await?;
        found.extend(self.overlay.observe(&self.links, look.leaves).await?);
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
        look: Look,
        found: &mut Vec<Object>,
    ) -> Result<(), FacilityError> {
        mesh::observe(&self.bpf, &self.links, found)?;
        if self.bpf.is_pinned() {
            found.push(Object::Pins);
        }
        if look.leaves {
            let turn = look.thorough.then_some(&mut self.turn);
            mesh::observe_leaves(&self.bpf, &self.links, desired, turn, found).await?;
            yield_now().await;
        }
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
    async fn look_at_firewall(&mut self, look: Look, found: &mut Objects) -> Result<(), FacilityError> {
        if look.thorough && self.takes_table != Some(false) {
            self.firewall = None;
            self.firewall = self.egress.observe().await?;
        }
        found.extend(self.firewall.clone().map(|firewall| (Key::Firewall, Object::Firewall(firewall))));
        Ok(())
    }
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
