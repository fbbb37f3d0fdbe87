//! Named random streams: numbers that depend on a seed and a name and on nothing else, with a position that can be saved.
//!
//! A stream is ChaCha8 (64-bit counter and stream number 0, both little-endian words as in rand_chacha) under the key
//! `blake3::derive_key("levain random stream v1", seed as 8 little-endian bytes ‖ name as UTF-8)`. Everything that is
//! drawn is defined in terms of [`Stream::next_u64`], so that another language can draw the same numbers.
//! This file knows nothing of the rest of the crate.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// The context string of the key derivation; a new version of the derivation gets a new string.
const CONTEXT: &str = "levain random stream v1";

/// A random stream with a name, for instance `shuffle` or `init`.
#[derive(Clone, Debug)]
pub struct Stream {
    generator: ChaCha8Rng,
}

impl Stream {
    /// The stream called `name` of `seed`, at its beginning.
    pub fn new(seed: u64, name: &str) -> Stream {
        let mut material = Vec::with_capacity(8 + name.len());
        material.extend_from_slice(&seed.to_le_bytes());
        material.extend_from_slice(name.as_bytes());
        let key = blake3::derive_key(CONTEXT, &material);
        Stream {
            generator: ChaCha8Rng::from_seed(key),
        }
    }

    /// The stream called `name` of `seed` after `position` draws of [`Stream::next_u64`], as a snapshot kept it.
    pub fn resume(seed: u64, name: &str, position: u64) -> Stream {
        let mut stream = Stream::new(seed, name);
        // Two 32-bit words are one draw.
        stream.generator.set_word_pos(u128::from(position) * 2);
        stream
    }

    /// How many 64-bit numbers were drawn so far: with the seed and the name the whole state of the stream.
    pub fn position(&self) -> u64 {
        u64::try_from(self.generator.get_word_pos() / 2).unwrap_or(u64::MAX)
    }

    /// The next 64 random bits: two words of the ChaCha8 key stream, the first one low.
    pub fn next_u64(&mut self) -> u64 {
        self.generator.next_u64()
    }

    /// A number in [0, 1) with 53 random bits: `(next_u64 >> 11) · 2⁻⁵³`.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A number in [0, 1) with 24 random bits: `(next_u64 >> 40) · 2⁻²⁴`.
    pub fn uniform_f32(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// A whole number in `0..bound`, each equally likely (Lemire's multiplication with rejection: of the 128-bit
    /// product `next_u64 · bound` the high half is the number; drawn again while the low half is below `2⁶⁴ mod bound`).
    /// For a bound of 0 the answer is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        let reject = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            if product as u64 >= reject {
                return (product >> 64) as u64;
            }
        }
    }

    /// A standard normal number by Box and Muller: `√(-2 ln(1 - u)) · cos(2π v)` with two uniform draws u, v. The sine
    /// is thrown away, so that the position stays the whole state.
    pub fn normal(&mut self) -> f64 {
        let (radius, angle) = self.polar();
        radius * angle.cos()
    }

    /// Fills `out` with standard normal numbers, cosine and sine of each Box-Muller pair in turn (of a last odd one only
    /// the cosine): half the draws of calling [`Stream::normal`] for each, and other numbers.
    pub fn fill_normal(&mut self, out: &mut [f32]) {
        for pair in out.chunks_mut(2) {
            let (radius, angle) = self.polar();
            pair[0] = (radius * angle.cos()) as f32;
            if let Some(second) = pair.get_mut(1) {
                *second = (radius * angle.sin()) as f32;
            }
        }
    }

    fn polar(&mut self) -> (f64, f64) {
        let first = self.uniform();
        let second = self.uniform();
        (
            (-2.0 * (1.0 - first).ln()).sqrt(),
            std::f64::consts::TAU * second,
        )
    }

    /// Shuffles in place by Fisher and Yates, from the end: for i = n-1 down to 1 swap i with `below(i + 1)`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            items.swap(last, other);
        }
    }

    /// The numbers `0..n`, shuffled.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut items: Vec<usize> = (0..n).collect();
        self.shuffle(&mut items);
        items
    }
}

/// The seed of round or cell `index` of a stage that is unrolled: the first draw of the stream `derive <index>`.
pub fn derive(seed: u64, index: u64) -> u64 {
    Stream::new(seed, &format!("derive {index}")).next_u64()
}
