//! The device of products with weights: the CPU with our own kernels, or a [`Backend`] enabled by a
//! build feature.

use super::Result;
use super::rows::Rows;
use std::fmt;
use std::sync::Arc;

/// A library or accelerator that multiplies activations by weights.
pub trait Backend: Send + Sync {
    /// Uploads the weights of one or more consecutive matrices `[rows, columns]`.
    ///
    /// # Errors
    /// If the device has too little memory.
    fn upload(&self, weights: &[f32], shape: [usize; 2]) -> Result<Arc<dyn Uploaded>>;
}

/// Weights on a [`Backend`].
pub trait Uploaded: Send + Sync {
    /// The product of activations with one of the matrices.
    ///
    /// # Errors
    /// If the device fails.
    fn product(&self, matrix: usize, x: &Rows) -> Result<Rows>;
}

/// The device of products with weights.
#[derive(Clone)]
pub struct Device {
    name: String,
    backend: Option<Arc<dyn Backend>>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Default for Device {
    /// The CPU: with MKL or Accelerate if built with their features, else our own kernels.
    fn default() -> Device {
        #[cfg(any(feature = "mkl", feature = "accelerate"))]
        let backend = Some(super::candle::Candle::cpu());
        #[cfg(not(any(feature = "mkl", feature = "accelerate")))]
        let backend = None;
        Device {
            name: "Cpu".into(),
            backend,
        }
    }
}

impl Device {
    /// True if our own kernels compute the products.
    pub(super) fn is_own(&self) -> bool {
        self.backend.is_none()
    }

    pub(super) fn upload(
        &self,
        weights: &[f32],
        shape: [usize; 2],
    ) -> Result<Option<Arc<dyn Uploaded>>> {
        let backend = self.backend.as_ref();
        backend
            .map(|backend| backend.upload(weights, shape))
            .transpose()
    }
}

/// Parses a device name: `cpu`, `cuda` or `cuda:1`, `metal` or `metal:1`.
///
/// # Errors
/// An unknown name, a device missing in this build (the error names the feature to build with), or
/// a device missing in this computer.
pub fn device(name: &str) -> std::result::Result<Device, String> {
    let (kind, number) = name.split_once(':').unwrap_or((name, "0"));
    let unknown =
        || format!("no device is called '{name}'; there are cpu, cuda, cuda:N, metal and metal:N");
    let number: usize = number.parse().map_err(|_| unknown())?;
    match kind {
        "cpu" if !name.contains(':') => Ok(Device::default()),
        "cuda" | "metal" => {
            let backend = open(kind, number)?;
            Ok(Device {
                name: format!("{kind}:{number}"),
                backend: Some(backend),
            })
        }
        _ => Err(unknown()),
    }
}

#[cfg(feature = "candle")]
fn open(kind: &str, number: usize) -> std::result::Result<Arc<dyn Backend>, String> {
    use super::candle::Candle;
    match kind {
        "cuda" if cfg!(feature = "cuda") => Candle::cuda(number),
        "metal" if cfg!(feature = "metal") => Candle::metal(number),
        _ => return Err(lacking(kind)),
    }
    .map_err(|e| format!("cannot open {kind}:{number}: {e}"))
}

#[cfg(not(feature = "candle"))]
fn open(kind: &str, _: usize) -> std::result::Result<Arc<dyn Backend>, String> {
    Err(lacking(kind))
}

fn lacking(kind: &str) -> String {
    format!(
        "this build computes on the CPU only; build with `cargo build --release --features {kind}`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_and_missing_devices_have_distinct_messages() {
        assert_eq!(device("cpu").unwrap().name, "Cpu");
        for name in [
            "", "gpu", "cpu:1", "cuda:", "cuda:x", "metal:-1", "cuda:0:1",
        ] {
            assert!(
                device(name).unwrap_err().contains("there are cpu, cuda"),
                "{name}"
            );
        }
        for (name, feature) in [("cuda:1", "--features cuda"), ("metal", "--features metal")] {
            let built = match feature {
                "--features cuda" => cfg!(feature = "cuda"),
                _ => cfg!(feature = "metal"),
            };
            if !built {
                assert!(device(name).unwrap_err().contains(feature));
            }
        }
    }
}
