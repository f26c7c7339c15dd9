//! Requests applied lately, so that a retry after a lost answer is applied once and answered the same.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::command::{Command, Outcome};
use crate::rejection::Rejection;

/// How many are remembered; a client gives up long before that many others were served.
const REMEMBERED: usize = 1024;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Requests {
    /// In the order they were applied.
    order: VecDeque<String>,
    /// Kind of command and what it did, by request id.
    done: BTreeMap<String, (String, Outcome)>,
}

impl Requests {
    /// What the request did when it was applied before.
    pub(crate) fn earlier(&self, request: &str, command: &Command) -> Option<Result<Outcome, Rejection>> {
        let (kind, outcome) = self.done.get(request)?;
        Some(if kind == command.kind() {
            Ok(outcome.clone())
        } else {
            Err(Rejection::RequestReused { request: request.to_owned(), earlier: kind.clone() })
        })
    }

    /// Remembers what a request did.
    pub(crate) fn record(&mut self, request: &str, command: &Command, outcome: &Outcome) {
        self.order.push_back(request.to_owned());
        self.done.insert(request.to_owned(), (command.kind().to_owned(), outcome.clone()));
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.done.remove(&oldest);
            }
        }
    }
}
