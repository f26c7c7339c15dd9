//! Flows of programs whose maps have another layout: brought into the maps of these programs, so that an upgrade breaks no
//! connection. Flow maps seldom change when others do.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use shoal_ebpf_common::keys::FlowKey;
use shoal_ebpf_common::values::{ALIASED, BALANCED, FlowVal, ReplyVal};

use super::pod::Layout;
use super::table::Table;
use super::{BpfDriver, BpfError};

/// Number of the layout of `FLOWS` and `REPLIES`, keys and values, and of what they mean: another one with each change.
/// It is told by a directory beside the maps, whatever their ABI version is.
const FLOW_LAYOUT: u32 = 1;
/// The one version that had this layout and did not tell.
const SILENT: &str = "gen-4";

// Whoever changes these looks at the number above.
const _: () =
    assert!(size_of::<FlowKey>() == 40 && size_of::<FlowVal>() == 32 && size_of::<ReplyVal>() == 56);

/// The directory that tells the layout, in the directory of a generation.
pub(super) fn mark(generation: &Path) -> PathBuf {
    generation.join(format!("flows-{FLOW_LAYOUT}"))
}

/// Whether the flow maps of another generation are laid out as ours.
fn is_alike(generation: &Path) -> bool {
    if mark(generation).exists() {
        return true;
    }
    let tells = fs::read_dir(generation).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("flows-"))
    });
    !tells && generation.ends_with(SILENT)
}

/// When flows are brought over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// Before these programs are attached.
    Before,
    /// When all are: what began by the other ones meanwhile. An endpoint that is not known by now is gone.
    After,
}

impl BpfDriver {
    /// Brings over the flows of another generation that are not known here. Returns how many records that was; none of
    /// one whose flows are laid out differently, or can't be read: they are lost, which the log says.
    pub(super) fn carry(&mut self, from: &Path, moment: Moment) -> Result<usize, BpfError> {
        let maps = from.join("maps");
        if !maps.join("FLOWS").exists() || !maps.join("REPLIES").exists() {
            return Ok(0);
        }
        let from = from.display();
        if !is_alike(maps.parent().unwrap_or(&maps)) {
            if moment == Moment::Before {
                tracing::warn!(%from, "flows of these programs are laid out differently: they are not carried over");
            }
            return Ok(0);
        }
        let opened =
            Table::open(&maps, "FLOWS").and_then(|flows| Ok((flows, Table::open(&maps, "REPLIES")?)));
        let (flows, replies): (Table<FlowKey, FlowVal>, Table<FlowKey, ReplyVal>) = match opened {
            Ok(tables) => tables,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(%from, error, "flows of these programs can't be read: they are not carried over");
                return Ok(0);
            }
        };
        let endpoints: BTreeSet<u64> = self.endpoints.dump()?.into_keys().collect();
        // Replies that are steered are of no endpoint.
        let goes_on = |endpoint: u64| {
            moment == Moment::Before
                || [0, BALANCED, ALIASED].contains(&endpoint)
                || endpoints.contains(&endpoint)
        };
        let own = self.dirs.maps.clone();
        // Answers first: a flow that is known is led on at once.
        let answers = bring(&mut self.replies, &own, &replies, &maps, |reply| goes_on(reply.endpoint))?;
        let requests = bring(&mut self.flows, &own, &flows, &maps, |flow| goes_on(flow.endpoint))?;
        if answers + requests > 0 {
            tracing::info!(%from, ?moment, requests, answers, "carried flows over");
        }
        Ok(answers + requests)
    }
}

/// Writes what one table has and the other has not.
fn bring<V: Layout + PartialEq>(
    to: &mut Table<FlowKey, V>,
    to_maps: &Path,
    from: &Table<FlowKey, V>,
    from_maps: &Path,
    wanted: impl Fn(&V) -> bool,
) -> Result<usize, BpfError> {
    let known: BTreeSet<FlowKey> = to.scan(to_maps)?.into_iter().map(|(key, _)| key).collect();
    let mut entries = from.scan(from_maps)?;
    entries.retain(|(key, value)| !known.contains(key) && wanted(value));
    to.write_all(&entries)?;
    Ok(entries.len())
}
