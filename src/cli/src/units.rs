//! Numbers as people read them: bytes, times, counts, dates.

use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes in powers of 1000, as disks and networks are sold: `105 MB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if value < 9.95 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

/// A stretch of time: `45 ms`, `3.2 s`, `1 min 05 s`, `2 h 10 min`.
pub(crate) fn time(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match milliseconds {
        0..1000 => format!("{milliseconds} ms"),
        1000..9950 => format!("{:.1} s", milliseconds as f64 / 1000.0),
        9950..59_500 => format!("{:.0} s", milliseconds as f64 / 1000.0),
        59_500..3_600_000 => {
            let rounded = (milliseconds + 500) / 1000;
            format!("{} min {:02} s", rounded / 60, rounded % 60)
        }
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A whole number with its thousands apart: `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 stage`, `2 stages`.
pub(crate) fn plural(number: usize, word: &str) -> String {
    let number_text = count(number as u64);
    if number == 1 {
        format!("1 {word}")
    } else {
        format!("{number_text} {word}s")
    }
}

/// A rate, with as many digits as one reads: `730`, `3.25`.
pub(crate) fn rate(value: f64) -> String {
    match value.abs() {
        x if x >= 100.0 => count(value.max(0.0).round() as u64),
        x if x >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Local date and time to the second: `2026-01-31 14:05:09`.
pub(crate) fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let Ok(seconds) = libc::time_t::try_from(seconds) else {
        return "unknown".to_owned();
    };
    // SAFETY: `tm` is plain old data for which zeroes are valid; `localtime_r` writes only into it and reads only `seconds`.
    let tm = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&seconds, &mut tm).is_null() {
            return "unknown".to_owned();
        }
        tm
    };
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        tm.tm_year + 1900,
        tm.tm_mon + 1,
        tm.tm_mday,
        tm.tm_hour,
        tm.tm_min,
        tm.tm_sec
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short() {
        let shown: Vec<String> = [0, 999, 1000, 9_949, 105_000_000, 999_600, 12_345_678_901]
            .map(bytes)
            .into();
        assert_eq!(
            shown,
            [
                "0 B", "999 B", "1.0 kB", "9.9 kB", "105 MB", "1.0 MB", "12 GB"
            ]
        );
    }

    #[test]
    fn times_are_short() {
        let shown: Vec<String> = [7, 3_210, 45_400, 59_900, 65_000, 7_800_000]
            .map(time)
            .into();
        assert_eq!(
            shown,
            [
                "7 ms",
                "3.2 s",
                "45 s",
                "1 min 00 s",
                "1 min 05 s",
                "2 h 10 min"
            ]
        );
    }

    #[test]
    fn counts_have_commas() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(count),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(plural(1, "stage"), "1 stage");
        assert_eq!(plural(1000, "stage"), "1,000 stages");
    }
}
