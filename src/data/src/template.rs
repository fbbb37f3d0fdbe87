//! Chat templates: a model's own Jinja source, rendered as transformers renders it.
//!
//! The reference is `_cached_compile_jinja_template` of `transformers.utils.chat_template_utils`: `trim_blocks`,
//! `lstrip_blocks`, loop controls, `tojson`, `raise_exception`, `strftime_now`, and the tag `{% generation %}` around
//! what the assistant said. minijinja has no tags of one's own, so that one is rewritten as a filter block whose filter
//! leaves marks; they are taken out of the rendered text again and become positions.

use std::ops::Range;

use anyhow::{Result, anyhow, bail};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::layout::Message;
use crate::python::{self, Moment};

/// The name of the template and of the filter behind `{% generation %}`.
const NAME: &str = "chat";
const FILTER: &str = "levain_generation";

/// The special tokens that a template and the tokenization need, by what they are for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<String>,
    /// Ends a text; generation stops at it.
    pub eos: Option<String>,
    /// Fills up a batch.
    pub pad: Option<String>,
    /// Stands for what the vocabulary does not have.
    pub unk: Option<String>,
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// The bytes of `text` inside `{% generation %}`, rising; `None` when the template has no such tag.
    pub generations: Option<Vec<Range<usize>>>,
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    tokens: SpecialTokens,
    has_generation: bool,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ChatTemplate")
            .field("source", &self.source)
            .field("tokens", &self.tokens)
            .finish()
    }
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// `now` is what `strftime_now` answers with. Without it the function is not defined, so that a template which asks
    /// `strftime_now is defined` takes its own fixed date, and one which does not ask is an error: today's date in
    /// the training text would be other text tomorrow. Errors name the line of the template.
    pub fn new(source: &str, tokens: &SpecialTokens, now: Option<Moment>) -> Result<ChatTemplate> {
        let (rewritten, has_generation) = rewrite_generation(source);
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|error| explain(&error, source))?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(python::method);
        environment.add_filter("tojson", |value: &Value, options: Kwargs| {
            python::tojson(value, options)
        });
        environment.add_filter("trim", |value: &Value, chars: Option<&str>| {
            python::trim(value, chars)
        });
        environment.add_filter(FILTER, mark);
        environment.add_test("iterable", python::is_iterable);
        environment.add_test("sequence", python::is_sequence);
        environment.add_function(
            "raise_exception",
            |message: &Value| -> Result<Value, Error> {
                Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("the template refuses: {message}"),
                ))
            },
        );
        if let Some(now) = now {
            environment.add_function("strftime_now", move |pattern: &str| now.format(pattern));
        }
        environment
            .add_template_owned(NAME, rewritten)
            .map_err(|error| explain(&error, source))?;
        Ok(ChatTemplate {
            environment,
            source: source.to_owned(),
            tokens: tokens.clone(),
            has_generation,
        })
    }

    /// The template's source as the model ships it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template says with `{% generation %}` what the assistant said.
    pub fn has_generation(&self) -> bool {
        self.has_generation
    }

    /// The text of a conversation; `add_generation_prompt` ends it where the assistant would begin.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let turns = turns(messages);
        Ok(self
            .render_turns(&turns, messages, add_generation_prompt)?
            .text)
    }

    /// The text of a conversation and where `{% generation %}` was in it.
    pub fn render_marked(&self, messages: &[Message]) -> Result<Rendered> {
        self.render_turns(&turns(messages), messages, false)
    }

    /// As `render_marked`, for turns that were converted before; `messages` are the same turns.
    pub(crate) fn render_turns(
        &self,
        turns: &[Value],
        messages: &[Message],
        prompt: bool,
    ) -> Result<Rendered> {
        let mark = self.has_generation.then(|| self.free_mark(messages));
        let mut context: Vec<(&'static str, Value)> = vec![
            ("messages", Value::from(turns.to_vec())),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(prompt)),
        ];
        let special = [
            ("bos_token", &self.tokens.bos),
            ("eos_token", &self.tokens.eos),
            ("pad_token", &self.tokens.pad),
            ("unk_token", &self.tokens.unk),
        ];
        // A token that the tokenizer does not have stays undefined, which templates may ask for.
        context.extend(
            special
                .into_iter()
                .filter_map(|(name, token)| Some((name, Value::from(token.as_deref()?)))),
        );
        context.extend(mark.as_deref().map(|mark| (FILTER, Value::from(mark))));
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| explain(&error, &self.source))?;
        let text = template
            .render(Value::from_object(
                context.into_iter().collect::<BTreeMap<_, _>>(),
            ))
            .map_err(|error| explain(&error, &self.source))?;
        match mark {
            None => Ok(Rendered {
                text,
                generations: None,
            }),
            Some(mark) => unmark(&text, &mark),
        }
    }

    /// A mark that occurs nowhere in the conversation or the template.
    fn free_mark(&self, messages: &[Message]) -> String {
        let taken = |mark: &str| {
            self.source.contains(mark) || messages.iter().any(|m| m.content.contains(mark))
        };
        let mut number = 0u64;
        loop {
            let mark = format!("\u{f0000}{number}\u{f0001}");
            if !taken(&mark) {
                return mark;
            }
            number += 1;
        }
    }
}

/// The turns as template values: maps of `role` and `content`.
pub(crate) fn turns(messages: &[Message]) -> Vec<Value> {
    // By way of JSON, whose maps keep the order that `tojson` and `items` show.
    let turn =
        |message: &Message| serde_json::json!({"role": message.role, "content": message.content});
    let values = messages.iter().map(turn);
    values.map(|value| Value::from(Serde(value))).collect()
}

/// Puts the mark of this rendering around a generation, `b` before and `e` after it.
fn mark(state: &State, text: &str) -> Result<String, Error> {
    let mark = state.lookup(FILTER);
    let mark = mark
        .as_ref()
        .and_then(|mark| mark.as_str())
        .unwrap_or_default();
    Ok(format!("{mark}b{text}{mark}e"))
}

/// Takes the marks out of a text and says where they were.
fn unmark(marked: &str, mark: &str) -> Result<Rendered> {
    let mut text = String::with_capacity(marked.len());
    let mut generations: Vec<Range<usize>> = Vec::new();
    let mut open = Vec::new();
    let mut pieces = marked.split(mark);
    text.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        if let Some(rest) = piece.strip_prefix('b') {
            open.push(text.len());
            text.push_str(rest);
        } else if let Some(rest) = piece.strip_prefix('e')
            && let Some(start) = open.pop()
        {
            // Only the outermost of nested generations counts.
            if open.is_empty() {
                generations.push(start..text.len());
            }
            text.push_str(rest);
        } else {
            bail!(
                "the chat template cuts the text inside `generation` apart, so its place can't be known"
            );
        }
    }
    if !open.is_empty() {
        bail!(
            "the chat template cuts the text inside `generation` apart, so its place can't be known"
        );
    }
    Ok(Rendered {
        text,
        generations: Some(generations),
    })
}

/// Rewrites the tags `generation` and `endgeneration` as a filter block, and says whether there were any.
///
/// Comments, expressions with their strings, and raw blocks are left alone.
fn rewrite_generation(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len() + 64);
    let mut rest = source;
    let mut found = false;
    let mut raw = false;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match rest.as_bytes().get(1) {
            Some(b'#') if !raw => rest.find("#}").map_or(rest.len(), |end| end + 2),
            Some(b'{') if !raw => code_length(rest, "}}"),
            Some(b'%') => code_length(rest, "%}"),
            _ => 1,
        };
        let (code, after) = rest.split_at(length);
        rest = after;
        let Some(inner) = code
            .strip_prefix("{%")
            .and_then(|code| code.strip_suffix("%}"))
        else {
            out.push_str(code);
            continue;
        };
        let name = inner
            .trim_start_matches(['-', '+'])
            .trim_end_matches(['-', '+'])
            .trim();
        match name {
            "raw" => raw = true,
            "endraw" => raw = false,
            _ => {}
        }
        if !raw && (name == "generation" || name == "endgeneration") {
            found = true;
            let tag = if name == "generation" {
                format!("filter {FILTER}")
            } else {
                "endfilter".to_owned()
            };
            out.push_str(&code.replacen(name, &tag, 1));
        } else {
            out.push_str(code);
        }
    }
    out.push_str(rest);
    (out, found)
}

/// The length of the code that begins here, up to and with `end`, outside of strings.
fn code_length(code: &str, end: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    for (at, byte) in code.bytes().enumerate().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if byte == b'\\' => escaped = true,
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if byte == b'"' || byte == b'\'' => quote = Some(byte),
            None if code.as_bytes()[at..].starts_with(end.as_bytes()) => return at + end.len(),
            None => {}
        }
    }
    code.len()
}

/// An error of the template engine with the template's line and what to do.
fn explain(error: &Error, source: &str) -> anyhow::Error {
    let message = match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    };
    let place = match error.line() {
        Some(line) => {
            let text = source
                .lines()
                .nth(line.saturating_sub(1))
                .unwrap_or_default()
                .trim();
            let text: String = text.chars().take(80).collect();
            format!("chat template, line {line} (`{text}`)")
        }
        None => "chat template".to_owned(),
    };
    let hint = match error.kind() {
        ErrorKind::UnknownFunction if message.contains("strftime_now") => {
            "; the template writes today's date: give it a fixed one, or its text would change from day to day"
        }
        _ => "",
    };
    anyhow!("{place}: {message}{hint}")
}
