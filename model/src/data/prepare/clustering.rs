//! The second stage: which pictures are the same, and which belong together.

use super::spool::Spool;
use super::{PrepareError, Progress, write_durably};
use crate::data::kmeans::{Assigned, KMeans, assign, normalise, squared_distances};
use crate::data::prepared::PrepareSettings;

/// Rows of features that are read at once.
const ROWS_A_BLOCK: usize = 1024;
/// The file of the spool that holds what was found.
const FILE_NAME: &str = "clusters";

/// All different pictures, in the order in which they stand in shards: random to the eye, and the same for a picture whatever stands around it.
///
/// 40 bytes a sample: a key that follows from the seed and the picture's pixels, and the sample's number.
pub(super) struct Pictures {
    samples: Vec<([u8; 32], u32)>,
    /// Where in `samples` each picture begins.
    begins: Vec<u32>,
}

impl Pictures {
    pub(super) fn gather(spool: &Spool, seed: u64) -> Result<Self, PrepareError> {
        let mut samples = Vec::with_capacity(spool.state().samples as usize);
        spool.hashes(|sample, hash| samples.push((order_key(seed, &hash), sample)))?;
        samples.sort_unstable();
        let differs = |place: usize| place == 0 || samples[place].0 != samples[place - 1].0;
        let begins = (0..samples.len()).filter(|place| differs(*place)).map(|place| place as u32).collect();
        Ok(Self { samples, begins })
    }

    /// How many different ones there are.
    pub(super) fn len(&self) -> usize {
        self.begins.len()
    }

    /// The samples that show exactly this picture, in the order of their source; at least one.
    pub(super) fn samples(&self, picture: usize) -> impl ExactSizeIterator<Item = u32> + '_ {
        let end = self.begins.get(picture + 1).map_or(self.samples.len(), |end| *end as usize);
        self.samples[self.begins[picture] as usize..end].iter().map(|(_, sample)| *sample)
    }

    /// The first sample of each picture, with the picture, in the order of samples.
    fn firsts(&self) -> Vec<(u32, u32)> {
        let first = |(picture, begin): (u32, &u32)| (self.samples[*begin as usize].1, picture);
        let mut firsts: Vec<_> = (0..).zip(&self.begins).map(first).collect();
        firsts.sort_unstable();
        firsts
    }
}

fn order_key(seed: u64, hash: &[u8; 32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("paris-node order of pictures 1");
    hasher.update(&seed.to_le_bytes()).update(hash);
    *hasher.finalize().as_bytes()
}

/// Finds the cluster of each picture, or what an earlier run found.
pub(super) fn cluster(
    spool: &Spool,
    pictures: &Pictures,
    settings: &PrepareSettings,
    progress: &mut dyn FnMut(Progress),
) -> Result<Assigned, PrepareError> {
    let mut key = blake3::Hasher::new_derive_key("paris-node clusters of pictures 2");
    key.update(spool.key().as_bytes());
    key.update(&(settings.clusters as u64).to_le_bytes()).update(&settings.seed.to_le_bytes());
    let key = key.finalize();
    let of = pictures.len();
    if let Some(found) = load(spool, &key, of) {
        progress(Progress::Clustering { pictures: of, of });
        return Ok(found);
    }
    progress(Progress::Clustering { pictures: 0, of });
    let (how, width, firsts) = (KMeans::new(settings.clusters, settings.seed), spool.width, pictures.firsts());
    // The order of pictures is random, so its beginning is a fair sample.
    let sampled = KMeans::sample_rows(width).min(of);
    let mut sample = vec![0.0; sampled * width];
    first_rows(spool, &firsts, |pictures, rows| {
        for (picture, row) in pictures.zip(rows.chunks_exact(width)).filter(|(picture, _)| *picture < sampled) {
            sample[picture * width..][..width].copy_from_slice(row);
        }
    })?;
    let centres = how.centres(sample, width)?;
    let mut distances = vec![0.0; of * settings.clusters];
    let mut measured = 0;
    first_rows(spool, &firsts, |pictures, rows| {
        measured += pictures.len();
        rows.chunks_exact_mut(width).for_each(normalise);
        let table = squared_distances(rows, &centres, width);
        for (picture, row) in pictures.zip(table.chunks_exact(settings.clusters)) {
            distances[picture * settings.clusters..][..settings.clusters].copy_from_slice(row);
        }
        progress(Progress::Clustering { pictures: measured, of });
    })?;
    let found = assign(&distances, settings.clusters, None, how.bounds(of));
    save(spool, &key, &found)?;
    Ok(found)
}

/// Shows `visit` the features of each picture once, as its first sample has them: which pictures, and their rows.
fn first_rows(
    spool: &Spool,
    firsts: &[(u32, u32)],
    mut visit: impl FnMut(&mut dyn ExactSizeIterator<Item = usize>, &mut [f32]),
) -> Result<(), PrepareError> {
    let mut left = firsts;
    let mut kept = Vec::new();
    spool.features(ROWS_A_BLOCK, |begin, rows| {
        let end = begin + rows.len() / spool.width;
        let (now, later) = left.split_at(left.partition_point(|(sample, _)| (*sample as usize) < end));
        left = later;
        kept.clear();
        now.iter().for_each(|(sample, _)| {
            kept.extend_from_slice(&rows[(*sample as usize - begin) * spool.width..][..spool.width])
        });
        visit(&mut now.iter().map(|(_, picture)| *picture as usize), &mut kept);
        Ok(())
    })
}

/// Keeps what was found in the spool: the key of its input, labels, distances.
fn save(spool: &Spool, key: &blake3::Hash, found: &Assigned) -> Result<(), PrepareError> {
    let mut bytes = key.as_bytes().to_vec();
    found.labels.iter().for_each(|label| bytes.extend_from_slice(&label.to_le_bytes()));
    found.distances.iter().for_each(|distance| bytes.extend_from_slice(&distance.to_le_bytes()));
    write_durably(&spool.path(FILE_NAME), &bytes)
}

/// What an earlier run found for the same input; nothing where there is no such file.
fn load(spool: &Spool, key: &blake3::Hash, pictures: usize) -> Option<Assigned> {
    let bytes = std::fs::read(spool.path(FILE_NAME)).ok()?;
    let words = bytes.strip_prefix(key.as_bytes())?.as_chunks::<4>().0;
    if words.len() != 2 * pictures || bytes.len() != 32 + 8 * pictures {
        return None;
    }
    let (labels, distances) = words.split_at(pictures);
    Some(Assigned {
        labels: labels.iter().map(|label| u32::from_le_bytes(*label)).collect(),
        distances: distances.iter().map(|distance| f32::from_le_bytes(*distance)).collect(),
    })
}
