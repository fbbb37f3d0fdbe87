//! Diagnostics of the programs' insides on standard error: `-v`, `-vv`, or the filter in `LEVAIN_LOG`.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Starts the reader of diagnostics. Without `-v` only warnings are told.
pub(crate) fn start(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = match std::env::var("LEVAIN_LOG") {
        Ok(text) if !text.trim().is_empty() => EnvFilter::builder().parse_lossy(text),
        _ => EnvFilter::new(level),
    };
    let format = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Above)
        .with_ansi(io::stderr().is_terminal());
    if verbose > 1 {
        let _ = format.try_init();
    } else {
        let _ = format.without_time().with_target(false).try_init();
    }
}

/// Writes above the lines of running stages.
struct Above;

impl<'a> MakeWriter<'a> for Above {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line
    }
}

/// One event is one call of `write`.
struct Line;

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        crate::terminal::say(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
