//! Outcome classes: the one word that says how a run ended.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why the engine could not run the payload, or lost it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum EngineClass {
    /// The image does not exist.
    ImageMissing,
    /// The image is cut off or malformed.
    ImageCorrupt,
    /// The image was changed while it was used.
    ImageChanged,
    /// Bytes do not match their digest.
    DigestMismatch,
    /// The image could not be fetched.
    FetchFailed,
    /// An option is unknown or malformed.
    BadOption,
    /// The source of a bind mount does not exist.
    BindSourceMissing,
    /// The command to run is not in the image or cannot be executed.
    CommandMissing,
    /// `/dev/fuse` is absent or cannot be opened.
    NoFuse,
    /// User namespaces are forbidden.
    NoUserns,
    /// The site's policy denied the run.
    PolicyDenied,
    /// The process that serves the image or holds the container died.
    ServerLost,
    /// Setting up the container failed in another way.
    SetupFailed,
    /// A class of a newer version, without the `engine-` prefix.
    Other(String),
}

const ENGINE_NAMES: &[(&str, EngineClass)] = &[
    ("image-missing", EngineClass::ImageMissing),
    ("image-corrupt", EngineClass::ImageCorrupt),
    ("image-changed", EngineClass::ImageChanged),
    ("digest-mismatch", EngineClass::DigestMismatch),
    ("fetch-failed", EngineClass::FetchFailed),
    ("bad-option", EngineClass::BadOption),
    ("bind-source-missing", EngineClass::BindSourceMissing),
    ("command-missing", EngineClass::CommandMissing),
    ("no-fuse", EngineClass::NoFuse),
    ("no-userns", EngineClass::NoUserns),
    ("policy-denied", EngineClass::PolicyDenied),
    ("server-lost", EngineClass::ServerLost),
    ("setup-failed", EngineClass::SetupFailed),
];

impl EngineClass {
    /// Lists the classes of this version.
    pub fn all() -> impl Iterator<Item = Self> {
        ENGINE_NAMES.iter().map(|(_, class)| class.clone())
    }

    /// Gives the name without the `engine-` prefix.
    pub fn name(&self) -> &str {
        match self {
            Self::Other(name) => name,
            // Every variant but `Other` is in the table; the test below walks them.
            known => {
                ENGINE_NAMES.iter().find(|(_, class)| class == known).map_or("setup-failed", |(name, _)| name)
            }
        }
    }
}

/// How a run, or one task of it, ended. Ordered from best to worst, so that the worst task decides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
#[non_exhaustive]
pub enum OutcomeClass {
    /// Exit status 0.
    Ok,
    /// Another exit status.
    AppError,
    /// Death by a signal that nothing else explains.
    Signal,
    /// Nobody saw the end: the node or the engine went away.
    Incomplete,
    /// Somebody cancelled the job or step.
    Cancelled,
    /// The job was put back into the queue.
    Requeued,
    /// The job had to make room for another one.
    Preempted,
    /// A node of the job failed.
    NodeFail,
    /// The time limit was reached.
    TimeLimit,
    /// The memory limit was reached.
    Oom,
    /// The engine failed.
    Engine(EngineClass),
}

/// The text is no outcome class.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown outcome class {0:?}")]
pub struct UnknownClass(pub String);

impl fmt::Display for OutcomeClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::AppError => "app-error",
            Self::Signal => "signal",
            Self::Incomplete => "incomplete",
            Self::Cancelled => "cancelled",
            Self::Requeued => "requeued",
            Self::Preempted => "preempted",
            Self::NodeFail => "node-fail",
            Self::TimeLimit => "time-limit",
            Self::Oom => "oom",
            Self::Engine(class) => return write!(f, "engine-{}", class.name()),
        })
    }
}

impl FromStr for OutcomeClass {
    type Err = UnknownClass;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "ok" => Self::Ok,
            "app-error" => Self::AppError,
            "signal" => Self::Signal,
            "incomplete" => Self::Incomplete,
            "cancelled" => Self::Cancelled,
            "requeued" => Self::Requeued,
            "preempted" => Self::Preempted,
            "node-fail" => Self::NodeFail,
            "time-limit" => Self::TimeLimit,
            "oom" => Self::Oom,
            _ => match text.strip_prefix("engine-") {
                Some(name) if !name.is_empty() => Self::Engine(EngineClass::from(name.to_owned())),
                _ => return Err(UnknownClass(text.to_owned())),
            },
        })
    }
}

impl From<OutcomeClass> for String {
    fn from(class: OutcomeClass) -> Self {
        class.to_string()
    }
}

impl TryFrom<String> for OutcomeClass {
    type Error = UnknownClass;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<String> for EngineClass {
    fn from(name: String) -> Self {
        let known = ENGINE_NAMES.iter().find(|(known, _)| *known == name);
        known.map_or_else(|| Self::Other(name), |(_, class)| class.clone())
    }
}

impl From<EngineClass> for String {
    fn from(class: EngineClass) -> Self {
        class.name().to_owned()
    }
}

impl Serialize for EngineClass {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for EngineClass {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_a_name_and_comes_back() {
        let plain = [
            "ok",
            "app-error",
            "signal",
            "incomplete",
            "cancelled",
            "requeued",
            "preempted",
            "node-fail",
            "time-limit",
            "oom",
        ];
        for name in plain {
            assert_eq!(name.parse::<OutcomeClass>().expect(name).to_string(), name);
        }
        for class in EngineClass::all() {
            let text = OutcomeClass::Engine(class.clone()).to_string();
            assert!(text.starts_with("engine-"));
            assert_eq!(text.parse(), Ok(OutcomeClass::Engine(class)));
        }
        let newer = "engine-licence-expired".parse::<OutcomeClass>().expect("tolerated");
        assert_eq!(newer.to_string(), "engine-licence-expired");
        assert!("engine-".parse::<OutcomeClass>().is_err());
        assert!("fine".parse::<OutcomeClass>().is_err());
    }

    #[test]
    fn worse_is_greater() {
        use OutcomeClass as C;
        let order = [
            C::Ok,
            C::AppError,
            C::Signal,
            C::Incomplete,
            C::Cancelled,
            C::Requeued,
            C::Preempted,
            C::NodeFail,
            C::TimeLimit,
            C::Oom,
        ];
        assert!(order.is_sorted());
        assert!(C::Oom < C::Engine(EngineClass::ImageMissing));
    }
}
