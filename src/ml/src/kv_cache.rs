//! Keys and values of tokens seen before, and the rows of tokens that a forward gets.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use tch::{Kind, Tensor};

use crate::place::Place;

/// The rows of one forward: their tokens lie one after the other, without padding, and attend only to their own row, which may
/// begin with tokens that lie in another.
#[derive(Debug)]
pub struct Segments {
    /// New tokens of each row.
    pub lengths: Vec<i64>,
    /// The cache row of each row (0, 1, 2.. without a cache).
    pub rows: Vec<i64>,
    /// Tokens of each row after this forward: those in the cache or in another row, and the new ones.
    pub filled: Vec<i64>,
    /// The position of each token in its row: `[tokens]`.
    pub positions: Tensor,
    /// Where each new token goes in a cache layer seen as `[rows · capacity, width]`; empty without a cache.
    slots: Option<Tensor>,
    /// Where rows begin with tokens of others: the lengths of the pieces that all tokens are cut into, and the pieces that
    /// each row sees, row by row.
    pieces: Option<(Vec<i64>, Vec<usize>)>,
}

/// A row of a forward that may begin with tokens of an earlier one, which are then there once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Tokens of its own, at least one.
    pub length: usize,
    /// Where the tokens before them begin among all, and how many they are: the beginning of an earlier row.
    pub prefix: Option<(usize, usize)>,
}

impl Segments {
    /// The same rows.
    pub fn shallow_clone(&self) -> Segments {
        Segments {
            lengths: self.lengths.clone(),
            rows: self.rows.clone(),
            filled: self.filled.clone(),
            positions: self.positions.shallow_clone(),
            slots: self.slots.as_ref().map(Tensor::shallow_clone),
            pieces: self.pieces.clone(),
        }
    }

    /// Rows of these lengths, each beginning at position 0.
    pub fn new(lengths: &[usize], place: Place) -> Result<Segments> {
        Segments::starting(lengths, &vec![0; lengths.len()], place)
    }

    fn starting(lengths: &[usize], starts: &[i64], place: Place) -> Result<Segments> {
        ensure!(
            !lengths.is_empty() && lengths.iter().all(|&length| length > 0),
            "a forward needs rows of at least one token"
        );
        let lengths: Vec<i64> = lengths.iter().map(|&length| length as i64).collect();
        let positions: Vec<i64> = lengths
            .iter()
            .zip(starts)
            .flat_map(|(&length, &start)| start..start + length)
            .collect();
        Ok(Segments {
            filled: lengths.iter().zip(starts).map(|(l, s)| l + s).collect(),
            rows: (0..lengths.len() as i64).collect(),
            positions: Tensor::from_slice(&positions).to_device(place.device),
            lengths,
            slots: None,
            pieces: None,
        })
    }

    /// Rows of which some begin with tokens of earlier ones; their positions go on from there. A prefix that does not end before
    /// its row begins is an error.
    pub fn sharing(spans: &[Span], place: Place) -> Result<Segments> {
        let lengths: Vec<usize> = spans.iter().map(|span| span.length).collect();
        let before = |span: &Span| span.prefix.map_or(0, |(_, count)| count as i64);
        let starts: Vec<i64> = spans.iter().map(before).collect();
        let mut segments = Segments::starting(&lengths, &starts, place)?;
        if spans.iter().all(|span| span.prefix.is_none()) {
            return Ok(segments);
        }
        let (mut cuts, mut end) = (BTreeSet::from([0]), 0);
        for span in spans {
            if let Some((start, count)) = span.prefix {
                ensure!(
                    start + count <= end && count > 0,
                    "a row that begins with {count} tokens from {start} on can't lie at {end}"
                );
                cuts.extend([start, start + count]);
            }
            end += span.length;
            cuts.insert(end);
        }
        let cuts: Vec<usize> = cuts.into_iter().collect();
        let lengths = cuts.windows(2).map(|cut| (cut[1] - cut[0]) as i64);
        let mut seen = Vec::new();
        let mut look = |start: usize, length: usize| {
            let pieces = cuts.iter().enumerate().take(cuts.len() - 1);
            let inside = |cut: usize| (start..start + length).contains(&cut);
            seen.extend(
                pieces
                    .filter(|(_, cut)| inside(**cut))
                    .map(|(piece, _)| piece),
            );
        };
        let mut start = 0;
        for span in spans {
            if let Some((first, count)) = span.prefix {
                look(first, count);
            }
            look(start, span.length);
            start += span.length;
        }
        segments.pieces = Some((lengths.collect(), seen));
        Ok(segments)
    }

    /// The same rows behind `count` virtual tokens that each of them sees: positions go on after those. Without a cache they lie before all
    /// others, as a row of their own (`computed`) or as keys and values that are there already; in a cache, before those of each row.
    pub(crate) fn behind(&self, count: i64, computed: bool) -> Result<Segments> {
        let mut after = self.shallow_clone();
        after.filled.iter_mut().for_each(|filled| *filled += count);
        after.positions = self.positions.f_add_scalar(count)?;
        if let Some(slots) = &self.slots {
            after.slots = Some(slots.f_add_scalar(count)?);
            return Ok(after);
        }
        let (mut lengths, order) = match &self.pieces {
            Some((lengths, order)) => (lengths.clone(), order.clone()),
            None => (self.lengths.clone(), (0..self.lengths.len()).collect()),
        };
        // Each row's own pieces, now one further, with the virtual tokens before them.
        let mut seen = Vec::with_capacity(order.len() + self.filled.len() + 1);
        let mut pieces = order.into_iter();
        for &filled in &self.filled {
            let mut left = filled;
            seen.push(0);
            while left > 0 {
                let piece = pieces
                    .next()
                    .context("BUG: a row sees more than there is")?;
                left -= lengths[piece];
                seen.push(piece + 1);
            }
        }
        lengths.insert(0, count);
        if computed {
            seen.insert(0, 0);
            after.lengths.insert(0, count);
            after.filled.insert(0, count);
            after.rows = (0..after.lengths.len() as i64).collect();
            let first = Tensor::f_arange(count, (Kind::Int64, after.positions.device()))?;
            after.positions = Tensor::f_cat(&[&first, &after.positions], 0)?;
        }
        after.pieces = Some((lengths, seen));
        Ok(after)
    }

    /// Keys or values of all tokens, `[tokens, width]`, as the rows see them: `filled[i]` for row i, one row after the other.
    pub fn seen(&self, values: &Tensor) -> Result<Tensor> {
        let Some((lengths, order)) = &self.pieces else {
            return Ok(values.shallow_clone());
        };
        let pieces = values.f_split_with_sizes(lengths, 0)?;
        let order: Vec<&Tensor> = order.iter().map(|&piece| &pieces[piece]).collect();
        Ok(Tensor::f_cat(&order, 0)?)
    }

    /// The number of new tokens.
    pub fn tokens(&self) -> i64 {
        self.lengths.iter().sum()
    }

    /// The index of the last token of each row among the new tokens.
    pub fn last(&self) -> Vec<i64> {
        let mut end = 0;
        self.lengths
            .iter()
            .map(|length| {
                end += length;
                end - 1
            })
            .collect()
    }
}

/// A cache with a row per sequence: for each layer keys and values `[rows, front + capacity, key heads · size]`. Whoever uses it counts
/// tokens; virtual ones, of which a row has none or `front`, are counted here only.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    filled: Vec<i64>,
    capacity: i64,
    /// Room in each row for virtual tokens, and how many the row began with.
    front: i64,
    before: Vec<i64>,
    place: Place,
}

impl KvCache {
    /// An empty cache for `rows` sequences of at most `capacity` tokens behind at most `front` virtual ones.
    pub fn new(
        layers: usize,
        rows: usize,
        (front, capacity): (usize, usize),
        width: usize,
        place: Place,
    ) -> KvCache {
        let shape = [rows as i64, (front + capacity) as i64, width as i64];
        let empty = || Tensor::empty(shape, (place.kind, place.device));
        KvCache {
            layers: (0..layers).map(|_| (empty(), empty())).collect(),
            filled: vec![0; rows],
            capacity: capacity as i64,
            front: front as i64,
            before: vec![0; rows],
            place,
        }
    }

    /// Says that a forward goes behind `count` virtual tokens, and gives the rows that begin with it, which have none yet. Errors where
    /// there is no room for them, and where a row began with another number: with the adapter, or without.
    pub(crate) fn begin(&mut self, segments: &Segments, count: i64) -> Result<Vec<i64>> {
        ensure!(
            count <= self.front,
            "{count} virtual tokens do not fit a cache with room for {}: make it with the adapter attached",
            self.front
        );
        let mut fresh = Vec::new();
        let lengths = segments.lengths.iter().zip(&segments.filled);
        for (&row, (length, filled)) in segments.rows.iter().zip(lengths) {
            let before = usize::try_from(row)
                .ok()
                .and_then(|row| self.before.get_mut(row))
                .with_context(|| format!("the cache has no row {row}"))?;
            if length == filled {
                *before = count;
                fresh.push(row);
            }
            ensure!(
                *before == count,
                "row {row} of the cache began behind {before} virtual tokens and can't go on behind {count}"
            );
        }
        Ok(fresh)
    }

    /// Writes keys and values `[tokens, width]` of a layer into the first places of these rows.
    pub(crate) fn put_first(
        &mut self,
        layer: usize,
        rows: &[i64],
        (k, v): (&Tensor, &Tensor),
    ) -> Result<()> {
        let (keys, values) = self
            .layers
            .get(layer)
            .with_context(|| format!("the cache has no layer {layer}"))?;
        for (cache, new) in [(keys, k), (values, v)] {
            let count = new.size()[0];
            for &row in rows {
                let mut places = cache.f_select(0, row)?.f_narrow(0, 0, count)?;
                places.f_copy_(&new.detach())?;
            }
        }
        Ok(())
    }

    /// The keys and values `[count, width]` of the first places of a row, in a layer.
    pub(crate) fn first(&self, layer: usize, row: i64, count: i64) -> Result<(Tensor, Tensor)> {
        let (keys, values) = self
            .layers
            .get(layer)
            .with_context(|| format!("the cache has no layer {layer}"))?;
        let own = |cache: &Tensor| cache.f_select(0, row)?.f_narrow(0, 0, count);
        Ok((own(keys)?, own(values)?))
    }

    /// The number of tokens in a row.
    pub fn filled(&self, row: usize) -> i64 {
        self.filled.get(row).copied().unwrap_or(0)
    }

    /// Forgets the tokens of a row from `length` on.
    pub fn truncate(&mut self, row: usize, length: i64) {
        if let Some(filled) = self.filled.get_mut(row) {
            *filled = length.clamp(0, *filled);
        }
    }

    /// The next forward: `lengths[i]` new tokens for cache row `rows[i]`.
    pub fn segments(&self, rows: &[usize], lengths: &[usize]) -> Result<Segments> {
        ensure!(
            rows.len() == lengths.len() && rows.iter().all(|&row| row < self.filled.len()),
            "rows {rows:?} of a cache of {}",
            self.filled.len()
        );
        let starts: Vec<i64> = rows.iter().map(|&row| self.filled[row]).collect();
        let mut segments = Segments::starting(lengths, &starts, self.place)?;
        segments.rows = rows.iter().map(|&row| row as i64).collect();
        let longest = segments.filled.iter().copied().max().unwrap_or(0);
        ensure!(
            longest <= self.capacity,
            "{longest} tokens do not fit a cache of {}",
            self.capacity
        );
        let slots: Vec<i64> = (0..rows.len())
            .flat_map(|i| {
                let base = segments.rows[i] * (self.front + self.capacity);
                base + starts[i]..base + segments.filled[i]
            })
            .collect();
        segments.slots = Some(Tensor::from_slice(&slots).to_device(self.place.device));
        Ok(segments)
    }

    /// Writes the new keys and values `[tokens, width]` of a layer and gives the layer's caches.
    pub fn append(
        &mut self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
        segments: &Segments,
    ) -> Result<(&Tensor, &Tensor)> {
        let slots = segments.slots.as_ref();
        let (Some(slots), Some((keys, values))) = (slots, self.layers.get_mut(layer)) else {
            anyhow::bail!(
                "the segments were not made by this cache, or layer {layer} is not in it"
            );
        };
        let width = keys.size()[2];
        for (cache, new) in [(&*keys, k), (&*values, v)] {
            ensure!(
                new.kind() == self.place.kind && new.kind() != Kind::Int64,
                "a cache of another type"
            );
            let _ = cache
                .view([-1, width])
                .f_index_copy_(0, slots, &new.detach())?;
        }
        Ok((keys, values))
    }

    /// Counts the tokens of a finished forward.
    pub fn advance(&mut self, segments: &Segments) {
        for (&row, &filled) in segments.rows.iter().zip(&segments.filled) {
            if let Some(slot) = usize::try_from(row)
                .ok()
                .and_then(|row| self.filled.get_mut(row))
            {
                *slot = filled;
            }
        }
    }
}
