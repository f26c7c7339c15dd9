//! Laws about single source files.

use std::path::Path;

/// Lines of a file that aren't tests.
const FILE_LINES: usize = 600;
/// Lines of code in a function, as clippy counts them; here also for what clippy doesn't see.
const FUNCTION_LINES: usize = 70;
/// Module names that say nothing.
const EMPTY_NAMES: [&str; 8] = ["utils", "util", "helpers", "helper", "common", "misc", "data", "info"];
/// The kernel's own word for the functions a program can call.
const BPF_HELPERS: &str = "ebpf/src/helpers.rs";
/// Packages without unsafe code, by the file that must say so.
const SAFE_PACKAGES: [&str; 8] = [
    "agent/plan/src/lib.rs",
    "cli/src/main.rs",
    "control/api/src/lib.rs",
    "control/core/src/lib.rs",
    "control/src/main.rs",
    "control/types/src/lib.rs",
    "ebpf/common/src/lib.rs",
    "xtask/src/main.rs",
];
/// Where decisions are made; time, chance and the world come in as arguments.
const PURE: [&str; 4] = ["agent/plan/src", "control/core/src", "control/types/src", "ebpf/common/src"];
const IMPURE: [&str; 7] = [
    "SystemTime::now",
    "Instant::now",
    "std::env::",
    "std::fs::",
    "std::process::",
    "std::thread::",
    "rand::",
];

/// Breaches in one file.
pub(super) fn check(file: &Path, text: &str) -> Vec<String> {
    let name = file.display();
    let mut found = Vec::new();
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    if stem == "mod" {
        found.push(format!("{name}: modules are foo.rs beside foo/, not foo/mod.rs"));
    }
    if EMPTY_NAMES.contains(&stem) && file != Path::new(BPF_HELPERS) {
        found.push(format!("{name}: '{stem}' says nothing about what is in it"));
    }
    let code = without_tests(text);
    let lines = code.lines().count();
    if stem != "tests" && lines > FILE_LINES {
        found.push(format!("{name}: {lines} lines without tests, at most {FILE_LINES}"));
    }
    for (number, function, lines) in long_functions(code) {
        found
            .push(format!("{name}:{number}: {function} has {lines} lines of code, at most {FUNCTION_LINES}"));
    }
    if SAFE_PACKAGES.iter().any(|safe| file == Path::new(safe)) && !text.contains("#![forbid(unsafe_code)]") {
        found.push(format!("{name}: must forbid unsafe code"));
    }
    if stem != "tests" && PURE.iter().any(|pure| file.starts_with(pure)) {
        for (number, line) in
            code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
        {
            for word in IMPURE.iter().filter(|word| line.contains(*word)) {
                found.push(format!("{name}:{}: a pure package uses {word}", number + 1));
            }
        }
    }
    found
}

/// A file up to the test module at its end.
fn without_tests(text: &str) -> &str {
    text.find("\n#[cfg(test)]\nmod ").map_or(text, |end| &text[..end])
}

/// Functions over the limit: line, name, lines of code. Relies on rustfmt: a function ends at the brace below its `fn`.
fn long_functions(text: &str) -> Vec<(usize, String, usize)> {
    let mut found = Vec::new();
    let lines: Vec<_> = text.lines().collect();
    for (start, line) in lines.iter().enumerate() {
        let Some(function) = function_name(line) else { continue };
        let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
        let body = lines[start + 1..].iter().take_while(|line| **line != end);
        let code =
            body.filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("//")).count();
        if !line.ends_with('}') && !line.ends_with(';') && code > FUNCTION_LINES {
            found.push((start + 1, function.to_owned(), code));
        }
    }
    found
}

/// The name of the function that begins on this line.
fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    loop {
        let (word, tail) = rest.split_once(' ')?;
        rest = tail;
        match word {
            "fn" => return rest.split(['(', '<']).next(),
            "pub" | "pub(crate)" | "pub(super)" | "const" | "async" | "unsafe" | "extern" | "\"C\"" => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaches(file: &str, text: &str) -> Vec<String> {
        check(Path::new(file), text)
    }

    #[test]
    fn long_functions_are_found_and_short_ones_are_not() {
        let body = "        call();\n".repeat(FUNCTION_LINES);
        let fits = format!("impl A {{\n    pub(crate) async fn f() {{\n{body}    }}\n}}\n");
        assert_eq!(breaches("agent/src/a.rs", &fits), Vec::<String>::new());
        let long =
            fits.replace("fn f() {\n", "fn f() {\n        one_more();\n        // a comment is no code\n");
        let found = breaches("agent/src/a.rs", &long);
        assert!(found.len() == 1 && found[0].contains(":2: f has 71 lines"), "{found:?}");
    }

    #[test]
    fn tests_do_not_count_as_lines_of_a_file() {
        let code = "// x\n".repeat(FILE_LINES - 1);
        let text = format!("{code}\n#[cfg(test)]\nmod tests {{\n{code}}}\n");
        assert_eq!(breaches("agent/src/a.rs", &text), Vec::<String>::new());
        assert_eq!(breaches("agent/src/a.rs", &format!("{code}{code}")).len(), 1);
    }

    #[test]
    fn names_and_clocks_are_found() {
        assert_eq!(breaches("agent/src/mod.rs", "").len(), 1);
        assert_eq!(breaches("agent/src/utils.rs", "").len(), 1);
        assert_eq!(breaches("control/core/src/x.rs", "let t = SystemTime::now();").len(), 1);
        assert_eq!(breaches("control/core/src/x.rs", "// never SystemTime::now()").len(), 0);
        assert_eq!(breaches("control/src/x.rs", "let t = SystemTime::now();").len(), 0);
        assert_eq!(breaches("xtask/src/main.rs", "fn main() {}").len(), 1);
    }
}
