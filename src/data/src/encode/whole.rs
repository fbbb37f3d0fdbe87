//! A text as a model sees it that reads all of it at once, to say what kind of text it is: without any end token of ours.

use anyhow::{Result, ensure};

use super::Encoder;

impl Encoder {
    /// The ids of a text with what the tokenizer itself puts before and after one, as transformers' `tokenizer(text, truncation=True)` has
    /// them: at most `length` in all, of the text's own the first ones, or with `keep_end` the last. Also says whether any were left out.
    ///
    /// Errors where what the tokenizer puts around a text takes all the room there is.
    pub fn encode_around(
        &self,
        text: &str,
        length: usize,
        keep_end: bool,
    ) -> Result<(Vec<u32>, bool)> {
        let prefix: &[u32] = match self.begins_with_bos(text) {
            true => &[],
            false => &self.prefix,
        };
        let around = prefix.len() + self.suffix.len();
        ensure!(
            length > around,
            "max_length: {length} leaves no room for text: the tokenizer puts {around} tokens around it"
        );
        let own = self.plain(text)?;
        let room = length - around;
        let kept = match (own.len() > room, keep_end) {
            (false, _) => &own[..],
            (true, false) => &own[..room],
            (true, true) => &own[own.len() - room..],
        };
        Ok((
            [prefix, kept, self.suffix.as_slice()].concat(),
            own.len() > room,
        ))
    }
}
