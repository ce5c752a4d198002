//! Webdataset archives: a tar whose neighbouring entries with one key make one sample.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;

use super::entry::{Content, Encoded, Sink};
use super::skipped::{Reason, Refusal};
use super::{CAPTION_FILE_BYTES_MAX, SourceError, at, caption_in_json, is_picture};
use crate::data::picture::FILE_BYTES_MAX;

/// The entries of one key, as far as they were read.
#[derive(Default)]
struct Group {
    key: String,
    picture: Option<Vec<u8>>,
    text: Option<String>,
    json: Option<Vec<u8>>,
    problem: Option<Refusal>,
}

impl Group {
    fn finish(self, sink: &mut Sink<'_>) -> ControlFlow<()> {
        if let Some(problem) = self.problem {
            return sink.refuse(&self.key, problem.reason, problem.detail);
        }
        match self.picture {
            Some(picture) => sink.offer(&self.key, || {
                let caption = self.text.or_else(|| caption_in_json(&self.json?));
                Content::new(Encoded::File(picture), caption.as_deref())
            }),
            None if self.text.is_some() => sink.refuse(&self.key, Reason::NoPicture, "a caption alone"),
            None => ControlFlow::Continue(()),
        }
    }
}

/// Counts the bytes that pass.
struct Counted<R>(R, Rc<Cell<u64>>);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.0.read(into)?;
        self.1.set(self.1.get() + read as u64);
        Ok(read)
    }
}

/// Streams one archive into `sink`. A damaged archive gives what stands before the damage, and one skip.
pub(super) fn read(path: &Path, sink: &mut Sink<'_>) -> Result<ControlFlow<()>, SourceError> {
    let passed = Rc::new(Cell::new(0));
    let before = sink.position;
    let mut file = BufReader::new(Counted(File::open(path).map_err(at(path))?, passed.clone()));
    // Told by content: many a .tar on the web is gzip, and the other way round.
    let zipped = std::io::BufRead::fill_buf(&mut file).map_err(at(path))?.starts_with(&[0x1f, 0x8b]);
    let bytes: Box<dyn Read> = if zipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut archive = tar::Archive::new(bytes);
    let mut group = Group::default();
    for entry in archive.entries().map_err(at(path))? {
        sink.position = before + passed.get();
        let added = entry.and_then(|entry| add(entry, &mut group, sink));
        match added {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => return Ok(ControlFlow::Break(())),
            Err(error) => {
                let flow = group.finish(sink);
                let refused = || sink.refuse(&path.display().to_string(), Reason::Damaged, error);
                return Ok(if flow.is_break() { flow } else { refused() });
            }
        }
    }
    sink.position = before + passed.get();
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
            if group.picture.is_none() {
                let detail = format!("a file of more than {FILE_BYTES_MAX} bytes");
                group.problem.get_or_insert_with(|| Refusal::new(Reason::TooLarge, detail));
            }
        }
    } else if last.eq_ignore_ascii_case("txt") {
        let text = bounded(&mut entry, CAPTION_FILE_BYTES_MAX)?.and_then(|bytes| String::from_utf8(bytes).ok());
        if text.is_none() {
            group.problem.get_or_insert_with(|| Refusal::new(Reason::BadCaption, "too large, or not UTF-8"));
        }
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
