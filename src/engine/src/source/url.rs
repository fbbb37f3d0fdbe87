//! Addresses: parsed, joined, and printed without their secrets.

use std::fmt;

/// An `http` or `https` address. It is printed without user name, password and query: those may be secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    scheme: String,
    /// `host[:port]`, lower case, without a default port.
    host: String,
    /// The path, with its leading slash.
    path: String,
    query: Option<String>,
    fragment: Option<String>,
}

impl Url {
    /// Reads an absolute address. A user name and password (`me:word@`) are handed back beside it.
    ///
    /// # Errors
    /// The cause, without the text.
    pub fn parse(text: &str) -> Result<(Url, Option<String>), String> {
        let (scheme, rest) = text.split_once("://").ok_or("not an address")?;
        let scheme = scheme.to_ascii_lowercase();
        if scheme != "https" && scheme != "http" {
            return Err("an address begins with https://".into());
        }
        if text.chars().any(|c| c.is_control() || c == ' ') {
            return Err("an address may not hold spaces: write them %20".into());
        }
        let (rest, fragment) = split_off(rest, '#');
        let (rest, query) = split_off(rest, '?');
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let (login, host) = match authority.rsplit_once('@') {
            Some((login, host)) => (Some(login.to_owned()), host),
            None => (None, authority),
        };
        let mut host = host.to_ascii_lowercase();
        let default = if scheme == "https" { ":443" } else { ":80" };
        if let Some(bare) = host.strip_suffix(default) {
            // `[::443` cannot end so: a bracket closes every such host.
            host = bare.to_owned();
        }
        if host.is_empty() || host.starts_with(':') || host.contains(['\\', '"', '<', '>']) {
            return Err("the address has no host".into());
        }
        let url = Url {
            scheme,
            host,
            path: path.to_owned(),
            query: query.map(str::to_owned),
            fragment: fragment.map(str::to_owned),
        };
        Ok((url, login))
    }

    /// The address that `text`, found on a page at `self`, means.
    ///
    /// # Errors
    /// The cause, without the text.
    pub fn join(&self, text: &str) -> Result<Url, String> {
        if text.contains("://") && !text.starts_with(['/', '?', '#', '.']) {
            return Ok(Url::parse(text)?.0);
        }
        if let Some(rest) = text.strip_prefix("//") {
            return Ok(Url::parse(&format!("{}://{rest}", self.scheme))?.0);
        }
        let (rest, fragment) = split_off(text, '#');
        let (rest, query) = split_off(rest, '?');
        let path = if rest.is_empty() {
            self.path.clone()
        } else if rest.starts_with('/') {
            plain(rest)
        } else {
            let folder = self.path.rsplit_once('/').map_or("", |(folder, _)| folder);
            plain(&format!("{folder}/{rest}"))
        };
        if path.chars().any(|c| c.is_control() || c == ' ') {
            return Err("an address may not hold spaces".into());
        }
        Ok(Url {
            path,
            query: query.map(str::to_owned),
            fragment: fragment.map(str::to_owned),
            ..self.clone()
        })
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// `host[:port]`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path with its leading slash, as in the address.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What follows `#`.
    pub fn fragment(&self) -> Option<&str> {
        self.fragment.as_deref()
    }

    /// The last part of the path, with `%20` and the like decoded.
    pub fn file_name(&self) -> Option<String> {
        let name = percent_decode(self.path.rsplit('/').next()?)?;
        (!name.is_empty()).then_some(name)
    }

    /// The same scheme, host and port: the only place to which a secret for `self` may be sent.
    pub fn same_origin(&self, other: &Url) -> bool {
        self.scheme == other.scheme && self.host == other.host
    }

    /// Whether the address is of this machine.
    pub fn is_loopback(&self) -> bool {
        let host = match self.host.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => &self.host,
        };
        host == "localhost"
            || host == "[::1]"
            || host
                .parse::<std::net::Ipv4Addr>()
                .is_ok_and(|ip| ip.is_loopback())
    }

    /// The address as it is sent: with its query, without the fragment.
    pub fn with_query(&self) -> String {
        let query = self
            .query
            .as_ref()
            .map_or(String::new(), |q| format!("?{q}"));
        format!("{}://{}{}{query}", self.scheme, self.host, self.path)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let query = if self.query.is_some() { "?…" } else { "" };
        write!(f, "{}://{}{}{query}", self.scheme, self.host, self.path)
    }
}

fn split_off(text: &str, mark: char) -> (&str, Option<&str>) {
    match text.split_once(mark) {
        Some((head, tail)) => (head, Some(tail)),
        None => (text, None),
    }
}

/// A path without `.` and `..`, which stop at the root.
fn plain(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').skip(1) {
        match part {
            "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    if path.ends_with("/.") || path.ends_with("/..") {
        parts.push("");
    }
    format!("/{}", parts.join("/"))
}

/// `%41` → `A`. None if the bytes are not UTF-8.
pub(super) fn percent_decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digits = bytes
            .get(at + 1..at + 3)
            .and_then(|d| std::str::from_utf8(d).ok());
        match (byte, digits.and_then(|d| u8::from_str_radix(d, 16).ok())) {
            (b'%', Some(decoded)) => {
                out.push(decoded);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(out).ok()
}

/// A path as an address wants it: all but letters, digits and `-._~/` as `%41`.
pub(super) fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_a_page_are_joined() {
        let (page, login) = Url::parse("https://Me:Word@Host.example:443/simple/a/?x=1#f").unwrap();
        assert_eq!(login.as_deref(), Some("Me:Word"));
        assert_eq!(page.to_string(), "https://host.example/simple/a/?…");
        for (link, whole) in [
            (
                "../../packages/a.whl#sha256=1",
                "https://host.example/packages/a.whl",
            ),
            ("b.whl", "https://host.example/simple/a/b.whl"),
            ("/c.whl?k=v", "https://host.example/c.whl?k=v"),
            ("//cdn.example/d", "https://cdn.example/d"),
            ("http://other.example/e", "http://other.example/e"),
            ("../../../../f", "https://host.example/f"),
        ] {
            assert_eq!(page.join(link).unwrap().with_query(), whole);
        }
        assert_eq!(
            page.join("x#sha256=1").unwrap().fragment(),
            Some("sha256=1")
        );
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (text, is) in [
            ("http://127.0.0.1:8080/", true),
            ("http://localhost/x", true),
            ("http://[::1]:80/", true),
            ("http://127.0.0.1.example/", false),
            ("http://localhost.example/", false),
            ("http://10.0.0.1/", false),
        ] {
            assert_eq!(Url::parse(text).unwrap().0.is_loopback(), is, "{text}");
        }
    }

    #[test]
    fn names_are_decoded_and_encoded() {
        assert_eq!(percent_decode("a%20b%zz"), Some("a b%zz".into()));
        assert_eq!(percent_decode("%ff"), None);
        assert_eq!(percent_encode("a b/é+.json"), "a%20b/%C3%A9%2B.json");
    }
}
