//! Packages: a file or a folder out of a wheel or a source archive, which is never built and whose code never runs.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::archive::{Content, extract};
use super::client::Client;
use super::download::{Downloaded, Job, download};
use super::index::{Listed, Place, archives, package_of, same_version};
use super::local::Found;
use super::{BlobStore, Memo, PypiLocation, SourceFile};

/// The archives of this run: several paths of one archive need one download. They are dropped with the resolver; what
/// stays is only what was taken out of them.
#[derive(Default)]
pub(super) struct Archives {
    held: RefCell<HashMap<String, Downloaded>>,
}

impl Drop for Archives {
    fn drop(&mut self) {
        for (_, archive) in self.held.get_mut().drain() {
            archive.discard();
        }
    }
}

impl Archives {
    fn path(
        &self,
        client: &Client,
        store: &dyn BlobStore,
        listed: &Listed,
        progress: &dyn Fn(u64, Option<u64>),
    ) -> Result<PathBuf> {
        let ask = match &listed.place {
            Place::Here(path) => return Ok(path.clone()),
            Place::There(ask) => ask,
        };
        let identity = match &listed.sha256 {
            Some(sha256) => format!("sha256:{sha256}"),
            None => ask.url.with_query(),
        };
        if let Some(held) = self.held.borrow().get(&identity) {
            return Ok(held.path().to_owned());
        }
        let job = Job {
            ask: (**ask).clone(),
            identity: identity.clone(),
            fixed: listed.sha256.is_some(),
            size: listed.size,
            sha256: listed.sha256.clone(),
            commit: None,
        };
        let held = download(client, store, &job, progress)?;
        let path = held.path().to_owned();
        self.held.borrow_mut().insert(identity, held);
        Ok(path)
    }
}

/// Fetches what `pypi` names into the store.
///
/// # Errors
/// The index has no such package or version, no archive holds the path, or one of them is damaged or malicious.
pub(super) fn fetch(
    client: &Client,
    store: &dyn BlobStore,
    kept: &Archives,
    pypi: &PypiLocation,
    progress: &dyn Fn(u64, Option<u64>),
) -> Result<Found> {
    let listed = archives(client, &pypi.name)?;
    let candidates = candidates(&listed, &pypi.version);
    if candidates.is_empty() {
        let mut versions: Vec<String> = listed
            .iter()
            .filter_map(|file| Some(package_of(&file.file_name)?.1))
            .collect();
        versions.dedup();
        let last = versions.len().saturating_sub(8);
        let versions = versions.get(last..).unwrap_or_default().join(", ");
        bail!(
            "there is no wheel and no .tar.gz of version {} of {}: the last versions are {versions}",
            pypi.version,
            pypi.name
        );
    }
    let mut looked = Vec::new();
    let mut near = None;
    for listed in candidates {
        let archive = kept.path(client, store, listed, progress)?;
        let temporary = store.temp_dir()?;
        match extract(&archive, &listed.file_name, &pypi.path, temporary.path())? {
            Content::Files(files) => return import(store, pypi, files),
            Content::Absent(hint) => {
                near = near.or(hint);
                looked.push(listed.file_name.as_str());
            }
        }
    }
    let hint = match near {
        Some(folder) if folder == format!("{}/", pypi.path) => {
            format!(": it is a folder, written `{folder}`")
        }
        Some(name) => format!(": the nearest is `{name}`"),
        None => String::new(),
    };
    bail!(
        "{} {} has no `{}` in {}{hint}",
        pypi.name,
        pypi.version,
        pypi.path,
        looked.join(" nor in ")
    )
}

fn import(
    store: &dyn BlobStore,
    pypi: &PypiLocation,
    taken: Vec<(String, PathBuf)>,
) -> Result<Found> {
    let single = !pypi.path.ends_with('/');
    let mut files = Vec::with_capacity(taken.len());
    for (name, path) in taken {
        let file = import_file(store, name, &path)?;
        files.push(file);
    }
    let label = pypi
        .path
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or(&pypi.name);
    Ok(Found {
        files,
        single,
        label: label.to_owned(),
        ..Found::default()
    })
}

fn import_file(store: &dyn BlobStore, name: String, path: &Path) -> Result<SourceFile> {
    let (digest, size) = Memo::none().digest(path)?;
    let path = store.import(path, &digest)?;
    Ok(SourceFile {
        name,
        path,
        size,
        digest,
    })
}

/// The archives of a version in the order in which they are opened: wheels for any machine, then the smallest of the
/// others (data is the same in all of them, and the choice may not depend on this machine), then the source archive.
fn candidates<'l>(listed: &'l [Listed], version: &str) -> Vec<&'l Listed> {
    let of_version = listed.iter().filter(|file| {
        package_of(&file.file_name).is_some_and(|(_, found)| same_version(&found, version))
    });
    let (wheels, sources): (Vec<&Listed>, Vec<&Listed>) =
        of_version.partition(|file| file.file_name.ends_with(".whl"));
    let (mut any, mut special): (Vec<&Listed>, Vec<&Listed>) = wheels
        .into_iter()
        .partition(|file| file.file_name.ends_with("-none-any.whl"));
    any.sort_by(|a, b| a.file_name.cmp(&b.file_name));
    special.sort_by(|a, b| (a.size, &a.file_name).cmp(&(b.size, &b.file_name)));
    special.truncate(1);
    let mut all: Vec<&Listed> = any.into_iter().chain(special).chain(sources).collect();
    // Several indexes may list one archive.
    let mut seen = std::collections::HashSet::new();
    all.retain(|file| seen.insert(file.file_name.as_str()));
    all
}
