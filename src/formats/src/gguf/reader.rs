//! A cursor over the bytes of a GGUF header that never reads past the end.

use anyhow::{Result, anyhow, bail};

/// The bytes and the place of the next one to read.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, position: 0 }
    }

    /// The place of the next byte, counted from the start of the file.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The next `count` bytes, which are `what`.
    pub(super) fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8]> {
        let end = usize::try_from(count)
            .ok()
            .and_then(|count| self.position.checked_add(count));
        match end.and_then(|end| self.bytes.get(self.position..end)) {
            Some(taken) => {
                self.position += taken.len();
                Ok(taken)
            }
            None => bail!(
                "{what} at byte {} needs {count} bytes, but {} are left; the file is cut short or its header is wrong: fetch it again",
                self.position,
                self.remaining()
            ),
        }
    }

    /// The next `N` bytes as an array.
    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        Ok(self.take(N as u64, what)?.try_into()?)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things of at least `smallest` bytes each; more than can follow is an error, so that
    /// room may be reserved for it.
    pub(super) fn count(&mut self, smallest: u64, what: &str) -> Result<usize> {
        let place = self.position;
        let count = self.u64(what)?;
        let room = self.remaining() as u64 / smallest;
        if count > room {
            bail!(
                "at byte {place} it claims {count} {what}, but the rest of the file has room for {room}; the file is cut short or its header is wrong: fetch it again"
            );
        }
        Ok(usize::try_from(count)?)
    }

    /// A length-prefixed text.
    pub(super) fn text(&mut self, what: &str) -> Result<&'a str> {
        let place = self.position;
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| anyhow!("{what} at byte {place} is not UTF-8"))
    }
}
