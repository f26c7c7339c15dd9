//! Pins, which others may remove. What they named goes on, or is gone with them, and nobody finds it again by its name.

use std::io;
use std::sync::atomic::Ordering;

use aya::maps::{MapData, MapInfo};
use aya::programs::ProgramInfo;
use shoal_ebpf_common::reason::Program;

use super::load::{Dirs, MAPS, load, remove_tree};
use super::{BpfDriver, BpfError, carry};

impl Dirs {
    fn has_maps(&self) -> bool {
        MAPS.iter().all(|map| self.maps.join(map).exists())
    }

    fn has_programs(&self) -> bool {
        Program::ALL.iter().all(|&program| self.program(program).exists()) && self.collector().exists()
    }
}

impl BpfDriver {
    /// Whether the maps and programs are pinned. Attachments are told by [`BpfDriver::attached`].
    pub fn is_pinned(&self) -> bool {
        self.dirs.has_maps()
            && self.are_programs_pinned()
            && self.dirs.links.exists()
            && carry::mark(&self.dirs.generation).exists()
    }

    fn are_programs_pinned(&self) -> bool {
        self.dirs.has_programs() && (!self.hooks || self.can_lead_connections())
    }

    /// Pins again what is not pinned any more: maps with all that is in them, and programs, which are loaded for it.
    /// Returns whether anything was missing.
    pub fn restore_pins(&mut self) -> Result<bool, BpfError> {
        if self.is_pinned() {
            return Ok(false);
        }
        let base = &self.dirs.base;
        self.dirs.make().map_err(|source| BpfError::Directory { path: base.clone(), source })?;
        for (name, map) in &self.maps {
            pin(map, &self.dirs, name)?;
        }
        if !self.are_programs_pinned() {
            load(&self.opened, &self.dirs)?;
            self.replace_programs()?;
        }
        Ok(true)
    }

    /// Whether somebody has taken away a pin or an attachment since [`BpfDriver::attached`] was asked: a quick look, for
    /// nobody tells.
    pub fn is_touched(&self) -> Result<bool, BpfError> {
        let pins = self.pins()?;
        if !self.is_pinned() || pins.len() < self.seen.load(Ordering::Relaxed) {
            return Ok(true);
        }
        for at in pins {
            if !self.is_linked(at)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Pins maps again that lost their pins while no daemon was there to see it: programs that are pinned hold them. Where
/// none does, the programs go, too, to be loaded with new maps: they must never work on others than the daemon writes.
pub(super) fn recover(dirs: &Dirs) -> Result<(), BpfError> {
    let is_loaded = Program::ALL.iter().any(|&program| dirs.program(program).exists());
    if !is_loaded || dirs.has_maps() {
        return Ok(());
    }
    dirs.make().map_err(|source| BpfError::Directory { path: dirs.base.clone(), source })?;
    for &program in Program::ALL {
        let path = dirs.program(program);
        if !path.exists() {
            continue;
        }
        let ids = ProgramInfo::from_pin(&path).and_then(|info| info.map_ids());
        let error = |source| BpfError::Pin { path, action: "inspect", source: io::Error::other(source) };
        for id in ids.map_err(error)?.unwrap_or_default() {
            // One that is gone or of another name is none of those.
            let Ok(info) = MapInfo::from_id(id) else { continue };
            if let Some(name) = MAPS.iter().find(|name| info.name_as_str() == Some(name))
                && let Ok(map) = MapData::from_id(id)
            {
                pin(&map, dirs, name)?;
            }
        }
    }
    if dirs.has_maps() {
        tracing::warn!("maps had lost their pins: they are pinned again");
    } else {
        tracing::warn!("maps are gone: the programs are loaded anew");
        remove_tree(&dirs.programs)?;
    }
    Ok(())
}

/// Pins a map, if nothing is pinned there.
fn pin(map: &MapData, dirs: &Dirs, name: &str) -> Result<(), BpfError> {
    let path = dirs.maps.join(name);
    if path.exists() {
        return Ok(());
    }
    let error =
        |source| BpfError::Pin { path: path.clone(), action: "make", source: io::Error::other(source) };
    map.pin(&path).map_err(error)
}
