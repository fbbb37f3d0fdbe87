//! A text as so many tokens, for virtual tokens that start as its words.

use anyhow::{Result, anyhow, ensure};

use super::Encoder;

impl Encoder {
    /// `count` ids of a text, as PEFT's prompt tuning takes them: those of the text, with all that the tokenizer puts before and after one, and
    /// from the beginning again until there are enough. A text without tokens is an error.
    pub fn encode_repeated(&self, text: &str, count: usize) -> Result<Vec<u32>> {
        let encoding = self
            .tokenizer
            .encode_fast(text, true)
            .map_err(|error| anyhow!("tokenizer: {error}"))?;
        let ids = encoding.get_ids();
        ensure!(!ids.is_empty(), "the text {text:?} has no tokens");
        Ok(ids.iter().copied().cycle().take(count).collect())
    }
}
