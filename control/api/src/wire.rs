//! Wire to types and back. `TryFrom<pb::X>` is the only door for what comes from outside; it names the field and
//! what is wrong with it. `From<&types::X>` cannot fail.

mod assignment;
mod base;
mod spec;

pub use base::{attachment, attachment_to, field, required, weight, word};

/// A message that is not a valid value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field '{field}': {reason}")]
pub struct WireError {
    /// Path of the field, as `task.process.command`.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl WireError {
    /// An error at a field.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }

    /// The same error seen from one level further out.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }
}

#[cfg(test)]
mod tests;
