//! The resolver: which alternative of a source answers, what its digest is, and where its bytes are.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};

use super::client::Client;
use super::local::{self, Found};
use super::location::together;
use super::network::Network;
use super::pypi::Archives;
use super::{
    BlobStore, Entry, Location, Memo, Resolved, SourceFile, SourceSpec, address, digest_of, hub,
    note, pypi,
};
use crate::digest::Digest;

/// How far a fetch has come.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'p> {
    /// What is fetched, as text without secrets.
    pub location: &'p str,
    /// Bytes so far, those of earlier runs included.
    pub done: u64,
    /// Bytes in all, when known.
    pub total: Option<u64>,
}

/// Finds sources: on disk, in the store, and outside.
pub struct Resolver<'a> {
    base: &'a Path,
    store: &'a dyn BlobStore,
    memo: &'a Memo,
    client: Client<'a>,
    archives: Archives,
    offline: bool,
    update: bool,
    progress: &'a dyn Fn(Progress),
}

/// What a group of locations gives without the network.
enum Here {
    Found(Resolved),
    /// Something has to be fetched; `again` if all was fetched before and has another digest than the one wanted.
    Outside {
        again: bool,
    },
}

impl<'a> Resolver<'a> {
    /// A resolver for a recipe in the folder `base`.
    pub fn new(
        base: &'a Path,
        store: &'a dyn BlobStore,
        memo: &'a Memo,
        network: &'a Network,
    ) -> Resolver<'a> {
        Resolver {
            base,
            store,
            memo,
            client: Client::new(network),
            archives: Archives::default(),
            offline: false,
            update: false,
            progress: &|_| {},
        }
    }

    /// Whether to stay away from the network.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Whether to ask unpinned remote sources again, rather than to take what they gave before. The lock's digests are
    /// then not to be given: they are what is to change.
    pub fn update(mut self, update: bool) -> Self {
        self.update = update;
        self
    }

    /// Where to tell how far a fetch has come.
    pub fn progress(mut self, progress: &'a dyn Fn(Progress)) -> Self {
        self.progress = progress;
        self
    }

    /// Resolves a source without the network: files on disk, and what was fetched before. `known` is the lock's digest;
    /// the recipe's own pin comes before it. It binds sources that are outside only: a file of the user's may change.
    /// `None`: it would have to be fetched.
    ///
    /// # Errors
    /// No alternative can answer, even with the network: each with its reason.
    pub fn local(&self, spec: &SourceSpec, known: Option<Digest>) -> Result<Option<Resolved>> {
        let mut failures = Vec::new();
        let mut outside = false;
        let wanted = spec.pin.or(known);
        for group in &spec.alternatives {
            match self.here(group, spec.pin, known) {
                Ok(Here::Found(resolved)) => {
                    // A later alternative may only jump the queue of those that could be fetched with the very bytes.
                    if outside && !self.offline && wanted != Some(resolved.digest) {
                        break;
                    }
                    return Ok(Some(resolved));
                }
                Ok(Here::Outside { .. }) => {
                    outside = true;
                    failures.push((together(group), anyhow!("{}", offline_hint())));
                }
                Err(error) => failures.push((together(group), error)),
            }
        }
        // Whatever became of the places, the bytes themselves may be in the store.
        if let Some(digest) = spec.pin.or(known.filter(|_| spec.is_remote()))
            && let Some(resolved) = self.stored(spec, &digest)
        {
            return Ok(Some(resolved));
        }
        if outside && !self.offline {
            return Ok(None);
        }
        Err(all_of(failures))
    }

    /// Resolves a source, fetching what is not there yet.
    ///
    /// # Errors
    /// No alternative answers with the wanted digest: each with its reason and the way out.
    pub fn fetch(&self, spec: &SourceSpec, known: Option<Digest>) -> Result<Resolved> {
        if let Some(resolved) = self.local(spec, known)? {
            return Ok(resolved);
        }
        let mut failures = Vec::new();
        for group in &spec.alternatives {
            let result = match self.here(group, spec.pin, known) {
                Ok(Here::Found(resolved)) => Ok(resolved),
                Ok(Here::Outside { again }) => self.fetch_group(group, again, spec.pin, known),
                Err(error) => Err(error),
            };
            match result {
                Ok(resolved) => return Ok(resolved),
                Err(error) => failures.push((together(group), error)),
            }
        }
        Err(all_of(failures))
    }

    /// What the locations of one alternative give without the network.
    fn here(&self, group: &[Location], pin: Option<Digest>, known: Option<Digest>) -> Result<Here> {
        let mut found = Vec::with_capacity(group.len());
        let mut missing = false;
        for location in group {
            match location {
                Location::Path(path) => match local::find(self.base, path, self.memo)? {
                    Some(one) => found.push(one),
                    None => bail!("{}", local::missing(self.base, path, group.len() == 1)),
                },
                _ if self.update && pin.is_none() => missing = true,
                remote => match note::read(self.store, remote) {
                    Some(one) => found.push(one),
                    None => missing = true,
                },
            }
        }
        if missing {
            return Ok(Here::Outside { again: false });
        }
        let resolved = combine(group, found);
        match self.wrong(group, &resolved, pin, known) {
            None => Ok(Here::Found(resolved)),
            Some(_) if group.iter().any(Location::is_remote) => Ok(Here::Outside { again: true }),
            Some(error) => Err(error),
        }
    }

    fn fetch_group(
        &self,
        group: &[Location],
        again: bool,
        pin: Option<Digest>,
        known: Option<Digest>,
    ) -> Result<Resolved> {
        if self.offline {
            bail!("{}", offline_hint());
        }
        let mut found = Vec::with_capacity(group.len());
        for location in group {
            let before = || match self.update && pin.is_none() || again {
                true => None,
                false => note::read(self.store, location),
            };
            found.push(match location {
                Location::Path(path) => local::find(self.base, path, self.memo)?
                    .with_context(|| local::missing(self.base, path, group.len() == 1))?,
                remote => match before() {
                    Some(one) => one,
                    None => self.fetch_one(
                        remote,
                        if group.len() == 1 {
                            pin.or(known)
                        } else {
                            None
                        },
                    )?,
                },
            });
        }
        let resolved = combine(group, found.clone());
        if let Some(error) = self.wrong(group, &resolved, pin, known) {
            return Err(error);
        }
        for (location, one) in group
            .iter()
            .zip(&found)
            .filter(|(location, _)| location.is_remote())
        {
            note::write(self.store, location, one)?;
        }
        // A single file is found by its digest alone; of several, the list must be kept.
        let several = resolved
            .files
            .iter()
            .all(|file| file.digest != resolved.digest);
        if resolved.remote && several {
            note::write_list(self.store, &resolved.digest, &resolved.files)?;
        }
        Ok(resolved)
    }

    fn fetch_one(&self, location: &Location, wanted: Option<Digest>) -> Result<Found> {
        let shown = location.to_string();
        tracing::info!(location = shown, "fetching");
        let progress = |done: u64, total: Option<u64>| {
            (self.progress)(Progress {
                location: &shown,
                done,
                total,
            });
        };
        match location {
            Location::Path(path) => bail!("{path} is not fetched"),
            Location::Hub(hub) => {
                let found = hub::fetch(&self.client, self.store, hub, &progress)?;
                if !hub.is_commit()
                    && let Some(commit) = &found.revision
                {
                    tracing::warn!(
                        "{shown} moves: it stood for commit {commit} now; write `@{commit}` to keep it"
                    );
                }
                Ok(found)
            }
            Location::Pypi(pypi) => {
                pypi::fetch(&self.client, self.store, &self.archives, pypi, &progress)
            }
            Location::Https(url) => {
                address::fetch(&self.client, self.store, url, wanted, &progress)
            }
        }
    }

    /// Why what a group gave is not what is wanted. The lock speaks only of what is wholly outside.
    fn wrong(
        &self,
        group: &[Location],
        resolved: &Resolved,
        pin: Option<Digest>,
        known: Option<Digest>,
    ) -> Option<anyhow::Error> {
        let (wanted, who) = match (pin, known) {
            (Some(pin), _) => (pin, "the recipe's pin"),
            (None, Some(known)) if group.iter().all(Location::is_remote) => (known, "the lock"),
            _ => return None,
        };
        (wanted != resolved.digest).then(|| anyhow!("{}", differs(&resolved.digest, &wanted, who)))
    }

    /// A source of which the bytes are known and in the store, wherever it came from.
    fn stored(&self, spec: &SourceSpec, digest: &Digest) -> Option<Resolved> {
        let resolved = |files| Resolved {
            digest: *digest,
            files,
            location: spec.to_string(),
            remote: true,
            revision: None,
            skipped: Vec::new(),
        };
        if let Some(path) = self.store.path_of(digest) {
            let size = std::fs::metadata(&path).ok()?.len();
            let name = spec
                .alternatives
                .iter()
                .flatten()
                .map(Location::file_name)
                .next()?;
            return Some(resolved(vec![SourceFile {
                name,
                path,
                size,
                digest: *digest,
            }]));
        }
        note::read_list(self.store, digest).map(resolved)
    }
}

/// One source out of what its locations gave.
fn combine(group: &[Location], found: Vec<Found>) -> Resolved {
    let remote = group.iter().all(Location::is_remote);
    let revision = found.iter().find_map(|one| one.revision.clone());
    let alone = found.len() == 1;
    let single = alone && found.first().is_some_and(|one| one.single);
    let mut files: Vec<SourceFile> = Vec::new();
    let mut skipped = Vec::new();
    for (index, one) in found.into_iter().enumerate() {
        skipped.extend(one.skipped);
        for file in one.files {
            let mut name = match alone || one.single {
                true => file.name,
                false => format!("{}/{}", one.label, file.name),
            };
            if files.iter().any(|other| other.name == name) {
                // `2023/rows.json` and `2024/rows.json` used together: names stay unique, and say nothing of paths.
                name = format!("{}/{name}", index + 1);
            }
            files.push(SourceFile { name, ..file });
        }
    }
    let digest = match files.as_slice() {
        [file] if single => file.digest,
        _ => digest_of(&files.iter().map(Entry::from).collect::<Vec<_>>()),
    };
    Resolved {
        digest,
        files,
        location: together(group),
        remote,
        revision,
        skipped,
    }
}

pub(super) fn differs(found: &Digest, wanted: &Digest, who: &str) -> String {
    format!(
        "its blake3 is {found}, but {who} says {wanted}: it is another file, or it changed; look at it, then correct the pin, or update the lock"
    )
}

fn offline_hint() -> &'static str {
    "it was not fetched before, and the network is not to be used: run once with the network, or copy the file here and \
     list its path first, as in `from: [copied/file, …]`"
}

/// The failures of all alternatives as one error.
fn all_of(mut failures: Vec<(String, anyhow::Error)>) -> anyhow::Error {
    if failures.len() == 1 {
        return match failures.pop() {
            Some((place, error)) => error.context(format!("source `{place}`")),
            None => anyhow!("a source without a place"),
        };
    }
    let lines: Vec<String> = failures
        .iter()
        .map(|(place, error)| format!("\n  {place}: {error:#}"))
        .collect();
    anyhow!(
        "none of the places of this source answered:{}",
        lines.concat()
    )
}
