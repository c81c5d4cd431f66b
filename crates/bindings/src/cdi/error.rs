//! Why a device cannot be had.

use std::path::PathBuf;

use thiserror::Error;

/// A name or a specification is not what it must be, or asks for what cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CdiError {
    /// The text names no device.
    #[error("{text:?} names no device: such names are VENDOR/CLASS=NAME, as nvidia.com/gpu=0")]
    Name {
        /// The text.
        text: String,
    },
    /// The text is no specification.
    #[error("{message}")]
    Spec {
        /// What is wrong.
        message: String,
    },
    /// No specification has the device.
    #[error("nobody knows the device {device}: {known}")]
    Unknown {
        /// Its name.
        device: String,
        /// What is known instead.
        known: String,
    },
    /// Two specifications of equal rank have the device.
    #[error("the device {device} is in {} and in {}", first.display(), second.display())]
    Ambiguous {
        /// Its name.
        device: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A device needs what cannot be done here.
    #[error("the device {device} asks for {what}, which cannot be done here ({})", file.display())]
    Unsupported {
        /// Its name.
        device: String,
        /// What it asks for.
        what: String,
        /// The specification.
        file: PathBuf,
    },
}
