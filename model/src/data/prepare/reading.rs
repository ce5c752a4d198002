//! The first stage: one thread reads the source, all decode and describe, one writes the spool.
//!
//! Entries travel in chunks whose bounds follow from the source alone, and chunks in rounds that keep their order; so the spool is the same whatever the
//! number of threads. Each channel holds one round.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::spool::Spool;
use super::{PrepareError, Progress};
use crate::data::prepared::PrepareSettings;
use crate::data::source::{Entry, Listing, Refusal, Sample, Source, SourceError};
use crate::features::ImageFeatures;

/// Entries that are decoded and described together, at most.
const ENTRIES_A_CHUNK: usize = 32;
/// Encoded bytes after which a chunk is full, too. So it never has more than these and one entry.
const CHUNK_BYTES: usize = 16 << 20;
/// Chunks in a round, for each thread.
const CHUNKS_A_THREAD: usize = 4;
/// Encoded bytes after which a round is full, too. So it never has more than these and one chunk.
const ROUND_BYTES: usize = 64 << 20;
/// Rounds that wait between two threads.
const ROUNDS_WAITING: usize = 1;

type Chunk = Vec<Entry>;

/// A chunk, decoded: its entries in their order, and the features of the usable ones, row by row.
struct Described {
    entries: Vec<Result<(Sample, blake3::Hash), (String, Refusal)>>,
    features: Vec<f32>,
}

/// What the contents of a spool follow from.
pub(super) fn key(
    listing: &Listing,
    settings: &PrepareSettings,
    features: &dyn ImageFeatures,
) -> Result<blake3::Hash, PrepareError> {
    let mut hasher = blake3::Hasher::new_derive_key("paris-node spool of pictures 1");
    hasher.update(listing.fingerprint.as_bytes());
    hasher.update(&settings.size.to_le_bytes()).update(&settings.min_side.to_le_bytes());
    hasher.update(&settings.limit.map_or(u64::MAX, |limit| limit as u64).to_le_bytes());
    // Extractors are told apart by what they say of one picture.
    let side = settings.size as usize;
    let slope: Vec<f32> = (0..3 * side * side).map(|at| (at % 251) as f32 / 125.0 - 1.0).collect();
    let probe = describe(Tensor::from_vec(slope, (1, 3, side, side), &Device::Cpu)?, features)?;
    for value in probe {
        hasher.update(&value.to_le_bytes());
    }
    Ok(hasher.finalize())
}

/// Reads the source into the spool, from where an earlier run stopped.
pub(super) fn read(
    source: &Source,
    listing: &Listing,
    spool: &mut Spool,
    settings: &PrepareSettings,
    features: &dyn ImageFeatures,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), PrepareError> {
    let passing = spool.state().entries;
    let (mut pictures, mut skipped) = (spool.state().samples as usize, spool.state().skipped.count());
    let limit = settings.limit.unwrap_or(usize::MAX);
    let chunks_a_round = CHUNKS_A_THREAD * rayon::current_num_threads();
    thread::scope(|scope| {
        let (to_here, rounds) = sync_channel(ROUNDS_WAITING);
        let (to_writer, described) = sync_channel(ROUNDS_WAITING);
        let reader = scope.spawn(move || gather(source, passing, chunks_a_round, to_here));
        let writer = scope.spawn(|| write(spool, described));
        let mut outcome = Ok(());
        for round in rounds {
            let last = round.iter().rev().find_map(|chunk: &Chunk| chunk.last());
            let position = last.map_or(listing.extent, |entry| entry.position);
            let round: Result<Vec<_>, _> =
                round.into_par_iter().map(|chunk| describe_chunk(chunk, settings, features)).collect();
            let mut round = match round {
                Ok(round) => round,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            };
            for chunk in &mut round {
                chunk.keep(limit - pictures);
                let usable = chunk.entries.iter().filter(|entry| entry.is_ok()).count();
                pictures += usable;
                skipped += (chunk.entries.len() - usable) as u64;
            }
            let writing = to_writer.send(round).is_ok();
            progress(Progress::Reading { pictures, skipped, position, extent: listing.extent });
            if !writing || pictures >= limit {
                break;
            }
        }
        drop(to_writer);
        let resume = std::panic::resume_unwind;
        writer.join().unwrap_or_else(|panic| resume(panic))?;
        reader.join().unwrap_or_else(|panic| resume(panic))?;
        outcome
    })?;
    spool.finish()
}

/// Cuts what the source gives into chunks and rounds, until the source ends or nobody wants more.
fn gather(
    source: &Source,
    passing: u64,
    chunks_a_round: usize,
    rounds: SyncSender<Vec<Chunk>>,
) -> Result<(), SourceError> {
    let (mut round, mut chunk) = (Vec::new(), Vec::new());
    let (mut round_bytes, mut chunk_bytes) = (0, 0);
    source.read(passing, |entry| {
        chunk_bytes += entry.bytes();
        chunk.push(entry);
        if chunk.len() == ENTRIES_A_CHUNK || chunk_bytes >= CHUNK_BYTES {
            round.push(std::mem::take(&mut chunk));
            round_bytes += std::mem::take(&mut chunk_bytes);
            if round.len() == chunks_a_round || round_bytes >= ROUND_BYTES {
                round_bytes = 0;
                if rounds.send(std::mem::take(&mut round)).is_err() {
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    })?;
    round.push(chunk);
    // Whoever wants no more has its reason.
    let _ = rounds.send(round);
    Ok(())
}

fn describe_chunk(
    chunk: Chunk,
    settings: &PrepareSettings,
    features: &dyn ImageFeatures,
) -> Result<Described, PrepareError> {
    let decode = |entry: Entry| {
        let sample = entry.decode(settings.size, settings.min_side)?;
        let hash = blake3::hash(&sample.picture);
        Ok((sample, hash))
    };
    let entries: Vec<_> = chunk.into_par_iter().map(decode).collect();
    let side = settings.size as usize;
    let usable = || entries.iter().filter_map(|entry: &Result<(Sample, _), _>| entry.as_ref().ok());
    let count = usable().count();
    if count == 0 {
        return Ok(Described { entries, features: Vec::new() });
    }
    let mut values = vec![0.0; count * 3 * side * side];
    for ((sample, _), planes) in usable().zip(values.chunks_exact_mut(3 * side * side)) {
        for (channel, plane) in planes.chunks_exact_mut(side * side).enumerate() {
            let pixels = sample.picture.as_raw().as_chunks::<3>().0;
            plane.iter_mut().zip(pixels).for_each(|(value, pixel)| *value = f32::from(pixel[channel]) / 127.5 - 1.0);
        }
    }
    let features = describe(Tensor::from_vec(values, (count, 3, side, side), &Device::Cpu)?, features)?;
    Ok(Described { entries, features })
}

/// The features of pictures, row by row; rows of another shape than promised are an error.
fn describe(pictures: Tensor, features: &dyn ImageFeatures) -> candle_core::Result<Vec<f32>> {
    let rows = features.extract(&pictures)?;
    let expected = [pictures.dim(0)?, features.width()];
    if rows.dims() != expected {
        candle_core::bail!("features of shape {:?} instead of {expected:?}", rows.dims());
    }
    rows.flatten_all()?.to_vec1()
}

impl Described {
    /// Drops everything that follows the first `usable` samples.
    fn keep(&mut self, usable: usize) {
        let samples = self.entries.iter().enumerate().filter(|(_, entry)| entry.is_ok());
        let end = match usable.checked_sub(1) {
            Some(last) => samples.map(|(index, _)| index + 1).nth(last),
            None => Some(0),
        };
        self.entries.truncate(end.unwrap_or(self.entries.len()));
    }
}

fn write(spool: &mut Spool, rounds: Receiver<Vec<Described>>) -> Result<(), PrepareError> {
    for chunk in rounds.into_iter().flatten() {
        let mut features = chunk.features.chunks_exact(spool.width);
        for entry in chunk.entries {
            match entry {
                Ok((sample, hash)) => spool.add(&sample, &hash, features.next().unwrap_or_default())?,
                Err((name, refusal)) => spool.skip(&name, &refusal),
            }
        }
        spool.checkpoint_if_due()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many entries are in each chunk of each round.
    fn rounds(source: &Source, chunks_a_round: usize) -> Vec<Vec<usize>> {
        let (to_here, rounds) = sync_channel(ROUNDS_WAITING);
        thread::scope(|scope| {
            let reader = scope.spawn(move || gather(source, 0, chunks_a_round, to_here));
            let rounds = rounds.into_iter().map(|round: Vec<Chunk>| round.iter().map(Vec::len).collect()).collect();
            reader.join().unwrap().unwrap();
            rounds
        })
    }

    #[test]
    fn large_pictures_fill_chunks_and_rounds_sooner_and_alike_on_any_number_of_threads() {
        let folder = tempfile::tempdir().unwrap();
        for picture in 0..30 {
            let path = folder.path().join(format!("{picture:02}.png"));
            std::fs::File::create(&path).unwrap().set_len(5 << 20).unwrap();
            std::fs::write(path.with_extension("txt"), "a picture").unwrap();
        }
        let source = Source::open(folder.path()).unwrap();
        assert_eq!(rounds(&source, 2), [[4, 4], [4, 4], [4, 4], [4, 2]]);
        assert_eq!(rounds(&source, 1000), [[4, 4, 4, 4], [4, 4, 4, 2]]);
    }
}
