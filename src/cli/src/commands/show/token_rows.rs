//! Rows of tokens, whichever kind of file holds them.

use anyhow::Result;
use data::{Completions, Tokens};
use engine::artifact::ArtifactView;

use super::dataset::arrow_file;

/// The rows of a file of tokens, of either kind.
pub(super) enum TokenRows {
    Trained(Tokens),
    Completions(Completions),
}

/// One of them.
pub(super) struct TokenRow<'a> {
    pub ids: &'a [i32],
    /// Which tokens are trained on.
    pub mask: Vec<bool>,
    /// Of a completion, its group and its value, if it has one.
    pub completion: Option<(usize, Option<f64>)>,
}

impl TokenRows {
    pub fn open(view: &ArtifactView) -> Result<TokenRows> {
        Ok(match view.find("completions.arrow") {
            Some(path) => TokenRows::Completions(Completions::open(path)?),
            None => TokenRows::Trained(Tokens::open(arrow_file(view)?)?),
        })
    }

    pub fn len(&self) -> usize {
        match self {
            TokenRows::Trained(tokens) => tokens.len(),
            TokenRows::Completions(completions) => completions.len(),
        }
    }

    pub fn row(&self, index: usize) -> Result<TokenRow<'_>> {
        Ok(match self {
            TokenRows::Trained(tokens) => {
                let row = tokens.row(index)?;
                TokenRow {
                    ids: row.ids,
                    mask: row.mask(),
                    completion: None,
                }
            }
            TokenRows::Completions(completions) => {
                let row = completions.row(index)?;
                let value = Some(row.value).filter(|value| !value.is_nan());
                TokenRow {
                    ids: row.ids,
                    mask: (0..row.ids.len()).map(|at| at >= row.prompt).collect(),
                    completion: Some((row.group, value)),
                }
            }
        })
    }
}

impl TokenRow<'_> {
    /// ` of group 3, value 0.5`.
    pub fn place(&self) -> String {
        match self.completion {
            None => String::new(),
            Some((group, None)) => format!(" of group {group}"),
            Some((group, Some(value))) => format!(" of group {group}, value {value}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use data::{Completion, CompletionsWriter};

    #[test]
    fn a_completion_is_what_is_trained() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("any name");
        let mut writer = CompletionsWriter::create(&path).unwrap();
        for value in [0.5, f64::NAN] {
            let ids = &[7, 8, 9];
            let (prompt, group) = (1, 4);
            writer
                .push(Completion {
                    ids,
                    prompt,
                    group,
                    value,
                })
                .unwrap();
        }
        writer.finish().unwrap();
        let view = ArtifactView {
            digest: engine::digest::Digest::of_bytes(b"any"),
            artifact: engine::artifact::ArtifactType::Tokens,
            files: vec![("completions.arrow".to_owned(), path)],
            refs: Default::default(),
            summary: Default::default(),
        };
        let rows = TokenRows::open(&view).unwrap();
        assert_eq!(rows.len(), 2);
        let first = rows.row(0).unwrap();
        assert_eq!(first.mask, [false, true, true]);
        assert_eq!(first.place(), " of group 4, value 0.5");
        assert_eq!(rows.row(1).unwrap().place(), " of group 4");
    }
}
