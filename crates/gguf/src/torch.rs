//! Checkpoints of `torch.save`: a zip archive of a pickle that describes tensors, and their bytes.
//!
//! ```text
//! ROOT/data.pkl     {"NAME": _rebuild_tensor_v2(storage KEY, offset, shape, strides, ...), ...}
//! ROOT/data/KEY     the bytes of a storage
//! ROOT/byteorder    little, if present
//! ```
//!
//! Tensors are views of storages: several may share one, each with an offset and strides. No code
//! is run: see `pickle.rs`. [`parse`] checks everything: the ranges of a [`TensorInfo`] need no
//! further checks.

use crate::pickle::{self, Object, Pickle, Value};
use crate::safetensors::{Dtype, lfs_pointer};
use crate::{shown, zip};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// Prefix of files of PyTorch before 1.6: the pickled magic number.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
/// First element of the persistent id of a storage.
const STORAGE: &str = "storage";

/// Globals that a pickle may use, and their meanings.
static GLOBALS: [([&str; 2], Global); 17] = [
    (["torch._utils", "_rebuild_tensor_v2"], Global::Rebuild),
    (["torch._utils", "_rebuild_tensor_v3"], Global::RebuildTyped),
    (["torch._utils", "_rebuild_parameter"], Global::Parameter),
    (["torch", "DoubleStorage"], Global::Storage(Dtype::F64)),
    (["torch", "FloatStorage"], Global::Storage(Dtype::F32)),
    (["torch", "HalfStorage"], Global::Storage(Dtype::F16)),
    (["torch", "BFloat16Storage"], Global::Storage(Dtype::Bf16)),
    (["torch", "LongStorage"], Global::Storage(Dtype::I64)),
    (["torch", "IntStorage"], Global::Storage(Dtype::I32)),
    (["torch", "ShortStorage"], Global::Storage(Dtype::I16)),
    (["torch", "CharStorage"], Global::Storage(Dtype::I8)),
    (["torch", "ByteStorage"], Global::Storage(Dtype::U8)),
    (["torch", "BoolStorage"], Global::Storage(Dtype::Bool)),
    // Eight-bit floats have untyped storages; the tensor gives the type.
    (
        ["torch.storage", "UntypedStorage"],
        Global::Storage(Dtype::U8),
    ),
    (["torch", "UntypedStorage"], Global::Storage(Dtype::U8)),
    (["torch", "float8_e4m3fn"], Global::Type(Dtype::F8E4m3)),
    (["torch", "float8_e5m2"], Global::Type(Dtype::F8E5m2)),
];

#[derive(Clone, Copy, Debug)]
enum Global {
    /// (storage, offset, shape, strides, requires_grad, hooks[, metadata])
    Rebuild,
    /// The same, with the type before the metadata.
    RebuildTyped,
    /// (tensor, requires_grad, hooks)
    Parameter,
    /// The type of a storage's elements.
    Storage(Dtype),
    /// The type of a tensor's elements.
    Type(Dtype),
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name, unique in the file.
    pub name: String,
    /// Storage type of its numbers, little-endian.
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<u64>,
    /// Stride of each dimension in numbers; `None` if contiguous.
    pub strides: Option<Vec<u64>>,
    /// Byte range in the file, from its first number to its last.
    pub range: Range<usize>,
}

/// Parses and checks a whole file. Tensors keep the order of its dictionary; several may share
/// bytes.
///
/// # Errors
/// The defect and its place, or the kind of contents that are not tensors; the caller adds the
/// file's name.
pub fn parse(file: &[u8]) -> Result<Vec<TensorInfo>, String> {
    if let Some(pointer) = lfs_pointer(file) {
        return Err(pointer);
    }
    if file.starts_with(LEGACY) {
        return Err(
            "it has the format of PyTorch before 1.6, which convert_hf_to_gguf.py does not read either; save it \
             again in today's: python -c \"import torch; f = 'FILE'; torch.save(torch.load(f, map_location='cpu', \
             weights_only=True), f)\""
                .into(),
        );
    }
    if !zip::is_zip(file) {
        return Err(
            "it is not a file of torch.save, which is a zip archive; download it again".into(),
        );
    }
    let entries = zip::entries(file)?;
    let is_pickle = |name: &str| {
        name.strip_suffix("/data.pkl")
            .is_some_and(|root| !root.contains('/'))
    };
    let pickle = entries.iter().find(|entry| is_pickle(entry.name));
    let pickle =
        pickle.ok_or("it is a zip archive without data.pkl, so not a file of torch.save")?;
    let root = &pickle.name[..pickle.name.len() - "data.pkl".len()];
    let entry = |name: &str| {
        let mut inside = entries.iter();
        inside.find(|entry| entry.name.strip_prefix(root) == Some(name))
    };
    if entry("constants.pkl").is_some() {
        return Err(
            "it is a TorchScript program, not weights; look for the weights themselves".into(),
        );
    }
    if let Some(order) = entry("byteorder").map(|entry| &file[entry.range.clone()])
        && order.trim_ascii() != b"little"
    {
        return Err("its numbers are big-endian; load it with torch and save it again on a little-endian machine".into());
    }
    let storages = entries
        .iter()
        .filter_map(|entry| {
            let key = entry.name.strip_prefix(root)?.strip_prefix("data/")?;
            Some((key, entry.range.clone()))
        })
        .collect();
    let globals = GLOBALS.map(|(name, _)| name);
    let pickle = pickle::read(&file[pickle.range.clone()], &globals)?;
    Reader { pickle, storages }.tensors()
}

struct Reader<'a> {
    pickle: Pickle<'a>,
    /// Byte range of each storage, by key.
    storages: HashMap<&'a str, Range<usize>>,
}

/// The storage of a tensor's view.
struct Storage {
    dtype: Dtype,
    range: Range<usize>,
}

impl Storage {
    /// The bytes with the number type that the tensor states.
    fn typed(self, dtype: Value<'_>) -> Result<Storage, String> {
        let dtype = match dtype {
            Value::Global(index) => GLOBALS[index].1,
            _ => Global::Rebuild,
        };
        match dtype {
            Global::Type(dtype) if self.dtype == Dtype::U8 => Ok(Storage { dtype, ..self }),
            _ => Err("its type is not one that torch.save writes here".into()),
        }
    }
}

impl<'a> Reader<'a> {
    fn tensors(&self) -> Result<Vec<TensorInfo>, String> {
        let Some(Object::Dict(items)) = self.pickle.object(self.pickle.root) else {
            return Err(format!(
                "it holds {}, not a dictionary of tensors; save the weights alone, torch.save(model.state_dict(), FILE)",
                self.pickle.kind(self.pickle.root)
            ));
        };
        let mut names = HashSet::new();
        let mut tensors = Vec::new();
        for (key, value) in items {
            let Value::Text(name) = *key else {
                let kind = self.pickle.kind(*key);
                return Err(format!(
                    "its dictionary has {kind} for a key, not a tensor's name"
                ));
            };
            if !names.insert(name) {
                return Err(format!(
                    "tensor {} appears twice in its dictionary",
                    shown(name)
                ));
            }
            let tensor = self.tensor(name, *value);
            tensors.push(tensor.map_err(|what| format!("tensor {}: {what}", shown(name)))?);
        }
        Ok(tensors)
    }

    fn tensor(&self, name: &str, mut value: Value<'a>) -> Result<TensorInfo, String> {
        loop {
            let Some(Object::Call {
                function,
                arguments,
            }) = self.pickle.object(value)
            else {
                return Err(format!(
                    "it is {}; a training state holds its weights one level deeper: save them alone, \
                     torch.save(torch.load(FILE)['model'], FILE), with that key's name",
                    self.pickle.kind(value)
                ));
            };
            let arguments = self.pickle.tuple(Value::Object(*arguments)).unwrap_or(&[]);
            match (GLOBALS[*function].1, arguments) {
                // Arguments precede their call: this ends.
                (Global::Parameter, [inner, ..]) => value = *inner,
                (Global::Rebuild, [storage, offset, shape, strides, _, _, metadata @ ..]) => {
                    self.check_metadata(metadata)?;
                    let storage = self.storage(*storage)?;
                    let view = self.view(*offset, *shape, *strides)?;
                    return view.of(name, &storage);
                }
                (
                    Global::RebuildTyped,
                    [storage, offset, shape, strides, _, _, dtype, metadata @ ..],
                ) => {
                    self.check_metadata(metadata)?;
                    let storage = self.storage(*storage)?;
                    let storage = storage.typed(*dtype)?;
                    let view = self.view(*offset, *shape, *strides)?;
                    return view.of(name, &storage);
                }
                _ => {
                    return Err(
                        "it is created by a call with other arguments than torch.save writes"
                            .into(),
                    );
                }
            }
        }
    }

    /// Refuses views that change numbers: negated and conjugated ones.
    fn check_metadata(&self, metadata: &[Value<'a>]) -> Result<(), String> {
        let is_plain = |value: &Value<'a>| match (value, self.pickle.object(*value)) {
            (Value::None, _) => true,
            (_, Some(Object::Dict(items))) => items.is_empty(),
            _ => false,
        };
        match metadata.iter().all(is_plain) {
            true => Ok(()),
            false => Err(
                "it is a negated or conjugated view; save a copy of it, tensor.resolve_neg()"
                    .into(),
            ),
        }
    }

    fn storage(&self, value: Value<'a>) -> Result<Storage, String> {
        let Some(Object::Persistent(id)) = self.pickle.object(value) else {
            return Err("it has no storage".into());
        };
        let (dtype, key, len) = match self.pickle.tuple(*id) {
            Some(
                &[
                    Value::Text(STORAGE),
                    Value::Global(class),
                    Value::Text(key),
                    _,
                    Value::Int(len),
                ],
            ) => match GLOBALS[class].1 {
                Global::Storage(dtype) => (dtype, key, len),
                _ => return Err("its storage has no type".into()),
            },
            _ => return Err("the id of its storage is not one that torch.save writes".into()),
        };
        let range = self.storages.get(key).cloned();
        let range =
            range.ok_or_else(|| format!("its storage data/{key} is missing in the file"))?;
        let needed = u64::try_from(len)
            .ok()
            .and_then(|len| len.checked_mul(dtype.bytes() as u64));
        match needed == Some(range.len() as u64) {
            true => Ok(Storage { dtype, range }),
            false => Err(format!(
                "its storage data/{key} has {} bytes, but {len} numbers of {dtype} are declared",
                range.len()
            )),
        }
    }

    fn view(
        &self,
        offset: Value<'a>,
        shape: Value<'a>,
        strides: Value<'a>,
    ) -> Result<View, String> {
        let number = |value: &Value<'a>| match *value {
            Value::Int(n) => u64::try_from(n).ok(),
            _ => None,
        };
        let numbers =
            |value| -> Option<Vec<u64>> { self.pickle.tuple(value)?.iter().map(number).collect() };
        let view = || {
            Some(View {
                offset: number(&offset)?,
                shape: numbers(shape)?,
                strides: numbers(strides)?,
            })
        };
        view()
            .filter(|view| view.shape.len() == view.strides.len())
            .ok_or_else(|| "its offset, shape or strides are invalid".into())
    }
}

/// A view of a storage, in numbers of its type.
struct View {
    offset: u64,
    shape: Vec<u64>,
    strides: Vec<u64>,
}

impl View {
    fn of(self, name: &str, storage: &Storage) -> Result<TensorInfo, String> {
        let View {
            offset,
            shape,
            strides,
        } = self;
        let width = storage.dtype.bytes();
        let stored = (storage.range.len() / width) as u64;
        let elements = shape.iter().try_fold(1u64, |n, &size| n.checked_mul(size));
        let steps = shape.iter().zip(&strides);
        let reach = steps.clone().try_fold(offset, |at, (size, stride)| {
            at.checked_add(size.saturating_sub(1).checked_mul(*stride)?)
        });
        let place = match (elements, reach) {
            (Some(0), _) => Some(0..0),
            (Some(_), Some(last)) if last < stored => Some(offset..last + 1),
            _ => None,
        };
        let beyond = || {
            format!(
                "shape {shape:?} with strides {strides:?} at {offset} is beyond its storage of {stored}"
            )
        };
        let place = place.ok_or_else(beyond)?;
        if elements > Some(stored) {
            return Err(format!(
                "its shape {shape:?} repeats the {stored} numbers of its storage; save a copy of it, tensor.contiguous()"
            ));
        }
        let mut step = 1;
        let is_plain = steps.rev().all(|(&size, &stride)| {
            let is_next = size == 1 || stride == step;
            step = size.saturating_mul(step);
            is_next
        });
        let start = storage.range.start + place.start as usize * width;
        let range = start..start + (place.end - place.start) as usize * width;
        Ok(TensorInfo {
            name: name.to_owned(),
            dtype: storage.dtype,
            strides: (!is_plain && elements != Some(0)).then_some(strides),
            shape,
            range,
        })
    }
}
