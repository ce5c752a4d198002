//! Files that are whole or absent, whenever the program is killed.

use std::{fs::File, io::Write, path::Path};

use anyhow::Context;

/// Writes beside, brings it to the disk, and renames.
pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().context("a file lies in a folder")?;
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        // Only Unix can sync a folder.
        if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
    };
    write().with_context(|| format!("writing {}", path.display()))
}
