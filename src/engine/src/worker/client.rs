//! The engine's side.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::{Hello, PROTOCOL, Reply, Request, Talk, build_id};
use crate::job::{AboutWord, Cancelled, Drafts, Job, Reporter, Waiting};

/// How long a worker may take to say hello.
const HELLO: Duration = Duration::from_secs(60);

/// A running worker.
pub struct Worker {
    child: Child,
    input: Mutex<Option<ChildStdin>>,
    replies: Receiver<Reply>,
    hello: Hello,
    errors: std::sync::Arc<Mutex<String>>,
}

/// Where the worker is: LEVAIN_WORKER, else beside this program.
pub fn locate() -> PathBuf {
    if let Some(path) = std::env::var_os("LEVAIN_WORKER") {
        return path.into();
    }
    let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("levain"));
    own.canonicalize()
        .unwrap_or(own)
        .with_file_name("levain-worker")
}

impl Worker {
    /// Starts the worker at `path` and refuses one whose protocol, build or kinds differ from ours.
    pub fn start(path: &Path, kinds: &[(String, u32)]) -> Result<Self> {
        if !path.is_file() {
            bail!(
                "there is no worker at {}: tensor stages need it. Build it with `make build`, or name it in LEVAIN_WORKER; \
                 `levain doctor` says more",
                path.display()
            );
        }
        let mut command = Command::new(path);
        // OpenMP's threads wait for each other by spinning, which makes small trainings many times slower where other programs are
        // at work as well. They may spin for some microseconds; what the user says of it stands.
        if ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"]
            .iter()
            .all(|name| std::env::var_os(name).is_none())
        {
            command.env("GOMP_SPINCOUNT", "2000");
        }
        let mut child = command
            .arg("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("the worker {} can't be started", path.display()))?;
        let input = child
            .stdin
            .take()
            .context("the worker has no standard input")?;
        let output = child
            .stdout
            .take()
            .context("the worker has no standard output")?;
        let stderr = child
            .stderr
            .take()
            .context("the worker has no standard error")?;
        let errors = std::sync::Arc::new(Mutex::new(String::new()));
        let tail = errors.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                tracing::debug!(target: "worker", "{line}");
                let mut text = tail
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                text.push_str(&line);
                text.push('\n');
                if text.len() > 8192 {
                    let cut = text
                        .char_indices()
                        .map(|(i, _)| i)
                        .find(|i| text.len() - i <= 4096)
                        .unwrap_or(0);
                    text.drain(..cut);
                }
            }
        });
        let (sender, replies) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let reply = serde_json::from_str(&line)
                    .unwrap_or_else(|e| Reply::Garbled(format!("the worker wrote `{line}`: {e}")));
                if sender.send(reply).is_err() {
                    break;
                }
            }
        });
        let mut worker = Self {
            child,
            input: Mutex::new(Some(input)),
            replies,
            hello: Hello {
                protocol: 0,
                build: String::new(),
                kinds: Vec::new(),
                numerics: Default::default(),
                devices: Vec::new(),
                dtypes: Vec::new(),
            },
            errors,
        };
        match worker.replies.recv_timeout(HELLO) {
            Ok(Reply::Hello(hello)) => {
                check_hello(&hello, kinds, path)?;
                worker.hello = hello;
                Ok(worker)
            }
            Ok(other) => bail!(
                "the worker {} does not say hello but {other:?}; is it a Levain worker of this build?",
                path.display()
            ),
            Err(RecvTimeoutError::Timeout) => bail!(
                "the worker {} said nothing for {} s",
                path.display(),
                HELLO.as_secs()
            ),
            Err(RecvTimeoutError::Disconnected) => Err(worker.ended(path)),
        }
    }

    /// Its first line.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Runs one job to its end. The worker is of no more use when this fails with a word about its end.
    pub fn run(&mut self, job: &Job, reporter: &dyn Reporter) -> Result<Drafts> {
        self.send(&Request::Run(Box::new(job.clone())))
            .map_err(|error| self.deaf(error))?;
        let mut asked = false;
        loop {
            if reporter.cancelled() && !asked {
                asked = true;
                self.send(&Request::Cancel)
                    .map_err(|error| self.deaf(error))?;
            }
            match self.replies.recv_timeout(Duration::from_millis(50)) {
                Ok(Reply::Event(what)) => reporter.emit(what),
                Ok(Reply::Done(drafts)) => return Ok(drafts),
                Ok(Reply::Failed(text)) => bail!("{text}"),
                Ok(Reply::FailedAbout { word, error }) => {
                    return Err(AboutWord::of(&word, anyhow!("{error}")));
                }
                Ok(Reply::Garbled(text)) => {
                    // What it still writes of this job must not be taken for an answer to the next one.
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    bail!("{text}")
                }
                Ok(Reply::Cancelled) => return Err(Cancelled.into()),
                Ok(Reply::Waiting(reason)) => return Err(Waiting { reason }.into()),
                Ok(other) => bail!("the worker answered out of turn: {other:?}"),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.ended(Path::new("levain-worker")));
                }
            }
        }
    }

    /// Begins a conversation.
    pub fn talk(self, talk: &Talk) -> Result<Conversation> {
        self.send(&Request::Talk(Box::new(talk.clone())))?;
        Ok(Conversation { worker: self })
    }

    /// Counts the worker's memory anew from here; false where the system does not count.
    pub fn count_memory(&self) -> bool {
        let path = format!("/proc/{}/clear_refs", self.child.id());
        // The word for the kernel: forget the peak.
        std::fs::write(path, "5").is_ok()
    }

    /// The most memory, in bytes, that the worker has had resident since `count_memory`.
    pub fn peak_memory(&self) -> Option<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
        let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kilobytes * 1024)
    }

    /// Whether the process is still there.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn send(&self, request: &Request) -> Result<()> {
        let mut guard = self
            .input
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let input = guard.as_mut().context("the worker was closed")?;
        let line = serde_json::to_string(request)?;
        writeln!(input, "{line}")
            .and_then(|()| input.flush())
            .map_err(|_| anyhow!("the worker does not listen any more"))
    }

    /// What to say of a worker that did not take a line: the way it ended, when it does.
    fn deaf(&mut self, error: anyhow::Error) -> anyhow::Error {
        for _ in 0..100 {
            if !self.alive() {
                return self.ended(Path::new("levain-worker"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        error
    }

    /// What to say of a worker that is gone.
    fn ended(&mut self, path: &Path) -> anyhow::Error {
        let status = self.child.wait();
        std::thread::sleep(Duration::from_millis(20));
        let errors = self
            .errors
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let last: Vec<&str> = errors.lines().rev().take(4).collect();
        let last: String = last.into_iter().rev().map(|l| format!("\n  {l}")).collect();
        match status {
            Ok(status) if status.signal() == Some(libc::SIGKILL) => anyhow!(
                "the worker was killed (signal 9): most often the machine ran out of memory. Lower `micro_batch` or `max_length`, \
                 or stop other programs; what a long stage did up to its last snapshot is kept{last}"
            ),
            Ok(status) => match status.signal() {
                Some(signal) => anyhow!("the worker crashed (signal {signal}){last}"),
                None => anyhow!(
                    "the worker {} ended with {status}{last}\n`levain doctor` checks the set-up",
                    path.display()
                ),
            },
            Err(error) => anyhow!("the worker is gone: {error}{last}"),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Closing its standard input ends an idle worker; one that hangs is killed.
        self.input
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        for _ in 0..20 {
            if !self.alive() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A conversation with a model.
pub struct Conversation {
    worker: Worker,
}

impl Conversation {
    /// Says `text` and hands each piece of the answer to `piece`, which returns false to hear no more.
    pub fn say(&mut self, text: &str, piece: &mut dyn FnMut(&str) -> bool) -> Result<()> {
        self.worker.send(&Request::Say(text.to_owned()))?;
        let mut asked = false;
        loop {
            match self.worker.replies.recv_timeout(Duration::from_millis(50)) {
                Ok(Reply::Piece(text)) => {
                    if !piece(&text) && !asked {
                        asked = true;
                        self.worker.send(&Request::Cancel)?;
                    }
                }
                Ok(Reply::Said) => return Ok(()),
                Ok(Reply::Failed(text) | Reply::Garbled(text)) => bail!("{text}"),
                Ok(Reply::Event(_)) => {}
                Ok(other) => bail!("the worker answered out of turn: {other:?}"),
                Err(RecvTimeoutError::Timeout) => {
                    if !piece("") && !asked {
                        asked = true;
                        self.worker.send(&Request::Cancel)?;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.worker.ended(Path::new("levain-worker")));
                }
            }
        }
    }
}

fn check_hello(hello: &Hello, kinds: &[(String, u32)], path: &Path) -> Result<()> {
    let way = "build both programs anew with `make build`";
    if hello.protocol != PROTOCOL {
        bail!(
            "the worker {} speaks protocol {}, this levain speaks {PROTOCOL}; {way}",
            path.display(),
            hello.protocol
        );
    }
    if hello.build != build_id() {
        bail!(
            "the worker {} is of build {}, this levain of {}; {way}",
            path.display(),
            hello.build,
            build_id()
        );
    }
    if hello.kinds != kinds {
        let ours: std::collections::BTreeMap<_, _> = kinds.iter().cloned().collect();
        let theirs: std::collections::BTreeMap<_, _> = hello.kinds.iter().cloned().collect();
        let names: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
        let differ: Vec<_> = names
            .into_iter()
            .filter(|n| ours.get(*n) != theirs.get(*n))
            .map(|n| {
                let version =
                    |v: Option<&u32>| v.map_or("absent".to_owned(), |v| format!("version {v}"));
                format!(
                    "`{n}` here {}, there {}",
                    version(ours.get(n)),
                    version(theirs.get(n))
                )
            })
            .collect();
        bail!(
            "the worker {} has other kinds: {}; {way}",
            path.display(),
            differ.join(", ")
        );
    }
    Ok(())
}
