//! `levain doctor`: what is here, what is missing, what to do about it.

use std::io::IsTerminal;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;
use engine::contract::Pool;
use engine::worker::{Worker, build_id, locate};
use serde::Serialize;
use serde_json::{Value, json};

use super::cache::size;
use crate::context::{Context, terminal_width};
use crate::failure::Status;
use crate::{table, units};

/// Say what Levain finds on this machine, and what to do about what is missing
///
/// Ends with 1 when something is missing that stages need.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// How a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// As it should be.
    Fine,
    /// Missing, and only some recipes need it.
    Wanting,
    /// Missing, and needed.
    Missing,
}

/// One finding.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    state: State,
    text: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
    /// The same for programs.
    #[serde(skip_serializing_if = "Value::is_null")]
    detail: Value,
}

impl Finding {
    fn fine(name: &'static str, text: impl Into<String>, detail: Value) -> Self {
        Self {
            name,
            state: State::Fine,
            text: text.into(),
            help: None,
            detail,
        }
    }

    fn bad(name: &'static str, state: State, text: impl Into<String>, help: &str) -> Self {
        Self {
            name,
            state,
            text: text.into(),
            help: Some(help.to_owned()),
            detail: Value::Null,
        }
    }
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    let mut findings = vec![Finding::fine("levain", build_id(), Value::Null)];
    worker(context, &mut findings);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    findings.push(Finding::fine(
        "threads",
        format!("{threads}"),
        threads.into(),
    ));
    cache(context, &mut findings);
    findings.push(python());
    findings.push(terminal(context));
    let missing = findings.iter().any(|f| f.state == State::Missing);
    if args.json {
        context.print_json(&json!({ "ready": !missing, "findings": findings }))?;
    } else {
        context.print(&text(&findings, context))?;
    }
    Ok(if missing {
        Status::Failed
    } else {
        Status::Done
    })
}

fn text(findings: &[Finding], context: &Context) -> String {
    let style = context.out;
    let mut out = String::new();
    for finding in findings {
        let sign = match finding.state {
            State::Fine => style.green("✓"),
            State::Wanting => style.yellow("!"),
            State::Missing => style.red("✗"),
        };
        let name = table::pad(finding.name, 10);
        let mut lines = finding.text.lines();
        out.push_str(&format!(
            "{sign} {} {}\n",
            style.bold(&name),
            lines.next().unwrap_or_default()
        ));
        lines.for_each(|line| out.push_str(&format!("{}{line}\n", " ".repeat(13))));
        if let Some(help) = &finding.help {
            out.push_str(&format!("{}{} {help}\n", " ".repeat(13), style.cyan("→")));
        }
    }
    let count = |state| findings.iter().filter(|f| f.state == state).count();
    out.push_str(&match (count(State::Missing), count(State::Wanting)) {
        (0, 0) => "\nEverything is here.\n".to_owned(),
        (0, _) => "\nEverything that every recipe needs is here.\n".to_owned(),
        (missing, _) => format!(
            "\n{} to be put right; see the arrows.\n",
            units::plural(missing, "thing")
        ),
    });
    out
}

/// The worker, and what it alone knows: libtorch, devices, dtypes.
fn worker(context: &Context, findings: &mut Vec<Finding>) {
    let path = locate();
    let shown = path.display();
    if !path.is_file() {
        findings.push(Finding::bad(
            "worker",
            State::Missing,
            format!("there is none at {shown}"),
            "`make build` builds it (once libtorch is there: `make setup`), or name it in LEVAIN_WORKER; recipes without tensors run without it",
        ));
        return;
    }
    let worker = match Worker::start(&path, &context.contracts().versions(Pool::Torch)) {
        Ok(worker) => worker,
        Err(error) => {
            let help = "`make setup` fetches libtorch, `make build` builds both programs anew";
            findings.push(Finding::bad(
                "worker",
                State::Missing,
                format!("{shown} is of no use: {error:#}"),
                help,
            ));
            return;
        }
    };
    let hello = worker.hello();
    findings.push(Finding::fine(
        "worker",
        format!("{shown}, protocol {}", hello.protocol),
        json!({ "path": path, "hello": hello }),
    ));
    let numerics: Vec<String> = hello
        .numerics
        .iter()
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    findings.push(Finding::fine(
        "libtorch",
        numerics.join(", "),
        json!(hello.numerics),
    ));
    findings.push(Finding::fine(
        "devices",
        hello.devices.join(", "),
        json!(hello.devices),
    ));
    let fast = if hello.dtypes.is_empty() {
        "none known to be fast".to_owned()
    } else {
        format!("fast here: {}", hello.dtypes.join(", "))
    };
    findings.push(Finding::fine("dtypes", fast, json!(hello.dtypes)));
}

fn cache(context: &Context, findings: &mut Vec<Finding>) {
    let folder = context.cache_folder(Path::new("."));
    let exists = folder.join("entries").is_dir();
    // What is not there yet is made in the nearest folder that is.
    let ground = folder
        .ancestors()
        .find(|f| f.is_dir())
        .unwrap_or(Path::new("/"));
    let free = free_bytes(ground);
    let free_text = free.map_or_else(
        || "free space unknown".to_owned(),
        |b| format!("{} free", units::bytes(b)),
    );
    let used = if exists { size::of(&folder).total() } else { 0 };
    let state_text = if exists {
        format!("{} used", units::bytes(used))
    } else {
        "not made yet".to_owned()
    };
    let text = format!("{}: {state_text}, {free_text}", folder.display());
    let mut finding = Finding::fine(
        "cache",
        text,
        json!({ "path": folder, "exists": exists, "bytes": used, "free": free }),
    );
    if !writable(ground) {
        finding.state = State::Missing;
        finding
            .text
            .push_str("\nit can't be written: cached results can be used, nothing new can be made");
        finding.help = Some(
            "name another with `--cache DIR` or LEVAIN_CACHE, or change its permissions".to_owned(),
        );
    } else if free.is_some_and(|b| b < 1_000_000_000) {
        finding.state = State::Wanting;
        finding.help = Some("less than 1 GB is free: `levain cache gc` removes what old runs left, or name another place".to_owned());
    }
    findings.push(finding);
}

/// Bytes that this user may still write.
fn free_bytes(path: &Path) -> Option<u64> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
    // SAFETY: `statvfs` reads a C string and writes a struct of plain old data, for which zeroes are valid.
    unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &mut found) == 0)
            .then(|| (found.f_bavail as u64).saturating_mul(found.f_frsize as u64))
    }
}

fn writable(path: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()) else {
        return false;
    };
    // SAFETY: `access` only reads a C string.
    unsafe { libc::access(path.as_ptr(), libc::W_OK) == 0 }
}

/// Python and its pip say where packages are, for `pypi:` sources.
fn python() -> Finding {
    let name = std::env::var("LEVAIN_PYTHON")
        .ok()
        .filter(|v| !v.trim().is_empty())
        .unwrap_or_else(|| "python3".to_owned());
    let help =
        "only `pypi:` sources need it: install Python 3 with pip, or name one in LEVAIN_PYTHON";
    let output = Command::new(&name)
        .args(["-m", "pip", "--version"])
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => {
            let said = String::from_utf8_lossy(&output.stdout);
            // `pip 25.1 from /usr/lib/... (python 3.12)`.
            let version = said
                .split_whitespace()
                .take(2)
                .collect::<Vec<_>>()
                .join(" ");
            let python = said
                .trim()
                .rsplit_once('(')
                .map_or("", |(_, rest)| rest.trim_end_matches(')'));
            Finding::fine(
                "python",
                format!("{name} with {version}, {python}"),
                json!({ "command": name, "pip": version, "version": python }),
            )
        }
        Ok(_) => Finding::bad("python", State::Wanting, format!("{name} has no pip"), help),
        Err(error) => Finding::bad(
            "python",
            State::Wanting,
            format!("{name} can't be started ({error})"),
            help,
        ),
    }
}

fn terminal(context: &Context) -> Finding {
    let out = std::io::stdout().is_terminal();
    let err = std::io::stderr().is_terminal();
    let width = terminal_width(libc::STDERR_FILENO);
    let mut parts = Vec::new();
    parts.push(match (err, width) {
        (true, Some(width)) => format!("{width} columns"),
        (true, None) => "a terminal of unknown width".to_owned(),
        (false, _) => "not a terminal: runs are told in plain lines".to_owned(),
    });
    parts.push(if context.err.color {
        "colours".to_owned()
    } else {
        "no colours".to_owned()
    });
    Finding::fine(
        "terminal",
        parts.join(", "),
        json!({ "stdout": out, "stderr": err, "columns": width, "colors": context.err.color }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Global;

    #[test]
    fn every_missing_thing_has_a_way_out() {
        let context = Context::new(&Global {
            color: crate::options::ColorChoice::Never,
            ..Global::default()
        });
        let findings = [
            Finding::fine("levain", "0.1.0", Value::Null),
            Finding::bad(
                "worker",
                State::Missing,
                "there is none at /bin/x\nnot at all",
                "build it",
            ),
            Finding::bad("python", State::Wanting, "python3 has no pip", "install it"),
        ];
        insta::assert_snapshot!(text(&findings, &context), @r"
        ✓ levain     0.1.0
        ✗ worker     there is none at /bin/x
                     not at all
                     → build it
        ! python     python3 has no pip
                     → install it

        1 thing to be put right; see the arrows.
        ");
    }

    #[test]
    fn the_disk_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_bytes(folder.path()).is_some());
        assert!(writable(folder.path()));
        assert!(!writable(&folder.path().join("nothing")));
    }
}
