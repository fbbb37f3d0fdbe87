//! Text in columns.

/// Characters that a terminal shows, without colour codes.
pub(crate) fn visible(text: &str) -> usize {
    let mut count = 0;
    let mut escape = false;
    for c in text.chars() {
        match (escape, c) {
            (true, 'm') => escape = false,
            (true, _) => {}
            (false, '\x1b') => escape = true,
            (false, _) => count += cells(c),
        }
    }
    count
}

/// Cells that a character takes on a terminal: two for East Asian wide characters and emoji, none for combining marks.
pub(crate) fn cells(c: char) -> usize {
    match c as u32 {
        0..=0x1f | 0x7f..=0x9f | 0x300..=0x36f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0x303e
        | 0x3041..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe4f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1f64f
        | 0x1f900..=0x1f9ff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

/// `text` filled up with spaces to `width` cells.
pub(crate) fn pad(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(visible(text))))
}

/// The same with the spaces in front.
pub(crate) fn pad_left(text: &str, width: usize) -> String {
    format!("{}{text}", " ".repeat(width.saturating_sub(visible(text))))
}

/// Rows whose columns are as wide as their widest cell; the last is not filled up. `right` names columns of numbers.
pub(crate) fn columns(rows: &[Vec<String>], right: &[usize], indent: &str) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|i| {
            rows.iter()
                .filter_map(|r| r.get(i))
                .map(|c| visible(c))
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    for row in rows {
        let mut line = indent.to_owned();
        for (i, cell) in row.iter().enumerate() {
            if i > 0 {
                line.push_str("  ");
            }
            if right.contains(&i) {
                line.push_str(&pad_left(cell, widths[i]));
            } else if i + 1 == row.len() {
                line.push_str(cell);
            } else {
                line.push_str(&pad(cell, widths[i]));
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// `text` in lines of at most `width` cells, broken at spaces where possible; at most `limit` lines, the last with an ellipsis
/// when there is more.
pub(crate) fn wrap(text: &str, width: usize, limit: usize) -> Vec<String> {
    let width = width.max(4);
    // Texts come from strangers: what a terminal would obey is shown as a mark.
    let safe = |c: char| match c.is_control() && !c.is_whitespace() {
        true => char::REPLACEMENT_CHARACTER,
        false => c,
    };
    let text: String = text.chars().map(safe).collect();
    let mut lines = Vec::new();
    for paragraph in text.trim_end().lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let mut word = word;
            loop {
                let gap = usize::from(!line.is_empty());
                if visible(&line) + gap + visible(word) <= width {
                    if gap == 1 {
                        line.push(' ');
                    }
                    line.push_str(word);
                    break;
                }
                if !line.is_empty() {
                    lines.push(std::mem::take(&mut line));
                    continue;
                }
                let cut = cut_at(word, width);
                lines.push(word[..cut].to_owned());
                word = &word[cut..];
            }
            if lines.len() > limit {
                break;
            }
        }
        lines.push(line);
        if lines.len() > limit {
            break;
        }
    }
    if lines.len() > limit {
        lines.truncate(limit);
        if let Some(last) = lines.last_mut() {
            let cut = cut_at(last, width - 2);
            last.truncate(cut);
            last.truncate(last.trim_end().len());
            last.push_str(" …");
        }
    }
    lines
}

/// The byte after as many characters as fit into `width` cells, at least one.
fn cut_at(text: &str, width: usize) -> usize {
    let mut used = 0;
    for (index, c) in text.char_indices() {
        used += cells(c);
        if used > width && index > 0 {
            return index;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |cells: &[&str]| cells.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        let text = columns(
            &[
                row(&["a", "10", "x"]),
                row(&["bcd", "\x1b[1m2\x1b[0m", "y"]),
            ],
            &[1],
            "  ",
        );
        assert_eq!(text, "  a    10  x\n  bcd   \x1b[1m2\x1b[0m  y\n");
    }

    #[test]
    fn long_words_and_texts_are_cut() {
        assert_eq!(wrap("one two three", 7, 9), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij", 4, 9), ["abcd", "efgh", "ij"]);
        assert_eq!(wrap("a b c d e f g h", 4, 2), ["a b", "c …"]);
        assert_eq!(wrap("日本語です", 4, 9), ["日本", "語で", "す"]);
        assert_eq!(wrap("", 4, 9), Vec::<String>::new());
    }
}
