//! What commands print that change something, or would: results and differences.

use serde_json::{Value, json};

use crate::client::Ctx;
use crate::failure::Failure;
use crate::output::Output;

/// Lines such as `~ spec.replicas: 2 -> 3`.
pub(super) fn diff(old: &Value, new: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    walk("", old, new, &mut lines);
    lines
}

fn walk(path: &str, old: &Value, new: &Value, lines: &mut Vec<String>) {
    if old == new {
        return;
    }
    if let (Value::Object(before), Value::Object(after)) = (old, new) {
        let added = after.keys().filter(|key| !before.contains_key(*key));
        for key in before.keys().chain(added) {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            walk(
                &path,
                before.get(key).unwrap_or(&Value::Null),
                after.get(key).unwrap_or(&Value::Null),
                lines,
            );
        }
        return;
    }
    lines.push(match (old, new) {
        (Value::Null, new) => format!("+ {path}: {new}"),
        (old, Value::Null) => format!("- {path}: {old}"),
        (old, new) => format!("~ {path}: {old} -> {new}"),
    });
}

/// Results of a command that changes objects: printed one by one as lines, or as one document at the end.
pub(super) struct Results<'a> {
    out: &'a Output,
    kind: String,
    items: Vec<Value>,
}

impl<'a> Results<'a> {
    /// For objects of that kind.
    pub(super) fn new(ctx: &'a Ctx, kind: &str, dry_run: bool) -> Self {
        let kind = if dry_run { format!("{kind}DryRun") } else { kind.to_owned() };
        Self { out: &ctx.out, kind, items: Vec::new() }
    }

    /// An object was changed; `shown` is its id or name, whichever the verb prints.
    pub(super) fn changed(&mut self, id: &str, name: &str, shown: &str) -> Result<(), Failure> {
        if self.out.json {
            self.items.push(json!({ "id": id, "name": name }));
            return Ok(());
        }
        self.out.result(shown)
    }

    /// An object would be changed like this; fails with "changes pending" when there are any.
    pub(super) fn would_change(&mut self, name: &str, changes: &[String]) -> Result<(), Failure> {
        if self.out.json {
            self.items.push(json!({ "name": name, "changes": changes }));
        } else if changes.is_empty() {
            self.out.result(&format!("{name}: no change"))?;
        } else {
            self.out.result(name)?;
            changes.iter().try_for_each(|line| self.out.result(&format!("  {line}")))?;
        }
        if changes.is_empty() { Ok(()) } else { Err(Failure::ChangesPending) }
    }

    /// Prints the document, if that is what was asked for and there is something to say.
    pub(super) fn finish(self, outcome: Result<(), Failure>) -> Result<(), Failure> {
        if self.out.json && !(outcome.is_err() && self.items.is_empty()) {
            self.out.document(&self.kind, &self.items)?;
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_differs_is_listed() {
        let old = json!({ "a": 1, "b": { "c": [1], "d": null }, "e": "x" });
        let new = json!({ "a": 1, "b": { "c": [2], "d": "new" }, "f": true });
        assert_eq!(diff(&old, &new), ["~ b.c: [1] -> [2]", "+ b.d: \"new\"", "- e: \"x\"", "+ f: true"]);
        assert!(diff(&old, &old).is_empty());
    }
}
