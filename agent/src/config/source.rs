//! Where settings come from, and which of them counts.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::keys::{KEYS, KeyInfo};

/// Where a setting came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// A file.
    File(PathBuf),
    /// The environment.
    Env(&'static str),
    /// The command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Env(name) => write!(f, "environment {name}"),
            Self::Flag => f.write_str("command line"),
        }
    }
}

/// A setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// As text.
    pub text: String,
    /// Where it came from.
    pub origin: Origin,
}

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not TOML.
    #[error("{} is not valid TOML", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A key that there isn't.
    #[error("{}: there is no key '{key}'; did you mean '{nearest}'?", path.display())]
    UnknownKey {
        /// In which file.
        path: PathBuf,
        /// What it says.
        key: String,
        /// The key that looks most like it.
        nearest: &'static str,
    },
    /// A value of the wrong kind.
    #[error("{}: '{key}' must be a text or a number", path.display())]
    Kind {
        /// In which file.
        path: PathBuf,
        /// Which key.
        key: String,
    },
    /// A value that does not do.
    #[error("{key} = '{value}' (from {origin}): {help}")]
    Invalid {
        /// Which key.
        key: String,
        /// Its value.
        value: String,
        /// Where that came from.
        origin: Origin,
        /// What to do.
        help: String,
    },
}

/// All settings, each with its origin.
#[derive(Debug, Clone)]
pub struct Settings {
    values: BTreeMap<&'static str, Value>,
}

impl Default for Settings {
    fn default() -> Self {
        let value = |info: &KeyInfo| Value { text: info.default.to_owned(), origin: Origin::Default };
        Self { values: KEYS.iter().map(|info| (info.key, value(info))).collect() }
    }
}

impl Settings {
    /// Reads a file that must be there, and the drop-ins in `conf.d` beside it.
    pub fn read_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        self.take_text(path, &text)?;
        self.read_drop_ins(path)
    }

    /// Reads a file if it is there, and the drop-ins beside it.
    pub fn read_file_if_any(&mut self, path: &Path) -> Result<(), ConfigError> {
        if path.exists() { self.read_file(path) } else { self.read_drop_ins(path) }
    }

    fn read_drop_ins(&mut self, main: &Path) -> Result<(), ConfigError> {
        let Some(dir) = main.parent().map(|parent| parent.join("conf.d")) else { return Ok(()) };
        let Ok(entries) = fs::read_dir(&dir) else { return Ok(()) };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
        paths.sort();
        for path in paths {
            let text = fs::read_to_string(&path)
                .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
            self.take_text(&path, &text)?;
        }
        Ok(())
    }

    /// Takes over the content of a file.
    pub fn take_text(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let table: toml::Table = text
            .parse()
            .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source: Box::new(source) })?;
        for (section, content) in table {
            match content {
                toml::Value::Table(keys) => {
                    for (key, value) in keys {
                        self.take_value(path, &format!("{section}.{key}"), &value)?;
                    }
                }
                value => self.take_value(path, &section, &value)?,
            }
        }
        Ok(())
    }

    fn take_value(&mut self, path: &Path, key: &str, value: &toml::Value) -> Result<(), ConfigError> {
        let Some(info) = KEYS.iter().find(|info| info.in_file() && info.key == key) else {
            return Err(ConfigError::UnknownKey {
                path: path.to_owned(),
                key: key.to_owned(),
                nearest: nearest(key),
            });
        };
        let text = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(truth) => truth.to_string(),
            _ => return Err(ConfigError::Kind { path: path.to_owned(), key: key.to_owned() }),
        };
        self.values.insert(info.key, Value { text, origin: Origin::File(path.to_owned()) });
        Ok(())
    }

    /// Takes over the environment.
    pub fn take_env(&mut self, read: impl Fn(&str) -> Option<String>) {
        for info in KEYS {
            if let Some(text) = read(info.env) {
                self.values.insert(info.key, Value { text, origin: Origin::Env(info.env) });
            }
        }
    }

    /// Takes over a flag.
    pub fn take_flag(&mut self, key: &'static str, value: Option<String>) {
        if let Some(text) = value {
            self.values.insert(key, Value { text, origin: Origin::Flag });
        }
    }

    /// A setting. Every key in [`KEYS`] has one.
    pub fn get(&self, key: &str) -> &Value {
        static NONE: Value = Value { text: String::new(), origin: Origin::Default };
        self.values.get(key).unwrap_or(&NONE)
    }

    /// Says that a setting does not do.
    pub fn refuse(&self, key: &str, help: &str) -> ConfigError {
        let value = self.get(key);
        ConfigError::Invalid {
            key: key.to_owned(),
            value: value.text.clone(),
            origin: value.origin.clone(),
            help: help.to_owned(),
        }
    }

    /// All settings, in the order of [`KEYS`].
    pub fn iter(&self) -> impl Iterator<Item = (&'static KeyInfo, &Value)> {
        KEYS.iter().map(|info| (info, self.get(info.key)))
    }
}

/// The key that looks most like a text.
fn nearest(text: &str) -> &'static str {
    let in_file = KEYS.iter().filter(|info| info.in_file());
    in_file.min_by_key(|info| distance(text, info.key)).map_or("node.name", |info| info.key)
}

/// Edits that lead from one text to the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(&b) {
            let best = (diagonal + usize::from(from != *to)).min(left + 1).min(*cell + 1);
            diagonal = *cell;
            *cell = best;
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}
