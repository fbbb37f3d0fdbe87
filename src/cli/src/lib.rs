//! The command line: commands, and the readers of the event stream that a person sees.
//!
//! What is not here: how stages run, how keys are made, tensors. Results go to standard output, everything that tells how it goes
//! to standard error.

mod answers;
mod changes;
mod commands;
mod context;
mod curves;
mod diagnostics;
mod failure;
mod interrupt;
mod log;
mod memory;
mod options;
mod style;
mod summary;
mod table;
mod tensorboard;
mod terminal;
mod units;

use std::process::ExitCode;

use clap::Parser as _;

use crate::context::Context;
use crate::options::Options;

/// Reads the command line, does what it says, and says how that went.
pub fn main() -> ExitCode {
    memory::in_large_steps();
    let options = Options::parse();
    let context = Context::new(&options.global);
    diagnostics::start(options.global.verbose);
    match commands::run(&options.command, &context) {
        Ok(status) => status.into(),
        Err(error) => failure::report(&error, options.command.json(), &context),
    }
}
