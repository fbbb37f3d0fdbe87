//! Tensors between memory and safetensors files.

use crate::place::HOST;
use crate::quantized::{Int8, Nested, Nf4, Weight};
use anyhow::{Result, anyhow, ensure};
use formats::dtype::Dtype;
use formats::quantized;
use formats::safetensors;
use formats::tensors::{Stored, Weights};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// libtorch's name of a stored number format.
pub fn kind_of(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        Dtype::Bool => Kind::Bool,
    }
}

/// The stored number format of a tensor.
pub fn dtype_of(kind: Kind) -> Result<Dtype> {
    Dtype::ALL
        .into_iter()
        .find(|dtype| kind_of(*dtype) == kind)
        .ok_or_else(|| anyhow!("tensors of the type {kind:?} cannot be stored"))
}

/// Reads a tensor as `kind`; a missing name or another shape is an error that says both shapes.
pub fn read(
    weights: &Weights,
    name: &str,
    shape: &[i64],
    kind: Kind,
    device: Device,
) -> Result<Tensor> {
    let place = || {
        let paths = weights.paths();
        paths
            .first()
            .map_or_else(String::new, |path| format!("{}: ", path.display()))
    };
    let info = weights
        .get(name)
        .ok_or_else(|| anyhow!("{}the tensor {name:?} is missing", place()))?;
    let found: Vec<i64> = info.shape.iter().map(|&extent| extent as i64).collect();
    ensure!(
        found == shape,
        "{}the tensor {name:?} has the shape {found:?}, but the model's config asks for {shape:?}",
        place()
    );
    let tensor = match info.stored {
        Stored::Plain(dtype) if dtype.is_float() => {
            Tensor::f_from_data_size(weights.bytes(name)?, shape, kind_of(dtype))?
        }
        Stored::Gguf(_) => Tensor::f_from_slice(&weights.read_f32(name)?)?.f_view(shape)?,
        Stored::Plain(dtype) => {
            anyhow::bail!(
                "{}the tensor {name:?} holds {dtype}, not numbers of a weight",
                place()
            )
        }
    };
    Ok(tensor.f_to_device(device)?.f_to_kind(kind)?)
}

/// Reads the weight of a linear as it is stored: a dense one as `kind`, a quantized one packed.
pub fn read_weight(
    weights: &Weights,
    name: &str,
    shape: [i64; 2],
    kind: Kind,
    device: Device,
) -> Result<Weight> {
    let [out, input] = [usize::try_from(shape[0])?, usize::try_from(shape[1])?];
    let plain = |name: &str, kind: Kind| -> Result<Tensor> {
        let info = weights
            .get(name)
            .ok_or_else(|| anyhow!("the tensor {name:?} is missing"))?;
        let count: usize = info.shape.iter().product();
        let tensor = Tensor::f_from_data_size(weights.bytes(name)?, &[count as i64], kind)?;
        weights.release(name);
        Ok(tensor.f_to_device(device)?)
    };
    match quantized::linear(weights, name, [out, input])? {
        quantized::Linear::Dense => Ok(Weight::Dense(read(weights, name, &shape, kind, device)?)),
        quantized::Linear::Nf4(state) => {
            let part = |word: &str| quantized::part(name, word);
            let absmax = part("absmax");
            let (scales, nested) = match state.nested {
                None => (plain(&absmax, Kind::Float)?, None),
                Some((block, offset)) => {
                    let nested = Nested {
                        codes: plain(&absmax, Kind::Uint8)?,
                        table: plain(&part("nested_quant_map"), Kind::Float)?,
                        block: i64::try_from(block)?,
                        offset,
                    };
                    (plain(&part("nested_absmax"), Kind::Float)?, Some(nested))
                }
            };
            Ok(Weight::Nf4(Nf4 {
                extents: (shape[0], shape[1]),
                codes: plain(name, Kind::Uint8)?,
                table: plain(&part("quant_map"), Kind::Float)?,
                block: i64::try_from(state.block)?,
                scales,
                nested,
                kind: kind_of(state.dtype),
            }))
        }
        quantized::Linear::Int8 => {
            let largest = plain(&quantized::beside(name, "SCB"), Kind::Float)?;
            Ok(Weight::Int8(Int8 {
                codes: plain(name, Kind::Int8)?.f_view(shape)?,
                scales: largest / 127.0,
                kind: if kind == Kind::BFloat16 {
                    kind
                } else {
                    Kind::Float
                },
            }))
        }
    }
}

/// The little-endian bytes of a tensor, row-major.
pub fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.detach().f_to_device(HOST)?.f_contiguous()?;
    let count = tensor.numel();
    let mut bytes = vec![0u8; count * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, count)?;
    Ok(bytes)
}

/// Writes tensors as a safetensors file, one at a time in memory.
pub fn write(path: &Path, tensors: &[(String, Tensor)], metadata: &[(&str, &str)]) -> Result<()> {
    let heads: Result<Vec<_>> = tensors
        .iter()
        .map(|(name, tensor)| {
            let shape = tensor
                .size()
                .iter()
                .map(|&extent| extent as usize)
                .collect();
            Ok((name.clone(), dtype_of(tensor.kind())?, shape))
        })
        .collect();
    safetensors::write_with(path, &heads?, metadata, |index| bytes(&tensors[index].1))
}

/// Reads all tensors of a safetensors file as they are stored. What was copied out of the file counts as memory once, not twice.
pub fn read_file(path: &Path) -> Result<Vec<(String, Tensor)>> {
    let file = safetensors::File::open(path)?;
    file.entries()
        .iter()
        .map(|entry| {
            let shape: Vec<i64> = entry.shape.iter().map(|&extent| extent as i64).collect();
            let kind = kind_of(entry.dtype);
            let tensor = Tensor::f_from_data_size(file.bytes(entry)?, &shape, kind)?;
            file.release(entry);
            Ok((entry.name.clone(), tensor))
        })
        .collect()
}
