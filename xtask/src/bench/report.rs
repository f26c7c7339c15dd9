//! Medians with their spread, as JSON and as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::measure::Metric;
use super::path::{Case, Path};

type Key = (Case, Metric, Path);

/// Every value measured.
#[derive(Default)]
pub(crate) struct Figures(BTreeMap<Key, Vec<f64>>);

#[derive(Serialize)]
struct Document {
    bench: &'static str,
    pinned: bool,
    rounds: u32,
    results: Vec<Row>,
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

impl Figures {
    pub(crate) fn add(&mut self, case: Case, path: Path, metric: Metric, value: f64) {
        self.0.entry((case, metric, path)).or_default().push(value);
    }

    fn median(&self, key: Key) -> Option<f64> {
        Some(median(self.0.get(&key)?))
    }

    pub(crate) fn json(&self, pinned: bool, rounds: u32) -> anyhow::Result<String> {
        let row = |(&(case, metric, path), values): (&Key, &Vec<f64>)| Row {
            case: case.name(),
            path: path.name(),
            metric: metric.name(),
            median: round(median(values)),
            min: round(values.iter().copied().fold(f64::INFINITY, f64::min)),
            max: round(values.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        };
        let results = self.0.iter().map(row).collect();
        Ok(serde_json::to_string_pretty(&Document { bench: "mesh", pinned, rounds, results })?)
    }

    /// A Markdown table per case: a row per metric, a column per path, in brackets the ratio to `reference`.
    pub(crate) fn table(&self, paths: &[Path], reference: Path) -> String {
        let mut text = String::new();
        for case in Case::ALL {
            let heads: Vec<_> = paths.iter().map(|path| path.name()).collect();
            let rule = "---:|".repeat(paths.len());
            // Writing to a string can't fail.
            let _ok = writeln!(text, "| task {} | {} |\n|---|{rule}", case.name(), heads.join(" | "));
            for metric in Metric::ALL {
                let cells: Vec<_> =
                    paths.iter().map(|&path| self.cell((case, metric, path), reference)).collect();
                let _ok = writeln!(text, "| {} | {} |", metric.title(), cells.join(" | "));
            }
            text.push('\n');
        }
        text
    }

    fn cell(&self, key: Key, reference: Path) -> String {
        let (case, metric, path) = key;
        let Some(value) = self.median(key) else { return "-".into() };
        let value_text = thousands(&format!("{value:.*}", metric.digits()));
        match self.median((case, metric, reference)) {
            Some(base) if path != reference => format!("{value_text} ({:.2})", value / base),
            _ => value_text,
        }
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

    #[test]
    fn json_has_the_agreed_shape() {
        let mut figures = Figures::default();
        for value in [1.0, 3.0, 2.0] {
            figures.add(Case::Remote, Path::Routed, Metric::Conn8Rate, value);
        }
        let document: serde_json::Value = serde_json::from_str(&figures.json(true, 3).unwrap()).unwrap();
        let row = serde_json::json!({
            "case": "remote", "path": "routed", "metric": "conn8_rate", "median": 2.0, "min": 1.0, "max": 3.0
        });
        assert_eq!(
            document,
            serde_json::json!({"bench": "mesh", "pinned": true, "rounds": 3, "results": [row]})
        );
    }
}
