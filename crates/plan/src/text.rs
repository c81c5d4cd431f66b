//! Strings of the operating system in a document of Unicode strings.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An argument or environment entry: any bytes but NUL, nearly always UTF-8.
///
/// Serialised as a plain string where it is UTF-8, else as an array of its bytes, so that nothing
/// is lost between the Plan that is printed and the Plan that is executed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Text(Vec<u8>);

impl Text {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The string as the operating system takes it.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(&self.0), f)
    }
}

impl From<&str> for Text {
    fn from(value: &str) -> Self {
        Text(value.as_bytes().to_vec())
    }
}

impl From<String> for Text {
    fn from(value: String) -> Self {
        Text(value.into_bytes())
    }
}

impl From<OsString> for Text {
    fn from(value: OsString) -> Self {
        Text(value.into_vec())
    }
}

impl From<Vec<u8>> for Text {
    fn from(value: Vec<u8>) -> Self {
        Text(value)
    }
}

impl From<Text> for Vec<u8> {
    fn from(value: Text) -> Self {
        value.0
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => serializer.collect_seq(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            String(String),
            Bytes(Vec<u8>),
        }
        Ok(match Either::deserialize(deserializer)? {
            Either::String(string) => string.into(),
            Either::Bytes(bytes) => bytes.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_survive_a_round_trip() {
        for (bytes, json) in [(b"plain".to_vec(), "\"plain\""), (vec![b'a', 0xff], "[97,255]")] {
            let text = Text::from(bytes.clone());
            let printed = serde_json::to_string(&text).unwrap();
            assert_eq!(printed, json);
            assert_eq!(serde_json::from_str::<Text>(&printed).unwrap().as_bytes(), bytes);
        }
    }
}
