//! A chat endpoint as a judge: several questions at once, each until its answer can be read.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use data::candidates::Candidates;
use data::judging::{JudgePrompt, PAIRWISE, RUBRIC, Terms, read_verdict};
use engine::event::Level;
use engine::job::{Cancelled, Reporter};
use kinds::ask::Ask;

use super::kept::{Answer, Kept};
use super::questions::Question;
use super::request::{Failure, Reply, Server, beginning, chat_body};

/// The first pause before a request is made again; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(500);
/// A server may ask to be left alone this long; longer is told to the user.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What an endpoint is told.
///
/// # Errors
/// The template can't be used.
pub(super) fn judge_prompt(params: &Ask) -> Result<JudgePrompt> {
    let pairwise = params.how == "pairwise";
    let usual = if pairwise { PAIRWISE } else { RUBRIC };
    let source = params.template.as_deref().unwrap_or(usual);
    let terms = Terms {
        criteria: params.criteria.clone(),
        examples: params.examples.clone(),
        range: (params.min, params.max),
    };
    JudgePrompt::new(source, pairwise, terms)
}

/// An endpoint and how it is asked.
pub(super) struct Endpoint<'a> {
    server: Server,
    prompt: JudgePrompt,
    model: &'a str,
    params: &'a Ask,
    cx: &'a dyn Reporter,
    /// Set when a question failed: the others stop after what they have begun.
    halted: AtomicBool,
    /// Whether it was said that the endpoint is not well.
    said: AtomicBool,
}

impl<'a> Endpoint<'a> {
    /// # Errors
    /// The template can't be used, or the key is not there.
    pub fn new(params: &'a Ask, cx: &'a dyn Reporter) -> Result<Endpoint<'a>> {
        let address = params.endpoint.as_deref().context("BUG: no endpoint")?;
        let timeout = Duration::try_from_secs_f64(params.timeout_seconds)
            .context("`timeout_seconds` is too long")?;
        Ok(Endpoint {
            server: Server::new(address, params.key_from.as_deref(), timeout)?,
            prompt: judge_prompt(params)?,
            model: params.model.as_deref().context("BUG: no model")?,
            params,
            cx,
            halted: AtomicBool::new(false),
            said: AtomicBool::new(false),
        })
    }

    /// Asks every question and keeps each answer as it comes; `told` is called with the number of those that are kept.
    ///
    /// # Errors
    /// That of the first question that failed. What others had begun is waited for and kept, also on Ctrl-C: it may be paid for.
    pub fn ask_all(
        &self,
        groups: &[Candidates],
        questions: &[Question],
        kept: &Kept,
        told: &(dyn Fn(usize) + Sync),
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<(usize, anyhow::Error)>> = Mutex::new(None);
        let work = || {
            while !self.is_halted() {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let Some(question) = questions.get(place) else {
                    break;
                };
                let answered = self
                    .ask(groups, question)
                    .and_then(|answer| kept.add(answer));
                match answered {
                    Ok(count) => told(count),
                    Err(error) => {
                        self.halted.store(true, Ordering::SeqCst);
                        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        // Whoever was only told to stop is no cause.
                        let first = failed
                            .as_ref()
                            .is_none_or(|(other, cause)| cause.is::<Cancelled>() || place < *other);
                        if first && (failed.is_none() || !error.is::<Cancelled>()) {
                            *failed = Some((place, error));
                        }
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.params.parallel.min(questions.len()) {
                scope.spawn(work);
            }
        });
        self.cx.check()?;
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    fn is_halted(&self) -> bool {
        self.halted.load(Ordering::SeqCst) || self.cx.cancelled()
    }

    /// One question until its answer can be read.
    fn ask(&self, groups: &[Candidates], question: &Question) -> Result<Answer> {
        let params = self.params;
        let prompt = question.prompt(groups);
        let text = self.prompt.render(&prompt, question.shown(groups))?;
        let mut retries = 0;
        let mut last: Option<(Reply, anyhow::Error)> = None;
        // Nothing is drawn at temperature 0: what can't be read once can't be read another time.
        let attempts = match params.temperature > 0.0 {
            true => params.attempts,
            false => 1,
        };
        for attempt in 0..attempts {
            // With the same seed an endpoint that is worth its name says the same again. OpenAI's seeds have a sign.
            let seed = params.seed.wrapping_add(u64::from(attempt)) & (u64::MAX >> 1);
            let body = chat_body(
                self.model,
                &text,
                params.temperature,
                params.max_tokens,
                seed,
            );
            let reply = self.reply(&body, &mut retries)?;
            let range = (params.min, params.max);
            match read_verdict(&reply.text, params.how == "pairwise", range) {
                Ok(_) => {
                    return Ok(Answer {
                        id: question.id,
                        answer: reply.text,
                        retries: retries + attempt,
                        prompt_tokens: reply.tokens.0,
                        completion_tokens: reply.tokens.1,
                    });
                }
                Err(error) => last = Some((reply, error)),
            }
        }
        let (reply, error) = last.context("BUG: no attempt")?;
        let cut = match reply.cut_off {
            true => format!("; it was cut off after `max_tokens`, {}", params.max_tokens),
            false => String::new(),
        };
        let asked = match params.temperature > 0.0 {
            true => format!("{attempts} attempts"),
            false => "asked once: at `temperature: 0` it says the same again; a higher one, or a plainer `template`, may help".to_owned(),
        };
        bail!(
            "an answer of `{}` about prompt {} can't be read ({asked}): {error}{cut}. It begins {}",
            self.model,
            question.group + 1,
            beginning(&reply.text)
        );
    }

    /// One answer, whatever it says; requests that fail in passing are made again.
    fn reply(&self, body: &serde_json::Value, retries: &mut u32) -> Result<Reply> {
        let mut pause = PAUSE;
        let mut tries = 0;
        loop {
            if self.is_halted() {
                return Err(Cancelled.into());
            }
            let failure = match self.server.chat(body) {
                Ok(reply) => return Ok(reply),
                Err(failure) => failure,
            };
            let Failure {
                passing,
                unreached,
                wait,
                message,
            } = failure;
            if !passing {
                bail!(message);
            }
            if tries == self.params.retries || unreached && tries > 0 {
                return Err(anyhow!("{message} (tried {} times)", tries + 1));
            }
            let wait = wait.unwrap_or(pause);
            if wait > LONGEST_PAUSE {
                bail!("{message}: it asks to wait {} s", wait.as_secs());
            }
            if !self.said.swap(true, Ordering::SeqCst) {
                self.cx
                    .note(Level::Warning, &format!("{message}; trying again"));
            }
            self.sleep(wait)?;
            tries += 1;
            *retries += 1;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Waits, unless there is nothing to wait for any more.
    fn sleep(&self, wait: Duration) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < wait {
            if self.is_halted() {
                return Err(Cancelled.into());
            }
            let left = wait.saturating_sub(begun.elapsed());
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
        Ok(())
    }
}
