//! Names of devices.

use std::fmt;
use std::str::FromStr;

use crate::cdi::error::CdiError;

/// Bytes of a name.
const MAX_NAME: usize = 256;

/// The name of a device, `VENDOR/CLASS=NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName {
    /// `VENDOR/CLASS`.
    pub(crate) kind: String,
    /// Which of them.
    pub(crate) device: String,
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

impl FromStr for DeviceName {
    type Err = CdiError;

    fn from_str(text: &str) -> Result<Self, CdiError> {
        let parts = text.split_once('=').filter(|(kind, device)| is_kind(kind) && is_device(device));
        let (kind, device) = parts
            .filter(|_| text.len() <= MAX_NAME)
            .ok_or_else(|| CdiError::Name { text: text.chars().take(MAX_NAME).collect() })?;
        Ok(DeviceName { kind: kind.to_owned(), device: device.to_owned() })
    }
}

/// Tells whether this is a `VENDOR/CLASS`: letters, digits and `_-.`, the first a letter and the last no mark.
pub(crate) fn is_kind(text: &str) -> bool {
    let is_part = |part: &str| {
        let plain = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        plain && part.starts_with(|c: char| c.is_ascii_alphabetic()) && ends_plainly(part)
    };
    text.split_once('/').is_some_and(|(vendor, class)| is_part(vendor) && is_part(class))
}

/// Tells whether this is the name of one: letters, digits and `_-.:`, the first and the last no mark.
pub(crate) fn is_device(text: &str) -> bool {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte));
    plain && text.starts_with(|c: char| c.is_ascii_alphanumeric()) && ends_plainly(text)
}

fn ends_plainly(text: &str) -> bool {
    text.ends_with(|c: char| c.is_ascii_alphanumeric())
}
