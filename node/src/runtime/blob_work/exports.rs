//! Weights as files, where a sampling process can read them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::bail;
use paris_protocol::hash::Hash;

use super::{super::AssembledPart, BlobWork};

/// How long exported weights are kept when they are needed no more.
const KEPT: Duration = Duration::from_secs(3600);

impl BlobWork {
    /// Exports the weights of every part that is here, and removes what earlier assemblies left.
    pub(in super::super) async fn export_all(&self, parts: &mut [AssembledPart]) {
        let mut named = Vec::new();
        for part in parts {
            part.path = self.export(&part.weights).await;
            named.extend(part.path.clone());
        }
        remove_old(&self.weights_dir, &named);
    }

    /// Writes weights that are in the store where a sampling process can read them. None while they are not here.
    async fn export(&self, weights: &str) -> Option<PathBuf> {
        let path = self.weights_dir.join(format!("{weights}.safetensors"));
        if path.exists() {
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

/// Removes exported weights that no assembly has named for a while; a sampling process may still read the last ones.
fn remove_old(folder: &Path, named: &[PathBuf]) {
    let is_old = |path: &Path| {
        let modified = path.metadata().and_then(|it| it.modified()).ok();
        modified.and_then(|it| it.elapsed().ok()).is_some_and(|age| age > KEPT)
    };
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_file() && !named.contains(&path) && is_old(&path) {
            // Another call may have been faster.
            let _ = std::fs::remove_file(path);
        }
    }
}
