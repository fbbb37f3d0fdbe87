//! Virtual tokens before every row, which are trained while the model stays as it is. In prompt tuning (Lester et al. 2021, arXiv
//! 2104.08691) they are embeddings, which go through the layers as those of words do; in prefix tuning (Li and Liang 2021, arXiv
//! 2101.00190) they are the keys and values that every layer sees. The first positions are theirs.

use crate::kv_cache::KvCache;
use crate::linear::Pass;
use crate::llama::{Inputs, Llama};
use crate::params::Params;
use crate::place::HOST;
use crate::tensors;
use anyhow::{Context, Result, ensure};
use formats::peft::{PROMPT_EMBEDDINGS, SoftConfig, SoftKind};
use formats::tensors::Weights;
use tch::{Kind, Tensor, no_grad};

/// The name of the trained parameter: that of its tensor in PEFT's files.
pub const PARAMETER: &str = PROMPT_EMBEDDINGS;

/// Virtual tokens, in f32 (f64 under a f64 model).
#[derive(Debug)]
pub enum Soft {
    /// Prompt tuning: embeddings, `[virtual tokens, hidden]`.
    Prompt(Tensor),
    /// Prefix tuning: for each layer keys and then values, `[virtual tokens, layers · 2 · width]` with a width of key heads · head size. Keys are
    /// as attention takes them: no position turns them.
    Prefix(Tensor),
}

impl Soft {
    /// The same, held once.
    pub fn shallow_clone(&self) -> Soft {
        match self {
            Soft::Prompt(tensor) => Soft::Prompt(tensor.shallow_clone()),
            Soft::Prefix(tensor) => Soft::Prefix(tensor.shallow_clone()),
        }
    }

    /// What is trained.
    pub fn tensor(&self) -> &Tensor {
        match self {
            Soft::Prompt(tensor) | Soft::Prefix(tensor) => tensor,
        }
    }

    /// How many there are.
    pub fn tokens(&self) -> i64 {
        self.tensor().size()[0]
    }

    /// A prefix's keys and values `[virtual tokens, width]` of a layer in the type `kind`; none of a prompt, whose keys and values the layers
    /// make themselves.
    pub fn layer(&self, index: usize, width: i64, kind: Kind) -> Result<Option<(Tensor, Tensor)>> {
        let Soft::Prefix(prefix) = self else {
            return Ok(None);
        };
        let start = 2 * width * i64::try_from(index)?;
        let both = prefix.f_narrow(1, start, 2 * width)?.f_to_kind(kind)?;
        let part = |at: i64| both.f_narrow(1, at * width, width);
        Ok(Some((part(0)?, part(1)?)))
    }

    /// Puts the keys and values of the virtual tokens before those of some cache rows.
    pub(crate) fn begin(
        &self,
        model: &Llama,
        pass: Pass,
        cache: &mut KvCache,
        rows: &[i64],
    ) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let (layers, width) = extents(model);
        let kind = model.place.kind;
        let own = match self {
            Soft::Prefix(_) => None,
            // They come first, so that their states are the same whatever follows: once for all rows.
            Soft::Prompt(embeddings) => {
                let embeddings = embeddings.f_to_kind(kind)?;
                let count = usize::try_from(self.tokens())?;
                Some(seen(model, pass, Inputs::Embeddings(&embeddings), count)?)
            }
        };
        for index in 0..layers {
            let (k, v) = match &own {
                Some(cache) => cache.first(index, 0, self.tokens())?,
                None => (self.layer(index, width, kind)?).context("BUG: a prefix has layers")?,
            };
            cache.put_first(index, rows, (&k, &v))?;
        }
        Ok(())
    }
}

/// Layers, and the width of keys in each.
fn extents(model: &Llama) -> (usize, i64) {
    let config = &model.config;
    (config.num_hidden_layers, config.key_value_width() as i64)
}

/// A cache of one row with what the model itself, without an adapter, sees of `count` tokens.
fn seen(model: &Llama, pass: Pass, inputs: Inputs<'_>, count: usize) -> Result<KvCache> {
    let pass = Pass {
        train: false,
        decode: false,
        ..pass.without_adapters()
    };
    let mut cache = model.cache(1, count);
    let segments = cache.segments(&[0], &[count])?;
    let _ = no_grad(|| model.hidden(pass, inputs, &segments, Some(&mut cache)))?;
    Ok(cache)
}

/// The prefix that these tokens are: their keys, as they are after rotation, and values in every layer of the model without its adapter, `[tokens,
/// layers · 2 · width]`, f32 (f64 under a f64 model). A row behind it is a row that begins with these tokens. PEFT makes the same of a filled cache.
pub fn activations(model: &Llama, tokens: &[i64]) -> Result<Tensor> {
    let count = i64::try_from(tokens.len())?;
    let ids = model.tokens(tokens)?;
    let cache = seen(model, Pass::eval(), Inputs::Tokens(&ids), tokens.len())?;
    let mut parts = Vec::new();
    for index in 0..extents(model).0 {
        let (k, v) = cache.first(index, 0, count)?;
        parts.extend([k, v]);
    }
    Ok(wide(&Tensor::f_cat(&parts, 1)?))
}

/// In f32, or in f64 where it is.
fn wide(tensor: &Tensor) -> Tensor {
    match tensor.kind() {
        Kind::Double => tensor.shallow_clone(),
        _ => tensor.to_kind(Kind::Float),
    }
}

/// Puts virtual tokens before every row of a model; they become its only trained parameter. Errors where the settings are not for this
/// model, where the tensor has another shape than they say, and where the model has an adapter.
pub fn attach(
    model: &mut Llama,
    config: &SoftConfig,
    start: &Tensor,
    params: &mut Params,
) -> Result<Vec<String>> {
    let shape = config.shape(&model.config)?.map(|extent| extent as i64);
    ensure!(
        start.size() == shape,
        "virtual tokens of the shape {:?}, but the model's config asks for {shape:?}",
        start.size()
    );
    let adapted =
        model.linears().iter().any(|l| l.adapter.is_some()) || !model.bottlenecks().is_empty();
    ensure!(
        model.soft.is_none() && !adapted,
        "the model has an adapter already; virtual tokens go before a model without one"
    );
    let kind = match model.place.kind {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    };
    let tensor = start.f_to_device(model.place.device)?.f_to_kind(kind)?;
    // A copy: what is trained may share its memory with nothing.
    let tensor = tensor.detach().copy().contiguous();
    params.add(PARAMETER, &tensor, true)?;
    model.soft = Some(match config.kind {
        SoftKind::Prompt => Soft::Prompt(tensor),
        SoftKind::Prefix => Soft::Prefix(tensor),
    });
    Ok(config.modules(&model.config))
}

/// Attaches stored virtual tokens (PEFT's name). A tensor that is missing, has another shape or is a stranger is an error. Gives the names of
/// the modules that they stand before.
pub fn attach_stored(
    model: &mut Llama,
    config: &SoftConfig,
    weights: &Weights,
    params: &mut Params,
) -> Result<Vec<String>> {
    let shape = config.shape(&model.config)?.map(|extent| extent as i64);
    let start = tensors::read(weights, PROMPT_EMBEDDINGS, &shape, Kind::Float, HOST)?;
    for info in weights.infos() {
        ensure!(
            config.knows(&info.name),
            "the adapter's tensor {:?} does not belong to virtual tokens: their file holds {PROMPT_EMBEDDINGS:?}, and what its \
             adapter_config.json says is stored beside it",
            info.name
        );
    }
    attach(model, config, &start, params)
}
