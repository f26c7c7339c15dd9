//! Attributes: numbers of the kernel's header (`uapi/linux/ip_vs.h`), writing and reading.

use std::collections::BTreeMap;

use netlink_packet_core::{NLA_F_NESTED, NLA_TYPE_MASK, NlasIterator};

use super::WireError;

/// `IPVS_CMD_ATTR_*`
pub(super) mod command {
    pub(crate) const SERVICE: u16 = 1;
    pub(crate) const DESTINATION: u16 = 2;
    pub(crate) const TIMEOUT_TCP: u16 = 4;
    pub(crate) const TIMEOUT_TCP_FIN: u16 = 5;
    pub(crate) const TIMEOUT_UDP: u16 = 6;
}

/// `IPVS_SVC_ATTR_*`
pub(super) mod service {
    pub(crate) const FAMILY: u16 = 1;
    pub(crate) const PROTOCOL: u16 = 2;
    pub(crate) const ADDRESS: u16 = 3;
    pub(crate) const PORT: u16 = 4;
    pub(crate) const MARK: u16 = 5;
    pub(crate) const SCHEDULER: u16 = 6;
    pub(crate) const FLAGS: u16 = 7;
    pub(crate) const TIMEOUT: u16 = 8;
    pub(crate) const NETMASK: u16 = 9;
    pub(crate) const STATS64: u16 = 12;
}

/// `IPVS_DEST_ATTR_*`
pub(super) mod destination {
    pub(crate) const ADDRESS: u16 = 1;
    pub(crate) const PORT: u16 = 2;
    pub(crate) const FORWARDING: u16 = 3;
    pub(crate) const WEIGHT: u16 = 4;
    pub(crate) const UPPER: u16 = 5;
    pub(crate) const LOWER: u16 = 6;
    pub(crate) const ACTIVE: u16 = 7;
    pub(crate) const INACTIVE: u16 = 8;
    pub(crate) const PERSISTENT: u16 = 9;
    pub(crate) const FAMILY: u16 = 11;
    pub(crate) const STATS64: u16 = 12;
}

/// `IPVS_INFO_ATTR_*`
pub(super) mod info {
    pub(crate) const VERSION: u16 = 1;
    pub(crate) const TABLE_SIZE: u16 = 2;
}

/// `CTRL_ATTR_*` of generic netlink's own family
pub(super) mod control {
    pub(crate) const FAMILY_ID: u16 = 1;
    pub(crate) const FAMILY_NAME: u16 = 2;
}

/// Attributes that are being written.
#[derive(Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) {
        // Nothing written here comes near 64 KiB: the longest value is a nest of some hundred bytes.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn u16(&mut self, kind: u16, value: u16) {
        self.put(kind, &value.to_ne_bytes());
    }

    pub(super) fn u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// In network byte order, which ports are.
    pub(super) fn port(&mut self, kind: u16, value: u16) {
        self.put(kind, &value.to_be_bytes());
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.put(kind, &[value.as_bytes(), &[0]].concat());
    }

    pub(super) fn nest(&mut self, kind: u16, inner: &Self) {
        self.put(kind | NLA_F_NESTED, &inner.0);
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Attributes that were read, by kind.
pub(super) struct Reader<'a> {
    /// What they describe, for errors.
    of: &'static str,
    values: BTreeMap<u16, &'a [u8]>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(of: &'static str, bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut values = BTreeMap::new();
        let mut position = 0;
        for attribute in NlasIterator::new(bytes) {
            let attribute = attribute.map_err(|source| WireError::Attribute { of, source })?;
            // The iterator hands out buffers that live shorter than the bytes they show.
            let end = position + usize::from(attribute.length());
            values.insert(attribute.kind() & NLA_TYPE_MASK, &bytes[position + 4..end]);
            position = end.next_multiple_of(4);
        }
        Ok(Self { of, values })
    }

    pub(super) fn bytes(&self, kind: u16) -> Option<&'a [u8]> {
        self.values.get(&kind).copied()
    }

    pub(super) fn need(&self, kind: u16) -> Result<&'a [u8], WireError> {
        self.bytes(kind).ok_or(WireError::Missing { of: self.of, kind })
    }

    pub(super) fn array<const N: usize>(&self, kind: u16) -> Result<[u8; N], WireError> {
        let bytes = self.need(kind)?;
        bytes.try_into().map_err(|_| WireError::Length { of: self.of, kind, length: bytes.len() })
    }

    pub(super) fn u16(&self, kind: u16) -> Result<u16, WireError> {
        self.array(kind).map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&self, kind: u16) -> Result<u32, WireError> {
        self.array(kind).map(u32::from_ne_bytes)
    }

    pub(super) fn u64(&self, kind: u16) -> Result<u64, WireError> {
        self.array(kind).map(u64::from_ne_bytes)
    }

    pub(super) fn port(&self, kind: u16) -> Result<u16, WireError> {
        self.array(kind).map(u16::from_be_bytes)
    }

    /// Text up to its NUL.
    pub(super) fn text(&self, kind: u16) -> Result<&'a str, WireError> {
        let bytes = self.need(kind)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        std::str::from_utf8(&bytes[..end]).map_err(|_| WireError::Value { of: self.of, kind })
    }

    pub(super) fn nest(&self, of: &'static str, kind: u16) -> Result<Self, WireError> {
        Self::new(of, self.need(kind)?)
    }

    pub(super) fn wrong(&self, kind: u16) -> WireError {
        WireError::Value { of: self.of, kind }
    }
}
