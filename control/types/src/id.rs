//! Object ids and names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not an id or a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("a name cannot be empty")]
    Empty,
    /// Longer than the limit.
    #[error("'{text}' has {len} characters, at most {max} are allowed")]
    TooLong {
        /// What was given.
        text: String,
        /// Its length in characters.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A character that the grammar does not have.
    #[error("'{text}' has the character {found:?}; allowed are {allowed}")]
    BadCharacter {
        /// What was given.
        text: String,
        /// The first offending character.
        found: char,
        /// The grammar in words.
        allowed: &'static str,
    },
    /// A hyphen or digit rule at the ends.
    #[error("'{0}' must start and end with a letter or a digit")]
    BadEdge(String),
}

/// Length of an id made from 128 bits in base 36.
pub const ID_LEN: usize = 25;

fn check_id(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > ID_LEN {
        return Err(NameError::TooLong { text: text.into(), len: text.len(), max: ID_LEN });
    }
    match text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9')) {
        Some(found) => Err(NameError::BadCharacter {
            text: text.into(),
            found,
            allowed: "lower-case letters and digits",
        }),
        None => Ok(()),
    }
}

/// The text of an id, in place: there are hundreds of thousands of ids, most of them several times.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Text {
    /// The characters, then zeroes: so that they are ordered as the texts are.
    bytes: [u8; ID_LEN],
    len: u8,
}

impl Text {
    fn new(text: &str) -> Result<Self, NameError> {
        check_id(text)?;
        let mut bytes = [0; ID_LEN];
        // An id is that long at most.
        for (place, byte) in bytes.iter_mut().zip(text.bytes()) {
            *place = byte;
        }
        Ok(Self { bytes, len: u8::try_from(text.len()).unwrap_or(0) })
    }

    fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.len.into()).unwrap_or_default();
        // Made of ASCII only.
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

/// 128 bits as 25 base-36 digits, most significant first.
fn base36(mut value: u128) -> Text {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut bytes = [b'0'; ID_LEN];
    for slot in bytes.iter_mut().rev() {
        // The remainder of a division by 36 is below 36.
        *slot = usize::try_from(value % 36).ok().and_then(|i| DIGITS.get(i).copied()).unwrap_or(b'0');
        value /= 36;
    }
    Text { bytes, len: u8::try_from(ID_LEN).unwrap_or(0) }
}

macro_rules! define_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Text);

        impl $name {
            /// An id from 128 bits of entropy; the caller is the one who may draw randomness.
            pub fn from_entropy(bits: u128) -> Self {
                Self(base36(bits))
            }

            /// The id as text: lower-case letters and digits, at most 25.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            /// The first eight characters, as used in link names (IFNAMSIZ leaves room for no more).
            pub fn short(&self) -> &str {
                self.as_str().get(..8).unwrap_or(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Text::new(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Text::new(&text).map(Self)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.as_str())
            }
        }
    };
}

define_id!(
    /// A swarm; goes into every certificate as organisation.
    ClusterId
);
define_id!(
    /// A host that joined.
    NodeId
);
define_id!(
    /// A declared service.
    ServiceId
);
define_id!(
    /// One run of one slot of a service; never reused, never restarted.
    TaskId
);
define_id!(
    /// An overlay network.
    NetworkId
);
define_id!(
    /// A join token (the public part).
    TokenId
);

/// A DNS label (RFC 1123): 1 to 63 of `a-z 0-9 -`, no hyphen at either end, lower case. Names of services,
/// networks and nodes, because each of them is looked up in DNS.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The label.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Makes a valid name out of any text (a hostname with dots or upper case), or `None` if nothing is left.
    pub fn from_lossy(text: &str) -> Option<Self> {
        let cleaned: String = text
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .take(63)
            .collect();
        cleaned.trim_matches('-').parse().ok()
    }
}

impl FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > 63 {
            return Err(NameError::TooLong { text: text.into(), len: text.chars().count(), max: 63 });
        }
        if let Some(found) = text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
            return Err(NameError::BadCharacter {
                text: text.into(),
                found,
                allowed: "a-z, 0-9 and '-' (it becomes a DNS label)",
            });
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(NameError::BadEdge(text.into()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_from_entropy_is_valid_and_has_a_fixed_length() {
        for bits in [0, 1, 35, 36, u128::MAX] {
            let id = NodeId::from_entropy(bits);
            assert_eq!(id.as_str().len(), ID_LEN);
            assert_eq!(id.as_str().parse::<NodeId>().as_ref(), Ok(&id));
        }
    }

    #[test]
    fn ids_refuse_what_could_end_up_in_a_path() {
        for bad in ["", "A", "a/b", "..", "a-b", "abcdefghijklmnopqrstuvwxyz"] {
            assert!(bad.parse::<TaskId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "web", "web-1", "0x"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "Web", "a.b", "a_b", &"x".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
        assert_eq!(Name::from_lossy("Host.Example").map(String::from), Some("host-example".into()));
        assert_eq!(Name::from_lossy("..."), None);
    }
}
