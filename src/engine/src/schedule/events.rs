//! Where the stream of events goes: one lock, every reader in turn.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use crate::event::{Event, Sink, What, to_line};

/// The stream.
pub struct Hub {
    start: Instant,
    sinks: Mutex<Vec<Box<dyn Sink>>>,
}

impl Hub {
    /// A stream into `sinks`, which begins now.
    pub fn new(sinks: Vec<Box<dyn Sink>>) -> Self {
        Self {
            start: Instant::now(),
            sinks: Mutex::new(sinks),
        }
    }

    /// Sends an event of `stage`, or of the run.
    pub fn emit(&self, stage: Option<&str>, what: What) {
        let event = Event {
            at: self.milliseconds(),
            stage: stage.map(ToOwned::to_owned),
            what,
        };
        for sink in self
            .sinks
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .iter_mut()
        {
            sink.emit(&event);
        }
    }

    /// How long the run has taken.
    pub fn milliseconds(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}

/// Writes `events.jsonl`.
pub struct LogFile {
    file: Option<BufWriter<File>>,
}

impl LogFile {
    /// A log in the run's folder. One that can't be written is not an error: the run matters more.
    pub fn new(folder: &Path) -> Self {
        let file = File::create(folder.join("events.jsonl"));
        if let Err(error) = &file {
            tracing::warn!("the run is not logged: {error}");
        }
        Self {
            file: file.ok().map(BufWriter::new),
        }
    }
}

impl Sink for LogFile {
    fn emit(&mut self, event: &Event) {
        let Some(file) = &mut self.file else { return };
        let frequent = matches!(event.what, What::Hit { .. } | What::Progress { .. });
        let written = writeln!(file, "{}", to_line(event))
            .and_then(|()| if frequent { Ok(()) } else { file.flush() });
        if let Err(error) = written {
            tracing::warn!("the run is not logged any more: {error}");
            self.file = None;
        }
    }
}
