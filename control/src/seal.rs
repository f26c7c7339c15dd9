//! Sealing of everything at rest: AES-256-GCM under a data key that never leaves this manager.
//!
//! A record is `version | salt (16) | counter (8) | ciphertext | tag`. Each process start draws a salt; the key in use
//! is HMAC-SHA256(data key, salt) and the nonce is a counter, so no nonce repeats however many records are written.
//! The caller's context (which table, which key) is authenticated, so records cannot be swapped for one another.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

const VERSION: u8 = 1;
const KEY_LEN: usize = 32;
const SALT_LEN: usize = 16;
const COUNTER_LEN: usize = 8;
const HEADER_LEN: usize = 1 + SALT_LEN + COUNTER_LEN;

/// Why sealing or opening failed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key file.
    #[error("cannot {action} the data key {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The key file holds something else.
    #[error(
        "the data key {path} has {found} bytes instead of {KEY_LEN}; restore it from a backup of this manager"
    )]
    KeyLength {
        /// Which file.
        path: PathBuf,
        /// Its size.
        found: usize,
    },
    /// The kernel gave no randomness.
    #[error("the system's random number generator failed")]
    Random,
    /// Too short or of another version.
    #[error("a sealed record of '{context}' has no valid header")]
    Header {
        /// What was opened.
        context: String,
    },
    /// Changed, moved, or sealed with another key.
    #[error(
        "a sealed record of '{context}' does not open: it is damaged, or was sealed with another data key"
    )]
    Damaged {
        /// What was opened.
        context: String,
    },
}

/// Fills an array from the kernel's generator.
pub fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| SealError::Random)?;
    Ok(bytes)
}

/// 128 random bits, for ids.
pub fn entropy() -> Result<u128, SealError> {
    Ok(u128::from_be_bytes(random()?))
}

/// A manager's data key.
pub struct DataKey {
    master: hmac::Key,
    salt: [u8; SALT_LEN],
    current: LessSafeKey,
    counter: AtomicU64,
}

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKey(..)")
    }
}

impl DataKey {
    /// Reads the key, or makes it when there is none.
    pub fn load_or_create(path: &Path) -> Result<Self, SealError> {
        let mut bytes = Vec::new();
        match File::open(path) {
            Ok(mut file) => {
                file.read_to_end(&mut bytes).map_err(|source| file_error("read", path, source))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bytes = random::<KEY_LEN>()?.to_vec();
                write_private(path, &bytes).map_err(|source| file_error("write", path, source))?;
            }
            Err(source) => return Err(file_error("open", path, source)),
        }
        let found = bytes.len();
        let bytes = <[u8; KEY_LEN]>::try_from(bytes)
            .map_err(|_| SealError::KeyLength { path: path.to_owned(), found })?;
        Self::from_bytes(&bytes)
    }

    /// A key from its bytes.
    pub fn from_bytes(bytes: &[u8; KEY_LEN]) -> Result<Self, SealError> {
        let master = hmac::Key::new(hmac::HMAC_SHA256, bytes);
        let salt = random()?;
        let current = derive(&master, &salt)?;
        Ok(Self { master, salt, current, counter: AtomicU64::new(0) })
    }

    /// Seals `plain` for this context.
    pub fn seal(&self, context: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        let mut body = plain.to_vec();
        self.current
            .seal_in_place_append_tag(nonce(counter), Aad::from(context.as_bytes()), &mut body)
            .map_err(|_| SealError::Damaged { context: context.to_owned() })?;
        let mut record = Vec::with_capacity(HEADER_LEN + body.len());
        record.push(VERSION);
        record.extend_from_slice(&self.salt);
        record.extend_from_slice(&counter.to_be_bytes());
        record.append(&mut body);
        Ok(record)
    }

    /// Opens what [`Self::seal`] made for the same context.
    pub fn open(&self, context: &str, record: &[u8]) -> Result<Vec<u8>, SealError> {
        let header = || SealError::Header { context: context.to_owned() };
        let (version, rest) = record.split_first().ok_or_else(header)?;
        let (salt, rest) = rest.split_first_chunk::<SALT_LEN>().ok_or_else(header)?;
        let (counter, body) = rest.split_first_chunk::<COUNTER_LEN>().ok_or_else(header)?;
        if *version != VERSION {
            return Err(header());
        }
        let key = derive(&self.master, salt)?;
        let mut body = body.to_vec();
        let plain = key
            .open_in_place(nonce(u64::from_be_bytes(*counter)), Aad::from(context.as_bytes()), &mut body)
            .map_err(|_| SealError::Damaged { context: context.to_owned() })?;
        Ok(plain.to_vec())
    }
}

fn derive(master: &hmac::Key, salt: &[u8; SALT_LEN]) -> Result<LessSafeKey, SealError> {
    let tag = hmac::sign(master, salt);
    UnboundKey::new(&AES_256_GCM, tag.as_ref()).map(LessSafeKey::new).map_err(|_| SealError::Random)
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    let (_, low) = bytes.split_at_mut(NONCE_LEN - COUNTER_LEN);
    low.copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> SealError {
    SealError::File { action, path: path.to_owned(), source }
}

/// Writes a file that only its owner may read, all or nothing, and durable when it returns.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_record_opens_only_in_its_context_and_unchanged() {
        let key = DataKey::from_bytes(&[3; KEY_LEN]).expect("random");
        let record = key.seal("log/1", b"canary").expect("seal");
        assert!(!record.windows(6).any(|w| w == b"canary"));
        assert_eq!(key.open("log/1", &record).expect("open"), b"canary");
        assert!(matches!(key.open("log/2", &record), Err(SealError::Damaged { .. })));
        for at in 1..record.len() {
            let mut changed = record.clone();
            changed[at] ^= 1;
            assert!(key.open("log/1", &changed).is_err(), "byte {at}");
        }
        for cut in 0..record.len() {
            assert!(key.open("log/1", &record[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn another_start_of_the_same_key_opens_old_records_and_another_key_does_not() {
        let record = DataKey::from_bytes(&[3; KEY_LEN]).expect("random").seal("x", b"v").expect("seal");
        assert_eq!(
            DataKey::from_bytes(&[3; KEY_LEN]).expect("random").open("x", &record).expect("open"),
            b"v"
        );
        assert!(DataKey::from_bytes(&[4; KEY_LEN]).expect("random").open("x", &record).is_err());
    }

    #[test]
    fn the_key_file_is_private_and_kept() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("data.key");
        let record = DataKey::load_or_create(&path).expect("made").seal("x", b"v").expect("seal");
        assert_eq!(fs::metadata(&path).expect("exists").permissions().mode() & 0o777, 0o600);
        assert_eq!(DataKey::load_or_create(&path).expect("read").open("x", &record).expect("open"), b"v");
        fs::write(&path, b"short").expect("write");
        assert!(matches!(DataKey::load_or_create(&path), Err(SealError::KeyLength { found: 5, .. })));
    }
}
