//! Names of instances.

use std::fmt;

/// A name that is also the name of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InstanceName(String);

/// The longest name in bytes: with an ending, the name of a file.
const MAX_NAME: usize = 128;

impl InstanceName {
    /// Takes a name of letters, digits, dots, hyphens and underscores, as Apptainer has them, which does not
    /// begin with a dot.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let good = (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('.');
        good.then(|| InstanceName(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_of_files() {
        for (text, good) in [
            ("web", true),
            ("a.b_c-9", true),
            ("-x", true),
            ("", false),
            (".", false),
            ("..", false),
            (".hidden", false),
            ("a/b", false),
            ("a b", false),
            ("a\n", false),
            ("ü", false),
            (&"x".repeat(128), true),
            (&"x".repeat(129), false),
        ] {
            assert_eq!(InstanceName::parse(text).is_some(), good, "{text:?}");
        }
    }
}
