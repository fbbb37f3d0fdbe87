//! Where tensors live and what their numbers depend on: device, type, threads, processor.

use crate::torch;
use anyhow::{Result, bail, ensure};
use tch::{Device, Kind, Tensor};

/// The memory of the program itself: where files are read to and written from.
pub const HOST: Device = Device::Cpu;

/// The device and the number type of a model's weights and activations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// The device.
    pub device: Device,
    /// `Float`, `BFloat16`, or `Double` for comparisons.
    pub kind: Kind,
}

impl Place {
    /// The processor's memory.
    pub fn cpu(kind: Kind) -> Place {
        Place {
            device: Device::Cpu,
            kind,
        }
    }

    /// Reads `cpu`, `cuda` or `cuda:N`, and `f32`, `bf16` or `f64`; a device that is not there is an error.
    pub fn parse(device: &str, dtype: &str) -> Result<Place> {
        let kind = match dtype {
            "f32" => Kind::Float,
            "bf16" => Kind::BFloat16,
            "f64" => Kind::Double,
            other => bail!("unknown dtype {other:?}: it is f32, bf16 or f64"),
        };
        let index = match device {
            "cpu" => return Ok(Place::cpu(kind)),
            "cuda" => 0,
            other => match other.strip_prefix("cuda:").map(str::parse::<usize>) {
                Some(Ok(index)) => index,
                _ => bail!("unknown device {other:?}: it is cpu, cuda or cuda:N"),
            },
        };
        let there = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
        ensure!(
            index < there,
            "the device {device} is not there: libtorch finds {there} CUDA devices; use cpu, or set up the CUDA libraries"
        );
        Ok(Place {
            device: Device::Cuda(index),
            kind,
        })
    }

    /// This place with another number type.
    pub fn with_kind(self, kind: Kind) -> Place {
        Place { kind, ..self }
    }
}

/// A copy in the host's memory in pages that stay where they are, from which `device` copies at the full speed of the bus; of a tensor of the
/// host's own, itself. The first case is compiled and was not run so far.
pub fn on_host(tensor: &Tensor, device: Device) -> Result<Tensor> {
    if device == HOST {
        return Ok(tensor.shallow_clone());
    }
    Ok(tensor.f_to_device(HOST)?.f_pin_memory(device)?)
}

/// Sets the number of threads of libtorch; the last bits of results depend on it.
pub fn set_threads(threads: usize) {
    tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(1));
}

/// The number of threads of libtorch.
pub fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// What equal bytes depend on besides the inputs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Numerics {
    /// libtorch's version.
    pub libtorch: String,
    /// The instruction set that libtorch uses, for instance `AVX2`.
    pub capability: String,
    /// The number of threads.
    pub threads: usize,
    /// True where bf16 products are made by the processor itself.
    pub native_bf16: bool,
}

/// The numerics class of this process on the CPU.
pub fn numerics() -> Numerics {
    Numerics {
        libtorch: torch::version(),
        capability: torch::capability(),
        threads: threads(),
        native_bf16: torch::native_bf16(),
    }
}
