//! Columns as wide as their widest cell, two spaces between, no space at the end of a line.

/// Lays rows out under their headers. Every row has as many cells as there are headers.
pub(crate) fn layout(headers: &[String], rows: &[Vec<String>]) -> String {
    let all = || std::iter::once(headers).chain(rows.iter().map(Vec::as_slice));
    let width = |column: usize| {
        all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headers.len()).map(width).collect();
    let mut text = String::new();
    for row in all() {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            let used = cell.chars().count();
            line.extend(std::iter::repeat_n(' ', width.saturating_sub(used) + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(cells: &[&str]) -> Vec<String> {
        cells.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn columns_line_up_and_lines_end_without_blanks() {
        let text = layout(
            &own(&["NAME", "NODE", "REASON"]),
            &[
                own(&["web.1", "n2", ""]),
                own(&["web.10", "-", "0 of 3 nodes fit: 3 are drained"]),
                own(&["ü", "n3", "x"]),
            ],
        );
        assert_eq!(
            text,
            "NAME    NODE  REASON\n\
             web.1   n2\n\
             web.10  -     0 of 3 nodes fit: 3 are drained\n\
             ü       n3    x\n"
        );
    }

    #[test]
    fn no_rows_leave_the_headers() {
        assert_eq!(layout(&own(&["ID", "NAME"]), &[]), "ID  NAME\n");
    }
}
