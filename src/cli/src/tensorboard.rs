//! TensorBoard event files: the reader of the event stream that writes numbers and texts for `tensorboard --logdir`.

mod protobuf;
mod record;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::event::{Event, Sink, What};

pub(crate) use protobuf::{Summary, event_bytes};

/// Milliseconds between two writes of one file, so that TensorBoard can be watched while a stage runs.
const EVERY: u64 = 2000;

/// One event file a stage, in a folder of its own, made when the stage first tells a number.
pub(crate) struct TensorBoard {
    folder: PathBuf,
    begun: SystemTime,
    files: HashMap<String, Option<Writer>>,
}

struct Writer {
    file: BufWriter<File>,
    flushed: u64,
    samples: HashMap<String, i64>,
}

impl TensorBoard {
    /// Files below `folder`, of a run that began at `begun`.
    pub fn new(folder: PathBuf, begun: SystemTime) -> Self {
        Self {
            folder,
            begun,
            files: HashMap::new(),
        }
    }

    fn time(&self, at: u64) -> f64 {
        let begun = self.begun.duration_since(UNIX_EPOCH).unwrap_or_default();
        (begun + Duration::from_millis(at)).as_secs_f64()
    }

    fn write(&mut self, stage: &str, at: u64, step: Option<i64>, summaries: &[Summary<'_>]) {
        let time = self.time(at);
        let folder = self.folder.join(folder_name(stage));
        let writer = self.files.entry(stage.to_owned()).or_insert_with(|| {
            let opened = Writer::create(&folder, time);
            if let Err(error) = &opened {
                tracing::warn!(
                    "{}: no TensorBoard file is written: {error}",
                    folder.display()
                );
            }
            opened.ok()
        });
        let Some(open) = writer else { return };
        let step = step.unwrap_or_else(|| open.next_sample(summaries));
        if let Err(error) = open.write(&event_bytes(time, step, summaries), at) {
            tracing::warn!(
                "{}: the TensorBoard file is not written any more: {error}",
                folder.display()
            );
            *writer = None;
        }
    }
}

/// A stage's folder: `sft`, `sft.tokens` for the preparation `sft › tokens`.
fn folder_name(stage: &str) -> String {
    stage.replace(" › ", ".").replace(['/', '\\'], "_")
}

impl Writer {
    fn create(folder: &Path, time: f64) -> std::io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        // TensorBoard takes every file whose name holds `tfevents`; seconds first, so that names sort by time.
        let name = format!(
            "events.out.tfevents.{:010}.levain.{}",
            time as u64,
            std::process::id()
        );
        let mut writer = Self {
            file: BufWriter::new(File::create(folder.join(name))?),
            flushed: 0,
            samples: HashMap::new(),
        };
        record::write(&mut writer.file, &protobuf::version_bytes(time))?;
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8], at: u64) -> std::io::Result<()> {
        record::write(&mut self.file, bytes)?;
        if at >= self.flushed.saturating_add(EVERY) {
            self.flushed = at;
            self.file.flush()?;
        }
        Ok(())
    }

    /// Texts carry no step: they are counted by title.
    fn next_sample(&mut self, summaries: &[Summary<'_>]) -> i64 {
        let Some(Summary::Text { tag, .. } | Summary::Scalar { tag, .. }) = summaries.first()
        else {
            return 0;
        };
        let next = self.samples.entry((*tag).to_owned()).or_insert(-1);
        *next += 1;
        *next
    }
}

impl Sink for TensorBoard {
    fn emit(&mut self, event: &Event) {
        let Some(stage) = &event.stage else { return };
        match &event.what {
            What::Metrics { step, values } => {
                let summaries: Vec<_> = values
                    .iter()
                    .map(|(tag, value)| Summary::Scalar {
                        tag,
                        value: *value as f32,
                    })
                    .collect();
                self.write(
                    stage,
                    event.at,
                    Some(i64::try_from(*step).unwrap_or(i64::MAX)),
                    &summaries,
                );
            }
            What::Sample { title, text } => {
                self.write(stage, event.at, None, &[Summary::Text { tag: title, text }])
            }
            What::Finished { .. } | What::Failed { .. } | What::Waiting { .. } => {
                // Dropping the writer writes what is left.
                self.files.remove(stage);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The golden file is written by the `tensorboard` package: see `tests/golden/make/tensorboard_events.py`.
    #[test]
    fn a_file_has_the_bytes_that_the_tensorboard_package_writes() {
        let golden = std::fs::read(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/golden/data/tensorboard/events.bin"
        ))
        .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let begun = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let mut sink = TensorBoard::new(folder.path().to_owned(), begun);
        let metrics = |at, step, loss: f64| Event {
            at,
            stage: Some("sft".to_owned()),
            what: What::Metrics {
                step,
                values: BTreeMap::from([
                    ("learning_rate".to_owned(), 2e-4),
                    ("loss".to_owned(), loss),
                ]),
            },
        };
        sink.emit(&metrics(500, 0, 2.5));
        sink.emit(&metrics(1500, 300, -0.125));
        let text = "**prompt** ünïcode\n\nanswer".to_owned();
        sink.emit(&Event {
            at: 2000,
            stage: Some("sft".to_owned()),
            what: What::Sample {
                title: "answers/1".to_owned(),
                text,
            },
        });
        drop(sink);
        let path = std::fs::read_dir(folder.path().join("sft"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        assert!(
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("events.out.tfevents.1700000000.")
        );
        assert_eq!(std::fs::read(path).unwrap(), golden);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_failure() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let mut sink = TensorBoard::new(folder.path().join("file"), UNIX_EPOCH);
        let what = What::Metrics {
            step: 0,
            values: BTreeMap::from([("loss".to_owned(), 1.0)]),
        };
        sink.emit(&Event {
            at: 0,
            stage: Some("sft".to_owned()),
            what,
        });
    }
}
