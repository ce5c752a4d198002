//! What people have: folders, side files, archives whole and damaged.

use std::fs;
use std::io::{Cursor, Write};
use std::ops::ControlFlow;
use std::path::Path;

use image::{DynamicImage, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use paris_model::data::{Sample, Skipped, Source, SourceError};

fn encoded(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn plain(colour: [u8; 3]) -> Vec<u8> {
    encoded(RgbImage::from_pixel(8, 8, Rgb(colour)), ImageFormat::Png)
}

fn read(path: &Path) -> Result<(Vec<Sample>, Skipped), SourceError> {
    let mut samples = Vec::new();
    let skipped = Source::open(path)?.read(8, |sample, _| {
        samples.push(sample);
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
        r#"{"file_name": "b.png", "caption": "from caption"}"#,
        r#"{"file_name": "train/d.png", "prompt": "from prompt"}"#,
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
    assert_eq!(skipped.count, 3, "{skipped}");
    let reasons = skipped.to_string();
    for reason in ["metadata.jsonl line 5: no JSON", "e.png: no caption", "../outside.png: metadata.jsonl names it"] {
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
    let error = read(folder.path()).unwrap_err();
    let SourceError::Empty { skipped, .. } = &error else { panic!("{error}") };
    assert_eq!((skipped.count, skipped.reasons.len()), (4, 4), "{error}");
    assert!(error.to_string().contains("can't decode"), "{error}");

    fs::write(folder.path().join("f.png"), plain([5, 5, 5])).unwrap();
    fs::write(folder.path().join("f.txt"), "whole").unwrap();
    let (samples, skipped) = read(folder.path()).unwrap();
    assert_eq!((captions(&samples), skipped.count), (vec!["whole"], 4));
}

#[test]
fn what_is_no_source_says_what_one_is() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(read(folder.path()), Err(SourceError::Empty { .. })));
    assert!(matches!(read(&folder.path().join("nothing")), Err(SourceError::Unknown(_))));
    let table = folder.path().join("train.parquet");
    fs::write(&table, "PAR1").unwrap();
    assert!(read(&table).unwrap_err().to_string().contains("give a folder"));
    let empty = folder.path().join("empty.tar");
    fs::write(&empty, "").unwrap();
    assert!(matches!(read(&empty), Err(SourceError::Empty { .. })));
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
    assert_eq!(skipped.count, 3, "{skipped}");

    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zipped.write_all(&bytes).unwrap();
    fs::write(folder.path().join("b.tar.gz"), zipped.finish().unwrap()).unwrap();
    let (samples, skipped) = read(folder.path()).unwrap();
    assert_eq!(captions(&samples), ["red", "blue", "red", "blue"]);
    assert_eq!(skipped.count, 6);
}

#[test]
fn a_damaged_archive_gives_what_stands_before_the_damage() {
    let red = plain([255, 0, 0]);
    let bytes = archive(&[("0.png", &red), ("0.txt", b"red"), ("1.png", &red), ("1.txt", b"again")]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    for length in (1100..bytes.len()).step_by(97) {
        fs::write(&path, &bytes[..length]).unwrap();
        if let Ok((samples, _)) = read(&path) {
            assert!(samples.iter().all(|sample| sample.picture.get_pixel(0, 0).0 == [255, 0, 0]));
            assert_eq!(samples[0].caption, "red");
        }
    }
    // A header that claims 4 GiB takes no such memory.
    let mut claims = bytes.clone();
    claims[124..136].copy_from_slice(b"40000000000\0");
    let sum: u32 =
        claims[..512].iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
    claims[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    fs::write(&path, &claims).unwrap();
    let error = read(&path).unwrap_err();
    assert!(matches!(error, SourceError::Empty { .. }), "{error}");
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
    fs::write(folder.path().join("b.png"), bomb).unwrap();
    fs::write(folder.path().join("b.txt"), "bomb").unwrap();
    let (samples, skipped) = read(folder.path()).unwrap();
    assert_eq!(samples[0].caption, "€".repeat(1365));
    assert_eq!((samples.len(), skipped.count), (1, 1), "{skipped}");
}

#[test]
fn reading_stops_when_told() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        fs::write(folder.path().join(name).with_extension("png"), plain([0; 3])).unwrap();
        fs::write(folder.path().join(name).with_extension("txt"), name).unwrap();
    }
    let mut seen = 0;
    let stop = |_: Sample, _: &Skipped| {
        seen += 1;
        ControlFlow::Break(())
    };
    Source::open(folder.path()).unwrap().read(8, stop).unwrap();
    assert_eq!(seen, 1);
}
