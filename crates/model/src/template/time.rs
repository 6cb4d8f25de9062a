//! `strftime_now` of chat templates: today's date for a system prompt. In UTC, since the standard library knows no
//! time zones.

use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const SECONDS_OF_DAY: u64 = 86_400;

/// A date of the Gregorian calendar.
struct Date {
    year: u64,
    /// From 0.
    month: usize,
    /// From 1.
    day: u64,
    /// From 1.
    day_of_year: u64,
}

/// Formats a time as C's `strftime` does, for the directives that templates use.
pub(super) fn strftime(time: SystemTime, format: &str) -> Result<String, String> {
    // A clock before 1970 is not set.
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |duration| duration.as_secs());
    let (days, second) = (seconds / SECONDS_OF_DAY, seconds % SECONDS_OF_DAY);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let Date { year, month, day, day_of_year } = date(days);
    // Day 0 was a Thursday.
    let weekday = DAYS[((days + 4) % 7) as usize];
    let twelve = (hour + 11) % 12 + 1;

    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match characters.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{:02}", month + 1)),
            Some('B') => out.push_str(MONTHS[month]),
            Some('b' | 'h') => out.push_str(&MONTHS[month][..3]),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('e') => out.push_str(&format!("{day:2}")),
            Some('j') => out.push_str(&format!("{day_of_year:03}")),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('H') => out.push_str(&format!("{hour:02}")),
            Some('I') => out.push_str(&format!("{twelve:02}")),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('M') => out.push_str(&format!("{minute:02}")),
            Some('S') => out.push_str(&format!("{second:02}")),
            Some('F') => out.push_str(&format!("{year}-{:02}-{day:02}", month + 1)),
            Some('T') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            Some('Z') => out.push_str("UTC"),
            Some('z') => out.push_str("+0000"),
            Some('%') => out.push('%'),
            other => {
                let directive: String = other.into_iter().collect();
                return Err(format!("strftime_now: directive %{directive} is unknown"));
            }
        }
    }
    Ok(out)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// The date `days` days after 1 January 1970.
fn date(days: u64) -> Date {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let mut year = 1970 + days / DAYS_OF_400_YEARS * 400;
    let mut rest = days % DAYS_OF_400_YEARS;
    while rest >= 365 + u64::from(is_leap(year)) {
        rest -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let day_of_year = rest + 1;
    let february = 28 + u64::from(is_leap(year));
    let mut month = 0;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    Date { year, month, day: rest + 1, day_of_year }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64, format: &str) -> String {
        strftime(UNIX_EPOCH + Duration::from_secs(seconds), format).unwrap()
    }

    #[test]
    fn dates_are_right() {
        let format = "%d %b %Y|%A %B %e|%a %j|%y-%m|%F %T|%I:%M %p|%H%S|%Z%z|100%%";
        assert_eq!(
            at(0, format),
            "01 Jan 1970|Thursday January  1|Thu 001|70-01|1970-01-01 00:00:00|12:00 AM|0000|UTC+0000|100%"
        );
        // Leap days of a common and of a secular year, and the days around them.
        assert_eq!(at(951_782_400, "%F %j %A"), "2000-02-29 060 Tuesday");
        assert_eq!(at(951_868_799, "%F %T"), "2000-02-29 23:59:59");
        assert_eq!(at(1_709_164_800, "%d %b %Y"), "29 Feb 2024");
        assert_eq!(at(1_735_603_200, "%F %j"), "2024-12-31 366");
        assert_eq!(at(4_107_542_400, "%F %A"), "2100-03-01 Monday");
        assert_eq!(at(1_767_225_599, "%I:%M:%S %p"), "11:59:59 PM");
    }

    #[test]
    fn unknown_directives_are_errors() {
        let problem = |format| strftime(UNIX_EPOCH, format).unwrap_err();
        assert_eq!(problem("%Q"), "strftime_now: directive %Q is unknown");
        assert_eq!(problem("50%"), "strftime_now: directive % is unknown");
    }
}
