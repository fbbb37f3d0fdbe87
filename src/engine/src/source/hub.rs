//! Hub repositories: the commit and the file list of a revision, then the files of that commit.

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use super::client::{Ask, Client, Login};
use super::download::{Job, download};
use super::failure::Failure;
use super::local::Found;
use super::url::{Url, percent_encode};
use super::{BlobStore, HubLocation, Location, SourceFile, note};
use crate::diagnostic::nearest;

/// The hub's answer to a question about one revision.
#[derive(Deserialize)]
struct Revision {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    #[serde(default)]
    sha256: Option<String>,
    #[serde(default)]
    size: Option<u64>,
}

/// One repository at one commit.
struct Repository<'a> {
    client: &'a Client<'a>,
    store: &'a dyn BlobStore,
    hub: &'a HubLocation,
    endpoint: Url,
    login: Option<Login>,
}

/// Fetches what `hub` names into the store.
///
/// # Errors
/// The repository, the revision or the path is not there, or may not be read; a download failed.
pub(super) fn fetch(
    client: &Client,
    store: &dyn BlobStore,
    hub: &HubLocation,
    progress: &dyn Fn(u64, Option<u64>),
) -> Result<Found> {
    let network = client.network();
    let (endpoint, _) = Url::parse(network.hf_endpoint.trim_end_matches('/'))
        .map_err(|cause| anyhow!("HF_ENDPOINT: {cause}"))?;
    let login = network
        .hf_token
        .as_ref()
        // A token never travels in the clear.
        .filter(|_| endpoint.scheme() == "https" || endpoint.is_loopback())
        .map(|token| Login {
            origin: endpoint.clone(),
            value: format!("Bearer {token}"),
        });
    let repository = Repository {
        client,
        store,
        hub,
        endpoint,
        login,
    };
    let revision = repository.revision()?;
    let chosen = repository.choose(&revision)?;
    repository.download(&revision, chosen, progress)
}

impl Repository<'_> {
    fn ask(&self, path: &str, query: &str) -> Result<Ask> {
        let base = self.endpoint.with_query();
        let text = format!("{}{path}{query}", base.trim_end_matches('/'));
        let mut ask = Ask::new(
            Url::parse(&text)
                .map_err(|cause| anyhow!("HF_ENDPOINT: {cause}"))?
                .0,
        );
        ask.login = self.login.clone();
        // Whoever names an endpoint by hand may name one without TLS; it gets no token.
        ask.plain_hosts.push(self.endpoint.host().to_owned());
        Ok(ask)
    }

    fn revision(&self) -> Result<Revision> {
        let kind = if self.hub.dataset {
            "datasets"
        } else {
            "models"
        };
        let name = percent_encode(self.hub.revision()).replace('/', "%2F");
        let ask = self.ask(
            &format!("/api/{kind}/{}/revision/{name}", self.hub.id()),
            "?blobs=true",
        )?;
        let (bytes, _, url) = self
            .client
            .page(&ask)
            .map_err(|failure| self.explain(failure))?;
        let revision: Revision = serde_json::from_slice(&bytes)
            .with_context(|| format!("{url}: not the answer of a hub"))?;
        if revision.sha.len() != 40 || !revision.sha.bytes().all(|b| b.is_ascii_hexdigit()) {
            bail!("{url}: the hub names no commit");
        }
        if self.hub.is_commit() && !revision.sha.eq_ignore_ascii_case(self.hub.revision()) {
            bail!(
                "{url}: asked for one commit, the hub answers with {}",
                revision.sha
            );
        }
        Ok(revision)
    }

    /// What the hub's refusals mean. It answers 401 for a repository that is not there too, if asked without a token.
    fn explain(&self, failure: Failure) -> anyhow::Error {
        let id = self.hub.id();
        let token = match (&self.login, &self.client.network().hf_token) {
            (Some(_), _) => "the token that was sent has no right to it",
            (None, Some(_)) => "the token was not sent, since the endpoint is not https",
            (None, None) => "set HF_TOKEN to a token that may read it",
        };
        let kind = if self.hub.dataset { "dataset" } else { "model" };
        match (failure.status, failure.code.as_deref()) {
            (Some(404), Some("RevisionNotFound")) => {
                anyhow!(
                    "{}: {id} has no revision `{}`",
                    failure.message,
                    self.hub.revision()
                )
            }
            (Some(404), Some("EntryNotFound")) => {
                anyhow!("{}: the file is not in {id}", failure.message)
            }
            (_, Some("GatedRepo")) => {
                anyhow!(
                    "{}: {id} is gated: accept its terms on its page; {token}",
                    failure.message
                )
            }
            (Some(401 | 403 | 404), _) => {
                anyhow!(
                    "{}: there is no {kind} {id}, or it is private or gated: check the name; {token}",
                    failure.message
                )
            }
            (None, _) if failure.passing => {
                anyhow!(
                    "{}: where the hub is out of reach, name a mirror in HF_ENDPOINT or list a copy first",
                    failure.message
                )
            }
            _ => failure.into(),
        }
    }

    /// The files that are meant, each with its name inside the source.
    fn choose<'r>(&self, revision: &'r Revision) -> Result<Vec<(String, &'r Sibling)>> {
        let id = self.hub.id();
        let all = &revision.siblings;
        if let Some(bad) = all
            .iter()
            .find(|file| !super::location::is_plain(&file.rfilename))
        {
            bail!(
                "{id} lists a file {:?}, whose name leaves the repository",
                bad.rfilename
            );
        }
        let chosen: Vec<(String, &Sibling)> = match &self.hub.path {
            Some(path)
                if !path.ends_with('/') && all.iter().any(|file| file.rfilename == *path) =>
            {
                let file = all.iter().find(|file| file.rfilename == *path);
                if is_pickle(path) {
                    bail!(
                        "{id}: {path} is a pickle, which can run code when it is read: name a .safetensors or .gguf file"
                    );
                }
                let name = path.rsplit('/').next().unwrap_or(path);
                return Ok(file
                    .map(|file| (name.to_owned(), file))
                    .into_iter()
                    .collect());
            }
            Some(path) => {
                let folder = format!("{}/", path.trim_end_matches('/'));
                let inside = all
                    .iter()
                    .filter_map(|file| Some((file.rfilename.strip_prefix(&folder)?, file)));
                inside
                    .filter(|(name, _)| self.wants(name))
                    .map(|(name, file)| (name.to_owned(), file))
                    .collect()
            }
            None => {
                let whole = all.iter().map(|file| (file.rfilename.clone(), file));
                whole.filter(|(name, _)| self.wants(name)).collect()
            }
        };
        let names = || all.iter().map(|file| file.rfilename.as_str());
        if chosen.is_empty()
            && let Some(path) = &self.hub.path
        {
            let hint = match nearest(path, names()) {
                Some(name) => format!("the nearest is `{name}`"),
                None => format!("it has {}", some_of(names())),
            };
            bail!("{id} at {} has no `{path}`: {hint}", self.hub.revision());
        }
        let weights = |name: &str| name.ends_with(".safetensors");
        let unread = || names().filter(|name| is_pickle(name) || name.ends_with(".gguf"));
        if !self.hub.dataset
            && self.hub.path.is_none()
            && !chosen.iter().any(|(name, _)| weights(name))
            && unread().count() > 0
        {
            let gguf: Vec<&str> = names().filter(|name| name.ends_with(".gguf")).collect();
            match gguf.first() {
                Some(one) => bail!(
                    "{id} has no .safetensors file, but {}: name the one that is meant, as `hf://{id}@{}/{one}`",
                    some_of(gguf.iter().copied()),
                    self.hub.revision()
                ),
                None => bail!(
                    "{id} has its weights as pickles only ({}), which can run code when they are read: use a repository or a revision with .safetensors files",
                    some_of(unread())
                ),
            }
        }
        if chosen.is_empty() {
            bail!(
                "{id} at {} has no file that Levain can use: it has {}",
                self.hub.revision(),
                some_of(names())
            );
        }
        let mut chosen = chosen;
        chosen.sort_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
        Ok(chosen)
    }

    /// Whether a file of a whole repository (or folder) is one that Levain can use.
    fn wants(&self, name: &str) -> bool {
        let base = name.rsplit('/').next().unwrap_or(name);
        if name.split('/').any(|part| part.starts_with('.')) || is_pickle(name) {
            return false;
        }
        let ends = |list: &[&str]| list.iter().any(|end| base.ends_with(end));
        if self.hub.dataset {
            let described = [
                "dataset_infos.json",
                "dataset_dict.json",
                "dataset_info.json",
                "state.json",
            ];
            return ends(&[".json", ".jsonl", ".parquet", ".csv", ".tsv", ".txt"])
                && !described.contains(&base);
        }
        // Folders of a model repository hold copies for other programs, except the numbered modules (`1_Pooling`) of
        // sentence-transformers. `consolidated` weights are the same weights once more.
        let module = |part: &str| {
            part.split_once('_')
                .is_some_and(|(n, _)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        };
        let top = match name.rsplit_once('/') {
            None => true,
            Some((folder, _)) => folder.split('/').all(module),
        };
        top && !base.starts_with("consolidated")
            && (ends(&[".safetensors", ".json", ".jinja", ".txt", ".model"])
                || base.starts_with("tokenizer."))
    }

    fn download(
        &self,
        revision: &Revision,
        chosen: Vec<(String, &Sibling)>,
        progress: &dyn Fn(u64, Option<u64>),
    ) -> Result<Found> {
        let size_of = |file: &Sibling| file.lfs.as_ref().and_then(|lfs| lfs.size).or(file.size);
        let total = chosen
            .iter()
            .map(|(_, file)| size_of(file))
            .try_fold(0u64, |sum, size| sum.checked_add(size?));
        let single = self
            .hub
            .path
            .as_ref()
            .is_some_and(|path| chosen.len() == 1 && chosen[0].1.rfilename == *path);
        let mut done = 0;
        let mut files = Vec::new();
        for (name, file) in chosen {
            // Each file has a note of its own, so that a fetch that was killed goes on at the file where it was.
            let whole = HubLocation {
                revision: Some(revision.sha.clone()),
                path: Some(file.rfilename.clone()),
                ..self.hub.clone()
            };
            let whole = Location::Hub(whole);
            let known =
                note::read(self.store, &whole).and_then(|found| found.files.into_iter().next());
            let fetched = match known {
                Some(known) => known,
                None => {
                    let fetched = self.file(revision, file, &|bytes, own| {
                        progress(done + bytes, total.or(own.filter(|_| single)))
                    })?;
                    let label = fetched.name.clone();
                    let found = Found {
                        files: vec![fetched.clone()],
                        single: true,
                        label,
                        ..Found::default()
                    };
                    note::write(self.store, &whole, &found)?;
                    fetched
                }
            };
            done += fetched.size;
            progress(done, total);
            files.push(SourceFile { name, ..fetched });
        }
        Ok(Found {
            single,
            label: if single {
                files.iter().map(|file| file.name.clone()).collect()
            } else {
                self.hub.repo.clone()
            },
            files,
            revision: Some(revision.sha.clone()),
            skipped: Vec::new(),
        })
    }

    fn file(
        &self,
        revision: &Revision,
        file: &Sibling,
        progress: &dyn Fn(u64, Option<u64>),
    ) -> Result<SourceFile> {
        let kind = if self.hub.dataset { "/datasets" } else { "" };
        let path = percent_encode(&file.rfilename);
        let ask = self.ask(
            &format!("{kind}/{}/resolve/{}/{path}", self.hub.id(), revision.sha),
            "",
        )?;
        let job = Job {
            identity: ask.url.with_query(),
            ask,
            fixed: true,
            size: file.lfs.as_ref().and_then(|lfs| lfs.size).or(file.size),
            sha256: file.lfs.as_ref().and_then(|lfs| lfs.sha256.clone()),
            commit: Some(revision.sha.clone()),
        };
        let done = download(self.client, self.store, &job, progress)
            .map_err(|failure| self.explain(failure))?;
        let size = done.size;
        let digest = done.digest()?;
        let path = done.import(self.store, &digest)?;
        let name = file.rfilename.rsplit('/').next().unwrap_or(&file.rfilename);
        Ok(SourceFile {
            name: name.to_owned(),
            path,
            size,
            digest,
        })
    }
}

fn is_pickle(name: &str) -> bool {
    [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"]
        .iter()
        .any(|end| name.ends_with(end))
}

/// The first few of a list, for a message.
pub(super) fn some_of<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<&str> = names.collect();
    let shown: Vec<String> = names
        .iter()
        .take(6)
        .map(|name| format!("`{name}`"))
        .collect();
    match names.len() {
        0 => "no files".into(),
        count if count > shown.len() => {
            format!("{} and {} more", shown.join(", "), count - shown.len())
        }
        _ => shown.join(", "),
    }
}
