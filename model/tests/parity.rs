//! Output and every gradient equal the PyTorch twin's (see `twin/README.md`).

use paris_model::{config::PartConfig, parity::compare};

/// What rounding explains at this size.
const LIMIT: f64 = 3e-5;

/// Compares a reference, and returns what it is of.
fn is_the_twin(reference: &[u8]) -> PartConfig {
    let parity = compare(reference).unwrap();
    assert_eq!(parity.gradients.len(), parity.config.shapes().len() - 1, "of all but the position table");
    assert!(parity.worst() < LIMIT, "output {:e}, gradients {:#?}", parity.output, parity.gradients);
    parity.config
}

#[test]
fn the_expert_is_its_twin() {
    for (reference, size) in [
        (include_bytes!("twin/expert.safetensors").as_slice(), (16, 2, 2, 2, 3)),
        (include_bytes!("twin/expert-deep.safetensors"), (12, 3, 3, 4, 5)),
    ] {
        let PartConfig::Expert(config) = is_the_twin(reference) else { panic!("no expert") };
        assert_eq!((config.width, config.depth, config.heads, config.patch, config.text_tokens), size);
    }
}

#[test]
fn the_router_is_its_twin() {
    for (reference, size) in [
        (include_bytes!("twin/router.safetensors").as_slice(), (16, 2, 2, 2, 3)),
        (include_bytes!("twin/router-deep.safetensors"), (12, 3, 3, 4, 5)),
    ] {
        let PartConfig::Router(config) = is_the_twin(reference) else { panic!("no router") };
        assert_eq!((config.width, config.depth, config.heads, config.patch, config.clusters), size);
    }
}

#[test]
fn a_wrong_weight_is_noticed() {
    // One number of one weight, off by a little: the comparison must see it.
    let mut reference = include_bytes!("twin/expert.safetensors").to_vec();
    let header = 8 + u64::from_le_bytes(reference[..8].try_into().unwrap()) as usize;
    let json = String::from_utf8(reference[8..header].to_vec()).unwrap();
    let entry = &json[json.find("\"w.layers.1.attn.out_proj.weight\"").unwrap()..];
    let offsets = &entry[entry.find("\"data_offsets\":[").unwrap() + 16..];
    let start = header + offsets[..offsets.find(',').unwrap()].parse::<usize>().unwrap();
    let weight = f32::from_le_bytes(reference[start..start + 4].try_into().unwrap());
    reference[start..start + 4].copy_from_slice(&(weight + 0.01).to_le_bytes());
    assert!(compare(&reference).unwrap().worst() > 1e-4);
}

#[test]
fn what_is_no_reference_is_refused() {
    assert!(compare(b"not safetensors").is_err());
}
