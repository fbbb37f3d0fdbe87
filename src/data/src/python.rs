//! What chat templates expect of Python: `json.dumps`, `strftime`, and string methods where minijinja's differ or lack.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// Python's `str.isspace` for one character: Unicode white space and the four ASCII separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `str.strip` and its one-sided forms; without `chars` white space is stripped.
fn strip<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let strips = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left {
        text.trim_start_matches(strips)
    } else {
        text
    };
    if right {
        text.trim_end_matches(strips)
    } else {
        text
    }
}

/// The filter `trim`: `str.strip`.
pub(crate) fn trim(value: &Value, chars: Option<&str>) -> String {
    match value.as_str() {
        Some(text) => strip(text, chars, true, true).to_owned(),
        None => strip(&value.to_string(), chars, true, true).to_owned(),
    }
}

/// The test `iterable`: whether Python's `iter` takes the value; minijinja also lets `none` pass.
pub(crate) fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Iterable | Map | Seq | String | Undefined)
}

/// The test `sequence`: whether the value has a length and items, as strings and maps have in Python.
pub(crate) fn is_sequence(value: &Value) -> bool {
    use ValueKind::{Map, Seq, String, Undefined};
    matches!(value.kind(), Map | Seq | String | Undefined)
}

/// Methods of Python's own types, called when minijinja has none of that name.
pub(crate) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = string_method(text, name, args)?
    {
        return Ok(result);
    }
    if name == "index" && value.kind() == ValueKind::Seq {
        let [item] = args else {
            return Err(Error::from(ErrorKind::MissingArgument));
        };
        let place = value.try_iter()?.position(|other| other == *item);
        return place
            .map(Value::from)
            .ok_or_else(|| invalid(format!("{item} is not in the list")));
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

fn string_method(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let argument = |at: usize| {
        args.get(at)
            .filter(|value| !value.is_none())
            .and_then(|value| value.as_str())
    };
    let needed = || argument(0).ok_or_else(|| invalid(format!("{name}() needs a string")));
    let separator = || {
        needed().and_then(|s| {
            if s.is_empty() {
                Err(invalid("empty separator"))
            } else {
                Ok(s)
            }
        })
    };
    Ok(Some(match name {
        "strip" => Value::from(strip(text, argument(0), true, true)),
        "lstrip" => Value::from(strip(text, argument(0), true, false)),
        "rstrip" => Value::from(strip(text, argument(0), false, true)),
        "removeprefix" => Value::from(text.strip_prefix(needed()?).unwrap_or(text)),
        "removesuffix" => Value::from(text.strip_suffix(needed()?).unwrap_or(text)),
        "partition" => {
            let separator = separator()?;
            let (head, tail) = text.split_once(separator).unwrap_or((text, ""));
            list([head, &text[head.len()..text.len() - tail.len()], tail])
        }
        "rpartition" => {
            let separator = separator()?;
            let (head, tail) = text.rsplit_once(separator).unwrap_or(("", text));
            list([head, &text[head.len()..text.len() - tail.len()], tail])
        }
        "rsplit" if args.len() == 2 => {
            let separator = separator()?;
            let most = args[1]
                .as_i64()
                .and_then(|most| usize::try_from(most).ok())
                .unwrap_or(usize::MAX - 1);
            let mut parts: Vec<&str> = text.rsplitn(most.saturating_add(1), separator).collect();
            parts.reverse();
            list(parts)
        }
        "rsplit" if args.len() == 1 => list(text.split(separator()?)),
        "splitlines" if args.is_empty() => list(lines(text)),
        "index" => {
            let part = needed()?;
            let place = text
                .find(part)
                .ok_or_else(|| invalid("substring not found"))?;
            Value::from(text[..place].chars().count())
        }
        _ => return Ok(None),
    }))
}

fn list<'a>(parts: impl IntoIterator<Item = &'a str>) -> Value {
    parts.into_iter().map(Value::from).collect()
}

/// `str.splitlines()`: more characters end a line in Python than in Rust.
fn lines(text: &str) -> Vec<&str> {
    const ENDS: &[char] = &[
        '\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}',
    ];
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(ENDS) {
        lines.push(&rest[..at]);
        let end = &rest[at..];
        let length = if end.starts_with("\r\n") {
            2
        } else {
            end.chars().next().map_or(1, char::len_utf8)
        };
        rest = &end[length..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// The filter `tojson` as transformers defines it: Python's `json.dumps` with `ensure_ascii=False`, nothing escaped for HTML.
pub(crate) fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let ascii = options
        .get::<Option<bool>>("ensure_ascii")?
        .unwrap_or(false);
    let sort = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let indent = match options.get::<Option<Value>>("indent")? {
        Some(indent) if indent.as_str().is_some() => indent.as_str().map(str::to_owned),
        Some(indent) if !indent.is_none() => Some(
            " ".repeat(
                indent
                    .as_i64()
                    .and_then(|n| usize::try_from(n).ok())
                    .unwrap_or(0)
                    .min(64),
            ),
        ),
        _ => None,
    };
    let mut separators = match &indent {
        Some(_) => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    if let Some(pair) = options
        .get::<Option<Value>>("separators")?
        .filter(|pair| !pair.is_none())
    {
        let pair: Vec<Value> = pair.try_iter()?.collect();
        let [item, key] = &pair[..] else {
            return Err(invalid("tojson: separators is a pair"));
        };
        separators = (item.to_string(), key.to_string());
    }
    options.assert_all_used()?;
    let mut dump = Dump {
        out: String::new(),
        ascii,
        sort,
        indent,
        separators,
    };
    dump.value(value, 1)?;
    Ok(Value::from(dump.out))
}

struct Dump {
    out: String,
    ascii: bool,
    sort: bool,
    indent: Option<String>,
    separators: (String, String),
}

impl Dump {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > 100 {
            return Err(invalid("tojson: nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self
                .out
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.out.push_str(&value.to_string()),
            ValueKind::Number => {
                let number = f64::try_from(value.clone())?;
                self.out.push_str(&float(number));
            }
            ValueKind::String => self.text(&value.to_string()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.items('[', ']', depth, items.len(), |dump, at| {
                    dump.value(&items[at], depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort_by_key(|key| key.to_string());
                }
                self.items('{', '}', depth, keys.len(), |dump, at| {
                    dump.text(&keys[at].to_string());
                    let colon = dump.separators.1.clone();
                    dump.out.push_str(&colon);
                    dump.value(&value.get_item(&keys[at])?, depth + 1)
                })?;
            }
            kind => return Err(invalid(format!("tojson: {kind} is not JSON"))),
        }
        Ok(())
    }

    fn items(
        &mut self,
        open: char,
        close: char,
        depth: usize,
        count: usize,
        mut item: impl FnMut(&mut Dump, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for at in 0..count {
            if at > 0 {
                let comma = self.separators.0.clone();
                self.out.push_str(&comma);
            }
            self.newline(depth);
            item(self, at)?;
        }
        if count > 0 {
            self.newline(depth - 1);
        }
        self.out.push(close);
        Ok(())
    }

    fn newline(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\x08' => self.out.push_str("\\b"),
                '\x0c' => self.out.push_str("\\f"),
                c if (c as u32) < 0x20 => self.out.push_str(&format!("\\u{:04x}", c as u32)),
                c if self.ascii && !c.is_ascii() => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// Python's `repr` of a float: the shortest digits, with an exponent below 1e-4 and from 1e16.
fn float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .to_owned();
    }
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent
            .strip_prefix('-')
            .map_or(("+", exponent), |exponent| ("-", exponent));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{number:?}")
}

/// A moment for `strftime_now`, without a time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since 1970-01-01T00:00:00.
    pub seconds: i64,
}

impl Moment {
    /// Midnight of a day of the Gregorian calendar; `None` when there is no such day.
    pub fn date(year: i64, month: u32, day: u32) -> Option<Moment> {
        if !(1..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        // Days from civil, after Howard Hinnant's "chrono-compatible low-level date algorithms".
        let shifted = if month <= 2 { year - 1 } else { year };
        let era = shifted.div_euclid(400);
        let year_of_era = shifted.rem_euclid(400);
        let day_of_year = (153 * (i64::from(month) + if month > 2 { -3 } else { 9 }) + 2) / 5
            + i64::from(day)
            - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let moment = Moment {
            seconds: (era * 146_097 + day_of_era - 719_468) * 86_400,
        };
        (moment.civil() == (year, month, day)).then_some(moment)
    }

    /// Year, month and day.
    fn civil(self) -> (i64, u32, u32) {
        let days = self.seconds.div_euclid(86_400) + 719_468;
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let day = (day_of_year - (153 * shifted + 2) / 5 + 1) as u32;
        let month = if shifted < 10 {
            shifted + 3
        } else {
            shifted - 9
        } as u32;
        (year_of_era + era * 400 + i64::from(month <= 2), month, day)
    }

    /// C's `strftime` in the C locale, for the directives that dates and times need; others are kept as they are.
    pub fn format(self, pattern: &str) -> String {
        const DAYS: [&str; 7] = [
            "Sunday",
            "Monday",
            "Tuesday",
            "Wednesday",
            "Thursday",
            "Friday",
            "Saturday",
        ];
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
        let (year, month, day) = self.civil();
        let weekday = (self.seconds.div_euclid(86_400) + 4).rem_euclid(7) as usize;
        let second = self.seconds.rem_euclid(86_400);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let start = Moment::date(year, 1, 1).map_or(0, |start| start.seconds);
        let day_of_year = (self.seconds - start).div_euclid(86_400) + 1;
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        let month_name = MONTHS[(month as usize - 1) % 12];
        let mut out = String::new();
        let mut characters = pattern.chars();
        while let Some(c) = characters.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut directive = characters.next();
            let padded = directive != Some('-');
            if !padded {
                directive = characters.next();
            }
            let number = |value: i64, width: usize| {
                if padded {
                    format!("{value:0width$}")
                } else {
                    value.to_string()
                }
            };
            match directive {
                Some('Y') => out.push_str(&number(year, 4)),
                Some('y') => out.push_str(&number(year % 100, 2)),
                Some('m') => out.push_str(&number(i64::from(month), 2)),
                Some('d') => out.push_str(&number(i64::from(day), 2)),
                Some('e') => out.push_str(&format!("{day:2}")),
                Some('j') => out.push_str(&number(day_of_year, 3)),
                Some('H') => out.push_str(&number(hour, 2)),
                Some('I') => out.push_str(&number(twelve, 2)),
                Some('M') => out.push_str(&number(minute, 2)),
                Some('S') => out.push_str(&number(second, 2)),
                Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
                Some('B') => out.push_str(month_name),
                Some('b' | 'h') => out.push_str(&month_name[..3]),
                Some('A') => out.push_str(DAYS[weekday]),
                Some('a') => out.push_str(&DAYS[weekday][..3]),
                Some('F') => out.push_str(&format!("{year:04}-{month:02}-{day:02}")),
                Some('T') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
                Some('%') => out.push('%'),
                Some(other) => out.extend(['%', other]),
                None => out.push('%'),
            }
        }
        out
    }
}
