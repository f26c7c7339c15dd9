//! Lists of names that stay readable in clusters of any size.

use shoal_types::id::Name;

const SHOWN: usize = 3;

/// The first names in their order, and how many more there are.
pub fn some_of(names: &[Name]) -> String {
    let mut shown: Vec<&str> = names.iter().map(Name::as_str).collect();
    shown.sort_unstable();
    shown.truncate(SHOWN);
    let text = shown.join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}
