//! Tables and numbers in Markdown.

use crate::stats::Spread;

/// A table: headings, of which those that begin with `#` stand over numbers, and rows.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let (mut head, mut line) = (String::from("|"), String::from("|"));
    for heading in headings {
        let number = heading.strip_prefix('#');
        head += &format!(" {} |", number.unwrap_or(heading));
        line += if number.is_some() { " ---: |" } else { " --- |" };
    }
    let rows = rows.iter().map(|row| {
        let cells: Vec<String> = row.iter().map(|cell| escaped(cell)).collect();
        format!("| {} |\n", cells.join(" | "))
    });
    format!("{head}\n{line}\n{}", rows.collect::<String>())
}

/// A text that cannot end its cell.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// Stands where there is no value.
pub(super) const NONE: &str = "\u{2013}";

/// Seconds, in the unit that suits them.
pub(super) fn seconds(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 1e-3 => format!("{:.1} \u{b5}s", 1e6 * seconds),
        seconds if seconds < 1.0 => format!("{:.1} ms", 1e3 * seconds),
        seconds => format!("{seconds:.2} s"),
    }
}

/// Bytes in binary units.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.2} {}", UNITS[unit]) }
}

/// A rate with a decimal prefix: `4.21 TB/s`.
pub(super) fn rate(value: f64, unit: &str) -> String {
    const PREFIXES: [(f64, &str); 5] = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let (factor, prefix) = PREFIXES.into_iter().find(|(factor, _)| value >= *factor).unwrap_or((1.0, ""));
    format!("{:.2} {prefix}{unit}", value / factor)
}

/// A count with a comma before every three digits.
pub(super) fn count(value: usize) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Tokens in a second, with the ends where there are several measurements.
pub(super) fn tokens_per_second(spread: &Spread) -> String {
    let digits = |value: f64| if value < 100.0 { 1 } else { 0 };
    let Spread { median, min, max } = *spread;
    if min == max {
        return format!("{median:.*}", digits(median));
    }
    format!("{median:.0$} ({min:.1$}\u{2013}{max:.2$})", digits(median), digits(min), digits(max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_read_them() {
        assert_eq!(
            [count(0), count(999), count(32_768), count(1_234_567)],
            ["0", "999", "32,768", "1,234,567"]
        );
        assert_eq!([bytes(1023), bytes(1536), bytes(3 << 30)], ["1023 B", "1.50 KiB", "3.00 GiB"]);
        assert_eq!([seconds(2e-5), seconds(0.0123), seconds(90.0)], ["20.0 \u{b5}s", "12.3 ms", "90.00 s"]);
        assert_eq!(rate(4.21e12, "B/s"), "4.21 TB/s");
        let spread = Spread { median: 100.0, min: 99.94, max: 120.0 };
        assert_eq!(tokens_per_second(&spread), "100 (99.9\u{2013}120)");
        assert_eq!(tokens_per_second(&Spread { median: 5.0, min: 5.0, max: 5.0 }), "5.0");
    }

    #[test]
    fn cells_stay_cells() {
        let table = table(&["name", "#value"], &[vec!["a|b\nc".to_owned(), "1".to_owned()]]);
        assert_eq!(table, "| name | value |\n| --- | ---: |\n| a\\|b c | 1 |\n");
    }
}
