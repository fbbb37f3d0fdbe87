//! One request to a chat endpoint: what is sent, what comes back, and whether another try may help.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use ureq::http::{HeaderMap, StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Proxy};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(15);
/// An answer longer than this is none.
const MOST_BYTES: u64 = 16 << 20;
/// So much of a text that is not as expected is shown.
const SHOWN: usize = 200;

/// What came back.
#[derive(Debug, PartialEq)]
pub(super) struct Reply {
    /// What the judge wrote; empty when it wrote nothing.
    pub text: String,
    /// Whether it was stopped at `max_tokens`.
    pub cut_off: bool,
    /// Tokens of the question and of the answer, as far as they are told.
    pub tokens: (Option<u64>, Option<u64>),
}

/// A request that failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// Whether another try may help.
    pub passing: bool,
    /// Whether the other side could not even be reached: one more try tells as much as many.
    pub unreached: bool,
    /// How long the server wants to be left alone.
    pub wait: Option<Duration>,
    /// The message, without secrets.
    pub message: String,
}

impl Failure {
    fn lasting(message: String) -> Failure {
        Failure {
            passing: false,
            unreached: false,
            wait: None,
            message,
        }
    }

    fn passing(message: String) -> Failure {
        Failure {
            passing: true,
            ..Failure::lasting(message)
        }
    }

    fn unreached(message: String) -> Failure {
        Failure {
            unreached: true,
            ..Failure::passing(message)
        }
    }
}

/// A server that answers chats.
pub(super) struct Server {
    agent: Agent,
    address: String,
    host: String,
    key: Option<String>,
}

impl Server {
    /// The server at `endpoint`. The key is the content of the environment variable `key_from`.
    ///
    /// # Errors
    /// The address is none; the variable is not set, or holds what can't be sent. No message repeats its content.
    pub fn new(endpoint: &str, key_from: Option<&str>, timeout: Duration) -> Result<Server> {
        let address = format!("{}/chat/completions", endpoint.trim_end_matches('/'));
        let uri: Uri = address
            .parse()
            .map_err(|_| anyhow!("`{endpoint}` is not an address"))?;
        let host = uri.host().context("an endpoint without a host")?.to_owned();
        let key = key_from.map(key).transpose()?;
        let is_here = kinds::ask::is_loopback(&host);
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(timeout))
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .user_agent(concat!("levain/", env!("CARGO_PKG_VERSION")))
            .tls_config(
                TlsConfig::builder()
                    .root_certs(RootCerts::PlatformVerifier)
                    .build(),
            )
            .proxy(if is_here { None } else { Proxy::try_from_env() })
            .build()
            .new_agent();
        Ok(Server {
            agent,
            address,
            host,
            key,
        })
    }

    /// Sends one chat and waits for the answer.
    pub fn chat(&self, body: &Value) -> Result<Reply, Failure> {
        let mut request = self.agent.post(&self.address);
        request = request.header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let response = request
            .send(body.to_string())
            .map_err(|error| self.explain(&error))?;
        let (parts, body) = response.into_parts();
        let bytes = body
            .into_with_config()
            .limit(MOST_BYTES)
            .read_to_vec()
            .map_err(|error| self.explain(&error))?;
        // Servers repeat keys in what they say of them.
        let text = self.without_key(&String::from_utf8_lossy(&bytes));
        if parts.status != StatusCode::OK {
            return Err(self.refused(parts.status, &parts.headers, &text));
        }
        read(&text).map_err(|error| Failure::lasting(format!("{}: {error:#}", self.address)))
    }

    fn without_key(&self, text: &str) -> String {
        match &self.key {
            Some(key) => text.replace(key.as_str(), "…"),
            None => text.to_owned(),
        }
    }

    /// A connection that failed.
    fn explain(&self, error: &ureq::Error) -> Failure {
        let (address, host) = (&self.address, &self.host);
        match error {
            ureq::Error::HostNotFound => Failure::unreached(format!(
                "{address}: the host {host} is not known: is the network there?"
            )),
            ureq::Error::Timeout(_) => Failure::passing(format!(
                "{address}: no answer in time ({error}); `timeout_seconds` says how long it may take"
            )),
            ureq::Error::Io(io) => {
                let message = format!("{address}: no connection to {host}: {io}");
                match io.kind() {
                    std::io::ErrorKind::InvalidData => self.tls(&io.to_string()),
                    std::io::ErrorKind::ConnectionReset
                    | std::io::ErrorKind::ConnectionAborted
                    | std::io::ErrorKind::BrokenPipe
                    | std::io::ErrorKind::UnexpectedEof
                    | std::io::ErrorKind::TimedOut => Failure::passing(message),
                    _ => Failure::unreached(format!("{message}: does the endpoint run?")),
                }
            }
            ureq::Error::ConnectionFailed => Failure::unreached(format!(
                "{address}: no connection to {host}: does the endpoint run?"
            )),
            ureq::Error::Rustls(cause) => self.tls(&cause.to_string()),
            ureq::Error::Tls(cause) => self.tls(cause),
            ureq::Error::ConnectProxyFailed(_) => {
                Failure::passing(format!("{address}: the proxy does not connect to {host}"))
            }
            // A connection that breaks within an answer.
            ureq::Error::Protocol(_) | ureq::Error::BodyStalled => {
                Failure::passing(format!("{address}: the answer broke off"))
            }
            ureq::Error::BodyExceedsLimit(_) => Failure::lasting(format!(
                "{address}: the answer is longer than {MOST_BYTES} bytes"
            )),
            other => Failure::lasting(format!("{address}: {other}")),
        }
    }

    fn tls(&self, cause: &str) -> Failure {
        Failure::lasting(format!(
            "{}: no trusted connection: {cause}: if your network has certificates of its own, name their file in SSL_CERT_FILE",
            self.address
        ))
    }

    /// An answer that is no success.
    fn refused(&self, status: StatusCode, headers: &HeaderMap, body: &str) -> Failure {
        let number = status.as_u16();
        let wait = headers.get("retry-after").and_then(|value| {
            let seconds = value.to_str().ok()?.trim().parse().ok()?;
            Some(Duration::from_secs(seconds))
        });
        let way = match (number, &self.key) {
            (401 | 403, None) => ": name the environment variable of its key with `key_from`",
            (401 | 403, Some(_)) => ": is the key right?",
            (404, _) => {
                ": `endpoint` is the address before `/chat/completions`, such as `http://localhost:8080/v1`"
            }
            (300..=399, _) => ": it sends on to another address: write that one",
            _ => "",
        };
        let said: Option<Value> = serde_json::from_str(body).ok();
        let said = said.and_then(|value| value["error"]["message"].as_str().map(str::to_owned));
        let said = said.unwrap_or_else(|| body.to_owned());
        let said = match said.trim() {
            "" => String::new(),
            text => format!(" ({})", beginning(text)),
        };
        Failure {
            passing: number == 408
                || number == 429
                || (500..600).contains(&number) && number != 501,
            unreached: false,
            wait,
            message: format!(
                "{}: HTTP {number} {}{said}{way}",
                self.address,
                status.canonical_reason().unwrap_or_default()
            ),
        }
    }
}

/// The key in an environment variable.
fn key(name: &str) -> Result<String> {
    let key = std::env::var(name).unwrap_or_default();
    let key = key.trim();
    if key.is_empty() {
        bail!(
            "the environment variable {name}, from which the endpoint's key is to be taken, is not set: export it before the run"
        );
    }
    // A shorter one would be taken out of innocent texts, and others are no header.
    if key.len() < 4 || !key.chars().all(|c| c.is_ascii_graphic()) {
        bail!(
            "the environment variable {name} does not hold a key: letters, digits and signs, without spaces"
        );
    }
    Ok(key.to_owned())
}

/// What is sent.
pub(super) fn chat_body(
    model: &str,
    text: &str,
    temperature: f64,
    max_tokens: u32,
    seed: u64,
) -> Value {
    json!({
        "model": model,
        "messages": [{ "role": "user", "content": text }],
        "temperature": temperature,
        "max_tokens": max_tokens,
        "seed": seed,
    })
}

/// Reads a chat completion.
fn read(text: &str) -> Result<Reply> {
    let value: Value = serde_json::from_str(text)
        .ok()
        .filter(|value: &Value| value["choices"][0]["message"].is_object())
        .with_context(|| format!("no chat completion came back but {}", beginning(text)))?;
    let choice = &value["choices"][0];
    let tokens = |name: &str| value["usage"][name].as_u64();
    Ok(Reply {
        // A judge that refuses, or only thinks, has no content.
        text: choice["message"]["content"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        cut_off: choice["finish_reason"] == "length",
        tokens: (tokens("prompt_tokens"), tokens("completion_tokens")),
    })
}

/// The beginning of a text, in quotes, on one line.
pub(super) fn beginning(text: &str) -> String {
    let shown: String = text.chars().take(SHOWN).collect();
    let more = if shown.len() < text.len() { "…" } else { "" };
    format!("{shown:?}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_servers_write_them() {
        let full = r#"{"id": "x", "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "A"}}],
                       "usage": {"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 13}}"#;
        let reply = read(full).unwrap();
        assert_eq!(
            (reply.text.as_str(), reply.cut_off, reply.tokens),
            ("A", false, (Some(12), Some(1)))
        );
        let brief = r#"{"choices": [{"message": {"content": null}, "finish_reason": "length"}]}"#;
        let reply = read(brief).unwrap();
        assert_eq!(
            (reply.text.as_str(), reply.cut_off, reply.tokens),
            ("", true, (None, None))
        );
        for none in [
            "",
            "<html>",
            "{}",
            r#"{"choices": []}"#,
            r#"{"choices": [{"text": "A"}]}"#,
        ] {
            assert!(
                read(none)
                    .unwrap_err()
                    .to_string()
                    .starts_with("no chat completion"),
                "{none}"
            );
        }
    }

    #[test]
    fn a_text_is_shown_from_its_beginning_on_one_line() {
        assert_eq!(beginning("a\nb"), "\"a\\nb\"");
        assert_eq!(
            beginning(&"ä".repeat(300)),
            format!("\"{}\"…", "ä".repeat(200))
        );
    }
}
