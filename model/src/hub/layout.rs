//! Reading the published layout: everything but the numbers is checked first, and all that is wrong is said at once.

use std::{
    fs,
    path::{Path, PathBuf},
};

use candle_core::Device;

use super::{
    HubError,
    config::{FolderFields, PartFields, read},
    folder::{link_all, link_or_copy, write_folder},
    io_error,
    names::{
        CALIBRATION, CODEC, CONFIG, EXPERT_WEIGHTS, INDEX, ROUTER, ROUTER_WEIGHTS, TEXT_ENCODER, TOKENIZER, expert,
    },
};
use crate::{
    checkpoint::CheckpointError,
    config::{ExpertConfig, PartConfig, RouterConfig},
    objective::Objective,
    parameters::Parameters,
    sampler::Calibration,
    tensor_file::TensorFile,
    text::HashedText,
};

/// A mixture in the published layout. Names and shapes are checked; the numbers are when they are read.
#[derive(Debug)]
pub struct Published {
    /// Where it lies.
    pub folder: PathBuf,
    /// The experts by cluster.
    pub experts: Vec<PublishedPart<ExpertConfig>>,
    /// The router.
    pub router: PublishedPart<RouterConfig>,
    /// The router's temperatures, if they were fitted.
    pub calibration: Option<Calibration>,
    /// What encodes captions.
    pub text: TextSource,
    /// What decodes pictures.
    pub codec: CodecSource,
}

/// A model and its weights.
#[derive(Debug)]
pub struct PublishedPart<C> {
    /// The shapes.
    pub config: C,
    /// What it predicts; of a router it says nothing.
    pub objective: Objective,
    /// The weights.
    pub weights: TensorFile,
}

/// Where the text encoder comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextSource {
    /// It is built in.
    Hashed(HashedText),
    /// Files of the published layout: CLIP's text model, and its tokenizer.
    Files {
        /// The folder `text_encoder`.
        encoder: PathBuf,
        /// The folder `tokenizer`.
        tokenizer: PathBuf,
    },
}

/// Where the image codec comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CodecSource {
    /// What is drawn are the pixels.
    Pixels,
    /// The folder `vae` of the published layout.
    Files(PathBuf),
}

impl TextSource {
    /// What a folder's config calls the built-in encoder.
    pub(super) const HASHED: &str = "hashed";
}

impl CodecSource {
    /// What a folder's config calls the built-in codec.
    pub(super) const PIXELS: &str = "pixels";
}

impl Published {
    /// Opens a folder and checks it against its own configs, by the headers of its files: no weight is read.
    ///
    /// # Errors
    /// [`HubError::Layout`] names every missing, extra or misshapen tensor of every file, and everything else that is wrong.
    pub fn open(folder: &Path) -> Result<Self, HubError> {
        let mut problems = Vec::new();
        let opened = Self::opened(folder, &mut problems)?;
        match opened {
            Some(published) if problems.is_empty() => Ok(published),
            _ => Err(HubError::Layout { folder: folder.to_owned(), problems }),
        }
    }

    /// What can be opened; none only if there are problems.
    fn opened(folder: &Path, problems: &mut Vec<String>) -> Result<Option<Self>, HubError> {
        let fields: FolderFields = read(&folder.join(CONFIG)).unwrap_or_else(|error| {
            problems.push(format!("{CONFIG}: {error}"));
            FolderFields::default()
        });
        let mut experts = Vec::new();
        let count = expert_folders(folder)?;
        for name in (0..count).map(expert) {
            let read =
                part(folder, &name, EXPERT_WEIGHTS, |fields, file| fields.expert(file), PartConfig::Expert, problems);
            experts.extend(read);
        }
        if count == 0 {
            problems.push(format!("{}/: is missing", expert(0)));
        }
        let of_router = |fields: &PartFields, file: &TensorFile| fields.router(file);
        let router = part(folder, ROUTER, ROUTER_WEIGHTS, of_router, PartConfig::Router, problems);
        let calibration = calibration(folder, problems);
        let (text, codec) = (text(folder, &fields, &experts, problems), codec(folder, &fields, problems));
        if let Some(clusters) = fields.num_clusters.filter(|clusters| *clusters != count) {
            problems.push(format!("{CONFIG}: num_clusters is {clusters}, and there are {count} folders of experts"));
        }
        let (Some(router), Some(first)) = (router, experts.first().map(|it| it.config.clone())) else {
            return Ok(None);
        };
        // One that cannot be read would shift the numbers of those after it.
        if experts.len() != count {
            return Ok(None);
        }
        if router.config.clusters != count {
            problems.push(format!(
                "{ROUTER}/: tells {} clusters apart, and there are {count} experts",
                router.config.clusters
            ));
        }
        let shape = |channels, size| format!("{channels} x {size} x {size}");
        let drawn = shape(first.channels, first.size);
        for (name, other) in experts
            .iter()
            .enumerate()
            .map(|(number, it)| (expert(number), shape(it.config.channels, it.config.size)))
            .chain([(ROUTER.to_owned(), shape(router.config.channels, router.config.size))])
            .filter(|(_, other)| *other != drawn)
        {
            problems.push(format!("{name}/: is made for {other}, and {}/ for {drawn}", expert(0)));
        }
        let (Some(text), Some(codec)) = (text, codec) else { return Ok(None) };
        Ok(Some(Self { folder: folder.to_owned(), experts, router, calibration, text, codec }))
    }

    /// Puts the same mixture into another folder, which does not exist yet or is empty: whole or not at all. Where the disk can, its files are links to the
    /// same bytes.
    ///
    /// # Errors
    /// If the folder is taken, or the operating system refuses.
    pub fn copy_to(&self, folder: &Path) -> Result<(), HubError> {
        write_folder(folder, |folder| {
            let is_here = |name: &String| self.folder.join(name).exists();
            let parts =
                (0..self.experts.len()).map(expert).chain([ROUTER, CODEC, TEXT_ENCODER, TOKENIZER].map(str::to_owned));
            for name in parts.filter(is_here) {
                link_all(&self.folder.join(&name), &folder.join(&name))?;
            }
            for name in [CONFIG, INDEX].map(str::to_owned).iter().filter(|name| is_here(name)) {
                let source = self.folder.join(name);
                link_or_copy(&source.canonicalize().map_err(io_error(source))?, &folder.join(name))?;
            }
            Ok(())
        })
    }

    /// Reads every weight once, so that nothing is left to go wrong when pictures are drawn. `heard` is told each file before it is read.
    ///
    /// # Errors
    /// If a file cannot be read or holds numbers that are not finite.
    pub fn check_numbers(&self, heard: &mut dyn FnMut(&Path)) -> Result<(), HubError> {
        for file in self.experts.iter().map(|it| &it.weights).chain([&self.router.weights]) {
            heard(file.path());
            file.read(&mut |_, _| ()).map_err(unusable(file))?;
        }
        Ok(())
    }
}

impl PublishedPart<ExpertConfig> {
    /// The expert's parameters, on `device`.
    ///
    /// # Errors
    /// If the file has changed, or holds numbers that are not finite.
    pub fn parameters(&self, device: &Device) -> Result<Parameters, HubError> {
        parameters(&PartConfig::Expert(self.config.clone()), &self.weights, device)
    }
}

impl PublishedPart<RouterConfig> {
    /// The router's parameters, on `device`.
    ///
    /// # Errors
    /// As for an expert.
    pub fn parameters(&self, device: &Device) -> Result<Parameters, HubError> {
        parameters(&PartConfig::Router(self.config.clone()), &self.weights, device)
    }
}

fn parameters(config: &PartConfig, weights: &TensorFile, device: &Device) -> Result<Parameters, HubError> {
    let read = Parameters::read(config, weights, device).and_then(|(parameters, _)| Ok(parameters.to_compute()?));
    read.map_err(unusable(weights))
}

fn unusable(file: &TensorFile) -> impl FnOnce(CheckpointError) -> HubError {
    let path = file.path().to_owned();
    move |error| HubError::Weights { path, reason: error.to_string() }
}

/// How many folders of experts there are. One more than the highest number: a gap is then found missing.
fn expert_folders(folder: &Path) -> Result<usize, HubError> {
    let mut count = 0;
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let name = entry.map_err(io_error(folder))?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("expert_")?.parse::<usize>().ok());
        // A number that no run has is some other folder's.
        count = number.filter(|number| *number < 1024).map_or(count, |number| count.max(number + 1));
    }
    Ok(count)
}

/// A part's config and weights, checked against each other.
fn part<C: Clone>(
    folder: &Path,
    name: &str,
    weights: &str,
    config: impl Fn(&PartFields, &TensorFile) -> Result<C, Vec<String>>,
    whole: impl Fn(C) -> PartConfig,
    problems: &mut Vec<String>,
) -> Option<PublishedPart<C>> {
    let path = folder.join(name).join(weights);
    let mut say = |file: &str, problem: String| problems.push(format!("{name}/{file}: {problem}"));
    let file = match path.is_file() {
        true => TensorFile::open(&path).map_err(|error| say(weights, error.to_string())).ok(),
        false => {
            say(weights, "is missing".to_owned());
            None
        }
    };
    let fields: Option<PartFields> = read(&folder.join(name).join(CONFIG)).map_err(|error| say(CONFIG, error)).ok();
    let (file, fields) = (file?, fields?);
    let config = match config(&fields, &file) {
        Ok(config) => config,
        Err(wrong) => {
            wrong.into_iter().for_each(|problem| say(CONFIG, problem));
            return None;
        }
    };
    let part = whole(config.clone());
    if let Err(error) = part.validate() {
        say(CONFIG, error.to_string());
        return None;
    }
    file.differences(&part.shapes()).into_iter().for_each(|problem| say(weights, problem));
    Some(PublishedPart { config, objective: fields.objective, weights: file })
}

fn calibration(folder: &Path, problems: &mut Vec<String>) -> Option<Calibration> {
    let path = folder.join(ROUTER).join(CALIBRATION);
    if !path.exists() {
        return None;
    }
    read(&path).map_err(|error| problems.push(format!("{ROUTER}/{CALIBRATION}: {error}"))).ok()
}

fn text(
    folder: &Path,
    fields: &FolderFields,
    experts: &[PublishedPart<ExpertConfig>],
    problems: &mut Vec<String>,
) -> Option<TextSource> {
    match fields.text_encoder.as_deref() {
        Some(TextSource::HASHED) => {
            let shape = |config: &ExpertConfig| HashedText { tokens: config.text_tokens, width: config.text_width };
            let first = shape(&experts.first()?.config);
            if experts.iter().any(|it| shape(&it.config) != first) {
                problems.push("the experts read captions of different shapes".to_owned());
            }
            Some(TextSource::Hashed(first))
        }
        Some(other) => {
            problems.push(format!("{CONFIG}: text_encoder is {other:?}, which this program does not know"));
            None
        }
        None => {
            let [encoder, tokenizer] = [TEXT_ENCODER, TOKENIZER].map(|name| {
                needed_folder(folder, name, "the files of openai/clip-vit-large-patch14 belong there", problems)
            });
            Some(TextSource::Files { encoder: encoder?, tokenizer: tokenizer? })
        }
    }
}

fn codec(folder: &Path, fields: &FolderFields, problems: &mut Vec<String>) -> Option<CodecSource> {
    match fields.image_codec.as_deref() {
        Some(CodecSource::PIXELS) => Some(CodecSource::Pixels),
        Some(other) => {
            problems.push(format!("{CONFIG}: image_codec is {other:?}, which this program does not know"));
            None
        }
        None => {
            let path = needed_folder(folder, CODEC, "the files of stabilityai/sd-vae-ft-mse belong there", problems);
            path.map(CodecSource::Files)
        }
    }
}

fn needed_folder(folder: &Path, name: &str, what: &str, problems: &mut Vec<String>) -> Option<PathBuf> {
    let path = folder.join(name);
    if !path.is_dir() {
        problems.push(format!("{name}/: is missing: {what}"));
        return None;
    }
    Some(path)
}
