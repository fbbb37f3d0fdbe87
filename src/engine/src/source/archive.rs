//! Archives: one file or one folder out of a wheel (zip) or a source archive (tar.gz), never more and never elsewhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use flate2::read::MultiGzDecoder;

use super::location::is_plain;
use crate::diagnostic::nearest;

/// Deflate cannot do better than this; an entry that claims more is made to fill the disk.
const BEST_RATIO: u64 = 1032;
/// Names in a tar archive are not longer.
const LONGEST_NAME: u64 = 64 << 10;

/// What an archive holds of what was asked for.
pub(super) enum Content {
    /// The files, with their names inside the source, sorted by them.
    Files(Vec<(String, PathBuf)>),
    /// Nothing: the nearest name it has, or where it is when it is a folder.
    Absent(Option<String>),
}

/// What to take: one file, or all files of a folder when the path ends in `/`.
struct Wanted<'a> {
    path: &'a str,
}

impl Wanted<'_> {
    /// The name inside the source of the archive's entry `name`, if it is wanted.
    fn name_of(&self, name: &str) -> Option<String> {
        if self.path.ends_with('/') {
            let inner = name.strip_prefix(self.path)?;
            return (!inner.is_empty()).then(|| inner.to_owned());
        }
        (name == self.path).then(|| name.rsplit('/').next().unwrap_or(name).to_owned())
    }

    /// What to say about an archive with these names that lacks the path.
    fn absent<'n>(&self, names: impl Iterator<Item = &'n str> + Clone) -> Content {
        let folder = format!("{}/", self.path);
        if names.clone().any(|name| name.starts_with(&folder)) {
            return Content::Absent(Some(folder));
        }
        Content::Absent(nearest(self.path, names).map(str::to_owned))
    }
}

/// Writes the wanted files of the archive at `path` into `folder`, under names of our own.
///
/// # Errors
/// The archive is damaged; a wanted entry is a link, is encrypted, has a name that leaves its folder, is there twice, or
/// unpacks to more than it declares.
pub(super) fn extract(
    path: &Path,
    file_name: &str,
    wanted: &str,
    folder: &Path,
) -> Result<Content> {
    let wanted = Wanted { path: wanted };
    let result = if file_name.ends_with(".whl") {
        zip(path, &wanted, folder)
    } else {
        tar(path, &wanted, folder)
    };
    result.with_context(|| format!("{file_name}: {}", wanted.path))
}

/// Collects what was taken; refuses a name twice, since readers differ in which one they believe.
struct Taken<'a> {
    folder: &'a Path,
    files: BTreeMap<String, PathBuf>,
}

impl Taken<'_> {
    fn take(&mut self, name: String, size: u64, reader: &mut dyn Read) -> Result<()> {
        if !is_plain(&name) {
            bail!("the entry {name:?} has a name that leaves its folder");
        }
        let path = self.folder.join(format!("entry-{}", self.files.len()));
        let mut file = File::create(&path)?;
        // One byte more than declared is enough to know a lie.
        let mut limited = reader.take(size.saturating_add(1));
        let written = std::io::copy(&mut limited, &mut file)
            .with_context(|| format!("the entry `{name}` is damaged"))?;
        if written != size {
            bail!(
                "the entry `{name}` declares {size} bytes and has {}",
                if written > size { "more" } else { "fewer" }
            );
        }
        file.flush()?;
        if self.files.insert(name.clone(), path).is_some() {
            bail!("the entry `{name}` is there twice");
        }
        Ok(())
    }

    fn content(self) -> Content {
        Content::Files(self.files.into_iter().collect())
    }
}

fn zip(path: &Path, wanted: &Wanted, folder: &Path) -> Result<Content> {
    let mut archive = zip::ZipArchive::new(BufReader::new(File::open(path)?))
        .context("not a wheel (a zip archive)")?;
    let mut taken = Taken {
        folder,
        files: BTreeMap::new(),
    };
    for index in 0..archive.len() {
        let Some(name) = archive
            .name_for_index(index)
            .and_then(|name| wanted.name_of(name))
        else {
            continue;
        };
        let mut entry = archive
            .by_index(index)
            .with_context(|| format!("the entry `{name}` cannot be read"))?;
        if entry.is_dir() {
            continue;
        }
        if entry.is_symlink() {
            bail!("the entry `{name}` is a link");
        }
        let (size, packed) = (entry.size(), entry.compressed_size());
        if size > packed.saturating_mul(BEST_RATIO).saturating_add(1024) {
            bail!("the entry `{name}` declares {size} bytes out of {packed}, which cannot be");
        }
        taken.take(name, size, &mut entry)?;
    }
    if taken.files.is_empty() {
        return Ok(wanted.absent(archive.file_names().collect::<Vec<_>>().iter().copied()));
    }
    Ok(taken.content())
}

fn tar(path: &Path, wanted: &Wanted, folder: &Path) -> Result<Content> {
    let mut archive = tar::Archive::new(MultiGzDecoder::new(BufReader::new(File::open(path)?)));
    let mut taken = Taken {
        folder,
        files: BTreeMap::new(),
    };
    let mut names = Vec::new();
    let mut long_name: Option<Vec<u8>> = None;
    // Raw entries: the crate's own reading of long names takes as much memory as the archive likes.
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry.context("not a source archive (a gzipped tar)")?;
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
            let size = entry.size();
            if size > LONGEST_NAME {
                bail!("a name of {size} bytes");
            }
            let mut bytes = Vec::new();
            entry.by_ref().take(LONGEST_NAME).read_to_end(&mut bytes)?;
            if kind.is_gnu_longname() {
                long_name = Some(bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec());
            } else if let Some(name) = pax_path(&bytes) {
                long_name = Some(name);
            }
            continue;
        }
        if kind.is_pax_global_extensions() || kind.is_gnu_longlink() {
            continue;
        }
        let name = long_name
            .take()
            .unwrap_or_else(|| entry.path_bytes().into_owned());
        let Ok(name) = String::from_utf8(name) else {
            continue;
        };
        // An sdist has one folder at its top, `name-version`.
        let Some((_, name)) = name.strip_prefix("./").unwrap_or(&name).split_once('/') else {
            continue;
        };
        if kind.is_dir() || name.is_empty() {
            continue;
        }
        if let Some(inner) = wanted.name_of(name) {
            if !(kind.is_file() || kind.is_contiguous()) {
                bail!("the entry `{name}` is a link or a special file");
            }
            let size = entry.size();
            taken.take(inner, size, &mut entry)?;
        }
        if names.len() < 100_000 {
            names.push(name.to_owned());
        }
    }
    if taken.files.is_empty() {
        return Ok(wanted.absent(names.iter().map(String::as_str)));
    }
    Ok(taken.content())
}

/// The `path` record of a pax header: records are `length key=value\n`.
fn pax_path(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut path = None;
    while let Some(space) = bytes.iter().position(|b| *b == b' ') {
        let length: usize = std::str::from_utf8(bytes.get(..space)?)
            .ok()?
            .parse()
            .ok()?;
        let record = bytes.get(space + 1..length)?;
        if let Some(value) = record.strip_prefix(b"path=") {
            path = Some(value.strip_suffix(b"\n")?.to_vec());
        }
        bytes = bytes.get(length..)?;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    fn wheel() -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for name in ["d/a", "d/b/c"] {
            zip.start_file(name, zip::write::SimpleFileOptions::default())
                .unwrap();
            zip.write_all(b"some bytes, some bytes").unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    fn plain_tar() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let long = format!("top/d/{}", "n".repeat(150));
        for name in ["top/d/a", &long] {
            let mut header = tar::Header::new_gnu();
            header.set_size(10);
            tar.append_data(&mut header, name, &b"ten bytes."[..])
                .unwrap();
        }
        tar.into_inner().unwrap()
    }

    /// Whatever the bytes, the answer is files of the folder or an error.
    fn holds(bytes: &[u8], file_name: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("archive");
        std::fs::write(&path, bytes).unwrap();
        let out = folder.path().join("out");
        std::fs::create_dir(&out).unwrap();
        if let Ok(Content::Files(files)) = extract(&path, file_name, "d/", &out) {
            assert!(
                files
                    .iter()
                    .all(|(name, path)| is_plain(name) && path.starts_with(&out))
            );
        }
        let beside: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(beside.len(), 2, "something was written outside");
    }

    proptest! {
        #[test]
        fn a_damaged_archive_is_an_error_at_worst(at in 0usize..4000, value: u8, cut in 0usize..8000) {
            for (whole, name) in [(wheel(), "x.whl"), (plain_tar(), "x.tar.gz")] {
                let mut bytes = whole;
                let place = at % bytes.len();
                bytes[place] = value;
                bytes.truncate(cut.max(place + 1));
                if name.ends_with("gz") {
                    // The damage is inside: a damaged gzip stream would hide it.
                    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
                    gz.write_all(&bytes).unwrap();
                    bytes = gz.finish().unwrap();
                }
                holds(&bytes, name);
            }
        }

        #[test]
        fn records_of_any_bytes_are_read(bytes: Vec<u8>, length in 0usize..40) {
            let _ = pax_path(&bytes);
            let record = format!("{length} path=abc\n");
            let whole = record.len() == length;
            prop_assert_eq!(pax_path(record.as_bytes()).is_some_and(|path| path == b"abc"), whole);
        }
    }
}
