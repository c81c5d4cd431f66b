//! Writing to the standard streams.

use std::borrow::Cow;
use std::io::{ErrorKind, Write};

use crate::command_error::CommandError;

/// Writes to standard output; a reader that has gone is no error.
pub(crate) fn data(text: &str) -> Result<(), CommandError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(CommandError::usage(format!("cannot write to standard output: {error}"), "")),
        Ok(()) => Ok(()),
    }
}

/// Writes a line to standard error. Where that is closed there is nobody to tell.
pub(crate) fn note(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", harmless(line));
}

/// Shows control characters instead of sending them to a terminal: messages and listings quote what images and
/// registries say. Not for JSON, which has a way of its own.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    let controls = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(controls) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if controls(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

/// Sizes as people read them.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut scaled, mut unit) = (bytes, 0);
    let mut tenths = 0;
    while scaled >= 1024 && unit + 1 < UNITS.len() {
        tenths = scaled % 1024 * 10 / 1024;
        scaled /= 1024;
        unit += 1;
    }
    if unit == 0 { format!("{scaled} B") } else { format!("{scaled}.{tenths} {}", UNITS[unit]) }
}

/// So many layers.
pub(crate) fn layers(n: u64) -> String {
    if n == 1 { "1 layer".to_owned() } else { format!("{n} layers") }
}

/// Rows in columns, each as wide as its widest cell.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..n_columns)
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        text.push_str(&harmless(line.trim_end()));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown() {
        for (text, want) in [
            ("plain ü\n\thint", "plain ü\n\thint"),
            ("\u{1b}[31mevil\r\u{7}", "\\u{1b}[31mevil\\r\\u{7}"),
            ("\u{9b}2J\u{7f}", "\\u{9b}2J\\u{7f}"),
        ] {
            assert_eq!(harmless(text), want);
        }
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["long".to_owned(), "c".to_owned()]];
        assert_eq!(table(&rows), "a     b\nlong  c\n");
    }
}
