//! From the states of tokens to a vector of each row.

use crate::backbone::Backbone;
use crate::kv_cache::Segments;
use anyhow::{Result, ensure};
use tch::{Kind, Tensor};

pub use formats::head::Pooling;

/// Errors where the vector of this pooling says nothing of a row: in a causal model the first token has seen nothing else.
pub fn check(pooling: Pooling, backbone: &Backbone) -> Result<()> {
    ensure!(
        backbone.is_encoder() || !pooling.is_first(),
        "`cls` and `pooler` are the first token's state, which in a causal model has seen no other token: take `mean` or `last`"
    );
    Ok(())
}

/// The vectors `[rows, hidden]` of rows whose states `[tokens, hidden]` lie one after the other; f32 (f64 stays), with a gradient.
pub fn pooled(
    backbone: &Backbone,
    pooling: Pooling,
    states: &Tensor,
    segments: &Segments,
) -> Result<Tensor> {
    check(pooling, backbone)?;
    let wide = match states.kind() {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    };
    let place = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(states.device());
    let ends = segments.last();
    let vectors = match pooling {
        Pooling::Mean => return mean(&states.to_kind(wide), segments),
        Pooling::Last => states.f_index_select(0, &place(&ends))?,
        Pooling::Cls | Pooling::Pooler => {
            let lengths = segments.lengths.iter();
            let starts: Vec<i64> = ends.iter().zip(lengths).map(|(e, l)| e + 1 - l).collect();
            let first = states.f_index_select(0, &place(&starts))?;
            match pooling {
                Pooling::Pooler => backbone.pooled(&first)?,
                _ => first,
            }
        }
    };
    Ok(vectors.to_kind(wide))
}

/// The mean over the tokens of each row.
fn mean(states: &Tensor, segments: &Segments) -> Result<Tensor> {
    let rows = segments.lengths.len() as i64;
    let lengths = segments.lengths.iter().zip(0i64..);
    let of: Vec<i64> = lengths
        .flat_map(|(&length, row)| std::iter::repeat_n(row, length as usize))
        .collect();
    let of = Tensor::from_slice(&of).to_device(states.device());
    let like = (states.kind(), states.device());
    let sums = Tensor::zeros([rows, states.size()[1]], like).f_index_add(0, &of, states)?;
    let counts: Vec<f64> = segments.lengths.iter().map(|&l| l as f64).collect();
    let counts = Tensor::from_slice(&counts)
        .to_kind(like.0)
        .to_device(like.1);
    Ok(sums.f_div(&counts.f_unsqueeze(1)?)?)
}

/// Each row of `[rows, hidden]` divided by its length; a row of zeros stays.
pub fn normalized(vectors: &Tensor) -> Result<Tensor> {
    let lengths = vectors.f_norm_scalaropt_dim(2.0, [1i64].as_slice(), true)?;
    Ok(vectors.f_div(&lengths.f_clamp_min(1e-12)?)?)
}
