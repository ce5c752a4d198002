//! Files that are there whole or not at all, whenever the program or the machine stops.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

/// What the names of files begin with that are being written.
const UNFINISHED: &str = ".unfinished-";

/// Writes a file beside its place, brings it to the disk, and renames it; its folder is made if it is not there. Who may read it is for the process to say, as
/// with any file.
///
/// # Errors
/// Where the disk refuses, with the path; what was there before is then still there.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(path, bytes, false)
}

/// As [`write_whole`], and only its owner may read it.
///
/// # Errors
/// As [`write_whole`].
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(path, bytes, true)
}

fn write(path: &Path, bytes: &[u8], is_private: bool) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let write = || {
        fs::create_dir_all(folder)?;
        let mut unfinished = tempfile::Builder::new();
        unfinished.prefix(UNFINISHED);
        // Only its owner may read a temporary file if nothing else is said.
        #[cfg(unix)]
        if !is_private {
            unfinished.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        }
        let mut file = unfinished.tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        sync_folder(folder)
    };
    write().map_err(|error: io::Error| io::Error::new(error.kind(), format!("writing {}: {error}", path.display())))
}

/// Reads a file of at most so many bytes.
///
/// # Errors
/// Where it cannot be read, or is larger ([`io::ErrorKind::FileTooLarge`]).
pub(crate) fn read_whole(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > bytes_max {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {bytes_max} bytes"))),
        false => Ok(bytes),
    }
}

/// Brings the names in a folder to the disk. Only Unix can.
///
/// # Errors
/// Where the disk refuses.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Removes what is left in a folder where the process was killed while it wrote.
pub(crate) fn remove_unfinished(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/file");
        write_whole(&path, b"first").unwrap();
        write_whole(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert!(write_whole(Path::new("/proc/no/such"), b"").is_err());
    }

    #[cfg(unix)]
    #[test]
    fn others_may_read_a_file_unless_it_is_private() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        File::create(at("usual")).unwrap();
        write_whole(&at("shown"), b"").unwrap();
        write_private(&at("secret"), b"").unwrap();
        let mode = |name: &str| fs::metadata(at(name)).unwrap().mode() & 0o777;
        assert_eq!((mode("shown"), mode("secret")), (mode("usual"), 0o600));
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".unfinished-x", "unfinished", "file"] {
            fs::write(folder.path().join(name), b"").unwrap();
        }
        remove_unfinished(folder.path()).unwrap();
        assert!(folder.path().join("file").exists() && folder.path().join("unfinished").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
