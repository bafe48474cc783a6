//! Choosing where a run computes.

use std::str::FromStr;

use crate::cuda::{self, CudaDevice};
use crate::error::{Error, Result};
use crate::tensor::Device;

/// What a user asks for: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first NVIDIA card if there is one that works, else the processor.
    #[default]
    Auto,
    /// This device or an error.
    Only(Device),
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Only(device) => device.fmt(f),
        }
    }
}

impl DeviceChoice {
    /// What can be written.
    pub const EXPECTED: &str = "auto, cpu, cuda, or cuda:N for the card of that number";
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceChoice, String> {
        let card = |number: &str| number.parse().map(|n| DeviceChoice::Only(Device::Cuda(n)));
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Only(Device::Cpu)),
            "cuda" => Ok(DeviceChoice::Only(Device::Cuda(0))),
            _ => match text.strip_prefix("cuda:").map(card) {
                Some(Ok(choice)) => Ok(choice),
                _ => Err(format!("expected {}", DeviceChoice::EXPECTED)),
            },
        }
    }
}

/// A chosen device that can be used.
#[derive(Clone, Debug, PartialEq)]
pub struct ChosenDevice {
    pub device: Device,
    /// Why it is the processor although a card might have been meant, in words for one line.
    pub why_cpu: Option<String>,
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// If a card is asked for by name and can't be used.
    pub fn open(self) -> Result<ChosenDevice> {
        let chosen = |device, why_cpu| ChosenDevice { device, why_cpu };
        match self {
            DeviceChoice::Only(Device::Cpu) => Ok(chosen(Device::Cpu, None)),
            DeviceChoice::Only(Device::Cuda(n)) => {
                CudaDevice::get(n)?;
                Ok(chosen(Device::Cuda(n), None))
            }
            DeviceChoice::Auto => Ok(match cuda::available() {
                Err(why) => chosen(Device::Cpu, Some(why)),
                Ok(_) => match CudaDevice::get(0) {
                    Ok(_) => chosen(Device::Cuda(0), None),
                    Err(Error::Device { what, .. }) => chosen(Device::Cpu, Some(what)),
                    Err(e) => chosen(Device::Cpu, Some(e.to_string())),
                },
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Only(Device::Cuda(0))));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CUDA"] {
            assert_eq!(
                text.parse::<DeviceChoice>(),
                Err(format!("expected {}", DeviceChoice::EXPECTED)),
                "{text}"
            );
        }
    }

    #[test]
    fn a_card_that_is_not_there_is_an_error_when_it_is_asked_for_by_name() {
        let error = DeviceChoice::Only(Device::Cuda(4096)).open().unwrap_err();
        assert!(error.to_string().starts_with("cuda:4096: "), "{error}");
        let auto = DeviceChoice::Auto.open().unwrap();
        assert_eq!(auto.device == Device::Cpu, auto.why_cpu.is_some());
    }
}
