//! How texts were cut to length: what is said of it beside vectors and heads, and whether two artifacts are of texts cut in one manner.

use anyhow::{Context, Result};
use engine::artifact::ArtifactView;
use serde_json::Value;

/// The words of a summary.
const WORDS: [&str; 4] = ["max_length", "truncation", "truncated", "longest"];

/// How some texts were cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cuts {
    /// The most tokens that a text may have.
    max_length: u64,
    /// `keep_start` or `keep_end`.
    truncation: String,
    /// Texts that were longer.
    truncated: u64,
    /// Tokens of the longest text, after that.
    longest: u64,
}

impl Cuts {
    /// What an artifact says of the texts that it was made of; none where it does not say it, such as a classifier that comes from outside.
    pub(crate) fn of(view: &ArtifactView) -> Option<Cuts> {
        let [max_length, truncation, truncated, longest] = WORDS.map(|word| view.summary.get(word));
        Some(Cuts {
            max_length: max_length?.as_u64()?,
            truncation: truncation?.as_str()?.to_owned(),
            truncated: truncated?.as_u64()?,
            longest: longest?.as_u64()?,
        })
    }

    /// The same of tokens that were made with these fields.
    pub(crate) fn of_tokens(
        tokens: &ArtifactView,
        max_length: usize,
        truncation: &str,
    ) -> Result<Cuts> {
        let told = |value: Option<&Value>| {
            let number = value.and_then(Value::as_u64);
            number.context("BUG: the tokens do not say how long texts are")
        };
        let lengths = tokens.summary.get("lengths");
        Ok(Cuts {
            max_length: max_length as u64,
            truncation: truncation.to_owned(),
            truncated: told(tokens.summary.get("truncated"))?,
            longest: told(lengths.and_then(|lengths| lengths.get("max")))?,
        })
    }

    /// The same for the summary of what is made of these texts.
    pub(crate) fn summary(&self) -> [(String, Value); 4] {
        let [max_length, truncation, truncated, longest] = WORDS.map(str::to_owned);
        [
            (max_length, self.max_length.into()),
            (truncation, self.truncation.as_str().into()),
            (truncated, self.truncated.into()),
            (longest, self.longest.into()),
        ]
    }

    /// Whether one manner makes both: the fields are the same, or those of one side change no text of the other.
    pub(crate) fn alike(&self, other: &Cuts) -> bool {
        let same = (self.max_length, &self.truncation) == (other.max_length, &other.truncation);
        let whole = |these: &Cuts, manner: &Cuts| {
            these.truncated == 0 && these.longest <= manner.max_length
        };
        same || whole(self, other) || whole(other, self)
    }

    /// In words: `max_length` 128 (keep_start).
    pub(crate) fn words(&self) -> String {
        format!("`max_length` {} ({})", self.max_length, self.truncation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuts(max_length: u64, truncation: &str, truncated: u64, longest: u64) -> Cuts {
        Cuts {
            max_length,
            truncation: truncation.to_owned(),
            truncated,
            longest,
        }
    }

    #[test]
    fn texts_that_nothing_cuts_are_alike_whatever_the_fields_say() {
        let short = cuts(512, "keep_start", 0, 20);
        for (other, alike) in [
            (cuts(512, "keep_start", 3, 512), true),
            (cuts(128, "keep_start", 3, 128), true),
            (cuts(128, "keep_end", 0, 100), true),
            (cuts(16, "keep_start", 0, 12), true),
            (cuts(16, "keep_start", 2, 16), false),
        ] {
            assert_eq!(short.alike(&other), alike, "{other:?}");
            assert_eq!(other.alike(&short), alike, "{other:?}");
        }
        let long = cuts(16, "keep_start", 5, 16);
        assert!(long.alike(&cuts(16, "keep_start", 5, 16)));
        assert!(!long.alike(&cuts(16, "keep_end", 5, 16)));
        assert!(!long.alike(&cuts(8, "keep_start", 5, 8)));
        assert!(!long.alike(&cuts(512, "keep_start", 0, 40)));
    }

    #[test]
    fn a_summary_says_it_all() {
        let written = cuts(16, "keep_end", 5, 16);
        let view = ArtifactView {
            digest: engine::digest::Digest::of_bytes(b"vectors"),
            artifact: engine::artifact::ArtifactType::Vectors,
            files: Vec::new(),
            refs: Default::default(),
            summary: written.summary().into(),
        };
        assert_eq!(Cuts::of(&view), Some(written));
        let mut less = view;
        less.summary.remove("longest");
        assert_eq!(Cuts::of(&less), None);
    }
}
