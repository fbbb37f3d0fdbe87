//! Rows of a prompt and its completion, and the log-probabilities of the completions' tokens: what preference losses and
//! policy gradients are made of.

use crate::kv_cache::{Segments, Span};
use crate::linear::Pass;
use crate::llama::{Inputs, Llama};
use crate::loss::{self, TokenValues};
use anyhow::{Result, ensure};
use tch::{Kind, Tensor};

/// A prompt and what follows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Token ids of both.
    pub tokens: Vec<i64>,
    /// How many of them are the prompt's. Without a prompt the first token, which nothing predicts, takes its place.
    pub prompt: usize,
}

impl Row {
    /// The number of tokens of the completion.
    pub fn completion(&self) -> usize {
        self.tokens.len().saturating_sub(self.prompt.max(1))
    }
}

/// Rows one after the other, without padding; what the rows of a group begin with alike may be there once.
#[derive(Debug)]
pub struct Batch {
    tokens: Tensor,
    segments: Segments,
    /// From where each token of a completion is predicted, what it is, and the row it belongs to.
    places: Tensor,
    targets: Tensor,
    row_of: Tensor,
    /// Tokens of each completion.
    counts: Vec<usize>,
}

/// How many tokens these rows begin with alike. One of each is left, so that every row has a token of its own.
fn shared(rows: &[Row]) -> usize {
    let Some((first, others)) = rows.split_first().filter(|(_, others)| !others.is_empty()) else {
        return 0;
    };
    let common = |row: &Row| {
        let pairs = first.tokens.iter().zip(&row.tokens);
        let alike = pairs.take_while(|(a, b)| a == b).count();
        alike.min(row.tokens.len().saturating_sub(1))
    };
    let least = others.iter().map(common).min().unwrap_or(0);
    least.min(first.tokens.len().saturating_sub(1))
}

impl Batch {
    /// Joins rows for this model. A row without a completion, one that is longer than the model's
    /// positions, and an unknown token are errors.
    pub fn new(model: &Llama, rows: &[Row]) -> Result<Batch> {
        Batch::of_groups(model, rows, &vec![1; rows.len()])
    }

    /// The same of rows in groups of these sizes, one group after the other. The tokens that all rows of a group begin with, the
    /// prompt and whatever else is alike, are computed once: their states depend on nothing that follows, so that values and gradients
    /// are those of the rows alone, to tolerance. Dropout of an adapter draws one mask for them.
    pub fn of_groups(model: &Llama, rows: &[Row], sizes: &[usize]) -> Result<Batch> {
        ensure!(
            sizes.iter().sum::<usize>() == rows.len() && !sizes.contains(&0),
            "{} rows in groups of {sizes:?}",
            rows.len()
        );
        let (mut tokens, mut spans, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        let (mut places, mut targets, mut row_of) = (Vec::new(), Vec::new(), Vec::new());
        let mut rest = rows;
        for &size in sizes {
            let (group, after) = rest.split_at(size);
            rest = after;
            let (once, start) = (shared(group), tokens.len());
            for (place, row) in group.iter().enumerate() {
                let index = counts.len();
                ensure!(
                    row.completion() > 0,
                    "row {index} has {} tokens, {} of them the prompt's: there is no completion",
                    row.tokens.len(),
                    row.prompt
                );
                let skipped = if place == 0 { 0 } else { once };
                let own = tokens.len();
                for at in row.prompt.max(1)..row.tokens.len() {
                    // Of the beginning that is there once, the tokens lie in the group's first row.
                    let before = match at - 1 < skipped {
                        true => start + at - 1,
                        false => own + at - 1 - skipped,
                    };
                    places.push(before as i64);
                    targets.push(row.tokens[at]);
                    row_of.push(index as i64);
                }
                tokens.extend_from_slice(&row.tokens[skipped..]);
                spans.push(Span {
                    length: row.tokens.len() - skipped,
                    prefix: (skipped > 0).then_some((start, skipped)),
                });
                counts.push(row.completion());
            }
        }
        let place = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(model.place.device);
        Ok(Batch {
            tokens: model.tokens(&tokens)?,
            segments: Segments::sharing(&spans, model.place)?,
            places: place(&places),
            targets: place(&targets),
            row_of: place(&row_of),
            counts,
        })
    }

    /// The number of tokens that a forward reads: what is there once counts once.
    pub fn tokens(&self) -> usize {
        self.tokens.numel()
    }

    /// Tokens of each completion.
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// The last hidden states of all tokens, `[tokens, width]`.
    pub fn hidden(&self, model: &Llama, pass: Pass) -> Result<Tensor> {
        model.hidden(pass, Inputs::Tokens(&self.tokens), &self.segments, None)
    }

    /// The states that the completions' tokens are predicted from, `[completion tokens, width]`.
    pub fn before_completions(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.f_index_select(0, &self.places)?)
    }

    /// The states of the last token of each row, `[rows, width]`.
    pub fn last(&self, hidden: &Tensor) -> Result<Tensor> {
        let last = Tensor::from_slice(&self.segments.last()).to_device(hidden.device());
        Ok(hidden.f_index_select(0, &last)?)
    }

    /// What the model says of the completions' tokens at this temperature; rows one after the other.
    pub fn values(
        &self,
        model: &Llama,
        pass: Pass,
        temperature: f64,
        statistics: bool,
    ) -> Result<TokenValues> {
        let states = self.before_completions(&self.hidden(model, pass)?)?;
        self.values_of(model, &states, temperature, statistics)
    }

    /// The same from the states that the tokens are predicted from.
    pub fn values_of(
        &self,
        model: &Llama,
        states: &Tensor,
        temperature: f64,
        statistics: bool,
    ) -> Result<TokenValues> {
        // The head is linear: states divided by the temperature give logits divided by it.
        let states = match temperature == 1.0 {
            true => states.shallow_clone(),
            false => states / temperature,
        };
        loss::log_probabilities(
            &states,
            model.head(),
            &self.targets,
            loss::CHUNK,
            statistics,
        )
    }

    /// The sum over each row's tokens, `[rows]`, of one number for each token.
    pub fn sums(&self, values: &Tensor) -> Result<Tensor> {
        let empty = Tensor::zeros([self.counts.len() as i64], (values.kind(), values.device()));
        Ok(empty.f_index_add(0, &self.row_of, values)?)
    }

    /// Tokens of each completion as numbers, `[rows]`.
    pub fn lengths(&self, like: &Tensor) -> Tensor {
        let counts: Vec<f64> = self.counts.iter().map(|&count| count as f64).collect();
        Tensor::from_slice(&counts)
            .to_kind(like.kind())
            .to_device(like.device())
    }

    /// The cross entropy of the prompts' tokens of some rows, each the first of its group: what a loss over whole rows adds. None
    /// where no prompt has a second token.
    pub fn prompt_cross_entropy(
        &self,
        model: &Llama,
        hidden: &Tensor,
        rows: &[usize],
    ) -> Result<Option<Tensor>> {
        let tokens: Vec<i64> = Vec::try_from(self.tokens.to_kind(Kind::Int64))?;
        let (mut places, mut targets) = (Vec::new(), Vec::new());
        let mut start = 0;
        for (index, length) in self.segments.lengths.iter().enumerate() {
            let prompt = length - self.counts[index] as i64;
            if rows.contains(&index) {
                ensure!(
                    *length == self.segments.filled[index],
                    "BUG: row {index} does not hold its own prompt"
                );
                for at in start + 1..start + prompt {
                    places.push(at - 1);
                    targets.push(tokens[at as usize]);
                }
            }
            start += length;
        }
        if targets.is_empty() {
            return Ok(None);
        }
        let place = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(hidden.device());
        let states = hidden.f_index_select(0, &place(&places))?;
        let entropy = loss::cross_entropy(&states, model.head(), &place(&targets), loss::CHUNK)?;
        Ok(Some(entropy.sum))
    }
}
