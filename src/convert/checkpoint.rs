//! A Hugging Face checkpoint on disk: config.json and the tensors of all its files.

use super::modules::{self, Module};
use super::parts::{self, Parts};
use super::stored::{self, Fault, Form, Fp4Types};
use super::view::View;
use super::{Error, Result, explain, numbers, reranker};
use crate::arch::Config;
use crate::arch::projector::{self, Beside, BesideOrder, Projector};
use crate::arch::wrapper::Part;
use crate::format::index::{Format, Index};
use crate::format::json;
use crate::format::map::Map as FileMap;
use crate::format::safetensors::Dtype;
use crate::format::torch::TensorInfo;
use crate::plan::recipe::Problem;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
const PARAMS: &str = "params.json";

/// The mapped files of a checkpoint, and their tensors.
pub struct Checkpoint {
    /// The directory with config and tokenizer.
    pub dir: PathBuf,
    /// The opened directory or weight file.
    path: PathBuf,
    /// config.json, or params.json of Mistral's own format.
    pub config: Config,
    /// The tensors of the text model or of the projector, in the reference's order: by file name, then
    /// by tensor name.
    pub tensors: Vec<Source>,
    /// The number of other tensors, by part of the model.
    pub(super) left_out: BTreeMap<&'static str, u64>,
    /// The type of the first 16-bit matrix in the files.
    pub(super) halves: Option<Dtype>,
    /// Errors of quantized tensors; a conversion fails with them.
    pub problems: Vec<Problem>,
    /// Notes for the user about quantized tensors.
    pub(super) notes: Vec<String>,
    /// 4-bit floats of the checkpoint.
    pub(super) fp4: Fp4Types,
    /// The mapped files.
    pub(super) maps: Vec<FileMap>,
    /// Other files that the weights depend on.
    pub(super) settings: Vec<PathBuf>,
    /// The projector, if the tensors are those of one.
    pub(super) projector: Option<&'static Projector>,
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Its name within the text model or the projector, if different.
    pub(super) text_name: Option<String>,
    /// The stored type; for a quantized tensor, the type after dequantization.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Strides of dimensions in numbers, if rows are not contiguous.
    pub(super) strides: Option<Vec<u64>>,
    /// Index of the file.
    pub(super) file: usize,
    /// Bytes in the file, from the first number to the last.
    pub(super) range: Range<usize>,
    /// The quantized or merged form, if any; file and bytes are those of the codes, or of the base.
    pub(super) form: Option<Box<Form>>,
}

impl Source {
    /// A tensor of a file that is stored as its numbers.
    pub(super) fn plain(tensor: TensorInfo, text_name: Option<String>, file: usize) -> Source {
        Source {
            name: tensor.name,
            text_name,
            dtype: tensor.dtype,
            shape: tensor.shape,
            strides: tensor.strides,
            file,
            range: tensor.range,
            form: None,
        }
    }

    /// The name within the text model or the projector.
    pub(super) fn text_name(&self) -> &str {
        self.text_name.as_ref().unwrap_or(&self.name)
    }

    /// The numbers as stored in the file.
    pub(super) fn view(&self) -> View {
        match &self.strides {
            Some(strides) => View::strided(&self.shape, strides),
            None => View::whole(&self.shape),
        }
    }

    /// Byte range of these elements in the file; for a quantized tensor, all codes once the last
    /// element is included.
    pub(super) fn bytes(&self, elements: Range<u64>) -> Range<usize> {
        let (start, width) = (self.range.start, self.dtype.bytes());
        if self.form.is_some() {
            let is_last = elements.end == self.shape.iter().product::<u64>();
            return if is_last {
                self.range.clone()
            } else {
                start..start
            };
        }
        start + elements.start as usize * width..start + elements.end as usize * width
    }
}

impl Checkpoint {
    /// Opens a directory, or one weight file next to a config.json, and checks for missing files.
    ///
    /// # Errors
    /// All detectable errors of the files at once.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        Checkpoint::open_with(path, CONFIG)
    }

    /// Opens a directory in Mistral's own format: params.json and consolidated*.safetensors.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_mistral(path: &Path) -> Result<Checkpoint> {
        Checkpoint::open_with(path, PARAMS)
    }

    /// Opens the projector of a directory: the encoders of images and of audio, with the settings of
    /// their preprocessor.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], and models without a projector, or with an unsupported one.
    pub fn open_projector(path: &Path) -> Result<Checkpoint> {
        let dir = directory(path);
        let (checkpoint, mut outer) = match config_by_shapes(dir)? {
            Some(outer) => (Checkpoint::of_fields(dir, CONFIG, outer.clone())?, outer),
            None => {
                let checkpoint = Checkpoint::without_weights(path, CONFIG)?;
                let outer = json::read_object(&checkpoint.config_path())?;
                (checkpoint, outer)
            }
        };
        let config_path = checkpoint.config_path();
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        outer.insert(projector::DIRECTORY.into(), name.into());
        let settings = preprocessor(&checkpoint.dir)?;
        let projector = Projector::of(&outer).map_err(|what| bad(&config_path, what))?;
        if let Some(Beside { dir, .. }) = projector.beside() {
            let config = json::read_object(&checkpoint.dir.join(dir).join(CONFIG))?;
            outer.insert(dir.into(), Value::Object(config));
        }
        let config = Config::of_projector(projector, outer, settings);
        let config = config.map_err(|what| bad(&config_path, what))?;
        let checkpoint = Checkpoint {
            config,
            projector: Some(projector),
            ..checkpoint
        };
        checkpoint.with_weights(path, CONFIG)
    }

    /// The projector of the model; None for one without encoders of images or of audio.
    ///
    /// # Errors
    /// As [`Checkpoint::open_projector`].
    pub(crate) fn projector(&self) -> Result<Option<Checkpoint>> {
        if self.left_out.is_empty() || self.config.is_of_params() {
            return Ok(None);
        }
        let path = self.config_path();
        let outer = json::read_object(&path)?;
        if let Some(refusal) = Projector::refusal(&outer) {
            return Err(bad(&path, refusal));
        }
        Checkpoint::open_projector(&self.path).map(Some)
    }

    fn open_with(path: &Path, config_name: &str) -> Result<Checkpoint> {
        let checkpoint = Checkpoint::without_weights(path, config_name)?;
        checkpoint.with_weights(path, config_name)
    }

    /// Reads the headers of the weights.
    fn with_weights(mut self, path: &Path, config_name: &str) -> Result<Checkpoint> {
        let one_file = path.is_file().then(|| {
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        });
        let dir = &self.dir;
        let Parts {
            names: parts,
            index,
            index_name,
        } = match one_file {
            Some(name) => Parts::one(name),
            None if config_name == PARAMS => Parts::of_mistral(dir)?,
            None => Parts::of(dir)?,
        };
        let mut problems = Vec::new();
        let names = self.read(&parts, index.as_ref(), &mut problems)?;
        if problems.is_empty() {
            let compare = |index| compare(index, index_name, &names);
            problems.extend(index.iter().flat_map(compare));
        }
        if !problems.is_empty() {
            return Err(Error::Impossible(problems));
        }
        let is_half =
            |t: &&Source| matches!(t.dtype, Dtype::Bf16 | Dtype::F16) && t.shape.len() > 1;
        self.halves = self.tensors.iter().find(is_half).map(|t| t.dtype);
        self.add_projection()?;
        self.add_dense_modules()?;
        self.add_beside()?;
        self.resolve();
        Ok(self)
    }

    /// The config of a model, for weights of other files.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub(super) fn of_config(path: &Path) -> Result<Checkpoint> {
        Checkpoint::without_weights(path, CONFIG)
    }

    /// Reads the config of a directory, or of that of a weight file.
    fn without_weights(path: &Path, config_name: &str) -> Result<Checkpoint> {
        let dir = directory(path);
        let explain = |error| explain_config(error, path, config_name);
        let fields = json::read_object(&dir.join(config_name)).map_err(explain)?;
        let checkpoint = Checkpoint::of_fields(dir, config_name, fields)?;
        Ok(Checkpoint {
            path: path.to_owned(),
            ..checkpoint
        })
    }

    /// A checkpoint without weights, of the fields of its config.
    fn of_fields(dir: &Path, config_name: &str, fields: Map<String, Value>) -> Result<Checkpoint> {
        let config_path = dir.join(config_name);
        let config = match config_name {
            PARAMS => Config::of_params(fields),
            _ => Config::new(fields),
        };
        let config = config.map_err(|what| bad(&config_path, what))?;
        let pooling = modules::pooling(dir).map_err(|e| e.to_string());
        let is_reranker = reranker::is_one(dir, &config);
        Ok(Checkpoint {
            dir: dir.to_owned(),
            path: dir.to_owned(),
            config: config.with_pooling(pooling).as_reranker(is_reranker),
            tensors: Vec::new(),
            left_out: BTreeMap::new(),
            halves: None,
            problems: Vec::new(),
            notes: Vec::new(),
            fp4: Fp4Types::default(),
            maps: Vec::new(),
            settings: Vec::new(),
            projector: None,
        })
    }

    /// Takes the tensors of a file as weights, in the file's order.
    pub(super) fn with_file(mut self, map: FileMap, tensors: Vec<Source>) -> Checkpoint {
        self.tensors = tensors;
        self.maps = vec![map];
        self
    }

    /// Adds the projection of a file of its own, before the other tensors.
    fn add_projection(&mut self) -> Result<()> {
        const LINEAR: &str = "linear.weight";
        let Some(path) = self
            .config
            .projection_file()
            .map(|file| self.dir.join(file))
        else {
            return Ok(());
        };
        if !path.is_file() {
            return Ok(());
        }
        let module = Module::read(path)?;
        let linear = module.tensors.iter().find(|tensor| tensor.name == LINEAR);
        let length = linear.and_then(|tensor| tensor.shape.first());
        let length = length.and_then(|rows| u32::try_from(*rows).ok());
        let (Some(tensor), Some(length)) = (linear.cloned(), length) else {
            return Err(bad(
                module.map.path(),
                format!("it has no matrix '{LINEAR}' for the projection after the pooling"),
            ));
        };
        self.config = self.config.clone().with_projection(length);
        self.insert(0, vec![(tensor, None)], module.map);
        Ok(())
    }

    /// Adds the dense modules after the pooling, before the other tensors.
    fn add_dense_modules(&mut self) -> Result<()> {
        if !self.config.has_dense_modules() {
            return Ok(());
        }
        let mut sizes = Vec::new();
        let mut at = 0;
        for dense in modules::dense(&self.dir)? {
            let module = Module::read(dense.weights)?;
            sizes.extend(
                dense
                    .sizes
                    .map(|[inputs, outputs]| (dense.name.into(), inputs, outputs)),
            );
            let tensors = module
                .tensors
                .into_iter()
                .filter(|t| t.name.ends_with(".weight"));
            let tensors = tensors.map(|tensor| {
                let name = tensor.name.replace("linear", dense.name);
                (tensor, Some(name))
            });
            let tensors: Vec<_> = tensors.collect();
            let count = tensors.len();
            self.insert(at, tensors, module.map);
            at += count;
        }
        self.config = self.config.clone().with_module_sizes(&sizes);
        Ok(())
    }

    /// Adds the tensors of a projector's second checkpoint, before the other tensors.
    fn add_beside(&mut self) -> Result<()> {
        let beside = self
            .projector
            .and_then(|projector| Some((projector, projector.beside()?)));
        let Some((projector, Beside { dir, order })) = beside else {
            return Ok(());
        };
        let module = Module::read(self.dir.join(dir).join(WHOLE))?;
        let tensors = module.tensors.into_iter().filter_map(|mut tensor| {
            tensor.name = format!("{dir}/{}", tensor.name);
            let name = (projector.name)(&self.config, &tensor.name)?;
            Some((tensor, Some(name)))
        });
        let mut tensors: Vec<_> = tensors.collect();
        match order {
            BesideOrder::Stored { last } => {
                tensors.sort_by_key(|(tensor, _)| (tensor.name.contains(last), tensor.range.start));
            }
            BesideOrder::Recipes => tensors.sort_by_cached_key(|(_, name)| {
                let rank = |name: &String| projector.architecture.rank(name, &self.config);
                name.as_ref().and_then(rank)
            }),
        }
        self.insert(0, tensors, module.map);
        Ok(())
    }

    /// Inserts the tensors of a module's file, with their names within the model.
    fn insert(&mut self, at: usize, tensors: Vec<(TensorInfo, Option<String>)>, map: FileMap) {
        let file = self.maps.len();
        let sources = tensors.into_iter();
        let sources = sources.map(|(tensor, name)| Source::plain(tensor, name, file));
        self.tensors.splice(at..at, sources);
        self.maps.push(map);
    }

    /// Joins the tensors of quantized linears.
    fn resolve(&mut self) {
        let tensors = std::mem::take(&mut self.tensors);
        let resolved = stored::resolve(&self.config, &self.dir, tensors, &self.maps);
        (self.tensors, self.problems, self.notes) =
            (resolved.sources, resolved.problems, resolved.notes);
        self.fp4 = resolved.fp4;
    }

    /// The mapped files.
    pub(super) fn maps(&self) -> &[FileMap] {
        &self.maps
    }

    /// The files that the weights depend on.
    pub(crate) fn paths(&self) -> Vec<&Path> {
        let settings = self.settings.iter().map(PathBuf::as_path);
        self.maps
            .iter()
            .map(FileMap::path)
            .chain(settings)
            .collect()
    }

    /// Some of a tensor's elements in f32, in file order; for a quantized tensor, the dequantized
    /// weights by rows.
    ///
    /// # Errors
    /// An invalid scale.
    ///
    /// # Panics
    /// If the tensor lacks some of the elements, or `out` has another length.
    pub fn numbers(&self, source: &Source, elements: Range<u64>, out: &mut [f32]) -> Result<()> {
        let Some(form) = &source.form else {
            let width = source.dtype.bytes();
            let bytes = elements.start as usize * width..elements.end as usize * width;
            numbers::widen(source.dtype, &self.data(source)[bytes], out);
            return Ok(());
        };
        let read = form.read(&self.maps, elements, out);
        read.map_err(|fault| self.bad_scale(source, fault))
    }

    /// The whole numbers of a small tensor, exactly.
    ///
    /// # Errors
    /// A tensor that is too large, or whose numbers are not whole.
    pub(super) fn integers(&self, source: &Source) -> std::result::Result<Vec<i64>, String> {
        /// Most numbers of a list.
        const MOST: u64 = 1 << 16;
        let count: u64 = source.shape.iter().product();
        let is_plain = source.form.is_none() && source.strides.is_none();
        if count > MOST || !is_plain {
            return Err(format!(
                "it has {count} numbers; at most {MOST} are expected, row by row"
            ));
        }
        let width = source.dtype.bytes();
        let numbers = self.data(source).chunks_exact(width);
        let numbers = numbers.map(|bytes| numbers::integer(source.dtype, bytes));
        let numbers: Option<Vec<i64>> = numbers.collect();
        let dtype = source.dtype;
        numbers.ok_or_else(|| format!("whole numbers are expected, and these are of type {dtype}"))
    }

    /// The error of an invalid number.
    pub(super) fn bad_scale(&self, source: &Source, fault: Fault) -> Error {
        let columns = source.shape.last().copied().unwrap_or(1).max(1);
        Error::BadScale {
            path: self.maps[source.file].path().to_owned(),
            tensor: source.name.clone(),
            row: fault.element / columns,
            column: fault.element % columns,
            what: fault.what,
        }
    }

    /// A tensor's bytes.
    pub(super) fn data(&self, source: &Source) -> &[u8] {
        &self.maps[source.file].bytes()[source.range.clone()]
    }

    /// Path of the config.
    pub(crate) fn config_path(&self) -> PathBuf {
        let is_mistral = self.config.is_of_params();
        self.dir.join(if is_mistral { PARAMS } else { CONFIG })
    }

    /// Fails with advice if the checkpoint has no weights.
    pub(super) fn check_has_weights(&self) -> Result<()> {
        if !self.tensors.is_empty() {
            return Ok(());
        }
        let what = explain::directory(&self.dir).or_else(|| parts::explain(&self.dir));
        let what = what.unwrap_or_else(|| {
            "there are neither model*.safetensors nor pytorch_model*.bin in it; name the directory of a Hugging Face \
             model"
                .to_owned()
        });
        Err(bad(&self.dir, what))
    }

    /// Advice for a missing file of the index.
    fn missing_file(&self, parts: &[String]) -> String {
        let has_whole = self.dir.join(WHOLE).is_file() && !parts.iter().any(|part| part == WHOLE);
        match has_whole {
            true => format!(
                "these files are missing, and {index} does not name the {WHOLE} beside it; if that is the whole \
                 model, remove {index}, which is of another download",
                index = Format::SAFETENSORS.index
            ),
            false => "these files are missing; download them again".into(),
        }
    }

    /// Maps and parses the files, and adds what is wrong with any of them; returns the names of all
    /// tensors. Of a tensor in several files, that in the index's counts.
    fn read(
        &mut self,
        parts: &[String],
        index: Option<&Index>,
        problems: &mut Vec<Problem>,
    ) -> Result<BTreeSet<String>> {
        let mut seen: HashMap<String, usize> = HashMap::new();
        for part in parts {
            let path = self.dir.join(part);
            if !path.is_file() {
                problems.push(Problem::of(part, self.missing_file(parts)));
                continue;
            }
            let map = FileMap::open(&path)?;
            let tensors = match parts::tensors(part, map.bytes()) {
                Ok(tensors) => tensors,
                Err(what) => {
                    problems.push(Problem::of(part, what));
                    continue;
                }
            };
            let file = self.maps.len();
            for tensor in tensors {
                if let Some(first) = seen.insert(tensor.name.clone(), file) {
                    let first = self.maps[first].path().file_name().unwrap_or_default();
                    match index.and_then(|index| index.file_of(&tensor.name)) {
                        Some(named) if named == part => {
                            self.tensors.retain(|other| other.name != tensor.name);
                        }
                        Some(named) if first == named => continue,
                        _ => problems.push(Problem::of(
                            &tensor.name,
                            format!("these tensors are in {} and in {part}", first.display()),
                        )),
                    }
                }
                let text_name = match (self.projector, Part::of(&tensor.name)) {
                    (Some(projector), _) => match (projector.name)(&self.config, &tensor.name) {
                        Some(name) => (name != tensor.name).then_some(name),
                        None => continue,
                    },
                    (None, Part::Text(name)) => (name != tensor.name).then(|| name.into_owned()),
                    (None, Part::Other(part)) => {
                        *self.left_out.entry(part).or_default() += 1;
                        continue;
                    }
                };
                self.tensors.push(Source::plain(tensor, text_name, file));
            }
            self.maps.push(map);
        }
        Ok(seen.into_keys().collect())
    }
}

/// The only file of an unsharded model.
const WHOLE: &str = "model.safetensors";

/// The directory of a checkpoint, given itself or by a weight file in it.
fn directory(path: &Path) -> &Path {
    match path.is_file() {
        true => path
            .parent()
            .filter(|dir| !dir.as_os_str().is_empty())
            .unwrap_or(Path::new(".")),
        false => path,
    }
}

/// The config.json of a model that has none, by the shapes of its tensors.
fn config_by_shapes(dir: &Path) -> Result<Option<Map<String, Value>>> {
    let path = dir.join(WHOLE);
    if dir.join(CONFIG).is_file() || !path.is_file() {
        return Ok(None);
    }
    let module = Module::read(path)?;
    let tensors = module.tensors.iter();
    let shapes = tensors.map(|tensor| (&*tensor.name, &*tensor.shape));
    Ok(projector::config_by_shapes(&shapes.collect()))
}

/// The settings of the preprocessor of images, those of processor_config.json above the others.
fn preprocessor(dir: &Path) -> Result<Map<String, Value>> {
    let mut settings = Map::new();
    for (file, part) in [
        ("preprocessor_config.json", "media_proc_cfg"),
        ("processor_config.json", "image_processor"),
    ] {
        let path = dir.join(file);
        if !path.is_file() {
            continue;
        }
        let mut fields = json::read_object(&path)?;
        if let Some(Value::Object(part)) = fields.get(part).cloned() {
            fields.extend(part);
        }
        settings.extend(fields);
    }
    Ok(settings)
}

/// Tensors in the index but not in the files, and vice versa.
fn compare(index: &Index, index_name: &str, stored: &BTreeSet<String>) -> Vec<Problem> {
    let absent = index.files().filter(|(name, _)| !stored.contains(*name));
    let absent = absent.map(|(name, file)| {
        Problem::of(
            name,
            format!("{index_name} says that {file} holds these tensors, and it does not"),
        )
    });
    let unlisted = stored.iter().filter(|name| !index.has(name));
    let unlisted =
        unlisted.map(|name| Problem::of(name, format!("these tensors are not in {index_name}")));
    absent.chain(unlisted).collect()
}

pub(super) fn bad(path: &Path, what: impl Into<String>) -> Error {
    crate::format::Error::Bad {
        path: path.to_owned(),
        what: what.into(),
    }
    .into()
}

/// A missing config.json usually means a wrong path.
fn explain_config(error: crate::format::Error, path: &Path, config_name: &str) -> Error {
    match error {
        crate::format::Error::Io { source, .. }
            if source.kind() == std::io::ErrorKind::NotFound && path.exists() =>
        {
            let foreign = explain::directory(path).or_else(|| parts::explain(path));
            let foreign = foreign.map_or(String::new(), |what| format!(" ({what})"));
            bad(
                path,
                format!(
                    "there is no {config_name} beside the weights; name the directory of a Hugging Face model{foreign}"
                ),
            )
        }
        other => other.into(),
    }
}
