//! What the allocator keeps. Reading ten thousand manifests and writing the snapshot need much memory
//! for a moment, on several threads; glibc would keep it, an arena a thread.

/// One arena for all threads: none of them allocates on a hot path that another shares.
pub fn prepare() {
    #[cfg(target_env = "gnu")]
    // SAFETY: called before any other thread is started; the option is one glibc knows.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives free memory back to the kernel.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes only free memory, and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
