//! Formats: which columns a source has, and which format its columns tell.

use anyhow::anyhow;
use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::record::nearest;

/// What the rows of a source look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Found from the first rows.
    #[default]
    Auto,
    /// `{text}`.
    Text,
    /// `{prompt, completion}`.
    PromptCompletion,
    /// `{messages: [{role, content}]}`, or ShareGPT's `{conversations: [{from, value}]}`.
    Messages,
    /// `{instruction, input, output}`, and if there `system` and `history`; becomes messages.
    Alpaca,
    /// `{chosen, rejected}`, and if there what they answer.
    Preference,
    /// `{completions}`, best first or with `ranks` or `scores`, and if there what they answer.
    Ranking,
    /// `{completion, label}` or `{messages, label}`, where the label is true or false.
    Unpaired,
    /// `{completion, score}`, `{messages, score}` or `{text, score}`.
    Scored,
    /// `{text, label}`.
    Labelled,
    /// `{question, choices, answer}`, or a column for each choice, `{question, A, B, answer}`.
    Choices,
}

/// Where the question of a row with completions may stand.
const ASKED: &[&str] = &[
    "prompt",
    "conversations",
    "messages",
    "instruction",
    "input",
    "system",
    "history",
];

/// The columns of a table's choices, a letter each.
pub(crate) const CHOICE_COLUMNS: &[&str] = &["A", "B", "C", "D", "E", "F", "G", "H", "I", "J"];

impl Format {
    /// Every format that a source may have.
    pub const ALL: &[Format] = &[
        Format::Text,
        Format::PromptCompletion,
        Format::Messages,
        Format::Alpaca,
        Format::Preference,
        Format::Ranking,
        Format::Unpaired,
        Format::Scored,
        Format::Labelled,
        Format::Choices,
    ];

    /// The name in recipes and messages.
    pub fn name(self) -> &'static str {
        match self {
            Format::Auto => "auto",
            Format::Text => "text",
            Format::PromptCompletion => "prompt-completion",
            Format::Messages => "messages",
            Format::Alpaca => "alpaca",
            Format::Preference => "preference",
            Format::Ranking => "ranking",
            Format::Unpaired => "unpaired",
            Format::Scored => "scored",
            Format::Labelled => "labelled",
            Format::Choices => "choices",
        }
    }

    /// The format with this name.
    pub fn from_name(name: &str) -> Option<Format> {
        let mut all = std::iter::once(Format::Auto).chain(Format::ALL.iter().copied());
        all.find(|format| format.name() == name)
    }

    /// The layout of the rows that it gives; `None` for `Auto`.
    pub fn layout(self) -> Option<Layout> {
        match self {
            Format::Auto => None,
            Format::Text => Some(Layout::Text),
            Format::PromptCompletion => Some(Layout::PromptCompletion),
            Format::Messages | Format::Alpaca => Some(Layout::Messages),
            Format::Preference => Some(Layout::Preference),
            Format::Ranking => Some(Layout::Ranking),
            Format::Unpaired => Some(Layout::Unpaired),
            Format::Scored => Some(Layout::Scored),
            Format::Labelled => Some(Layout::Labelled),
            Format::Choices => Some(Layout::Choices),
        }
    }

    /// The columns that each row must have: one of each group.
    pub(crate) fn required(self) -> &'static [&'static [&'static str]] {
        match self {
            Format::Auto => &[],
            Format::Text => &[&["text"]],
            Format::PromptCompletion => &[&["prompt"], &["completion"]],
            Format::Messages => &[&["messages", "conversations"]],
            Format::Alpaca => &[&["instruction"], &["output"]],
            Format::Preference => &[&["chosen"], &["rejected"]],
            Format::Ranking => &[&["completions"]],
            Format::Unpaired => &[&["completion", "messages", "conversations"], &["label"]],
            Format::Scored => &[
                &["completion", "messages", "conversations", "text"],
                &["score"],
            ],
            Format::Labelled => &[&["text"], &["label"]],
            Format::Choices => &[
                &[
                    "question",
                    "prompt",
                    "messages",
                    "conversations",
                    "instruction",
                ],
                &["choices", "A"],
                &["answer", "answerKey"],
            ],
        }
    }

    /// The columns that a row may have besides.
    fn optional(self) -> impl Iterator<Item = &'static str> {
        let (asked, own): (bool, &[&str]) = match self {
            Format::Alpaca => (false, &["input", "system", "history"]),
            Format::Preference => (
                true,
                &[
                    "margin",
                    "chosen_score",
                    "rejected_score",
                    "score_chosen",
                    "score_rejected",
                ],
            ),
            Format::Ranking => (true, &["ranks", "scores"]),
            Format::Unpaired | Format::Scored => (true, &[]),
            Format::Choices => (true, CHOICE_COLUMNS),
            _ => (false, &[]),
        };
        let asked = if asked { ASKED } else { &[] };
        asked.iter().chain(own).copied()
    }

    /// Every column that it reads; some are named twice.
    pub(crate) fn columns(self) -> impl Iterator<Item = &'static str> {
        self.required()
            .iter()
            .flat_map(|group| group.iter().copied())
            .chain(self.optional())
    }

    /// Whether these columns have all that it requires.
    pub(crate) fn fits<'a>(self, columns: impl Iterator<Item = &'a str> + Clone) -> bool {
        self.required()
            .iter()
            .all(|group| columns.clone().any(|column| group.contains(&column)))
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.name())
    }
}

/// The one format of those that fit which is meant, or all that may be.
///
/// Nothing but a preference has a chosen and a rejected side, nothing but a ranking has completions, and nothing but a question has
/// choices with an answer; a label that is
/// true or false (`yes_or_no`) is that of a completion. A score or another label may be meant or not.
pub(crate) fn choose(mut fitting: Vec<Format>, yes_or_no: bool) -> Result<Format, Vec<Format>> {
    let sure = |format: &Format| {
        matches!(
            format,
            Format::Preference | Format::Ranking | Format::Choices
        )
    };
    if fitting.iter().any(sure) {
        fitting.retain(sure);
    } else if !yes_or_no {
        fitting.retain(|format| *format != Format::Unpaired);
    } else if fitting.contains(&Format::Unpaired) {
        fitting.retain(|format| matches!(format, Format::Unpaired | Format::Scored));
    }
    match fitting[..] {
        [format] => Ok(format),
        _ => Err(fitting),
    }
}

/// Why no format was taken, and the way out.
pub(crate) fn undecided(file: &str, keys: &[&str], candidates: &[Format]) -> anyhow::Error {
    let describe = |format: &Format| {
        let required: Vec<String> = format
            .required()
            .iter()
            .map(|group| group.join(" or "))
            .collect();
        format!("{} {{{}}}", format, required.join(", "))
    };
    let known = Format::ALL
        .iter()
        .map(describe)
        .collect::<Vec<_>>()
        .join(", ");
    let keys_shown = keys.join(", ");
    if candidates.len() > 1 {
        let fitting = candidates
            .iter()
            .map(|format| format.name())
            .collect::<Vec<_>>()
            .join(", ");
        return anyhow!(
            "{file}: the columns {{{keys_shown}}} fit several formats ({fitting}); say which one with `format`"
        );
    }
    // A format of which one column is missing is meant rather than one of which more are.
    let mut near: Vec<(usize, &str, &str, Format)> = Vec::new();
    for format in Format::ALL {
        let missing = format
            .required()
            .iter()
            .filter(|group| !group.iter().any(|c| keys.contains(c)));
        let missing: Vec<_> = missing.collect();
        for column in missing.iter().flat_map(|group| group.iter()) {
            if let Some(key) = nearest(column, keys.iter().copied()) {
                near.push((missing.len(), column, key, *format));
            }
        }
    }
    let hint = match near.iter().min_by_key(|(missing, ..)| *missing) {
        None => String::new(),
        Some((_, column, key, format)) => format!(
            "; is `{key}` the `{column}` of format {format}? (columns: {{ {column}: {key} }})"
        ),
    };
    anyhow!(
        "{file}: the columns {{{keys_shown}}} fit no format (known: {known}){hint}; name columns with `columns`"
    )
}
