//! Single keys from a terminal, without the Enter key.

use std::io::Read as _;

use anyhow::{Context as _, Result};

/// A terminal that hands on every key at once and does not show it; as before when dropped.
pub(super) struct Keys {
    before: libc::termios,
}

/// What Ctrl-C and Ctrl-D send when the terminal does not act on them.
const INTERRUPT: u8 = 3;
const END: u8 = 4;

impl Keys {
    /// None where standard input is no terminal that can do so.
    pub(super) fn open() -> Option<Keys> {
        // SAFETY: `termios` is plain old data for which zeroes are valid; `tcgetattr` writes only into it, and fails where standard
        // input is no terminal; `tcsetattr` only reads it.
        unsafe {
            let mut before: libc::termios = std::mem::zeroed();
            if libc::tcgetattr(libc::STDIN_FILENO, &mut before) != 0 {
                return None;
            }
            let mut keys = before;
            // Signals stay off while a key is read, or Ctrl-C would end the program and leave the terminal without an echo.
            keys.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG);
            keys.c_cc[libc::VMIN] = 1;
            keys.c_cc[libc::VTIME] = 0;
            (libc::tcsetattr(libc::STDIN_FILENO, libc::TCSADRAIN, &keys) == 0)
                .then_some(Keys { before })
        }
    }

    /// The next key; none at the end of input, for Ctrl-C and for Ctrl-D.
    pub(super) fn next(&mut self) -> Result<Option<String>> {
        let mut key = [0; 1];
        // One byte at a time from the file itself: what a buffer took ahead would be lost with it.
        let mut input = std::mem::ManuallyDrop::new(standard_input());
        match input
            .read(&mut key)
            .context("standard input can't be read")?
        {
            0 => Ok(None),
            _ if matches!(key[0], INTERRUPT | END) => Ok(None),
            _ => Ok(Some(String::from_utf8_lossy(&key).trim().to_owned())),
        }
    }
}

/// Standard input without a buffer; not to be closed.
fn standard_input() -> std::fs::File {
    use std::os::fd::FromRawFd as _;
    // SAFETY: the descriptor is open for as long as the program runs, and the caller never drops the file.
    unsafe { std::fs::File::from_raw_fd(libc::STDIN_FILENO) }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // SAFETY: reads a `termios` that `tcgetattr` has filled.
        unsafe {
            libc::tcsetattr(libc::STDIN_FILENO, libc::TCSADRAIN, &self.before);
        }
    }
}
