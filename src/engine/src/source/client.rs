//! The HTTP client: redirects that leave secrets behind, retries with pauses, and errors that say the way out.

use std::cell::OnceCell;
use std::io::Read;

use anyhow::{Context, Result, anyhow};
use ureq::http::{HeaderMap, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

use super::failure::{Failure, Tries, explain, refused};
use super::network::{Network, PipConfig};
use super::url::Url;

/// Redirects beyond this are a loop.
const MOST_REDIRECTS: usize = 10;
/// A page or a list larger than this is not one.
const MOST_PAGE_BYTES: u64 = 256 << 20;

/// A secret and the address whose origin alone may see it.
#[derive(Clone)]
pub(super) struct Login {
    pub origin: Url,
    /// The value of the header `Authorization`.
    pub value: String,
}

/// What to ask for.
#[derive(Clone)]
pub(super) struct Ask {
    pub url: Url,
    pub login: Option<Login>,
    pub headers: Vec<(&'static str, String)>,
    /// Use pip's certificates and proxy.
    pub as_pip: bool,
    /// Hosts, besides this machine, to which plain http is allowed.
    pub plain_hosts: Vec<String>,
}

impl Ask {
    pub(super) fn new(url: Url) -> Ask {
        Ask {
            url,
            login: None,
            headers: Vec::new(),
            as_pip: false,
            plain_hosts: Vec::new(),
        }
    }

    fn allows(&self, url: &Url) -> bool {
        let host = url.host().split(':').next().unwrap_or_default();
        url.scheme() == "https"
            || url.is_loopback()
            || self
                .plain_hosts
                .iter()
                .any(|h| h == url.host() || h == host)
    }
}

/// What came back: a success, with a body still to be read.
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Body,
    pub url: Url,
    /// The headers of redirects that the asked origin itself sent; the hub says there what the CDN does not.
    pub hops: Vec<HeaderMap>,
}

impl Answer {
    /// A header of the answer.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A header of the answer or of the redirects that led to it.
    pub(super) fn header_on_the_way(&self, name: &str) -> Option<&str> {
        let hops = self
            .hops
            .iter()
            .rev()
            .filter_map(|headers| headers.get(name)?.to_str().ok());
        hops.chain(self.header(name)).next()
    }

    /// The whole body of a page or a list.
    pub(super) fn bytes(self) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        let mut reader = self.body.into_reader().take(MOST_PAGE_BYTES + 1);
        reader.read_to_end(&mut bytes).map_err(|error| {
            Failure::passing(format!("{}: the answer broke off: {error}", self.url))
        })?;
        if bytes.len() as u64 > MOST_PAGE_BYTES {
            return Err(Failure::lasting(format!(
                "{}: the answer is longer than {MOST_PAGE_BYTES} bytes",
                self.url
            )));
        }
        Ok(bytes)
    }
}

/// Connections, made when first needed.
pub(super) struct Client<'a> {
    network: &'a Network,
    plain: OnceCell<Agent>,
    pip: OnceCell<Agent>,
    pip_config: OnceCell<PipConfig>,
}

impl<'a> Client<'a> {
    pub(super) fn new(network: &'a Network) -> Client<'a> {
        Client {
            network,
            plain: OnceCell::new(),
            pip: OnceCell::new(),
            pip_config: OnceCell::new(),
        }
    }

    pub(super) fn network(&self) -> &'a Network {
        self.network
    }

    /// How pip is configured.
    pub(super) fn pip_config(&self) -> Result<&PipConfig> {
        self.network.pip.config(&self.pip_config)
    }

    fn agent(&self, as_pip: bool) -> Result<&Agent> {
        let cell = if as_pip { &self.pip } else { &self.plain };
        if let Some(agent) = cell.get() {
            return Ok(agent);
        }
        let mut roots = RootCerts::PlatformVerifier;
        let mut proxy = Proxy::try_from_env();
        if as_pip {
            let config = self.pip_config()?;
            if let Some(file) = &config.cert {
                roots = certificates(file)?;
            }
            if let Some(address) = &config.proxy {
                // The address may hold a password: it is not repeated.
                proxy = Some(
                    Proxy::new(address)
                        .map_err(|_| anyhow!("pip's proxy is not the address of a proxy"))?,
                );
            }
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_resolve(Some(self.network.connect_timeout))
            .timeout_connect(Some(self.network.connect_timeout))
            .timeout_per_read(Some(self.network.read_timeout))
            .timeout_per_write(Some(self.network.read_timeout))
            .user_agent(concat!("levain/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .proxy(proxy)
            .build()
            .new_agent();
        Ok(cell.get_or_init(|| agent))
    }

    /// One request, redirects followed. A success is 200 or 206.
    pub(super) fn once(&self, ask: &Ask) -> Result<Answer, Failure> {
        let agent = self
            .agent(ask.as_pip)
            .map_err(|error| Failure::lasting(format!("{}: {error:#}", ask.url)))?;
        let mut url = ask.url.clone();
        let mut hops = Vec::new();
        for _ in 0..=MOST_REDIRECTS {
            if !ask.allows(&url) {
                return Err(Failure::lasting(format!(
                    "{url}: plain http can be changed on the way: https:// is needed"
                )));
            }
            let mut request = agent.get(url.with_query());
            for (name, value) in &ask.headers {
                request = request.header(*name, value);
            }
            if let Some(login) = &ask.login
                && login.origin.same_origin(&url)
            {
                request = request.header("authorization", &login.value);
            }
            if url.is_loopback() {
                request = request.config().proxy(None).build();
            }
            let response = request.call().map_err(|error| explain(&url, &error))?;
            let (parts, body) = response.into_parts();
            let status = parts.status;
            tracing::debug!(%url, status = status.as_u16(), "answered");
            if matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                let next = parts
                    .headers
                    .get("location")
                    .and_then(|to| to.to_str().ok())
                    .ok_or_else(|| Failure::lasting(format!("{url}: a redirect to nowhere")))?;
                let next = url.join(next).map_err(|cause| {
                    Failure::lasting(format!("{url}: a redirect to a wrong address: {cause}"))
                })?;
                if ask.url.same_origin(&url) {
                    hops.push(parts.headers);
                }
                url = next;
                continue;
            }
            if matches!(status.as_u16(), 200 | 206) {
                return Ok(Answer {
                    status,
                    headers: parts.headers,
                    body,
                    url,
                    hops,
                });
            }
            return Err(refused(&url, status, &parts.headers));
        }
        Err(Failure::lasting(format!(
            "{}: more than {MOST_REDIRECTS} redirects",
            ask.url
        )))
    }

    /// The whole answer to a request for a page or a list, tried again when it fails in passing.
    pub(super) fn page(&self, ask: &Ask) -> Result<(Vec<u8>, HeaderMap, Url), Failure> {
        let mut tries = Tries::new(self.network);
        loop {
            let answer = self.once(ask).and_then(|answer| {
                let (headers, url) = (answer.headers.clone(), answer.url.clone());
                Ok((answer.bytes()?, headers, url))
            });
            match answer {
                Ok(page) => return Ok(page),
                Err(failure) => tries.pause(failure)?,
            }
        }
    }
}

fn certificates(file: &str) -> Result<RootCerts> {
    let bytes = std::fs::read(file)
        .with_context(|| format!("{file}: the certificates that pip uses cannot be read"))?;
    let found: Vec<_> = parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        return Err(anyhow!("{file}, which pip uses, holds no certificate"));
    }
    Ok(RootCerts::from(found))
}

/// Base64 with padding, for `Authorization: Basic`.
pub(super) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk
            .iter()
            .fold(0u32, |sum, byte| sum << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let letter = LETTERS[(group >> (18 - 6 * place)) as usize & 63] as char;
            out.push(if place <= chunk.len() { letter } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::base64;

    /// The vectors of RFC 4648, section 10.
    #[test]
    fn base64_is_that_of_the_standard() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
