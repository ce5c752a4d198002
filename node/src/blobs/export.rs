//! Blobs as files: copies outside the store, and the store's own.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use iroh_blobs::Hash;
use iroh_blobs::store::fs::options::InlineOptions;

use super::{Blobs, BlobsError, Hash32};

/// What the names of folders begin with in which exports are written.
const UNFINISHED: &str = ".export-";

impl Blobs {
    /// Writes a blob to `path`: the whole, verified and on disk, or nothing. Replaces a file that is there. A blob that turns out to be damaged
    /// counts as missing from then on, as with [`Blobs::bytes`].
    pub async fn export(&self, hash: Hash32, path: &Path) -> Result<(), BlobsError> {
        if !self.has(hash).await? {
            return Err(BlobsError::Missing { hash: Hash::from(hash) });
        }
        let path = std::path::absolute(path).map_err(|error| BlobsError::file(path, error))?;
        let parent = path.parent().unwrap_or(Path::new("/")).to_path_buf();
        let failed = |error: io::Error| BlobsError::file(&path, error);
        let beside = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(&parent).map_err(failed)?;
        let partial = beside.path().join("blob");
        self.store.export(hash, &partial).finish().await.map_err(|error| BlobsError::file(&path, error))?;
        let target = path.clone();
        let written = tokio::task::spawn_blocking(move || settle(&partial, &target, &parent, hash)).await;
        match written.map_err(io::Error::other).and_then(|settled| settled).map_err(failed)? {
            true => Ok(()),
            false => Err(self.mark_damaged(hash.into(), "the exported bytes have another hash".into())),
        }
    }

    /// A file with a blob's bytes, hashed once more, to read and never to write. It is the store's own, so that nothing is copied, and stays as long as
    /// the blob carries a tag. A blob so small that the store keeps it in its database is exported to `folder`, and stays there.
    ///
    /// # Errors
    /// As [`Blobs::bytes`].
    pub async fn file(&self, hash: Hash32, folder: &Path) -> Result<PathBuf, BlobsError> {
        let size = self.size(hash).await?.ok_or(BlobsError::Missing { hash: Hash::from(hash) })?;
        if size <= InlineOptions::default().max_data_inlined {
            let path = folder.join(Hash::from(hash).to_hex());
            tokio::fs::create_dir_all(folder).await.map_err(|error| BlobsError::file(folder, error))?;
            return self.export(hash, &path).await.map(|()| path);
        }
        let path = self.paths.data_path(&Hash::from(hash));
        let file = path.clone();
        let hashed = tokio::task::spawn_blocking(move || has_hash(&File::open(file)?, hash)).await;
        match hashed.map_err(io::Error::other).and_then(|hashed| hashed) {
            Ok(true) => Ok(path),
            Ok(false) => Err(self.mark_damaged(hash.into(), "the bytes have another hash".into())),
            Err(error) => Err(self.mark_damaged(hash.into(), format!("{}: {error}", path.display()))),
        }
    }
}

/// Removes what exports to a folder have left that did not end. Nothing may be under way there.
pub fn remove_unfinished_exports(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED)
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            tracing::warn!("{} is of no use and stays on disk: {error}", entry.path().display());
        }
    }
}

/// Checks an exported file, puts it on disk and gives it its name. False if its bytes are not those of `hash`.
fn settle(partial: &Path, target: &Path, parent: &Path, hash: Hash32) -> io::Result<bool> {
    let file = File::open(partial)?;
    if !has_hash(&file, hash)? {
        return Ok(false);
    }
    file.sync_all()?;
    std::fs::rename(partial, target)?;
    paris_model::whole_file::sync_folder(parent)?;
    Ok(true)
}

fn has_hash(file: &File, hash: Hash32) -> io::Result<bool> {
    Ok(blake3::Hasher::new().update_reader(file)?.finalize() == hash)
}
