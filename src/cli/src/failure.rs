//! How a command ends: its exit code, and what is said of an error.

use std::process::ExitCode;

use engine::diagnostic::Problems;
use serde_json::{Value, json};

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

impl Status {
    /// The word for programs that tells errors apart which are no mistakes of a recipe.
    fn code(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Mistake => "usage",
            Self::Waiting => "waiting",
            Self::Machine => "machine",
            Self::Interrupted => "interrupted",
        }
    }
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

/// The error as a command with `--json` tells it: the mistakes of a recipe, or one that has no place in it.
pub(crate) fn for_programs(error: &anyhow::Error) -> Value {
    let inner = cause(error);
    match inner.downcast_ref::<Problems>() {
        Some(problems) => problems.to_json(),
        None => {
            let (code, message) = (status_of(error).code(), format!("{inner:#}"));
            let problem = json!({ "code": code, "message": message, "place": null, "help": null });
            json!({ "problems": [problem] })
        }
    }
}

/// Says what went wrong and gives the exit code. With `json` it goes to standard output; the mistakes of a recipe are said there only.
pub(crate) fn report(error: &anyhow::Error, json: bool, context: &Context) -> ExitCode {
    let told = json && context.print_json(&for_programs(error)).is_ok();
    if !told || !cause(error).is::<Problems>() {
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
    fn programs_read_every_error_in_one_form() {
        let error = anyhow::anyhow!("no space left").context("the cache can't be written");
        for (error, code) in [
            (
                Failure::usage("the cache can't be written: no space left"),
                "usage",
            ),
            (error, "machine"),
        ] {
            let told = for_programs(&error);
            let problem = &told["problems"][0];
            assert_eq!(problem["code"], code);
            assert_eq!(
                problem["message"],
                "the cache can't be written: no space left"
            );
            assert!(problem["place"].is_null());
        }
        let problems = Problems::new(Vec::new(), Vec::new());
        assert_eq!(for_programs(&problems.clone().into()), problems.to_json());
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
