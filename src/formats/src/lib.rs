//! Model files as bytes and names: safetensors, GGUF, config.json, tokenizer and PEFT files, without tensors.

pub mod choice;
pub mod config;
pub mod dtype;
pub mod gguf;
pub mod head;
mod json;
mod mapped;
pub mod nf4;
pub mod patterns;
pub mod peft;
pub mod quantized;
pub mod safetensors;
pub mod tensors;
pub mod tokenizer;

pub use config::{
    BertConfig, BertParts, LlamaConfig, ModelConfig, ModelTensor, REWARD_HEAD, RopeScaling,
};
pub use dtype::Dtype;
pub use peft::{AdapterConfig, PeftConfig};
pub use tensors::{Stored, TensorInfo, Weights};
pub use tokenizer::TokenizerFiles;
