//! Running text to rows of an encoder: cut into pieces that fit, each between the tokenizer's special tokens.

use anyhow::{Result, bail};

use super::Encoder;

/// A piece of a text as tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// The token ids, `[CLS]` and `[SEP]` among them.
    pub ids: Vec<u32>,
    /// For each id whether it is a token of the text and no special one.
    pub free: Vec<bool>,
}

impl Encoder {
    /// The pieces of a text: as few as have at most `max_length` tokens, of lengths that differ by one at most, so that nothing is lost
    /// and no piece is a scrap. Each begins and ends as the tokenizer's post-processor says. A text without tokens has none.
    ///
    /// Errors when the special tokens leave no room.
    pub fn encode_pieces(&self, text: &str, max_length: usize) -> Result<Vec<Piece>> {
        let around = self.tokens_around();
        if max_length <= around {
            bail!(
                "max_length: {max_length} leaves no room between the {around} special tokens that begin and end a text; give more"
            );
        }
        let ids = self.plain(text)?;
        let count = ids.len().div_ceil(max_length - around);
        let piece = |index: usize| {
            let (start, end) = (ids.len() * index / count, ids.len() * (index + 1) / count);
            let own = &ids[start..end];
            let free = own.iter().map(|id| !self.is_special(*id));
            let outside = |tokens: &[u32]| vec![false; tokens.len()];
            Piece {
                ids: [self.prefix.as_slice(), own, self.suffix.as_slice()].concat(),
                free: [outside(&self.prefix), free.collect(), outside(&self.suffix)].concat(),
            }
        };
        Ok((0..count).map(piece).collect())
    }
}
