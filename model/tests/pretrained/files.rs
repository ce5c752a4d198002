//! Files that are missing, of another network, or not those of the run.

use candle_core::Device;
use paris_model::{
    image_codec::Vae,
    pretrained::{Files, Identity, Network, PretrainedError},
    text::{ClipText, ClipTokenizer, MiniLmText},
};

use crate::fixture::{Fixture, folder, numbers};

#[test]
fn one_error_names_every_tensor_that_is_wrong() {
    let mut fixture = Fixture::read("vae");
    fixture.weights.remove("encoder.conv_in.bias");
    fixture.weights.remove("decoder.up_blocks.1.resnets.2.norm2.weight");
    fixture.weights.insert("decoder.conv_out.weight".to_owned(), numbers("x", &[3, 32, 3, 1]));
    fixture.weights.insert("surplus".to_owned(), numbers("x", &[1]));
    let integers = numbers("x", &[8]).to_dtype(candle_core::DType::I64).unwrap();
    fixture.weights.insert("quant_conv.bias".to_owned(), integers);
    match Vae::load(&fixture.files(Network::Vae, Vec::new()), &Device::Cpu).map(|_| ()) {
        Err(error @ PretrainedError::Tensors { .. }) => {
            let text = error.to_string();
            for part in [
                "encoder.conv_in.bias [32] is missing",
                "decoder.up_blocks.1.resnets.2.norm2.weight [32] is missing",
                "decoder.conv_out.weight is [3, 32, 3, 1] and should be [3, 32, 3, 3]",
                "surplus is left over",
                "quant_conv.bias holds I64",
                "stabilityai/sd-vae-ft-mse",
            ] {
                assert!(text.contains(part), "{part:?} is not in {text}");
            }
            assert_eq!(text.matches("; ").count(), 4, "{text}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn another_network_and_broken_bytes_are_errors() {
    let tokenizer = std::fs::read(folder().join("clip/tokenizer.json")).unwrap();
    let vae = Fixture::read("vae").files(Network::Clip, tokenizer.clone());
    assert!(matches!(ClipText::load(&vae, &Device::Cpu), Err(PretrainedError::Tensors { .. })));
    let garbage = Files { network: Network::Clip, weights: vec![7; 100], tokenizer: tokenizer.clone() };
    assert!(matches!(ClipText::load(&garbage, &Device::Cpu), Err(PretrainedError::Frame { .. })));
    let clip = Fixture::read("clip");
    let broken = clip.files(Network::Clip, tokenizer[..200].to_vec());
    assert!(matches!(ClipText::load(&broken, &Device::Cpu), Err(PretrainedError::Tokenizer { .. })));
    assert!(ClipTokenizer::from_vocabulary(b"{}", "").is_err());
    assert!(ClipTokenizer::from_vocabulary(b"[", "").is_err());
    // A tokenizer of more tokens than the weights know would read past their table.
    let minilm = Fixture::read("minilm").files(Network::MiniLm, tokenizer);
    assert!(matches!(MiniLmText::load(&minilm, 16, &Device::Cpu), Err(PretrainedError::Tokenizer { .. })));
}

#[test]
fn files_are_found_by_name_and_held_to_the_hash_of_the_run() {
    let encoders = tempfile::tempdir().unwrap();
    let place = encoders.path().join("vae");
    let wanted = |weights: &str| Identity { weights: Some(weights.to_owned()), ..Identity::built_in("vae") };
    let read = |wanted: Option<&Identity>| Files::read(Network::Vae, encoders.path(), wanted);
    let missing = read(Some(&wanted("c0ffee"))).map(|_| ()).unwrap_err().to_string();
    for part in ["vae/diffusion_pytorch_model.safetensors", "c0ffee", "stabilityai/sd-vae-ft-mse"] {
        assert!(missing.contains(part), "{missing}");
    }
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join("diffusion_pytorch_model.safetensors"), b"weights").unwrap();
    let files = read(None).unwrap();
    let identity = files.identity();
    assert_eq!(identity.weights.as_deref(), Some(blake3::hash(b"weights").to_hex().as_str()));
    assert_eq!((identity.name.as_str(), &identity.tokenizer), ("vae", &None));
    assert_eq!(read(Some(&identity)).unwrap().weights, b"weights");
    let other = read(Some(&wanted("c0ffee"))).map(|_| ()).unwrap_err();
    assert!(matches!(&other, PretrainedError::Other { found, .. } if Some(found) == identity.weights.as_ref()));
    let text = other.to_string();
    assert!(text.contains("c0ffee") && text.contains("the run"), "{text}");
}
