//! Shards come from strangers: whole ones round-trip, anything else is an error and never a panic.

use std::{fs, io::ErrorKind, path::PathBuf};

use candle_core::{Device, Tensor};
use paris_model::data::{Encoding, Shard, ShardError, ShardFile, ShardFileError, shard::moment_bytes, shard_hash};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView, serialize};

fn shard(captions: &[String]) -> Shard {
    let pixels = (0..captions.len() * 2 * 3 * 3).map(|i| i as u8).collect();
    Shard::new(2, 3, pixels, captions.to_vec()).unwrap()
}

/// Latents of 2 channels, 2 x 3; sample i has means 10 i + 0.. and log-variances -i.
fn latents(captions: &[String]) -> Shard {
    let moments = (0..captions.len())
        .flat_map(|i| (0..12).map(move |j| (10 * i + j) as f32).chain(std::iter::repeat_n(-(i as f32), 12)));
    let moments = Tensor::from_iter(moments, &Device::Cpu).unwrap().reshape((captions.len(), 4, 2, 3)).unwrap();
    let bytes = moment_bytes(&moments).unwrap();
    Shard::encoded(Encoding::Moments { channels: 2 }, 2, 3, bytes, captions.to_vec()).unwrap()
}

/// A file with the three tensors, any of which may be wrong.
fn file(pixels: (Vec<usize>, &[u8]), captions: &[u8], ends: &[u32]) -> Vec<u8> {
    let ends: Vec<u8> = ends.iter().flat_map(|end| end.to_le_bytes()).collect();
    let tensors = [
        ("pixels", TensorView::new(Dtype::U8, pixels.0, pixels.1).unwrap()),
        ("captions", TensorView::new(Dtype::U8, vec![captions.len()], captions).unwrap()),
        ("caption_ends", TensorView::new(Dtype::U32, vec![ends.len() / 4], &ends).unwrap()),
    ];
    serialize(tensors, None).unwrap()
}

/// Bytes as a file.
struct OnDisk {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl OnDisk {
    fn new(bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard");
        fs::write(&path, bytes).unwrap();
        Self { _folder: folder, path }
    }

    fn open(&self) -> Result<ShardFile, ShardFileError> {
        ShardFile::open(&self.path)
    }
}

/// Reads bytes in memory and as a file, which must agree.
fn read(bytes: &[u8]) -> Result<Shard, ShardError> {
    let (in_memory, on_disk) = (Shard::read(bytes), OnDisk::new(bytes));
    match (&in_memory, on_disk.open()) {
        (Ok(shard), Ok(file)) => {
            assert_eq!((file.len(), file.height(), file.width()), (shard.len(), shard.height(), shard.width()));
            assert_eq!(file.encoding(), shard.encoding());
            let mut read = Vec::new();
            let bytes = shard.encoding().bytes(shard.height(), shard.width());
            for (sample, picture) in shard.pictures().chunks(bytes).enumerate() {
                file.read_picture(sample, &mut read).unwrap();
                assert_eq!(read, picture);
                assert_eq!(file.read_caption(sample).unwrap(), shard.captions()[sample]);
            }
        }
        (Err(_), Err(ShardFileError::Broken { path, .. })) => assert_eq!(path, on_disk.path),
        (in_memory, file) => panic!("in memory {in_memory:?}, as a file {file:?}"),
    }
    in_memory
}

#[test]
fn the_bytes_are_the_same_on_every_machine() {
    let bytes = shard(&["a cat".into(), String::new(), "ein Bär".into()]).write().unwrap();
    assert_eq!(shard_hash(&bytes).to_hex().as_str(), GOLDEN);
    let bytes = latents(&["a cat".into(), String::new(), "ein Bär".into()]).write().unwrap();
    assert_eq!(shard_hash(&bytes).to_hex().as_str(), GOLDEN_LATENTS);
}

/// Changing these changes the name of every shard ever prepared.
const GOLDEN: &str = "b043159161cd7394167027173b1a80a5984c7d3c8c3690f98cc41a35dcd5f888";
const GOLDEN_LATENTS: &str = "8f046dc67e3847a0d489037056f803bc986c758d0d1e4576c3ecfa968aec2b04";

#[test]
fn broken_layouts_are_refused() {
    let pixels = (vec![2, 1, 1, 3], &[0u8; 6][..]);
    assert!(read(&file(pixels.clone(), b"abc", &[1, 3])).is_ok());
    let broken = [
        file(pixels.clone(), b"abc", &[1, 2]),
        file(pixels.clone(), b"abc", &[1, 4]),
        file(pixels.clone(), b"abc", &[3, 1]),
        file(pixels.clone(), b"abc", &[1, u32::MAX]),
        file(pixels.clone(), b"abc", &[3]),
        file(pixels.clone(), b"\xffbc", &[1, 3]),
        file(pixels, "€".as_bytes(), &[1, 3]),
        file((vec![2, 1, 3, 1], &[0; 6]), b"abc", &[1, 3]),
        file((vec![6], &[0; 6]), b"abc", &[1, 3]),
        file((vec![1, 1, 1, 3], &[0; 3]), &[b'a'; 4097], &[4097]),
        file((vec![0, 1, 1, 3], &[]), b"", &[]),
        file((vec![1, 0, 1, 3], &[]), b"a", &[1]),
        file((vec![1, 1, 5000, 3], &[0; 15000]), b"a", &[1]),
    ];
    for bytes in broken {
        assert!(read(&bytes).is_err());
    }
    let one = TensorView::new(Dtype::U8, vec![1], &[0]).unwrap();
    assert!(read(&serialize([("pixels", one)], None).unwrap()).is_err());
}

/// Latents from which no finite number could be drawn would stop every node that trains on them.
#[test]
fn latents_that_are_no_numbers_are_refused() {
    let file = |shape: Vec<usize>, moments: &[f32]| {
        let moments: Vec<u8> = moments.iter().flat_map(|it| half::f16::from_f32(*it).to_le_bytes()).collect();
        let tensors = [
            ("moments", TensorView::new(Dtype::F16, shape, &moments).unwrap()),
            ("captions", TensorView::new(Dtype::U8, vec![1], b"a").unwrap()),
            ("caption_ends", TensorView::new(Dtype::U32, vec![1], &[1, 0, 0, 0]).unwrap()),
        ];
        serialize(tensors, None).unwrap()
    };
    let shard = read(&file(vec![1, 2, 1, 2], &[60_000.0, -3.0, 20.0, -60_000.0])).unwrap();
    assert_eq!(shard.encoding(), Encoding::Moments { channels: 1 });
    for moments in [[f32::NAN, 0.0, 0.0, 0.0], [0.0, f32::INFINITY, 0.0, 0.0], [0.0, 0.0, f32::NAN, 0.0]] {
        assert!(matches!(read(&file(vec![1, 2, 1, 2], &moments)), Err(ShardError::Latent(0))));
    }
    for log_variance in [20.1, f32::NEG_INFINITY] {
        let moments = file(vec![1, 2, 1, 2], &[0.0, 0.0, 0.0, log_variance]);
        assert!(matches!(read(&moments), Err(ShardError::Latent(0))));
    }
    for shape in [vec![1, 4, 1, 1], vec![1, 1, 2, 2], vec![4], vec![1, 0, 2, 2], vec![1, 4]] {
        let numbers = vec![0.0; shape.iter().product()];
        assert_eq!(read(&file(shape.clone(), &numbers)).is_ok(), shape == [1, 4, 1, 1], "{shape:?}");
    }
    assert!(read(&file(vec![1, 130, 1, 1], &[0.0; 130])).is_err());
}

#[test]
fn a_claimed_header_is_not_believed() {
    for claimed in [u64::MAX, 1 << 32, (1 << 20) + 1, 9] {
        let mut bytes = claimed.to_le_bytes().to_vec();
        bytes.extend([b'{'; 8]);
        assert!(matches!(read(&bytes), Err(ShardError::Header { .. })), "{claimed}");
    }
    assert!(matches!(read(&[]), Err(ShardError::Header { .. })));
}

/// Disks go, and files are changed under our feet.
#[test]
fn a_file_that_changes_after_it_was_opened_is_an_error_that_names_it() {
    let bytes = shard(&["a cat".into(), "a dog".into()]).write().unwrap();
    let mut changed = bytes.clone();
    let dog = changed.windows(3).position(|word| word == b"dog").unwrap();
    changed[dog] = 0xff;
    let on_disk = OnDisk::new(&bytes);
    let file = on_disk.open().unwrap();
    let named = |error: ShardFileError| match error {
        ShardFileError::Read { path, sample: 1, error } => {
            assert_eq!(path, on_disk.path);
            error.kind()
        }
        other => panic!("{other:?}"),
    };
    fs::write(&on_disk.path, &changed).unwrap();
    assert_eq!(named(file.read_caption(1).unwrap_err()), ErrorKind::InvalidData);
    fs::write(&on_disk.path, &bytes[..bytes.len() - 20]).unwrap();
    assert_eq!(named(file.read_picture(1, &mut Vec::new()).unwrap_err()), ErrorKind::UnexpectedEof);
    fs::remove_file(&on_disk.path).unwrap();
    assert_eq!(named(file.read_picture(1, &mut Vec::new()).unwrap_err()), ErrorKind::NotFound);
    assert!(matches!(file.read_picture(2, &mut Vec::new()), Err(ShardFileError::Read { sample: 2, .. })));
    assert!(matches!(file.read_caption(usize::MAX), Err(ShardFileError::Read { .. })));
    assert!(matches!(on_disk.open(), Err(ShardFileError::Broken { .. })));
}

#[test]
fn samples_that_make_no_shard_are_refused() {
    assert!(Shard::new(2, 3, vec![], vec![]).is_err());
    assert!(Shard::new(0, 3, vec![], vec!["a".into()]).is_err());
    assert!(Shard::new(2, 3, vec![0; 17], vec!["a".into()]).is_err());
    assert!(Shard::new(1, 1, vec![0; 3], vec!["a".repeat(4097)]).is_err());
    assert!(Shard::new(usize::MAX, usize::MAX, vec![0; 17], vec!["a".into()]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shards_come_back_as_they_were_written(captions in prop::collection::vec(".{0,20}", 1..20)) {
        for shard in [shard(&captions), latents(&captions)] {
            prop_assert_eq!(read(&shard.write().unwrap()).unwrap(), shard);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes);
    }

    #[test]
    fn changed_bytes_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        shorten in any::<bool>(),
        moments in any::<bool>(),
    ) {
        let captions = ["a cat".into(), "a dog".into()];
        let mut bytes = if moments { latents(&captions) } else { shard(&captions) }.write().unwrap();
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if shorten {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(shard) = read(&bytes) {
            let bytes = shard.encoding().bytes(shard.height(), shard.width());
            prop_assert_eq!(shard.pictures().len(), shard.len() * bytes);
            prop_assert_eq!(shard.captions().len(), shard.len());
        }
    }

    #[test]
    fn any_header_never_panics(header in "\\{(\"(pixels|moments|captions|caption_ends)\":\\{\"dtype\":\"(U8|U32|F16)\",\"shape\":\\[[0-9]{1,20}(,[0-9]{1,20}){0,3}\\],\"data_offsets\":\\[[0-9]{1,20},[0-9]{1,20}\\]\\},?){0,3}\\}", body in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(body);
        let _ = read(&bytes);
    }
}
