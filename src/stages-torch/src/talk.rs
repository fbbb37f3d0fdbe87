//! `levain chat`: a conversation with a model.

use anyhow::{Context, Result};
use data::Message;
use engine::worker::{Channel, Talk};
use ml::Pass;
use ml::generate::{Prompt, generate};
use serde_json::Value;

use crate::answers::{Manner, room};
use crate::model::load_on;

pub(crate) fn talk(talk: &Talk, channel: &mut Channel<'_>) -> Result<()> {
    let number = |name: &str, default: f64| {
        talk.params
            .get(name)
            .and_then(Value::as_f64)
            .unwrap_or(default)
    };
    let loaded = load_on(&talk.model, &talk.device, talk.threads)?;
    let mut messages: Vec<Message> = Vec::new();
    if let Some(system) = talk.params.get("system").and_then(Value::as_str) {
        messages.push(Message::new("system", system));
    }
    let mut turn = 0;
    while let Some(words) = channel.next_words() {
        messages.push(Message::new("user", words));
        let mut manner = Manner {
            temperature: number("temperature", 0.7),
            top_k: number("top_k", 0.0) as usize,
            top_p: number("top_p", 0.95),
            seed: number("seed", 0.0) as u64,
            max_new_tokens: number("max_new_tokens", 512.0) as usize,
            batch: 1,
        };
        let mut tokens = loaded.encoder.encode_chat(&messages)?;
        // A long answer may not crowd out the question: at most half of the context is kept free for it.
        let half = room(&loaded.model, 0) / 2;
        manner.max_new_tokens = manner.max_new_tokens.min(half.max(1));
        let room = room(&loaded.model, manner.max_new_tokens).max(1);
        // What was said first is forgotten first; the newest words always fit in part.
        while tokens.len() > room && messages.len() > 1 {
            messages.remove(usize::from(
                messages[0].role == "system" && messages.len() > 2,
            ));
            tokens = loaded.encoder.encode_chat(&messages)?;
        }
        tokens.drain(..tokens.len().saturating_sub(room));
        let prompt = Prompt {
            tokens: tokens.into_iter().map(i64::from).collect(),
            draw: turn,
        };
        turn += 1;
        let options = manner.options(&loaded);
        let (mut ids, mut shown) = (Vec::new(), String::new());
        let mut failed = None;
        generate(
            &loaded.model,
            Pass::eval(),
            &[prompt],
            &options,
            &mut |_, token| {
                ids.push(u32::try_from(token).unwrap_or(0));
                match loaded.encoder.decode(&ids, true) {
                    // A character of several tokens is shown when it is whole.
                    Ok(text) if !text.ends_with('\u{fffd}') => {
                        let new = text.strip_prefix(shown.as_str());
                        if let Some(new) = new.filter(|new| !new.is_empty()) {
                            channel.piece(new);
                            shown = text;
                        }
                    }
                    Ok(_) => {}
                    Err(error) => failed = Some(error),
                }
                failed.is_none() && !channel.cancelled()
            },
        )?;
        if let Some(error) = failed {
            return Err(error).context("an answer can't be decoded");
        }
        messages.push(Message::new("assistant", shown));
        channel.said();
    }
    Ok(())
}
