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
pub mod tokenize_completions;

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
        hidden: &[&tokenize::CONTRACT, &tokenize_completions::CONTRACT],
    }
}

#[cfg(test)]
mod tests {
    use engine::contract::{Contract, FieldType, Need};
    use serde::de::DeserializeOwned;
    use serde_json::{Map, Value, json};

    /// The parameters of a stage that gives only what it must.
    fn defaults(contract: &Contract) -> Value {
        let mut params = Map::new();
        for field in contract.fields {
            let value = match (field.need, &field.ty) {
                (_, FieldType::Seed) => json!(17),
                (Need::Default(literal), _) => literal.value(),
                (Need::Optional, _) => Value::Null,
                (Need::Required, FieldType::Source) => json!("file"),
                (Need::Required, _) => panic!(
                    "{}: give `{}` a value in this test",
                    contract.kind, field.name
                ),
            };
            params.insert(field.name.to_owned(), value);
        }
        Value::Object(params)
    }

    /// Every field of the struct is in the contract and the other way round.
    fn fits<T: DeserializeOwned>(contract: &Contract) {
        let params = defaults(contract);
        if let Err(error) = serde_json::from_value::<T>(params.clone()) {
            panic!("{}: {error}", contract.kind);
        }
        for name in params.as_object().unwrap().keys() {
            let mut fewer = params.as_object().unwrap().clone();
            let value = fewer.remove(name).unwrap();
            // An absent option reads as none; anything else that is missing must be missed.
            let read = serde_json::from_value::<T>(Value::Object(fewer));
            assert!(
                read.is_err() || value.is_null() || name == "source",
                "{}: nobody reads `{name}`",
                contract.kind
            );
        }
    }

    #[test]
    fn contracts_and_structs_agree() {
        fits::<super::load_dataset::LoadDataset>(&super::load_dataset::CONTRACT);
        fits::<super::split::Split>(&super::split::CONTRACT);
        fits::<super::load_model::LoadModel>(&super::load_model::CONTRACT);
        fits::<super::lora::Lora>(&super::lora::CONTRACT);
        fits::<super::sft::Sft>(&super::sft::CONTRACT);
        fits::<super::evaluate::Evaluate>(&super::evaluate::CONTRACT);
        fits::<super::generate::Generate>(&super::generate::CONTRACT);
        fits::<super::tokenize::Tokenize>(&super::tokenize::CONTRACT);
        fits::<super::tokenize_completions::TokenizeCompletions>(
            &super::tokenize_completions::CONTRACT,
        );
    }

    #[test]
    fn every_contract_is_sound() {
        let contracts = super::contracts();
        assert!(contracts.kinds.len() > 6);
        for contract in contracts.all() {
            let mut words: Vec<_> = contract.words().collect();
            words.sort_unstable();
            let count = words.len();
            words.dedup();
            assert_eq!(
                words.len(),
                count,
                "{}: a word is used twice",
                contract.kind
            );
            assert!(
                !contract.outputs.is_empty(),
                "{}: makes nothing",
                contract.kind
            );
            for preparation in contract.preparations {
                let hidden = contracts
                    .any(preparation.kind)
                    .expect("a preparation names a kind");
                for field in preparation.fields {
                    assert!(
                        contract.field(field).is_some() && hidden.field(field).is_some(),
                        "{}: `{field}`",
                        contract.kind
                    );
                }
                assert!(
                    hidden
                        .fields
                        .iter()
                        .all(|f| preparation.fields.contains(&f.name)),
                    "{}: a field is not handed on",
                    contract.kind
                );
                assert!(
                    preparation
                        .replaces
                        .iter()
                        .all(|p| contract.port(p).is_some())
                );
            }
            for output in contract.outputs {
                assert!(
                    output
                        .keeps_tokenizer_of
                        .is_none_or(|p| contract.port(p).is_some())
                );
            }
        }
    }
}
