//! Weights as files, where a sampling process can read them.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::bail;
use paris_protocol::hash::Hash;

use super::{super::AssembledPart, BlobWork};

/// How long a file stays that no assembly has named since: a sampling process may be about to read it.
const KEPT: Duration = Duration::from_secs(3600);

impl BlobWork {
    /// Exports the weights of every part that is here, and removes what earlier assemblies left.
    pub(in super::super) async fn export_all(&self, parts: &mut [AssembledPart]) {
        for part in parts {
            part.path = self.export(&part.weights).await;
        }
        remove_old(&self.weights_dir);
    }

    /// Writes weights that are in the store to a file. None while they are not here.
    async fn export(&self, weights: &str) -> Option<PathBuf> {
        let path = self.weights_dir.join(format!("{weights}.safetensors"));
        if name(&path).is_ok() {
            return Some(path);
        }
        let hash: Hash = weights.parse().ok()?;
        let exported = async {
            if !self.blobs.has(hash.0).await? {
                bail!("still being fetched");
            }
            tokio::fs::create_dir_all(&self.weights_dir).await?;
            anyhow::Ok(self.blobs.export(hash.0, &path).await?)
        };
        exported.await.inspect_err(|error| tracing::debug!("weights {weights}: {error:#}")).ok().map(|()| path)
    }
}

/// Notes in a file's time of change that it was named now. An error if it is not there.
fn name(path: &Path) -> io::Result<()> {
    File::options().append(true).open(path)?.set_modified(SystemTime::now())
}

/// Removes the files that were not named for a while.
fn remove_old(folder: &Path) {
    let is_old = |path: &Path| {
        let named = path.metadata().and_then(|it| it.modified()).ok();
        named.and_then(|it| it.elapsed().ok()).is_some_and(|age| age > KEPT)
    };
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_file() && is_old(&path) {
            // Another call may have been faster.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_stays_for_an_hour_after_it_was_last_named() {
        let folder = tempfile::tempdir().unwrap();
        let long_ago = SystemTime::now() - 2 * KEPT;
        let [named, forgotten] = ["named", "forgotten"].map(|name| folder.path().join(name));
        for path in [&named, &forgotten] {
            File::create(path).unwrap().set_modified(long_ago).unwrap();
        }
        name(&named).unwrap();
        remove_old(folder.path());
        assert!(named.exists() && !forgotten.exists());
        assert!(name(&forgotten).is_err(), "it has to be exported again");
    }
}
