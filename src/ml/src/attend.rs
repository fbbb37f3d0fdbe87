//! Causal attention with grouped queries, over rows that lie one after the other or over a cache; and attention of rows that see
//! all of themselves.

use crate::kv_cache::Segments;
use crate::torch;
use anyhow::{Result, ensure};
use tch::{Kind, Tensor};

/// The heads of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: i64,
    /// Key and value heads; query head h sees key head `h / (query / key)`.
    pub key: i64,
    /// Numbers in a head.
    pub size: i64,
}

impl Heads {
    fn scale(self) -> f64 {
        1.0 / (self.size as f64).sqrt()
    }
}

/// `q [tokens, query · size]`, `k` and `v [tokens, key · size]` → `[tokens, query · size]`; each row sees itself, and the tokens of
/// another that its segment says, only.
pub fn attend(
    heads: Heads,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    segments: &Segments,
) -> Result<Tensor> {
    if torch::fused(q) {
        let (k, v) = (segments.seen(k)?, segments.seen(v)?);
        let shape = (heads.query, heads.key);
        let lengths = (segments.lengths.as_slice(), segments.filled.as_slice());
        return torch::attend(q, (&k, &v), lengths, shape, heads.scale());
    }
    attend_plain(heads, q, k, v, segments)
}

/// The same as a composition of libtorch's operators.
pub fn attend_plain(
    heads: Heads,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    segments: &Segments,
) -> Result<Tensor> {
    let (k, v) = (segments.seen(k)?, segments.seen(v)?);
    let (mut start, mut first) = (0, 0);
    let mut results = Vec::with_capacity(segments.lengths.len());
    for (&length, &keys) in segments.lengths.iter().zip(&segments.filled) {
        let part = |tensor: &Tensor| tensor.narrow(0, first, keys);
        let own = q.narrow(0, start, length);
        results.push(one_row(heads, &own, &part(&k), &part(&v)));
        start += length;
        first += keys;
    }
    Ok(Tensor::f_cat(&results, 0)?)
}

/// Every token sees all tokens of its row, as in an encoder: q, k and v `[tokens, heads · size]` → the same shape. Rows of equal
/// length that lie side by side go through libtorch's attention together. Rows that begin with tokens of others are an error.
pub fn attend_whole(
    heads: Heads,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    segments: &Segments,
) -> Result<Tensor> {
    ensure!(
        heads.query == heads.key && segments.filled == segments.lengths,
        "BUG: rows that see all of themselves have no cache, no shared beginnings and no grouped queries"
    );
    let mut start = 0;
    let runs = segments.lengths.chunk_by(|a, b| a == b);
    let results = runs.map(|run| -> Result<Tensor> {
        let (rows, length) = (run.len() as i64, run[0]);
        // [rows, heads, length, size]
        let part = |tensor: &Tensor| -> Result<Tensor> {
            let own = tensor.f_narrow(0, start, rows * length)?;
            let own = own.f_view([rows, length, heads.query, heads.size])?;
            Ok(own.f_transpose(1, 2)?)
        };
        let (q, k, v) = (part(q)?, part(k)?, part(v)?);
        start += rows * length;
        let scale = heads.scale();
        let seen = Tensor::f_scaled_dot_product_attention(
            &q,
            &k,
            &v,
            None::<Tensor>,
            0.0,
            false,
            scale,
            false,
        )?;
        let seen = seen.f_transpose(1, 2)?;
        Ok(seen.f_reshape([rows * length, heads.query * heads.size])?)
    });
    let results = results.collect::<Result<Vec<Tensor>>>()?;
    Ok(Tensor::f_cat(&results, 0)?)
}

/// The newest tokens of cache rows against everything in their row; keys and values are caches
/// `[rows, capacity, key · size]`.
pub fn attend_cached(
    heads: Heads,
    q: &Tensor,
    (keys, values): (&Tensor, &Tensor),
    segments: &Segments,
) -> Result<Tensor> {
    if torch::fused(q) {
        let rows = (
            segments.lengths.as_slice(),
            segments.rows.as_slice(),
            segments.filled.as_slice(),
        );
        let shape = (heads.query, heads.key);
        return torch::attend_cached(q, (keys, values), rows, shape, heads.scale());
    }
    let mut start = 0;
    let mut results = Vec::with_capacity(segments.lengths.len());
    for (i, &length) in segments.lengths.iter().enumerate() {
        let q = q.narrow(0, start, length);
        let row = |cache: &Tensor| {
            cache
                .select(0, segments.rows[i])
                .narrow(0, 0, segments.filled[i])
        };
        results.push(one_row(heads, &q, &row(keys), &row(values)));
        start += length;
    }
    Ok(Tensor::f_cat(&results, 0)?)
}

/// One row: the last `q.size(0)` of the keys' tokens are those of q. Softmax in f32 (f64 stays).
fn one_row(heads: Heads, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    let kind = q.kind();
    let wide = if kind == Kind::Double {
        kind
    } else {
        Kind::Float
    };
    let (new, all, group) = (q.size()[0], k.size()[0], heads.query / heads.key);
    let q = q.to_kind(wide).view([new, heads.key, group, heads.size]);
    // [key, group · new, size]
    let q = q
        .permute([1, 2, 0, 3])
        .reshape([heads.key, group * new, heads.size]);
    let spread = |t: &Tensor| {
        t.to_kind(wide)
            .view([all, heads.key, heads.size])
            .permute([1, 0, 2])
    };
    let (k, v) = (spread(k), spread(v));
    let scores = q.matmul(&k.transpose(1, 2)) * heads.scale();
    let future = Tensor::ones([new, all], (Kind::Bool, q.device())).triu(all - new + 1);
    let scores = scores
        .view([heads.key, group, new, all])
        .masked_fill(&future, f64::NEG_INFINITY);
    let weights = scores.softmax(-1, None::<Kind>);
    let out = weights.view([heads.key, group * new, all]).matmul(&v);
    out.view([heads.key, group, new, heads.size])
        .permute([2, 0, 1, 3])
        .reshape([new, heads.query * heads.size])
        .to_kind(kind)
}
