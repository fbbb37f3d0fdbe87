//! A prompt and what may follow it as tokens, to be asked how likely it is: without any end token.

use anyhow::Result;

use super::Encoder;
use crate::layout::Prompt;

impl Encoder {
    /// The ids of a prompt with a text behind it, and how many of the leading ones are the prompt's.
    ///
    /// Both are tokenized together, and the text begins where the tokens part from those of the prompt alone. White space at the end of
    /// the prompt counts as the text's, as lm-evaluation-harness has it (`_encode_pair` in `lm_eval/api/model.py`): tokens of words often
    /// begin with it. Behind a conversation the text is the beginning of the assistant's next turn.
    pub fn encode_continuation(&self, prompt: &Prompt, text: &str) -> Result<(Vec<u32>, usize)> {
        let (alone, whole) = match prompt {
            Prompt::Text(before) => (
                self.encode_text(before.trim_end())?,
                self.encode_text(&format!("{before}{text}"))?,
            ),
            Prompt::Chat(messages) => {
                let before = self.needed_template()?.render(messages, true)?;
                (
                    self.plain(before.trim_end())?,
                    self.plain(&(before + text))?,
                )
            }
        };
        let common = alone.iter().zip(&whole).take_while(|(a, b)| a == b).count();
        Ok((whole, common))
    }
}
