//! The third stage: pictures leave the spool as shards by cluster. While one shard is brought to the disk, the next is made.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use rayon::prelude::*;

use super::clustering::Pictures;
use super::spool::Spool;
use super::{PrepareError, Progress, at, write_durably};
use crate::data::kmeans::Assigned;
use crate::data::prepared::{ClusterShards, PrepareSettings, ShardInfo};
use crate::data::shard::{Shard, shard_hash};
use crate::image_codec::ImageCodec;
use crate::pretrained::Identity;

/// The file of the spool that says which shards were written, a line each, after one that says of what.
const FILE_NAME: &str = "shards.jsonl";
/// Samples that a thread takes out of the spool at once.
const SAMPLES_A_TASK: usize = 64;

/// Splits each cluster and writes its shards into `folder`; those that an earlier run wrote are taken as they are, if they are whole.
pub(super) fn write(
    spool: &Spool,
    pictures: &Pictures,
    clusters: &Assigned,
    folder: &Path,
    settings: &PrepareSettings,
    codec: &dyn ImageCodec,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<ClusterShards>, PrepareError> {
    let mut members = vec![Vec::new(); settings.clusters];
    clusters.labels.iter().enumerate().for_each(|(picture, label)| members[*label as usize].push(picture));
    if let Some((cluster, few)) = members.iter().enumerate().find(|(_, members)| members.len() < 2) {
        return Err(PrepareError::SmallCluster { cluster, pictures: few.len() });
    }
    let (log, earlier) = Log::open(spool, settings, &codec.identity())?;
    thread::scope(|scope| {
        let (to_disk, shards) = sync_channel(0);
        let disk = scope.spawn(move || keep(shards, folder, log));
        let mut writer = ShardWriter { spool, folder, settings, codec, earlier, to_disk, samples: 0, progress };
        let mut written = Vec::with_capacity(settings.clusters);
        let write_all = || {
            for members in members {
                let sizes: Vec<usize> = members.iter().map(|picture| pictures.samples(*picture).len()).collect();
                let (held_out, train) = members.split_at(held_out_pictures(&sizes, settings.held_out));
                let mut side = |members: &[usize]| {
                    writer.write(&members.iter().flat_map(|picture| pictures.samples(*picture)).collect::<Vec<_>>())
                };
                written.push(ClusterShards { train: side(train)?, held_out: side(held_out)? });
            }
            Ok(())
        };
        let made: Result<(), PrepareError> = write_all();
        drop(writer);
        // If the disk refused, what it said comes first.
        disk.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        made.map(|()| written)
    })
}

/// Writes shards that were not there before, and says so in the log, until no more come.
fn keep(shards: Receiver<(ShardInfo, Vec<u8>)>, folder: &Path, mut log: Log) -> Result<(), PrepareError> {
    for (info, bytes) in shards {
        if info.load(folder).is_err() {
            write_durably(&info.path(folder), &bytes)?;
        }
        log.add(&info)?;
    }
    Ok(())
}

/// How many of a cluster's pictures (that have `sizes` samples), in their order, are held out: up to the fraction of its samples, and at least one on
/// either side.
fn held_out_pictures(sizes: &[usize], fraction: f64) -> usize {
    if fraction == 0.0 {
        return 0;
    }
    let wanted = (sizes.iter().sum::<usize>() as f64 * fraction).round() as usize;
    let mut held = 0;
    let fits = sizes.iter().take_while(|size| {
        held += *size;
        held <= wanted
    });
    fits.count().clamp(1, sizes.len() - 1)
}

struct ShardWriter<'a> {
    spool: &'a Spool,
    folder: &'a Path,
    settings: &'a PrepareSettings,
    codec: &'a dyn ImageCodec,
    /// What an earlier run wrote, in its order.
    earlier: std::vec::IntoIter<ShardInfo>,
    to_disk: SyncSender<(ShardInfo, Vec<u8>)>,
    samples: usize,
    progress: &'a mut dyn FnMut(Progress),
}

impl ShardWriter<'_> {
    fn write(&mut self, samples: &[u32]) -> Result<Vec<ShardInfo>, PrepareError> {
        let mut written = Vec::new();
        for samples in samples.chunks(self.settings.samples_per_shard) {
            let known = self
                .earlier
                .next()
                .filter(|known| known.samples == samples.len() && known.checked_path(self.folder).is_ok());
            let info = match known {
                Some(known) => known,
                None => self.write_one(samples)?,
            };
            written.push(info);
            self.samples += samples.len();
            (self.progress)(Progress::Writing { samples: self.samples, of: self.spool.state().samples as usize });
        }
        Ok(written)
    }

    fn write_one(&mut self, samples: &[u32]) -> Result<ShardInfo, PrepareError> {
        let bytes = self.encode(samples)?.write()?;
        let hash = shard_hash(&bytes).to_hex().to_string();
        let info = ShardInfo { hash, bytes: bytes.len() as u64, samples: samples.len() };
        let stopped = |_| PrepareError::Write(std::io::Error::other("no more shards can be written"));
        self.to_disk.send((info.clone(), bytes)).map_err(stopped)?;
        Ok(info)
    }

    /// Takes samples out of the spool into a shard. This is where pictures become what experts learn.
    fn encode(&self, samples: &[u32]) -> Result<Shard, PrepareError> {
        let bytes = self.spool.pixel_bytes;
        let mut pixels = vec![0; samples.len() * bytes];
        let tasks = pixels.par_chunks_mut(SAMPLES_A_TASK * bytes).zip(samples.par_chunks(SAMPLES_A_TASK));
        let captions = tasks.map(|(pixels, numbers)| {
            let samples = self.spool.samples()?;
            let taken = pixels.chunks_exact_mut(bytes).zip(numbers).map(|(picture, number)| {
                samples.pixels(*number, picture)?;
                Ok(samples.text(*number)?.1)
            });
            taken.collect::<Result<Vec<_>, PrepareError>>()
        });
        let captions = captions.collect::<Result<Vec<_>, _>>()?.concat();
        let side = self.settings.size as usize;
        Shard::new(side, side, pixels, captions)?.encode(self.codec).map_err(PrepareError::Codec)
    }
}

/// Which shards were written, in their order.
struct Log {
    file: File,
    path: std::path::PathBuf,
}

impl Log {
    fn open(
        spool: &Spool,
        settings: &PrepareSettings,
        codec: &Identity,
    ) -> Result<(Self, std::vec::IntoIter<ShardInfo>), PrepareError> {
        let path = spool.path(FILE_NAME);
        let json = |error: serde_json::Error| at(&path)(error.into());
        let head = serde_json::to_string(&(spool.key(), settings, codec)).map_err(json)?;
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let mut lines = text.lines();
        let same = lines.next() == Some(&head);
        // A line that was being written when the process died doesn't parse.
        let earlier: Vec<ShardInfo> = lines.map_while(|line| serde_json::from_str(line).ok()).collect();
        let earlier = if same { earlier } else { Vec::new() };
        let mut whole = head + "\n";
        for info in &earlier {
            whole += &(serde_json::to_string(info).map_err(json)? + "\n");
        }
        write_durably(&path, whole.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path).map_err(at(&path))?;
        Ok((Self { file, path }, earlier.into_iter()))
    }

    /// Not brought to the disk at once: a shard whose line is lost is made anew, and found to be there.
    fn add(&mut self, info: &ShardInfo) -> Result<(), PrepareError> {
        let line = serde_json::to_string(info).map_err(|error| at(&self.path)(error.into()))? + "\n";
        self.file.write_all(line.as_bytes()).map_err(at(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::held_out_pictures;

    #[test]
    fn pictures_that_come_often_are_held_out_whole_or_not_at_all() {
        assert_eq!(held_out_pictures(&[1; 20], 0.1), 2);
        assert_eq!(held_out_pictures(&[1, 5, 1, 1, 1, 1], 0.3), 1);
        assert_eq!(held_out_pictures(&[9, 1], 0.1), 1);
        assert_eq!(held_out_pictures(&[1, 1], 0.9), 1);
        assert_eq!(held_out_pictures(&[1, 1], 0.0), 0);
    }
}
