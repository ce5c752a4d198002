//! The idx files of MNIST and its relatives: grey images in one file, their class numbers in another.
//!
//! Big-endian: two zero bytes, the type (8 for bytes), the number of dimensions; then each dimension as u32; then the values.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::entry::{Content, Encoded, Sink};
use super::skipped::{Reason, Refusal};
use super::{SourceError, at, class_caption};
use crate::data::shard::SIDE_MAX;

/// Whether a file of this name, in lower case, holds the images of such a pair.
pub(super) fn is_images(name: &str) -> bool {
    let name = name.strip_suffix(".gz").unwrap_or(name);
    name.contains("images") && (name.contains("idx3") || name.ends_with(".idx"))
}

/// How many pictures a file of images says it holds.
pub(super) fn pictures(images: &Path) -> Result<u64, SourceError> {
    let labels = labels_of(images)?;
    let (_, [count, ..]) = open::<3>(images)?;
    let (_, [labelled]) = open::<1>(&labels)?;
    if count != labelled {
        let reason = format!("it has {count} pictures, and {} has {labelled} labels", labels.display());
        return Err(SourceError::Malformed { path: images.to_owned(), reason });
    }
    Ok(u64::from(count))
}

/// Streams one file of images and the labels beside it into `sink`.
pub(super) fn read(images: &Path, names: &[String], sink: &mut Sink<'_>) -> Result<ControlFlow<()>, SourceError> {
    let (mut pixels, [count, height, width]) = open::<3>(images)?;
    let (mut labels, _) = open::<1>(&labels_of(images)?)?;
    let file = images.file_name().unwrap_or_default().to_string_lossy();
    for number in 0..count {
        let mut picture = vec![0; height as usize * width as usize];
        let mut label = [0];
        let read = pixels.read_exact(&mut picture).and_then(|()| labels.read_exact(&mut label));
        sink.position += 1;
        let flow = match read {
            Ok(()) => sink.offer(&format!("{file} {number}"), || {
                Content::new(Encoded::Grey(picture, width), Some(&class_caption(names, u64::from(label[0]))))
            }),
            Err(error) => {
                let lost = Refusal::new(Reason::Damaged, format!("at picture {number} of {count}: {error}"));
                return Ok(sink.offer(&images.display().to_string(), || Err(lost)));
            }
        };
        if flow.is_break() {
            return Ok(flow);
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The file of labels that belongs to a file of images: zipped or not, `images` and `idx3` in its name exchanged.
fn labels_of(images: &Path) -> Result<PathBuf, SourceError> {
    let name =
        images.file_name().unwrap_or_default().to_string_lossy().replace("images", "labels").replace("idx3", "idx1");
    let plain = name.strip_suffix(".gz").unwrap_or(&name);
    let candidates = [name.clone(), plain.to_owned(), format!("{plain}.gz")];
    let found = candidates.iter().map(|name| images.with_file_name(name)).find(|path| path.is_file() && path != images);
    found.ok_or_else(|| SourceError::Malformed {
        path: images.to_owned(),
        reason: format!("its labels are missing: {name} should stand beside it"),
    })
}

/// Opens a file, zipped or not, and reads its `N` dimensions.
fn open<const N: usize>(path: &Path) -> Result<(Box<dyn Read>, [u32; N]), SourceError> {
    let mut file = BufReader::new(File::open(path).map_err(at(path))?);
    let zipped = file.fill_buf().map_err(at(path))?.starts_with(&[0x1f, 0x8b]);
    let mut bytes: Box<dyn Read> =
        if zipped { Box::new(BufReader::new(MultiGzDecoder::new(file))) } else { Box::new(file) };
    let malformed = |reason: String| SourceError::Malformed { path: path.to_owned(), reason };
    let mut word = [0; 4];
    let mut next =
        || bytes.read_exact(&mut word).map(|()| word).map_err(|error| malformed(format!("no idx file: {error}")));
    let magic = next()?;
    if magic != [0, 0, 8, N as u8] {
        return Err(malformed(format!(
            "it begins with {magic:?}, and an idx file of bytes in {N} dimensions with [0, 0, 8, {N}]"
        )));
    }
    let mut dimensions = [0; N];
    for dimension in &mut dimensions {
        *dimension = u32::from_be_bytes(next()?);
    }
    if dimensions[1..].iter().any(|side| !(1..=SIDE_MAX as u32).contains(side)) {
        return Err(malformed(format!(
            "pictures of {:?} pixels where 1 to {SIDE_MAX} a side are read",
            &dimensions[1..]
        )));
    }
    Ok((bytes, dimensions))
}
