//! How a command ends: its exit code, and what is said of an error.

use std::process::ExitCode;

use engine::diagnostic::Problems;

use crate::context::Context;

/// The exit codes, as `levain --help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// All is well.
    Done = 0,
    /// A stage failed.
    Failed = 1,
    /// The command line, the recipe or the first rows of its data have a mistake.
    Mistake = 2,
    /// A stage waits for a person.
    Waiting = 3,
    /// The cache, the disk, the network or the worker failed.
    Machine = 4,
    /// Interrupted by a signal.
    Interrupted = 130,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// An error that knows its exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    status: Status,
    error: anyhow::Error,
}

impl Failure {
    /// What was typed can't be done: the message says what can.
    pub fn usage(message: impl std::fmt::Display) -> anyhow::Error {
        Self::of(Status::Mistake, anyhow::anyhow!("{message}"))
    }

    /// The machine's fault, whatever the error looks like.
    pub fn machine(error: anyhow::Error) -> anyhow::Error {
        Self::of(Status::Machine, error)
    }

    fn of(status: Status, error: anyhow::Error) -> anyhow::Error {
        anyhow::Error::new(Self { status, error })
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl std::error::Error for Failure {}

/// The exit code of an error: mistakes in a recipe are told apart from what the machine did.
pub(crate) fn status_of(error: &anyhow::Error) -> Status {
    match error.downcast_ref::<Failure>() {
        Some(failure) => failure.status,
        None if error.is::<Problems>() => Status::Mistake,
        None => Status::Machine,
    }
}

/// The error as a person reads it.
pub(crate) fn text_of(error: &anyhow::Error, color: bool) -> String {
    let inner = cause(error);
    match inner.downcast_ref::<Problems>() {
        Some(problems) => problems.render(color),
        None if color => format!("\x1b[1;31merror\x1b[0m: {inner:#}\n"),
        None => format!("error: {inner:#}\n"),
    }
}

/// The mistakes of a recipe as a command with `--json` tells them; none for other errors.
pub(crate) fn for_programs(error: &anyhow::Error) -> Option<serde_json::Value> {
    let problems = cause(error).downcast_ref::<Problems>()?;
    Some(problems.to_json())
}

/// Says what went wrong and gives the exit code. With `json` the mistakes of a recipe go to standard output, and nothing is said.
pub(crate) fn report(error: &anyhow::Error, json: bool, context: &Context) -> ExitCode {
    let answer = for_programs(error).filter(|_| json);
    if answer.is_none_or(|answer| context.print_json(&answer).is_err()) {
        crate::terminal::say(&text_of(error, context.err.color));
    }
    status_of(error).into()
}

/// The error under its exit code.
fn cause(error: &anyhow::Error) -> &anyhow::Error {
    error
        .downcast_ref::<Failure>()
        .map_or(error, |failure| &failure.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_and_a_broken_machine_have_their_own_codes() {
        let problems = Problems::new(Vec::new(), Vec::new());
        assert_eq!(
            status_of(&anyhow::Error::new(problems.clone())),
            Status::Mistake
        );
        assert_eq!(
            status_of(&Failure::machine(problems.into())),
            Status::Machine
        );
        assert_eq!(status_of(&Failure::usage("no")), Status::Mistake);
        assert_eq!(status_of(&anyhow::anyhow!("disk full")), Status::Machine);
    }

    #[test]
    fn the_chain_of_causes_is_on_one_line() {
        let error = anyhow::anyhow!("no space left").context("the cache can't be written");
        assert_eq!(
            text_of(&error, false),
            "error: the cache can't be written: no space left\n"
        );
        assert_eq!(
            text_of(&Failure::machine(error), false),
            "error: the cache can't be written: no space left\n"
        );
    }
}
