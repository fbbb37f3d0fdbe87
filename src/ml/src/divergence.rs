//! How far one model's predictions are from another's on the same tokens: KL, without a tensor of all logits.

use crate::linear::Pass;
use crate::llama::Llama;
use crate::sft::{Batch, Row};
use anyhow::{Result, ensure};
use tch::{Kind, Tensor, no_grad};

/// Rows of logits of each model that exist at a time. They are in f64, so they are fewer than those of a loss.
pub const CHUNK: i64 = 64;

/// Sums over the trained tokens of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// Trained tokens.
    pub count: usize,
    /// The sum of KL(first ‖ second) = Σ p_first (log p_first − log p_second), in nats.
    pub kl: f64,
    /// The largest of a token.
    pub largest: f64,
    /// The sums of `-log p(token)` under the first model and under the second.
    pub losses: [f64; 2],
}

impl Divergence {
    /// Adds what was found on other rows.
    pub fn add(&mut self, other: Divergence) {
        self.count += other.count;
        self.kl += other.kl;
        self.largest = self.largest.max(other.largest);
        for (sum, more) in self.losses.iter_mut().zip(other.losses) {
            *sum += more;
        }
    }
}

/// Compares two models of one vocabulary on one device, in chunks of `chunk` rows of logits, without gradient. Rows without a
/// trained token count nothing.
pub fn compare(
    first: &Llama,
    second: &Llama,
    pass: Pass,
    rows: &[Row],
    chunk: i64,
) -> Result<Divergence> {
    ensure!(chunk > 0, "a chunk of logits needs at least one row");
    let words = [first, second].map(|model| model.config.vocab_size);
    ensure!(
        words[0] == words[1],
        "models of {} and {} words can't be compared token by token",
        words[0],
        words[1]
    );
    no_grad(|| {
        let batch = Batch::new(first, rows)?;
        let mut found = Divergence {
            count: batch.trained(),
            ..Divergence::default()
        };
        if found.count == 0 {
            return Ok(found);
        }
        let (states, others) = (batch.states(first, pass)?, batch.states(second, pass)?);
        let all = found.count as i64;
        for start in (0..all).step_by(chunk as usize) {
            let length = chunk.min(all - start);
            let logs = |model: &Llama, states: &Tensor| -> Result<Tensor> {
                let logits = model.logits(pass, &states.f_narrow(0, start, length)?)?;
                // In f64: near models differ by less than f32 has digits for.
                Ok(logits.f_log_softmax(-1, Kind::Double)?)
            };
            let (p, q) = (logs(first, &states)?, logs(second, &others)?);
            let targets = batch.targets().f_narrow(0, start, length)?;
            let targets = targets.f_unsqueeze(-1)?;
            let loss = |logs: &Tensor| -> Result<f64> {
                let own = logs.f_gather(1, &targets, false)?;
                Ok(-own.f_sum(Kind::Double)?.f_double_value(&[])?)
            };
            // Never negative but for the last bits.
            let kl = (p.exp() * (&p - &q))
                .f_sum_dim_intlist(-1i64, false, None::<Kind>)?
                .clamp_min(0.0);
            let sum = kl.f_sum(Kind::Double)?.f_double_value(&[])?;
            ensure!(
                sum.is_finite(),
                "the models give probabilities that are not finite: the training of one of them diverged"
            );
            found.add(Divergence {
                count: 0,
                kl: sum,
                largest: kl.f_max()?.f_double_value(&[])?,
                losses: [loss(&p)?, loss(&q)?],
            });
        }
        Ok(found)
    })
}
