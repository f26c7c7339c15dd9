//! The difference between desired and observed, as operations in order.

use std::collections::BTreeMap;

use shoal_types::TaskId;

use crate::name::IfName;
use crate::object::{Goal, Key, Object, Objects};
use crate::phase::Phase;

/// One step. Its objects are those of what was compared, not copies: there may be half a million.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op<'a> {
    /// Make the object, or make it so.
    Ensure {
        /// What is wanted.
        object: &'a Object,
        /// What is there under its key, when it differs.
        found: Option<&'a Object>,
    },
    /// Take away what nobody wants.
    Remove {
        /// What is there.
        object: &'a Object,
        /// The task it belongs to alone: not to be done while that task still runs.
        task: Option<TaskId>,
    },
}

impl<'a> Op<'a> {
    /// The object it is about.
    pub fn object(&self) -> &'a Object {
        match self {
            Self::Ensure { object, .. } | Self::Remove { object, .. } => object,
        }
    }

    /// The key of that object.
    pub fn key(&self) -> Key {
        self.object().key()
    }

    /// The phase it belongs to.
    pub fn phase(&self) -> Phase {
        match self {
            Self::Ensure { object, .. } => Phase::of_ensure(object),
            Self::Remove { object, task } => Phase::of_remove(&object.key(), task.is_some()),
        }
    }
}

/// Operations by phase; phases without any are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan<'a> {
    /// In the order in which they are done.
    pub phases: Vec<(Phase, Vec<Op<'a>>)>,
}

impl<'a> Plan<'a> {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.phases.is_empty()
    }

    /// Those of a phase, in order.
    pub fn of(&self, phase: Phase) -> &[Op<'a>] {
        self.phases.iter().find(|(of, _)| *of == phase).map_or(&[], |(_, ops)| ops)
    }

    /// All operations, in order.
    pub fn ops(&self) -> impl Iterator<Item = &Op<'a>> {
        self.phases.iter().flat_map(|(_, ops)| ops)
    }
}

/// The way from `observed` to `desired`.
///
/// `observed` must hold only what the node owns: whatever is in it and not desired is removed.
pub fn plan<'a>(desired: &'a Objects, observed: &'a Objects) -> Plan<'a> {
    let mut owners = veth_owners(observed);
    // What hangs on a leg that stays and is not wanted is nobody's: left over from a device that is gone.
    owners.retain(|host, _| !desired.contains_key(&Key::Leg(host.clone())));
    let mut phases: BTreeMap<Phase, Vec<Op<'a>>> = BTreeMap::new();
    let mut unwanted: Vec<&Object> = Vec::new();
    // Both are in order, so one walk through both finds what belongs together.
    let mut found = observed.iter().peekable();
    for (key, object) in desired {
        while let Some((_, other)) = found.next_if(|(other, _)| *other < key) {
            unwanted.push(other);
        }
        let found = found.next_if(|(other, _)| *other == key).map(|(_, found)| found);
        if is_due(object, found) {
            let op = Op::Ensure { object, found };
            phases.entry(op.phase()).or_default().push(op);
        }
    }
    unwanted.extend(found.map(|(_, other)| other));
    for object in unwanted.into_iter().rev() {
        // A kernel parameter has no owner: it stays as it is.
        if !matches!(object, Object::Sysctl(_)) {
            let op = Op::Remove { object, task: owner(object, &owners) };
            phases.entry(op.phase()).or_default().push(op);
        }
    }
    Plan { phases: phases.into_iter().collect() }
}

fn is_due(object: &Object, found: Option<&Object>) -> bool {
    match found {
        Some(found) => !object.is_satisfied_by(found),
        // What should have ended and isn't there has ended.
        None => !matches!(object, Object::Task(task) if task.goal == Goal::Stop),
    }
}

/// Whose interfaces there are, by their host sides.
pub fn veth_owners(objects: &Objects) -> BTreeMap<IfName, TaskId> {
    objects
        .values()
        .filter_map(|object| match object {
            Object::Leg(leg) => Some((leg.host.clone(), leg.task.clone())),
            _ => None,
        })
        .collect()
}

/// The task that an object belongs to alone.
fn owner(object: &Object, owners: &BTreeMap<IfName, TaskId>) -> Option<TaskId> {
    match object {
        Object::Sandbox(o) => Some(o.task.clone()),
        Object::Leg(o) => Some(o.task.clone()),
        Object::Resolver(o) => Some(o.task.clone()),
        Object::TaskIf(o) => owners.get(&o.host).cloned(),
        Object::Local(o) => owners.get(&o.veth).cloned(),
        Object::Hook(link, _) => owners.get(link).cloned(),
        _ => None,
    }
}
