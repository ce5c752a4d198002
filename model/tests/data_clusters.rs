//! Do clusters follow what pictures show? Their agreement with the groups that people gave them, which nothing here reads.
//!
//! Run with `--nocapture` to see sizes, agreement and examples.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use paris_model::batch::BatchSource;
use paris_model::data::{Dataset, PrepareSettings, Source, prepare};
use paris_model::features::ColourAndEdges;
use paris_model::image_codec::Pixels;
use paris_model::text::HashedText;

/// The group of each caption, from the json that stands beside each picture.
fn groups(archive: &Path) -> HashMap<String, String> {
    let file = File::open(archive).unwrap();
    let bytes: Box<dyn Read> = match archive.extension() {
        Some(ending) if ending == "gz" => Box::new(flate2::read::GzDecoder::new(file)),
        _ => Box::new(file),
    };
    let mut archive = tar::Archive::new(bytes);
    let mut groups = HashMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.path().unwrap().extension().is_some_and(|ending| ending == "json") {
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            let field = |name: &str| json[name].as_str().unwrap().trim().to_owned();
            groups.insert(field("text"), field("group"));
        }
    }
    groups
}

/// Normalised mutual information of two labellings: 0 for unrelated, 1 for equal.
fn agreement(pairs: &[(u32, String)]) -> f64 {
    let total = pairs.len() as f64;
    let (mut joint, mut left, mut right) = (HashMap::new(), HashMap::new(), HashMap::new());
    for (a, b) in pairs {
        *joint.entry((a, b)).or_insert(0.0) += 1.0 / total;
        *left.entry(a).or_insert(0.0) += 1.0 / total;
        *right.entry(b).or_insert(0.0) += 1.0 / total;
    }
    let entropy = |shares: &mut dyn Iterator<Item = f64>| -shares.map(|share| share * share.ln()).sum::<f64>();
    let shared: f64 = joint.iter().map(|((a, b), share)| share * (share / (left[a] * right[b])).ln()).sum();
    shared / ((entropy(&mut left.into_values()) + entropy(&mut right.into_values())) / 2.0)
}

/// Agreement of clusters with groups, and of the same clusters with groups dealt out at random.
fn measure(archive: &Path, clusters: usize, seed: u64) -> (f64, f64) {
    let folder = tempfile::tempdir().unwrap();
    let settings = PrepareSettings { clusters, size: 32, seed, ..PrepareSettings::default() };
    let started = std::time::Instant::now();
    let prepared =
        prepare(&Source::open(archive).unwrap(), folder.path(), &settings, &ColourAndEdges, &Pixels, &mut |_| {})
            .unwrap();
    let took = started.elapsed();
    let mut shards = Vec::new();
    for (cluster, label) in prepared.clusters.iter().zip(0..) {
        for shard in cluster.train.iter().chain(&cluster.held_out) {
            shards.push((shard.path(folder.path()), label));
        }
    }
    let data = Dataset::open(shards, Arc::new(HashedText { tokens: 2, width: 1 })).unwrap();
    let groups = groups(archive);
    let labels: Vec<u32> = (0..data.len()).map(|index| data.label(index).unwrap()).collect();
    let captions: Vec<String> = (0..data.len()).map(|index| data.caption(index).unwrap().unwrap()).collect();
    let caption = |index: usize| captions[index].as_str();
    let against = |of: &dyn Fn(usize) -> String| {
        agreement(&labels.iter().enumerate().map(|(index, label)| (*label, of(index))).collect::<Vec<_>>())
    };
    let by_group = against(&|index| groups[caption(index)].clone());
    let by_style = against(&|index| caption(index).split(" emoji ").nth(1).unwrap_or("plain").to_owned());
    let by_chance = against(&|index| groups[caption((index * 197 + 61) % data.len())].clone());
    println!(
        "{} pictures, {took:?}; agreement with group {by_group:.3}, style {by_style:.3}, chance {by_chance:.3}",
        data.len()
    );
    let cap = (data.len() as f64 / clusters as f64 * 1.3).ceil() as usize;
    for label in 0..clusters as u32 {
        let members: Vec<_> = (0..data.len()).filter(|index| labels[*index] == label).collect();
        let mut counts: HashMap<&str, usize> = HashMap::new();
        members.iter().for_each(|index| *counts.entry(&groups[caption(*index)]).or_default() += 1);
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let examples: Vec<_> = members.iter().take(8).map(|index| caption(*index)).collect();
        println!("  {label}: {} pictures, {counts:?}: {examples:?}", members.len());
        // Pictures that occur twice are clustered as one, so a cluster may pass the cap by a few.
        assert!(members.len() <= cap + cap / 20, "{}", members.len());
    }
    (by_group, by_chance)
}

#[test]
fn clusters_of_the_bundled_pictures_follow_content() {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/emoji32-512.tar");
    for seed in 0..3 {
        let (group, chance) = measure(&archive, 4, seed);
        assert!(group > 0.15 && group > 4.0 * chance, "group {group}, chance {chance}");
    }
}

#[test]
fn clusters_of_the_whole_set_follow_content() {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/emoji32.tar.gz");
    if !archive.exists() {
        eprintln!("SKIPPED: {} is not there", archive.display());
        return;
    }
    let (group, chance) = measure(&archive, 8, 0);
    assert!(group > 0.1 && group > 4.0 * chance, "group {group}, chance {chance}");
}
