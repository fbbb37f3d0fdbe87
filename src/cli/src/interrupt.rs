//! Ctrl-C: the first asks the run to stop, the second ends the program at once.

use std::sync::atomic::{AtomicBool, Ordering};

use engine::event::{Event, Sink, What};

/// Set by the first SIGINT or SIGTERM. Whoever reacted to it may clear it again.
pub(crate) static STOP: AtomicBool = AtomicBool::new(false);

/// Set while the program waits for a person: then nothing needs to be brought to an end first.
pub(crate) static AT_REST: AtomicBool = AtomicBool::new(false);

/// Work begins with the plan: until then sources are looked at and fetched, which may end at any moment and goes on from there.
pub(crate) struct WorkBegins;

impl Sink for WorkBegins {
    fn emit(&mut self, event: &Event) {
        if matches!(event.what, What::Planned { .. }) {
            AT_REST.store(false, Ordering::SeqCst);
        }
    }
}

/// From now on SIGINT and SIGTERM set [`STOP`]; a second one while it is set, or one while
/// [`AT_REST`] is, ends the program with 130.
pub(crate) fn watch() {
    // SAFETY: the handler calls nothing but an atomic swap and `_exit`, both of which are async-signal-safe; the struct is
    // plain old data for which zeroes are valid.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGINT, &action, std::ptr::null_mut());
        libc::sigaction(libc::SIGTERM, &action, std::ptr::null_mut());
    }
}

extern "C" fn handle(_signal: libc::c_int) {
    if STOP.swap(true, Ordering::SeqCst) || AT_REST.load(Ordering::SeqCst) {
        // SAFETY: `_exit` may be called from a signal handler. Nothing half-written is ever visible in the cache.
        unsafe { libc::_exit(130) }
    }
}
