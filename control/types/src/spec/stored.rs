//! How a service's spec stands in logs and snapshots. Their format does not name fields, so none can be added; but an
//! enum may get a variant. What came later than the first version therefore travels in the mode, and a spec that does
//! not use it is written as ever.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{AttachmentSpec, PortSpec, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig};
use crate::id::Name;
use crate::lb::LbPolicy;

#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    name: Cow<'a, Name>,
    mode: Mode,
    task: Cow<'a, TaskSpec>,
    networks: Cow<'a, [AttachmentSpec]>,
    ports: Cow<'a, [PortSpec]>,
    update: UpdateConfig,
    drain_ms: u64,
    labels: Cow<'a, BTreeMap<String, String>>,
}

/// The first two are those of [`ServiceMode`], in its order.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum Mode {
    Replicated { replicas: u32 },
    Global,
    Balanced { mode: ServiceMode, lb: LbPolicy },
}

impl Mode {
    fn of(spec: &ServiceSpec) -> Self {
        match (spec.lb, spec.mode) {
            (LbPolicy::Auto, ServiceMode::Replicated { replicas }) => Self::Replicated { replicas },
            (LbPolicy::Auto, ServiceMode::Global) => Self::Global,
            (lb, mode) => Self::Balanced { mode, lb },
        }
    }

    const fn parts(self) -> (ServiceMode, LbPolicy) {
        match self {
            Self::Replicated { replicas } => (ServiceMode::Replicated { replicas }, LbPolicy::Auto),
            Self::Global => (ServiceMode::Global, LbPolicy::Auto),
            Self::Balanced { mode, lb } => (mode, lb),
        }
    }
}

impl Serialize for ServiceSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let stored = Stored {
            name: Cow::Borrowed(&self.name),
            mode: Mode::of(self),
            task: Cow::Borrowed(&self.task),
            networks: Cow::Borrowed(&self.networks),
            ports: Cow::Borrowed(&self.ports),
            update: self.update,
            drain_ms: self.drain_ms,
            labels: Cow::Borrowed(&self.labels),
        };
        stored.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ServiceSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let stored = Stored::deserialize(deserializer)?;
        let (mode, lb) = stored.mode.parts();
        Ok(Self {
            name: stored.name.into_owned(),
            mode,
            task: stored.task.into_owned(),
            networks: stored.networks.into_owned(),
            ports: stored.ports.into_owned(),
            update: stored.update,
            drain_ms: stored.drain_ms,
            lb,
            labels: stored.labels.into_owned(),
        })
    }
}
