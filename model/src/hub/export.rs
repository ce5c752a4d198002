//! Writing the published layout.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    CodecSource, HubError, Published, TextSource,
    config::{FolderFields, PartFields},
    folder::{copy_into, write_folder},
    io_error,
    names::{
        CALIBRATION, CODEC, CONFIG, EXPERT_WEIGHTS, INDEX, ROUTER, ROUTER_WEIGHTS, TEXT_ENCODER, TOKENIZER, expert,
    },
};
use crate::{
    config::{ExpertConfig, RouterConfig},
    objective::Objective,
    pretrained::Network,
    sampler::Calibration,
};

/// A mixture that is to be published: the weights to sample with, as files.
pub struct Exported {
    /// The experts by cluster.
    pub experts: Vec<ExportedPart<ExpertConfig>>,
    /// The router.
    pub router: ExportedPart<RouterConfig>,
    /// The router's temperatures, if they were fitted.
    pub calibration: Option<Calibration>,
    /// What the experts learnt captions from. What is read of its files is copied along.
    pub text: TextSource,
    /// What the experts' pictures went through. What is read of its files is copied along.
    pub codec: CodecSource,
}

/// A model and a file of its weights.
pub struct ExportedPart<C> {
    /// The shapes.
    pub config: C,
    /// What it predicts; of a router it says nothing.
    pub objective: Objective,
    /// The file.
    pub weights: PathBuf,
    /// The BLAKE3 of its bytes, which are copied as they are.
    pub hash: blake3::Hash,
}

/// `model_index.json`: what is in the folder.
#[derive(Serialize)]
struct Index {
    #[serde(rename = "_class_name")]
    class_name: &'static str,
    experts: Vec<String>,
    router: &'static str,
    made_by: &'static str,
}

/// Writes a mixture as a folder that does not exist yet, or is empty: whole or not at all. All files in it are copies: it belongs to whoever asked for it,
/// and may be changed.
///
/// # Errors
/// If the folder is taken, a file of weights is not what its hash says or not of its config's shapes, or the operating system refuses.
pub fn export(folder: &Path, mixture: &Exported) -> Result<(), HubError> {
    write_folder(folder, |folder| {
        for (cluster, part) in mixture.experts.iter().enumerate() {
            write_part(
                &folder.join(expert(cluster)),
                EXPERT_WEIGHTS,
                &PartFields::of_expert(&part.config, part.objective),
                part,
            )?;
        }
        let router = folder.join(ROUTER);
        write_part(&router, ROUTER_WEIGHTS, &PartFields::of_router(&mixture.router.config), &mixture.router)?;
        if let Some(calibration) = &mixture.calibration {
            write_json(&router.join(CALIBRATION), calibration)?;
        }
        let mut fields = FolderFields { num_clusters: Some(mixture.experts.len()), ..FolderFields::default() };
        match &mixture.text {
            TextSource::Hashed(_) => fields.text_encoder = Some(TextSource::HASHED.to_owned()),
            TextSource::Files { encoder, tokenizer } => {
                copy_network(Network::Clip.weights_file(), encoder, &folder.join(TEXT_ENCODER))?;
                if let Some(file) = Network::Clip.tokenizer_file() {
                    copy_into(&folder.join(TOKENIZER), &tokenizer.join(file))?;
                }
            }
        }
        match &mixture.codec {
            CodecSource::Pixels => fields.image_codec = Some(CodecSource::PIXELS.to_owned()),
            CodecSource::Files(codec) => copy_network(Network::Vae.weights_file(), codec, &folder.join(CODEC))?,
        }
        write_json(&folder.join(CONFIG), &fields)?;
        let index = Index {
            class_name: "ParisPipeline",
            experts: (0..mixture.experts.len()).map(expert).collect(),
            router: ROUTER,
            made_by: concat!("paris-node ", env!("CARGO_PKG_VERSION")),
        };
        write_json(&folder.join(INDEX), &index)?;
        // What is written must be what can be read.
        Published::open(folder).map(drop)
    })
}

/// Copies a network's weights from a folder into another, with the config that other programs want beside them, where there is one.
fn copy_network(weights: &str, from: &Path, to: &Path) -> Result<(), HubError> {
    copy_into(to, &from.join(weights))?;
    let config = from.join(CONFIG);
    if config.is_file() { copy_into(to, &config) } else { Ok(()) }
}

fn write_part<C>(folder: &Path, weights: &str, fields: &PartFields, part: &ExportedPart<C>) -> Result<(), HubError> {
    fs::create_dir(folder).map_err(io_error(folder))?;
    write_json(&folder.join(CONFIG), fields)?;
    let path = folder.join(weights);
    fs::copy(&part.weights, &path).map_err(io_error(&part.weights))?;
    let mut hasher = blake3::Hasher::new();
    File::open(&path).and_then(|file| hasher.update_reader(file).map(drop)).map_err(io_error(&path))?;
    if hasher.finalize() != part.hash {
        let reason = format!("its bytes hash to {} instead of {}: it is damaged", hasher.finalize(), part.hash);
        return Err(HubError::Weights { path: part.weights.clone(), reason });
    }
    Ok(())
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), HubError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| io_error(path)(error.into()))?;
    fs::write(path, text + "\n").map_err(io_error(path))
}
