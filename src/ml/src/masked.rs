//! Masked language modelling (Devlin et al., arXiv 1810.04805): some tokens are hidden, and an encoder is trained to tell them from what
//! stands on both sides; the same loss on held-out rows.

use crate::bert::Bert;
use crate::fit::Objective;
use crate::kv_cache::Segments;
use crate::linear::Pass;
use crate::loss::{self, Loss};
use crate::random::Stream;
use crate::sft::Scores;
use anyhow::{Context, Result, ensure};
use tch::{Tensor, no_grad};

/// Of what is chosen, the part that becomes the mask token.
const MASKED: f64 = 0.8;
/// The part that becomes a random token; the rest stays as it is.
const RANDOM: f64 = 0.1;

/// One row of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Token ids.
    pub tokens: Vec<i64>,
    /// Whether each token may be chosen: special ones may not. As long as `tokens`.
    pub free: Vec<bool>,
}

/// How tokens are hidden.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Masking {
    /// The probability that a token is chosen.
    pub probability: f64,
    /// The id of the mask token.
    pub mask: i64,
    /// Random tokens are drawn from so many.
    pub words: usize,
}

impl Masking {
    /// The row as the encoder sees it, and the places of what it has to tell. Each free token is chosen with the probability, and where
    /// that chooses none of them, one that is drawn: every row with a free token counts. Of the chosen ones eight in ten become the mask
    /// token, one in ten a random token, and one in ten stays.
    pub fn hide(&self, row: &Row, stream: &mut Stream) -> Result<(Vec<i64>, Vec<usize>)> {
        ensure!(
            row.tokens.len() == row.free.len(),
            "{} tokens come with marks for {}",
            row.tokens.len(),
            row.free.len()
        );
        let free: Vec<usize> = (0..row.tokens.len()).filter(|&at| row.free[at]).collect();
        let mut chosen: Vec<usize> = free
            .iter()
            .copied()
            .filter(|_| stream.uniform() < self.probability)
            .collect();
        if chosen.is_empty() && !free.is_empty() {
            chosen.push(free[stream.below(free.len() as u64) as usize]);
        }
        let mut seen = row.tokens.clone();
        for &at in &chosen {
            let kind = stream.uniform();
            if kind < MASKED {
                seen[at] = self.mask;
            } else if kind < MASKED + RANDOM {
                seen[at] = stream.below(self.words as u64) as i64;
            }
        }
        Ok((seen, chosen))
    }
}

/// Rows with hidden tokens, one after the other, without padding.
#[derive(Debug)]
pub struct Batch {
    tokens: Tensor,
    segments: Segments,
    /// Where the chosen tokens are, and what they are.
    places: Tensor,
    targets: Tensor,
    count: usize,
}

impl Batch {
    /// Hides tokens of rows, each with a stream of its own.
    pub fn new(model: &Bert, masking: &Masking, mut rows: Vec<(Row, Stream)>) -> Result<Batch> {
        let (mut tokens, mut lengths) = (Vec::new(), Vec::new());
        let (mut places, mut targets) = (Vec::new(), Vec::new());
        for (row, stream) in &mut rows {
            let (seen, chosen) = masking.hide(row, stream)?;
            for at in chosen {
                places.push((tokens.len() + at) as i64);
                targets.push(row.tokens[at]);
            }
            lengths.push(seen.len());
            tokens.extend(seen);
        }
        let device = model.place.device;
        Ok(Batch {
            tokens: model.tokens(&tokens)?,
            segments: Segments::new(&lengths, model.place)?,
            count: targets.len(),
            targets: model.tokens(&targets)?,
            places: Tensor::f_from_slice(&places)?.f_to_device(device)?,
        })
    }

    /// The number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens.numel()
    }

    /// The number of chosen tokens.
    pub fn chosen(&self) -> usize {
        self.count
    }

    /// The cross entropy of the chosen tokens, in chunks of `chunk` rows of logits.
    pub fn cross_entropy(
        &self,
        model: &Bert,
        pass: Pass,
        chunk: i64,
    ) -> Result<loss::CrossEntropy> {
        let hidden = model.hidden(pass, &self.tokens, &self.segments)?;
        let states = hidden.f_index_select(0, &self.places)?;
        model.masked_cross_entropy(pass, &states, &self.targets, chunk)
    }
}

/// The objective: an encoder with its head, and a way to read rows.
pub struct MaskedLm<'a> {
    /// The encoder.
    pub model: &'a Bert,
    /// How tokens are hidden.
    pub masking: Masking,
    /// Where the streams `mask EPOCH ROW` start.
    pub seed: u64,
    /// The epoch of the next batch.
    pub epoch: usize,
    /// The number of rows.
    pub rows: usize,
    /// Reads row `i`.
    pub read: Box<dyn FnMut(usize) -> Result<Row> + 'a>,
    /// Rows of logits at a time; `loss::CHUNK`.
    pub chunk: i64,
}

impl Objective for MaskedLm<'_> {
    type Batch = Batch;

    fn rows(&self) -> usize {
        self.rows
    }

    fn epoch(&mut self, epoch: usize) {
        self.epoch = epoch;
    }

    fn batch(&mut self, rows: &[usize]) -> Result<Batch> {
        let (seed, epoch) = (self.seed, self.epoch);
        let read = |&row: &usize| -> Result<(Row, Stream)> {
            let own = (self.read)(row).with_context(|| format!("row {row} of the data"))?;
            Ok((own, Stream::new(seed, &format!("mask {epoch} {row}"))))
        };
        let rows = rows.iter().map(read).collect::<Result<Vec<_>>>()?;
        Batch::new(self.model, &self.masking, rows)
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

/// The scores of some rows by their numbers in the data, without gradient. What is hidden in row i is drawn from the stream `mask i` of
/// the seed: the same for every model, and whatever rows are measured together.
pub fn evaluate(
    model: &Bert,
    masking: &Masking,
    seed: u64,
    rows: Vec<(usize, Row)>,
    chunk: i64,
) -> Result<Scores> {
    let with_stream =
        |(index, row): (usize, Row)| (row, Stream::new(seed, &format!("mask {index}")));
    let rows = rows.into_iter().map(with_stream).collect();
    no_grad(|| {
        let batch = Batch::new(model, masking, rows)?;
        if batch.count == 0 {
            return Ok(Scores::default());
        }
        let result = batch.cross_entropy(model, Pass::eval(), chunk)?;
        Ok(Scores {
            loss: result.sum.double_value(&[]),
            count: result.count,
            correct: result.correct,
        })
    })
}
