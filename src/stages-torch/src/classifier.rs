//! `classifier`: a model with a head, trained end to end, and files that `AutoModelForSequenceClassification` reads where their shape is one that it
//! knows.

mod files;

use anyhow::{Context, Result};
use engine::job::{About as _, Drafts, Job, Reporter};
use formats::config::bert::{MASKED_HEAD, POOLER};
use formats::head::About;
use kinds::classifier::Classifier;
use kinds::training::Train;
use ml::head::{Activation, Head, Names, Shape, Task};
use ml::pool::{self, Pooling};

use crate::cuts::Cuts;
use crate::heads::{measure, sayings, vectors};
use crate::labels::{self, classes, targets};
use crate::model::{LoadedBackbone, load_backbone};
use crate::training::{Counted, Trainee, check_lengths, choose, metrics, train};

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Classifier = job.params()?;
    let view = job.input("model")?;
    let labels = labels::of(job, "data")?;
    let tokens = job.input("tokens")?;
    let texts = labels::texts(tokens, &labels)?;
    let cuts = Cuts::of_tokens(tokens, params.max_length, &params.truncation)?;
    let task = Task::parse(&params.task)?;
    let labels_of = match task {
        Task::Classification => classes(&labels)?,
        Task::Regression => Vec::new(),
    };
    let wanted = targets(task, &labels, &labels_of)?;
    let mut loaded = load_backbone(view, job)?;
    let pooling = Pooling::parse(&params.pooling)?;
    pool::check(pooling, &loaded.backbone)?;
    let names = Names::of(loaded.backbone.is_encoder(), pooling, &params.hidden);
    let about = About {
        task,
        pooling,
        normalize: false,
        shape: Shape {
            input: loaded.backbone.hidden_size(),
            hidden: params.hidden.clone(),
            outputs: task.outputs(&labels_of),
            activation: Activation::parse(&params.activation)?,
            bias: names.has_bias(),
            names,
        },
        labels: labels_of,
    };
    let place = loaded.backbone.place();
    let seed = params.training.seed;
    let own = &mut loaded.params;
    let head = Head::fresh(&about.shape, params.dropout, seed, place, own)?;
    if task == Task::Regression {
        head.start_at(wanted.iter().sum::<f64>() / wanted.len() as f64);
    }
    let held_out = match job.inputs.contains_key("test") {
        true => {
            let labels = labels::of(job, "test")?;
            let texts = labels::texts(job.input("test_tokens")?, &labels)?;
            let truth = targets(task, &labels, &about.labels)
                .context("`test`")
                .about("test")?;
            Some((texts, truth))
        }
        false => None,
    };
    let positions = loaded.backbone.positions();
    check_lengths("data", texts.iter().map(Vec::len), positions)?;
    if let Some((texts, _)) = &held_out {
        check_lengths("test", texts.iter().map(Vec::len), positions)?;
    }
    choose_trained(&mut loaded, &head, pooling, &params.training.train, cx)?;
    loaded
        .backbone
        .set_checkpointing(params.training.checkpointing);
    let mut objective = ml::classifier::Classifier {
        backbone: &loaded.backbone,
        head: &head,
        pooling,
        task,
        rows: texts.len(),
        read: Box::new(|row: usize| Ok((texts[row].clone(), wanted[row]))),
    };
    let steps = train(
        job,
        cx,
        &params.training,
        &loaded.params,
        &mut objective,
        Counted::Rows,
    )?;
    drop(objective);
    let mut metrics = metrics(job, &steps)?;
    if let Some((texts, truth)) = held_out {
        let batch = params.training.micro_batch;
        let manner = (pooling, false);
        let found = vectors(&loaded.backbone, manner, &texts, batch, "test texts", cx)?;
        let found = measure(&about, &truth, &sayings(task, &head, &found)?)?;
        found.tell("test", steps.len(), cx);
        found.add_to(job, &mut metrics)?;
    }
    let model = files::draft(job, view, &loaded, (&about, &head), &cuts)?;
    ml::torch::release_memory();
    Ok([("model".to_owned(), model), ("metrics".to_owned(), metrics)].into())
}

/// Sets what is trained: the head, and the adapter's parameters or without one what is chosen of what texts go through.
fn choose_trained(
    loaded: &mut LoadedBackbone,
    head: &Head,
    pooling: Pooling,
    train: &Train,
    cx: &dyn Reporter,
) -> Result<()> {
    let of_head: Vec<String> = head.tensors().into_iter().map(|(name, _)| name).collect();
    let trainee = Trainee {
        adapted: loaded.adapter.is_some(),
        packed: loaded.backbone.packed_values(),
        params: &mut loaded.params,
        head: Some(&of_head),
        idle: &|name| {
            let pooled = pooling != Pooling::Pooler && name.starts_with(POOLER);
            name == files::WORDS || name.starts_with(MASKED_HEAD) || pooled
        },
    };
    choose(trainee, train, cx)
}
