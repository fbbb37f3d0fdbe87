//! A folder of files that are named by digests and divided by the first two digits.
//!
//! It is held open: a plan looks at thousands of files, and from here each is two steps away instead of one for every part of
//! the cache's path.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, Stat};

use crate::digest::Digest;

/// The length of a file's name below the folder: the digits and a `/`.
const NAME: usize = 65;

#[derive(Clone, Debug)]
pub(super) struct Folder {
    path: PathBuf,
    handle: Arc<OwnedFd>,
}

impl Folder {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = Arc::new(rustix::fs::open(&path, flags, Mode::empty())?);
        Ok(Self { path, handle })
    }

    /// Where the file of `digest` is, or would be.
    pub(super) fn path_of(&self, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        let (first, rest) = hex.split_at(2);
        let mut path = self.path.clone();
        path.extend([Path::new(first), Path::new(rest)]);
        path
    }

    /// What the file system says of the file of `digest`.
    pub(super) fn look(&self, digest: Digest) -> io::Result<Stat> {
        let name = name(digest);
        Ok(rustix::fs::statat(
            &self.handle,
            &name[..],
            AtFlags::empty(),
        )?)
    }

    /// The bytes of the file of `digest`, in `buffer` where they fit.
    pub(super) fn read<'b>(
        &self,
        digest: Digest,
        buffer: &'b mut [u8],
    ) -> io::Result<Cow<'b, [u8]>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(
            &self.handle,
            &name(digest)[..],
            flags,
            Mode::empty(),
        )?);
        let mut length = 0;
        while length < buffer.len() {
            match file.read(&mut buffer[length..]) {
                Ok(0) => return Ok(Cow::Borrowed(&buffer[..length])),
                Ok(read) => length += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let mut bytes = buffer.to_vec();
        file.read_to_end(&mut bytes)?;
        Ok(Cow::Owned(bytes))
    }
}

/// `ab/cdef…`.
fn name(digest: Digest) -> [u8; NAME] {
    let hex = digest.hex();
    let (first, rest) = hex.as_bytes().split_at(2);
    let mut name = [b'/'; NAME];
    name[..2].copy_from_slice(first);
    name[3..].copy_from_slice(rest);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_longer_than_the_buffer_are_read_whole() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::open(temp.path().to_owned()).unwrap();
        for length in [0, 7, 8, 9, 100] {
            let bytes: Vec<u8> = (0..length).collect();
            let digest = Digest::of_bytes(&bytes);
            let path = folder.path_of(digest);
            assert_eq!(
                path,
                temp.path()
                    .join(&digest.hex()[..2])
                    .join(&digest.hex()[2..])
            );
            assert_eq!(folder.look(digest).unwrap_err().kind(), ErrorKind::NotFound);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(folder.look(digest).unwrap().st_size, i64::from(length));
            assert_eq!(*folder.read(digest, &mut [0; 8]).unwrap(), bytes);
        }
    }
}
