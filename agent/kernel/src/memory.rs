//! The allocator's settings: memory that is no longer used goes back to the kernel.
#![cfg_attr(
    all(target_os = "linux", target_env = "gnu"),
    expect(unsafe_code, reason = "mallopt(3) has no safe binding")
)]

/// The number of memory pools: one for all threads. By default glibc makes up to eight per core (mallopt(3),
/// `M_ARENA_MAX`), each of which keeps the peak of what was ever computed on it. A daemon whose threads seldom compute
/// at once loses nothing.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS: libc::c_int = 1;
/// Bytes free at the end of the heap from which they are given back. This is glibc's own first value, which it
/// otherwise raises with every large block that is freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const TRIM_FROM: libc::c_int = 128 * 1024;
/// Bytes from which a block is mapped on its own and given back when freed. This is below glibc's first value (128
/// KiB), as vectors of some thousand peers are about that large.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAP_FROM: libc::c_int = 64 * 1024;

/// Makes freed memory go back to the kernel from now on: with 8,000 peers a pass needs twice the memory that is kept
/// between passes. Call this first, before there are threads. It does nothing where the C library is not glibc.
pub fn give_back_what_is_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, ARENAS), (libc::M_TRIM_THRESHOLD, TRIM_FROM), (libc::M_MMAP_THRESHOLD, MAP_FROM)]
    {
        // SAFETY: it takes two integers, and refuses parameters it does not know.
        unsafe { libc::mallopt(parameter, value) };
    }
}
