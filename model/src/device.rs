//! Where models are computed: the CPU, or a GPU if this build and this machine have one.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    str::FromStr,
};

use candle_core::{DType, Device};

/// What the operator asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU that this build can use, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
    /// Apple's GPU.
    Metal,
}

/// A device that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The name is no device's.
    #[error("{0} is no device: use auto, cpu, cuda, cuda:N or metal")]
    Name(String),
    /// The program was built without it.
    #[error(
        "this program was built without {feature}: build it with `--features {feature}` (docs/cuda.md), or use --device cpu"
    )]
    NotBuilt {
        /// The feature that is missing.
        feature: &'static str,
    },
    /// Training was asked of Apple's GPU.
    #[error("models are drawn on metal, but trained on the CPU or on CUDA: use --device cpu, or auto")]
    DrawsOnly,
    /// The driver or the device refuses.
    #[error(
        "{choice} cannot be used: {reason}. Is the driver installed, and is there such a device (`nvidia-smi` lists those of CUDA)? \
         --device cpu works everywhere"
    )]
    Unusable {
        /// What was asked for.
        choice: DeviceChoice,
        /// What the driver says.
        reason: String,
    },
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(number) => write!(f, "cuda:{number}"),
            DeviceChoice::Metal => f.write_str("metal"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        match name {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            "metal" => Ok(DeviceChoice::Metal),
            _ => {
                let number = name.strip_prefix("cuda:").and_then(|number| number.parse().ok());
                number.map(DeviceChoice::Cuda).ok_or_else(|| DeviceError::Name(name.to_owned()))
            }
        }
    }
}

impl DeviceChoice {
    /// Opens the device. Open it on the thread that will use it: candle's CUDA stream is the thread's own.
    ///
    /// # Errors
    /// If a GPU was named and is not to be had. [`DeviceChoice::Auto`] falls back to the CPU instead, and says so in the log.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            DeviceChoice::Cpu => Ok(Device::Cpu),
            DeviceChoice::Cuda(_) if !cfg!(feature = "cuda") => Err(DeviceError::NotBuilt { feature: "cuda" }),
            DeviceChoice::Metal if !cfg!(feature = "metal") => Err(DeviceError::NotBuilt { feature: "metal" }),
            DeviceChoice::Cuda(number) => self.guarded(|| cuda(number)),
            DeviceChoice::Metal => self.guarded(|| Device::new_metal(0)),
            DeviceChoice::Auto => Ok(Self::first_gpu().unwrap_or(Device::Cpu)),
        }
    }

    /// Opens the device to train on: as [`DeviceChoice::open`], but on CUDA or the CPU.
    ///
    /// # Errors
    /// If a GPU was named that is not to be had, or that models are only drawn on.
    pub fn open_to_train(self) -> Result<Device, DeviceError> {
        match self {
            DeviceChoice::Metal => Err(DeviceError::DrawsOnly),
            DeviceChoice::Auto => Ok(Self::first_gpu().filter(Device::is_cuda).unwrap_or(Device::Cpu)),
            choice => choice.open(),
        }
    }

    /// The first GPU that this build can use.
    fn first_gpu() -> Option<Device> {
        let built = [(cfg!(feature = "cuda"), DeviceChoice::Cuda(0)), (cfg!(feature = "metal"), DeviceChoice::Metal)];
        built.into_iter().filter(|(built, _)| *built).find_map(|(_, choice)| match choice.open() {
            Ok(device) => Some(device),
            Err(error) => {
                tracing::info!("no GPU: {error}");
                None
            }
        })
    }

    /// Bindings may panic where a driver's library is missing.
    fn guarded(self, open: impl FnOnce() -> candle_core::Result<Device>) -> Result<Device, DeviceError> {
        let reason = match catch_unwind(AssertUnwindSafe(open)) {
            Ok(Ok(device)) => return Ok(device),
            // candle's errors may carry a backtrace, which helps nobody here.
            Ok(Err(error)) => error.to_string().lines().next().unwrap_or_default().to_owned(),
            Err(_) => "its driver's library is missing".to_owned(),
        };
        Err(DeviceError::Unusable { choice: self, reason })
    }
}

/// The CUDA device of a number, ready to use.
fn cuda(number: usize) -> candle_core::Result<Device> {
    let device = Device::new_cuda(number)?;
    #[cfg(feature = "cuda")]
    crate::cuda::prepare(&device)?;
    Ok(device)
}

/// The precision in which a device computes: bf16 on CUDA, where tensor cores take it, f32 elsewhere. Weights, moments and averages are f32 everywhere.
pub fn compute_precision(device: &Device) -> DType {
    if device.is_cuda() { DType::BF16 } else { DType::F32 }
}

/// True where a device had too little memory left for what was asked of it. Nothing is broken then: less can be asked.
pub(crate) fn is_out_of_memory(error: &candle_core::Error) -> bool {
    // candle boxes the errors of the driver and of cuBLAS, whose types a build without CUDA has not: they say their names.
    let said = error.to_string();
    ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"].iter().any(|name| said.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_and_written_alike() {
        for name in ["auto", "cpu", "cuda:0", "cuda:3", "metal"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        for name in ["", "gpu", "cuda:", "cuda:-1", "cuda:one"] {
            assert!(matches!(name.parse::<DeviceChoice>(), Err(DeviceError::Name(_))), "{name}");
        }
    }

    /// On a machine without the 64th GPU, whatever was built: an error that helps, never a panic.
    #[test]
    fn a_device_that_is_not_there_is_an_error_with_a_remedy() {
        let error = DeviceChoice::Cuda(63).open().unwrap_err().to_string();
        assert!(error.contains("--device cpu"), "{error}");
        assert!(DeviceChoice::Cpu.open().unwrap().is_cpu());
        DeviceChoice::Auto.open().unwrap();
    }
}
