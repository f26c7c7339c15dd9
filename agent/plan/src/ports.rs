//! Sets of ports, as the kernel writes them: `80,8000-8100`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::RangeInclusive;

/// Ports.
pub type PortSet = BTreeSet<u16>;

/// Reads a set. What is no port and no range is left out.
pub fn parse(text: &str) -> PortSet {
    let port = |text: &str| text.trim().parse::<u16>().ok();
    text.split(',')
        .filter_map(|item| match item.split_once('-') {
            Some((first, last)) => Some(port(first)?..=port(last)?),
            None => port(item).map(|port| port..=port),
        })
        .flatten()
        .collect()
}

/// Writes a set, neighbors as ranges.
pub fn format(ports: &PortSet) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*port) => *last = *port,
            _ => ranges.push((*port, *port)),
        }
    }
    let mut text = String::new();
    for (first, last) in ranges {
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a String cannot fail.
        let _written = if first == last {
            write!(text, "{comma}{first}")
        } else {
            write!(text, "{comma}{first}-{last}")
        };
    }
    text
}

/// The widest range within `of` that has none of these ports, first and last; the lowest of several. `None` if none is free.
pub fn widest_free(ports: &PortSet, of: RangeInclusive<u16>) -> Option<(u16, u16)> {
    let mut widest: Option<(u16, u16)> = None;
    let mut from = *of.start();
    let mut offer = |from: u16, last: u16| {
        if last >= from && widest.is_none_or(|(first, end)| last - from > end - first) {
            widest = Some((from, last));
        }
    };
    for &port in ports.range(of.clone()) {
        offer(from, port.saturating_sub(1));
        let Some(next) = port.checked_add(1) else { return widest };
        from = next;
    }
    offer(from, *of.end());
    widest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_read_and_written_as_the_kernel_does() {
        for text in ["", "80", "80,8000-8100", "1-2,65535", "0-65535"] {
            assert_eq!(format(&parse(text)), text);
        }
        assert_eq!(parse("80,8000-8002\n"), PortSet::from([80, 8000, 8001, 8002]));
        assert_eq!(format(&PortSet::from([3, 1, 2, 5])), "1-3,5");
        assert_eq!(parse("x,9-3,-,7"), PortSet::from([7]));
    }

    #[test]
    fn the_widest_free_range_has_no_port_of_the_set() {
        for (taken, free) in [
            ("", Some((1024, 65_535))),
            ("80,443", Some((1024, 65_535))),
            ("8080", Some((8081, 65_535))),
            ("49152-65535", Some((1024, 49_151))),
            ("1024,65535", Some((1025, 65_534))),
            ("2000,3000,64000", Some((3001, 63_999))),
            ("1024-40000,40002-65535", Some((40_001, 40_001))),
            ("0-65535", None),
        ] {
            assert_eq!(widest_free(&parse(taken), 1024..=65_535), free, "{taken}");
        }
        assert_eq!(widest_free(&parse("53,123,8080"), 1..=1023), Some((124, 1023)));
        assert_eq!(widest_free(&parse("1,1000-1023"), 1..=1023), Some((2, 999)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(ports in prop::collection::btree_set(any::<u16>(), 0..200)) {
            prop_assert_eq!(parse(&format(&ports)), ports);
        }
    }
}
