//! The objective of supervised fine-tuning: the next token, where the mask trains it; and the same sums for evaluation.

use crate::fit::{Objective, read_rows};
use crate::kv_cache::Segments;
use crate::linear::Pass;
use crate::llama::{Inputs, Llama};
use crate::loss::{self, Loss};
use anyhow::{Result, ensure};
use tch::{Tensor, no_grad};

/// One row of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Token ids.
    pub tokens: Vec<i64>,
    /// Whether each token is to be predicted; as long as `tokens`.
    pub trained: Vec<bool>,
    /// The lengths of the documents in the row, which do not see each other; empty: one document.
    pub documents: Vec<usize>,
}

/// Rows one after the other, without padding.
#[derive(Debug)]
pub struct Batch {
    tokens: Tensor,
    segments: Segments,
    /// Where the trained tokens are predicted from, and what they are.
    places: Tensor,
    targets: Tensor,
    count: usize,
}

impl Batch {
    /// Joins rows for this model. Rows longer than the model's positions, an unknown token or a mask of another length are
    /// errors. The first token of a document is predicted from nothing and never trained.
    pub fn new(model: &Llama, rows: &[Row]) -> Result<Batch> {
        let (mut tokens, mut lengths) = (Vec::new(), Vec::new());
        let (mut places, mut targets) = (Vec::new(), Vec::new());
        for (index, row) in rows.iter().enumerate() {
            ensure!(
                row.tokens.len() == row.trained.len(),
                "row {index} has {} tokens and a mask of {}",
                row.tokens.len(),
                row.trained.len()
            );
            let whole = [row.tokens.len()];
            let documents = match row.documents.is_empty() {
                true => &whole[..],
                false => &row.documents[..],
            };
            ensure!(
                documents.iter().sum::<usize>() == row.tokens.len(),
                "the documents of row {index} have {} tokens in all, the row {}",
                documents.iter().sum::<usize>(),
                row.tokens.len()
            );
            let mut start = 0;
            for &length in documents.iter().filter(|&&length| length > 0) {
                for at in start + 1..start + length {
                    if row.trained[at] {
                        places.push((tokens.len() + at - 1) as i64);
                        targets.push(row.tokens[at]);
                    }
                }
                lengths.push(length);
                start += length;
            }
            tokens.extend_from_slice(&row.tokens);
        }
        Ok(Batch {
            tokens: model.tokens(&tokens)?,
            segments: Segments::new(&lengths, model.place)?,
            count: targets.len(),
            places: Tensor::from_slice(&places).to_device(model.place.device),
            targets: Tensor::from_slice(&targets).to_device(model.place.device),
        })
    }

    /// The number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens.numel()
    }

    /// The number of trained tokens.
    pub fn trained(&self) -> usize {
        self.count
    }

    /// What the trained tokens are: `[trained]`, i64.
    pub fn targets(&self) -> &Tensor {
        &self.targets
    }

    /// The hidden states from which the trained tokens are predicted: `[trained, hidden]`.
    pub fn states(&self, model: &Llama, pass: Pass) -> Result<Tensor> {
        let hidden = model.hidden(pass, Inputs::Tokens(&self.tokens), &self.segments, None)?;
        // Where every position but the last is trained, as in plain text, this copies little more than it must.
        Ok(hidden.f_index_select(0, &self.places)?)
    }

    /// The cross entropy of the trained tokens, in chunks of `chunk` rows of logits.
    pub fn cross_entropy(
        &self,
        model: &Llama,
        pass: Pass,
        chunk: i64,
    ) -> Result<loss::CrossEntropy> {
        let states = self.states(model, pass)?;
        loss::cross_entropy(&states, model.head(), &self.targets, chunk)
    }
}

/// The objective: a model and a way to read rows.
pub struct Sft<'a> {
    /// The model with its adapter.
    pub model: &'a Llama,
    /// The number of rows.
    pub rows: usize,
    /// Reads row `i`.
    pub read: Box<dyn FnMut(usize) -> Result<Row> + 'a>,
    /// Rows of logits at a time; `loss::CHUNK`.
    pub chunk: i64,
}

impl Objective for Sft<'_> {
    type Batch = Batch;

    fn rows(&self) -> usize {
        self.rows
    }

    fn batch(&mut self, rows: &[usize]) -> Result<Batch> {
        let rows = read_rows(rows, &mut self.read)?;
        Batch::new(self.model, &rows)
    }

    fn weight(&self, batch: &Batch) -> f64 {
        batch.count as f64
    }

    fn tokens(&self, batch: &Batch) -> usize {
        batch.tokens()
    }

    fn loss(&mut self, pass: Pass, batch: &Batch) -> Result<Loss> {
        let result = batch.cross_entropy(self.model, pass, self.chunk)?;
        Ok(Loss {
            sum: result.sum,
            weight: result.count as f64,
            sums: vec![("token_accuracy", result.correct as f64)],
        })
    }
}

/// Sums over the trained tokens of held-out rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scores {
    /// The sum of `-log p`.
    pub loss: f64,
    /// Trained tokens.
    pub count: usize,
    /// Those with the largest logit.
    pub correct: usize,
}

impl Scores {
    /// Adds the scores of other rows.
    pub fn add(&mut self, other: Scores) {
        self.loss += other.loss;
        self.count += other.count;
        self.correct += other.correct;
    }

    /// The mean loss.
    pub fn mean(&self) -> f64 {
        self.loss / self.count as f64
    }
}

/// The scores of some rows, without gradient. Rows without a trained token count nothing.
pub fn evaluate(model: &Llama, pass: Pass, rows: &[Row], chunk: i64) -> Result<Scores> {
    no_grad(|| {
        let batch = Batch::new(model, rows)?;
        if batch.count == 0 {
            return Ok(Scores::default());
        }
        let result = batch.cross_entropy(model, pass, chunk)?;
        Ok(Scores {
            loss: result.sum.double_value(&[]),
            count: result.count,
            correct: result.correct,
        })
    })
}
