//! What a dry run prints: the difference between two values, field by field.

use serde_json::Value;

use crate::client::Ctx;
use crate::failure::Failure;

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

/// Ends a dry run: prints what would change; exit code 10 when something would.
pub(super) fn end_dry_run(ctx: &Ctx, kind: &str, what: &str, lines: &[String]) -> Result<(), Failure> {
    if ctx.out.json {
        ctx.out.document(kind, &[serde_json::json!({ "object": what, "changes": lines })])?;
    } else if lines.is_empty() {
        ctx.out.result(&format!("{what}: no change"))?;
    } else {
        ctx.out.result(what)?;
        lines.iter().try_for_each(|line| ctx.out.result(&format!("  {line}")))?;
    }
    if lines.is_empty() { Ok(()) } else { Err(Failure::ChangesPending) }
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
