//! One door to the weights of a model, whatever the format and the number of files.

use crate::dtype::{Dtype, element_count};
use crate::gguf::{self, names};
use crate::json::{self, UniqueEntries};
use crate::safetensors;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// The largest index file that is read, in bytes.
const MAXIMUM_INDEX: u64 = 100_000_000;

/// Name, shape and storage of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// The Hugging Face name, for instance `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// The extents, row-major; a linear's weight is `[out, in]`.
    pub shape: Vec<usize>,
    /// How the numbers are stored.
    pub stored: Stored,
}

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// One by one, in a safetensors file; `Weights::bytes` gives them as they are.
    Plain(Dtype),
    /// In a GGUF file, perhaps in blocks and in llama.cpp's row order; read them with `read_f32`.
    Gguf(gguf::Quantization),
}

impl Stored {
    /// The format's name, for instance `BF16` or `Q4_1`.
    pub fn name(self) -> &'static str {
        match self {
            Stored::Plain(dtype) => dtype.name(),
            Stored::Gguf(quantization) => quantization.name(),
        }
    }
}

/// Where a tensor's bytes are.
#[derive(Debug)]
enum Place {
    /// An entry of the safetensors file with this index.
    Safetensors { file: usize, entry: usize },
    /// A tensor of the GGUF file; `heads` if its rows have to be put back in order.
    Gguf { tensor: usize, heads: Option<usize> },
}

/// The tensors of a model, ordered by name, memory mapped.
#[derive(Debug)]
pub struct Weights {
    tensors: BTreeMap<String, (TensorInfo, Place)>,
    safetensors: Vec<safetensors::File>,
    gguf: Option<gguf::File>,
}

impl Weights {
    /// Opens a `.gguf` file, a `.safetensors` file, or a folder with `model.safetensors`, with
    /// `model.safetensors.index.json` and its shards, or with a single file of either kind.
    pub fn open(path: &Path) -> Result<Weights> {
        if !path.is_dir() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            return Weights::open_files(&[(name.into_owned(), path.to_owned())]);
        }
        let shown = path.display();
        let mut files = Vec::new();
        let entries = std::fs::read_dir(path).with_context(|| format!("cannot read {shown}"))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {shown}"))?;
            if entry.path().is_file() {
                files.push((
                    entry.file_name().to_string_lossy().into_owned(),
                    entry.path(),
                ));
            }
        }
        files.sort();
        Weights::open_files(&files).with_context(|| format!("cannot open the model in {shown}"))
    }

    /// The same from pairs of the name inside the model and the path on disk: the objects of a cache
    /// have other names there. Files that hold no weights are passed over.
    pub fn open_files(files: &[(String, PathBuf)]) -> Result<Weights> {
        let find = |name: &str| files.iter().find(|file| file.0 == name).map(|file| &file.1);
        let with_ending = |ending: &str| -> Vec<&(String, PathBuf)> {
            (files.iter())
                .filter(|file| file.0.ends_with(ending))
                .collect()
        };
        if let Some(path) = find("model.safetensors") {
            return Weights::from_safetensors(vec![safetensors::File::open(path)?]);
        }
        if let Some(path) = find("model.safetensors.index.json") {
            return Weights::from_index(files, path);
        }
        match (&with_ending(".safetensors")[..], &with_ending(".gguf")[..]) {
            ([], [(_, path)]) => Weights::from_gguf(gguf::File::open(path)?),
            ([(_, path)], []) => Weights::from_safetensors(vec![safetensors::File::open(path)?]),
            ([], []) => {
                let names: Vec<&str> = files.iter().map(|file| file.0.as_str()).collect();
                let pickled = [".bin", ".pt", ".pth", ".ckpt", ".pkl"];
                let hint = if names
                    .iter()
                    .any(|n| pickled.iter().any(|end| n.ends_with(end)))
                {
                    "; pickled weights are never read, since they can run code: save them as safetensors"
                } else {
                    ""
                };
                bail!(
                    "no weights among the files [{}]; expected a .gguf file, a .safetensors file, or model.safetensors.index.json with its shards{hint}",
                    names.join(", ")
                )
            }
            (safetensors, gguf) => {
                let names = safetensors.iter().chain(gguf).map(|file| file.0.as_str());
                bail!(
                    "several files may be the weights: {}; name one of them",
                    names.collect::<Vec<_>>().join(", ")
                )
            }
        }
    }

    fn from_index(files: &[(String, PathBuf)], index: &Path) -> Result<Weights> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: UniqueEntries<String>,
        }
        let shown = index.display();
        let text = json::read_text(index, MAXIMUM_INDEX)?;
        let Index { weight_map } = json::parse(&text, index)?;
        ensure!(!weight_map.0.is_empty(), "{shown}: weight_map is empty");
        let mut shards: BTreeMap<&str, &Path> = BTreeMap::new();
        for (name, shard) in &weight_map.0 {
            if shards.contains_key(shard.as_str()) {
                continue;
            }
            let inside = (Path::new(shard).components())
                .all(|component| matches!(component, Component::Normal(_)));
            ensure!(
                inside && !shard.contains('\\') && shard.ends_with(".safetensors"),
                "{shown}: the shard {shard:?} of {name:?} should be a .safetensors file inside the model's folder"
            );
            let Some((_, path)) = files.iter().find(|file| file.0 == *shard) else {
                bail!("{shown}: the shard {shard:?} of {name:?} is missing; fetch it too");
            };
            shards.insert(shard, path);
        }
        let mut opened = Vec::new();
        for path in shards.values() {
            opened.push(safetensors::File::open(path)?);
        }
        let weights = Weights::from_safetensors(opened)?;
        for (name, shard) in &weight_map.0 {
            let found = weights
                .tensors
                .get(name)
                .and_then(|(_, place)| match place {
                    Place::Safetensors { file, .. } => weights.safetensors.get(*file),
                    Place::Gguf { .. } => None,
                });
            ensure!(
                found.map(|file| file.path()) == shards.get(shard.as_str()).copied(),
                "{shown} says that {name:?} is in {shard:?}, but it is not there; the shards and the index are of different versions"
            );
        }
        Ok(weights)
    }

    fn from_safetensors(files: Vec<safetensors::File>) -> Result<Weights> {
        let mut tensors = BTreeMap::new();
        for (file, opened) in files.iter().enumerate() {
            for (entry, header) in opened.entries().iter().enumerate() {
                let info = TensorInfo {
                    name: header.name.clone(),
                    shape: header.shape.clone(),
                    stored: Stored::Plain(header.dtype),
                };
                let place = Place::Safetensors { file, entry };
                if tensors.insert(header.name.clone(), (info, place)).is_some() {
                    let shown = opened.path().display();
                    bail!("{shown}: another shard holds {:?}, too", header.name);
                }
            }
        }
        Ok(Weights {
            tensors,
            safetensors: files,
            gguf: None,
        })
    }

    fn from_gguf(file: gguf::File) -> Result<Weights> {
        let shown = file.path().display().to_string();
        let architecture = file.architecture()?;
        ensure!(
            architecture == "llama",
            "{shown} holds a model of the architecture {architecture:?}; supported is \"llama\""
        );
        let missing = || anyhow!("{shown}: the metadata llama.attention.head_count is missing");
        let heads = file
            .count("llama.attention.head_count")?
            .ok_or_else(missing)?;
        let key_value_heads = file
            .count("llama.attention.head_count_kv")?
            .unwrap_or(heads);
        let mut tensors = BTreeMap::new();
        for (index, tensor) in file.tensors().iter().enumerate() {
            // A tensor without a Hugging Face name keeps its own; `LlamaConfig::check` will name it.
            let name = names::to_hugging_face(&tensor.name).unwrap_or_else(|| tensor.name.clone());
            let heads = names::interleaved_heads(&tensor.name, heads, key_value_heads);
            if let Some(heads) = heads {
                let rows = tensor.shape.first().copied().unwrap_or(0);
                ensure!(
                    heads > 0 && rows % heads == 0 && (rows / heads) % 2 == 0,
                    "{shown}: the {rows} rows of {:?} cannot be split into {heads} heads",
                    tensor.name
                );
            }
            let info = TensorInfo {
                name: name.clone(),
                shape: tensor.shape.clone(),
                stored: Stored::Gguf(tensor.quantization),
            };
            let place = Place::Gguf {
                tensor: index,
                heads,
            };
            if tensors.insert(name, (info, place)).is_some() {
                bail!("{shown}: two tensors have the name of {:?}", tensor.name);
            }
        }
        Ok(Weights {
            tensors,
            safetensors: Vec::new(),
            gguf: Some(file),
        })
    }

    /// The tensors in the order of their names.
    pub fn infos(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values().map(|(info, _)| info)
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// True if there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The tensor of this name, if there is one.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|(info, _)| info)
    }

    /// The GGUF file, if the weights come from one: it also holds the config and the tokenizer.
    pub fn gguf(&self) -> Option<&gguf::File> {
        self.gguf.as_ref()
    }

    /// The files behind the weights.
    pub fn paths(&self) -> Vec<&Path> {
        let shards = self.safetensors.iter().map(safetensors::File::path);
        shards
            .chain(self.gguf.iter().map(gguf::File::path))
            .collect()
    }

    /// The numbers of a tensor in row-major order, converted or dequantized to f32.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let (info, place) = self.find(name)?;
        let (bytes, path) = self.stored_bytes(place)?;
        let place_of = || format!("{}: tensor {name:?}", path.display());
        // On opening, the shape was checked against the file's length.
        let count = element_count(&info.shape).with_context(place_of)?;
        let mut numbers = vec![0.0; count];
        match info.stored {
            Stored::Plain(dtype) => dtype.to_f32(bytes, &mut numbers),
            Stored::Gguf(quantization) => gguf::dequantize(quantization, bytes, &mut numbers),
        }
        .with_context(place_of)?;
        match place {
            Place::Gguf {
                heads: Some(heads), ..
            } => names::undo_interleaving(&numbers, info.shape[0], *heads).with_context(place_of),
            _ => Ok(numbers),
        }
    }

    /// The bytes of a plainly stored tensor, little-endian and row-major, without a copy.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        let (info, place) = self.find(name)?;
        let (bytes, path) = self.stored_bytes(place)?;
        match info.stored {
            Stored::Plain(_) => Ok(bytes),
            Stored::Gguf(quantization) => bail!(
                "{}: tensor {name:?} is stored as {} of GGUF and has no plain bytes",
                path.display(),
                quantization.name()
            ),
        }
    }

    /// Says that a tensor will not be read again soon: its part of the file no longer counts as memory in use.
    pub fn release(&self, name: &str) {
        match self.tensors.get(name).map(|(_, place)| place) {
            Some(Place::Safetensors { file, entry }) => {
                if let Some(file) = self.safetensors.get(*file)
                    && let Some(entry) = file.entries().get(*entry)
                {
                    file.release(entry);
                }
            }
            Some(Place::Gguf { tensor, .. }) => {
                if let Some(file) = &self.gguf
                    && let Some(tensor) = file.tensors().get(*tensor)
                {
                    file.release(tensor);
                }
            }
            None => {}
        }
    }

    fn find(&self, name: &str) -> Result<&(TensorInfo, Place)> {
        self.tensors.get(name).ok_or_else(|| {
            let paths = self.paths();
            let first = paths.first().map_or(Path::new("?"), |path| path);
            anyhow!("{}: there is no tensor {name:?}", first.display())
        })
    }

    fn stored_bytes(&self, place: &Place) -> Result<(&[u8], &Path)> {
        match place {
            Place::Safetensors { file, entry } => {
                let file = (self.safetensors.get(*file)).context("no such safetensors file")?;
                let entry = file.entries().get(*entry).context("no such entry")?;
                Ok((file.bytes(entry)?, file.path()))
            }
            Place::Gguf { tensor, .. } => {
                let file = self.gguf.as_ref().context("no GGUF file")?;
                let tensor = file.tensors().get(*tensor).context("no such tensor")?;
                Ok((file.bytes(tensor)?, file.path()))
            }
        }
    }
}
