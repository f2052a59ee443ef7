//! What the kernel says about this process.

use std::fs;

/// Bytes of memory that this process has in use.
pub(crate) fn resident_memory_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let page = u64::try_from(rustix::param::page_size()).ok()?;
    pages.checked_mul(page)
}

/// Descriptors that this process has open.
pub(crate) fn open_fds() -> Option<u64> {
    let open = fs::read_dir("/proc/self/fd").ok()?.count();
    // One of them is the directory.
    u64::try_from(open.saturating_sub(1)).ok()
}
