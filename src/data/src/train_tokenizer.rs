//! A byte-level BPE tokenizer from texts.
//!
//! The trainer is that of the `tokenizers` crate. Equal texts give equal bytes, on any number of threads and in any order of the
//! rows: it sums the counts of words and pairs, sorts its alphabet, and of equally frequent pairs merges that with the lowest
//! ids. A pair is queued once, since no token is made of two different pairs: where three tokens could be joined either way,
//! the first merge joins them alike in all words.

use anyhow::{Result, anyhow, bail};
use formats::TokenizerFiles;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use crate::store::Dataset;
use crate::tokenize::threads_or_all;

/// Ends a text.
pub const END: &str = "<|endoftext|>";
/// Fills up a batch.
pub const PAD: &str = "<|pad|>";
/// The tokens that are there before any merge: the two above and all bytes.
pub const LEAST: usize = 2 + 256;
/// How often a pair must stand in the texts to be merged.
const MIN_FREQUENCY: u64 = 2;

/// Trains a tokenizer with at most `vocabulary` tokens on all texts of a dataset; `progress` hears of (rows done, rows).
///
/// Errors when `vocabulary` has no room for all bytes, or when there is no text.
pub fn train_tokenizer(
    dataset: &Dataset,
    vocabulary: usize,
    threads: Option<usize>,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<TokenizerFiles> {
    if vocabulary < LEAST {
        bail!(
            "vocabulary: {vocabulary} tokens are too few; all bytes and two special tokens are {LEAST}"
        );
    }
    let special = [END, PAD].map(|token| AddedToken::from(token, true));
    let trainer = BpeTrainer::builder()
        .vocab_size(vocabulary)
        .min_frequency(MIN_FREQUENCY)
        .show_progress(false)
        .special_tokens(special.to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    // GPT-2's pattern, and no space before the first word.
    let split = ByteLevel::new(false, true, true);
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer
        .with_pre_tokenizer(Some(split))
        .with_decoder(Some(split))
        .with_post_processor(Some(ByteLevel::new(true, false, true)));

    let (mut characters, mut fault) = (0, None);
    let texts = (0..dataset.len()).map_while(|index| match dataset.row(index) {
        Ok(row) => {
            if (index + 1) % 1024 == 0 || index + 1 == dataset.len() {
                progress(index as u64 + 1, dataset.len() as u64);
            }
            characters += row.characters();
            Some(
                row.texts()
                    .into_iter()
                    .map(str::to_owned)
                    .collect::<Vec<_>>(),
            )
        }
        Err(error) => {
            fault = Some(error);
            None
        }
    });
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads_or_all(threads))
        .build()?;
    let mut trainer = TrainerWrapper::from(trainer);
    let trained = pool.install(|| tokenizer.train(&mut trainer, texts.flatten()).map(|_| ()));
    if let Some(error) = fault {
        return Err(error);
    }
    trained.map_err(|error| anyhow!("tokenizer: {error}"))?;
    if characters == 0 {
        bail!("the rows have no text to make a tokenizer of");
    }
    let json = tokenizer.to_string(true);
    Ok(TokenizerFiles {
        tokenizer_json: json.map_err(|error| anyhow!("tokenizer: {error}"))?,
        eos_token: Some(END.to_owned()),
        pad_token: Some(PAD.to_owned()),
        ..TokenizerFiles::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;
    use crate::{DatasetWriter, Layout, Row};

    /// Texts with words that share their parts.
    fn texts() -> Vec<String> {
        let words = [
            "bread", "breads", "baking", "baker", "Größe", "aaaa", "aaaaa", "a", "42", "\n\n",
            "🦀", "don't",
        ];
        let mut stream = Stream::new(1, "test");
        let mut text = |_| {
            let count = 3 + stream.below(9);
            let chosen = (0..count).map(|_| words[stream.below(12) as usize]);
            chosen.collect::<Vec<_>>().join(" ")
        };
        (0..300).map(&mut text).collect()
    }

    fn train(texts: &[String], vocabulary: usize, threads: usize) -> Result<TokenizerFiles> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.arrow");
        let mut writer = DatasetWriter::create(&path, Layout::Text).unwrap();
        for text in texts {
            writer.push(&Row::Text { text: text.clone() }).unwrap();
        }
        writer.finish().unwrap();
        let dataset = Dataset::open(&path).unwrap();
        train_tokenizer(&dataset, vocabulary, Some(threads), &mut |_, _| {})
    }

    #[test]
    fn equal_texts_give_equal_bytes() {
        let texts = texts();
        let first = train(&texts, 400, 1).unwrap();
        let turned: Vec<String> = texts.iter().rev().cloned().collect();
        // Hash maps have another order each time.
        for threads in [1, 2, 3, 1, 2, 3] {
            assert_eq!(train(&texts, 400, threads).unwrap(), first);
            assert_eq!(train(&turned, 400, threads).unwrap(), first);
        }
        assert_ne!(train(&texts[..250], 400, 1).unwrap(), first);
    }

    #[test]
    fn the_vocabulary_is_as_large_as_the_texts_allow() {
        let size = |vocabulary| {
            let files = train(&texts(), vocabulary, 1).unwrap();
            files.tokenizer().unwrap().get_vocab_size(true)
        };
        assert_eq!(size(LEAST), LEAST);
        assert_eq!(size(270), 270);
        let all = size(4000);
        assert!(270 < all && all < 4000, "{all}");
    }

    #[test]
    fn every_text_comes_back_and_special_tokens_are_whole() {
        let files = train(&texts(), 300, 2).unwrap();
        let tokenizer = files.tokenizer().unwrap();
        for text in [" A levain, fed twice.\n", "日本語 🦀", "\u{0}\u{7f}", ""] {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), text);
        }
        let ids = tokenizer.encode("bread<|endoftext|>", true).unwrap();
        assert_eq!(ids.get_ids().last(), Some(&0));
        let special = [END, PAD].map(|token| tokenizer.token_to_id(token));
        assert_eq!(special, [Some(0), Some(1)]);
        assert_eq!(files.bos_token, None);
    }

    #[test]
    fn what_can_not_be_trained_is_an_error() {
        let error =
            |texts: &[String], vocabulary| train(texts, vocabulary, 1).unwrap_err().to_string();
        assert!(error(&texts(), 257).contains("257 tokens are too few"));
        assert!(error(&[String::new()], 300).contains("have no text"));
        assert!(error(&[], 300).contains("have no text"));
    }
}
