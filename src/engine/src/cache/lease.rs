//! Leases: a word that somebody works on a key, so that two processes need not do the same. Correctness never depends on one.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use super::Cache;
use crate::digest::Digest;

const HEARTBEAT: Duration = Duration::from_secs(2);
/// A lease this old belongs to a process that is gone.
const STALE: Duration = Duration::from_secs(20);

/// A lease that is held; given back when dropped.
#[derive(Debug)]
pub struct Lease {
    path: Option<PathBuf>,
    stop: Arc<AtomicBool>,
}

/// What came of asking for a lease.
#[derive(Debug)]
pub enum Taken {
    /// It is ours.
    Ours(Lease),
    /// Somebody else works on it.
    Theirs,
}

impl Cache {
    /// Asks for the lease of `key`.
    pub fn lease(&self, key: Digest) -> Taken {
        let path = self.root().join("leases").join(key.to_string());
        for _ in 0..2 {
            match fs::File::create_new(&path) {
                Ok(mut file) => {
                    let _ = write!(file, "{} {}", std::process::id(), boot_id());
                    return Taken::Ours(Lease::beating(Some(path)));
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    if !void(&path) {
                        return Taken::Theirs;
                    }
                    let _ = fs::remove_file(&path);
                }
                // A place without leases may do work twice; that is all.
                Err(_) => return Taken::Ours(Lease::beating(None)),
            }
        }
        Taken::Theirs
    }

    /// Whether somebody who is still there holds a lease.
    pub fn at_work(&self) -> bool {
        let leases = fs::read_dir(self.root().join("leases"));
        leases.is_ok_and(|list| list.flatten().any(|entry| !void(&entry.path())))
    }
}

impl Lease {
    fn beating(path: Option<PathBuf>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        if let Some(path) = path.clone() {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::thread::park_timeout(HEARTBEAT);
                    if !stop.load(Ordering::Relaxed) {
                        let _ = fs::File::options()
                            .write(true)
                            .open(&path)
                            .and_then(|f| f.set_modified(SystemTime::now()));
                    }
                }
            });
        }
        Self { path, stop }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// Whether the holder is gone: its process on this boot of this machine has ended, or the heartbeat has.
fn void(path: &std::path::Path) -> bool {
    let Ok(metadata) = fs::metadata(path) else {
        return true;
    };
    let age = metadata
        .modified()
        .ok()
        .and_then(|m| SystemTime::now().duration_since(m).ok())
        .unwrap_or_default();
    if age > STALE {
        return true;
    }
    let text = fs::read_to_string(path).unwrap_or_default();
    let Some((pid, boot)) = text.split_once(' ') else {
        return age > HEARTBEAT;
    };
    let Ok(pid) = pid.parse::<i32>() else {
        return true;
    };
    // Signal 0 only asks whether the process is there.
    boot == boot_id()
        && pid > 0
        && unsafe { libc::kill(pid, 0) } != 0
        && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}
