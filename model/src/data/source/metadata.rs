//! `metadata.jsonl` and `metadata.csv`: which caption belongs to which picture of a folder.
//!
//! Only where each row begins is in memory, about 50 bytes a picture; captions are read when their picture is. Names in it count from its folder; they
//! are only compared with files that the walk finds, so none of them can lead out of the source.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use csv::{ByteRecord, Position};

use super::skipped::{Reason, Refusal};
use super::{CAPTION_FIELDS, CAPTION_FILE_BYTES_MAX, SourceError, at, caption_field};

const LINES: &str = "metadata.jsonl";
const VALUES: &str = "metadata.csv";
/// What names the picture of a row.
const FILE_NAME: &str = "file_name";

/// Where a row begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    table: usize,
    byte: u64,
}

/// All metadata of a source, as far as it was found.
#[derive(Default)]
pub(super) struct Metadata {
    tables: Vec<Table>,
    /// By the hash of the picture's path, cut to 16 bytes.
    rows: HashMap<[u8; 16], Place>,
}

/// A row: the picture's name and what metadata says of it.
struct Row {
    file_name: String,
    caption: Option<String>,
}

impl Metadata {
    /// Takes the tables of `folder` in, and tells `refuse` which of their rows can't be used.
    pub(super) fn add(
        &mut self,
        folder: &Path,
        mut refuse: impl FnMut(&Path, u64) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, SourceError> {
        for file in [LINES, VALUES] {
            let path = folder.join(file);
            if !path.is_file() {
                continue;
            }
            let mut table = Table::open(&path)?;
            let mut number = 0;
            while let Some((byte, row)) = table.rows.next().map_err(at(&path))? {
                number += 1;
                match row {
                    Some(row) => {
                        let place = Place { table: self.tables.len(), byte };
                        self.rows.insert(key(&folder.join(row.file_name)), place);
                    }
                    None => {
                        if refuse(&path, number).is_break() {
                            return Ok(ControlFlow::Break(()));
                        }
                    }
                }
            }
            self.tables.push(table);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Takes the row of a picture out.
    pub(super) fn take(&mut self, path: &Path) -> Option<Place> {
        if self.rows.is_empty() { None } else { self.rows.remove(&key(path)) }
    }

    /// The caption that stands in a row.
    pub(super) fn caption(&mut self, place: Place) -> Result<Option<String>, Refusal> {
        let row = self.row(place).map_err(|error| Refusal::new(Reason::Unreadable, error))?;
        Ok(row.and_then(|row| row.caption))
    }

    /// Shows the pictures whose rows nobody took, in the order of the tables.
    pub(super) fn left_over(
        &mut self,
        mut visit: impl FnMut(&Path) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, SourceError> {
        let mut places: Vec<_> = std::mem::take(&mut self.rows).into_values().collect();
        places.sort_unstable();
        for place in places {
            let path = self.tables[place.table].path.clone();
            if let Some(row) = self.row(place).map_err(at(&path))?
                && visit(&path.with_file_name(row.file_name)).is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn row(&mut self, place: Place) -> std::io::Result<Option<Row>> {
        let rows = &mut self.tables[place.table].rows;
        rows.seek(place.byte)?;
        Ok(rows.next()?.and_then(|(_, row)| row))
    }
}

/// Equal for all spellings of a path, such as `a.png` and `./a.png`.
fn key(path: &Path) -> [u8; 16] {
    let path: PathBuf = path.components().collect();
    let hash = blake3::hash(path.as_os_str().as_encoded_bytes());
    std::array::from_fn(|byte| hash.as_bytes()[byte])
}

/// One open file of metadata.
struct Table {
    path: PathBuf,
    rows: Rows,
}

impl Table {
    fn open(path: &Path) -> Result<Self, SourceError> {
        let file = File::open(path).map_err(at(path))?;
        let rows = if path.ends_with(LINES) {
            Rows::Lines(BufReader::new(file), 0)
        } else {
            Rows::values(file).map_err(at(path))?
        };
        Ok(Self { path: path.to_owned(), rows })
    }
}

/// The rows of a table, from wherever was last sought.
enum Rows {
    /// Lines of JSON, and at which byte the next one begins.
    Lines(BufReader<File>, u64),
    /// Comma-separated values; which column names the picture; which may hold the caption; how many bytes the next row may still take.
    Values { reader: csv::Reader<Bounded>, file_name: usize, captions: Vec<usize>, left: Rc<Cell<u64>> },
}

impl Rows {
    fn values(file: File) -> std::io::Result<Self> {
        let left = Rc::new(Cell::new(ROW_READ_AHEAD_MAX));
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(Bounded(file, left.clone()));
        let header = reader.headers()?.clone();
        let column = |name: &str| header.iter().position(|column| column.trim().eq_ignore_ascii_case(name));
        let Some(file_name) = column(FILE_NAME) else {
            let columns: Vec<_> = header.iter().collect();
            return Err(invalid(format!("it needs a column {FILE_NAME} in its first line, and has {columns:?}")));
        };
        let captions = CAPTION_FIELDS.iter().filter_map(|name| column(name)).collect();
        Ok(Self::Values { reader, file_name, captions, left })
    }

    fn seek(&mut self, to: u64) -> std::io::Result<()> {
        match self {
            // Rows are mostly asked for in their order, and then what was read ahead is of use.
            Self::Lines(lines, at) => lines.seek_relative(to as i64 - *at as i64).map(|()| *at = to),
            Self::Values { reader, left, .. } => {
                left.set(ROW_READ_AHEAD_MAX);
                let mut position = Position::new();
                position.set_byte(to);
                Ok(reader.seek(position)?)
            }
        }
    }

    /// The next row with the byte that it begins at; no row where there is something else, nothing at the end.
    fn next(&mut self) -> std::io::Result<Option<(u64, Option<Row>)>> {
        match self {
            Self::Lines(lines, at) => {
                let mut line = Vec::new();
                loop {
                    line.clear();
                    let begin = *at;
                    *at += lines.by_ref().take(CAPTION_FILE_BYTES_MAX).read_until(b'\n', &mut line)? as u64;
                    if *at == begin {
                        return Ok(None);
                    }
                    if !line.trim_ascii().is_empty() {
                        return Ok(Some((begin, row_in_json(&line))));
                    }
                }
            }
            Self::Values { reader, file_name, captions, left } => {
                left.set(ROW_READ_AHEAD_MAX);
                let begin = reader.position().byte();
                let mut record = ByteRecord::new();
                if !reader.read_byte_record(&mut record)? {
                    return Ok(None);
                }
                let text = |column: usize| record.get(column).and_then(|value| str::from_utf8(value).ok());
                let row = text(*file_name).filter(|name| !name.is_empty()).map(|name| Row {
                    file_name: name.to_owned(),
                    caption: captions.iter().find_map(|column| text(*column)).map(str::to_owned),
                });
                Ok(Some((begin, row)))
            }
        }
    }
}

fn row_in_json(line: &[u8]) -> Option<Row> {
    let value: serde_json::Value = serde_json::from_slice(line).ok()?;
    let file_name = value.get(FILE_NAME)?.as_str()?.to_owned();
    Some(Row { file_name, caption: caption_field(&value) })
}

/// Most bytes that are read for one row of comma-separated values: the row, and what the reader reads ahead.
const ROW_READ_AHEAD_MAX: u64 = CAPTION_FILE_BYTES_MAX + (1 << 16);

/// Ends with an error where a row is too long: a quote that is never closed would have the whole file for a row.
struct Bounded(File, Rc<Cell<u64>>);

impl Read for Bounded {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.0.read(into)?;
        match self.1.get().checked_sub(read as u64) {
            Some(left) => self.1.set(left),
            None => {
                return Err(invalid(format!(
                    "a row of more than {CAPTION_FILE_BYTES_MAX} bytes; is a quote never closed?"
                )));
            }
        }
        Ok(read)
    }
}

impl Seek for Bounded {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.0.seek(to)
    }
}

fn invalid(message: String) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, message)
}
