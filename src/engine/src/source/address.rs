//! One file at an address.

use anyhow::{Result, bail};

use super::client::{Ask, Client};
use super::download::{Job, download};
use super::local::Found;
use super::resolver::differs;
use super::url::Url;
use super::{BlobStore, Location, SourceFile};
use crate::digest::Digest;

/// Fetches the file at `url` into the store, if it has the digest that is `wanted`.
///
/// # Errors
/// The download failed, or it gave other bytes, which are then not kept.
pub(super) fn fetch(
    client: &Client,
    store: &dyn BlobStore,
    url: &Url,
    wanted: Option<Digest>,
    progress: &dyn Fn(u64, Option<u64>),
) -> Result<Found> {
    let job = Job {
        ask: Ask::new(url.clone()),
        identity: url.with_query(),
        fixed: false,
        size: None,
        sha256: None,
        commit: None,
    };
    let done = download(client, store, &job, progress)?;
    let size = done.size;
    let digest = done.digest()?;
    if let Some(wanted) = wanted
        && wanted != digest
    {
        done.discard();
        bail!("{}", differs(&digest, &wanted, "the pin or the lock"));
    }
    let path = done.import(store, &digest)?;
    let name = Location::Https(url.clone()).file_name();
    Ok(Found {
        files: vec![SourceFile {
            name: name.clone(),
            path,
            size,
            digest,
        }],
        single: true,
        label: name,
        ..Found::default()
    })
}
