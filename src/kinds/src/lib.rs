//! The contract of every kind, one file each: what it is, never how it runs. The list below is the only one.

pub mod evaluate;
pub mod generate;
pub mod load_dataset;
pub mod load_model;
pub mod lora;
pub mod model;
pub mod sft;
pub mod split;
pub mod tokenize;

mod words;

use engine::contract::Contracts;

/// Every kind.
pub fn contracts() -> Contracts {
    Contracts {
        kinds: &[
            &load_dataset::CONTRACT,
            &split::CONTRACT,
            &load_model::CONTRACT,
            &lora::CONTRACT,
            &sft::CONTRACT,
            &evaluate::CONTRACT,
            &generate::CONTRACT,
        ],
        hidden: &[&tokenize::CONTRACT],
    }
}
