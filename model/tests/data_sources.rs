//! What people have: folders, side files, archives whole and damaged.

use std::fs;
use std::io::{Cursor, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::Path;

use image::{DynamicImage, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use paris_model::data::{Reason, Sample, Skipped, Source, SourceError};

fn encoded(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn plain(colour: [u8; 3]) -> Vec<u8> {
    encoded(RgbImage::from_pixel(8, 8, Rgb(colour)), ImageFormat::Png)
}

/// Everything that a source gives, decoded at 8 x 8 pixels.
fn read(path: &Path) -> Result<(Vec<Sample>, Skipped), SourceError> {
    read_all(&Source::open(path)?)
}

fn read_all(source: &Source) -> Result<(Vec<Sample>, Skipped), SourceError> {
    let extent = source.list()?.extent;
    let (mut samples, mut skipped, mut last) = (Vec::new(), Skipped::default(), 0);
    source.read(0, |entry| {
        assert!((last..=extent).contains(&entry.position), "{} after {last} of {extent}", entry.position);
        last = entry.position;
        match entry.decode(8, 4) {
            Ok(sample) => samples.push(sample),
            Err((name, refusal)) => skipped.add(&name, &refusal),
        }
        ControlFlow::Continue(())
    })?;
    Ok((samples, skipped))
}

fn captions(samples: &[Sample]) -> Vec<&str> {
    samples.iter().map(|sample| sample.caption.as_str()).collect()
}

/// An archive of named contents, in this order.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, contents) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, *contents).unwrap();
    }
    archive.into_inner().unwrap()
}

#[test]
fn a_folder_takes_captions_from_metadata_and_from_side_files() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("train")).unwrap();
    for name in ["a.png", "b.png", "c.png", "train/d.png", "e.png"] {
        fs::write(at(name), plain([1, 2, 3])).unwrap();
    }
    let lines = [
        r#"{"file_name": "a.png", "text": " from text "}"#,
        r#"{"file_name": "./b.png", "caption": "from caption"}"#,
        r#"{"file_name": "train//d.png", "prompt": "from prompt"}"#,
        "",
        "no json",
        r#"{"file_name": "../outside.png", "text": "not here"}"#,
    ];
    fs::write(at("metadata.jsonl"), lines.join("\n")).unwrap();
    fs::write(at("c.txt"), "beside\n").unwrap();
    fs::write(at("notes.md"), "no picture").unwrap();
    let (samples, skipped) = read(folder.path()).unwrap();
    assert_eq!(captions(&samples), ["from text", "from caption", "beside", "from prompt"]);
    assert_eq!(samples[3].name, Path::new("train").join("d.png").display().to_string());
    assert_eq!(skipped.count(), 3, "{skipped}");
    let reasons = skipped.to_string();
    for reason in
        ["metadata.jsonl row 4: bad metadata", "e.png: no caption", "../outside.png: no picture: metadata names it"]
    {
        assert!(reasons.contains(reason), "{reasons}");
    }
}

#[test]
fn a_broken_picture_and_a_missing_caption_are_counted_not_fatal() {
    let folder = tempfile::tempdir().unwrap();
    let half = &plain([9, 9, 9])[..40];
    let files: [(&str, &[u8]); 8] = [
        ("a.png", b"no picture at all"),
        ("a.txt", b"broken"),
        ("b.png", half),
        ("b.txt", b"cut short"),
        ("c.png", &plain([5, 5, 5])),
        ("d.png", &plain([5, 5, 5])),
        ("d.txt", b"  \n"),
        ("e.txt", b"alone"),
    ];
    for (name, contents) in files {
        fs::write(folder.path().join(name), contents).unwrap();
    }
    let (samples, skipped) = read(folder.path()).unwrap();
    assert!(samples.is_empty());
    assert_eq!((skipped.by_reason[&Reason::Undecodable], skipped.by_reason[&Reason::NoCaption]), (2, 2), "{skipped}");

    fs::write(folder.path().join("f.png"), plain([5, 5, 5])).unwrap();
    fs::write(folder.path().join("f.txt"), "whole").unwrap();
    let (samples, skipped) = read(folder.path()).unwrap();
    assert_eq!((captions(&samples), skipped.count()), (vec!["whole"], 4));
}

#[test]
fn what_is_no_source_says_what_one_is() {
    let folder = tempfile::tempdir().unwrap();
    let error = read(&folder.path().join("nothing")).unwrap_err();
    assert!(matches!(error, SourceError::Unknown(_)) && error.to_string().contains("give a folder"), "{error}");
    let table = folder.path().join("train.parquet");
    fs::write(&table, "PAR1").unwrap();
    let error = read(&table).unwrap_err();
    assert!(matches!(error, SourceError::Malformed { .. }), "{error}");
    let images = folder.path().join("images-idx3-ubyte");
    fs::write(&images, [0, 0, 8]).unwrap();
    assert!(read(&images).unwrap_err().to_string().contains("its labels are missing"));
}

#[test]
fn an_archive_groups_entries_by_key_and_falls_back_to_json() {
    let (red, blue) = (plain([255, 0, 0]), plain([0, 0, 255]));
    let bytes = archive(&[
        ("part.1/000.png", &red),
        ("part.1/000.seg.png", &blue),
        ("part.1/000.txt", b"red"),
        ("part.1/000.json", br#"{"text": "not this"}"#),
        ("part.1/001.json", br#"{"caption": "blue"}"#),
        ("part.1/001.PNG", &blue),
        ("part.1/002.png", &blue),
        ("part.1/003.txt", b"no picture"),
        ("part.1/004.png", b"broken"),
        ("part.1/004.txt", b"broken"),
        ("part.1/.hidden", b""),
        ("README", b"nothing"),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let plain_tar = folder.path().join("a.tar");
    fs::write(&plain_tar, &bytes).unwrap();
    let (samples, skipped) = read(&plain_tar).unwrap();
    assert_eq!(captions(&samples), ["red", "blue"]);
    assert_eq!(samples[0].picture.get_pixel(3, 3).0, [255, 0, 0]);
    assert_eq!(skipped.count(), 3, "{skipped}");

    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zipped.write_all(&bytes).unwrap();
    fs::write(folder.path().join("b.tar.gz"), zipped.finish().unwrap()).unwrap();
    let (samples, skipped) = read(folder.path()).unwrap();
    assert_eq!(captions(&samples), ["red", "blue", "red", "blue"]);
    assert_eq!(skipped.count(), 6);
}

#[test]
fn a_damaged_archive_gives_what_stands_before_the_damage() {
    let red = plain([255, 0, 0]);
    let bytes = archive(&[("0.png", &red), ("0.txt", b"red"), ("1.png", &red), ("1.txt", b"again")]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    for length in (1100..bytes.len()).step_by(97) {
        fs::write(&path, &bytes[..length]).unwrap();
        let (samples, _) = read(&path).unwrap();
        assert!(samples.iter().all(|sample| sample.picture.get_pixel(0, 0).0 == [255, 0, 0]));
        assert_eq!(captions(&samples), ["red", "again"][..samples.len()]);
    }
    // A header that claims 4 GiB takes no such memory.
    let mut claims = bytes.clone();
    claims[124..136].copy_from_slice(b"40000000000\0");
    let sum: u32 =
        claims[..512].iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
    claims[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    fs::write(&path, &claims).unwrap();
    let (samples, skipped) = read(&path).unwrap();
    assert_eq!((samples.len(), skipped.by_reason[&Reason::TooLarge]), (0, 1), "{skipped}");
}

#[test]
fn pictures_are_cropped_in_the_middle_scaled_and_laid_over_white() {
    let folder = tempfile::tempdir().unwrap();
    let wide = RgbImage::from_fn(96, 32, |x, _| Rgb(if (32..64).contains(&x) { [10, 200, 30] } else { [255, 0, 0] }));
    let clear = RgbaImage::from_fn(8, 8, |x, _| Rgba([0, 0, 0, if x < 4 { 0 } else { 255 }]));
    let fine = RgbImage::from_fn(64, 64, |x, y| Rgb([((x + y) % 2 * 255) as u8; 3]));
    for (name, bytes) in [
        ("a.webp", encoded(wide.clone(), ImageFormat::WebP)),
        ("b.jpg", encoded(wide, ImageFormat::Jpeg)),
        ("c.png", encoded(clear, ImageFormat::Png)),
        ("d.png", encoded(fine, ImageFormat::Png)),
    ] {
        fs::write(folder.path().join(name), bytes).unwrap();
        fs::write(folder.path().join(name).with_extension("txt"), "x").unwrap();
    }
    let (samples, _) = read(folder.path()).unwrap();
    let pixel = |sample: usize, x: u32| samples[sample].picture.get_pixel(x, 4).0;
    assert_eq!(pixel(0, 4), [10, 200, 30]);
    let near = pixel(1, 4).iter().zip([10, 200, 30]).all(|(a, b)| a.abs_diff(b) < 12);
    assert!(near, "{:?}", pixel(1, 4));
    assert_eq!((pixel(2, 0), pixel(2, 7)), ([255; 3], [0; 3]));
    // A checkerboard becomes even grey: the filter averages.
    assert!(samples[3].picture.pixels().all(|pixel| pixel.0[0].abs_diff(127) < 12));
}

#[test]
fn an_overlong_caption_is_cut_at_a_letter_and_a_huge_picture_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.png"), plain([0; 3])).unwrap();
    fs::write(folder.path().join("a.txt"), "€".repeat(5000)).unwrap();
    // A header alone: 60,000 x 60,000 pixels.
    let mut bomb = plain([0; 3]);
    bomb[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    let mut checksum = flate2::Crc::new();
    checksum.update(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&checksum.sum().to_be_bytes());
    fs::write(folder.path().join("b.png"), bomb).unwrap();
    fs::write(folder.path().join("b.txt"), "bomb").unwrap();
    let (samples, skipped) = read(folder.path()).unwrap();
    assert_eq!(samples[0].caption, "€".repeat(1365));
    assert_eq!((samples.len(), skipped.by_reason[&Reason::TooLarge]), (1, 1), "{skipped}");
}

#[test]
fn reading_stops_when_told_and_goes_on_after_what_was_taken() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        fs::write(folder.path().join(name).with_extension("png"), plain([0; 3])).unwrap();
        fs::write(folder.path().join(name).with_extension("txt"), name).unwrap();
    }
    let source = Source::open(folder.path()).unwrap();
    let names = |passing: u64, most: usize| {
        let mut seen = Vec::new();
        let visit = |entry: paris_model::data::Entry| {
            seen.push(entry.name);
            if seen.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        source.read(passing, visit).unwrap();
        seen
    };
    assert_eq!((names(0, 1), names(1, 9)), (vec!["a.png".to_owned()], vec!["b.png".to_owned(), "c.png".to_owned()]));
    let before = source.list().unwrap();
    assert_eq!((before.extent, source.list().unwrap()), (3, before.clone()));
    fs::write(folder.path().join("c.txt"), "another").unwrap();
    assert_ne!(source.list().unwrap().fingerprint, before.fingerprint);
}

#[test]
fn tiny_pictures_are_refused_by_their_shorter_side() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.png"), encoded(RgbImage::new(40, 3), ImageFormat::Png)).unwrap();
    fs::write(folder.path().join("a.txt"), "a line").unwrap();
    let (_, skipped) = read(folder.path()).unwrap();
    assert_eq!(skipped.by_reason[&Reason::TooSmall], 1, "{skipped}");
}

#[test]
fn metadata_may_be_comma_separated_with_quotes_and_line_breaks() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["a.png", "b.png", "c.png"] {
        fs::write(at(name), plain([1, 2, 3])).unwrap();
    }
    let table = "id,File_Name,caption\n1,c.png,\"third, of \"\"three\"\"\"\n2,./a.png,\"first\nline\"\n3,,nothing\n4,b.png\n5,d.png,absent\n";
    fs::write(at("metadata.csv"), table).unwrap();
    let (samples, skipped) = read(folder.path()).unwrap();
    assert_eq!(captions(&samples), ["first\nline", "third, of \"three\""]);
    let reasons = skipped.to_string();
    for reason in ["metadata.csv row 3: bad metadata", "b.png: no caption", "d.png: no picture"] {
        assert!(reasons.contains(reason), "{reasons}");
    }
    fs::write(at("metadata.csv"), format!("file_name,text\na.png,\"{}", "never closed ".repeat(200_000))).unwrap();
    assert!(read(folder.path()).unwrap_err().to_string().contains("never closed"));
    fs::write(at("metadata.csv"), "name,text\n").unwrap();
    assert!(read(folder.path()).unwrap_err().to_string().contains("it needs a column file_name"));
}

#[test]
fn idx_pictures_are_captioned_by_their_class() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut images = vec![0, 0, 8, 3, 0, 0, 0, 3, 0, 0, 0, 8, 0, 0, 0, 8];
    (0..3u8).for_each(|number| images.extend([number * 100; 64]));
    fs::write(at("t-images-idx3-ubyte"), &images).unwrap();
    let mut labels = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    labels.write_all(&[0, 0, 8, 1, 0, 0, 0, 3, 1, 0, 9]).unwrap();
    fs::write(at("t-labels-idx1-ubyte.gz"), labels.finish().unwrap()).unwrap();
    let (samples, skipped) = read(folder.path()).unwrap();
    assert_eq!((captions(&samples), skipped.count()), (vec!["class 1", "class 0", "class 9"], 0));
    assert_eq!(samples[2].picture.get_pixel(1, 6).0, [200; 3]);
    let named = Source::open(folder.path()).unwrap().with_class_names(vec!["shirt".into(), "shoe".into()]);
    assert_eq!(captions(&read_all(&named).unwrap().0), ["shoe", "shirt", "class 9"]);

    fs::write(at("t-images-idx3-ubyte"), &images[..images.len() - 70]).unwrap();
    let (samples, skipped) = read(folder.path()).unwrap();
    assert_eq!((samples.len(), skipped.by_reason[&Reason::Damaged]), (1, 1), "{skipped}");
    images[7] = 4;
    fs::write(at("t-images-idx3-ubyte"), &images).unwrap();
    assert!(read(folder.path()).unwrap_err().to_string().contains("it has 4 pictures"));
    images[8] = 9;
    fs::write(at("t-images-idx3-ubyte"), &images).unwrap();
    assert!(read(folder.path()).unwrap_err().to_string().contains("a side are read"));
}

/// Writes a table of `schema` whose columns hold these bytes, two rows a group.
fn table(path: &Path, schema: &str, columns: &[&[&[u8]]]) {
    write_table(path, schema, columns, &vec![None; columns.len()]);
}

/// As [`table`], where each column's values are there by as many optional fields as `levels` says; none where they must be.
fn write_table(path: &Path, schema: &str, columns: &[&[&[u8]]], levels: &[Option<i16>]) {
    use parquet::{data_type::ByteArrayType, file::writer::SerializedFileWriter, schema::parser::parse_message_type};
    let schema = std::sync::Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, Default::default()).unwrap();
    for rows in (0..columns[0].len()).collect::<Vec<_>>().chunks(2) {
        let mut group = writer.next_row_group().unwrap();
        for (column, level) in columns.iter().zip(levels) {
            let values: Vec<_> = rows.iter().map(|row| column[*row].to_vec().into()).collect();
            let mut writer = group.next_column().unwrap().unwrap();
            writer
                .typed::<ByteArrayType>()
                .write_batch(&values, level.map(|level| vec![level; rows.len()]).as_deref(), None)
                .unwrap();
            writer.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn parquet_gives_pictures_from_bytes_or_structs_and_refuses_links() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (red, blue) = (plain([255, 0, 0]), plain([0, 0, 255]));
    let texts: [&[u8]; 3] = [b"red", b"blue", b"broken"];
    let structs = "message m { required group image { required binary bytes; required binary path (UTF8); } required binary text (UTF8); }";
    table(&at("a.parquet"), structs, &[&[&red, &blue, b"no picture"], &[b"r.png", b"b.png", b"x"], &texts]);
    let bare = "message m { required binary caption (UTF8); required binary other (UTF8); required binary jpg; }";
    table(&at("b.parquet"), bare, &[&texts, &texts, &[&blue, &red, b""]]);
    let (samples, skipped) = read(folder.path()).unwrap();
    assert_eq!(captions(&samples), ["red", "blue", "red", "blue"]);
    assert_eq!(
        (samples[0].picture.get_pixel(0, 0).0, samples[2].picture.get_pixel(0, 0).0),
        ([255, 0, 0], [0, 0, 255])
    );
    assert_eq!(
        (skipped.by_reason[&Reason::Undecodable], samples[3].name.as_str()),
        (2, "b.parquet row 1"),
        "{skipped}"
    );

    let links = "message m { required binary URL (UTF8); required binary TEXT (UTF8); }";
    table(&at("laion.parquet"), links, &[&texts, &texts]);
    let error = read(&at("laion.parquet")).unwrap_err().to_string();
    assert!(error.contains("img2dataset --url_list") && error.contains("--url_col URL --caption_col TEXT"), "{error}");
    let silent = "message m { required binary jpg; required binary name (UTF8); }";
    table(&at("silent.parquet"), silent, &[&[&red], &[b"red"]]);
    assert!(read(&at("silent.parquet")).unwrap_err().to_string().contains("no column of captions"));
}

#[test]
fn a_table_that_was_cut_short_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let red = plain([255, 0, 0]);
    let schema = "message m { required binary text (UTF8); required binary jpg; }";
    table(&path, schema, &[&[b"1", b"2", b"3"], &[&red, &red, &red]]);
    let whole = fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(31) {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(matches!(read(&path), Err(SourceError::Malformed { .. })), "{length} bytes");
    }
}

#[test]
fn a_table_with_any_bit_flipped_gives_no_more_entries_than_it_could_hold() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let (red, blue) = (plain([255, 0, 0]), plain([0, 0, 255]));
    let schema = "message m { optional binary text (UTF8); optional group image { optional binary bytes; } }";
    write_table(&path, schema, &[&[b"1", b"2", b"3"], &[&red, &blue, &red]], &[Some(1), Some(2)]);
    assert_eq!(captions(&read(&path).unwrap().0), ["1", "2", "3"]);
    let bytes = fs::read(&path).unwrap();
    // In place: a file that is cut and written again goes to the disk each time.
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let put = |place: usize, byte: u8| {
        (&file).seek(SeekFrom::Start(place as u64)).and_then(|_| (&file).write_all(&[byte])).unwrap();
    };
    let mut damaged = 0;
    for bit in 0..8 * bytes.len() {
        put(bit / 8, bytes[bit / 8] ^ (1 << (bit % 8)));
        let mut entries = 0;
        let visit = |entry: paris_model::data::Entry| {
            entries += 1;
            damaged += usize::from(entry.decode(8, 4).is_err_and(|(_, refusal)| refusal.reason == Reason::Damaged));
            if entries > 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        // What can't be opened at all is refused, which is as well.
        let _ = Source::open(&path).unwrap().read(0, visit);
        assert!(entries <= 3, "bit {bit}");
        put(bit / 8, bytes[bit / 8]);
    }
    assert!(damaged > 100, "{damaged}");
}
