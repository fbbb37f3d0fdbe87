//! A question as it stands on a terminal: the prompt, and its completions beside or below each other.

use data::Prompt;

use crate::style::Style;
use crate::table;

/// A column narrower than this is hard to read: completions stand below each other then.
const NARROW: usize = 34;

/// The page of comparison `at.0` of `at.1`.
pub(super) fn page(
    question: &str,
    at: (usize, usize),
    prompt: &Prompt,
    texts: &[&str],
    width: usize,
    style: Style,
) -> String {
    let head = format!("{} of {}", at.0, at.1);
    let mut out = format!("{} · {}\n\n", style.dim(&head), style.bold(question));
    for (role, text) in turns(prompt) {
        let lines = lines(text, width.saturating_sub(12));
        for (index, line) in lines.iter().enumerate() {
            let label = if index == 0 { role } else { "" };
            out.push_str(&format!("  {}{line}\n", style.dim(&table::pad(label, 10))));
        }
    }
    out.push('\n');
    let column = width.saturating_sub(2) / texts.len().max(1);
    if texts.len() == 2 && column >= NARROW {
        beside(texts, column - 3, style, &mut out);
    } else {
        for (index, text) in texts.iter().enumerate() {
            out.push_str(&format!("  {}\n", style.cyan(&(index + 1).to_string())));
            for line in lines(text, width.saturating_sub(4)) {
                out.push_str(format!("    {line}").trim_end());
                out.push('\n');
            }
            out.push('\n');
        }
    }
    out
}

/// Who says what before the completion.
fn turns(prompt: &Prompt) -> Vec<(&str, &str)> {
    match prompt {
        Prompt::Text(text) if text.trim().is_empty() => Vec::new(),
        Prompt::Text(text) => vec![("prompt", text)],
        Prompt::Chat(messages) => messages
            .iter()
            .map(|m| (m.role.as_str(), m.content.as_str()))
            .collect(),
    }
}

fn beside(texts: &[&str], column: usize, style: Style, out: &mut String) {
    let cells: Vec<Vec<String>> = texts.iter().map(|text| lines(text, column)).collect();
    let head: Vec<String> = (1..=texts.len())
        .map(|number| table::pad(&style.cyan(&number.to_string()), column))
        .collect();
    out.push_str(format!("  {}", head.join(" │ ")).trim_end());
    out.push('\n');
    for row in 0..cells.iter().map(Vec::len).max().unwrap_or(0) {
        let line: Vec<String> = cells
            .iter()
            .map(|cell| table::pad(cell.get(row).map_or("", String::as_str), column))
            .collect();
        out.push_str(format!("  {}", line.join(" │ ")).trim_end());
        out.push('\n');
    }
    out.push('\n');
}

/// The whole text in lines of at most `width` cells. Its own lines stay, with their indentation: a completion may be a program.
fn lines(text: &str, width: usize) -> Vec<String> {
    let mut all = Vec::new();
    for line in text.trim_end().lines() {
        let body = line.trim_start();
        let blank: usize = line[..line.len() - body.len()]
            .chars()
            .map(|c| if c == '\t' { 4 } else { 1 })
            .sum();
        let indent = " ".repeat(blank.min(width / 2));
        let wrapped = table::wrap(body, width - indent.len(), usize::MAX);
        if wrapped.is_empty() {
            all.push(String::new());
        }
        all.extend(wrapped.into_iter().map(|part| format!("{indent}{part}")));
    }
    if all.is_empty() {
        all.push("(nothing)".to_owned());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use data::Message;

    #[test]
    fn two_stand_beside_each_other_where_they_fit() {
        let prompt = Prompt::Chat(vec![
            Message::new("system", "Be kind."),
            Message::new("user", "Sum a list."),
        ]);
        let texts = ["def sum(x):\n    s = 0\n\n    return s", " "];
        let draw = |width| page("Which?", (12, 40), &prompt, &texts, width, Style::default());
        insta::assert_snapshot!(draw(80), @r"
        12 of 40 · Which?

          system    Be kind.
          user      Sum a list.

          1                                    │ 2
          def sum(x):                          │ (nothing)
              s = 0                            │
                                               │
              return s                         │
        ");
        insta::assert_snapshot!(draw(50), @r"
        12 of 40 · Which?

          system    Be kind.
          user      Sum a list.

          1
            def sum(x):
                s = 0

                return s

          2
            (nothing)
        ");
    }

    #[test]
    fn a_long_text_is_shown_whole_and_commands_a_terminal_nothing() {
        let prompt = Prompt::Text("Say more.".to_owned());
        let long = "bread and butter ".repeat(200) + "\x1b[2Jend";
        let text = page(
            "?",
            (1, 1),
            &prompt,
            &[&long, "a", "b"],
            80,
            Style::default(),
        );
        assert_eq!(text.matches("butter").count(), 200);
        assert!(
            text.contains("\u{fffd}[2Jend") && !text.contains('\x1b'),
            "{text}"
        );
        assert!(text.lines().all(|line| table::visible(line) <= 80));
    }
}
