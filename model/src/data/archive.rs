//! Webdataset archives: a tar whose neighbouring entries with one key make one sample.

use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::picture::FILE_BYTES_MAX;
use super::source::{CAPTION_FILE_BYTES_MAX, Sink, SourceError, at, caption_in_json, is_picture};

/// The entries of one key, as far as they were read.
#[derive(Default)]
struct Group {
    key: String,
    picture: Option<Vec<u8>>,
    text: Option<String>,
    json: Option<Vec<u8>>,
    problem: Option<&'static str>,
}

impl Group {
    fn finish(self, sink: &mut Sink<'_>) -> ControlFlow<()> {
        match (self.picture, self.problem) {
            (_, Some(problem)) => sink.skipped.add(&self.key, problem),
            (Some(picture), None) => {
                let caption = self.text.or_else(|| caption_in_json(&self.json?));
                return sink.offer(&self.key, &picture, caption.as_deref());
            }
            (None, None) if self.text.is_some() => sink.skipped.add(&self.key, "a caption without a picture"),
            (None, None) => {}
        }
        ControlFlow::Continue(())
    }
}

/// Streams one archive into `sink`. A damaged archive gives what stands before the damage, and one skip.
pub(super) fn read(path: &Path, sink: &mut Sink<'_>) -> Result<ControlFlow<()>, SourceError> {
    let mut file = BufReader::new(File::open(path).map_err(at(path))?);
    // Told by content: many a .tar on the web is gzip, and the other way round.
    let zipped = std::io::BufRead::fill_buf(&mut file).map_err(at(path))?.starts_with(&[0x1f, 0x8b]);
    let bytes: Box<dyn Read> = if zipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut archive = tar::Archive::new(bytes);
    let mut group = Group::default();
    for entry in archive.entries().map_err(at(path))? {
        let added = entry.and_then(|entry| add(entry, &mut group, sink));
        match added {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => return Ok(ControlFlow::Break(())),
            Err(error) => {
                sink.skipped.add(&path.display().to_string(), &format!("the archive is damaged from here on: {error}"));
                break;
            }
        }
    }
    Ok(group.finish(sink))
}

/// Takes one entry into the group of its key; a new key hands the group before it on.
fn add(
    mut entry: tar::Entry<'_, impl Read>,
    group: &mut Group,
    sink: &mut Sink<'_>,
) -> std::io::Result<ControlFlow<()>> {
    if !entry.header().entry_type().is_file() {
        return Ok(ControlFlow::Continue(()));
    }
    let path = entry.path()?.to_string_lossy().into_owned();
    let base = path.rfind('/').map_or(0, |slash| slash + 1);
    let Some(dot) = path[base..].find('.').filter(|dot| *dot > 0) else { return Ok(ControlFlow::Continue(())) };
    let (key, ending) = (&path[..base + dot], &path[base + dot + 1..]);
    let mut flow = ControlFlow::Continue(());
    if group.key != key {
        let done = std::mem::replace(group, Group { key: key.to_owned(), ..Group::default() });
        flow = done.finish(sink);
    }
    if flow.is_break() {
        return Ok(flow);
    }
    let last = ending.rsplit('.').next().unwrap_or(ending);
    if is_picture(last) {
        // The first of several pictures of one key is the sample; the others are usually masks or thumbnails.
        if group.picture.is_none() {
            group.picture = bounded(&mut entry, FILE_BYTES_MAX)?;
            group.problem = group.problem.or(group.picture.is_none().then_some("the picture's file is too large"));
        }
    } else if last.eq_ignore_ascii_case("txt") {
        let text = bounded(&mut entry, CAPTION_FILE_BYTES_MAX)?.and_then(|bytes| String::from_utf8(bytes).ok());
        group.problem = group.problem.or(text.is_none().then_some("the caption is too large or not UTF-8"));
        group.text = text;
    } else if last.eq_ignore_ascii_case("json") {
        group.json = bounded(&mut entry, CAPTION_FILE_BYTES_MAX)?;
    }
    Ok(flow)
}

/// The entry's bytes, or nothing where they exceed `limit`.
fn bounded(entry: &mut tar::Entry<'_, impl Read>, limit: u64) -> std::io::Result<Option<Vec<u8>>> {
    let claimed = entry.size();
    if claimed > limit {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    entry.take(limit).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != claimed {
        return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "an entry is cut short"));
    }
    Ok(Some(bytes))
}
