//! Preparing that is killed, again and again, ends in the files of one that was never disturbed; and so does one on another number of threads.
//!
//! The child is this test's own program, which runs [`child`] alone and aborts itself at the moment that it was told: nothing is flushed nor closed.

use std::env;
use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::process::{Command, Stdio};

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use paris_model::data::{PrepareError, PrepareSettings, Prepared, Progress, Source, prepare};
use paris_model::features::ColourAndEdges;
use paris_model::image_codec::Pixels;

/// Entries of the source: more than two checkpoints are apart.
const ENTRIES: usize = 5000;
/// Every entry with this number is broken, every other one of these too small.
const BROKEN: usize = 97;
const SOURCE: &str = "PARIS_TEST_PREPARE_SOURCE";
const OUT: &str = "PARIS_TEST_PREPARE_OUT";
const MOMENT: &str = "PARIS_TEST_PREPARE_MOMENT";

fn settings() -> PrepareSettings {
    PrepareSettings { clusters: 3, size: 8, samples_per_shard: 300, seed: 5, ..PrepareSettings::default() }
}

/// When to die.
fn moment(progress: Progress) -> (&'static str, usize) {
    match progress {
        Progress::Resuming { .. } => ("resuming", 0),
        Progress::Reading { pictures, .. } => ("reading", pictures),
        Progress::Clustering { pictures, .. } => ("clustering", pictures),
        Progress::Writing { samples, .. } => ("writing", samples),
        Progress::Reporting => ("reporting", 0),
    }
}

#[test]
#[ignore = "the child process of the test below"]
fn child() {
    let (Ok(source), Ok(out), Ok(wanted)) = (env::var(SOURCE), env::var(OUT), env::var(MOMENT)) else { return };
    let (stage, at) = wanted.split_once(' ').unwrap();
    let at: usize = at.parse().unwrap();
    let _ = prepare(
        &Source::open(Path::new(&source)).unwrap(),
        Path::new(&out),
        &settings(),
        &ColourAndEdges,
        &Pixels,
        &mut |progress| {
            let (now, done) = moment(progress);
            if now == stage && done >= at {
                std::process::abort();
            }
        },
    );
}

/// An archive of small pictures, each of its own colours, a few of them broken.
fn source(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("pictures.tar");
    let mut archive = tar::Builder::new(fs::File::create(&path).unwrap());
    let mut add = |name: String, contents: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(contents.len() as u64);
        archive.append_data(&mut header, name, contents).unwrap();
    };
    for number in 0..ENTRIES {
        let hash = blake3::hash(&number.to_le_bytes());
        let colours = hash.as_bytes();
        let side = if number % (2 * BROKEN) == 0 { 7 } else { 8 };
        let picture = RgbImage::from_fn(side, side, |x, y| {
            Rgb([0, 1, 2].map(|c| colours[c + 3 * ((x / 4 + 2 * (y / 4)) as usize)]))
        });
        let mut png = Cursor::new(Vec::new());
        DynamicImage::from(picture).write_to(&mut png, ImageFormat::Png).unwrap();
        let png = png.into_inner();
        add(format!("{number:05}.png"), if number % BROKEN == 1 { &png[..20] } else { &png });
        add(format!("{number:05}.txt"), format!("picture {number}").as_bytes());
    }
    archive.finish().unwrap();
    path
}

fn prepare_into(source: &Path, out: &Path, progress: &mut dyn FnMut(Progress)) -> Prepared {
    prepare(&Source::open(source).unwrap(), out, &settings(), &ColourAndEdges, &Pixels, progress).unwrap()
}

/// Every file of a folder, with its bytes' hash.
fn contents(folder: &Path) -> Vec<(String, blake3::Hash)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let hashed = entries.map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let bytes = if entry.path().is_dir() { Vec::new() } else { fs::read(entry.path()).unwrap() };
        (name, blake3::hash(&bytes))
    });
    let mut contents: Vec<_> = hashed.collect();
    contents.sort_by(|one, other| one.0.cmp(&other.0));
    contents
}

#[test]
fn a_killed_preparation_goes_on_and_ends_in_the_same_files() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = source(folder.path());
    let whole = prepare_into(&source, &at("whole"), &mut |_| {});
    let usable: usize = whole.clusters.iter().map(|cluster| cluster.samples()).sum();
    assert_eq!(usable as u64 + whole.skipped.count(), ENTRIES as u64);

    // Each dies later than the one before, and goes on from what that one left.
    let moments = ["reading 200", "reading 4500", "clustering 1000", "writing 600", "writing 3000", "reporting 0"];
    for moment in moments {
        let status = Command::new(env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads", "1"])
            .env("RAYON_NUM_THREADS", "2")
            .envs([(SOURCE, source.as_os_str()), (OUT, at("killed").as_os_str()), (MOMENT, moment.as_ref())])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(!status.unwrap().success(), "it outlived {moment:?}");
        assert!(!at("killed").join("prepared.json").exists());
    }
    let mut stages = Vec::new();
    let killed = prepare_into(&source, &at("killed"), &mut |progress| stages.push(moment(progress)));
    assert_eq!(killed, whole);
    assert_eq!(contents(&at("killed")), contents(&at("whole")));
    // Nothing was read nor clustered again.
    let clustering: Vec<_> = stages.iter().filter(|(stage, _)| *stage == "clustering").collect();
    assert!(stages.contains(&("resuming", 0)) && !stages.iter().any(|(stage, _)| *stage == "reading"), "{stages:?}");
    assert_eq!(clustering.len(), 1);
}

#[test]
fn half_a_preparation_counts_only_for_the_same_source_and_settings() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = source(folder.path());
    let status = Command::new(env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads", "1"])
        .env("RAYON_NUM_THREADS", "2")
        .envs([(SOURCE, source.as_os_str()), (OUT, at("out").as_os_str()), (MOMENT, "reading 4500".as_ref())])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(!status.unwrap().success());
    let state = fs::read_to_string(at("out").join("spool/state.json")).unwrap();
    assert!(state.contains("\"finished\":false"), "{state}");
    let other = PrepareSettings { min_side: 1, ..settings() };
    let mut resumed = false;
    let mut first = None;
    let progress = &mut |progress| match progress {
        Progress::Resuming { .. } => resumed = true,
        Progress::Reading { pictures, .. } => first = first.or(Some(pictures)),
        _ => {}
    };
    let opened = Source::open(&source).unwrap();
    let prepared = prepare(&opened, &at("out"), &other, &ColourAndEdges, &Pixels, progress).unwrap();
    assert!(!resumed && first.unwrap() < 2048, "{first:?}");
    let fresh = prepare(&opened, &at("fresh"), &other, &ColourAndEdges, &Pixels, &mut |_| {}).unwrap();
    assert_eq!(prepared, fresh);
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let out = folder.path().join(threads.to_string());
        pool.install(|| prepare_into(&source, &out, &mut |_| {}));
        contents(&out)
    };
    assert_eq!(on(1), on(3));
}

#[test]
fn two_preparations_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let out = folder.path().join("out");
    let mut refused = None;
    prepare_into(&source, &out, &mut |_| {
        refused.get_or_insert_with(|| {
            prepare(&Source::open(&source).unwrap(), &out, &settings(), &ColourAndEdges, &Pixels, &mut |_| {})
                .unwrap_err()
        });
    });
    assert!(matches!(refused, Some(PrepareError::Busy(_))), "{refused:?}");
}
