//! Heads on vectors of rows: a linear map or a multilayer perceptron, for classes or for a number; and their training on vectors that are there.

use crate::fit::Objective;
use crate::linear::Pass;
use crate::loss::Loss;
use crate::params::Params;
use crate::place::{HOST, Place};
use crate::random::Stream;
use crate::torch;
use anyhow::{Context, Result, ensure};
use tch::{Kind, Tensor, no_grad};

pub use formats::head::{Activation, Names, Shape, Task};

fn activated(activation: Activation, x: &Tensor) -> Result<Tensor> {
    Ok(match activation {
        Activation::Relu => x.f_relu()?,
        Activation::Gelu => x.f_gelu("none")?,
        Activation::Tanh => x.f_tanh()?,
    })
}

#[derive(Debug)]
struct Layer {
    name: String,
    /// `[outputs, inputs]`.
    weight: Tensor,
    /// `[outputs]`.
    bias: Option<Tensor>,
}

/// A head: f32 (f64 stays), whatever the type of the model's states.
#[derive(Debug)]
pub struct Head {
    /// Its shape.
    pub shape: Shape,
    /// The probability that a number is dropped before a layer in training.
    pub dropout: f64,
    layers: Vec<Layer>,
}

impl Head {
    /// A fresh head, whose tensors become trained parameters: weights uniform in ±1/√inputs (torch's `Linear`), drawn from the
    /// streams `init NAME`, biases 0.
    pub fn fresh(
        shape: &Shape,
        dropout: f64,
        seed: u64,
        place: Place,
        params: &mut Params,
    ) -> Result<Head> {
        Head::build(shape, dropout, place, params, &mut |name, size| {
            let count: i64 = size.iter().product();
            if name.ends_with(".bias") {
                return Ok(Tensor::zeros(size, (Kind::Float, HOST)));
            }
            let bound = 1.0 / (size[1] as f64).sqrt();
            let mut stream = Stream::new(seed, &format!("init {name}"));
            let numbers: Vec<f32> = (0..count)
                .map(|_| ((2.0 * stream.uniform() - 1.0) * bound) as f32)
                .collect();
            Ok(Tensor::from_slice(&numbers).f_view(size)?)
        })
    }

    /// A head from tensors by their names, each of which must be there with its shape, and no other.
    pub fn stored(
        shape: &Shape,
        tensors: &[(String, Tensor)],
        place: Place,
        params: &mut Params,
    ) -> Result<Head> {
        let mut read = 0;
        let head = Head::build(shape, 0.0, place, params, &mut |name, _| {
            read += 1;
            let found = tensors.iter().find(|(own, _)| own == name);
            let (_, tensor) = found.with_context(|| format!("the tensor {name:?} is missing"))?;
            ensure!(
                matches!(tensor.kind(), Kind::Float | Kind::Double),
                "the tensor {name:?} of a head is {:?}, not f32",
                tensor.kind()
            );
            Ok(tensor.shallow_clone())
        })?;
        ensure!(
            read == tensors.len(),
            "the head has {} tensors, of which its shape asks for {read}",
            tensors.len()
        );
        Ok(head)
    }

    /// Builds a head from any source of tensors.
    pub fn build(
        shape: &Shape,
        dropout: f64,
        place: Place,
        params: &mut Params,
        source: &mut dyn FnMut(&str, &[i64]) -> Result<Tensor>,
    ) -> Result<Head> {
        ensure!(
            (0.0..1.0).contains(&dropout),
            "dropout {dropout} is not in [0, 1)"
        );
        let kind = match place.kind {
            Kind::Double => Kind::Double,
            _ => Kind::Float,
        };
        let mut take = |name: &str, size: &[i64]| -> Result<Tensor> {
            let tensor = source(name, size)?;
            ensure!(
                tensor.size() == size,
                "the tensor {name:?} has the shape {:?}, but the head asks for {size:?}",
                tensor.size()
            );
            let tensor = tensor.f_to_device(place.device)?.f_to_kind(kind)?;
            let tensor = tensor.f_contiguous()?;
            params.add(name, &tensor, true)?;
            Ok(tensor)
        };
        let mut layers = Vec::new();
        for (index, (input, output)) in shape.layers()?.into_iter().enumerate() {
            let (input, output) = (i64::try_from(input)?, i64::try_from(output)?);
            let name = shape.names.layer(index);
            let weight = take(&format!("{name}.weight"), &[output, input])?;
            let bias = match shape.bias {
                true => Some(take(&format!("{name}.bias"), &[output])?),
                false => None,
            };
            layers.push(Layer { name, weight, bias });
        }
        Ok(Head {
            shape: shape.clone(),
            dropout,
            layers,
        })
    }

    /// Its tensors by name, without gradients.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut all = Vec::new();
        for layer in &self.layers {
            all.push((format!("{}.weight", layer.name), layer.weight.detach()));
            if let Some(bias) = &layer.bias {
                all.push((format!("{}.bias", layer.name), bias.detach()));
            }
        }
        all
    }

    /// Sets the bias of the result, where there is one: what a head says of a vector of which it knows nothing.
    pub fn start_at(&self, value: f64) {
        if let Some(bias) = self.layers.last().and_then(|layer| layer.bias.as_ref()) {
            no_grad(|| {
                let _ = bias.shallow_clone().fill_(value);
            });
        }
    }

    /// The same head for vectors x of which it was trained on (x − `mean`) / `deviation`: W ← W / deviation, b ← b − W mean, in f64.
    /// Errors where it has no bias to take the mean.
    pub fn absorb(&self, mean: &[f64], deviation: &[f64]) -> Result<()> {
        let layer = self.layers.first().context("BUG: a head has a layer")?;
        let bias = layer
            .bias
            .as_ref()
            .context("a head without bias can't take a shift in")?;
        ensure!(
            mean.len() == self.shape.input && deviation.len() == self.shape.input,
            "vectors of {} numbers were scaled by {} and shifted by {}",
            self.shape.input,
            deviation.len(),
            mean.len()
        );
        no_grad(|| {
            let device = layer.weight.device();
            let wide = |numbers: &[f64]| Tensor::from_slice(numbers).to_device(device);
            let weight = layer.weight.to_kind(Kind::Double).f_div(&wide(deviation))?;
            let shift = weight.f_matmul(&wide(mean))?;
            let shifted = bias.to_kind(Kind::Double).f_sub(&shift)?;
            layer.weight.shallow_clone().f_copy_(&weight)?;
            bias.shallow_clone().f_copy_(&shifted)?;
            Ok(())
        })
    }

    /// `vectors [rows, input]` → `[rows, outputs]`. `places` say where each row begins among what goes through this forward, in the
    /// units of [`Pass::first`]: a row's dropout mask does not depend on the micro-batch it is in.
    pub fn forward(&self, pass: Pass, vectors: &Tensor, places: &[usize]) -> Result<Tensor> {
        let mut x = vectors.shallow_clone();
        let last = self.layers.len().saturating_sub(1);
        for (index, layer) in self.layers.iter().enumerate() {
            x = x.to_kind(layer.weight.kind());
            x = self.dropped(pass, &layer.name, &x, places)?;
            x = x.f_linear(&layer.weight, layer.bias.as_ref())?;
            if index < last {
                x = activated(self.shape.activation, &x)?;
            }
        }
        Ok(x)
    }

    fn dropped(&self, pass: Pass, name: &str, x: &Tensor, places: &[usize]) -> Result<Tensor> {
        if !pass.train || self.dropout <= 0.0 {
            return Ok(x.shallow_clone());
        }
        let size = x.size();
        ensure!(
            size[0] == places.len() as i64 && !places.is_empty(),
            "{} rows have {} places",
            size[0],
            places.len()
        );
        let seed = Stream::new(pass.draw, &format!("dropout {name}")).next_u64();
        let drop = |x: &Tensor, place: usize| {
            let first = (pass.first + place) as i64 * size[1];
            torch::dropout(x, self.dropout, seed, first)
        };
        if places.windows(2).all(|pair| pair[1] == pair[0] + 1) {
            return drop(x, places[0]);
        }
        let rows = places.iter().zip(0i64..);
        let rows = rows.map(|(place, row)| drop(&x.narrow(0, row, 1).contiguous(), *place));
        Ok(Tensor::f_cat(&rows.collect::<Result<Vec<_>>>()?, 0)?)
    }
}

/// The sum over rows of −log softmax(outputs)[target], or of (output − target)², with a gradient; and what is measured of them.
/// `outputs [rows, classes]` or `[rows, 1]`; a target is the place of a class, or a number.
pub fn loss(
    task: Task,
    outputs: &Tensor,
    targets: &[f64],
) -> Result<(Tensor, Vec<(&'static str, f64)>)> {
    let size = outputs.size();
    ensure!(
        size.len() == 2 && size[0] == targets.len() as i64,
        "outputs of the shape {size:?} for {} rows",
        targets.len()
    );
    match task {
        Task::Classification => {
            let classes = size[1] as f64;
            let classed = |target: &f64| (0.0..classes).contains(target) && target.fract() == 0.0;
            ensure!(
                targets.iter().all(classed),
                "a class is not among the {} of the head",
                size[1]
            );
            let targets: Vec<i64> = targets.iter().map(|target| *target as i64).collect();
            let targets = Tensor::from_slice(&targets).to_device(outputs.device());
            let all = outputs.f_log_softmax(-1, outputs.kind())?;
            let own = all.f_gather(1, &targets.f_unsqueeze(1)?, false)?;
            let right = outputs.detach().f_argmax(-1, false)?;
            let right = right.eq_tensor(&targets).sum(Kind::Double);
            let sum = own.sum(None::<Kind>).f_neg()?;
            Ok((sum, vec![("accuracy", right.double_value(&[]))]))
        }
        Task::Regression => {
            ensure!(
                size[1] == 1,
                "a head for a number has one output, not {}",
                size[1]
            );
            let targets = Tensor::from_slice(targets)
                .to_kind(outputs.kind())
                .to_device(outputs.device());
            let errors = outputs.squeeze_dim(1).f_sub(&targets)?;
            let absolute = errors.detach().abs().sum(Kind::Double).double_value(&[]);
            let sum = errors.square().sum(None::<Kind>);
            Ok((sum, vec![("absolute_error", absolute)]))
        }
    }
}

/// What outputs say: of classes their log-probabilities, of a number itself; a list for each row, in f64.
pub fn said(task: Task, outputs: &Tensor) -> Result<Vec<Vec<f64>>> {
    let wide = outputs.detach().to_kind(Kind::Double);
    let wide = match task {
        Task::Classification => wide.f_log_softmax(-1, Kind::Double)?,
        Task::Regression => wide,
    };
    let columns = wide.size()[1] as usize;
    let flat: Vec<f64> = Vec::try_from(wide.to_device(HOST).flatten(0, -1))?;
    Ok(flat.chunks(columns.max(1)).map(<[f64]>::to_vec).collect())
}

/// The objective of feature-based fine-tuning: a head on vectors that nothing changes.
#[derive(Debug)]
pub struct OnVectors<'a> {
    /// The head.
    pub head: &'a Head,
    /// `[rows, input]`, of the head's type.
    pub vectors: &'a Tensor,
    /// The place of each row's class, or its number.
    pub targets: &'a [f64],
    /// What they are.
    pub task: Task,
}

/// Some rows of vectors.
#[derive(Debug)]
pub struct VectorBatch {
    vectors: Tensor,
    targets: Vec<f64>,
    places: Vec<usize>,
}

impl Objective for OnVectors<'_> {
    type Batch = VectorBatch;

    fn rows(&self) -> usize {
        self.targets.len()
    }

    fn batch(&mut self, rows: &[usize]) -> Result<VectorBatch> {
        let index: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let index = Tensor::from_slice(&index).to_device(self.vectors.device());
        Ok(VectorBatch {
            vectors: self.vectors.f_index_select(0, &index)?,
            targets: rows.iter().map(|&row| self.targets[row]).collect(),
            places: (0..rows.len()).collect(),
        })
    }

    fn weight(&self, batch: &VectorBatch) -> f64 {
        batch.targets.len() as f64
    }

    /// A row is what a forward reads.
    fn tokens(&self, batch: &VectorBatch) -> usize {
        batch.targets.len()
    }

    fn loss(&mut self, pass: Pass, batch: &VectorBatch) -> Result<Loss> {
        let outputs = self.head.forward(pass, &batch.vectors, &batch.places)?;
        let (sum, sums) = loss(self.task, &outputs, &batch.targets)?;
        Ok(Loss {
            sum,
            weight: batch.targets.len() as f64,
            sums,
        })
    }
}
