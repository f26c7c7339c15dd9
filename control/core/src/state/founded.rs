//! The cluster as snapshots hold it. Their format does not name fields, so none can be added to what the first version
//! wrote: nothing (0) or a cluster (1). How a cluster balances came later and makes it a third kind.

use serde::ser::SerializeTupleVariant as _;
use serde::{Deserialize, Deserializer, Serializer};
use shoal_types::object::{Balancing, Cluster};

#[derive(Deserialize)]
enum Read {
    Absent,
    Plain(Box<Cluster>),
    Balanced(Box<Cluster>, Balancing),
}

#[expect(clippy::ref_option, reason = "the derived writer hands over a reference to the field")]
pub(super) fn serialize<S: Serializer>(cluster: &Option<Cluster>, serializer: S) -> Result<S::Ok, S::Error> {
    match cluster {
        Some(cluster) if cluster.balancing != Balancing::default() => {
            let mut written = serializer.serialize_tuple_variant("Cluster", 2, "Balanced", 2)?;
            written.serialize_field(cluster)?;
            written.serialize_field(&cluster.balancing)?;
            written.end()
        }
        Some(cluster) => serializer.serialize_some(cluster),
        None => serializer.serialize_none(),
    }
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cluster>, D::Error> {
    Ok(match Read::deserialize(deserializer)? {
        Read::Absent => None,
        Read::Plain(cluster) => Some(*cluster),
        Read::Balanced(cluster, balancing) => Some(Cluster { balancing, ..*cluster }),
    })
}
