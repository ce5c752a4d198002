//! A folder of pictures: captions from metadata or from files beside the pictures.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::entry::{Content, Encoded, Sink};
use super::metadata::Metadata;
use super::skipped::{Reason, Refusal};
use super::{CAPTION_FILE_BYTES_MAX, SourceError, at, caption_in_json, is_picture};
use crate::data::picture::FILE_BYTES_MAX;
use crate::whole_file::read_whole;

/// How deep folders may lie in each other.
const DEPTH_MAX: usize = 16;

/// The files and folders of a folder, sorted by name.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let entries = std::fs::read_dir(folder).map_err(at(folder))?;
    let mut paths =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(at(folder))?;
    paths.sort();
    Ok(paths)
}

/// Shows `visit` every file below `root` that [`read`] might open, and whether it is a picture.
pub(super) fn look(
    root: &Path,
    visit: &mut dyn FnMut(&Path, bool) -> Result<(), SourceError>,
) -> Result<(), SourceError> {
    let mut waiting = vec![(root.to_owned(), 0)];
    while let Some((folder, depth)) = waiting.pop() {
        for path in list(&folder)? {
            if !enters(&path) {
                if path.is_file() {
                    visit(&path, has_picture_ending(&path))?;
                }
            } else if depth < DEPTH_MAX {
                waiting.push((path, depth + 1));
            }
        }
    }
    Ok(())
}

/// Reads every picture below `root` into `sink`.
pub(super) fn read(root: &Path, sink: &mut Sink<'_>) -> Result<ControlFlow<()>, SourceError> {
    let mut metadata = Metadata::default();
    let flow = walk(root, root, 0, &mut metadata, sink)?;
    if flow.is_break() {
        return Ok(flow);
    }
    metadata
        .left_over(|path| sink.refuse(&name(root, path), Reason::NoPicture, "metadata names it, but it isn't there"))
}

fn walk(
    root: &Path,
    folder: &Path,
    depth: usize,
    metadata: &mut Metadata,
    sink: &mut Sink<'_>,
) -> Result<ControlFlow<()>, SourceError> {
    if depth > DEPTH_MAX {
        return Ok(sink.refuse(&name(root, folder), Reason::Unreadable, "folders lie too deep in each other"));
    }
    let entries = list(folder)?;
    let flow = metadata.add(folder, |table, row| {
        let row = format!("{} row {row}", name(root, table));
        sink.refuse(&row, Reason::BadMetadata, "it has no file_name, or can't be parsed")
    })?;
    if flow.is_break() {
        return Ok(flow);
    }
    for path in entries {
        let flow = if enters(&path) {
            walk(root, &path, depth + 1, metadata, sink)?
        } else if has_picture_ending(&path) && path.is_file() {
            sink.position += 1;
            let listed = metadata.take(&path);
            sink.offer(&name(root, &path), || content(&path, listed.map_or(Ok(None), |row| metadata.caption(row))))
        } else {
            ControlFlow::Continue(())
        };
        if flow.is_break() {
            return Ok(flow);
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// A linked folder isn't entered: links may form a circle.
fn enters(path: &Path) -> bool {
    path.is_dir() && !path.is_symlink()
}

fn has_picture_ending(path: &Path) -> bool {
    path.extension().is_some_and(|ending| is_picture(&ending.to_string_lossy()))
}

/// One picture, with the caption that metadata lists or else the one beside it.
fn content(path: &Path, listed: Result<Option<String>, Refusal>) -> Result<Content, Refusal> {
    let beside = || {
        let text = read_whole(&path.with_extension("txt"), CAPTION_FILE_BYTES_MAX).ok();
        let json = || caption_in_json(&read_whole(&path.with_extension("json"), CAPTION_FILE_BYTES_MAX).ok()?);
        text.and_then(|bytes| String::from_utf8(bytes).ok()).or_else(json)
    };
    let caption = listed?.or_else(beside);
    let encoded = read_whole(path, FILE_BYTES_MAX).map_err(|error| match error.kind() {
        std::io::ErrorKind::FileTooLarge => Refusal::new(Reason::TooLarge, error),
        _ => Refusal::new(Reason::Unreadable, error),
    })?;
    Content::new(Encoded::File(encoded), caption.as_deref())
}

fn name(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}
