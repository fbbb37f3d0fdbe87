//! One row to token ids and their loss mask.
//!
//! The reference is TRL's `SFTTrainer` (1.16). Text and prompt-completion rows end in the EOS token, and a completion
//! begins where the tokens of the prompt alone and of the whole row diverge. Conversations are tokenized as the template
//! renders them, without further special tokens. What the assistant said is known from `{% generation %}`, or else from
//! two renderings of the beginning of the conversation: up to the turn with a generation prompt, and with the turn. So the
//! end-of-turn token that the template writes is trained.

mod continuation;
mod group;
mod pieces;
mod repeated;
mod whole;

use std::collections::HashSet;
use std::ops::Range;

use anyhow::{Context, Result, anyhow, bail};
use formats::tokenizer::TokenizerFiles;
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use crate::layout::{Message, Prompt};
use crate::python::Moment;
use crate::row::Row;
use crate::template::{ChatTemplate, SpecialTokens, turns};

pub use group::Group;
pub use pieces::Piece;

/// Which tokens are targets of the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossOn {
    /// Completions, and all turns of the assistant; of running text everything.
    #[default]
    Completions,
    /// The last turn of the assistant only.
    LastTurn,
    /// Everything.
    All,
}

/// A tokenized row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The token ids.
    pub ids: Vec<u32>,
    /// For each id whether it is a target of the loss; the first never is, since nothing predicts it.
    pub trained: Vec<bool>,
    /// Places where a token spans the boundary between prompt and completion: at inference the prompt is cut elsewhere.
    pub merged_boundaries: u64,
    /// Turns of the assistant before any other turn: there is no prompt to answer, so they are not trained.
    pub opening_turns: u64,
    /// Whether the text began with the BOS token already, so that none was added.
    pub had_bos: bool,
}

/// A tokenizer with its template and special tokens, ready for rows.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    tokens: SpecialTokens,
    /// What the tokenizer puts before and after a text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    eos: Option<u32>,
    bos: Option<u32>,
    /// What stands for a hidden token, in an encoder's tokenizer.
    mask: Option<u32>,
    special: HashSet<u32>,
}

impl Encoder {
    /// Makes an encoder. Truncation and padding that the tokenizer was saved with are switched off.
    ///
    /// Errors when a special token is not in the vocabulary.
    pub fn new(
        mut tokenizer: Tokenizer,
        tokens: SpecialTokens,
        template: Option<ChatTemplate>,
    ) -> Result<Encoder> {
        tokenizer
            .with_truncation(None)
            .map_err(|error| anyhow!("tokenizer: {error}"))?;
        tokenizer.with_padding(None);
        let id = |name: &str, token: &Option<String>| -> Result<Option<u32>> {
            token
                .as_deref()
                .map(|token| {
                    let id = tokenizer.token_to_id(token);
                    id.with_context(|| {
                        format!("tokenizer: the {name} token `{token}` is not in its vocabulary")
                    })
                })
                .transpose()
        };
        let (bos, eos) = (id("BOS", &tokens.bos)?, id("EOS", &tokens.eos)?);
        let added = tokenizer.get_added_tokens_decoder();
        let special = added
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| id)
            .collect();
        let mut encoder = Encoder {
            tokenizer,
            template,
            tokens,
            prefix: Vec::new(),
            suffix: Vec::new(),
            eos,
            bos,
            mask: None,
            special,
        };
        // What the post-processor adds is seen on a probe.
        let plain = encoder.plain("a")?;
        let wrapped = encoder
            .tokenizer
            .encode_fast("a", true)
            .map_err(|error| anyhow!("tokenizer: {error}"))?;
        let wrapped = wrapped.get_ids();
        if let Some(at) = wrapped
            .windows(plain.len().max(1))
            .position(|window| window == plain)
        {
            encoder.prefix = wrapped[..at].to_vec();
            encoder.suffix = wrapped[at + plain.len()..].to_vec();
        }
        Ok(encoder)
    }

    /// The encoder of a model's tokenizer files; `now` is for templates that write a date.
    pub fn from_files(files: &TokenizerFiles, now: Option<Moment>) -> Result<Encoder> {
        let tokens = SpecialTokens {
            bos: files.bos_token.clone(),
            eos: files.eos_token.clone(),
            pad: files.pad_token.clone(),
            unk: files.unk_token.clone(),
        };
        let template = files
            .chat_template
            .as_deref()
            .map(|source| ChatTemplate::new(source, &tokens, now));
        let mut encoder = Encoder::new(files.tokenizer()?, tokens, template.transpose()?)?;
        if let Some(masking) = &files.masking {
            let token = &masking.mask_token;
            let id = encoder.tokenizer.token_to_id(token);
            let id = id.with_context(|| {
                format!("tokenizer: the mask token `{token}` is not in its vocabulary")
            })?;
            encoder.mask = Some(id);
        }
        Ok(encoder)
    }

    /// The tokenizer itself.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template, if the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The id of the EOS token.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The id of the padding token.
    pub fn pad(&self) -> Option<u32> {
        self.tokenizer.token_to_id(self.tokens.pad.as_deref()?)
    }

    /// The id of the BOS token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The id of the token that stands for a hidden one; a language model's tokenizer has none.
    pub fn mask(&self) -> Option<u32> {
        self.mask
    }

    /// How many special tokens the tokenizer puts before and behind a text.
    pub fn tokens_around(&self) -> usize {
        self.prefix.len() + self.suffix.len()
    }

    /// Whether the tokenizer itself puts the BOS token before a text.
    pub fn adds_bos(&self) -> bool {
        self.bos.is_some_and(|bos| self.prefix.contains(&bos))
    }

    /// Whether `id` is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The text of `ids`.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.tokenizer
            .decode(ids, skip_special_tokens)
            .map_err(|error| anyhow!("tokenizer: {error}"))
    }

    /// The text of each token alone, to show a row token by token (part of a character shows as �).
    pub fn token_texts(&self, ids: &[u32]) -> Result<Vec<String>> {
        ids.iter().map(|id| self.decode(&[*id], false)).collect()
    }

    /// The ids that a model is given to answer a conversation, up to where the assistant begins.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.plain(&self.needed_template()?.render(messages, true)?)
    }

    /// The ids of running text that a model is given to continue: with BOS if the tokenizer adds one, without EOS.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = if self.begins_with_bos(text) {
            Vec::new()
        } else {
            self.prefix.clone()
        };
        ids.extend(self.plain(text)?);
        Ok(ids)
    }

    /// The ids that a model is given to answer a prompt: of plain text the text, of a conversation the turns and where
    /// the assistant begins.
    pub fn encode_prompt(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        match prompt {
            Prompt::Text(text) => self.encode_text(text),
            Prompt::Chat(messages) => self.encode_chat(messages),
        }
    }

    /// The tokens of a row and its loss mask.
    pub fn encode(&self, row: &Row, loss_on: LossOn) -> Result<Encoded> {
        let mut encoded = match row {
            Row::Text { text } => {
                let mut encoded = self.whole(text)?;
                encoded.trained = vec![true; encoded.ids.len()];
                encoded
            }
            Row::PromptCompletion { prompt, completion } => {
                let mut encoded = self.whole(&format!("{prompt}{completion}"))?;
                let alone = self.encode_text(prompt)?;
                let common = alone
                    .iter()
                    .zip(&encoded.ids)
                    .take_while(|(a, b)| a == b)
                    .count();
                encoded.merged_boundaries = u64::from(common < alone.len());
                let first = if loss_on == LossOn::All { 0 } else { common };
                encoded.trained = (0..encoded.ids.len()).map(|at| at >= first).collect();
                encoded
            }
            Row::Messages { messages } => self.conversation(messages, loss_on)?,
            other => bail!(
                "rows of layout {} have no loss mask: train on them by a kind that takes this layout",
                other.layout()
            ),
        };
        if let Some(first) = encoded.trained.first_mut() {
            *first = false;
        }
        Ok(encoded)
    }

    /// A text with EOS behind it, and BOS and whatever else the tokenizer adds.
    fn whole(&self, text: &str) -> Result<Encoded> {
        let had_bos = self.begins_with_bos(text);
        let ends = self
            .tokens
            .eos
            .as_deref()
            .is_none_or(|eos| text.ends_with(eos));
        let mut ids = if had_bos {
            Vec::new()
        } else {
            self.prefix.clone()
        };
        if ends {
            ids.extend(self.plain(text)?);
        } else {
            ids.extend(self.plain(&format!(
                "{text}{}",
                self.tokens.eos.as_deref().unwrap_or_default()
            ))?);
        }
        // One EOS is enough, also when the tokenizer adds one itself.
        if self.eos.is_none_or(|eos| self.suffix != [eos]) {
            ids.extend(&self.suffix);
        }
        Ok(Encoded {
            ids,
            had_bos,
            ..Encoded::default()
        })
    }

    fn begins_with_bos(&self, text: &str) -> bool {
        self.adds_bos()
            && self
                .tokens
                .bos
                .as_deref()
                .is_some_and(|bos| text.starts_with(bos))
    }

    fn plain(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|error| anyhow!("tokenizer: {error}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn needed_template(&self) -> Result<&ChatTemplate> {
        self.template
            .as_ref()
            .context("the tokenizer has no chat template, so conversations can't be put into text")
    }

    fn conversation(&self, messages: &[Message], loss_on: LossOn) -> Result<Encoded> {
        let template = self.needed_template()?;
        let values = turns(messages);
        let rendered = template.render_turns(&values, messages, false)?;
        let text = rendered.text;
        let mut opening_turns = 0;
        let mut spans: Vec<Range<usize>> = match (loss_on, rendered.generations) {
            (LossOn::All, _) => std::iter::once(0..text.len()).collect(),
            (_, Some(spans)) => spans,
            (_, None) => {
                let mut spans = Vec::new();
                for at in assistant_turns(messages, loss_on) {
                    if at == 0 {
                        opening_turns += 1;
                        continue;
                    }
                    let before = template
                        .render_turns(&values[..at], &messages[..at], true)?
                        .text;
                    let end = if at + 1 == messages.len() {
                        text.len()
                    } else {
                        let with = template
                            .render_turns(&values[..=at], &messages[..=at], false)?
                            .text;
                        prefix_length(&with, &text, at, loss_on)?
                    };
                    spans.push(prefix_length(&before, &text[..end], at, loss_on)?..end);
                }
                spans
            }
        };
        if loss_on == LossOn::LastTurn && spans.len() > 1 {
            spans.drain(..spans.len() - 1);
        }
        let encoding = self
            .tokenizer
            .encode(text.as_str(), false)
            .map_err(|error| anyhow!("tokenizer: {error}"))?;
        let (trained, merged_boundaries) = mask(encoding.get_offsets(), &spans);
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            trained,
            merged_boundaries,
            opening_turns,
            had_bos: false,
        })
    }
}

/// The turns of the assistant that are trained, by their index.
fn assistant_turns(messages: &[Message], loss_on: LossOn) -> Vec<usize> {
    let mut turns: Vec<usize> = messages
        .iter()
        .enumerate()
        .filter(|(_, turn)| turn.role == "assistant")
        .map(|(at, _)| at)
        .collect();
    if loss_on == LossOn::LastTurn && turns.len() > 1 {
        turns.drain(..turns.len() - 1);
    }
    turns
}

/// The length of `part` if `whole` begins with it.
fn prefix_length(part: &str, whole: &str, turn: usize, loss_on: LossOn) -> Result<usize> {
    if whole.starts_with(part) {
        return Ok(part.len());
    }
    let same = part
        .bytes()
        .zip(whole.bytes())
        .take_while(|(a, b)| a == b)
        .count();
    let show = |text: &str| {
        let start = (0..=same)
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        text[start..].chars().take(30).collect::<String>()
    };
    let way_out = if loss_on == LossOn::LastTurn {
        "use a template with {% generation %} tags"
    } else {
        "use a template with {% generation %} tags, or train on the last turn only (loss_on: last_turn)"
    };
    bail!(
        "the chat template writes the beginning of this conversation, up to turn {}, in another way when more turns \
         follow ({:?} instead of {:?}), so what the assistant said there can't be told from its prompt; {way_out}",
        turn + 1,
        show(whole),
        show(part)
    )
}

/// Which tokens lie in the spans of bytes (rising), and how many boundaries fall inside a token.
///
/// A token covers the bytes from the end of the one before to its own end: byte-level tokenizers leave the white space
/// at a token's begin out of its offsets. A token that holds a part of a span is trained, as in TRL.
fn mask(offsets: &[(usize, usize)], spans: &[Range<usize>]) -> (Vec<bool>, u64) {
    let mut trained = Vec::with_capacity(offsets.len());
    let mut merged = 0;
    let mut spans = spans.iter().peekable();
    let mut before = 0;
    for (_, end) in offsets {
        let end = *end;
        // A span is over when a token begins at or after its end, unless the token is another part of its last character.
        while spans
            .next_if(|span| before >= span.end && end > span.end)
            .is_some()
        {}
        let next = spans.peek().filter(|span| end > span.start);
        merged += u64::from(next.is_some_and(|span| before < span.start));
        let inside = next.is_some();
        trained.push(inside);
        before = before.max(end);
    }
    (trained, merged)
}

#[cfg(test)]
mod tests {
    use super::mask;

    #[test]
    fn tokens_of_a_span_are_trained() {
        // Bytes:   prompt 0..4, answer 4..8, prompt 8..10, answer 10..12.
        let (trained, merged) = mask(
            &[(0, 4), (4, 6), (6, 8), (8, 10), (10, 12)],
            &[4..8, 10..12],
        );
        assert_eq!(trained, [false, true, true, false, true]);
        assert_eq!(merged, 0);
    }

    #[test]
    fn white_space_left_out_of_offsets_belongs_to_its_token() {
        // A byte-level tokenizer says (4, 4) for a token that is all white space.
        let (trained, merged) = mask(&[(0, 2), (4, 4), (5, 8)], std::slice::from_ref(&(2..4)));
        assert_eq!(trained, [false, true, false]);
        assert_eq!(merged, 0);
    }

    #[test]
    fn parts_of_one_character_share_its_offsets() {
        let (trained, _) = mask(
            &[(0, 2), (2, 6), (2, 6), (2, 6), (6, 7)],
            std::slice::from_ref(&(2..6)),
        );
        assert_eq!(trained, [false, true, true, true, false]);
    }

    #[test]
    fn a_token_across_the_boundary_is_trained_and_counted() {
        let (trained, merged) = mask(&[(0, 2), (2, 5), (5, 6)], std::slice::from_ref(&(3..6)));
        assert_eq!(trained, [false, true, true]);
        assert_eq!(merged, 1);
    }
}
