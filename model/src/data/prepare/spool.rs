//! What was read, on disk, until the shards are written: pixels, features, names and captions, and how far reading has come.
//!
//! Four files that only grow, and `state.json`, which says how much of them counts. It is written after they were synced, so whatever it names is there; what
//! lies beyond was written by a process that was killed, and is cut off.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{PrepareError, at, write_durably};
use crate::data::source::{Sample, Skipped, cut};
use crate::features::ImageFeatures;
use crate::whole_file::sync_folder;

/// The folder of the spool, in the folder of the output.
const FOLDER: &str = "spool";
const STATE: &str = "state.json";
const PIXELS: &str = "pixels";
const FEATURES: &str = "features";
const ROWS: &str = "rows";
const TEXTS: &str = "texts";
/// Samples between two checkpoints, at least.
const SAMPLES_A_CHECKPOINT: u64 = 2048;
/// How many times as long as a checkpoint took nothing is checkpointed after it: a slow disk shall not hold up the reading.
const WORK_TO_CHECKPOINT: u32 = 20;
/// Longest name of a picture that is kept, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// Bytes of a sample's row: the hash of its pixels, and where its name and its caption end among the texts.
const ROW_BYTES: usize = 32 + 8 + 8;

/// How far reading has come.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    /// What was read, and how: equal for a spool that can be gone on with.
    key: String,
    /// Entries of the source that were dealt with.
    pub(super) entries: u64,
    /// Usable ones among them.
    pub(super) samples: u64,
    /// Bytes of their names and captions.
    texts: u64,
    /// The others.
    pub(super) skipped: Skipped,
    /// Whether the source was read to its end.
    pub(super) finished: bool,
}

/// The files, with the state.
pub(super) struct Spool {
    folder: PathBuf,
    state: State,
    checkpointed: u64,
    /// When the last checkpoint was made, and how long it took.
    last: (Instant, Duration),
    pixels: BufWriter<File>,
    features: BufWriter<File>,
    rows: BufWriter<File>,
    texts: BufWriter<File>,
    /// Bytes of a sample's pixels.
    pub(super) pixel_bytes: usize,
    /// Values of a sample's features.
    pub(super) width: usize,
    /// Locked while this process lives.
    _lock: File,
}

impl Spool {
    /// Opens the spool in `folder`, as an interrupted run with an equal `key` left it, or else empty.
    pub(super) fn open(
        folder: &Path,
        key: blake3::Hash,
        size: u32,
        features: &dyn ImageFeatures,
    ) -> Result<Self, PrepareError> {
        let spool = folder.join(FOLDER);
        std::fs::create_dir_all(&spool).map_err(at(&spool))?;
        let lock = File::create(spool.join("lock")).map_err(at(&spool))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => PrepareError::Busy(folder.to_owned()),
            TryLockError::Error(error) => at(&spool)(error),
        })?;
        let key = key.to_hex().to_string();
        let state = std::fs::read(spool.join(STATE)).ok().and_then(|json| serde_json::from_slice::<State>(&json).ok());
        let state = state.filter(|state| state.key == key);
        if state.is_none() && spool.join(STATE).exists() {
            // The files are about to change, and it would count what they no longer hold.
            std::fs::remove_file(spool.join(STATE)).and_then(|()| sync_folder(&spool)).map_err(at(&spool))?;
        }
        let state = state.unwrap_or(State { key, ..State::default() });
        let (pixel_bytes, width) = (size as usize * size as usize * 3, features.width());
        let open = |name: &str, bytes: u64| -> Result<Option<BufWriter<File>>, PrepareError> {
            let path = spool.join(name);
            let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let mut file = options.map_err(at(&path))?;
            if file.metadata().map_err(at(&path))?.len() < bytes {
                return Ok(None);
            }
            file.set_len(bytes).and_then(|()| file.seek(SeekFrom::End(0))).map_err(at(&path))?;
            Ok(Some(BufWriter::with_capacity(1 << 18, file)))
        };
        let samples = state.samples;
        let files = (
            open(PIXELS, samples * pixel_bytes as u64)?,
            open(FEATURES, samples * width as u64 * 4)?,
            open(ROWS, samples * ROW_BYTES as u64)?,
            open(TEXTS, state.texts)?,
        );
        let (Some(pixels), Some(features_file), Some(rows), Some(texts)) = files else {
            // Somebody took from the files what the state says is there.
            std::fs::remove_file(spool.join(STATE)).map_err(at(&spool))?;
            drop(lock);
            let key = blake3::Hash::from_hex(&state.key).unwrap_or(blake3::hash(b""));
            return Self::open(folder, key, size, features);
        };
        let checkpointed = state.samples;
        Ok(Self {
            folder: spool,
            state,
            checkpointed,
            last: (Instant::now(), Duration::ZERO),
            pixels,
            features: features_file,
            rows,
            texts,
            pixel_bytes,
            width,
            _lock: lock,
        })
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// Where a later stage may keep what it found out.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What the contents of the spool follow from.
    pub(super) fn key(&self) -> &str {
        &self.state.key
    }

    /// Adds a sample, the hash of its pixels and its features.
    pub(super) fn add(&mut self, sample: &Sample, hash: &blake3::Hash, features: &[f32]) -> Result<(), PrepareError> {
        let name = cut(&sample.name, NAME_BYTES_MAX);
        let name_end = self.state.texts + name.len() as u64;
        let caption_end = name_end + sample.caption.len() as u64;
        let mut write = || -> std::io::Result<()> {
            self.pixels.write_all(&sample.picture)?;
            for value in features {
                self.features.write_all(&value.to_le_bytes())?;
            }
            self.rows.write_all(hash.as_bytes())?;
            self.rows.write_all(&name_end.to_le_bytes())?;
            self.rows.write_all(&caption_end.to_le_bytes())?;
            self.texts.write_all(name.as_bytes())?;
            self.texts.write_all(sample.caption.as_bytes())
        };
        write().map_err(at(&self.folder))?;
        self.state.texts = caption_end;
        self.state.samples += 1;
        self.state.entries += 1;
        Ok(())
    }

    /// Counts an entry that can't be used.
    pub(super) fn skip(&mut self, name: &str, refusal: &crate::data::source::Refusal) {
        self.state.skipped.add(name, refusal);
        self.state.entries += 1;
    }

    /// Makes what was added durable, if it is enough to be worth it. Only between chunks: a later run goes on with a whole one.
    pub(super) fn checkpoint_if_due(&mut self) -> Result<(), PrepareError> {
        let enough = self.state.samples - self.checkpointed >= SAMPLES_A_CHECKPOINT;
        let (at, took) = self.last;
        if enough && at.elapsed() >= took * WORK_TO_CHECKPOINT { self.checkpoint() } else { Ok(()) }
    }

    /// Makes what was added durable, and the source's end known.
    pub(super) fn finish(&mut self) -> Result<(), PrepareError> {
        self.state.finished = true;
        self.checkpoint()
    }

    fn checkpoint(&mut self) -> Result<(), PrepareError> {
        let began = Instant::now();
        for file in [&mut self.pixels, &mut self.features, &mut self.rows, &mut self.texts] {
            file.flush().and_then(|()| file.get_ref().sync_data()).map_err(at(&self.folder))?;
        }
        let json = serde_json::to_vec(&self.state).map_err(|error| at(&self.folder)(error.into()))?;
        write_durably(&self.folder.join(STATE), &json)?;
        self.checkpointed = self.state.samples;
        self.last = (Instant::now(), began.elapsed());
        Ok(())
    }

    /// The hashes of all samples' pixels, one after the other.
    pub(super) fn hashes(&self, mut visit: impl FnMut(u32, [u8; 32])) -> Result<(), PrepareError> {
        let mut file = self.rewound(&self.rows)?;
        let mut row = [0; ROW_BYTES];
        for sample in 0..self.state.samples as u32 {
            file.read_exact(&mut row).map_err(at(&self.folder))?;
            visit(sample, std::array::from_fn(|byte| row[byte]));
        }
        Ok(())
    }

    /// The features of all samples, in blocks of at most `samples`, with the number of the first.
    pub(super) fn features(
        &self,
        samples: usize,
        mut visit: impl FnMut(usize, &[f32]) -> Result<(), PrepareError>,
    ) -> Result<(), PrepareError> {
        let mut file = self.rewound(&self.features)?;
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        for first in (0..self.state.samples as usize).step_by(samples) {
            let count = samples.min(self.state.samples as usize - first);
            bytes.resize(count * self.width * 4, 0);
            file.read_exact(&mut bytes).map_err(at(&self.folder))?;
            values.clear();
            values.extend(bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)));
            visit(first, &values)?;
        }
        Ok(())
    }

    /// All captions, one after the other.
    pub(super) fn captions(&self, mut visit: impl FnMut(usize, &str)) -> Result<(), PrepareError> {
        let (mut rows, mut texts) = (self.rewound(&self.rows)?, self.rewound(&self.texts)?);
        let (mut row, mut begin, mut text) = ([0; ROW_BYTES], 0, Vec::new());
        for sample in 0..self.state.samples as usize {
            rows.read_exact(&mut row).map_err(at(&self.folder))?;
            let (name_end, end) = ends(&row);
            text.resize((end - begin) as usize, 0);
            texts.read_exact(&mut text).map_err(at(&self.folder))?;
            visit(sample, &String::from_utf8_lossy(&text[(name_end - begin) as usize..]));
            begin = end;
        }
        Ok(())
    }

    /// Another way into what was read, for whoever takes samples out of their order; only after reading has finished.
    pub(super) fn samples(&self) -> Result<Samples, PrepareError> {
        let open = |name: &str| {
            let path = self.folder.join(name);
            File::open(&path).map_err(at(&path))
        };
        let (pixels, rows, texts) = (open(PIXELS)?, open(ROWS)?, open(TEXTS)?);
        Ok(Samples { folder: self.folder.clone(), pixels, rows, texts, pixel_bytes: self.pixel_bytes })
    }

    /// Deletes the spool: all is done.
    pub(super) fn remove(self) -> Result<(), PrepareError> {
        // The state goes first, so that what is left of an interrupted removal counts for nothing.
        let folder = self.folder.clone();
        std::fs::remove_file(folder.join(STATE)).map_err(at(&folder))?;
        drop(self);
        std::fs::remove_dir_all(&folder).map_err(at(&folder))
    }

    fn rewound<'a>(&self, file: &'a BufWriter<File>) -> Result<BufReader<&'a File>, PrepareError> {
        let mut file = file.get_ref();
        file.seek(SeekFrom::Start(0)).map_err(at(&self.folder))?;
        Ok(BufReader::with_capacity(1 << 18, file))
    }
}

/// Single samples, by number. Each has files, and so a place in them, of its own.
pub(super) struct Samples {
    folder: PathBuf,
    pixels: File,
    rows: File,
    texts: File,
    pixel_bytes: usize,
}

impl Samples {
    /// Reads the pixels of a sample, `pixel_bytes` of them.
    pub(super) fn pixels(&self, sample: u32, into: &mut [u8]) -> Result<(), PrepareError> {
        let mut file = &self.pixels;
        let at_byte = u64::from(sample) * self.pixel_bytes as u64;
        file.seek(SeekFrom::Start(at_byte)).and_then(|_| file.read_exact(into)).map_err(at(&self.folder))
    }

    /// Name and caption of a sample.
    pub(super) fn text(&self, sample: u32) -> Result<(String, String), PrepareError> {
        let (mut rows, mut texts) = (&self.rows, &self.texts);
        let mut read = || -> std::io::Result<(String, String)> {
            // The row before says where the texts begin.
            let mut two = [0; 2 * ROW_BYTES];
            let before = usize::from(sample > 0);
            rows.seek(SeekFrom::Start((u64::from(sample) - before as u64) * ROW_BYTES as u64))?;
            rows.read_exact(&mut two[(1 - before) * ROW_BYTES..])?;
            let (first, second) = two.split_at(ROW_BYTES);
            let (begin, (name_end, end)) = (ends(first).1, ends(second));
            let mut text = vec![0; (end - begin) as usize];
            texts.seek(SeekFrom::Start(begin))?;
            texts.read_exact(&mut text)?;
            let (name, caption) = text.split_at((name_end - begin) as usize);
            Ok((String::from_utf8_lossy(name).into_owned(), String::from_utf8_lossy(caption).into_owned()))
        };
        read().map_err(at(&self.folder))
    }
}

/// Where name and caption of a row end.
fn ends(row: &[u8]) -> (u64, u64) {
    let end = |from: usize| u64::from_le_bytes(std::array::from_fn(|byte| row[from + byte]));
    (end(32), end(40))
}
