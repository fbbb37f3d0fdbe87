//! The tensor half: models, adapters, losses, optimizers, the training step and generation; no recipe, cache, text or event.

pub mod adapter;
pub mod attend;
pub mod bottleneck;
pub mod choice;
pub mod completions;
pub mod divergence;
pub mod dora;
pub mod fit;
pub mod generate;
pub mod ia3;
pub mod kv_cache;
pub mod linear;
pub mod llama;
pub mod lora;
pub mod loss;
pub mod norm;
pub mod optimizer;
pub mod pairwise;
pub mod params;
pub mod place;
pub mod preference;
pub mod quantized;
#[path = "../../data/src/random.rs"]
pub mod random;
pub mod ranking;
pub mod reward;
pub mod rl;
pub mod rope;
pub mod sample;
pub mod sft;
pub mod soft;
pub mod source;
pub mod state;
pub mod tensors;
pub mod torch;
pub mod update;

pub use kv_cache::KvCache;
pub use linear::{Linear, Pass, Weight};
pub use llama::{Inputs, Llama};
pub use params::Params;
pub use place::Place;
pub use tch::{Kind, Tensor, no_grad};
