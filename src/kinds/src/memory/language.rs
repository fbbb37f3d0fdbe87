//! What one step of a language model's training takes (`ml::llama`).

use super::model::{F32, Model};

/// The program with libtorch and a tokenizer, before a model is loaded.
const PROGRAM: f64 = 350e6;
/// What the allocator holds for a byte of activations in use: it keeps freed memory, whose pieces do not fit each other. Of the step of
/// `make bench-sft` 0.80 GB are activations by the sum below, and 0.99 GB what was measured less all the rest.
const SLACK: f64 = 1.2;

impl Model {
    /// Bytes of the program, and of activations, where the upper `layers` keep something for the way back.
    pub fn language(
        &self,
        tokens: f64,
        checkpointing: bool,
        layers: f64,
        logits: bool,
        head: bool,
    ) -> (f64, f64) {
        let kept = self.kept(tokens);
        let state = tokens * self.hidden * self.size;
        let (behind, inside) = match checkpointing {
            true => (layers * state, kept + self.inside(tokens)),
            false => (layers * kept, self.inside(tokens)),
        };
        let activations = behind + inside.max(self.loss(tokens, logits, head));
        (PROGRAM, SLACK * activations)
    }

    /// What a layer keeps for the way back: the states before attention and before the feed-forward part, q and k after their
    /// rotation, v, what attention gave with a sum for each head, gate and up. Norms, and silu(gate) · up, are made again.
    fn kept(&self, tokens: f64) -> f64 {
        let numbers = 2.0 * (self.hidden + self.query + self.key + self.inner);
        let adapter = self.adapter.as_ref().map_or(0.0, |adapter| adapter.kept);
        let own = tokens * (self.size * numbers + F32 * self.heads + adapter);
        // Each adapter that drops keeps its own input in f32, and what comes before a product is kept, too.
        self.dropped().map_or(own, |inputs| {
            let made = inputs.min(2.0 * self.hidden + self.inner);
            own + tokens * (F32 * inputs + self.size * made)
        })
    }

    /// What the way back through a layer takes beside: the product that is made again and the gradients of both its factors, or the
    /// gradients of keys and values in f32 for each query head; and the rows of a product as they are packed.
    fn inside(&self, tokens: f64) -> f64 {
        let forward = self.size * (4.0 * self.inner + 2.0 * self.hidden);
        let attention =
            2.0 * F32 * self.query + self.size * (2.0 * self.query + 2.0 * self.key + self.hidden);
        tokens * forward.max(attention) + self.packed_rows(tokens)
    }

    fn packed_rows(&self, tokens: f64) -> f64 {
        let depth = (2.0 * self.inner).max(self.query + 2.0 * self.key);
        self.products(tokens, depth)
    }

    /// The last states and their gradient in f32, and what goes with logits. The gradient of an embedding that is the head, too, comes when the
    /// activations of all layers are gone.
    fn loss(&self, tokens: f64, logits: bool, head: bool) -> f64 {
        let states = tokens * self.hidden * (2.0 * self.size + F32);
        match logits {
            true => states + self.logits(tokens, self.hidden, head) + self.packed_rows(tokens),
            false => states,
        }
    }
}
