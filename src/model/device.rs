//! Where tensors are computed.

use candle_core::Device;

/// The device of a name: `cpu`, `cuda` or `cuda:1`, `metal` or `metal:1`.
///
/// # Errors
/// A name that is none of these, a device that this build lacks (the error names the feature to
/// build with), a device that this computer lacks.
pub fn device(name: &str) -> Result<Device, String> {
    let (kind, number) = name.split_once(':').unwrap_or((name, "0"));
    let unknown =
        || format!("no device is called '{name}'; there are cpu, cuda, cuda:N, metal and metal:N");
    let number: usize = number.parse().map_err(|_| unknown())?;
    let (built, opened) = match kind {
        "cpu" if !name.contains(':') => return Ok(Device::Cpu),
        "cuda" => (
            cfg!(feature = "cuda"),
            Device::new_cuda as fn(usize) -> candle_core::Result<Device>,
        ),
        "metal" => (
            cfg!(feature = "metal"),
            Device::new_metal as fn(usize) -> candle_core::Result<Device>,
        ),
        _ => return Err(unknown()),
    };
    if !built {
        return Err(format!(
            "this build computes on the CPU only; build with `cargo build --release --features {kind}`"
        ));
    }
    opened(number).map_err(|e| format!("cannot open {kind}:{number}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_told_from_one_that_is_not_known() {
        assert!(device("cpu").unwrap().is_cpu());
        for name in [
            "", "gpu", "cpu:1", "cuda:", "cuda:x", "metal:-1", "cuda:0:1",
        ] {
            assert!(
                device(name).unwrap_err().contains("there are cpu, cuda"),
                "{name}"
            );
        }
        if !cfg!(feature = "cuda") {
            assert!(device("cuda:1").unwrap_err().contains("--features cuda"));
        }
        if !cfg!(feature = "metal") {
            assert!(device("metal").unwrap_err().contains("--features metal"));
        }
    }
}
