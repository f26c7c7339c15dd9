//! What a node holds, in slices that are looked at one after the other: of half a million objects, what is wanted and what
//! is there need not be in memory all at once.

use std::net::IpAddr;

use crate::object::{Key, Object, Objects};
use crate::phase::Phase;

/// Objects that are compared together. All but the first are of one kind, of which there may be one for each endpoint
/// of the swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slice {
    /// Everything of which there is about one for each link, node, task or service.
    Few,
    /// Forwarding entries.
    Forwarding,
    /// Neighbors by their IPv4 address.
    Neighbors4,
    /// Neighbors by their IPv6 address.
    Neighbors6,
    /// Forwarding entries as the programs know them.
    Peers,
    /// Endpoints.
    Endpoints,
}

impl Slice {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Few, Self::Forwarding, Self::Neighbors4, Self::Neighbors6, Self::Peers, Self::Endpoints];

    /// The slice that an object is in.
    pub const fn of(key: &Key) -> Self {
        match key {
            Key::Fdb(..) => Self::Forwarding,
            Key::Neighbor(_, IpAddr::V4(_)) => Self::Neighbors4,
            Key::Neighbor(_, IpAddr::V6(_)) => Self::Neighbors6,
            Key::Peer(..) => Self::Peers,
            Key::LbEndpoint(_) => Self::Endpoints,
            _ => Self::Few,
        }
    }

    /// Those whose objects are made in a phase.
    const fn made_in(phase: Phase) -> &'static [Self] {
        match phase {
            Phase::AddForwarding => &[Self::Forwarding, Self::Neighbors4, Self::Neighbors6],
            Phase::AddBalancing => &[Self::Peers, Self::Endpoints],
            _ => &[],
        }
    }
}

/// A step on the way through all slices, once the few are looked at and planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Another slice is looked at and planned. What is to be made of it is made; what is to be removed waits for its phase.
    Look(Slice),
    /// The operations of a phase: those over the few, then what waited for it.
    Phase(Phase),
}

/// The order in which a node is changed slice by slice: that of [`plan()`](crate::plan()), in which what there is much of is
/// made first in its phase and removed last. It needs links and namespaces only, which have phases of their own.
pub fn steps() -> impl Iterator<Item = Step> {
    Phase::ALL.into_iter().flat_map(|phase| {
        let looks = Slice::made_in(phase).iter().copied().map(Step::Look);
        looks.chain([Step::Phase(phase)])
    })
}

/// Objects on their way into a set.
#[derive(Debug)]
pub(crate) struct Gathered {
    only: Option<Slice>,
    objects: Vec<(Key, Object)>,
}

impl Gathered {
    /// All of them.
    pub(crate) const fn all() -> Self {
        Self { only: None, objects: Vec::new() }
    }

    /// Only those of a slice.
    pub(crate) const fn only(slice: Slice) -> Self {
        Self { only: Some(slice), objects: Vec::new() }
    }

    /// Takes an object, or leaves it.
    pub(crate) fn push(&mut self, object: Object) {
        let key = object.key();
        if self.only.is_none_or(|slice| slice == Slice::of(&key)) {
            self.objects.push((key, object));
        }
    }

    /// The same for many.
    pub(crate) fn extend(&mut self, objects: impl IntoIterator<Item = Object>) {
        for object in objects {
            self.push(object);
        }
    }

    /// All that were taken.
    pub(crate) fn objects(self) -> Objects {
        self.objects.into_iter().collect()
    }
}
