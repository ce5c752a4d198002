//! A manifest with a value out of range is refused, and the error names the field.

use paris_protocol::{
    checkpoint::Blob,
    codec::Wire,
    hash::Hash,
    identity::NodeId,
    manifest::{Additions, Admission, Encoders, ImageCodec, Manifest, ManifestError, Shard, TextEncoder, TextFiles},
};

use crate::common::manifest;

/// The field that the check names after `change`.
fn refused(change: impl FnOnce(&mut Manifest)) -> &'static str {
    let mut changed = manifest(2, 1);
    change(&mut changed);
    match changed.check() {
        Err(ManifestError::Field { field, value, needed }) => {
            assert!(!value.is_empty() && !needed.is_empty());
            field
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_shape_of_data_is_bounded() {
    assert_eq!(refused(|it| it.name = "x".repeat(101)), "name");
    assert_eq!(refused(|it| it.clusters.clear()), "number of clusters");
    assert_eq!(refused(|it| it.clusters = vec![it.clusters[0].clone(); 1025]), "number of clusters");
    assert_eq!(refused(|it| it.image.channels = 0), "image channels");
    assert_eq!(refused(|it| it.image.channels = 65), "image channels");
    assert_eq!(refused(|it| it.image.channels = 4), "image channels");
    assert_eq!(refused(|it| it.image.size = 0), "image size");
    assert_eq!(refused(|it| it.image.size = 1025), "image size");
    assert_eq!(refused(|it| it.text.tokens = 0), "text tokens");
    assert_eq!(refused(|it| it.text.width = 8193), "text width");
    assert_eq!(refused(|it| it.clusters[1].train.clear()), "training samples of a cluster");
    assert_eq!(refused(|it| it.clusters[1].train[0].samples = 0), "training samples of a cluster");
    let huge = Shard { hash: Hash::of(b""), bytes: (4 << 30) + 1, samples: 1 };
    assert_eq!(refused(|it| it.clusters[0].train.push(huge)), "shard length");
    assert_eq!(refused(|it| it.clusters[0].held_out.push(huge)), "shard length");
}

#[test]
fn the_version_says_whether_there_are_additions() {
    let files = TextFiles { weights: Hash::of(b"weights"), tokenizer: Hash::of(b"tokenizer") };
    let encoders = Encoders { text: TextEncoder::MiniLm(files), image: ImageCodec::Pixels };
    assert_eq!(refused(|it| it.version = 2), "version");
    let built_in = manifest(2, 1).to_bytes().unwrap();
    assert!(Manifest::read(&[&built_in[..], &[0]].concat()).is_err());
    let pretrained = Additions { encoders, ..Additions::default() };
    for additions in [pretrained, noise(&[1]), noise(&[0, 1])] {
        assert_eq!(refused(|it| it.additions = additions.clone()), "version");
        let named = Manifest { version: 2, additions, ..manifest(2, 1) };
        let bytes = named.to_bytes().unwrap();
        assert_eq!(Manifest::read(&bytes).unwrap(), named);
        assert_ne!(named.id().unwrap(), manifest(2, 1).id().unwrap());
        // Cut anywhere, or with more behind it, it is no manifest.
        for end in 0..bytes.len() {
            assert!(Manifest::read(&bytes[..end]).is_err(), "{end}");
        }
        assert!(Manifest::read(&[&bytes[..], &[0]].concat()).is_err());
        assert!(matches!(Manifest::read(&[&[3], &bytes[1..]].concat()), Err(ManifestError::Version(3))));
    }
}

/// Experts of these clusters predict noise.
fn noise(clusters: &[u16]) -> Additions {
    Additions { epsilon_experts: clusters.to_vec(), ..Additions::default() }
}

#[test]
fn experts_that_predict_noise_are_of_the_run_and_start_from_no_base() {
    let refused = |additions: Additions| refused(|it| (it.version, it.additions) = (2, additions));
    for strange in [&[2u16][..], &[0, 0], &[1, 0], &[0, 1, u16::MAX]] {
        assert_eq!(refused(noise(strange)), "list of experts that predict noise", "{strange:?}");
    }
    let base = Some(Blob { hash: Hash::of(b"base"), bytes: 1000 });
    assert_eq!(refused(Additions { base, ..noise(&[1]) }), "list of experts that predict noise");
    let mixed = Manifest { version: 2, additions: noise(&[1]), ..manifest(2, 1) };
    assert_eq!(mixed.parts().map(|part| mixed.predicts_noise(part)).collect::<Vec<_>>(), [false, true, false]);
}

#[test]
fn transformers_are_bounded_and_fit_together() {
    for router in [false, true] {
        let refused = |change: fn(&mut paris_protocol::manifest::Transformer)| {
            refused(|it| change(if router { &mut it.router } else { &mut it.expert }))
        };
        assert_eq!(refused(|it| it.depth = 0), "depth");
        assert_eq!(refused(|it| it.depth = 257), "depth");
        assert_eq!(refused(|it| it.heads = 0), "heads");
        assert_eq!(refused(|it| it.width = 0), "width");
        assert_eq!(refused(|it| it.width = 62), "width");
        assert_eq!(refused(|it| it.heads = 3), "width");
        assert_eq!(refused(|it| it.width = 16_388), "width");
        assert_eq!(refused(|it| it.patch = 0), "patch");
        assert_eq!(refused(|it| it.patch = 3), "patch");
    }
}

#[test]
fn training_is_bounded() {
    for router in [false, true] {
        let refused = |change: fn(&mut paris_protocol::manifest::Training)| {
            refused(|it| change(if router { &mut it.router_training } else { &mut it.expert_training }))
        };
        assert_eq!(refused(|it| it.batch = 0), "batch");
        assert_eq!(refused(|it| it.batch = 65_537), "batch");
        assert_eq!(refused(|it| it.learning_rate = 0.0), "learning rate");
        assert_eq!(refused(|it| it.learning_rate = f32::NAN), "learning rate");
        assert_eq!(refused(|it| it.clip = 0.0), "clip");
        assert_eq!(refused(|it| it.clip = f32::INFINITY), "clip");
        assert_eq!(refused(|it| it.ema_decay = 1.0), "EMA decay");
        assert_eq!(refused(|it| it.ema_decay = f32::NAN), "EMA decay");
        assert_eq!(refused(|it| it.caption_drop = 1.1), "caption drop");
        assert_eq!(refused(|it| it.caption_drop = -0.1), "caption drop");
    }
}

#[test]
fn the_times_of_ownership_are_bounded() {
    assert_eq!(refused(|it| it.ownership.heartbeat_ms = 49), "heartbeat");
    assert_eq!(refused(|it| it.ownership.heartbeat_ms = 600_001), "heartbeat");
    assert_eq!(refused(|it| it.ownership.ttl_ms = 3 * it.ownership.heartbeat_ms - 1), "ttl");
    assert_eq!(refused(|it| it.ownership.checkpoint_ms = 99), "checkpoint interval");
    assert_eq!(refused(|it| it.ownership.quorum = 0), "quorum");
    assert_eq!(refused(|it| it.ownership.quorum = 65), "quorum");
}

#[test]
fn another_version_is_no_field_error() {
    let mut other = manifest(1, 1);
    other.version = 9;
    assert!(matches!(other.check(), Err(ManifestError::Version(9))));
    assert!(manifest(1, 1).check().is_ok());
}

#[test]
fn an_allow_list_admits_its_keys_alone() {
    let mut closed = manifest(1, 1);
    closed.admission = Admission::AllowList(vec![NodeId([1; 32])]);
    assert!(closed.admits(NodeId([1; 32])) && !closed.admits(NodeId([2; 32])));
}
