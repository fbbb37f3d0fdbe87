//! How memory is asked for. A plan of a thousand stages takes some ten megabytes, and by default the system is asked for them in
//! small steps and hands them over page by page, which takes longer than to fill them.

/// What is asked for at first, and again where it is used up. What is not touched costs nothing.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const STEP: usize = 16 << 20;
/// The size of a huge page on most machines.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const HUGE: usize = 2 << 20;

/// Asks for memory in large steps and huge pages from here on, where the C library is one that can be told so.
pub(crate) fn in_large_steps() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let mut first: Vec<u8> = Vec::new();
        // SAFETY: `mallopt` sets numbers, and no other thread runs yet. The advice changes no byte and is about whole pages inside
        // of `first`; what the system thinks of it does not matter.
        unsafe {
            libc::mallopt(libc::M_TOP_PAD, STEP as libc::c_int);
            libc::mallopt(libc::M_MMAP_THRESHOLD, 2 * STEP as libc::c_int);
            libc::mallopt(libc::M_TRIM_THRESHOLD, 4 * STEP as libc::c_int);
            if first.try_reserve_exact(STEP).is_ok() {
                let start = first.as_mut_ptr();
                let inside = start.add(start.align_offset(HUGE));
                libc::madvise(inside.cast(), STEP - HUGE, libc::MADV_HUGEPAGE);
            }
        }
        // The allocator keeps what is freed here, and gives it out from now on.
    }
}
