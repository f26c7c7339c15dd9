//! Values of flags: durations, sizes, signals, key-value pairs. Each parser says what is wrong and shows a right one.

mod port;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use shoal_api::pb;
use shoal_types::spec::{Constraint, HealthTarget, parse_http};

pub(crate) use port::{Known, PortMatch, Publish, port_match, publish, publish_mode, replaces};
pub(crate) use words::split_words;

/// A decimal number as (integer part, fraction in 10^-9), so that no float rounds what the operator wrote.
fn decimal(text: &str) -> Option<(u64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let all_digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    let no_digit = whole.is_empty() && fraction.is_empty();
    if no_digit || !all_digits(whole) || !all_digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let nanos = format!("{fraction:0<9}").parse().ok()?;
    Some((whole, nanos))
}

/// `decimal * factor`, rounded down.
fn scaled((whole, nanos): (u64, u32), factor: u64) -> Option<u64> {
    let fraction = u128::from(nanos) * u128::from(factor) / 1_000_000_000;
    whole.checked_mul(factor)?.checked_add(u64::try_from(fraction).ok()?)
}

/// Splits `10s...` into the number and what follows it.
fn number_and_rest(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

/// `10s`, `1m30s`, `500ms`, `1.5h`, `0`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const EXAMPLE: &str = "write it as 10s, 1m30s, 500ms or 24h";
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.is_empty() {
        return Err(format!("empty; {EXAMPLE}"));
    }
    let mut total_ns: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, tail) = number_and_rest(rest);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let factor = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            "" => return Err(format!("'{text}' has no unit; {EXAMPLE}")),
            _ => return Err(format!("'{unit}' is not a unit of time; {EXAMPLE}")),
        };
        let part = decimal(number).ok_or_else(|| format!("'{number}' is not a number; {EXAMPLE}"))?;
        total_ns = scaled(part, factor)
            .and_then(|ns| total_ns.checked_add(ns))
            .ok_or_else(|| format!("'{text}' is too long a time"))?;
        rest = tail;
    }
    Ok(Duration::from_nanos(total_ns))
}

/// A duration as milliseconds on the wire; anything above zero stays above zero.
pub(crate) fn millis(text: &str) -> Result<u64, String> {
    let time = duration(text)?;
    let ms = u64::try_from(time.as_millis()).map_err(|_| format!("'{text}' is too long a time"))?;
    Ok(if ms == 0 && !time.is_zero() { 1 } else { ms })
}

/// `64m`, `1GiB`, `512k`, `1048576`: binary units, as docker reads them.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    const EXAMPLE: &str = "write it as 64m, 1GiB or a number of bytes";
    let (number, unit) = number_and_rest(text);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        other => return Err(format!("'{other}' is not a unit of memory; {EXAMPLE}")),
    };
    let part = decimal(number).ok_or_else(|| format!("'{text}' is not an amount of memory; {EXAMPLE}"))?;
    scaled(part, 1 << shift).ok_or_else(|| format!("'{text}' is too much"))
}

/// `0.5`, `2`, `1.25`: thousandths of a core.
pub(crate) fn cpus(text: &str) -> Result<u64, String> {
    let part =
        decimal(text).ok_or_else(|| format!("'{text}' is not a number of CPUs; write it as 0.5 or 2"))?;
    if part.1 % 1_000_000 != 0 {
        return Err(format!("'{text}' is finer than a thousandth of a CPU"));
    }
    scaled(part, 1000).ok_or_else(|| format!("'{text}' is too many CPUs"))
}

/// `SIGTERM`, `term` or `15`.
pub(crate) fn signal(text: &str) -> Result<i32, String> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let bad = || format!("'{text}' is not a signal; write it as SIGTERM, TERM or 15");
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(bad()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    (1..).zip(NAMES).find_map(|(number, known)| (known == name).then_some(number)).ok_or_else(bad)
}

/// `key=value`, or `key` alone for an empty value.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.trim().is_empty() {
        return Err(format!("'{text}' has no key; write it as key=value"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// `KEY=value`, or `KEY` to pass on this shell's value (nothing when it has none).
pub(crate) fn env(text: &str) -> Result<Option<String>, String> {
    env_with(text, |key| std::env::var(key).ok())
}

fn env_with(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<Option<String>, String> {
    let key = text.split_once('=').map_or(text, |(key, _)| key);
    if key.is_empty() || key.contains(char::is_whitespace) {
        return Err(format!("'{text}' is not KEY=value"));
    }
    if text.contains('=') {
        return Ok(Some(text.to_owned()));
    }
    Ok(lookup(key).map(|value| format!("{key}={value}")))
}

/// The lines of an environment file: `KEY=value`, `KEY`, blank lines and `# comments`.
pub(crate) fn env_file(path: &Path) -> Result<Vec<String>, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read '{shown}': {error}"))?;
    let mut pairs = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        pairs.extend(env(line).map_err(|error| format!("{shown}, line {number}: {error}"))?);
    }
    Ok(pairs)
}

/// Later pairs replace earlier ones of the same key; the order of first appearance stays.
pub(crate) fn merge_env(base: Vec<String>, added: impl IntoIterator<Item = String>) -> Vec<String> {
    let key_of = |pair: &str| pair.split_once('=').map_or(pair, |(key, _)| key).to_owned();
    let mut place = BTreeMap::new();
    let mut out: Vec<String> = Vec::new();
    for pair in base.into_iter().chain(added) {
        let next = out.len();
        let at = *place.entry(key_of(&pair)).or_insert(next);
        match out.get_mut(at) {
            Some(old) => *old = pair,
            None => out.push(pair),
        }
    }
    out
}

/// A constraint, checked here so that a typing error costs no round trip; sent in its canonical form.
pub(crate) fn constraint(text: &str) -> Result<String, String> {
    text.parse::<Constraint>().map(|constraint| constraint.to_string())
}

/// `app`, `app,alias=db` or `name=app,alias=db,alias=sql`.
pub(crate) fn network(text: &str) -> Result<pb::AttachmentSpec, String> {
    let mut attachment = pb::AttachmentSpec::default();
    for part in text.split(',') {
        match part.split_once('=') {
            None if attachment.network.is_empty() => part.clone_into(&mut attachment.network),
            Some(("name", name)) if attachment.network.is_empty() => name.clone_into(&mut attachment.network),
            Some(("alias", alias)) if !alias.is_empty() => attachment.aliases.push(alias.to_owned()),
            _ => return Err(format!("'{part}' is not understood; write it as NAME or NAME,alias=OTHER")),
        }
    }
    if attachment.network.is_empty() {
        return Err("no network is named; write it as NAME or NAME,alias=OTHER".to_owned());
    }
    Ok(attachment)
}

/// A capability without `CAP_`, in upper case.
pub(crate) fn capability(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_' || b.is_ascii_digit()) {
        return Err(format!("'{text}' is not a capability; write it as NET_BIND_SERVICE"));
    }
    Ok(name.to_owned())
}

/// `8080/healthz`, `:8080` or `http://127.0.0.1:8080/healthz`.
pub(crate) fn health_http(text: &str) -> Result<pb::HealthHttp, String> {
    let (target, path) = parse_http(text)?;
    Ok(pb::HealthHttp { target: target.to_string(), path })
}

/// `8080` or `10.0.0.5:8080`, in its canonical form.
pub(crate) fn health_target(text: &str) -> Result<String, String> {
    text.parse::<HealthTarget>().map(|target| target.to_string())
}

/// Address of a manager, with its port unless it is the usual one.
pub(crate) fn peer(text: &str) -> Result<std::net::SocketAddr, String> {
    let parsed = text.parse().or_else(|_| text.parse().map(|ip| std::net::SocketAddr::new(ip, 7377)));
    parsed.map_err(|_| format!("'{text}' is not an address; write it as 10.0.3.11 or 10.0.3.11:7377"))
}

/// `key=value` of `--filter`.
pub(crate) fn filter(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("'{text}' is not a filter; write it as name=web")),
    }
}

/// `100`, or `all`.
pub(crate) fn tail(text: &str) -> Result<Option<u32>, String> {
    if text == "all" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| format!("'{text}' is not a number of lines; write a number or 'all'"))
}
