//! A history's file: lines at its end, bounded by merging what is old.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::PathBuf,
};

use paris_model::whole_file::write_whole;

use super::{Line, by_twos};

/// Lines of a file before its older half is merged by twos: a day at one line every five seconds, and each earlier span at half the fineness of the next.
pub const LINES_MAX: usize = 20_000;
/// The longest line that is read, bytes.
const LINE_BYTES_MAX: u64 = 16 << 10;
/// How much of a file's end is read for what happened last, bytes.
const TAIL_BYTES: u64 = 64 << 10;

/// The histories of a run's parts.
#[derive(Clone, Debug)]
pub struct History {
    folder: PathBuf,
}

impl History {
    /// The histories in a folder, which need not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Where a part's history is.
    pub fn path(&self, part: &str) -> PathBuf {
        self.folder.join(format!("{part}.jsonl"))
    }

    /// Parts that have a history, in the order of their names.
    pub fn parts(&self) -> Vec<String> {
        let names = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut parts: Vec<_> =
            names.filter_map(|name| Some(name.to_str()?.strip_suffix(".jsonl")?.to_owned())).collect();
        parts.sort();
        parts
    }

    /// A part's whole history, oldest first; empty where there is none.
    pub fn lines(&self, part: &str) -> io::Result<Vec<Line>> {
        match File::open(self.path(part)) {
            Ok(file) => read(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// The last lines of a part's history.
    pub fn tail(&self, part: &str) -> io::Result<Vec<Line>> {
        let mut file = match File::open(self.path(part)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            opened => opened?,
        };
        let length = file.metadata()?.len();
        // The first line read is most likely a piece of one, and does not parse.
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        read(file)
    }

    /// Opens a part's history to add to it.
    pub(crate) fn append(&self, part: &str) -> io::Result<HistoryFile> {
        fs::create_dir_all(&self.folder)?;
        let path = self.path(part);
        let mut file = OpenOptions::new().create(true).append(true).read(true).open(&path)?;
        let lines = read(&mut file)?.len();
        let mut last = [b'\n'];
        if file.metadata()?.len() > 0 {
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
        }
        if last != [b'\n'] {
            // A process died in the middle of a line: the next begins a new one.
            file.write_all(b"\n")?;
        }
        Ok(HistoryFile { file, path, lines, most: LINES_MAX })
    }
}

/// A history that grows.
pub(crate) struct HistoryFile {
    file: File,
    path: PathBuf,
    lines: usize,
    most: usize,
}

impl HistoryFile {
    /// Adds a line. Not brought to the disk at once: a power cut may cost the last seconds of it.
    pub(crate) fn add(&mut self, line: &Line) -> io::Result<()> {
        self.file.write_all(&text(line)?)?;
        self.lines += 1;
        if self.lines > self.most { self.thin() } else { Ok(()) }
    }

    /// Merges the older half by twos; the file is replaced whole or not at all.
    fn thin(&mut self) -> io::Result<()> {
        let mut older = read(File::open(&self.path)?)?;
        let newer = older.split_off(older.len() / 2);
        let mut lines = by_twos(older);
        // Where nothing merges, as of a part that does nothing but fail, the oldest go.
        let surplus = (lines.len() + newer.len()).saturating_sub(self.most - self.most / 8);
        lines.drain(..surplus.min(lines.len()));
        lines.extend(newer);
        let texts = lines.iter().map(text).collect::<io::Result<Vec<_>>>()?;
        write_whole(&self.path, &texts.concat())?;
        self.file = OpenOptions::new().append(true).open(&self.path)?;
        self.lines = lines.len();
        Ok(())
    }
}

/// A line as it stands in the file.
fn text(line: &Line) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    Ok(text)
}

/// The lines that can be read; what cannot is passed over.
fn read(file: impl Read) -> io::Result<Vec<Line>> {
    let (mut reader, mut lines, mut bytes) = (BufReader::new(file), Vec::new(), Vec::new());
    loop {
        bytes.clear();
        if reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes)? == 0 {
            return Ok(lines);
        }
        lines.extend(serde_json::from_slice::<Line>(&bytes).ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use paris_model::report::{LossByTime, StepDurations, StepReport};

    use crate::history::{EventName, Interval, thinned};

    fn line(step: u64, loss: f32) -> Line {
        let mut interval = Interval::begin();
        let mut loss_by_time = LossByTime::default();
        [0.05, 0.15].into_iter().for_each(|t| loss_by_time.add(t, loss));
        let durations = StepDurations::default();
        interval.add(&StepReport { step, loss, loss_by_time, gradient_norm: 1.0, micro_batches: 1, durations });
        let mut steps = interval.end(8, 0.5).unwrap();
        // Few digits: serde_json reads many only to within the last bit.
        (steps.seconds, steps.samples_per_s, steps.split.other) = (0.5, 16.0, 0.5);
        Line::Steps(steps)
    }

    fn steps(lines: &[Line]) -> Vec<u64> {
        lines.iter().map(Line::step).collect()
    }

    #[test]
    fn lines_are_there_after_reopening_and_a_torn_one_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::new(folder.path().join("run"));
        assert!(history.lines("router").unwrap().is_empty() && history.tail("router").unwrap().is_empty());
        let mut file = history.append("router").unwrap();
        let lines = [line(1, 2.0), Line::event(EventName::WentBack, 1, "a \"reason\"\nof two lines"), line(2, 1.5)];
        lines.iter().for_each(|line| file.add(line).unwrap());
        drop(file);
        assert_eq!(history.lines("router").unwrap(), lines);
        assert_eq!(history.tail("router").unwrap(), lines);

        let whole = fs::read(history.path("router")).unwrap();
        for cut in 1..60 {
            fs::write(history.path("router"), &whole[..whole.len() - cut]).unwrap();
            let mut expected = steps(&lines[..if cut == 1 { 3 } else { 2 }]);
            assert_eq!(steps(&history.lines("router").unwrap()), expected, "cut by {cut}");
            history.append("router").unwrap().add(&line(3, 1.0)).unwrap();
            expected.push(3);
            assert_eq!(steps(&history.lines("router").unwrap()), expected, "cut by {cut}, then added to");
        }
        fs::write(history.path("router"), b"\xff{}\n{\"kind\":\"of a later version\"}\n\n").unwrap();
        assert!(history.lines("router").unwrap().is_empty());
    }

    #[test]
    fn a_full_file_keeps_its_span_and_its_events_in_fewer_lines() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::new(folder.path());
        let mut file = HistoryFile { most: 40, ..history.append("expert-0").unwrap() };
        for step in 1..=1000 {
            file.add(&line(step, 1.0)).unwrap();
            if step == 900 {
                file.add(&Line::event(EventName::Failed, step, "why")).unwrap();
            }
        }
        let lines = history.lines("expert-0").unwrap();
        assert!(lines.len() <= 40, "{}", lines.len());
        let counted: u64 = lines.iter().map(|line| if let Line::Steps(it) = line { it.steps } else { 0 }).sum();
        assert_eq!(counted, 1000, "no step is lost");
        assert_eq!(lines.iter().filter(|line| matches!(line, Line::Event(_))).count(), 1);
        assert_eq!(steps(&lines).last(), Some(&1000));
        assert!(steps(&lines).is_sorted());
        for line in 0..100 {
            file.add(&Line::event(EventName::Failed, line, "nothing merges")).unwrap();
        }
        assert!(history.lines("expert-0").unwrap().len() <= 40);
    }

    #[test]
    fn merging_weighs_by_steps() {
        let lines = vec![line(1, 4.0), line(2, 2.0), line(3, 2.0), line(4, 2.0)];
        let [Line::Steps(all)] = &thinned(lines, 1)[..] else { panic!("one interval is left") };
        assert_eq!((all.step, all.steps, all.loss), (4, 4, 2.5));
        assert_eq!(all.loss_by_time[..3], [Some(2.5), Some(2.5), None]);
    }
}
