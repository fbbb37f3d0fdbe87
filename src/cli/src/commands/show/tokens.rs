//! Rows as tokens, coloured by whether they are trained on; special tokens and truncation are visible.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use engine::artifact::{ArtifactType, ArtifactView};
use engine::digest::Digest;
use engine::plan::Feed;
use engine::session::Session;
use formats::TokenizerFiles;
use serde_json::{Value, json};

use super::dataset::span;
use super::token_rows::TokenRows;
use super::{artifact, find};
use crate::failure::Failure;
use crate::style::Style;
use crate::units;

/// Tokens of one row that are drawn; `--json` prints all.
const LIMIT: usize = 1500;
/// A character may be spread over this many tokens.
const SPREAD: usize = 8;

/// The tokens of a stage: its own output, or those that its preparation made for it.
pub(super) fn find_tokens(session: &Session, reference: &str) -> Result<(usize, Digest)> {
    let node = find(session, reference)?;
    let nodes = &session.plan.nodes;
    let makes_tokens = |index: usize| {
        nodes[index]
            .contract
            .outputs
            .first()
            .is_some_and(|o| o.is(ArtifactType::Tokens))
    };
    let found = match makes_tokens(node) {
        true => Some(node),
        false => (0..nodes.len()).find(|i| nodes[*i].owner == Some(node) && makes_tokens(*i)),
    };
    let found = found.ok_or_else(|| {
        let able: Vec<_> = (0..nodes.len())
            .filter(|i| makes_tokens(*i))
            .filter_map(|i| nodes[i].owner)
            .map(|o| format!("`{}`", nodes[o].name))
            .collect();
        let help = if able.is_empty() {
            "no stage of this recipe does".to_owned()
        } else {
            format!("these do: {}", able.join(", "))
        };
        Failure::usage(format_args!("`{reference}` reads no tokens; {help}"))
    })?;
    artifact(session, &nodes[found].name)
}

/// A file of tokens with the tokenizer that made it.
pub(super) struct TokensView<'a> {
    view: &'a ArtifactView,
    tokens: TokenRows,
    words: Words,
    max_length: Option<usize>,
}

type Decode = Box<dyn Fn(&[u32]) -> String>;

/// Token ids → text.
struct Words {
    files: TokenizerFiles,
    decode: Decode,
    special: HashMap<u32, String>,
}

impl<'a> TokensView<'a> {
    pub fn open(session: &Session, node: usize, view: &'a ArtifactView) -> Result<Self> {
        let tokens = TokenRows::open(view)?;
        let max_length = session.plan.nodes[node]
            .params
            .get("max_length")
            .and_then(Value::as_u64)
            .map(|n| n as usize);
        Ok(Self {
            view,
            tokens,
            words: Words::of(&tokenizer(session, node, view)?)?,
            max_length,
        })
    }

    pub fn text(&self, rows: usize, style: Style) -> Result<String> {
        let mut out = self.head(style);
        for index in 0..rows.min(self.tokens.len()) {
            let row = self.tokens.row(index)?;
            let trained = row.mask.iter().filter(|t| **t).count();
            out.push_str(&format!(
                "\n{}\n",
                style.bold(&format!(
                    "row {index}{}: {}, {} trained",
                    row.place(),
                    units::plural(row.ids.len(), "token"),
                    units::count(trained as u64)
                ))
            ));
            out.push_str(&draw(&self.words.pieces(row.ids, &row.mask), style));
            out.push('\n');
            if self.truncated(row.ids) {
                out.push_str(&style.yellow(&format!(
                    "✂ cut off after {} tokens\n",
                    units::count(row.ids.len() as u64)
                )));
            }
        }
        if self.tokens.len() > rows {
            out.push_str(&style.dim(&format!(
                "\n{}; `--rows COUNT` prints more\n",
                units::plural(self.tokens.len() - rows, "more row")
            )));
        }
        Ok(out)
    }

    fn head(&self, style: Style) -> String {
        let number = |key: &str| {
            self.view
                .summary
                .get(key)
                .and_then(Value::as_u64)
                .map(units::count)
        };
        let mut parts = vec![units::plural(self.tokens.len(), "row")];
        parts.extend(number("tokens").map(|n| format!("{n} tokens")));
        parts.extend(number("trained").map(|n| format!("{n} trained")));
        parts.extend(number("groups").map(|n| format!("{n} groups")));
        parts.extend(number("completion_tokens").map(|n| format!("{n} tokens of completions")));
        parts.extend(
            number("truncated")
                .filter(|n| n != "0")
                .map(|n| format!("{n} rows cut off")),
        );
        let mut out = format!("  {}\n", parts.join(", "));
        if let Some(lengths) = self.view.summary.get("lengths") {
            out.push_str(&format!("  tokens in a row: {}\n", span(lengths)));
        }
        let special = |name: &str, token: &Option<String>| {
            token
                .as_ref()
                .map(|t| format!("{name} {}", style.yellow(t)))
        };
        let ends: Vec<String> = special("BOS", &self.words.files.bos_token)
            .into_iter()
            .chain(special("EOS", &self.words.files.eos_token))
            .collect();
        let legend = match style.color {
            true => format!(
                "{} {}",
                style.shaded(TRAINED[0], "trained"),
                style.shaded(REST[0], "not trained")
            ),
            false => "⟦trained⟧ not trained".to_owned(),
        };
        out.push_str(&format!(
            "  {legend}{}{}\n",
            if ends.is_empty() { "" } else { ", " },
            ends.join(", ")
        ));
        out
    }

    /// A row as long as rows may be that does not end where a text ends.
    fn truncated(&self, ids: &[i32]) -> bool {
        let ended = ids
            .last()
            .and_then(|id| self.words.special.get(&(*id as u32)));
        let files = &self.words.files;
        let separator = files.masking.as_ref().map(|masking| &masking.sep_token);
        let ends = [files.eos_token.as_ref(), separator];
        self.max_length == Some(ids.len()) && ended.is_none_or(|text| !ends.contains(&Some(text)))
    }

    pub fn to_json(&self, rows: usize) -> Result<Value> {
        let mut list = Vec::new();
        for index in 0..rows.min(self.tokens.len()) {
            let row = self.tokens.row(index)?;
            let pieces = self.words.pieces(row.ids, &row.mask).into_iter();
            let text: String = pieces.map(|p| p.text).collect();
            let mut entry = json!({ "input_ids": row.ids, "trained": row.mask, "text": text, "truncated": self.truncated(row.ids) });
            if let Some((group, value)) = row.completion {
                entry["group"] = json!(group);
                entry["value"] = json!(value);
            }
            list.push(entry);
        }
        Ok(json!({
            "count": self.tokens.len(),
            "bos": self.words.files.bos_token,
            "eos": self.words.files.eos_token,
            "rows": list,
        }))
    }
}

/// The tokenizer: the artifact's own reference, or what fed the node.
fn tokenizer(session: &Session, node: usize, view: &ArtifactView) -> Result<ArtifactView> {
    if let Some(own) = view.refs.get("tokenizer") {
        return Ok(own.clone());
    }
    let standings = session.standings();
    let known = |index: usize| standings[index].known();
    for feed in session.plan.nodes[node].inputs.values() {
        let Feed::One(pick) = feed else { continue };
        let Ok(digest) = session.plan.digest(pick, &known) else {
            continue;
        };
        let found = session.cache.view(digest)?;
        if found.artifact == ArtifactType::Tokenizer {
            return Ok(found);
        }
    }
    anyhow::bail!(
        "the tokenizer that made `{}` is not in the cache; `levain run` makes it again",
        session.plan.nodes[node].name
    )
}

/// A few tokens that make whole characters.
struct Piece {
    text: String,
    trained: bool,
    special: bool,
}

impl Words {
    fn of(view: &ArtifactView) -> Result<Self> {
        let files = TokenizerFiles::from_folder_files(&view.files)
            .context("the tokenizer in the cache can't be read")?;
        let tokenizer = files.tokenizer()?;
        let special = tokenizer
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (id, token.content))
            .collect();
        let decode = Box::new(move |ids: &[u32]| {
            tokenizer
                .decode(ids, false)
                .unwrap_or_else(|_| ids.iter().map(|id| format!("<{id}>")).collect())
        });
        Ok(Self {
            files,
            decode,
            special,
        })
    }

    /// The row in pieces, each of one colour. A tokenizer's decoder may drop the space before a text's first word, so a piece
    /// is what decoding it adds to what is before it.
    fn pieces(&self, ids: &[i32], mask: &[bool]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < ids.len() {
            let id = ids[at] as u32;
            let trained = mask.get(at).copied().unwrap_or(false);
            if let Some(text) = self.special.get(&id) {
                pieces.push(Piece {
                    text: text.clone(),
                    trained,
                    special: true,
                });
                at += 1;
                continue;
            }
            let before: Vec<u32> = ids[at.saturating_sub(1)..at]
                .iter()
                .map(|id| *id as u32)
                .collect();
            let head = (self.decode)(&before);
            let mut end = at + 1;
            let text = loop {
                let all: Vec<u32> = before
                    .iter()
                    .copied()
                    .chain(ids[at..end].iter().map(|id| *id as u32))
                    .collect();
                let text = (self.decode)(&all);
                let text = text
                    .strip_prefix(&head)
                    .map_or_else(|| (self.decode)(&all[before.len()..]), ToOwned::to_owned);
                // A character that is not whole yet is drawn as U+FFFD: the next token may complete it.
                let same = end < ids.len()
                    && mask.get(end) == Some(&trained)
                    && !self.special.contains_key(&(ids[end] as u32));
                if !text.ends_with('\u{fffd}') || end - at >= SPREAD || !same {
                    break text;
                }
                end += 1;
            };
            pieces.push(Piece {
                text,
                trained,
                special: false,
            });
            at = end;
        }
        pieces
    }
}

/// Backgrounds of trained tokens, in turn.
const TRAINED: [&str; 2] = ["30;42", "30;102"];
/// Backgrounds of the others.
const REST: [&str; 2] = ["37", "90"];

/// With colours every token has its own shade; without, brackets stand around what is trained.
fn draw(pieces: &[Piece], style: Style) -> String {
    let mut out = String::new();
    let mut inside = false;
    for (index, piece) in pieces.iter().take(LIMIT).enumerate() {
        if !style.color && piece.trained != inside {
            out.push(if piece.trained { '⟦' } else { '⟧' });
            inside = piece.trained;
        }
        // A line's end is drawn, and then made.
        for (number, part) in piece.text.split('\n').enumerate() {
            if number > 0 {
                out.push_str(&format!("{}\n", style.dim("⏎")));
            }
            let code = match (piece.trained, piece.special) {
                (true, true) => "1;33;42",
                (false, true) => "1;33",
                (true, false) => TRAINED[index % 2],
                (false, false) => REST[index % 2],
            };
            out.push_str(&style.shaded(code, &visible(part)));
        }
    }
    if inside {
        out.push('⟧');
    }
    if pieces.len() > LIMIT {
        out.push_str(&format!(
            " … {} more",
            units::count((pieces.len() - LIMIT) as u64)
        ));
    }
    out
}

/// Control characters would confuse a terminal.
fn visible(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, trained: bool, special: bool) -> Piece {
        Piece {
            text: text.to_owned(),
            trained,
            special,
        }
    }

    #[test]
    fn brackets_mark_what_is_trained() {
        let pieces = [
            piece("<s>", false, true),
            piece("Hi\n", false, false),
            piece("Hello", true, false),
            piece("</s>", true, true),
        ];
        assert_eq!(draw(&pieces, Style::default()), "<s>Hi⏎\n⟦Hello</s>⟧");
        let pieces = [
            piece("a", true, false),
            piece("b", false, false),
            piece("\x1b", true, false),
        ];
        assert_eq!(draw(&pieces, Style::default()), "⟦a⟧b⟦\u{fffd}⟧");
    }

    #[test]
    fn colours_mark_what_is_trained() {
        let pieces = [piece("a", false, false), piece("b", true, false)];
        assert_eq!(
            draw(&pieces, Style { color: true }),
            "\x1b[37ma\x1b[0m\x1b[30;102mb\x1b[0m"
        );
    }
}
