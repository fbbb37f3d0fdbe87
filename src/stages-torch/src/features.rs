//! `features`: texts through a frozen model, their vectors in an Arrow file.

use anyhow::{Result, ensure};
use data::VectorsWriter;
use engine::artifact::ArtifactType;
use engine::job::{Draft, Drafts, Job, Reference, Reporter};
use kinds::features::Features;
use ml::pool::{self, Pooling};

use crate::cuts::Cuts;
use crate::heads::vectors;
use crate::labels;
use crate::model::load_backbone;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Features = job.params()?;
    let view = job.input("model")?;
    let labels = labels::of(job, "data")?;
    let tokens = job.input("tokens")?;
    let texts = labels::texts(tokens, &labels)?;
    let cuts = Cuts::of_tokens(tokens, params.max_length, &params.truncation)?;
    ensure!(!texts.is_empty(), "there are no texts to read");
    let pooling = Pooling::parse(&params.pooling)?;
    let loaded = load_backbone(view, job)?;
    pool::check(pooling, &loaded.backbone)?;
    let manner = (pooling, params.normalize);
    let batch = params.micro_batch;
    let found = vectors(&loaded.backbone, manner, &texts, batch, "texts", cx)?;
    let hidden = loaded.backbone.hidden_size();
    let path = job.out.join("vectors.arrow");
    let mut writer = VectorsWriter::create(&path, hidden)?;
    for (vector, label) in ml::classifier::numbers(&found)?.iter().zip(&labels) {
        writer.push(vector, label)?;
    }
    let rows = writer.finish()?;
    ml::torch::release_memory();
    let tokenizer = view.reference("tokenizer")?.digest;
    let draft = Draft {
        artifact: ArtifactType::Vectors,
        files: vec![("vectors.arrow".to_owned(), path)],
        refs: [
            ("model".to_owned(), Reference::Artifact(view.digest)),
            ("tokenizer".to_owned(), Reference::Artifact(tokenizer)),
        ]
        .into(),
        summary: [
            ("rows".to_owned(), rows.into()),
            ("hidden".to_owned(), hidden.into()),
            ("pooling".to_owned(), params.pooling.into()),
            ("normalize".to_owned(), params.normalize.into()),
        ]
        .into_iter()
        .chain(cuts.summary())
        .collect(),
    };
    Ok([("vectors".to_owned(), draft)].into())
}
