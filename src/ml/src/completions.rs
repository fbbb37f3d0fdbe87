//! Rows of a prompt and its completion, and the log-probabilities of the completions' tokens: what preference losses and
//! policy gradients are made of.

use crate::kv_cache::Segments;
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

/// Rows one after the other, without padding.
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

impl Batch {
    /// Joins rows for this model. A row without a completion, one that is longer than the model's
    /// positions, and an unknown token are errors.
    pub fn new(model: &Llama, rows: &[Row]) -> Result<Batch> {
        let (mut tokens, mut lengths, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        let (mut places, mut targets, mut row_of) = (Vec::new(), Vec::new(), Vec::new());
        for (index, row) in rows.iter().enumerate() {
            ensure!(
                row.completion() > 0,
                "row {index} has {} tokens, {} of them the prompt's: there is no completion",
                row.tokens.len(),
                row.prompt
            );
            for at in row.prompt.max(1)..row.tokens.len() {
                places.push((tokens.len() + at - 1) as i64);
                targets.push(row.tokens[at]);
                row_of.push(index as i64);
            }
            tokens.extend_from_slice(&row.tokens);
            lengths.push(row.tokens.len());
            counts.push(row.completion());
        }
        let place = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(model.place.device);
        Ok(Batch {
            tokens: model.tokens(&tokens)?,
            segments: Segments::new(&lengths, model.place)?,
            places: place(&places),
            targets: place(&targets),
            row_of: place(&row_of),
            counts,
        })
    }

    /// The number of tokens.
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

    /// The cross entropy of the prompts' tokens of some rows: what a loss over whole rows adds. None where no prompt has a second
    /// token.
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
