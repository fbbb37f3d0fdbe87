//! How the kinds without tensors run, one file per kind, linked into `levain` itself: they need no libtorch.

mod gate;
mod load_dataset;
mod load_model;
mod lora;
mod select;
mod split;
#[cfg(test)]
mod testing;
mod tokenize;

use engine::job::Implementation;
use engine::peek::Peek;

/// Every kind that runs here.
pub fn implementations() -> &'static [Implementation] {
    &[
        Implementation {
            kind: "load_dataset",
            run: load_dataset::run,
        },
        Implementation {
            kind: "split",
            run: split::run,
        },
        Implementation {
            kind: "load_model",
            run: load_model::run,
        },
        Implementation {
            kind: "lora",
            run: lora::run,
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
            kind: "tokenize",
            run: tokenize::run,
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
