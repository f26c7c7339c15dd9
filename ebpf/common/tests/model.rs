//! Whole histories of a mesh, through the programs of all its nodes and through a model of what they are to do.
//!
//! `SHOAL_MODEL_CASES` says how many histories are run; `SHOAL_MODEL_SEED` runs the one of a seed.

#[path = "model/flow.rs"]
mod flow;
#[path = "model/history.rs"]
mod history;
#[path = "model/mesh.rs"]
mod mesh;
#[path = "model/place.rs"]
mod place;
#[path = "model/rules.rs"]
mod rules;
#[path = "support/all.rs"]
mod support;

use history::{History, run, shrink};
use rules::Tally;

/// Some ten seconds on a slow machine.
const CASES: u64 = 4_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// Runs the history of a seed, and shows the least part of it that fails if it does.
fn check(seed: u64) -> Tally {
    let history = History::generate(seed);
    match run(&history) {
        Ok(tally) => tally,
        Err(failure) => {
            let (least, (step, why)) = shrink(&history, failure);
            panic!("SHOAL_MODEL_SEED={seed}\n{least}step {step}: {why}");
        }
    }
}

#[test]
fn programs_and_model_agree() {
    if let Some(seed) = number("SHOAL_MODEL_SEED") {
        check(seed);
        return;
    }
    let mut tally = Tally::new();
    for seed in 0..number("SHOAL_MODEL_CASES").unwrap_or(CASES) {
        for (what, count) in check(seed) {
            *tally.entry(what).or_default() += count;
        }
    }
    // The histories come by everything that the model knows.
    for what in [
        "answer lost with what was forgotten",
        "answered",
        "answered by itself",
        "began",
        "collected",
        "dropped without an endpoint",
        "found again by another node",
        "left to the stack",
        "made whole by an answer",
        "port translated",
        "refused",
        "taken over",
        "to itself",
        "went on",
        "went on where nobody knew it",
    ] {
        assert!(tally.get(what).is_some_and(|&count| count > 20), "{what}: {tally:?}");
    }
}
