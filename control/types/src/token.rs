//! The join token: `SHOAL-1-<CA digest>-<token id>-<secret>`.
//!
//! The digest pins the cluster's CA, so that a joiner knows whom it talks to before it says the secret; the id lets
//! the managers meter, expire and revoke one token. Digest and secret are base32 (RFC 4648 section 6) in lower case
//! without padding. There is no hashing here: both sides compute the digest with their own crypto library over the
//! DER of the CA certificate's SubjectPublicKeyInfo.

use std::fmt;
use std::str::FromStr;

use crate::id::{NameError, TokenId};

const PREFIX: &str = "SHOAL";
const VERSION: &str = "1";
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Length of the CA digest (SHA-256), bytes.
pub const DIGEST_LEN: usize = 32;
/// Length of the secret, bytes.
pub const SECRET_LEN: usize = 16;

/// A parsed join token. `Debug` hides the secret; [`Token::reveal`] is the only way to print it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the DER of the CA certificate's SubjectPublicKeyInfo.
    pub ca_digest: [u8; DIGEST_LEN],
    /// Public part.
    pub id: TokenId,
    /// What is proved to the managers; never logged.
    pub secret: [u8; SECRET_LEN],
}

/// Why a text is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Does not start like a token.
    #[error(
        "a join token starts with 'SHOAL-1-'; copy the whole token that 'shoal swarm token create' printed"
    )]
    NotAToken,
    /// A format of another release.
    #[error(
        "this is a join token of format {found}, this release knows format 1; use the release of the managers"
    )]
    Version {
        /// The version in the text.
        found: String,
    },
    /// Cut off, or with something in between.
    #[error("a join token has 5 parts joined by '-', this one has {found}; was it cut off while copying?")]
    Parts {
        /// How many there are.
        found: usize,
    },
    /// A part of the wrong length.
    #[error(
        "the {part} of the join token has {found} characters, it must have {wanted}; was it cut off while copying?"
    )]
    Length {
        /// Which part.
        part: &'static str,
        /// Characters found.
        found: usize,
        /// Characters wanted.
        wanted: usize,
    },
    /// A part with a character outside the alphabet, or with stray bits at the end.
    #[error("the {part} of the join token has a character that no token has; it was changed while copying")]
    Character {
        /// Which part.
        part: &'static str,
    },
    /// The id part.
    #[error("the id of the join token is not valid")]
    Id(#[source] NameError),
}

impl Token {
    /// The token as text, secret included: print it once, to the operator who asked for it.
    pub fn reveal(&self) -> String {
        let digest = base32(&self.ca_digest);
        let secret = base32(&self.secret);
        format!("{PREFIX}-{VERSION}-{digest}-{}-{secret}", self.id)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("ca_digest", &base32(&self.ca_digest))
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let parts: Vec<&str> = text.trim().split('-').collect();
        match parts.as_slice() {
            [PREFIX, VERSION, digest, id, secret] => Ok(Self {
                ca_digest: parse_base32("CA digest", digest)?,
                id: id.parse().map_err(TokenError::Id)?,
                secret: parse_base32("secret", secret)?,
            }),
            [PREFIX, VERSION, ..] => Err(TokenError::Parts { found: parts.len() }),
            [PREFIX, found, _, ..] if found.chars().all(|c| c.is_ascii_digit()) && !found.is_empty() => {
                Err(TokenError::Version { found: (*found).to_owned() })
            }
            _ => Err(TokenError::NotAToken),
        }
    }
}

/// The digest of a CA as it stands in a token.
pub fn digest_text(ca_digest: &[u8; DIGEST_LEN]) -> String {
    base32(ca_digest)
}

fn base32(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut buffer, mut bits) = (0_u32, 0_u32);
    let mut push = |index: u32| {
        // Five bits are always below 32.
        out.push(char::from(
            usize::try_from(index & 31).ok().and_then(|i| ALPHABET.get(i).copied()).unwrap_or(b'a'),
        ));
    };
    for byte in bytes {
        buffer = (buffer << 8) | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            push(buffer >> bits);
            buffer &= (1 << bits) - 1;
        }
    }
    if bits > 0 {
        push(buffer << (5 - bits));
    }
    out
}

fn parse_base32<const N: usize>(part: &'static str, text: &str) -> Result<[u8; N], TokenError> {
    let wanted = (N * 8).div_ceil(5);
    let found = text.chars().count();
    if found != wanted {
        return Err(TokenError::Length { part, found, wanted });
    }
    let mut out = Vec::with_capacity(N);
    let (mut buffer, mut bits) = (0_u32, 0_u32);
    for c in text.bytes() {
        let value = match c {
            b'a'..=b'z' => u32::from(c - b'a'),
            b'2'..=b'7' => u32::from(c - b'2') + 26,
            _ => return Err(TokenError::Character { part }),
        };
        buffer = (buffer << 5) | value;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            out.push(u8::try_from(buffer >> bits).map_err(|_| TokenError::Character { part })?);
            buffer &= (1 << bits) - 1;
        }
    }
    // Two texts must not mean the same token: unused bits are zero.
    if buffer != 0 {
        return Err(TokenError::Character { part });
    }
    out.try_into().map_err(|_| TokenError::Character { part })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Token {
        Token { ca_digest: [7; DIGEST_LEN], id: TokenId::from_entropy(42), secret: [0xa5; SECRET_LEN] }
    }

    #[test]
    fn base32_agrees_with_the_vectors_of_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "my"),
            ("fo", "mzxq"),
            ("foo", "mzxw6"),
            ("foob", "mzxw6yq"),
            ("fooba", "mzxw6ytb"),
        ] {
            assert_eq!(base32(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn each_kind_of_damage_has_its_own_message() {
        let text = sample().reveal();
        assert_eq!("".parse::<Token>(), Err(TokenError::NotAToken));
        assert_eq!("hunter2".parse::<Token>(), Err(TokenError::NotAToken));
        assert_eq!("SWMTKN-1-a-b-c".parse::<Token>(), Err(TokenError::NotAToken));
        assert_eq!(
            text.replacen("-1-", "-2-", 1).parse::<Token>(),
            Err(TokenError::Version { found: "2".into() })
        );
        let (cut, _) = text.rsplit_once('-').expect("five parts");
        assert_eq!(cut.parse::<Token>(), Err(TokenError::Parts { found: 4 }));
        let (short, _) = text.split_at(text.len() - 1);
        assert!(matches!(
            short.parse::<Token>(),
            Err(TokenError::Length { part: "secret", found: 25, wanted: 26 })
        ));
        assert!(matches!(
            text.to_uppercase().parse::<Token>(),
            Err(TokenError::Character { part: "CA digest" })
        ));
        assert_eq!(format!(" {text}\n").parse::<Token>(), Ok(sample()));
    }

    #[test]
    fn debug_does_not_show_the_secret() {
        let shown = format!("{:?}", sample());
        assert!(!shown.contains(&base32(&sample().secret)), "{shown}");
        assert!(!shown.contains("165"), "{shown}");
    }

    proptest! {
        #[test]
        fn every_token_round_trips(ca_digest: [u8; DIGEST_LEN], id: u128, secret: [u8; SECRET_LEN]) {
            let token = Token { ca_digest, id: TokenId::from_entropy(id), secret };
            prop_assert_eq!(token.reveal().parse::<Token>(), Ok(token));
        }

        #[test]
        fn no_text_panics_and_what_parses_is_canonical(text in "(SHOAL-1-)?[a-z2-7-]{0,120}") {
            if let Ok(token) = text.parse::<Token>() {
                prop_assert_eq!(token.reveal(), text);
            }
        }
    }
}
