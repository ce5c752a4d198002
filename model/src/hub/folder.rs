//! Folders that are whole or absent.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use super::{HubError, io_error};
use crate::whole_file::sync_folder;

/// Lets `fill` write a folder beside its place, makes it durable, and moves it there. Whatever fails or is interrupted, no half of it is ever at `folder`.
///
/// # Errors
/// If there is something at `folder` already, or the operating system refuses.
pub(super) fn write_folder(folder: &Path, fill: impl FnOnce(&Path) -> Result<(), HubError>) -> Result<(), HubError> {
    let is_taken = match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => folder.exists(),
    };
    if is_taken {
        return Err(HubError::Exists(folder.to_owned()));
    }
    let partial = beside(folder)?;
    let written = fill(&partial).and_then(|()| sync(&partial)).and_then(|()| {
        // An empty folder makes way; one that is not there needs not.
        let _ = fs::remove_dir(folder);
        fs::rename(&partial, folder).map_err(io_error(folder))?;
        let above = folder.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync_folder(above).map_err(io_error(above))
    });
    if written.is_err() {
        // What is left is of no use; that it is there is the lesser problem.
        let _ = fs::remove_dir_all(&partial);
    }
    written
}

/// A new folder on the same disk, in place of what an interrupted earlier try left there.
fn beside(folder: &Path) -> Result<PathBuf, HubError> {
    let folder = std::path::absolute(folder).map_err(io_error(folder))?;
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let partial = folder.with_file_name(format!(".{name}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(io_error(&partial))?;
    }
    fs::create_dir_all(&partial).map_err(io_error(&partial))?;
    Ok(partial)
}

/// Puts the files of a folder into another, as links to the same bytes where the disk can. Folders in it are left out: the layout has none.
pub(super) fn link_all(from: &Path, to: &Path) -> Result<(), HubError> {
    fs::create_dir_all(to).map_err(io_error(to))?;
    for entry in fs::read_dir(from).map_err(io_error(from))? {
        let name = entry.map_err(io_error(from))?.file_name();
        // Through links, as caches of downloads have them.
        let source = from.join(&name);
        let source = source.canonicalize().map_err(io_error(source))?;
        if source.is_file() {
            link_or_copy(&source, &to.join(name))?;
        }
    }
    Ok(())
}

/// Copies a file into a folder, which is made if it is not there.
pub(super) fn copy_into(folder: &Path, file: &Path) -> Result<(), HubError> {
    fs::create_dir_all(folder).map_err(io_error(folder))?;
    let name = file.file_name().unwrap_or_default();
    fs::copy(file, folder.join(name)).map(drop).map_err(io_error(file))
}

/// The same bytes under another name.
pub(super) fn link_or_copy(from: &Path, to: &Path) -> Result<(), HubError> {
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).map_err(io_error(to))?;
    }
    Ok(())
}

fn sync(folder: &Path) -> Result<(), HubError> {
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let path = entry.map_err(io_error(folder))?.path();
        match path.is_dir() {
            true => sync(&path)?,
            false => File::open(&path).and_then(|file| file.sync_all()).map_err(io_error(path))?,
        }
    }
    sync_folder(folder).map_err(io_error(folder))
}
