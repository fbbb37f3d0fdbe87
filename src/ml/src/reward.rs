//! A scalar head on a causal model: reward models and critics; the objectives that train reward models.

use crate::completions::{self, Row};
use crate::fit::{Objective, read_rows};
use crate::linear::Pass;
use crate::llama::Llama;
use crate::loss::Loss;
use crate::params::Params;
use crate::place::{HOST, Place};
use crate::random::Stream;
use crate::ranking;
use anyhow::{Result, ensure};
use tch::{Kind, Tensor, no_grad};

/// The name of the head's weight, as `AutoModelForSequenceClassification` has it.
pub use formats::REWARD_HEAD as HEAD;

/// The head: `[1, width]`, f32 (f64 stays), whatever the model's type.
#[derive(Debug)]
pub struct Head(pub Tensor);

impl Head {
    /// Takes a weight as parameter [`HEAD`].
    pub fn new(weight: &Tensor, place: Place, params: &mut Params) -> Result<Head> {
        ensure!(
            weight.dim() == 2 && weight.size()[0] == 1,
            "the head of a reward model is one row, not {:?}",
            weight.size()
        );
        let kind = match place.kind {
            Kind::Double => Kind::Double,
            _ => Kind::Float,
        };
        let weight = weight
            .f_to_device(place.device)?
            .f_to_kind(kind)?
            .contiguous();
        params.add(HEAD, &weight, true)?;
        Ok(Head(weight))
    }

    /// A fresh head, normal with deviation 1 / √(width + 1) (Stiennon et al., arXiv 2009.01325), drawn from the stream
    /// `init score`; a scale of 0 gives zeros, as a critic begins.
    pub fn fresh(width: usize, seed: u64, scale: f64) -> Tensor {
        let mut numbers = vec![0f32; width];
        Stream::new(seed, "init score").fill_normal(&mut numbers);
        let deviation = (scale / (width as f64 + 1.0).sqrt()) as f32;
        let numbers: Vec<f32> = numbers.into_iter().map(|x| x * deviation).collect();
        Tensor::from_slice(&numbers)
            .view([1, width as i64])
            .to_device(HOST)
    }

    /// A number for each state, `[states]`.
    pub fn scores(&self, states: &Tensor) -> Result<Tensor> {
        let states = states.to_kind(self.0.kind());
        Ok(states.f_matmul(&self.0.tr())?.squeeze_dim(1))
    }
}

/// The score of each row: the head on its last token's state.
pub fn scores(
    model: &Llama,
    head: &Head,
    pass: Pass,
    batch: &completions::Batch,
) -> Result<Tensor> {
    head.scores(&batch.last(&batch.hidden(model, pass)?)?)
}

/// The scores of many rows without gradient, `batch` at a time.
pub fn score_all(
    model: &Llama,
    head: &Head,
    rows: &[Row],
    batch: usize,
    watch: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<f64>> {
    let mut all = Vec::with_capacity(rows.len());
    // Rows of like length go together, so that no forward is longer than it must be.
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&index| rows[index].tokens.len());
    for chosen in order.chunks(batch.max(1)) {
        let own: Vec<Row> = chosen.iter().map(|&index| rows[index].clone()).collect();
        let found = no_grad(|| {
            let batch = completions::Batch::new(model, &own)?;
            scores(model, head, Pass::eval(), &batch)
        })?;
        let found: Vec<f64> = Vec::try_from(found.to_kind(Kind::Double))?;
        all.extend(chosen.iter().copied().zip(found));
        watch(all.len())?;
    }
    all.sort_by_key(|(index, _)| *index);
    let scores: Vec<f64> = all.into_iter().map(|(_, score)| score).collect();
    ensure!(
        scores.iter().all(|score| score.is_finite()),
        "the reward model gives scores that are not finite: its training diverged"
    );
    Ok(scores)
}

/// What a reward model is trained by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RewardLoss {
    /// −log σ(r_c − r_r − margin), the margin where `margins` says so.
    Pairs {
        /// Whether the data's margins are subtracted (Llama 2, arXiv 2307.09288).
        margins: bool,
    },
    /// All pairs of a ranking, weighted 1 / C(k, 2).
    AllPairs,
    /// Plackett and Luce.
    PlackettLuce,
    /// (r − score)².
    Regression,
}

/// Completions of one prompt, and what is known of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// A pair: chosen, rejected; a ranking: best first; a scored row: one.
    pub rows: Vec<Row>,
    /// A pair's margin or NaN; a score.
    pub value: f64,
}

/// Some groups, ready for a forward.
#[derive(Debug)]
pub struct Batch {
    rows: completions::Batch,
    sizes: Vec<usize>,
    values: Vec<f64>,
}

/// The objective: a model with a head and a way to read groups.
pub struct Reward<'a> {
    /// The model under the head.
    pub model: &'a Llama,
    /// The head.
    pub head: &'a Head,
    /// The number of groups.
    pub groups: usize,
    /// Reads group `i`.
    pub read: Box<dyn FnMut(usize) -> Result<Group> + 'a>,
    /// What is minimised.
    pub loss: RewardLoss,
    /// The weight of the mean of (r_c + r_r)², which keeps rewards around 0 (arXiv 2312.09244); 0 for none.
    pub centering: f64,
}

impl Objective for Reward<'_> {
    type Batch = Batch;

    fn rows(&self) -> usize {
        self.groups
    }

    fn batch(&mut self, rows: &[usize]) -> Result<Batch> {
        let groups = read_rows(rows, &mut self.read)?;
        let all: Vec<Row> = groups.iter().flat_map(|g| g.rows.iter().cloned()).collect();
        let sizes: Vec<usize> = groups.iter().map(|g| g.rows.len()).collect();
        Ok(Batch {
            rows: completions::Batch::of_groups(self.model, &all, &sizes)?,
            sizes,
            values: groups.iter().map(|g| g.value).collect(),
        })
    }

    fn weight(&self, batch: &Batch) -> f64 {
        batch.sizes.len() as f64
    }

    fn tokens(&self, batch: &Batch) -> usize {
        batch.rows.tokens()
    }

    fn loss(&mut self, pass: Pass, batch: &Batch) -> Result<Loss> {
        let scores = scores(self.model, self.head, pass, &batch.rows)?;
        let (sum, mut sums) = group_loss(
            self.loss,
            self.centering,
            &scores,
            &batch.sizes,
            &batch.values,
        )?;
        sums.push(("reward", mean_of_groups(&scores, &batch.sizes)));
        Ok(Loss {
            sum,
            weight: batch.sizes.len() as f64,
            sums,
        })
    }
}

/// The sum over groups of their mean scores.
fn mean_of_groups(scores: &Tensor, sizes: &[usize]) -> f64 {
    let values: Vec<f64> = Vec::try_from(scores.detach().to_kind(Kind::Double)).unwrap_or_default();
    let mut start = 0;
    let means = sizes.iter().map(|&size| {
        let own = &values[start..start + size];
        start += size;
        own.iter().sum::<f64>() / size as f64
    });
    means.sum()
}

/// The sum over groups of their losses on these scores, and what is measured.
pub fn group_loss(
    loss: RewardLoss,
    centering: f64,
    scores: &Tensor,
    sizes: &[usize],
    values: &[f64],
) -> Result<(Tensor, Vec<(&'static str, f64)>)> {
    ensure!(
        scores.numel() == sizes.iter().sum::<usize>() && sizes.len() == values.len(),
        "{} scores for groups of {} rows",
        scores.numel(),
        sizes.iter().sum::<usize>()
    );
    let known = |values: &[f64]| {
        Tensor::from_slice(values)
            .to_kind(scores.kind())
            .to_device(scores.device())
    };
    match loss {
        RewardLoss::Regression => {
            let errors = scores - known(values);
            let absolute = errors.detach().abs().sum(Kind::Double).double_value(&[]);
            Ok((
                errors.square().sum(None::<Kind>),
                vec![("absolute_error", absolute)],
            ))
        }
        RewardLoss::Pairs { margins } => {
            ensure!(
                sizes.iter().all(|&size| size == 2),
                "a pair has two completions"
            );
            let (chosen, rejected) = (scores.slice(0, 0, None, 2), scores.slice(0, 1, None, 2));
            let margin = margins.then(|| known(values));
            let each = ranking::bradley_terry(&chosen, &rejected, margin.as_ref());
            let mut sum = each.sum(None::<Kind>);
            if centering > 0.0 {
                sum += (&chosen + &rejected).square().sum(None::<Kind>) * centering;
            }
            let right = chosen
                .gt_tensor(&rejected)
                .sum(Kind::Double)
                .double_value(&[]);
            let difference = (chosen - rejected).detach().sum(Kind::Double);
            let sums = vec![
                ("accuracy", right),
                ("margin", difference.double_value(&[])),
            ];
            Ok((sum, sums))
        }
        RewardLoss::AllPairs | RewardLoss::PlackettLuce => {
            let (mut parts, mut start, mut right) = (Vec::new(), 0, 0.0);
            for &size in sizes {
                let own = scores.narrow(0, start, size as i64);
                parts.push(match loss {
                    RewardLoss::AllPairs => ranking::all_pairs(&own)?,
                    _ => ranking::plackett_luce(&own)?,
                });
                right += pairs_in_order(&Vec::try_from(own.detach().to_kind(Kind::Double))?);
                start += size as i64;
            }
            Ok((
                Tensor::f_stack(&parts, 0)?.sum(None::<Kind>),
                vec![("accuracy", right)],
            ))
        }
    }
}

/// The fraction of pairs of a ranking whose scores are in its order.
fn pairs_in_order(scores: &[f64]) -> f64 {
    let (mut right, mut all) = (0usize, 0usize);
    for (i, better) in scores.iter().enumerate() {
        for worse in &scores[i + 1..] {
            right += usize::from(better > worse);
            all += 1;
        }
    }
    right as f64 / all.max(1) as f64
}
