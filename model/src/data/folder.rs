//! A folder of pictures: captions from `metadata.jsonl` or from files beside the pictures.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::picture::FILE_BYTES_MAX;
use super::source::{CAPTION_FILE_BYTES_MAX, Sink, SourceError, at, caption_field, caption_in_json, is_picture};

/// How deep folders may lie in each other.
const DEPTH_MAX: usize = 16;
const METADATA: &str = "metadata.jsonl";

/// The files and folders of a folder, sorted by name.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let entries = std::fs::read_dir(folder).map_err(at(folder))?;
    let mut paths =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(at(folder))?;
    paths.sort();
    Ok(paths)
}

/// Reads every picture below `root` into `sink`.
pub(super) fn read(root: &Path, sink: &mut Sink<'_>) -> Result<ControlFlow<()>, SourceError> {
    let mut listed = HashMap::new();
    let flow = walk(root, root, 0, &mut listed, sink)?;
    if flow.is_continue() {
        let mut absent: Vec<_> = listed.into_keys().collect();
        absent.sort();
        for path in absent {
            sink.skipped.add(&name(root, &path), "metadata.jsonl names it, but no such picture is there");
        }
    }
    Ok(flow)
}

fn walk(
    root: &Path,
    folder: &Path,
    depth: usize,
    listed: &mut HashMap<PathBuf, Option<String>>,
    sink: &mut Sink<'_>,
) -> Result<ControlFlow<()>, SourceError> {
    if depth > DEPTH_MAX {
        sink.skipped.add(&name(root, folder), "folders lie too deep in each other");
        return Ok(ControlFlow::Continue(()));
    }
    let entries = list(folder)?;
    if entries.iter().any(|entry| entry.ends_with(METADATA)) {
        read_metadata(root, folder, listed, sink)?;
    }
    for path in entries {
        // A linked folder isn't entered: links may form a circle.
        let flow = if path.is_dir() && !path.is_symlink() {
            walk(root, &path, depth + 1, listed, sink)?
        } else if path.extension().is_some_and(|ending| is_picture(&ending.to_string_lossy())) && path.is_file() {
            offer(root, &path, listed.remove(&path), sink)
        } else {
            ControlFlow::Continue(())
        };
        if flow.is_break() {
            return Ok(flow);
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Hands one picture on, with the caption that metadata lists or else the one beside it.
fn offer(root: &Path, path: &Path, listed: Option<Option<String>>, sink: &mut Sink<'_>) -> ControlFlow<()> {
    let beside = || {
        let text = bounded(&path.with_extension("txt"), CAPTION_FILE_BYTES_MAX).ok();
        let json = || caption_in_json(&bounded(&path.with_extension("json"), CAPTION_FILE_BYTES_MAX).ok()?);
        text.and_then(|bytes| String::from_utf8(bytes).ok()).or_else(json)
    };
    let caption = listed.flatten().or_else(beside);
    match bounded(path, FILE_BYTES_MAX) {
        Ok(encoded) => sink.offer(&name(root, path), &encoded, caption.as_deref()),
        Err(error) => {
            sink.skipped.add(&name(root, path), &format!("can't read it: {error}"));
            ControlFlow::Continue(())
        }
    }
}

/// Adds the captions of one `metadata.jsonl`. Names in it count from its folder; they are only compared with files that
/// the walk finds, so none of them can lead out of the source.
fn read_metadata(
    root: &Path,
    folder: &Path,
    listed: &mut HashMap<PathBuf, Option<String>>,
    sink: &mut Sink<'_>,
) -> Result<(), SourceError> {
    let path = folder.join(METADATA);
    let mut lines = BufReader::new(File::open(&path).map_err(at(&path))?);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = lines.by_ref().take(CAPTION_FILE_BYTES_MAX).read_until(b'\n', &mut line).map_err(at(&path))?;
        if read == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let value: Option<serde_json::Value> = serde_json::from_slice(&line).ok();
        let file_name = value.as_ref().and_then(|value| value.get("file_name")?.as_str());
        match (&value, file_name) {
            (Some(value), Some(file_name)) => {
                listed.insert(folder.join(file_name), caption_field(value));
            }
            _ => sink.skipped.add(&format!("{} line {number}", name(root, &path)), "no JSON object with a file_name"),
        }
    }
    Ok(())
}

/// A whole file, or an error where it is larger than `limit`.
fn bounded(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, format!("it is larger than {limit} bytes")));
    }
    Ok(bytes)
}

fn name(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}
