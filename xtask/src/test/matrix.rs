//! The matrix: what came of each scenario on each kernel with each engine.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::column::{Column, Form};
use super::hole;

/// The group of rows that stand for a driver's own tests.
const DRIVERS: &str = "driver";

/// What came of a row in a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    Ok,
    Failed(String),
    NotRun(String),
}

/// A cell, and how long it took.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Result {
    pub(super) cell: Cell,
    pub(super) seconds: f64,
}

/// A column that was run, or is being run.
#[derive(Debug)]
pub(super) struct Filled {
    pub(super) column: Column,
    pub(super) seconds: f64,
    results: BTreeMap<String, Result>,
    /// Tests of the driver that passed.
    pub(super) driver_tests: u32,
    driver: Option<Driver>,
    /// The test whose failure the next line tells.
    explained: Option<String>,
}

/// A driver's tests while they run.
#[derive(Debug, Default)]
struct Driver {
    name: String,
    passed: u32,
    failed: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Matrix {
    pub(super) form: Form,
    pub(super) rows: Vec<String>,
    pub(super) columns: Vec<Filled>,
}

/// The row of a driver's tests.
pub(super) fn driver_row(name: &str) -> String {
    format!("{DRIVERS}::{name}")
}

/// What a line of a test program says about a test: its name, and what came of it.
fn parse_line(line: &str) -> Option<(&str, Result)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let (word, rest) = rest.split_at(rest.find([' ', ',']).unwrap_or(rest.len()));
    let cell = match word {
        "ok" => Cell::Ok,
        "FAILED" => Cell::Failed(String::new()),
        "ignored" => Cell::NotRun(rest.trim_start_matches(',').trim().to_owned()),
        _ => return None,
    };
    let seconds = rest.trim().strip_prefix('(').and_then(|rest| rest.strip_suffix("s)"));
    let seconds = seconds.and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0);
    Some((name, Result { cell, seconds }))
}

impl Filled {
    pub(super) fn new(column: Column) -> Self {
        Self {
            column,
            seconds: 0.0,
            results: BTreeMap::new(),
            driver_tests: 0,
            driver: None,
            explained: None,
        }
    }

    /// Takes in a line that a test program printed.
    pub(super) fn read(&mut self, line: &str) {
        if let Some(name) = self.explained.take() {
            self.explain(&name, line);
        } else if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" ----")) {
            self.explained = Some(name.to_owned());
        } else if let Some(name) = line.strip_prefix("==== driver ") {
            self.driver = Some(Driver { name: name.to_owned(), ..Driver::default() });
        } else if let Some(status) = line.strip_prefix("==== driver's end ") {
            self.end_driver(status);
        } else if let Some((name, result)) = parse_line(line) {
            match &mut self.driver {
                None => {
                    self.results.insert(name.to_owned(), result);
                }
                // What a driver's tests ignore even when asked for all doesn't count as passed.
                Some(driver) if result.cell == Cell::Ok => driver.passed += 1,
                Some(driver) => driver.failed.push(name.to_owned()),
            }
        }
    }

    fn explain(&mut self, name: &str, why: &str) {
        if let Some(Result { cell: Cell::Failed(reason), .. }) = self.results.get_mut(name) {
            why.clone_into(reason);
        }
    }

    fn end_driver(&mut self, status: &str) {
        let Some(driver) = self.driver.take() else { return };
        let cell = match (status, &driver.failed[..]) {
            ("0", []) if driver.passed > 0 => Cell::Ok,
            (_, []) => Cell::Failed(format!("exit {status} after {} tests", driver.passed)),
            (_, failed) => Cell::Failed(failed.join(", ")),
        };
        self.driver_tests = driver.passed;
        self.results.insert(driver_row(&driver.name), Result { cell, seconds: 0.0 });
    }

    /// Gives every row that has no result this one.
    pub(super) fn fill(&mut self, rows: &[String], cell: &Cell) {
        for row in rows.iter().filter(|row| has(self.column, row)) {
            let result = Result { cell: cell.clone(), seconds: 0.0 };
            self.results.entry(row.clone()).or_insert(result);
        }
    }

    pub(super) fn has_result(&self, row: &str) -> bool {
        self.results.contains_key(row)
    }

    pub(super) fn count(&self, is: impl Fn(&Cell) -> bool) -> u32 {
        let count = self.results.values().filter(|result| is(&result.cell)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn markdown(&self, row: &str) -> String {
        match self.results.get(row).map(|result| &result.cell) {
            _ if !has(self.column, row) => "·".to_owned(),
            Some(Cell::Ok) => "ok".to_owned(),
            Some(Cell::Failed(_)) => "**FAILED**".to_owned(),
            Some(Cell::NotRun(reason)) => format!("not run: {reason}"),
            None => "**no result**".to_owned(),
        }
    }

    fn json(&self, row: &str) -> Option<(String, Value)> {
        let result = self.results.get(row)?;
        let (word, reason) = match &result.cell {
            Cell::Ok => ("ok", None),
            Cell::Failed(reason) => ("failed", Some(reason)),
            Cell::NotRun(reason) => ("not run", Some(reason)),
        };
        let reason = reason.filter(|reason| !reason.is_empty());
        Some((self.column.name(), json!({ "result": word, "reason": reason, "seconds": result.seconds })))
    }
}

/// Whether a row means anything in a column: a driver's tests run once on each kernel.
fn has(column: Column, row: &str) -> bool {
    match row.split_once("::") {
        Some((DRIVERS, name)) => column.driver() == Some(name),
        _ => true,
    }
}

impl Matrix {
    /// What is wrong with it: failures, and holes that should not be there.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for filled in &self.columns {
            for row in self.rows.iter().filter(|row| has(filled.column, row)) {
                let reason = |row: &str| hole::expected(row, filled.column, self.form);
                let expected = hole::of_row(row, &self.rows, reason);
                let wrong = match (filled.results.get(row).map(|result| &result.cell), expected) {
                    (None, _) => "no result".to_owned(),
                    (Some(Cell::Failed(reason)), _) => format!("FAILED {reason}"),
                    (Some(Cell::NotRun(_)), None) if hole::allowed(row, filled.column).is_some() => continue,
                    (Some(Cell::NotRun(reason)), None) => format!("not run, but should have: {reason}"),
                    (Some(Cell::Ok), Some(reason)) => {
                        format!("ran, although it is listed as not run ({reason})")
                    }
                    (Some(Cell::Ok), None) | (Some(Cell::NotRun(_)), Some(_)) => continue,
                };
                problems.push(format!("{} on {}: {}", row, filled.column.name(), wrong.trim_end()));
            }
        }
        problems
    }

    pub(super) fn markdown(&self) -> String {
        let line = |first: &str, cells: &[String]| format!("| {first} | {} |\n", cells.join(" | "));
        let names: Vec<_> = self.columns.iter().map(|filled| filled.column.name()).collect();
        let mut text = line("scenario", &names);
        text.push('|');
        text.push_str(&"---|".repeat(names.len() + 1));
        text.push('\n');
        for row in &self.rows {
            let cells: Vec<_> = self.columns.iter().map(|filled| filled.markdown(row)).collect();
            text.push_str(&line(row, &cells));
        }
        text
    }

    pub(super) fn json(&self) -> Value {
        let columns = self.columns.iter().map(|filled| {
            json!({ "name": filled.column.name(), "seconds": filled.seconds, "driverTests": filled.driver_tests })
        });
        let rows = self.rows.iter().map(|row| {
            let cells: serde_json::Map<_, _> =
                self.columns.iter().filter_map(|filled| filled.json(row)).collect();
            json!({ "name": row, "cells": cells })
        });
        json!({ "columns": columns.collect::<Vec<_>>(), "rows": rows.collect::<Vec<_>>() })
    }

    /// One line for each column.
    pub(super) fn summary(&self) -> String {
        let lines = self.columns.iter().map(|filled| {
            format!(
                "{:15} {} ok, {} failed, {} not run; {} tests of its driver; {:.0} s\n",
                filled.column.name(),
                filled.count(|cell| *cell == Cell::Ok),
                filled.count(|cell| matches!(cell, Cell::Failed(_))),
                filled.count(|cell| matches!(cell, Cell::NotRun(_))),
                filled.driver_tests,
                filled.seconds
            )
        });
        lines.collect()
    }
}

#[cfg(test)]
mod tests;
