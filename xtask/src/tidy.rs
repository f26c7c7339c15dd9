//! `cargo xtask tidy`: laws of the repository that no other tool knows.

mod edges;
mod sources;

use std::path::{Path, PathBuf};

use anyhow::bail;

use crate::tools::root;

/// Prints every breach; fails if there is one.
#[expect(clippy::print_stderr, reason = "a command line tool reports to its terminal")]
pub(crate) fn run() -> anyhow::Result<()> {
    let root = root()?;
    let mut breaches = edges::check()?;
    for file in rust_files(root)? {
        let text = std::fs::read_to_string(root.join(&file))?;
        breaches.extend(sources::check(&file, &text));
    }
    breaches.extend(own_paths(root)?);
    for breach in &breaches {
        eprintln!("tidy: {breach}");
    }
    if !breaches.is_empty() {
        bail!("{} breaches of the repository's laws", breaches.len());
    }
    Ok(())
}

/// Files git knows or would add, below the checkout.
fn files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let git = ["git", "ls-files", "--cached", "--others", "--exclude-standard"];
    let listed = std::process::Command::new(git[0]).args(&git[1..]).current_dir(root).output()?;
    if !listed.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    }
    let names = String::from_utf8(listed.stdout)?;
    Ok(names.lines().map(PathBuf::from).filter(|file| root.join(file).is_file()).collect())
}

fn rust_files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    Ok(files(root)?
        .into_iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "rs"))
        .collect())
}

/// No file may know where on somebody's machine the checkout lies.
fn own_paths(root: &Path) -> anyhow::Result<Vec<String>> {
    let place = root.display().to_string();
    let mut found = Vec::new();
    for file in files(root)? {
        let Ok(text) = std::fs::read_to_string(root.join(&file)) else { continue };
        for (number, line) in text.lines().enumerate() {
            if line.contains(&place) {
                found.push(format!("{}:{}: a path of this machine ({place})", file.display(), number + 1));
            }
        }
    }
    Ok(found)
}
