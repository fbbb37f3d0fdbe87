//! Rows: one variant for each layout, and their values column by column.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::layout::{Layout, Message, Prompt};

/// One row of a dataset.
// In JSON the fields tell which one it is, so a layout comes before another that has a part of its fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Row {
    /// A row of [`Layout::Preference`].
    Preference {
        /// What both completions answer.
        prompt: Prompt,
        /// The better completion.
        chosen: String,
        /// The other one.
        rejected: String,
        /// By how much the chosen one is better (the difference of their scores), when that is known.
        margin: Option<f64>,
    },
    /// A row of [`Layout::Ranking`].
    Ranking {
        /// What the completions answer.
        prompt: Prompt,
        /// Two or more, the best one first.
        completions: Vec<String>,
    },
    /// A row of [`Layout::Choices`].
    Choices {
        /// The question.
        prompt: Prompt,
        /// Two or more different answers.
        choices: Vec<String>,
        /// The place of the right one, from 0.
        answer: u32,
    },
    /// A row of [`Layout::Unpaired`].
    Unpaired {
        /// What the completion answers.
        prompt: Prompt,
        /// The completion.
        completion: String,
        /// Whether the model should write such a completion.
        desirable: bool,
    },
    /// A row of [`Layout::Scored`].
    Scored {
        /// What the completion answers; empty when a text alone has the score.
        prompt: Prompt,
        /// The completion.
        completion: String,
        /// How good it is.
        score: f64,
    },
    /// A row of [`Layout::Labelled`].
    Labelled {
        /// The text.
        text: String,
        /// What kind of text it is.
        label: String,
    },
    /// A row of [`Layout::Text`].
    Text {
        /// The text.
        text: String,
    },
    /// A row of [`Layout::PromptCompletion`].
    PromptCompletion {
        /// The text that the model is given.
        prompt: String,
        /// The text that it should write.
        completion: String,
    },
    /// A row of [`Layout::Messages`].
    Messages {
        /// The turns, in order.
        messages: Vec<Message>,
    },
}

/// One value of a row, in the order of [`Layout::columns`].
#[derive(Clone, Debug, PartialEq)]
pub enum Cell<'a> {
    /// A value of [`ColumnKind::Text`](crate::layout::ColumnKind::Text).
    Text(Cow<'a, str>),
    /// A value of [`ColumnKind::Texts`](crate::layout::ColumnKind::Texts).
    Texts(Cow<'a, [String]>),
    /// A value of [`ColumnKind::Messages`](crate::layout::ColumnKind::Messages).
    Messages(Cow<'a, [Message]>),
    /// A value of [`ColumnKind::Bool`](crate::layout::ColumnKind::Bool).
    Bool(bool),
    /// A value of [`ColumnKind::Number`](crate::layout::ColumnKind::Number).
    Number(f64),
    /// A value of [`ColumnKind::OptionalNumber`](crate::layout::ColumnKind::OptionalNumber).
    OptionalNumber(Option<f64>),
    /// A value of [`ColumnKind::Index`](crate::layout::ColumnKind::Index).
    Index(u32),
}

impl Row {
    /// The layout that the row belongs to.
    pub fn layout(&self) -> Layout {
        match self {
            Row::Text { .. } => Layout::Text,
            Row::PromptCompletion { .. } => Layout::PromptCompletion,
            Row::Messages { .. } => Layout::Messages,
            Row::Preference { .. } => Layout::Preference,
            Row::Ranking { .. } => Layout::Ranking,
            Row::Unpaired { .. } => Layout::Unpaired,
            Row::Scored { .. } => Layout::Scored,
            Row::Labelled { .. } => Layout::Labelled,
            Row::Choices { .. } => Layout::Choices,
        }
    }

    /// The values in the order of the layout's columns.
    pub fn cells(&self) -> Vec<Cell<'_>> {
        match self {
            Row::Text { text } => vec![Cell::Text(text.into())],
            Row::PromptCompletion { prompt, completion } => {
                vec![Cell::Text(prompt.into()), Cell::Text(completion.into())]
            }
            Row::Messages { messages } => vec![Cell::Messages(messages.into())],
            Row::Preference {
                prompt,
                chosen,
                rejected,
                margin,
            } => vec![
                Cell::Messages(prompt.to_messages()),
                Cell::Text(chosen.into()),
                Cell::Text(rejected.into()),
                Cell::OptionalNumber(*margin),
            ],
            Row::Ranking {
                prompt,
                completions,
            } => vec![
                Cell::Messages(prompt.to_messages()),
                Cell::Texts(completions.into()),
            ],
            Row::Unpaired {
                prompt,
                completion,
                desirable,
            } => vec![
                Cell::Messages(prompt.to_messages()),
                Cell::Text(completion.into()),
                Cell::Bool(*desirable),
            ],
            Row::Scored {
                prompt,
                completion,
                score,
            } => vec![
                Cell::Messages(prompt.to_messages()),
                Cell::Text(completion.into()),
                Cell::Number(*score),
            ],
            Row::Labelled { text, label } => {
                vec![Cell::Text(text.into()), Cell::Text(label.into())]
            }
            Row::Choices {
                prompt,
                choices,
                answer,
            } => vec![
                Cell::Messages(prompt.to_messages()),
                Cell::Texts(choices.into()),
                Cell::Index(*answer),
            ],
        }
    }

    /// The row with these values; `None` when they do not fit the layout.
    pub fn from_cells(layout: Layout, cells: Vec<Cell<'_>>) -> Option<Row> {
        let mut cells = cells.into_iter();
        let mut next = || cells.next();
        let row = match layout {
            Layout::Text => Row::Text {
                text: next()?.into_text()?,
            },
            Layout::PromptCompletion => Row::PromptCompletion {
                prompt: next()?.into_text()?,
                completion: next()?.into_text()?,
            },
            Layout::Messages => Row::Messages {
                messages: next()?.into_messages()?,
            },
            Layout::Preference => Row::Preference {
                prompt: next()?.into_prompt()?,
                chosen: next()?.into_text()?,
                rejected: next()?.into_text()?,
                margin: match next()? {
                    Cell::OptionalNumber(margin) => margin,
                    _ => return None,
                },
            },
            Layout::Ranking => Row::Ranking {
                prompt: next()?.into_prompt()?,
                completions: next()?.into_texts()?,
            },
            Layout::Unpaired => Row::Unpaired {
                prompt: next()?.into_prompt()?,
                completion: next()?.into_text()?,
                desirable: match next()? {
                    Cell::Bool(desirable) => desirable,
                    _ => return None,
                },
            },
            Layout::Scored => Row::Scored {
                prompt: next()?.into_prompt()?,
                completion: next()?.into_text()?,
                score: match next()? {
                    Cell::Number(score) => score,
                    _ => return None,
                },
            },
            Layout::Labelled => Row::Labelled {
                text: next()?.into_text()?,
                label: next()?.into_text()?,
            },
            Layout::Choices => Row::Choices {
                prompt: next()?.into_prompt()?,
                choices: next()?.into_texts()?,
                answer: match next()? {
                    Cell::Index(index) => index,
                    _ => return None,
                },
            },
        };
        cells.next().is_none().then_some(row)
    }

    /// What a model is asked by the row, and the answer that the row holds up to it, if it does.
    ///
    /// Of a conversation that is everything before the last turn of the assistant, and that turn; where nobody answered
    /// yet, the whole conversation asks. A completion that has only a score is no answer to hold up.
    pub fn question(&self) -> (Prompt, Option<&str>) {
        match self {
            Row::Text { text } | Row::Labelled { text, .. } => (Prompt::Text(text.clone()), None),
            Row::PromptCompletion { prompt, completion } => {
                (Prompt::Text(prompt.clone()), Some(completion))
            }
            Row::Messages { messages } => {
                let answer = messages.iter().rposition(|turn| turn.role == "assistant");
                match answer.filter(|at| *at > 0) {
                    None => (Prompt::Chat(messages.clone()), None),
                    Some(at) => (
                        Prompt::Chat(messages[..at].to_vec()),
                        Some(&messages[at].content),
                    ),
                }
            }
            Row::Preference { prompt, chosen, .. } => (prompt.clone(), Some(chosen)),
            Row::Ranking {
                prompt,
                completions,
            } => (prompt.clone(), completions.first().map(String::as_str)),
            Row::Unpaired {
                prompt,
                completion,
                desirable,
            } => (prompt.clone(), desirable.then_some(completion)),
            Row::Scored { prompt, .. } => (prompt.clone(), None),
            Row::Choices {
                prompt,
                choices,
                answer,
            } => {
                let right = choices.get(*answer as usize);
                (prompt.clone(), right.map(String::as_str))
            }
        }
    }

    /// Every text of the row, in order; roles and labels are not among them.
    pub fn texts(&self) -> Vec<&str> {
        let (prompt, rest): (_, Vec<&str>) = match self {
            Row::Text { text } | Row::Labelled { text, .. } => return vec![text],
            Row::PromptCompletion { prompt, completion } => return vec![prompt, completion],
            Row::Messages { messages } => return turns(messages).collect(),
            Row::Preference {
                prompt,
                chosen,
                rejected,
                ..
            } => (prompt, vec![chosen, rejected]),
            Row::Ranking {
                prompt,
                completions: texts,
            }
            | Row::Choices {
                prompt,
                choices: texts,
                ..
            } => (prompt, texts.iter().map(String::as_str).collect()),
            Row::Unpaired {
                prompt, completion, ..
            }
            | Row::Scored {
                prompt, completion, ..
            } => (prompt, vec![completion]),
        };
        match prompt {
            Prompt::Text(text) => [vec![text.as_str()], rest].concat(),
            Prompt::Chat(messages) => turns(messages).chain(rest).collect(),
        }
    }

    /// The same texts, to change.
    pub fn texts_mut(&mut self) -> Vec<&mut String> {
        let (prompt, rest) = match self {
            Row::Text { text } | Row::Labelled { text, .. } => return vec![text],
            Row::PromptCompletion { prompt, completion } => return vec![prompt, completion],
            Row::Messages { messages } => return turns_mut(messages).collect(),
            Row::Preference {
                prompt,
                chosen,
                rejected,
                ..
            } => (prompt, vec![chosen, rejected]),
            Row::Ranking {
                prompt,
                completions: texts,
            }
            | Row::Choices {
                prompt,
                choices: texts,
                ..
            } => (prompt, texts.iter_mut().collect()),
            Row::Unpaired {
                prompt, completion, ..
            }
            | Row::Scored {
                prompt, completion, ..
            } => (prompt, vec![completion]),
        };
        match prompt {
            Prompt::Text(text) => std::iter::once(text).chain(rest).collect(),
            Prompt::Chat(messages) => turns_mut(messages).chain(rest).collect(),
        }
    }

    /// The number of characters in all texts of the row.
    pub fn characters(&self) -> u64 {
        let count = |text: &str| text.chars().count() as u64;
        self.texts().into_iter().map(count).sum()
    }

    /// Whether a file can hold the row; the error says what is wrong with it.
    ///
    /// Numbers are finite, a ranking has two completions at least, a question two choices of which one is right, and a conversation as
    /// a prompt has turns.
    pub fn check(&self) -> Result<(), String> {
        let (prompt, number) = match self {
            Row::Text { .. }
            | Row::PromptCompletion { .. }
            | Row::Messages { .. }
            | Row::Labelled { .. } => return Ok(()),
            Row::Preference { prompt, margin, .. } => (prompt, *margin),
            Row::Ranking { prompt, .. }
            | Row::Unpaired { prompt, .. }
            | Row::Choices { prompt, .. } => (prompt, None),
            Row::Scored { prompt, score, .. } => (prompt, Some(*score)),
        };
        if let Some(number) = number.filter(|number| !number.is_finite()) {
            return Err(format!("the number {number} is not finite"));
        }
        if let Row::Ranking { completions, .. } = self
            && completions.len() < 2
        {
            let found = if completions.is_empty() {
                "none"
            } else {
                "one"
            };
            return Err(format!(
                "a ranking has two completions or more, this one has {found}"
            ));
        }
        if let Row::Choices {
            choices, answer, ..
        } = self
        {
            let count = choices.len();
            enough(count)?;
            if *answer as usize >= count {
                return Err(format!(
                    "the answer is choice {answer}, counted from 0, and there are {count}"
                ));
            }
        }
        if prompt.is_ambiguous() {
            return Err("a conversation as a prompt has a turn of a known role".to_owned());
        }
        Ok(())
    }
}

/// Whether there is something to choose from.
pub(crate) fn enough(choices: usize) -> Result<(), String> {
    let found = match choices {
        0 => "none",
        1 => "one",
        _ => return Ok(()),
    };
    Err(format!(
        "a question has two choices or more, this one has {found}"
    ))
}

fn turns(messages: &[Message]) -> impl Iterator<Item = &str> {
    messages.iter().map(|turn| turn.content.as_str())
}

fn turns_mut(messages: &mut [Message]) -> impl Iterator<Item = &mut String> {
    messages.iter_mut().map(|turn| &mut turn.content)
}

impl Cell<'_> {
    /// The bytes that it takes, roughly.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Cell::Text(text) => text.len(),
            Cell::Texts(texts) => texts.iter().map(String::len).sum(),
            Cell::Messages(messages) => messages
                .iter()
                .map(|turn| turn.role.len() + turn.content.len())
                .sum(),
            Cell::Bool(_) => 1,
            Cell::Number(_) | Cell::OptionalNumber(_) => 8,
            Cell::Index(_) => 4,
        }
    }

    fn into_text(self) -> Option<String> {
        match self {
            Cell::Text(text) => Some(text.into_owned()),
            _ => None,
        }
    }

    fn into_texts(self) -> Option<Vec<String>> {
        match self {
            Cell::Texts(texts) => Some(texts.into_owned()),
            _ => None,
        }
    }

    fn into_messages(self) -> Option<Vec<Message>> {
        match self {
            Cell::Messages(messages) => Some(messages.into_owned()),
            _ => None,
        }
    }

    fn into_prompt(self) -> Option<Prompt> {
        self.into_messages().map(Prompt::from_messages)
    }
}
