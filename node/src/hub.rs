//! Published mixtures on the hub: downloaded into the cache that all of the hub's tools share, by the hub's own client.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{Api, ApiBuilder, ApiError, ApiRepo},
};

/// What stands before the name of a repository on the hub.
pub const PREFIX: &str = "hub:";
/// How often a file is asked for. Each time it goes on where the last one broke off.
const TRIES: u32 = 4;
/// Before a file is asked for again; twice as long each time.
const PAUSE: Duration = Duration::from_millis(500);
/// Folders whose files are downloaded, beside `expert_0` and so on.
const FOLDERS: [&str; 4] = ["router", "vae", "text_encoder", "tokenizer"];
/// Files in formats of others that a repository may offer beside those that are read.
const UNREAD: [&str; 7] = [".bin", ".pt", ".ckpt", ".msgpack", ".h5", ".onnx", ".gguf"];

/// A repository on the hub, written `hub:OWNER/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    owner: String,
    name: String,
}

impl Repository {
    /// Its name without its owner's.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

impl FromStr for Repository {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_name = |name: &str| {
            let known = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
            !name.is_empty() && !name.starts_with('.') && name.chars().all(known)
        };
        match text.strip_prefix(PREFIX).and_then(|id| id.split_once('/')) {
            Some((owner, name)) if is_name(owner) && is_name(name) => {
                Ok(Self { owner: owner.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("{text:?} names no repository: {PREFIX}OWNER/NAME does")),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.id())
    }
}

/// A mixture that cannot be downloaded.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The hub cannot be reached, or refuses.
    #[error(
        "{repository} cannot be downloaded: {error}.\nWhat is here already is kept, and the same command goes on from there. Without a way to the hub: on a \
         machine that has one, `hf download {id} --local-dir DIR`, carry DIR here, and say DIR instead of {repository}. A private repository needs a token \
         (`hf auth login`); a mirror of the hub can be named in the environment variable HF_ENDPOINT",
        id = .repository.id()
    )]
    Download {
        /// The repository.
        repository: Repository,
        /// What went wrong.
        error: String,
    },
    /// There is no mixture in it.
    #[error("{repository} is no mixture in the published layout: it has no {missing}")]
    Layout {
        /// The repository.
        repository: Repository,
        /// What is missing.
        missing: &'static str,
    },
}

/// The hub as this machine reaches it.
pub struct Hub {
    api: Api,
    cache: Cache,
}

/// A mixture that was downloaded.
#[derive(Debug, PartialEq, Eq)]
pub struct Downloaded {
    /// Where its files lie together, in the published layout.
    pub folder: PathBuf,
    /// Why the hub was not asked for a newer one, if it was not.
    pub stale: Option<String>,
}

impl Hub {
    /// The hub and the cache that the environment names (`HF_ENDPOINT`, `HF_HOME`), or the usual ones.
    pub fn from_env() -> Result<Self, ApiError> {
        Ok(Self { api: ApiBuilder::from_env().build()?, cache: Cache::from_env() })
    }

    /// Another hub, and a cache of its own; quiet.
    pub fn at(endpoint: &str, cache: &Path) -> Result<Self, ApiError> {
        let cache = Cache::new(cache.to_owned());
        let builder = ApiBuilder::from_cache(cache.clone()).with_endpoint(endpoint.to_owned());
        Ok(Self { api: builder.with_progress(false).build()?, cache })
    }

    /// Downloads the newest version of a mixture, as far as it is not here. If the hub cannot be asked, the version that was downloaded last will do.
    ///
    /// # Errors
    /// If files are missing and cannot be had, or the repository holds no mixture. What was downloaded stays, and is gone on with the next time.
    pub fn download(&self, repository: &Repository) -> Result<Downloaded, DownloadError> {
        let newest = self.api.repo(main(repository)).info();
        let info = match (newest, self.cache.repo(main(repository)).get("config.json")) {
            (Ok(info), _) => info,
            (Err(error), Some(config)) => {
                let folder = config.parent().unwrap_or(Path::new(".")).to_owned();
                return Ok(Downloaded { folder, stale: Some(said(&error)) });
            }
            (Err(error), None) => return Err(failed(repository, said(&error))),
        };
        let files: BTreeSet<_> = info.siblings.into_iter().map(|it| it.rfilename).filter(|it| is_read(it)).collect();
        for needed in ["config.json", "expert_0/config.json", "router/config.json"] {
            if !files.contains(needed) {
                return Err(DownloadError::Layout { repository: repository.clone(), missing: needed });
            }
        }
        if info.sha.is_empty() || !info.sha.bytes().all(|letter| letter.is_ascii_hexdigit()) {
            return Err(failed(repository, format!("the hub names the version {:?}, which is no hash", info.sha)));
        }
        // All files of one version, whatever is published meanwhile.
        let version = Repo::with_revision(repository.id(), RepoType::Model, info.sha.clone());
        let (here, there) = (self.cache.repo(version.clone()), self.api.repo(version));
        let mut folder = None;
        for file in &files {
            let path = match here.get(file) {
                Some(path) => path,
                None => persistently(&there, file)
                    .map_err(|error| failed(repository, format!("{file}: {}", said(&error))))?,
            };
            if file == "config.json" {
                folder = path.parent().map(Path::to_owned);
            }
        }
        // Only a whole version is what the next one falls back on.
        let noted = self.cache.repo(main(repository)).create_ref(&info.sha);
        noted.map_err(|error| failed(repository, error.to_string()))?;
        Ok(Downloaded { folder: folder.unwrap_or_default(), stale: None })
    }
}

fn main(repository: &Repository) -> Repo {
    Repo::new(repository.id(), RepoType::Model)
}

fn failed(repository: &Repository, error: String) -> DownloadError {
    DownloadError::Download { repository: repository.clone(), error }
}

/// A file, asked for again when the line broke. The client's own retries lose their place when the first of them fails at once, so they are not used.
fn persistently(repository: &ApiRepo, file: &str) -> Result<PathBuf, ApiError> {
    let mut pause = PAUSE;
    for _ in 1..TRIES {
        match repository.download(file) {
            Err(error) if may_pass(&error) => tracing::warn!("{file}: {}; trying again", said(&error)),
            done => return done,
        }
        std::thread::sleep(pause);
        pause *= 2;
    }
    repository.download(file)
}

/// True if asking again may help.
fn may_pass(error: &ApiError) -> bool {
    !matches!(status(error), Some(400..500))
}

/// What the hub answered, if it did.
fn status(error: &ApiError) -> Option<u16> {
    // The client does not show its own client's types; its words are all there is.
    let ApiError::RequestError(error) = error else { return None };
    error.to_string().strip_prefix("http status: ")?.parse().ok()
}

/// An error in words, with what is likely behind it.
fn said(error: &ApiError) -> String {
    match status(error) {
        Some(401 | 403) => "the hub says that it is private, gated or not there".to_owned(),
        Some(404) => "the hub says that it is not there".to_owned(),
        _ => error.to_string(),
    }
}

/// True for a file of the published layout. Names come from a stranger: none leads out of the folder.
fn is_read(file: &str) -> bool {
    let steps: Vec<&str> = file.split('/').collect();
    let is_plain = |step: &&str| !step.is_empty() && !step.starts_with('.') && !step.contains(['\\', ':']);
    if !steps.iter().all(is_plain) || UNREAD.iter().any(|ending| file.ends_with(ending)) {
        return false;
    }
    match steps[..] {
        [file] => ["config.json", "model_index.json"].contains(&file),
        [folder, _] => {
            let number = folder.strip_prefix("expert_").map(str::parse::<u16>);
            FOLDERS.contains(&folder) || matches!(number, Some(Ok(_)))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_named_by_owner_and_name() {
        let repository: Repository = "hub:bageldotcom/paris".parse().unwrap();
        assert_eq!((repository.to_string().as_str(), repository.name()), ("hub:bageldotcom/paris", "paris"));
        for wrong in ["bageldotcom/paris", "hub:paris", "hub:a/b/c", "hub:../x", "hub:a/..", "hub:a b/c", "hub:/x"] {
            assert!(wrong.parse::<Repository>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_files_of_the_layout_are_downloaded_and_none_leads_out_of_it() {
        for file in ["config.json", "expert_7/config.json", "router/pytorch_model.safetensors", "tokenizer/merges.txt"]
        {
            assert!(is_read(file), "{file}");
        }
        for file in ["README.md", "expert_x/config.json", "../config.json", "router/../../x", "/etc/passwd", "vae/.git"]
        {
            assert!(!is_read(file), "{file}");
        }
        assert!(!is_read("text_encoder/pytorch_model.bin") && !is_read("samples/a.png") && !is_read("vae\\x/y"));
    }
}
