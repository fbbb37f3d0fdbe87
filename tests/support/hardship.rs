//! Machines that have no room, and caches that can't be written.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use super::{Kitchen, program};

/// Lets a command write no file longer than `bytes`: what a full disk looks like to a program, at a point of our choice.
pub fn limited(command: &mut Command, bytes: u64) -> &mut Command {
    // SAFETY: both calls are async-signal-safe and touch nothing of ours.
    unsafe {
        command.pre_exec(move || {
            let limit = libc::rlimit {
                rlim_cur: bytes,
                rlim_max: bytes,
            };
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
    }
}

/// Lets everybody read below `folder`, and nobody write.
pub fn seal(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => seal(&path),
            false => fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap(),
        }
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o555)).unwrap();
}

/// Lets the owner write again.
pub fn unseal(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    for entry in fs::read_dir(folder)
        .unwrap()
        .flatten()
        .filter(|e| e.path().is_dir())
    {
        unseal(&entry.path());
    }
}

/// `levain` in the kitchen, bound by permissions. Root is bound by none, so it runs as another user then, from a place where that
/// user can reach it.
pub fn bound(kitchen: &Kitchen) -> Command {
    let own = kitchen.path().join("levain");
    if !own.exists() {
        fs::copy(env!("CARGO_BIN_EXE_levain"), &own).unwrap();
    }
    fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(kitchen.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = program(&own);
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } == 0 {
        command.uid(65534).gid(65534);
    }
    command.current_dir(kitchen.path());
    command
}
