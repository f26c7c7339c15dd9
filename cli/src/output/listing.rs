//! `ls`, `ps` and `inspect`: the same objects as a table, ids, a JSON document, JSON lines or a template.

use serde_json::Value;

use super::Output;
use super::table::layout;
use super::template::{Template, TemplateError};
use crate::failure::Failure;

/// One object in its forms.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// Printed by `-q`.
    pub(crate) id: String,
    /// Field names of docker, for templates, `--format json` and the table.
    pub(crate) fields: Value,
    /// Item of the `--json` document.
    pub(crate) item: Value,
}

/// A column of the default table: header and field.
pub(crate) type Column = (&'static str, &'static str);

/// How `--format` wants it.
enum Format {
    Table,
    JsonLines,
    Columns(Vec<(String, Template)>),
    Lines(Template),
}

impl From<TemplateError> for Failure {
    fn from(error: TemplateError) -> Self {
        Self::Usage(format!("--format: {error}"))
    }
}

fn parse_format(format: Option<&str>) -> Result<Format, Failure> {
    Ok(match format {
        None | Some("table") => Format::Table,
        Some("json") => Format::JsonLines,
        Some(text) => match text.strip_prefix("table ") {
            Some(columns) => Format::Columns(Template::parse(columns)?.columns()),
            None => Format::Lines(Template::parse(text)?),
        },
    })
}

/// Prints a list. `columns` is the default table.
pub(crate) fn print_list(
    out: &Output,
    kind: &str,
    format: Option<&str>,
    columns: &[Column],
    rows: &[Row],
) -> Result<(), Failure> {
    if out.json {
        let items: Vec<Value> = rows.iter().map(|row| row.item.clone()).collect();
        return out.document(kind, &items);
    }
    if out.quiet && format.is_none() {
        return rows.iter().try_for_each(|row| out.result(&row.id));
    }
    match parse_format(format)? {
        Format::Table => {
            let headers: Vec<String> = columns.iter().map(|(header, _)| (*header).to_owned()).collect();
            let cells = |row: &Row| columns.iter().map(|(_, field)| cell(&row.fields, field)).collect();
            let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
            out.result(&layout(&headers, &rows))
        }
        Format::JsonLines => rows.iter().try_for_each(|row| out.result(&row.fields.to_string())),
        Format::Columns(columns) => {
            let headers: Vec<String> = columns.iter().map(|(header, _)| header.clone()).collect();
            let cells = |row: &Row| columns.iter().map(|(_, column)| column.render(&row.fields)).collect();
            let rows: Vec<Vec<String>> = rows.iter().map(cells).collect::<Result<_, _>>()?;
            out.result(&layout(&headers, &rows))
        }
        Format::Lines(template) => {
            rows.iter().try_for_each(|row| out.result(&with_newline(template.render(&row.fields)?)))
        }
    }
}

/// Prints whole objects: docker's JSON array, or what `--json` and `--format` ask for.
pub(crate) fn print_objects(
    out: &Output,
    kind: &str,
    format: Option<&str>,
    rows: &[Row],
) -> Result<(), Failure> {
    if out.json || format.is_some() {
        return match format {
            Some(text) if text == "table" || text.starts_with("table ") => Err(Failure::Usage(
                "--format table is for lists; inspect takes json or a template".to_owned(),
            )),
            _ => print_list(out, kind, format, &[], rows),
        };
    }
    if out.quiet {
        return rows.iter().try_for_each(|row| out.result(&row.id));
    }
    let objects: Vec<&Value> = rows.iter().map(|row| &row.fields).collect();
    out.result(&format!("{:#}", serde_json::json!(objects)))
}

/// An empty line stays a line: `result` adds the newline only where none is.
fn with_newline(mut text: String) -> String {
    text.push('\n');
    text
}

fn cell(fields: &Value, field: &str) -> String {
    match fields.get(field) {
        Some(Value::String(text)) if text.is_empty() => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    }
}

/// Keeps default columns and fields in step.
#[cfg(test)]
pub(crate) fn check_columns(columns: &[Column], row: &Row) {
    for (header, field) in columns {
        assert!(row.fields.get(field).is_some(), "column {header} shows .{field}, which is not there");
        assert!(!header.is_empty(), "the column of .{field} has no header");
    }
}
