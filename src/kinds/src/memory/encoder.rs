//! What one step of an encoder's training takes (`ml::bert`, `ml::masked`, `ml::classifier`).
//!
//! Autograd keeps tensors of a layer there, and others are freed between them. The allocator does not give their places to tensors of the same
//! size (glibc's aligned blocks leave a few bytes too little), so that they count until all around them is free.

use super::chosen::Task;
use super::model::{F32, Model};

/// The program with libtorch and a tokenizer, before an encoder is loaded.
const PROGRAM: f64 = 200e6;

impl Model {
    /// Bytes of the program, and of activations, where the upper `layers` keep something for the way back.
    pub fn encoder(
        &self,
        tokens: f64,
        checkpointing: bool,
        layers: f64,
        task: &Task,
        head: bool,
    ) -> (f64, f64) {
        let of = |numbers: f64| tokens * self.size * numbers;
        let (hidden, inner) = (self.hidden, self.inner);
        let (kept, lost) = (self.encoder_kept(tokens), of(self.lost()));
        // All that a layer makes: q, k, v, what attention gave and the same joined, after the dense layer, summed, through the norm, before and
        // after GELU, after the last dense layer, summed.
        let forward = of(10.0 * hidden + 2.0 * inner);
        // Gradients of a layer's last state and of both sides of GELU.
        let back = of(hidden + 2.0 * inner);
        let (behind, inside) = match checkpointing {
            _ if layers == 0.0 => (0.0, forward),
            true => (layers * (of(hidden) + lost), kept + forward + back),
            false => (layers * (kept + lost), back),
        };
        let rows = self.products(tokens, 2.0 * inner);
        let loss = match task {
            Task::Masked { part } => self.masked(part * tokens, head),
            // The gradient of all states in f32.
            _ => tokens * hidden * F32,
        };
        (PROGRAM, behind + inside + rows + loss)
    }

    /// What a layer keeps for the way back: the state, q, k, v, what attention gave, with a sum for each head, and the same joined, both sums with
    /// the mean and the deviation of each row, what is between the norms, and both sides of GELU.
    fn encoder_kept(&self, tokens: f64) -> f64 {
        let numbers = 9.0 * self.hidden + 2.0 * self.inner;
        // Each adapter that drops keeps its own input in f32.
        let dropped = F32 * self.dropped().unwrap_or(0.0);
        tokens * (self.size * numbers + F32 * (self.heads + 4.0) + dropped)
    }

    /// Numbers of a token in tensors of a layer that are freed and whose places are not given out again: what both dense layers add to the state,
    /// and a part of the way back; as much again where weights are trained, whose gradients come to lie between; and where an adapter drops half
    /// of the product, the change, and the change scaled. Measured in multiples of a state with encoders of 6 and 12 layers.
    fn lost(&self) -> f64 {
        let states = match &self.adapter {
            Some(_) => 3.0,
            None => 6.0,
        };
        states * self.hidden + 1.5 * self.dropped().unwrap_or(0.0)
    }

    /// What goes with the loss of `rows` hidden tokens: their states before and after the head's parts and the gradient of the last in f32; the
    /// word embedding with the bias as one more column, which are a copy; and their logits.
    fn masked(&self, rows: f64, head: bool) -> f64 {
        let states = rows * self.hidden * (6.0 * self.size + F32);
        let width = self.hidden + 1.0;
        states + self.vocabulary * width * self.size + self.logits(rows, width, head)
    }
}
