//! Networks and join tokens.

use serde_json::{Value, json};
use shoal_api::pb;

use super::Lookup;
use super::words::{labels, labels_text, node_role};
use crate::output::listing::{Column, Row};
use crate::output::time::{age, rfc3339, until};

/// Columns of `network ls`.
pub(crate) const NETWORK_COLUMNS: &[Column] = &[
    ("ID", "ID"),
    ("NAME", "Name"),
    ("SUBNET", "Subnet"),
    ("SUBNET6", "Subnet6"),
    ("VNI", "VNI"),
    ("ADDRESSES", "Addresses"),
    ("SERVICES", "Services"),
];

/// Columns of `swarm token ls`.
pub(crate) const TOKEN_COLUMNS: &[Column] =
    &[("ID", "ID"), ("ROLE", "Role"), ("EXPIRES", "Expires"), ("USES LEFT", "UsesLeft"), ("AGE", "Age")];

/// A line of `network ls`.
pub(crate) fn network_row(network: &pb::NetworkInfo, lookup: &Lookup) -> Row {
    let spec = network.spec.clone().unwrap_or_default();
    let fields = json!({
        "ID": lookup.id(&network.id),
        "Name": spec.name,
        "Driver": "overlay",
        "Scope": "swarm",
        "Internal": spec.internal,
        "Ingress": network.ingress,
        "Subnet": network.subnet4,
        "Subnet6": network.subnet6,
        "IPv6": !network.subnet6.is_empty(),
        "VNI": network.vni,
        "Addresses": format!("{}/{}", network.addresses_used, network.addresses_total),
        "Services": network.services.len(),
        "Labels": labels_text(&spec.labels),
        "CreatedAt": rfc3339(network.created_at_ms),
    });
    Row { id: lookup.id(&network.id), fields, item: network_item(network) }
}

fn network_item(network: &pb::NetworkInfo) -> Value {
    let spec = network.spec.clone().unwrap_or_default();
    json!({
        "id": network.id,
        "name": spec.name,
        "vni": network.vni,
        "subnet4": network.subnet4,
        "subnet6": network.subnet6,
        "internal": spec.internal,
        "ingress": network.ingress,
        "addressesUsed": network.addresses_used,
        "addressesTotal": network.addresses_total,
        "services": network.services,
        "labels": labels(&spec.labels),
        "createdAt": rfc3339(network.created_at_ms),
    })
}

/// What `network inspect` prints, with docker's names.
pub(crate) fn network_object(network: &pb::NetworkInfo) -> Row {
    let spec = network.spec.clone().unwrap_or_default();
    let subnets = [&network.subnet4, &network.subnet6].into_iter().filter(|subnet| !subnet.is_empty());
    let fields = json!({
        "Id": network.id,
        "ID": network.id,
        "Name": spec.name,
        "Created": rfc3339(network.created_at_ms),
        "Scope": "swarm",
        "Driver": "overlay",
        "EnableIPv6": !network.subnet6.is_empty(),
        "IPAM": { "Config": subnets.map(|subnet| json!({ "Subnet": subnet })).collect::<Value>() },
        "Internal": spec.internal,
        "Ingress": network.ingress,
        "VNI": network.vni,
        "AddressesUsed": network.addresses_used,
        "AddressesTotal": network.addresses_total,
        "Services": network.services,
        "Labels": labels(&spec.labels),
    });
    Row { id: network.id.clone(), fields, item: network_item(network) }
}

/// A line of `swarm token ls`.
pub(crate) fn token_row(token: &pb::TokenInfo, lookup: &Lookup) -> Row {
    let role = node_role(token.role());
    let fields = json!({
        "ID": token.id,
        "Role": role,
        "Expires": until(token.expires_at_ms, lookup.now_ms),
        "ExpiresAt": rfc3339(token.expires_at_ms),
        "UsesLeft": token.uses_left.map_or_else(|| "no limit".to_owned(), |n| n.to_string()),
        "Age": age(token.created_at_ms, lookup.now_ms),
        "CreatedAt": rfc3339(token.created_at_ms),
    });
    Row { id: token.id.clone(), fields, item: token_item(token) }
}

fn token_item(token: &pb::TokenInfo) -> Value {
    json!({
        "id": token.id,
        "role": node_role(token.role()),
        "expiresAt": rfc3339(token.expires_at_ms),
        "usesLeft": token.uses_left,
        "createdAt": rfc3339(token.created_at_ms),
    })
}
