//! Why something with an instance did not work, with what to do about it.

use std::path::PathBuf;
use std::time::Duration;

use situla_records::EngineClass;

use crate::error::EngineError;

/// An operation on instances failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstanceError {
    /// The name is none.
    #[error("{text:?} is no name for an instance")]
    Name {
        /// What was given.
        text: String,
    },
    /// There is one of that name.
    #[error("instance {name} already exists")]
    Exists {
        /// The name.
        name: String,
        /// Whether it lives where this process cannot see it.
        elsewhere: bool,
    },
    /// There is none of that name.
    #[error("there is no instance {name} on {host}")]
    Missing {
        /// The name.
        name: String,
        /// This host.
        host: String,
        /// Those that there are.
        others: Vec<String>,
    },
    /// It has just ended, or does not answer.
    #[error("instance {name} does not answer")]
    Silent {
        /// The name.
        name: String,
    },
    /// The account has no place for state.
    #[error("your account has no home directory to keep the state of instances in")]
    NoPlace,
    /// A file or directory of the state cannot be used.
    #[error("cannot {doing} {path}")]
    File {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of the state does not say what it should.
    #[error("cannot use {path} as the state of an instance: {}", flaw.text())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        flaw: InstanceFlaw,
    },
    /// A signal that cannot be sent.
    #[error("{text:?} is no signal that an instance can be sent")]
    Signal {
        /// What was given.
        text: String,
    },
    /// It is still there.
    #[error("instance {name} has not ended within {} s", limit.as_secs())]
    Stays {
        /// The name.
        name: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The process that was to hold it has ended.
    #[error("the process that was to hold instance {name} has ended")]
    HolderLost {
        /// The name.
        name: String,
    },
    /// The process that was to hold it says why it could not.
    #[error("{message}")]
    Refused {
        /// What it says, with causes.
        message: String,
        /// The class that it gave.
        class: EngineClass,
        /// What it said can be done.
        remedy: Option<String>,
    },
    /// The use case of running failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What is wrong with a file of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceFlaw {
    /// It holds no state of an instance of its name: the machine went down before its content was on the disk, say.
    Content,
    /// It has another version than this program knows.
    Version(u32),
    /// It is no file, or somebody else's.
    Owner,
}

impl InstanceFlaw {
    fn text(self) -> String {
        match self {
            InstanceFlaw::Content => "it does not hold one".to_owned(),
            InstanceFlaw::Version(version) => format!("it has version {version}, which is not known here"),
            InstanceFlaw::Owner => "it is no file of yours".to_owned(),
        }
    }
}

impl InstanceError {
    /// The class under which it is known.
    pub fn class(&self) -> EngineClass {
        match self {
            InstanceError::Name { .. }
            | InstanceError::Exists { .. }
            | InstanceError::Missing { .. }
            | InstanceError::Signal { .. } => EngineClass::BadOption,
            InstanceError::Silent { .. } | InstanceError::HolderLost { .. } => EngineClass::ServerLost,
            InstanceError::NoPlace
            | InstanceError::File { .. }
            | InstanceError::Unusable { .. }
            | InstanceError::Stays { .. } => EngineClass::SetupFailed,
            InstanceError::Refused { class, .. } => class.clone(),
            InstanceError::Engine(error) => error.class(),
        }
    }

    /// What can be done about it.
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            InstanceError::Name { .. } => {
                "use up to 128 letters, digits, dots, hyphens and underscores, the first of them no dot"
                    .to_owned()
            }
            InstanceError::Exists { name, elsewhere: false } => {
                format!("choose another name, or end it with `situla instance stop {name}`")
            }
            InstanceError::Exists { elsewhere: true, .. } => {
                "choose another name: it was started in another PID namespace of this host".to_owned()
            }
            InstanceError::Missing { others, .. } if others.is_empty() => {
                "there is none at all; start one with `situla instance start IMAGE NAME`".to_owned()
            }
            InstanceError::Missing { others, .. } => format!("there is: {}", others.join(", ")),
            InstanceError::Silent { .. } => "see `situla instance list`, and start it again".to_owned(),
            InstanceError::NoPlace => "set XDG_STATE_HOME to a directory of your own".to_owned(),
            InstanceError::File { .. } => {
                "check the directory's permissions and space, or set XDG_STATE_HOME to another one".to_owned()
            }
            InstanceError::Unusable { flaw: InstanceFlaw::Content, .. } => {
                "start an instance of that name, which replaces it, or remove it".to_owned()
            }
            InstanceError::Unusable { flaw: InstanceFlaw::Version(_), .. } => {
                "use the version of situla that has started it, or remove it if that instance has ended"
                    .to_owned()
            }
            InstanceError::Unusable { flaw: InstanceFlaw::Owner, .. } => {
                "remove it, or choose another name".to_owned()
            }
            InstanceError::Signal { .. } => "use a name such as TERM, INT or KILL, or a number".to_owned(),
            InstanceError::Stays { name, .. } => {
                format!("kill it with `situla instance stop --force {name}`")
            }
            InstanceError::HolderLost { .. } => {
                "look for messages about killed processes in the node's log, then start it again".to_owned()
            }
            InstanceError::Refused { remedy, .. } => return remedy.clone(),
            InstanceError::Engine(error) => return error.remedy(),
        })
    }
}
