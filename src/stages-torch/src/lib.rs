//! How the kinds with tensors run, one file per kind: where a contract meets `data` and `ml`. Linked into the worker only.

mod alignment;
mod annotate;
mod answers;
mod best_of_n;
mod classifier;
mod classify;
mod compared;
mod completions;
mod cpo;
mod cuts;
mod density_ratio;
mod dpo;
mod evaluate;
mod exam;
mod features;
mod generate;
mod group;
mod grpo;
mod head;
mod heads;
mod judge;
mod kto;
mod labels;
mod masked_lm;
mod masked_lm_loss;
mod merge;
mod model;
mod orpo;
mod ppo;
mod preference;
mod preference_accuracy;
mod prefix_tuning;
mod quantize;
mod reference;
mod revise;
mod reward_model;
mod rloo;
mod rollout;
mod sft;
mod snapshot;
mod talk;
mod training;

use engine::contract::Pool;
use engine::job::Implementation;
use engine::worker::{Hello, PROTOCOL, Service, build_id};

/// Every kind that runs here.
pub fn implementations() -> &'static [Implementation] {
    &[
        Implementation {
            kind: "sft",
            run: sft::run,
        },
        Implementation {
            kind: "prefix_tuning",
            run: prefix_tuning::run,
        },
        Implementation {
            kind: "quantize",
            run: quantize::run,
        },
        Implementation {
            kind: "masked_lm",
            run: masked_lm::run,
        },
        Implementation {
            kind: "masked_lm_loss",
            run: masked_lm_loss::run,
        },
        Implementation {
            kind: "merge",
            run: merge::run,
        },
        Implementation {
            kind: "evaluate",
            run: evaluate::run,
        },
        Implementation {
            kind: "preference_accuracy",
            run: preference_accuracy::run,
        },
        Implementation {
            kind: "exam",
            run: exam::run,
        },
        Implementation {
            kind: "features",
            run: features::run,
        },
        Implementation {
            kind: "head",
            run: head::run,
        },
        Implementation {
            kind: "classifier",
            run: classifier::run,
        },
        Implementation {
            kind: "classify",
            run: classify::run,
        },
        Implementation {
            kind: "generate",
            run: generate::run,
        },
        Implementation {
            kind: "annotate",
            run: annotate::run,
        },
        Implementation {
            kind: "best_of_n",
            run: best_of_n::run,
        },
        Implementation {
            kind: "density_ratio",
            run: density_ratio::run,
        },
        Implementation {
            kind: "revise",
            run: revise::run,
        },
        Implementation {
            kind: "reward_model",
            run: reward_model::run,
        },
        Implementation {
            kind: "reference",
            run: reference::run,
        },
        Implementation {
            kind: "dpo",
            run: dpo::run,
        },
        Implementation {
            kind: "cpo",
            run: cpo::run,
        },
        Implementation {
            kind: "kto",
            run: kto::run,
        },
        Implementation {
            kind: "orpo",
            run: orpo::run,
        },
        Implementation {
            kind: "ppo",
            run: ppo::run,
        },
        Implementation {
            kind: "rloo",
            run: rloo::run,
        },
        Implementation {
            kind: "grpo",
            run: grpo::run,
        },
    ]
}

/// What a worker built from this crate can do.
pub fn service() -> Service {
    // First of all: an allocator that gives large blocks back after every step costs a third of the speed.
    ml::torch::keep_memory();
    Service {
        implementations: implementations(),
        hello,
        talk: talk::talk,
    }
}

fn hello() -> Hello {
    let numerics = ml::place::numerics();
    Hello {
        protocol: PROTOCOL,
        build: build_id(),
        kinds: kinds::contracts().versions(Pool::Torch),
        numerics: [
            ("libtorch".to_owned(), numerics.libtorch),
            ("capability".to_owned(), numerics.capability),
            ("native_bf16".to_owned(), numerics.native_bf16.to_string()),
        ]
        .into(),
        devices: model::devices(),
        dtypes: if numerics.native_bf16 {
            vec!["bf16".to_owned(), "f32".to_owned()]
        } else {
            vec!["f32".to_owned()]
        },
    }
}
