//! What goes wrong between two machines: in words, without secrets, and whether and when to try again.

use std::time::Duration;

use anyhow::anyhow;
use ureq::http::{HeaderMap, StatusCode};

use super::network::Network;
use super::url::Url;

/// A server may ask to be left alone this long; longer is told to the user.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A request that failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// The status, if the server answered.
    pub status: Option<u16>,
    /// The hub's own word for what is wrong (`X-Error-Code`).
    pub code: Option<String>,
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
    pub(super) fn lasting(message: impl Into<String>) -> Failure {
        Failure {
            status: None,
            code: None,
            passing: false,
            unreached: false,
            wait: None,
            message: message.into(),
        }
    }

    fn unreached(message: impl Into<String>) -> Failure {
        Failure {
            unreached: true,
            ..Failure::passing(message)
        }
    }

    pub(super) fn passing(message: impl Into<String>) -> Failure {
        Failure {
            passing: true,
            ..Failure::lasting(message)
        }
    }
}

impl From<Failure> for anyhow::Error {
    fn from(failure: Failure) -> Self {
        anyhow!(failure.message)
    }
}

/// A connection that failed.
pub(super) fn explain(url: &Url, error: &ureq::Error) -> Failure {
    let host = url.host();
    match error {
        ureq::Error::HostNotFound => Failure::unreached(format!(
            "{url}: the host {host} is not known: is the network there?"
        )),
        ureq::Error::Timeout(_) => Failure::passing(format!("{url}: {host} is silent ({error})")),
        ureq::Error::Io(io) => {
            let message = format!("{url}: no connection to {host}: {io}");
            match io.kind() {
                std::io::ErrorKind::InvalidData => tls(url, &io.to_string()),
                std::io::ErrorKind::ConnectionReset
                | std::io::ErrorKind::ConnectionAborted
                | std::io::ErrorKind::BrokenPipe
                | std::io::ErrorKind::UnexpectedEof
                | std::io::ErrorKind::TimedOut => Failure::passing(message),
                _ => Failure::unreached(message),
            }
        }
        ureq::Error::ConnectionFailed => {
            Failure::unreached(format!("{url}: no connection to {host}"))
        }
        ureq::Error::Rustls(cause) => tls(url, &cause.to_string()),
        ureq::Error::Tls(cause) => tls(url, cause),
        // Others may repeat an address with its query.
        ureq::Error::BadUri(_) => {
            Failure::lasting(format!("{url}: not an address that can be asked"))
        }
        ureq::Error::ConnectProxyFailed(_) => {
            Failure::passing(format!("{url}: the proxy does not connect to {host}"))
        }
        other => Failure::lasting(format!("{url}: {other}")),
    }
}

fn tls(url: &Url, cause: &str) -> Failure {
    Failure::lasting(format!(
        "{url}: no trusted connection: {cause}: if your network has certificates of its own, name their file in SSL_CERT_FILE"
    ))
}

/// An answer that is no success.
pub(super) fn refused(url: &Url, status: StatusCode, headers: &HeaderMap) -> Failure {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let wait =
        text("retry-after").and_then(|value| value.trim().parse().ok().map(Duration::from_secs));
    let number = status.as_u16();
    Failure {
        status: Some(number),
        code: text("x-error-code").map(str::to_owned),
        unreached: false,
        passing: number == 408 || number == 429 || (500..600).contains(&number) && number != 501,
        wait,
        message: format!(
            "{url}: HTTP {number} {}",
            status.canonical_reason().unwrap_or_default()
        ),
    }
}

/// Counts tries and waits between them.
pub(super) struct Tries {
    left: u32,
    most: u32,
    first_pause: Duration,
    pause: Duration,
}

impl Tries {
    pub(super) fn new(network: &Network) -> Tries {
        Tries {
            left: network.retries,
            most: network.retries,
            first_pause: network.pause,
            pause: network.pause,
        }
    }

    /// Bytes came: the count starts anew.
    pub(super) fn progress(&mut self) {
        self.left = self.most;
        self.pause = self.first_pause;
    }

    /// Waits before the next try, or gives the failure back if there shall be none.
    pub(super) fn pause(&mut self, failure: Failure) -> Result<(), Failure> {
        if !failure.passing {
            return Err(failure);
        }
        if self.left == 0 || failure.unreached && self.left < self.most {
            let message = format!(
                "{} (tried {} times)",
                failure.message,
                self.most - self.left + 1
            );
            return Err(Failure { message, ..failure });
        }
        let wait = failure.wait.unwrap_or(self.pause);
        if wait > LONGEST_PAUSE {
            let message = format!(
                "{}: it asks to wait {} s: run again after that",
                failure.message,
                wait.as_secs()
            );
            return Err(Failure { message, ..failure });
        }
        tracing::debug!(
            cause = failure.message,
            wait = wait.as_secs_f32(),
            "trying again"
        );
        std::thread::sleep(wait);
        self.left -= 1;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}
