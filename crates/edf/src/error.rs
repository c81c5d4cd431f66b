//! What can be wrong with an environment definition file.

use std::path::PathBuf;

use thiserror::Error;

/// An environment cannot be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EdfError {
    /// No file has that name.
    #[error("there is no environment {name:?}: no {name}.toml in {}", shown(directories))]
    NotFound {
        /// The name.
        name: String,
        /// Where it was looked for, in that order.
        directories: Vec<PathBuf>,
    },
    /// A file cannot be read.
    #[error("cannot read the environment file {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what it must be.
    #[error("{}: {message}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
    /// A variable has no value.
    #[error("{}: {key} mentions ${{{variable}}}, which is not set", file.display())]
    Undefined {
        /// The file.
        file: PathBuf,
        /// The key in it.
        key: String,
        /// The variable.
        variable: String,
    },
    /// A value cannot be expanded.
    #[error("{}: {key} has a ${{ in {:?} that is no variable", file.display(), shortened(text))]
    BadExpansion {
        /// The file.
        file: PathBuf,
        /// The key in it.
        key: String,
        /// The value.
        text: String,
    },
    /// A value is too long.
    #[error("{}: {key} has more than {limit} bytes", file.display())]
    TooLong {
        /// The file.
        file: PathBuf,
        /// The key in it.
        key: String,
        /// The limit.
        limit: usize,
    },
    /// A file inherits from itself.
    #[error("{} inherits from itself: {}", file.display(), shown(chain))]
    Cycle {
        /// The file.
        file: PathBuf,
        /// The files on the way, the first one first.
        chain: Vec<PathBuf>,
    },
    /// Files inherit from each other for too long.
    #[error("more than {limit} levels of environments: {}", shown(chain))]
    TooDeep {
        /// The limit.
        limit: usize,
        /// The files on the way, the first one first.
        chain: Vec<PathBuf>,
    },
    /// More files than anybody means.
    #[error("environments that inherit {limit} files in all")]
    TooMany {
        /// The limit.
        limit: usize,
    },
}

/// The beginning of a text that may be long.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 100;
    if text.chars().count() <= SHOWN {
        text.to_owned()
    } else {
        text.chars().take(SHOWN).chain("...".chars()).collect()
    }
}

fn shown(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    if paths.is_empty() { "no directory".to_owned() } else { paths.join(", ") }
}
