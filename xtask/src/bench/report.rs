//! Medians with their spread, as JSON and as a table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;

use super::measure::Metric;
use super::path::Case;

/// What is compared; a column of the tables.
pub(crate) trait Column: Copy + Ord {
    /// The bench's name in the JSON.
    const BENCH: &str;
    /// What the others are set against.
    const REFERENCE: Self;
    /// One more that they are set against, in rows of its own.
    const REPLACED: Option<Self>;

    fn name(self) -> &'static str;
}

type Key<P> = (Case, Metric, P);

/// Every value measured.
pub(crate) struct Figures<P>(BTreeMap<Key<P>, Vec<f64>>);

/// Under which the figures were made.
#[derive(Serialize)]
pub(crate) struct Conditions {
    pub(crate) kernel: String,
    /// The kind of the guest, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) guest: Option<String>,
    pub(crate) pinned: bool,
    pub(crate) rounds: u32,
}

#[derive(Serialize)]
struct Document {
    bench: &'static str,
    #[serde(flatten)]
    conditions: Conditions,
    results: Vec<Row>,
    not_run: Vec<Missing>,
}

#[derive(Serialize)]
struct Row {
    case: &'static str,
    path: &'static str,
    metric: &'static str,
    median: f64,
    min: f64,
    max: f64,
}

/// A column without figures.
#[derive(Clone, Serialize)]
pub(crate) struct Missing {
    pub(crate) path: &'static str,
    pub(crate) reason: String,
}

impl<P: Column> Figures<P> {
    pub(crate) fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub(crate) fn add(&mut self, case: Case, path: P, metric: Metric, value: f64) {
        self.0.entry((case, metric, path)).or_default().push(value);
    }

    fn median(&self, key: Key<P>) -> Option<f64> {
        Some(median(self.0.get(&key)?))
    }

    /// Everything, for programs.
    pub(crate) fn document(&self, conditions: Conditions, not_run: &[Missing]) -> anyhow::Result<Value> {
        let row = |(&(case, metric, path), values): (&Key<P>, &Vec<f64>)| Row {
            case: case.name(),
            path: path.name(),
            metric: metric.name(),
            median: round(median(values)),
            min: round(values.iter().copied().fold(f64::INFINITY, f64::min)),
            max: round(values.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        };
        let (results, not_run) = (self.0.iter().map(row).collect(), not_run.to_vec());
        Ok(serde_json::to_value(Document { bench: P::BENCH, conditions, results, not_run })?)
    }

    /// The tables with what has to be known to read them, for people.
    pub(crate) fn report(&self, conditions: &Conditions, not_run: &[Missing]) -> String {
        let Conditions { kernel, guest, pinned, rounds } = conditions;
        let machine = guest.as_ref().map_or_else(String::new, |guest| format!(" ({guest})"));
        let place = if *pinned { "the whole path pinned to one CPU" } else { "free-running" };
        let mut text = format!(
            "{} on {kernel}{machine}: {place}, medians of {rounds} rounds; in brackets the ratio to {}\n\n{}",
            P::BENCH,
            P::REFERENCE.name(),
            self.tables()
        );
        for Missing { path, reason } in not_run {
            // Writing to a string can't fail.
            let _ok = writeln!(text, "not run: {path}: {reason}");
        }
        text
    }

    /// A Markdown table per case: a row per metric, a column per path, in brackets the ratio to the reference. What
    /// shoal replaces has a row of its own below, with every path's ratio to it.
    fn tables(&self) -> String {
        let mut text = String::new();
        for case in Case::ALL {
            let paths = self.paths(case);
            if paths.is_empty() {
                continue;
            }
            let heads: Vec<_> = paths.iter().map(|path| path.name()).collect();
            let rule = "---:|".repeat(paths.len());
            let _ok = writeln!(text, "| task {} | {} |\n|---|{rule}", case.name(), heads.join(" | "));
            let is_measured =
                |metric: &Metric| paths.iter().any(|&path| self.0.contains_key(&(case, *metric, path)));
            for metric in Metric::ALL.into_iter().filter(is_measured) {
                let mut row = |title: &str, cell: &dyn Fn(P) -> String| {
                    let cells: Vec<_> = paths.iter().map(|&path| cell(path)).collect();
                    let _ok = writeln!(text, "| {title} | {} |", cells.join(" | "));
                };
                row(metric.title(), &|path| self.cell((case, metric, path)));
                let is_replaced = |path: &P| self.0.contains_key(&(case, metric, *path));
                if let Some(replaced) = P::REPLACED.filter(is_replaced) {
                    let title = format!("… ratio to {}", replaced.name());
                    row(&title, &|path| {
                        self.ratio((case, metric, path), replaced)
                            .map_or("-".to_owned(), |ratio| format!("{ratio:.2}"))
                    });
                }
            }
            text.push('\n');
        }
        text
    }

    /// The paths with figures, in the order of their columns.
    fn paths(&self, case: Case) -> Vec<P> {
        let measured: BTreeSet<_> = self.0.keys().filter(|key| key.0 == case).map(|key| key.2).collect();
        measured.into_iter().collect()
    }

    fn cell(&self, key: Key<P>) -> String {
        let Some(value) = self.median(key) else { return "-".into() };
        // A small number needs a digit more: the emulated half gigabit.
        let digits = key.1.digits();
        let digits = if digits > 0 && value < 1.0 { digits + 1 } else { digits };
        let text = thousands(&format!("{value:.digits$}"));
        match self.ratio(key, P::REFERENCE) {
            Some(ratio) if key.2 != P::REFERENCE => format!("{text} ({ratio:.2})"),
            _ => text,
        }
    }

    fn ratio(&self, (case, metric, path): Key<P>, base: P) -> Option<f64> {
        Some(self.median((case, metric, path))? / self.median((case, metric, base))?)
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// `12345` as `12,345`; a fraction stays as it is.
fn thousands(number: &str) -> String {
    let (whole, fraction) =
        number.split_once('.').map_or((number, None), |(whole, rest)| (whole, Some(rest)));
    let mut grouped = String::new();
    for (position, digit) in whole.chars().enumerate() {
        if position > 0 && (whole.len() - position) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    fraction.map_or(grouped.clone(), |fraction| format!("{grouped}.{fraction}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::path::Path;

    #[test]
    fn median_of_odd_and_even_counts() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(thousands("12345678"), "12,345,678");
        assert_eq!(thousands("999"), "999");
        assert_eq!(thousands("1234.5"), "1,234.5");
    }

    fn conditions() -> Conditions {
        Conditions { kernel: "6.12".into(), guest: None, pinned: true, rounds: 3 }
    }

    #[test]
    fn a_row_that_nobody_measured_is_left_out() {
        let mut figures = Figures::new();
        figures.add(Case::Remote, Path::Ebpf, Metric::Conn8Rate, 1.0);
        figures.add(Case::Remote, Path::Docker, Metric::Conn8Rate, 1.0);
        figures.add(Case::Remote, Path::Ebpf, Metric::ConnRuns, 30.0);
        let report = figures.report(&conditions(), &[]);
        let rows: Vec<_> = report.lines().filter(|line| line.starts_with("| ")).collect();
        assert_eq!(
            rows,
            [
                "| task remote | ebpf | docker |",
                "| new connections/s, 8 workers | 1 | 1 |",
                "| … ratio to docker | 1.00 | 1.00 |",
                "| … runs of programs | 30.0 | - |",
            ]
        );
    }

    #[test]
    fn json_has_the_agreed_shape() {
        let mut figures = Figures::new();
        for value in [1.0, 3.0, 2.0] {
            figures.add(Case::Remote, Path::Routed, Metric::Conn8Rate, value);
        }
        let not_run = [Missing { path: "ipvs", reason: "why".into() }];
        let row = serde_json::json!({
            "case": "remote", "path": "routed", "metric": "conn8_rate", "median": 2.0, "min": 1.0, "max": 3.0
        });
        assert_eq!(
            figures.document(conditions(), &not_run).unwrap(),
            serde_json::json!({
                "bench": "mesh", "kernel": "6.12", "pinned": true, "rounds": 3, "results": [row],
                "not_run": [{ "path": "ipvs", "reason": "why" }]
            })
        );
    }

    #[test]
    fn both_ratios_are_shown_and_what_was_not_run_is_named() {
        let mut figures = Figures::new();
        for (path, value) in [(Path::Docker, 10.0), (Path::Routed, 20.0), (Path::Ebpf, 22.0)] {
            figures.add(Case::Remote, path, Metric::Tcp1Gbps, value);
        }
        let not_run = [Missing { path: "nft", reason: "why".into() }];
        let text = figures.report(&conditions(), &not_run);
        assert!(text.contains("| task remote | routed | ebpf | docker |\n"), "{text}");
        assert!(text.contains("| TCP 1 stream, Gbit/s | 20.0 | 22.0 (1.10) | 10.0 (0.50) |\n"), "{text}");
        assert!(text.contains("| … ratio to docker | 2.00 | 2.20 | 1.00 |\n"), "{text}");
        assert!(text.ends_with("not run: nft: why\n"), "{text}");
    }
}
