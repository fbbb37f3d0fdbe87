//! The objectives of preference training: DPO's family, list-wise DPO, CPO and SimPO, ORPO, KTO. They share how a batch is read
//! and what is measured; the losses themselves are in [`pair`] and [`free`].

pub mod free;
pub mod pair;

use crate::completions::{self, Row};
use crate::fit::{Objective, read_rows};
use crate::linear::Pass;
use crate::llama::Llama;
use crate::loss::{Loss, TokenValues};
use crate::ranking;
use anyhow::{Context, Result, ensure};
use free::{CpoLoss, Kto};
use pair::{PairLoss, Settings, Side};
use std::ops::Range;
use tch::{Kind, Tensor, no_grad};

/// Completions of one prompt that are compared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// A pair: chosen, rejected. A ranking: best first. Unpaired: the row and, where KTO has a baseline, the prompt with another
    /// row's completion.
    pub rows: Vec<Row>,
    /// The reference's log-probability of each completion token, for each row; empty where no reference is needed.
    pub reference: Vec<Vec<f32>>,
    /// A pair: the margin, or NaN. Unpaired: 1 for desirable, 0 for undesirable.
    pub value: f64,
}

/// What is minimised.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// A weighted sum of losses on pairs.
    Dpo {
        /// Losses with their weights.
        losses: Vec<(PairLoss, f64)>,
        /// What they share.
        settings: Settings,
        /// LD-DPO (arXiv 2409.06411): tokens beyond the length of the shorter completion count this much.
        ld_alpha: Option<f64>,
        /// WPO (arXiv 2406.11827): pairs weighted by how likely the policy finds both completions.
        weighted: bool,
        /// The label is σ(margin) instead of certain (arXiv 2402.08005).
        soft_labels: bool,
    },
    /// Plackett and Luce's probability of the ranking under the scores β(log π − log π_ref).
    Ranking {
        /// β.
        beta: f64,
    },
    /// CPO or SimPO with `nll` times the cross entropy of the chosen completions.
    Cpo {
        /// The loss of a pair.
        loss: CpoLoss,
        /// β.
        beta: f64,
        /// ε.
        label_smoothing: f64,
        /// The weight of the cross entropy.
        nll: f64,
    },
    /// ORPO: the cross entropy of prompt and chosen completion, and β times the odds ratio.
    Orpo {
        /// β.
        beta: f64,
    },
    /// KTO.
    Kto(Kto),
}

/// Some groups, ready for a forward.
#[derive(Debug)]
pub struct Batch {
    rows: completions::Batch,
    sizes: Vec<usize>,
    /// Of each completion token.
    reference: Option<Tensor>,
    /// The mismatched rows of KTO's baseline, with their reference.
    mismatched: Option<(completions::Batch, Tensor)>,
    values: Vec<f64>,
    /// Tokens of the first rows of the groups: of the completion, of the whole row without its first.
    chosen: (usize, usize),
}

/// Sums over all micro-batches of a step, for terms that are means over tokens, and KTO's baseline.
#[derive(Clone, Copy, Debug, Default)]
struct Whole {
    groups: f64,
    chosen: f64,
    chosen_rows: f64,
    desirable: f64,
    baseline: f64,
}

/// The objective: a model and a way to read groups.
pub struct Preference<'a> {
    /// The policy.
    pub model: &'a Llama,
    /// The number of groups.
    pub groups: usize,
    /// Reads group `i`.
    pub read: Box<dyn FnMut(usize) -> Result<Group> + 'a>,
    /// What is minimised.
    pub method: Method,
    whole: Whole,
}

impl<'a> Preference<'a> {
    /// An objective over `groups` groups.
    pub fn new(
        model: &'a Llama,
        groups: usize,
        read: Box<dyn FnMut(usize) -> Result<Group> + 'a>,
        method: Method,
    ) -> Self {
        Self {
            model,
            groups,
            read,
            method,
            whole: Whole::default(),
        }
    }
}

impl Objective for Preference<'_> {
    type Batch = Batch;

    fn rows(&self) -> usize {
        self.groups
    }

    fn batch(&mut self, rows: &[usize]) -> Result<Batch> {
        let groups = read_rows(rows, &mut self.read)?;
        for group in &groups {
            let wanted = match self.method {
                Method::Ranking { .. } => group.rows.len() >= 2,
                Method::Kto(settings) if settings.apo_zero => (1..=2).contains(&group.rows.len()),
                _ => group.rows.len() == 2,
            };
            ensure!(
                wanted,
                "{} completions where a pair belongs",
                group.rows.len()
            );
        }
        // The loss of KTO is one of single rows; the second ones are for the baseline only.
        let (own, mismatched) = match self.method {
            Method::Kto(settings) => {
                let mismatched = (!settings.apo_zero)
                    .then(|| self.joined(&groups, 1..2))
                    .transpose()?;
                (0..1, mismatched)
            }
            _ => (0..usize::MAX, None),
        };
        let (rows, reference) = self.joined(&groups, own)?;
        let mismatched = match mismatched {
            Some((rows, reference)) => Some((rows, reference.context("KTO needs a reference")?)),
            None => None,
        };
        let first = groups.iter().filter_map(|g| g.rows.first());
        Ok(Batch {
            rows,
            sizes: groups.iter().map(|g| g.rows.len()).collect(),
            reference,
            mismatched,
            values: groups.iter().map(|g| g.value).collect(),
            chosen: first.fold((0, 0), |(completion, row), r| {
                (completion + r.completion(), row + r.tokens.len() - 1)
            }),
        })
    }

    fn weight(&self, batch: &Batch) -> f64 {
        batch.sizes.len() as f64
    }

    fn tokens(&self, batch: &Batch) -> usize {
        batch.rows.tokens()
    }

    fn begin(&mut self, batches: &[Batch]) -> Result<()> {
        let (mut sum, mut count) = (0.0, 0.0f64);
        for batch in batches {
            let Some((rows, reference)) = &batch.mismatched else {
                continue;
            };
            let values = no_grad(|| rows.values(self.model, Pass::eval(), 1.0, false))?;
            sum += total(&(values.log_probabilities - reference));
            count += batch.sizes.len() as f64;
        }
        // Checked here, since the maximum of zero and what is no number is zero.
        ensure!(
            f64::is_finite(sum),
            "the log-ratios of the mismatched rows come to {sum}: the model's weights are damaged, or the training diverged"
        );
        self.count(batches, (sum / count.max(1.0)).max(0.0));
        Ok(())
    }

    fn loss(&mut self, pass: Pass, batch: &Batch) -> Result<Loss> {
        let hidden = batch.rows.hidden(self.model, pass)?;
        let states = batch.rows.before_completions(&hidden)?;
        let weighted = matches!(self.method, Method::Dpo { weighted: true, .. });
        let tokens = batch.rows.values_of(self.model, &states, 1.0, weighted)?;
        let prompts = match self.method {
            Method::Orpo { .. } => {
                let first: Vec<usize> = (0..batch.sizes.len()).map(|pair| 2 * pair).collect();
                batch
                    .rows
                    .prompt_cross_entropy(self.model, &hidden, &first)?
            }
            _ => None,
        };
        self.loss_of(batch, &tokens, prompts)
    }
}

/// Every `of`-th number from `first` on.
fn side(values: &Tensor, first: i64, of: i64) -> Tensor {
    values.slice(0, first, None, of)
}

fn total(values: &Tensor) -> f64 {
    values.sum(Kind::Double).double_value(&[])
}

/// What TRL logs of pairs: rewards β(log π − log π_ref) of both sides, their difference, and how often it is positive.
fn pair_metrics(chosen: &Tensor, rejected: &Tensor) -> Vec<(&'static str, f64)> {
    no_grad(|| {
        let right = chosen.gt_tensor(rejected);
        vec![
            ("rewards/chosen", total(chosen)),
            ("rewards/rejected", total(rejected)),
            ("rewards/margins", total(&(chosen - rejected))),
            ("rewards/accuracies", total(&right.to_kind(Kind::Double))),
        ]
    })
}

impl Preference<'_> {
    /// The rows at these places of each group, and the reference's log-probability of each completion token, where it is known.
    fn joined(
        &self,
        groups: &[Group],
        places: Range<usize>,
    ) -> Result<(completions::Batch, Option<Tensor>)> {
        let (mut rows, mut sizes) = (Vec::new(), Vec::new());
        let mut reference: Vec<f32> = Vec::new();
        for group in groups {
            let end = places.end.min(group.rows.len());
            rows.extend_from_slice(&group.rows[places.start..end]);
            sizes.push(end - places.start);
            if !group.reference.is_empty() {
                ensure!(
                    group.reference.len() == group.rows.len(),
                    "the reference knows {} completions of {}",
                    group.reference.len(),
                    group.rows.len()
                );
                reference.extend(group.reference[places.start..end].iter().flatten());
            }
        }
        let tokens: usize = rows.iter().map(Row::completion).sum();
        ensure!(
            reference.is_empty() || reference.len() == tokens,
            "the reference has {} log-probabilities for {tokens} tokens",
            reference.len()
        );
        let reference: Option<Tensor> = (!reference.is_empty())
            .then(|| Tensor::from_slice(&reference).to_device(self.model.place.device));
        let rows = completions::Batch::of_groups(self.model, &rows, &sizes)?;
        Ok((rows, reference))
    }

    /// The loss of a batch of which the model says this of the completions' tokens; `prompts` is the cross entropy of the chosen
    /// rows' prompts, for ORPO.
    pub fn loss_of(
        &self,
        batch: &Batch,
        tokens: &TokenValues,
        prompts: Option<Tensor>,
    ) -> Result<Loss> {
        let sums = batch.rows.sums(&tokens.log_probabilities)?;
        let counted = match &self.method {
            Method::Dpo { .. } => self.dpo(batch, tokens, &sums)?,
            Method::Ranking { beta } => self.ranking(batch, &sums, *beta)?,
            Method::Cpo { .. } | Method::Orpo { .. } => self.free(batch, &sums, prompts)?,
            Method::Kto(settings) => self.kto(batch, &sums, settings)?,
        };
        Ok(Loss {
            weight: batch.sizes.len() as f64,
            ..counted
        })
    }

    /// What a step's micro-batches come to together, with KTO's baseline.
    pub fn count(&mut self, batches: &[Batch], baseline: f64) {
        let mut whole = Whole {
            baseline,
            ..Whole::default()
        };
        for batch in batches {
            whole.groups += batch.sizes.len() as f64;
            whole.chosen += batch.chosen.0 as f64;
            whole.chosen_rows += batch.chosen.1 as f64;
            if matches!(self.method, Method::Kto(_)) {
                let good = batch.values.iter().filter(|value| **value > 0.5);
                whole.desirable += good.count() as f64;
            }
        }
        self.whole = whole;
    }

    fn dpo(&self, batch: &Batch, tokens: &TokenValues, sums: &Tensor) -> Result<Loss> {
        let Method::Dpo {
            losses,
            settings,
            ld_alpha,
            soft_labels,
            weighted,
        } = &self.method
        else {
            unreachable!("called for DPO only")
        };
        let reference = batch.reference.as_ref().context("DPO needs a reference")?;
        let kind = sums.kind();
        let reference = reference.to_kind(kind);
        let (policy, reference) = match ld_alpha {
            None => (sums.shallow_clone(), batch.rows.sums(&reference)?),
            Some(alpha) => {
                let weights = Tensor::from_slice(&tail_weights(batch.rows.counts(), *alpha));
                let weights = weights.to_kind(kind).to_device(sums.device());
                (
                    batch.rows.sums(&(&tokens.log_probabilities * &weights))?,
                    batch.rows.sums(&(reference * weights))?,
                )
            }
        };
        let lengths = batch.rows.lengths(sums);
        let [chosen, rejected] = [0, 1].map(|at| Side {
            policy: side(&policy, at, 2),
            reference: side(&reference, at, 2),
            tokens: side(&lengths, at, 2),
            total: side(sums, at, 2),
        });
        let soft = soft_labels.then(|| {
            let margins = Tensor::from_slice(&batch.values).to_kind(kind);
            margins.to_device(sums.device()).sigmoid()
        });
        let pairs = batch.sizes.len() as i64;
        let mut all = Tensor::zeros([pairs], (kind, sums.device()));
        let whole = (self.whole.chosen, self.whole.groups);
        for (loss, weight) in losses {
            let each = pair::pair_loss(*loss, &chosen, &rejected, settings, soft.as_ref(), whole)?;
            all += each * *weight;
        }
        if *weighted {
            all *= self.likelihoods(batch, tokens)?;
        }
        let rewards = |side: &Side| side.ratio().detach() * settings.beta;
        let mut sums = pair_metrics(&rewards(&chosen), &rewards(&rejected));
        sums.push(("logps/chosen", total(&chosen.policy.detach())));
        sums.push(("logps/rejected", total(&rejected.policy.detach())));
        Ok(Loss {
            sum: all.sum(None::<Kind>),
            weight: 0.0,
            sums,
        })
    }

    /// exp of the mean over tokens of log p − log Σ p², for both completions of a pair multiplied.
    fn likelihoods(&self, batch: &Batch, tokens: &TokenValues) -> Result<Tensor> {
        no_grad(|| {
            let aligned = &tokens.log_probabilities - &tokens.log_squares;
            let means = batch.rows.sums(&aligned)? / batch.rows.lengths(&aligned);
            let weights = means.exp();
            Ok(side(&weights, 0, 2) * side(&weights, 1, 2))
        })
    }

    fn ranking(&self, batch: &Batch, sums: &Tensor, beta: f64) -> Result<Loss> {
        let reference = batch.reference.as_ref().context("DPO needs a reference")?;
        let reference = batch.rows.sums(&reference.to_kind(sums.kind()))?;
        let scores = (sums - reference) * beta;
        let mut parts = Vec::new();
        let (mut start, mut right) = (0, 0.0);
        for &size in &batch.sizes {
            let own = scores.narrow(0, start, size as i64);
            right += f64::from(u8::from(own.argmax(0, false).int64_value(&[]) == 0));
            parts.push(ranking::plackett_luce(&own)?);
            start += size as i64;
        }
        Ok(Loss {
            sum: Tensor::f_stack(&parts, 0)?.sum(None::<Kind>),
            weight: 0.0,
            sums: vec![("best_first", right)],
        })
    }

    fn free(&self, batch: &Batch, sums: &Tensor, prompts: Option<Tensor>) -> Result<Loss> {
        let lengths = batch.rows.lengths(sums);
        let (c, r) = (side(sums, 0, 2), side(sums, 1, 2));
        let (nc, nr) = (side(&lengths, 0, 2), side(&lengths, 1, 2));
        let groups = self.whole.groups;
        let (each, rewards, nll, share, tokens) = match &self.method {
            Method::Cpo {
                loss,
                beta,
                label_smoothing,
                nll,
            } => {
                let of = |sum, tokens| free::cpo_reward(*loss, (sum, tokens));
                let (better, worse) = (of(&c, &nc), of(&r, &nr));
                let each = free::cpo(*loss, &better, &worse, *beta, *label_smoothing);
                let rewards = (better * *beta, worse * *beta);
                let entropy = -c.sum(None::<Kind>);
                let share = nll * groups / self.whole.chosen;
                (each, rewards, entropy, share, self.whole.chosen)
            }
            Method::Orpo { beta } => {
                let ratio = free::log_odds_ratio((&c, &nc), (&r, &nr));
                let mut entropy = -c.sum(None::<Kind>);
                if let Some(prompts) = prompts {
                    entropy += prompts;
                }
                let rewards = (&c / &nc * *beta, &r / &nr * *beta);
                let share = groups / self.whole.chosen_rows;
                let each = ratio.log_sigmoid() * -*beta;
                (each, rewards, entropy, share, self.whole.chosen_rows)
            }
            _ => unreachable!("called for CPO and ORPO only"),
        };
        let mut metrics = pair_metrics(&rewards.0.detach(), &rewards.1.detach());
        if share != 0.0 {
            metrics.push(("nll_loss", total(&nll.detach()) * groups / tokens));
        }
        let sum = each.sum(None::<Kind>);
        Ok(Loss {
            sum: if share == 0.0 { sum } else { sum + nll * share },
            weight: 0.0,
            sums: metrics,
        })
    }

    fn kto(&self, batch: &Batch, sums: &Tensor, settings: &Kto) -> Result<Loss> {
        let reference = batch.reference.as_ref().context("KTO needs a reference")?;
        let reference = batch.rows.sums(&reference.to_kind(sums.kind()))?;
        let ratios = sums - reference;
        let desirable: Vec<bool> = batch.values.iter().map(|value| *value > 0.5).collect();
        let each = free::kto(&ratios, &desirable, self.whole.baseline, settings)?;
        let good = Tensor::from_slice(&desirable).to_device(ratios.device());
        let (rewards, logps) = (ratios.detach() * settings.beta, sums.detach());
        let groups = self.whole.groups;
        let mut sums = vec![("kl", self.whole.baseline * batch.sizes.len() as f64)];
        // Means over the rows of one kind in the whole step, which `fit` divides by all of its rows.
        for (names, kind, count) in [
            (
                ["rewards/chosen", "logps/chosen"],
                &good,
                self.whole.desirable,
            ),
            (
                ["rewards/rejected", "logps/rejected"],
                &good.logical_not(),
                groups - self.whole.desirable,
            ),
        ] {
            for (name, values) in names.into_iter().zip([&rewards, &logps]) {
                if count > 0.0 {
                    let part = values * kind.to_kind(values.kind());
                    sums.push((name, total(&part) * groups / count));
                }
            }
        }
        Ok(Loss {
            sum: each.sum(None::<Kind>),
            weight: 0.0,
            sums,
        })
    }
}

/// 1 for the tokens of a pair up to the length of its shorter completion, `alpha` beyond.
fn tail_weights(counts: &[usize], alpha: f64) -> Vec<f64> {
    let mut weights = Vec::new();
    for pair in counts.chunks(2) {
        let shared = pair.iter().copied().min().unwrap_or(0);
        for &count in pair {
            weights.extend((0..count).map(|at| if at < shared { 1.0 } else { alpha }));
        }
    }
    weights
}
