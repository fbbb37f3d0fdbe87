//! The worker's side.

use std::io::{BufRead, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::Result;

use super::{Hello, Reply, Request, Talk};
use crate::event::What;
use crate::job::{AboutWord, Cancelled, Implementation, Job, Reporter, Waiting};

/// What a worker can do.
pub struct Service {
    /// How each kind runs.
    pub implementations: &'static [Implementation],
    /// The first line.
    pub hello: fn() -> Hello,
    /// Talks with a model until the channel is closed.
    pub talk: fn(&Talk, &mut Channel<'_>) -> Result<()>,
}

/// The person's side of a conversation.
pub struct Channel<'a> {
    requests: &'a Receiver<Request>,
    stop: &'a AtomicBool,
}

impl Channel<'_> {
    /// The next words; none when the person has left.
    pub fn next_words(&mut self) -> Option<String> {
        self.stop.store(false, Ordering::SeqCst);
        loop {
            match self.requests.recv().ok()? {
                Request::Say(text) => return Some(text),
                Request::Cancel => {}
                Request::Run(_) | Request::Talk(_) => return None,
            }
        }
    }

    /// Sends a piece of the answer.
    pub fn piece(&mut self, text: &str) {
        send(&Reply::Piece(text.to_owned()));
    }

    /// Ends the answer.
    pub fn said(&mut self) {
        send(&Reply::Said);
    }

    /// Whether the person wants to hear no more of this answer.
    pub fn cancelled(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

static OUTPUT: Mutex<()> = Mutex::new(());

fn send(reply: &Reply) {
    let _guard = OUTPUT
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut out = std::io::stdout().lock();
    let line = serde_json::to_string(reply).unwrap_or_default();
    // The engine is gone: so is the reason to go on.
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(3);
    }
}

struct Lines<'a> {
    stop: &'a AtomicBool,
}

impl Reporter for Lines<'_> {
    fn emit(&self, what: What) {
        send(&Reply::Event(what));
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// Says hello and serves until standard input ends.
pub fn serve(service: &Service) -> Result<()> {
    // Ctrl-C at a terminal reaches every process of a run, and so does the SIGTERM of a service manager. The engine decides what it
    // means: it cancels, and the stage writes a snapshot; an engine that is gone closes standard input and output, which ends this
    // process too.
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: ignoring a signal sets no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    send(&Reply::Hello((service.hello)()));
    static STOP: AtomicBool = AtomicBool::new(false);
    let (sender, requests) = channel();
    std::thread::spawn(move || read_requests(&sender, &STOP));
    while let Ok(request) = requests.recv() {
        match request {
            Request::Run(job) => {
                STOP.store(false, Ordering::SeqCst);
                send(&run(service, &job, &STOP));
            }
            Request::Talk(talk) => {
                let mut channel = Channel {
                    requests: &requests,
                    stop: &STOP,
                };
                let result = catch_unwind(AssertUnwindSafe(|| (service.talk)(&talk, &mut channel)));
                if let Err(text) = flatten(result) {
                    send(&Reply::Failed(format!("{text:#}")));
                }
            }
            Request::Cancel | Request::Say(_) => {}
        }
    }
    Ok(())
}

fn read_requests(sender: &Sender<Request>, stop: &AtomicBool) {
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        match serde_json::from_str(&line) {
            Ok(Request::Cancel) => {
                stop.store(true, Ordering::SeqCst);
                let _ = sender.send(Request::Cancel);
            }
            Ok(request) => {
                let _ = sender.send(request);
            }
            Err(error) => send(&Reply::Failed(format!(
                "the worker did not understand a request: {error}"
            ))),
        }
    }
    // Standard input ended: the engine is gone, perhaps killed. Whatever runs has its last snapshot.
    std::process::exit(0);
}

fn run(service: &Service, job: &Job, stop: &AtomicBool) -> Reply {
    let Some(implementation) = service.implementations.iter().find(|i| i.kind == job.kind) else {
        return Reply::Failed(format!("this worker has no kind `{}`", job.kind));
    };
    let result = catch_unwind(AssertUnwindSafe(|| {
        (implementation.run)(job, &Lines { stop })
    }));
    match flatten(result) {
        Ok(drafts) => Reply::Done(drafts),
        Err(error) if error.is::<Cancelled>() => Reply::Cancelled,
        Err(error) => match (error.downcast_ref::<Waiting>(), AboutWord::word(&error)) {
            (Some(waiting), _) => Reply::Waiting(waiting.reason.clone()),
            (None, Some(word)) => Reply::FailedAbout {
                word: word.to_owned(),
                error: format!("{error:#}"),
            },
            (None, None) => Reply::Failed(format!("{error:#}")),
        },
    }
}

/// A panic becomes an error: one stage may fail, the run lives on.
pub(crate) fn flatten<T>(result: std::thread::Result<Result<T>>) -> Result<T> {
    result.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown cause");
        Err(anyhow::anyhow!("the stage crashed: {text}"))
    })
}
