//! A head on a model: vectors of rows without gradient, and the objective that trains both.

use crate::backbone::Backbone;
use crate::fit::Objective;
use crate::head::{self, Head, Task};
use crate::kv_cache::Segments;
use crate::linear::Pass;
use crate::loss::Loss;
use crate::place::HOST;
use crate::pool::{Pooling, normalized, pooled};
use anyhow::{Context, Result, ensure};
use tch::{Kind, Tensor, no_grad};

/// Rows of token ids one after the other, without padding.
#[derive(Debug)]
pub struct Batch {
    tokens: Tensor,
    segments: Segments,
    /// Where each row begins.
    starts: Vec<usize>,
}

impl Batch {
    /// Joins rows for this model. Empty ones, ones that are longer than the model's positions, and unknown tokens are errors.
    pub fn new(backbone: &Backbone, rows: &[Vec<i64>]) -> Result<Batch> {
        let lengths: Vec<usize> = rows.iter().map(Vec::len).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        ensure!(
            longest <= backbone.positions(),
            "a text of {longest} tokens is longer than the model's {} positions: lower `max_length`",
            backbone.positions()
        );
        let starts = lengths.iter().scan(0, |end, length| {
            let start = *end;
            *end += length;
            Some(start)
        });
        Ok(Batch {
            starts: starts.collect(),
            segments: Segments::new(&lengths, backbone.place())?,
            tokens: backbone.tokens(&rows.concat())?,
        })
    }

    /// The number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens.numel()
    }

    /// The vector of each row, `[rows, hidden]`.
    pub fn vectors(&self, backbone: &Backbone, pass: Pass, pooling: Pooling) -> Result<Tensor> {
        let states = backbone.hidden(pass, &self.tokens, &self.segments)?;
        pooled(backbone, pooling, &states, &self.segments)
    }
}

/// The vectors of many rows without gradient, f32 (f64 stays), in the memory of the program, in the order of the rows: `[rows, hidden]`. `batch` rows go
/// through the model at once, of like length, so that the longest come at the end; `watch` hears of (rows done, tokens done).
pub fn vectors(
    backbone: &Backbone,
    pooling: Pooling,
    normalize: bool,
    rows: &[Vec<i64>],
    batch: usize,
    watch: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Tensor> {
    ensure!(!rows.is_empty(), "there are no texts");
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&index| rows[index].len());
    let (mut parts, mut done, mut tokens) = (Vec::new(), 0, 0);
    for chosen in order.chunks(batch.max(1)) {
        let own: Vec<Vec<i64>> = chosen.iter().map(|&index| rows[index].clone()).collect();
        let part = no_grad(|| -> Result<Tensor> {
            let batch = Batch::new(backbone, &own)?;
            tokens += batch.tokens();
            let found = batch.vectors(backbone, Pass::eval(), pooling)?;
            let found = if normalize {
                normalized(&found)?
            } else {
                found
            };
            Ok(found.f_to_device(HOST)?)
        })?;
        parts.push(part);
        done += chosen.len();
        watch(done, tokens)?;
    }
    let mut places = vec![0i64; rows.len()];
    for (place, &index) in (0i64..).zip(&order) {
        places[index] = place;
    }
    let sorted = Tensor::f_cat(&parts, 0)?;
    Ok(sorted.f_index_select(0, &Tensor::from_slice(&places))?)
}

/// What a head gives for vectors `[rows, hidden]`, without gradient: `[rows, outputs]`.
pub fn outputs(head: &Head, vectors: &Tensor) -> Result<Tensor> {
    no_grad(|| head.forward(Pass::eval(), vectors, &[]))
}

/// Reads a row: its tokens, and the place of its class or its number.
pub type ReadRow<'a> = dyn FnMut(usize) -> Result<(Vec<i64>, f64)> + 'a;

/// The objective: a model with a head, and a way to read rows.
pub struct Classifier<'a> {
    /// The model under the head.
    pub backbone: &'a Backbone,
    /// The head.
    pub head: &'a Head,
    /// Which vector stands for a row.
    pub pooling: Pooling,
    /// What the outputs are.
    pub task: Task,
    /// The number of rows.
    pub rows: usize,
    /// Reads row `i`: its tokens, and the place of its class or its number.
    pub read: Box<ReadRow<'a>>,
}

impl Objective for Classifier<'_> {
    type Batch = (Batch, Vec<f64>);

    fn rows(&self) -> usize {
        self.rows
    }

    fn batch(&mut self, rows: &[usize]) -> Result<(Batch, Vec<f64>)> {
        let (mut tokens, mut targets) = (Vec::new(), Vec::new());
        for &row in rows {
            let read = (self.read)(row);
            let (ids, target) = read.with_context(|| format!("row {row} of the data"))?;
            tokens.push(ids);
            targets.push(target);
        }
        Ok((Batch::new(self.backbone, &tokens)?, targets))
    }

    fn weight(&self, (_, targets): &(Batch, Vec<f64>)) -> f64 {
        targets.len() as f64
    }

    fn tokens(&self, (batch, _): &(Batch, Vec<f64>)) -> usize {
        batch.tokens()
    }

    fn loss(&mut self, pass: Pass, (batch, targets): &(Batch, Vec<f64>)) -> Result<Loss> {
        let vectors = batch.vectors(self.backbone, pass, self.pooling)?;
        let outputs = self.head.forward(pass, &vectors, &batch.starts)?;
        let (sum, sums) = head::loss(self.task, &outputs, targets)?;
        Ok(Loss {
            sum,
            weight: targets.len() as f64,
            sums,
        })
    }
}

/// Vectors as rows of numbers, f32.
pub fn numbers(vectors: &Tensor) -> Result<Vec<Vec<f32>>> {
    let width = vectors.size()[1] as usize;
    let flat: Vec<f32> = Vec::try_from(vectors.to_kind(Kind::Float).flatten(0, -1))?;
    Ok(flat.chunks(width.max(1)).map(<[f32]>::to_vec).collect())
}
