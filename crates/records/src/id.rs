//! Names of records: which step on which node, and in which file that is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// Bytes of one part of a name; `NAME_MAX` is 255 for all parts together with the ending.
const MAX_PART: usize = 64;

/// Ending of journal files.
pub(crate) const ENDING: &str = ".jsonl";

/// A name cannot be used for a record.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IdError {
    /// A part is empty, too long, begins with a dot, or holds more than letters, digits and `._-`.
    #[error("{part:?} cannot be part of a record's name")]
    BadPart {
        /// The part, shortened.
        part: String,
    },
    /// The text is not `[CLUSTER/]JOB.STEP.NODE` or `local-TIME-PID.HOST`.
    #[error("{text:?} is not the name of a record")]
    BadName {
        /// The text, shortened.
        text: String,
    },
}

/// Name of a record: `[CLUSTER/]JOB.STEP.NODE`, or `local-TIME-PID.HOST` outside Slurm.
///
/// The name is also the path of the journal below the records directory, so its parts are checked
/// to hold no separator: a cluster or node name comes from the environment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId {
    cluster: Option<String>,
    stem: String,
}

impl RecordId {
    /// Names the record of a step on a node.
    ///
    /// # Errors
    /// A part that cannot be a file name.
    pub fn step(cluster: Option<&str>, job: u32, step: &str, node: &str) -> Result<Self, IdError> {
        let cluster = cluster.map(check_part).transpose()?.map(str::to_owned);
        // A dot in the step would shift the border to the node.
        let step = check_part(step).and_then(|step| match step.contains('.') {
            true => Err(bad_part(step)),
            false => Ok(step),
        })?;
        Ok(Self { cluster, stem: format!("{job}.{step}.{}", check_part(node)?) })
    }

    /// Names the record of a run outside Slurm.
    ///
    /// # Errors
    /// A host name that cannot be part of a file name.
    pub fn local(unix_ns: u64, pid: u32, host: &str) -> Result<Self, IdError> {
        Ok(Self { cluster: None, stem: format!("local-{unix_ns}-{pid}.{}", check_part(host)?) })
    }

    /// Gives the cluster.
    pub fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    /// Gives job, step and node, or `None` for a local run.
    pub fn parts(&self) -> Option<(u32, &str, &str)> {
        let mut parts = self.stem.splitn(3, '.');
        Some((parts.next()?.parse().ok()?, parts.next()?, parts.next()?))
    }

    /// Gives the path of the journal, relative to the records directory.
    pub fn relative_path(&self) -> PathBuf {
        let file = format!("{}{ENDING}", self.stem);
        match &self.cluster {
            Some(cluster) => PathBuf::from(cluster).join(file),
            None => PathBuf::from(file),
        }
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cluster {
            Some(cluster) => write!(f, "{cluster}/{}", self.stem),
            None => f.write_str(&self.stem),
        }
    }
}

impl FromStr for RecordId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || IdError::BadName { text: text.chars().take(80).collect() };
        let (cluster, stem) = match text.split_once('/') {
            Some((cluster, stem)) => (Some(cluster), stem),
            None => (None, text),
        };
        if let Some(local) = stem.strip_prefix("local-") {
            if cluster.is_some() {
                return Err(bad());
            }
            let (numbers, host) = local.split_once('.').ok_or_else(bad)?;
            let (time, pid) = numbers.split_once('-').ok_or_else(bad)?;
            return Self::local(digits(time).ok_or_else(bad)?, digits(pid).ok_or_else(bad)?, host);
        }
        let mut parts = stem.splitn(3, '.');
        let (Some(job), Some(step), Some(node)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(bad());
        };
        Self::step(cluster, digits(job).ok_or_else(bad)?, step, node)
    }
}

fn digits<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn check_part(part: &str) -> Result<&str, IdError> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if part.is_empty() || part.len() > MAX_PART || part.starts_with('.') || !part.bytes().all(fine) {
        return Err(bad_part(part));
    }
    Ok(part)
}

fn bad_part(part: &str) -> IdError {
    IdError::BadPart { part: part.chars().take(40).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths() {
        let table = [
            (RecordId::step(Some("demo"), 5, "0", "n1"), "demo/5.0.n1", "demo/5.0.n1.jsonl"),
            (
                RecordId::step(None, 5, "batch", "n1.example"),
                "5.batch.n1.example",
                "5.batch.n1.example.jsonl",
            ),
            (RecordId::local(123, 45, "login"), "local-123-45.login", "local-123-45.login.jsonl"),
        ];
        for (id, name, path) in table {
            let id = id.expect(name);
            assert_eq!((id.to_string().as_str(), id.relative_path()), (name, PathBuf::from(path)));
            assert_eq!(name.parse(), Ok(id));
        }
        let id: RecordId = "demo/5.batch.n1.example".parse().expect("well formed");
        assert_eq!((id.cluster(), id.parts()), (Some("demo"), Some((5, "batch", "n1.example"))));
        assert_eq!(RecordId::local(1, 2, "h").expect("fine").parts(), None);
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        let long = "x".repeat(MAX_PART + 1);
        for part in ["", ".", "..", "../x", "a/b", ".hidden", "a b", "a\0b", "é", &long] {
            assert!(RecordId::step(None, 1, "0", part).is_err(), "{part:?}");
            assert!(RecordId::step(Some(part), 1, "0", "n1").is_err(), "{part:?}");
            assert!(RecordId::local(1, 1, part).is_err(), "{part:?}");
        }
        assert!(RecordId::step(None, 1, "0.1", "n1").is_err());
        for text in
            ["", "5", "5.0", "x.0.n1", "+5.0.n1", "a/b/5.0.n1", "local-1.h", "c/local-1-2.h", "../5.0.n1"]
        {
            assert!(text.parse::<RecordId>().is_err(), "{text:?}");
        }
    }
}
