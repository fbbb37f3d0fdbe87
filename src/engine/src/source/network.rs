//! What is known of the network: the hub's address and token, how pip is configured, and how patient to be.

use std::cell::OnceCell;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// How sources are fetched. [`Network::from_env`] is what a person's shell says; tests write their own.
#[derive(Clone)]
pub struct Network {
    /// The hub's address (`HF_ENDPOINT`).
    pub hf_endpoint: String,
    /// The hub's token (`HF_TOKEN`, or the file that the hub's own login writes). Sent to the hub's address only.
    pub hf_token: Option<String>,
    /// Where packages come from.
    pub pip: Pip,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long a connection may be silent.
    pub read_timeout: Duration,
    /// How often a request that failed in passing is made again.
    pub retries: u32,
    /// The first pause before it; each further one is twice as long.
    pub pause: Duration,
}

/// Where packages come from.
#[derive(Clone)]
pub enum Pip {
    /// What the pip of this Python interpreter is configured with, asked once when first needed.
    Ask(String),
    /// This.
    Fixed(PipConfig),
}

/// The part of pip's configuration that says where packages are.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct PipConfig {
    /// The index; may hold a user name and password.
    pub index_url: Option<String>,
    /// Further indexes, asked after it.
    pub extra_index_urls: Vec<String>,
    /// Folders (or pages) with archives, asked before the indexes.
    pub find_links: Vec<String>,
    /// Only `find_links`.
    pub no_index: bool,
    /// A file of certificates to trust instead of the system's.
    pub cert: Option<String>,
    /// A proxy.
    pub proxy: Option<String>,
    /// Hosts that may be spoken to without TLS.
    pub trusted_hosts: Vec<String>,
}

impl Network {
    /// What the environment says: `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`, `LEVAIN_PYTHON`, and by way
    /// of pip whatever pip reads. Proxies and `SSL_CERT_FILE` are read when a connection is made.
    pub fn from_env() -> Network {
        let variable = |name: &str| {
            std::env::var(name)
                .ok()
                .filter(|value| !value.trim().is_empty())
        };
        Network {
            hf_endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            hf_token: variable("HF_TOKEN")
                .or_else(|| {
                    let home = || Some(PathBuf::from(variable("HOME")?).join(".cache/huggingface"));
                    let file = match variable("HF_TOKEN_PATH") {
                        Some(path) => PathBuf::from(path),
                        None => variable("HF_HOME")
                            .map(PathBuf::from)
                            .or_else(home)?
                            .join("token"),
                    };
                    std::fs::read_to_string(file).ok()
                })
                .map(|token| token.trim().to_owned())
                .filter(|token| !token.is_empty()),
            pip: Pip::Ask(variable("LEVAIN_PYTHON").unwrap_or_else(|| "python3".into())),
            connect_timeout: Duration::from_secs(15),
            read_timeout: Duration::from_secs(60),
            retries: 4,
            pause: Duration::from_millis(500),
        }
    }
}

/// Pip's own option parser reads its files, its variables and its defaults; nothing is installed or run.
const ASK: &str = "\
import json
from pip._internal.commands import create_command
o, _ = create_command('download').parse_args([])
print(json.dumps({'index_url': o.index_url, 'extra_index_urls': o.extra_index_urls or [], 'find_links': o.find_links or [],
                  'no_index': bool(o.no_index), 'cert': o.cert, 'proxy': o.proxy or None, 'trusted_hosts': o.trusted_hosts or []}))
";

impl Pip {
    /// The configuration; the answer of an interpreter is kept in `cell`.
    pub(super) fn config<'a>(&'a self, cell: &'a OnceCell<PipConfig>) -> Result<&'a PipConfig> {
        match self {
            Pip::Fixed(config) => Ok(config),
            Pip::Ask(python) => match cell.get() {
                Some(config) => Ok(config),
                None => {
                    let config = ask(python)?;
                    Ok(cell.get_or_init(|| config))
                }
            },
        }
    }
}

fn ask(python: &str) -> Result<PipConfig> {
    let output = Command::new(python)
        .args(["-c", ASK])
        .stdin(Stdio::null())
        .output()
        .with_context(|| {
            format!(
                "{python} cannot be started: install Python with pip, or name it in LEVAIN_PYTHON"
            )
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        // A line with an address may hold a password.
        let last = said
            .lines()
            .rfind(|line| !line.contains("://"))
            .unwrap_or("no message");
        bail!(
            "{python} could not say which index pip uses ({last}): install pip for it, or name another in LEVAIN_PYTHON"
        );
    }
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{python} gave an unknown answer when asked which index pip uses"))
}
