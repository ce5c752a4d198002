//! The bundled pictures go all the way: archive, clusters, shards, batches.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use paris_model::batch::BatchSource;
use paris_model::data::{
    Dataset, DatasetError, Entry, PrepareError, PrepareSettings, Prepared, Progress, Report, Shard, Source, Splits,
    SplitsError, prepare, shard_hash,
};
use paris_model::evaluation::kernel::kernel_distance;
use paris_model::features::{ColourAndEdges, ImageFeatures};
use paris_model::image_codec::Pixels;
use paris_model::text::{HashedText, TextEncoder};

const TEXT: HashedText = HashedText { tokens: 8, width: 32 };

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/emoji32-512.tar")
}

fn settings() -> PrepareSettings {
    PrepareSettings { clusters: 4, size: 32, samples_per_shard: 50, seed: 3, ..PrepareSettings::default() }
}

fn prepare_into(folder: &Path, settings: &PrepareSettings) -> Prepared {
    let source = Source::open(&bundled()).unwrap();
    prepare(&source, folder, settings, &ColourAndEdges, &Pixels, &mut |_| {}).unwrap()
}

fn read_all(source: &Path) -> Vec<(image::RgbImage, String)> {
    let mut samples = Vec::new();
    let visit = |entry: Entry| {
        let sample = entry.decode(32, 8).unwrap();
        samples.push((sample.picture, sample.caption));
        ControlFlow::Continue(())
    };
    Source::open(source).unwrap().read(0, visit).unwrap();
    samples
}

fn shards(folder: &Path, prepared: &Prepared, held_out: bool) -> Vec<(PathBuf, u32)> {
    let clusters = prepared.clusters.iter().zip(0..);
    clusters
        .flat_map(|(cluster, label)| {
            let side = if held_out { &cluster.held_out } else { &cluster.train };
            side.iter().map(move |shard| (shard.path(folder), label))
        })
        .collect()
}

#[test]
fn all_512_pictures_come_out_of_the_archive() {
    let samples = read_all(&bundled());
    assert_eq!(samples.len(), 512);
    assert_eq!(samples[0].1, "cricket emoji as a glossy 3D render");
    assert!(samples.iter().all(|(picture, _)| picture.dimensions() == (32, 32)));
}

#[test]
fn clusters_are_balanced_and_every_sample_is_in_exactly_one_shard() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    let source = Source::open(&bundled()).unwrap();
    let prepared =
        prepare(&source, folder.path(), &settings(), &ColourAndEdges, &Pixels, &mut |progress| seen.push(progress))
            .unwrap();
    let read = |progress: &Progress| matches!(progress, Progress::Reading { pictures: 512, skipped: 0, position, extent } if position <= extent);
    assert!(seen.iter().any(read), "{seen:?}");
    assert!(seen.iter().any(|progress| matches!(progress, Progress::Clustering { .. })));
    let sizes: Vec<_> = prepared.clusters.iter().map(|cluster| cluster.samples()).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 512);
    assert!(sizes.iter().all(|size| (40..=180).contains(size)), "{sizes:?}");

    let mut left: HashMap<(Vec<u8>, String), i32> = HashMap::new();
    for (picture, caption) in read_all(&bundled()) {
        *left.entry((picture.into_raw(), caption)).or_default() += 1;
    }
    let (mut train, mut held_out) = (HashSet::new(), HashSet::new());
    for (side, pictures) in [(false, &mut train), (true, &mut held_out)] {
        for (path, _) in shards(folder.path(), &prepared, side) {
            let shard = Shard::read(&std::fs::read(path).unwrap()).unwrap();
            assert!(shard.len() <= 50);
            for (picture, caption) in shard.pictures().chunks_exact(32 * 32 * 3).zip(shard.captions()) {
                *left.get_mut(&(picture.to_vec(), caption.clone())).expect("a sample of the source") -= 1;
                pictures.insert(picture.to_vec());
            }
        }
    }
    assert!(left.values().all(|count| *count == 0));
    assert!(train.is_disjoint(&held_out));
    let fraction =
        prepared.clusters.iter().flat_map(|cluster| &cluster.held_out).map(|shard| shard.samples).sum::<usize>();
    assert!((40..=56).contains(&fraction), "{fraction}");
}

#[test]
fn equal_input_gives_equal_hashes_and_a_second_run_changes_nothing() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = prepare_into(one.path(), &settings());
    assert_eq!(first, prepare_into(two.path(), &settings()));
    let listing = |folder: &Path| -> HashSet<_> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    let before = listing(one.path());
    assert!(before.iter().all(|name| name != "spool"), "{before:?}");
    assert_eq!(first, prepare_into(one.path(), &settings()));
    assert_eq!(before, listing(one.path()));
    assert_eq!(first, Prepared::read(one.path()).unwrap());
    let other = prepare_into(two.path(), &PrepareSettings { seed: 4, ..settings() });
    assert_ne!(first.clusters, other.clusters);
}

#[test]
fn a_damaged_shard_is_noticed_and_written_anew() {
    let folder = tempfile::tempdir().unwrap();
    let settings = PrepareSettings { limit: Some(60), clusters: 2, ..settings() };
    let prepared = prepare_into(folder.path(), &settings);
    assert_eq!(prepared.clusters.iter().map(|cluster| cluster.samples()).sum::<usize>(), 60);
    let shard = &prepared.clusters[0].train[0];
    let path = shard.path(folder.path());
    let mut bytes = shard.load(folder.path()).unwrap();
    assert_eq!(shard_hash(&bytes).to_hex().as_str(), shard.hash);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(shard.load(folder.path()), Err(PrepareError::Damaged(_))));
    let encoder: Arc<dyn TextEncoder> = Arc::new(TEXT);
    let opened = Splits::open(folder.path(), &encoder).map(drop);
    assert!(matches!(opened, Err(SplitsError::Prepared(PrepareError::Damaged(damaged))) if damaged == path));
    prepare_into(folder.path(), &settings);
    assert!(shard.load(folder.path()).is_ok() && Splits::open(folder.path(), &encoder).is_ok());
}

#[test]
fn a_record_that_names_other_files_or_another_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let prepared = prepare_into(folder.path(), &PrepareSettings { limit: Some(40), clusters: 2, ..settings() });
    let path = folder.path().join("prepared.json");
    let mut outside = prepared.clone();
    outside.clusters[0].train[0].hash = format!("../{}", "a".repeat(61));
    let newer = Prepared { version: prepared.version + 1, ..prepared };
    for record in [outside, newer] {
        std::fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
        assert!(matches!(Prepared::read(folder.path()), Err(PrepareError::Record { .. })));
    }
    std::fs::write(&path, b"{").unwrap();
    assert!(matches!(Prepared::read(folder.path()), Err(PrepareError::Record { .. })));
}

#[test]
fn impossible_settings_are_refused_before_anything_is_read() {
    let source = Source::open(&bundled()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let refused = [
        PrepareSettings { clusters: 0, ..settings() },
        PrepareSettings { size: 0, ..settings() },
        PrepareSettings { size: 100_000, ..settings() },
        PrepareSettings { held_out: 1.0, ..settings() },
        PrepareSettings { held_out: f64::NAN, ..settings() },
        PrepareSettings { samples_per_shard: 0, ..settings() },
        PrepareSettings { samples_per_shard: 1 << 20, size: 4096, ..settings() },
        PrepareSettings { limit: Some(0), ..settings() },
    ];
    for settings in refused {
        let error = prepare(&source, folder.path(), &settings, &ColourAndEdges, &Pixels, &mut |_| {}).unwrap_err();
        assert!(matches!(error, PrepareError::Settings(_)), "{error}");
    }
    let few = PrepareSettings { limit: Some(5), clusters: 4, ..settings() };
    let error = prepare(&source, folder.path(), &few, &ColourAndEdges, &Pixels, &mut |_| {}).unwrap_err();
    assert!(matches!(error, PrepareError::SmallCluster { .. }), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let source = Source::open(empty.path()).unwrap();
    let error = prepare(&source, folder.path(), &settings(), &ColourAndEdges, &Pixels, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("holds no usable picture"), "{error}");
}

#[test]
fn the_report_shows_each_cluster_s_size_words_and_nearest_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let prepared = prepare_into(folder.path(), &settings());
    let report = Report::read(folder.path()).unwrap();
    assert_eq!((report.samples, report.clusters.len(), report.skipped.count()), (512, 4, 0));
    let sizes: Vec<_> = report.clusters.iter().map(|cluster| cluster.samples).collect();
    assert_eq!(sizes, prepared.clusters.iter().map(|cluster| cluster.samples()).collect::<Vec<_>>());
    let (largest, smallest) = (sizes.iter().max().unwrap(), sizes.iter().min().unwrap());
    assert_eq!(report.balance, *largest as f64 / *smallest as f64);
    for cluster in &report.clusters {
        assert_eq!((cluster.samples, cluster.nearest.len()), (cluster.train + cluster.held_out, 10));
        assert!(cluster.nearest.is_sorted_by(|a, b| a.distance <= b.distance));
        assert!(!cluster.words.is_empty() && cluster.words.iter().all(|word| word.lift > 1.0 && word.count > 0));
    }
    let sheet = image::load_from_memory(&std::fs::read(folder.path().join("report.png")).unwrap()).unwrap();
    assert!(sheet.width() > 1000 && sheet.height() > 4 * 112);
}

#[test]
fn batches_hold_what_the_shards_hold() {
    let folder = tempfile::tempdir().unwrap();
    let prepared = prepare_into(folder.path(), &settings());
    let shards = shards(folder.path(), &prepared, false);
    let data = Dataset::open(shards.clone(), Arc::new(TEXT)).unwrap();
    let samples = prepared.clusters.iter().flat_map(|cluster| &cluster.train).map(|shard| shard.samples).sum::<usize>();
    assert_eq!(data.len(), samples);

    let first = Shard::read(&std::fs::read(&shards[0].0).unwrap()).unwrap();
    let last = data.len() - 1;
    let batch = data.batch(&[last, 0, 0], &Device::Cpu).unwrap();
    assert_eq!(batch.images.dims(), [3, 3, 32, 32]);
    assert_eq!(batch.text.tokens.dims(), [3, 8, 32]);
    assert_eq!(batch.text.pooled.dims(), [3, 32]);
    assert_eq!(batch.labels.to_vec1::<u32>().unwrap(), [3, 0, 0]);
    let image =
        batch.images.get(1).unwrap().permute((1, 2, 0)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let back: Vec<u8> = image.iter().map(|value| ((value + 1.0) * 127.5).round() as u8).collect();
    assert_eq!(back, first.pictures()[..32 * 32 * 3]);
    assert!(image.iter().all(|value| (-1.0..=1.0).contains(value)));
    assert_eq!(data.caption(0).unwrap().as_ref(), Some(&first.captions()[0]));
    assert_eq!((data.label(last), data.label(data.len())), (Some(3), None));
    let direct = TEXT.encode(&[&*data.caption(last).unwrap().unwrap()], &Device::Cpu).unwrap();
    let (drawn, direct) = (batch.text.tokens.get(0).unwrap(), direct.tokens.get(0).unwrap());
    assert_eq!(drawn.to_vec2::<f32>().unwrap(), direct.to_vec2::<f32>().unwrap());
    assert!(data.batch(&[data.len()], &Device::Cpu).is_err());
    assert!(matches!(Dataset::open([], Arc::new(TEXT)), Err(DatasetError::Empty)));
    let garbage = folder.path().join("garbage");
    std::fs::write(&garbage, b"garbage").unwrap();
    assert!(matches!(Dataset::open([(garbage, 0)], Arc::new(TEXT)), Err(DatasetError::Shard(_))));
}

#[test]
fn held_out_pictures_of_a_cluster_lie_nearer_its_training_pictures_than_those_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let prepared = prepare_into(folder.path(), &PrepareSettings { held_out: 0.2, ..settings() });
    let features = |held_out: bool, label: u32| {
        let mut shards = shards(folder.path(), &prepared, held_out);
        shards.retain(|(_, own)| *own == label);
        let data = Dataset::open(shards.clone(), Arc::new(TEXT)).unwrap();
        let all: Vec<_> = (0..data.len()).collect();
        ColourAndEdges.extract(&data.batch(&all, &Device::Cpu).unwrap().images).unwrap()
    };
    for label in 0..4 {
        let held_out = features(true, label);
        let distances: Vec<_> =
            (0..4).map(|other| kernel_distance(&held_out, &features(false, other)).unwrap()).collect();
        println!("held-out of {label}: {distances:?}");
        let nearest = (0..4).min_by(|a, b| distances[*a].total_cmp(&distances[*b])).unwrap();
        assert_eq!(nearest, label as usize, "{distances:?}");
    }
}
