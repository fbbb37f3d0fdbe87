//! How the kinds without tensors run, one file per kind, linked into `levain` itself: they need no libtorch.

mod adapter;
mod ahead;
mod ask;
mod bottleneck;
mod chart;
mod concat;
mod contrast;
mod cut;
mod gate;
mod ia3;
mod init_model;
pub mod label;
mod load_adapter;
mod load_classifier;
mod load_dataset;
mod load_model;
mod load_reward_model;
mod lora;
mod mismatch;
mod overoptimization;
mod prompt_tuning;
mod rule;
mod select;
mod split;
#[cfg(test)]
mod testing;
mod tokenize;
mod tokenize_completions;
mod tokenize_labelled;
mod tokenize_pieces;

use engine::contract::{CheckInputs, Trial, no_check};
use engine::job::Implementation;
use engine::known::Glance;
use engine::peek::Peek;

/// Every kind that runs here.
pub fn implementations() -> &'static [Implementation] {
    &[
        Implementation {
            kind: "load_dataset",
            run: load_dataset::run,
        },
        Implementation {
            kind: "rule",
            run: rule::run,
        },
        Implementation {
            kind: "ask",
            run: ask::run,
        },
        Implementation {
            kind: "split",
            run: split::run,
        },
        Implementation {
            kind: "concat",
            run: concat::run,
        },
        Implementation {
            kind: "load_model",
            run: load_model::run,
        },
        Implementation {
            kind: "load_reward_model",
            run: load_reward_model::run,
        },
        Implementation {
            kind: "load_classifier",
            run: load_classifier::run,
        },
        Implementation {
            kind: "cut",
            run: cut::run,
        },
        Implementation {
            kind: "contrast",
            run: contrast::run,
        },
        Implementation {
            kind: "init_model",
            run: init_model::run,
        },
        Implementation {
            kind: "label",
            run: label::run,
        },
        Implementation {
            kind: "lora",
            run: lora::run,
        },
        Implementation {
            kind: "ia3",
            run: ia3::run,
        },
        Implementation {
            kind: "bottleneck",
            run: bottleneck::run,
        },
        Implementation {
            kind: "prompt_tuning",
            run: prompt_tuning::run,
        },
        Implementation {
            kind: "load_adapter",
            run: load_adapter::run,
        },
        Implementation {
            kind: "gate",
            run: gate::run,
        },
        Implementation {
            kind: "select",
            run: select::run,
        },
        Implementation {
            kind: "overoptimization",
            run: overoptimization::run,
        },
        Implementation {
            kind: "tokenize",
            run: tokenize::run,
        },
        Implementation {
            kind: "tokenize_completions",
            run: tokenize_completions::run,
        },
        Implementation {
            kind: "tokenize_pieces",
            run: tokenize_pieces::run,
        },
        Implementation {
            kind: "tokenize_labelled",
            run: tokenize_labelled::run,
        },
        Implementation {
            kind: "mismatch",
            run: mismatch::run,
        },
    ]
}

/// How the sources of a kind are looked at before it runs.
pub fn peeks() -> &'static [Peek] {
    &[Peek {
        kind: "load_dataset",
        look: load_dataset::look,
    }]
}

/// How the sources of a kind are looked at for what its artifact will say.
pub fn glances() -> &'static [Glance] {
    &[
        Glance {
            kind: "load_model",
            look: load_model::glance,
        },
        Glance {
            kind: "load_classifier",
            look: load_classifier::glance,
        },
        Glance {
            kind: "init_model",
            look: init_model::glance,
        },
        Glance {
            kind: "load_adapter",
            look: load_adapter::glance,
        },
    ]
}

/// What is tried of a recipe's fields before anything runs: what the kinds here read only when they run.
pub fn trials() -> &'static [Trial] {
    const ALL: &[Trial] = &[
        Trial {
            kind: "rule",
            attempt: rule::attempt,
            attempt_inputs: None,
        },
        Trial {
            kind: "ask",
            attempt: ask::attempt,
            attempt_inputs: None,
        },
        of_names("quantize", ahead::quantize),
        of_names("lora", ahead::lora),
        of_names("ia3", ahead::ia3),
        of_names("sft", ahead::train),
        of_names("dpo", ahead::train),
        of_names("cpo", ahead::train),
        of_names("orpo", ahead::train),
        of_names("kto", ahead::train),
        of_names("reward_model", ahead::train_reward_model),
        of_names("classifier", ahead::train_classifier),
    ];
    ALL
}

/// A trial of names against the model that they are of.
const fn of_names(kind: &'static str, attempt: CheckInputs) -> Trial {
    Trial {
        kind,
        attempt: no_check,
        attempt_inputs: Some(attempt),
    }
}

/// Says how many rows are done, and how many in a second since `start`.
fn rows_done(cx: &dyn engine::job::Reporter, done: u64, total: u64, start: std::time::Instant) {
    let rate = done as f64 / start.elapsed().as_secs_f64().max(1e-9);
    cx.emit(engine::event::What::Progress {
        done,
        total,
        unit: "rows".to_owned(),
        rate: Some((rate, "rows/s".to_owned())),
    });
}

/// The draft of a dataset at `path`: one file, `rows.arrow`, with its summary.
fn dataset_draft(
    path: std::path::PathBuf,
    summary: &data::store::DatasetSummary,
) -> anyhow::Result<engine::job::Draft> {
    let columns: Vec<_> = summary
        .layout
        .columns()
        .iter()
        .map(|(name, _)| *name)
        .collect();
    Ok(engine::job::Draft {
        artifact: engine::artifact::ArtifactType::Dataset,
        files: vec![("rows.arrow".to_owned(), path)],
        refs: Default::default(),
        summary: [
            ("rows".to_owned(), summary.rows.into()),
            ("layout".to_owned(), summary.layout.name().into()),
            ("columns".to_owned(), columns.into()),
            (
                "characters".to_owned(),
                serde_json::to_value(summary.characters)?,
            ),
        ]
        .into(),
    })
}
