//! Room on the disk.

use std::path::Path;

/// Bytes that this user may still write to the disk of `path`; none where the system does not tell.
#[cfg(unix)]
pub fn free_bytes(path: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(path).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Bytes that this user may still write to the disk of `path`; none where the system does not tell.
#[cfg(not(unix))]
pub fn free_bytes(_path: &Path) -> Option<u64> {
    None
}
