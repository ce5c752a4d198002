//! Parquet: a column of encoded pictures and one of captions, or of class numbers.
//!
//! Row groups are read one after the other, a few rows at a time, and only the two columns that are needed.

use std::fs::File;
use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Type as Physical;
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row, reader::RowIter};
use parquet::schema::types::{ColumnDescriptor, Type, TypePtr};

use super::entry::{Content, Encoded, Sink};
use super::skipped::{Reason, Refusal};
use super::{CAPTION_FIELDS, SourceError, at, class_caption};
use crate::data::picture::FILE_BYTES_MAX;

/// Rows that are decoded at once: each holds a picture.
const ROWS_A_CALL: usize = 16;
/// Rows that a byte of a file may stand for: more can't be pictures that differ.
const ROWS_A_BYTE_MAX: u64 = 8;
/// What the column of a class number is called.
const CLASS_FIELDS: [&str; 2] = ["label", "class"];

/// Which columns of a file are read.
struct Columns {
    picture: TypePtr,
    caption: TypePtr,
}

/// How many rows a file has. A file without pictures is refused.
pub(super) fn rows(path: &Path) -> Result<u64, SourceError> {
    let (file, _) = open(path)?;
    Ok(file.metadata().file_metadata().num_rows().max(0) as u64)
}

/// Streams one file into `sink`. A damaged row group costs what is left of it, and one skip.
pub(super) fn read(path: &Path, names: &[String], sink: &mut Sink<'_>) -> Result<ControlFlow<()>, SourceError> {
    let (file, columns) = open(path)?;
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let schema = file.metadata().file_metadata().schema();
    let fields = vec![columns.picture.clone(), columns.caption.clone()];
    let projection = Type::group_type_builder(schema.name()).with_fields(fields).build().map_err(malformed(path))?;
    let before = sink.position;
    let mut number: u64 = 0;
    let bytes = path.metadata().map_err(at(path))?.len();
    for group in 0..file.num_row_groups() {
        let rows = match rows_of(file.metadata().row_group(group), &columns, bytes) {
            Ok(rows) => rows,
            Err(error) => {
                if sink.refuse(&format!("{file_name} row {number}"), Reason::Damaged, error).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                continue;
            }
        };
        let end = number.saturating_add(rows);
        let reader = caught(|| file.get_row_group(group)).map_err(malformed(path))?;
        let mut rows = match caught(|| RowIter::from_row_group(Some(projection.clone()), &*reader)) {
            Ok(rows) => rows.with_batch_size(ROWS_A_CALL),
            Err(error) => {
                if sink.refuse(&format!("{file_name} row {number}"), Reason::Damaged, error).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                number = end;
                continue;
            }
        };
        while let Some(row) = caught(|| rows.next().transpose()).transpose() {
            sink.position = before.saturating_add(number).saturating_add(1);
            let name = format!("{file_name} row {number}");
            let (flow, lost) = match row {
                Ok(row) => (sink.offer(&name, || content(row, &columns, names)), false),
                Err(error) => (sink.refuse(&name, Reason::Damaged, error), true),
            };
            if flow.is_break() {
                return Ok(flow);
            }
            if lost {
                break;
            }
            number = number.saturating_add(1);
        }
        number = end;
    }
    Ok(ControlFlow::Continue(()))
}

/// How many rows a group has, if that can be: its reader would make up rows that the columns don't have, as many as it is told.
fn rows_of(group: &RowGroupMetaData, columns: &Columns, file_bytes: u64) -> Result<u64, ParquetError> {
    let rows = group.num_rows();
    let is_read = |column: &ColumnDescriptor| {
        let root = column.path().parts().first().map(String::as_str);
        [&columns.picture, &columns.caption].iter().any(|read| root == Some(read.name()))
    };
    for column in group.columns().iter().filter(|column| is_read(column.column_descr())) {
        // Where values repeat within a row there may be more of them.
        if column.column_descr().max_rep_level() == 0 && column.num_values() != rows {
            let (path, values) = (column.column_path(), column.num_values());
            return Err(ParquetError::General(format!("a group of {rows} rows has {values} values of {path}")));
        }
    }
    match u64::try_from(rows) {
        Ok(rows) if rows / ROWS_A_BYTE_MAX <= file_bytes => Ok(rows),
        _ => Err(ParquetError::General(format!("a group of {rows} rows in a file of {file_bytes} bytes"))),
    }
}

fn content(row: Row, columns: &Columns, names: &[String]) -> Result<Content, Refusal> {
    let (mut picture, mut caption) = (Field::Null, Field::Null);
    for (name, field) in row.into_columns() {
        if name == columns.picture.name() {
            picture = field;
        } else {
            caption = field;
        }
    }
    if let Field::Group(fields) = picture {
        picture =
            fields.into_columns().into_iter().find(|(name, _)| name == "bytes").map_or(Field::Null, |(_, field)| field);
    }
    let Field::Bytes(picture) = picture else { return Err(Refusal::new(Reason::NoPicture, "")) };
    if picture.len() as u64 > FILE_BYTES_MAX {
        return Err(Refusal::new(Reason::TooLarge, format!("a file of {} bytes", picture.len())));
    }
    let caption = match caption {
        Field::Str(text) => Some(text),
        Field::Bytes(bytes) => {
            Some(String::from_utf8(bytes.data().to_vec()).map_err(|_| Refusal::new(Reason::BadCaption, "not UTF-8"))?)
        }
        other => class(&other).map(|class| class_caption(names, class)),
    };
    Content::new(Encoded::File(picture.data().to_vec()), caption.as_deref())
}

fn class(field: &Field) -> Option<u64> {
    match *field {
        Field::Byte(class) => class.try_into().ok(),
        Field::Short(class) => class.try_into().ok(),
        Field::Int(class) => class.try_into().ok(),
        Field::Long(class) => class.try_into().ok(),
        Field::UByte(class) => Some(class.into()),
        Field::UShort(class) => Some(class.into()),
        Field::UInt(class) => Some(class.into()),
        Field::ULong(class) => Some(class),
        _ => None,
    }
}

fn open(path: &Path) -> Result<(SerializedFileReader<File>, Columns), SourceError> {
    let file = File::open(path).map_err(at(path))?;
    let file = caught(|| SerializedFileReader::new(file)).map_err(malformed(path))?;
    let columns = columns(path, file.metadata().file_metadata().schema().get_fields())?;
    Ok((file, columns))
}

/// Finds the columns by type and name.
fn columns(path: &Path, fields: &[TypePtr]) -> Result<Columns, SourceError> {
    let named = |names: &[&str], is: &dyn Fn(&Type) -> bool| {
        names.iter().find_map(|name| fields.iter().find(|field| field.name().eq_ignore_ascii_case(name) && is(field)))
    };
    let captions = named(&CAPTION_FIELDS, &is_bytes);
    let Some(picture) = fields.iter().find(|field| holds_picture(field)) else {
        let link = |field: &&TypePtr| is_bytes(field) && field.name().to_ascii_lowercase().contains("url");
        return Err(match fields.iter().find(link) {
            Some(links) => SourceError::Links {
                path: path.to_owned(),
                links: links.name().to_owned(),
                captions: captions.map_or("TEXT", |field| field.name()).to_owned(),
            },
            None => lacks(path, fields, "pictures: binary, or a struct of bytes and path"),
        });
    };
    let caption = captions.or_else(|| named(&CLASS_FIELDS, &is_number));
    let caption = caption
        .ok_or_else(|| lacks(path, fields, "captions named text, caption or prompt (or class numbers named label)"))?;
    Ok(Columns { picture: Arc::clone(picture), caption: Arc::clone(caption) })
}

/// Binary that isn't text, or a struct with such a field called `bytes`.
fn holds_picture(field: &Type) -> bool {
    if field.is_group() {
        return field.get_fields().iter().any(|field| field.name() == "bytes" && is_bytes(field));
    }
    let name = field.name().to_ascii_lowercase();
    is_bytes(field)
        && !is_text(field)
        && ["image", "img", "picture", "jpg", "jpeg", "png", "webp", "bytes"].iter().any(|part| name.contains(part))
}

fn is_bytes(field: &Type) -> bool {
    field.is_primitive() && field.get_physical_type() == Physical::BYTE_ARRAY
}

fn is_text(field: &Type) -> bool {
    field.get_basic_info().converted_type() == parquet::basic::ConvertedType::UTF8
}

fn is_number(field: &Type) -> bool {
    field.is_primitive() && matches!(field.get_physical_type(), Physical::INT32 | Physical::INT64)
}

fn lacks(path: &Path, fields: &[TypePtr], what: &str) -> SourceError {
    let names: Vec<_> = fields.iter().map(|field| field.name()).collect();
    SourceError::Malformed {
        path: path.to_owned(),
        reason: format!("it has no column of {what}; its columns are {names:?}"),
    }
}

/// The parquet crate panics on some damaged files; that too is an error here.
fn caught<T>(read: impl FnOnce() -> parquet::errors::Result<T>) -> parquet::errors::Result<T> {
    let lost = || ParquetError::General("it is damaged in a way that its reader doesn't foresee".into());
    std::panic::catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(lost()))
}

fn malformed(path: &Path) -> impl FnOnce(ParquetError) -> SourceError {
    move |error| SourceError::Malformed { path: path.to_owned(), reason: format!("no whole parquet file: {error}") }
}
