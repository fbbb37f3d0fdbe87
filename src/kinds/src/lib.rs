//! The contract of every kind, one file each: what it is, never how it runs. The list below is the only one.

pub mod annotate;
pub mod ask;
pub mod best_of_n;
pub mod bottleneck;
pub mod classifier;
pub mod classify;
pub mod concat;
pub mod contrast;
pub mod cpo;
pub mod cut;
pub mod density_ratio;
pub mod dpo;
pub mod evaluate;
pub mod exam;
pub mod features;
pub mod gate;
pub mod generate;
pub mod grpo;
pub mod head;
pub mod ia3;
pub mod init_model;
pub mod known;
pub mod kto;
pub mod label;
pub mod load_adapter;
pub mod load_classifier;
pub mod load_dataset;
pub mod load_model;
pub mod load_reward_model;
pub mod lora;
pub mod masked_lm;
pub mod masked_lm_loss;
pub mod memory;
pub mod merge;
pub mod mismatch;
pub mod model;
pub mod orpo;
pub mod overoptimization;
pub mod ppo;
pub mod preference_accuracy;
pub mod prefix_tuning;
pub mod prompt_tuning;
pub mod quantize;
pub mod reference;
pub mod revise;
pub mod reward_model;
pub mod rloo;
pub mod rollout;
pub mod rule;
pub mod select;
pub mod sft;
pub mod split;
pub mod tokenize;
pub mod tokenize_completions;
pub mod tokenize_labelled;
pub mod tokenize_pieces;
pub mod training;

mod lists;
mod settings;
mod words;

use engine::contract::Contracts;

/// Every kind.
pub fn contracts() -> Contracts {
    Contracts {
        kinds: &[
            &load_dataset::CONTRACT,
            &split::CONTRACT,
            &concat::CONTRACT,
            &cut::CONTRACT,
            &contrast::CONTRACT,
            &load_model::CONTRACT,
            &load_reward_model::CONTRACT,
            &load_classifier::CONTRACT,
            &init_model::CONTRACT,
            &quantize::CONTRACT,
            &lora::CONTRACT,
            &ia3::CONTRACT,
            &bottleneck::CONTRACT,
            &prompt_tuning::CONTRACT,
            &prefix_tuning::CONTRACT,
            &load_adapter::CONTRACT,
            &merge::CONTRACT,
            &sft::CONTRACT,
            &masked_lm::CONTRACT,
            &evaluate::CONTRACT,
            &masked_lm_loss::CONTRACT,
            &preference_accuracy::CONTRACT,
            &exam::CONTRACT,
            &features::CONTRACT,
            &head::CONTRACT,
            &classifier::CONTRACT,
            &classify::CONTRACT,
            &generate::CONTRACT,
            &rule::CONTRACT,
            &annotate::CONTRACT,
            &ask::CONTRACT,
            &label::CONTRACT,
            &best_of_n::CONTRACT,
            &overoptimization::CONTRACT,
            &density_ratio::CONTRACT,
            &revise::CONTRACT,
            &reward_model::CONTRACT,
            &dpo::CONTRACT,
            &cpo::CONTRACT,
            &orpo::CONTRACT,
            &kto::CONTRACT,
            &ppo::CONTRACT,
            &rloo::CONTRACT,
            &grpo::CONTRACT,
            &gate::CONTRACT,
            &select::CONTRACT,
        ],
        hidden: &[
            &tokenize::CONTRACT,
            &tokenize_completions::CONTRACT,
            &tokenize_pieces::CONTRACT,
            &tokenize_labelled::CONTRACT,
            &mismatch::CONTRACT,
            &reference::CONTRACT,
        ],
        trials: &[],
    }
}

#[cfg(test)]
mod tests {
    use engine::artifact::ArtifactType;
    use engine::contract::{Contract, FieldType, Need, Port};
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
                (Need::Required, FieldType::Metric { .. }) => json!("loss"),
                (Need::Required, FieldType::Choice(choices)) => json!(choices[0].word),
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
        fits::<super::concat::Concat>(&super::concat::CONTRACT);
        fits::<super::cut::Cut>(&super::cut::CONTRACT);
        fits::<super::contrast::Contrast>(&super::contrast::CONTRACT);
        fits::<super::init_model::InitModel>(&super::init_model::CONTRACT);
        fits::<super::load_model::LoadModel>(&super::load_model::CONTRACT);
        fits::<super::load_reward_model::LoadRewardModel>(&super::load_reward_model::CONTRACT);
        fits::<super::load_classifier::LoadClassifier>(&super::load_classifier::CONTRACT);
        fits::<super::lora::Lora>(&super::lora::CONTRACT);
        fits::<super::ia3::Ia3>(&super::ia3::CONTRACT);
        fits::<super::bottleneck::Bottleneck>(&super::bottleneck::CONTRACT);
        fits::<super::prompt_tuning::PromptTuning>(&super::prompt_tuning::CONTRACT);
        fits::<super::prefix_tuning::PrefixTuning>(&super::prefix_tuning::CONTRACT);
        fits::<super::load_adapter::LoadAdapter>(&super::load_adapter::CONTRACT);
        fits::<super::merge::Merge>(&super::merge::CONTRACT);
        fits::<super::quantize::Quantize>(&super::quantize::CONTRACT);
        fits::<super::sft::Sft>(&super::sft::CONTRACT);
        fits::<super::masked_lm::MaskedLm>(&super::masked_lm::CONTRACT);
        fits::<super::masked_lm_loss::MaskedLmLoss>(&super::masked_lm_loss::CONTRACT);
        fits::<super::evaluate::Evaluate>(&super::evaluate::CONTRACT);
        fits::<super::preference_accuracy::PreferenceAccuracy>(
            &super::preference_accuracy::CONTRACT,
        );
        fits::<super::exam::Exam>(&super::exam::CONTRACT);
        fits::<super::features::Features>(&super::features::CONTRACT);
        fits::<super::head::Head>(&super::head::CONTRACT);
        fits::<super::classifier::Classifier>(&super::classifier::CONTRACT);
        fits::<super::classify::Classify>(&super::classify::CONTRACT);
        fits::<super::tokenize_labelled::TokenizeLabelled>(&super::tokenize_labelled::CONTRACT);
        fits::<super::generate::Generate>(&super::generate::CONTRACT);
        fits::<super::gate::Gate>(&super::gate::CONTRACT);
        fits::<super::select::Select>(&super::select::CONTRACT);
        fits::<super::rule::Rule>(&super::rule::CONTRACT);
        fits::<super::annotate::Annotate>(&super::annotate::CONTRACT);
        fits::<super::ask::Ask>(&super::ask::CONTRACT);
        fits::<super::label::Label>(&super::label::CONTRACT);
        fits::<super::best_of_n::BestOfN>(&super::best_of_n::CONTRACT);
        fits::<super::overoptimization::Overoptimization>(&super::overoptimization::CONTRACT);
        fits::<super::density_ratio::DensityRatio>(&super::density_ratio::CONTRACT);
        fits::<super::revise::Revise>(&super::revise::CONTRACT);
        fits::<super::reward_model::RewardModel>(&super::reward_model::CONTRACT);
        fits::<super::dpo::Dpo>(&super::dpo::CONTRACT);
        fits::<super::cpo::Cpo>(&super::cpo::CONTRACT);
        fits::<super::orpo::Orpo>(&super::orpo::CONTRACT);
        fits::<super::kto::Kto>(&super::kto::CONTRACT);
        fits::<super::mismatch::Mismatch>(&super::mismatch::CONTRACT);
        fits::<super::ppo::Ppo>(&super::ppo::CONTRACT);
        fits::<super::rloo::Rloo>(&super::rloo::CONTRACT);
        fits::<super::grpo::Grpo>(&super::grpo::CONTRACT);
        fits::<super::reference::Reference>(&super::reference::CONTRACT);
        fits::<super::tokenize::Tokenize>(&super::tokenize::CONTRACT);
        fits::<super::tokenize_completions::TokenizeCompletions>(
            &super::tokenize_completions::CONTRACT,
        );
        fits::<super::tokenize_pieces::TokenizePieces>(&super::tokenize_pieces::CONTRACT);
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
                let ports = [output.keeps_tokenizer_of, output.handed_on()];
                for port in ports.into_iter().flatten() {
                    assert!(contract.port(port).is_some(), "{}: `{port}`", contract.kind);
                }
                assert!(output.metrics.is_none() || output.is(ArtifactType::Metrics));
            }
            for field in contract.fields {
                if let FieldType::Metric { of, each } = field.ty {
                    let takes = |p: &Port| p.accepts == [ArtifactType::Metrics];
                    assert!(contract.port(of).is_some_and(takes), "{}", contract.kind);
                    assert!(each.is_none_or(|p| contract.port(p).is_some()));
                }
            }
        }
    }
}
