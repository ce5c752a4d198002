//! Mixtures that belong to no run: folders in the published layout, the hub's, and those that were imported under a name.

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, bail};
use paris_model::hub::Published;

use crate::{
    hub::{Hub, PREFIX, Repository},
    store::DataDir,
};

/// Where a mixture is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// On the hub.
    Hub(Repository),
    /// A folder, or the name of an imported mixture.
    Here(String),
}

impl FromStr for ModelSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.starts_with(PREFIX) {
            true => Ok(Self::Hub(text.parse()?)),
            false => Ok(Self::Here(text.to_owned())),
        }
    }
}

impl ModelSource {
    /// The name to import it under if no other is given: the repository's, or the folder's.
    pub fn name(&self) -> anyhow::Result<String> {
        match self {
            Self::Hub(repository) => Ok(repository.name().to_owned()),
            Self::Here(folder) => {
                let folder = Path::new(folder).canonicalize().with_context(|| folder.clone())?;
                let name = folder.file_name().context("this folder has no name: give one with --name")?;
                Ok(name.to_string_lossy().into_owned())
            }
        }
    }

    /// Opens the mixture; from the hub it is downloaded first, as far as it is not here.
    pub fn open(&self, dir: &DataDir) -> anyhow::Result<Published> {
        let folder = match self {
            Self::Hub(repository) => downloaded(repository)?,
            Self::Here(text) => here(dir, text)?,
        };
        Ok(Published::open(&folder)?)
    }
}

fn downloaded(repository: &Repository) -> anyhow::Result<PathBuf> {
    let downloaded = Hub::from_env()?.download(repository)?;
    if let Some(reason) = downloaded.stale {
        eprintln!("the hub cannot be asked ({reason}): taking the {repository} that was downloaded last");
    }
    Ok(downloaded.folder)
}

/// The folder that is meant: an imported mixture's, or the one that is said.
fn here(dir: &DataDir, text: &str) -> anyhow::Result<PathBuf> {
    if is_name(text) && dir.models_path().join(text).is_dir() {
        return Ok(dir.models_path().join(text));
    }
    if Path::new(text).is_dir() {
        return Ok(text.into());
    }
    let names = names(dir);
    let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    bail!(
        "{text} is neither a folder nor an imported mixture (there are: {known}). `paris-node import DIR` imports one; {PREFIX}OWNER/NAME is one of the hub's"
    )
}

/// The names of the imported mixtures.
fn names(dir: &DataDir) -> Vec<String> {
    let entries = fs::read_dir(dir.models_path()).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.filter_map(|it| it.file_name().into_string().ok()).filter(|it| is_name(it)).collect();
    names.sort_unstable();
    names
}

/// Copies a mixture into the data directory, where it can be named. Its weights are all read first.
pub fn import(
    dir: &DataDir,
    published: &Published,
    name: &str,
    heard: &mut dyn FnMut(&Path),
) -> anyhow::Result<PathBuf> {
    if !is_name(name) {
        bail!("{name:?} is no name for a mixture: letters, digits, '-', '_' and '.' make one. Give one with --name");
    }
    let folder = dir.models_path().join(name);
    if folder.exists() {
        bail!(
            "there is a mixture {name} already, in {}: give another --name, or remove that folder first",
            folder.display()
        );
    }
    published.check_numbers(heard)?;
    published.copy_to(&folder)?;
    Ok(folder)
}

fn is_name(text: &str) -> bool {
    let known = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    !text.starts_with('.') && !text.is_empty() && text.len() <= 100 && text.chars().all(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixture_that_is_nowhere_is_answered_with_those_that_are_here() {
        let root = tempfile::tempdir().unwrap();
        let dir = DataDir::new(root.path());
        let said = |text: &str| text.parse::<ModelSource>().unwrap().open(&dir).unwrap_err().to_string();
        assert!(said("hearts").contains("there are: none"), "{}", said("hearts"));
        // A folder of that name that holds something else is told as such.
        for name in ["boats", "stars", ".half.partial"] {
            fs::create_dir_all(dir.models_path().join(name)).unwrap();
        }
        assert!(said("hearts").contains("there are: boats, stars)"), "{}", said("hearts"));
        assert!(said("boats").contains("expert_0/: is missing"), "{}", said("boats"));
        assert!("hub:paris".parse::<ModelSource>().unwrap_err().contains("hub:OWNER/NAME"));
    }
}
