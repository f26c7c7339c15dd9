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
/// It is told by a directory beside the maps, whatever their ABI version is. When `pad` became `door`, and steering entries got
/// addresses with a mark, it stayed the same on purpose: zeroes mean what they did, and an older daemon that is put back
/// keeps the connections as far as it can.
const FLOW_LAYOUT: u32 = 2;
/// The one version that had layout 1 and did not tell.
const SILENT: &str = "gen-4";

/// Values of layout 1: without what layout 2 has after them, zeroes of which mean the same.
type FlowVal1 = [u8; 32];
type ReplyVal1 = [u8; 56];

// Whoever changes these looks at the number above.
const _: () =
    assert!(size_of::<FlowKey>() == 40 && size_of::<FlowVal>() == 48 && size_of::<ReplyVal>() == 72);

/// The directory that tells the layout, in the directory of a generation.
pub(super) fn mark(generation: &Path) -> PathBuf {
    generation.join(format!("flows-{FLOW_LAYOUT}"))
}

/// The layout of the flow maps of another generation, if it is one that is known here.
fn layout_of(generation: &Path) -> Option<u32> {
    for layout in 1..=FLOW_LAYOUT {
        if generation.join(format!("flows-{layout}")).exists() {
            return Some(layout);
        }
    }
    let tells = fs::read_dir(generation).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("flows-"))
    });
    (!tells && generation.ends_with(SILENT)).then_some(1)
}

/// A value of a layout that had less, with zeroes for what was not there.
fn widen<const N: usize, V: Layout + Default>(old: [u8; N]) -> V {
    const { assert!(N <= size_of::<V>()) };
    let mut value = V::default();
    // SAFETY: the value has that many bytes and more, and every bit pattern is one.
    unsafe { (&raw mut value).cast::<[u8; N]>().write_unaligned(old) };
    value
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
        let read = match layout_of(from) {
            Some(1) => read(&maps, |flow: FlowVal1| widen(flow), |reply: ReplyVal1| widen(reply)),
            Some(_) => read(&maps, |flow: FlowVal| flow, |reply: ReplyVal| reply),
            None => {
                if moment == Moment::Before {
                    let from = from.display();
                    tracing::warn!(%from, "flows of these programs are laid out differently: they are not carried over");
                }
                return Ok(0);
            }
        };
        let from = from.display();
        let (flows, replies) = match read {
            Ok(entries) => entries,
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
        if moment == Moment::Before {
            self.carry_totals(&maps).unwrap_or_else(|error| {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(%from, error, "bytes that these programs counted can't be carried over: they count anew");
            });
        }
        // Answers first: a flow that is known is led on at once.
        let answers = bring(&mut self.replies, replies, |reply| goes_on(reply.endpoint))?;
        let requests = bring(&mut self.flows, flows, |flow| goes_on(flow.endpoint))?;
        if answers + requests > 0 {
            tracing::info!(%from, ?moment, requests, answers, "carried flows over");
        }
        Ok(answers + requests)
    }
}

type Entries<V> = Vec<(FlowKey, V)>;

/// Reads the flows of other programs, and their answers.
fn read<F, R>(
    maps: &Path,
    flow: impl Fn(F) -> FlowVal,
    reply: impl Fn(R) -> ReplyVal,
) -> Result<(Entries<FlowVal>, Entries<ReplyVal>), BpfError>
where
    F: Layout + PartialEq,
    R: Layout + PartialEq,
{
    let flows: Table<FlowKey, F> = Table::open(maps, "FLOWS")?;
    let replies: Table<FlowKey, R> = Table::open(maps, "REPLIES")?;
    let flows = flows.scan()?.into_iter().map(|(key, value)| (key, flow(value)));
    let replies = replies.scan()?.into_iter().map(|(key, value)| (key, reply(value)));
    Ok((flows.collect(), replies.collect()))
}

/// Writes what is not known yet.
fn bring<V: Layout + PartialEq>(
    to: &mut Table<FlowKey, V>,
    mut entries: Entries<V>,
    wanted: impl Fn(&V) -> bool,
) -> Result<usize, BpfError> {
    let known: BTreeSet<FlowKey> = to.scan()?.into_iter().map(|(key, _)| key).collect();
    entries.retain(|(key, value)| !known.contains(key) && wanted(value));
    to.write_all(&entries)?;
    Ok(entries.len())
}
