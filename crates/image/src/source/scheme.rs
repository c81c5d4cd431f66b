//! How the name of an image in a registry begins.

use std::fmt;

/// What a registry is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `docker://`: an image of layers.
    Docker,
    /// `oras://`: a SIF file, as it was pushed.
    Oras,
}

impl Scheme {
    /// Splits a name after its scheme; `None` where it begins with none of these.
    #[must_use]
    pub fn split(text: &str) -> Option<(Self, &str)> {
        [Self::Docker, Self::Oras]
            .into_iter()
            .find_map(|scheme| Some((scheme, text.strip_prefix(scheme.as_str())?)))
    }

    /// As it stands in front of a name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker://",
            Self::Oras => "oras://",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_are_told_apart() {
        for (text, want) in [
            ("docker://r.example/a:1", Some((Scheme::Docker, "r.example/a:1"))),
            ("oras://r.example/a:1", Some((Scheme::Oras, "r.example/a:1"))),
            ("oras:r.example/a:1", None),
            ("library://a/b", None),
            ("r.example/oras://a", None),
        ] {
            assert_eq!(Scheme::split(text), want, "{text}");
            assert!(want.is_none_or(|(scheme, rest)| format!("{scheme}{rest}") == text));
        }
    }
}
