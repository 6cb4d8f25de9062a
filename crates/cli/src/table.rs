//! Tables on standard output, and numbers as people read them.

use std::io::Write;

use anyhow::Result;
use comfy_table::{Attribute, Cell, CellAlignment, Table, presets};

use crate::output;

/// A column's heading and the side to which it is aligned.
#[derive(Clone, Debug)]
pub enum Column {
    /// Words: to the left.
    Text(String),
    /// Numbers: to the right.
    Number(String),
}

impl Column {
    /// A column of words.
    pub fn text(heading: &str) -> Column {
        Column::Text(heading.to_owned())
    }

    /// A column of numbers.
    pub fn number(heading: impl Into<String>) -> Column {
        Column::Number(heading.into())
    }
}

/// Prints rows under headings.
pub fn print(columns: &[Column], rows: &[Vec<String>]) -> Result<()> {
    let mut table = Table::new();
    // Lines are never broken to fit a terminal: a program or a person who scrolls sees whole rows. Colours come out of
    // the stream where they are not wanted.
    table.load_style(presets::NOTHING).enforce_styling();
    table.set_header(columns.iter().map(|column| {
        let (Column::Text(heading) | Column::Number(heading)) = column;
        Cell::new(heading).add_attribute(Attribute::Bold)
    }));
    table.add_rows(rows);
    for (column, shown) in columns.iter().zip(table.column_iter_mut()) {
        shown.set_padding((0, 2));
        if matches!(column, Column::Number(_)) {
            shown.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut out = output::stdout();
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Bytes in binary units.
pub fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

/// A count with a decimal prefix: `1.24 G`.
pub fn count(count: u64) -> String {
    rate(count as f64)
}

/// A rate with a decimal prefix, without its unit.
pub fn rate(value: f64) -> String {
    let prefixes = [(1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")];
    match prefixes.into_iter().find(|(size, _)| value >= *size) {
        Some((size, prefix)) => format!("{:.2}{prefix}", value / size),
        None => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_short() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_235_814_400), "1.24 G");
        assert_eq!(rate(2.5e12), "2.50 T");
    }
}
