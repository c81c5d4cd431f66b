//! Writing the files of a container to an image, once the last task of a step has ended.

use std::path::{Path, PathBuf};

use situla_image::expect_writable;
use situla_records::{EngineClass, SavedFile};
use situla_runtime::SignalInfo;
use situla_slurm::Allocation;

use super::{above, allocation, staying, step};
use crate::error::EngineError;
use crate::host::Host;
use crate::own_process::{self, Work, WorkFailure};

/// A save that is planned.
#[derive(Debug)]
pub(super) struct Save {
    /// Where to; nothing where another node does it.
    pub(super) target: Option<PathBuf>,
    /// How many tasks have to end before.
    pub(super) n_tasks: u32,
    /// The step that they are of.
    pub(super) step: String,
}

impl Save {
    /// Finds out where this node writes to, and whether it can.
    pub(super) fn plan(pattern: &str, host: &Host) -> Result<Self, EngineError> {
        let allocation = allocation(host)?;
        let target = writes(pattern, allocation)?
            .then(|| expand(pattern, &|letter| value(letter, allocation)))
            .transpose()?
            // Without the `.` of `./saved.sqsh`, which would stand in every message.
            .map(|path| host.cwd.join(path).components().collect::<PathBuf>());
        if let Some(path) = &target {
            expect_writable(path).map_err(|error| EngineError::BadOption {
                message: format!(
                    "the container cannot be saved to {} on {}: {}",
                    path.display(),
                    host.hostname,
                    error.source
                ),
                remedy: format!(
                    "name a file in a directory that you can write to; {} is none",
                    above(path).display()
                ),
            })?;
        }
        let n_tasks = match allocation.step {
            Some(step) if step.is_numeric() => allocation.tasks_on_node.ok_or_else(|| bad(
                "how many tasks of the step this node has is not known, so none of them is the last to be saved after"
                    .to_owned(),
                "leave --container-save out",
            ))?,
            _ => 1,
        };
        Ok(Save { target, n_tasks, step: step(host)? })
    }

    /// What comes of it where tasks have not come to their end, and none will: an error, where it is for this node to write.
    pub(super) fn missed(&self, n_missing: u32, root: &Path) -> Result<Option<SavedFile>, EngineError> {
        let Some(target) = &self.target else { return Ok(None) };
        let message = format!(
            "{n_missing} of the {} tasks of this step here were not started, or were killed, before they came to an end in it",
            self.n_tasks
        );
        Err(EngineError::Save {
            path: target.display().to_string(),
            message: staying(&message, root),
            class: EngineClass::SetupFailed,
            remedy: Some("see what is said of those tasks, then run the step again".to_owned()),
        })
    }

    /// Writes the files in `root`, where it is for this node to do so.
    pub(super) fn write(
        &self,
        root: &Path,
        heard: &mut dyn FnMut(&SignalInfo),
    ) -> Result<Option<SavedFile>, EngineError> {
        let Some(target) = &self.target else { return Ok(None) };
        let mut command = own_process::own_command();
        command
            .args(["container", "save", "--for-process", &std::process::id().to_string(), "--"])
            .args([root, target]);
        let work = Work { name: "saving", unsaid: EngineClass::SetupFailed };
        let saved = own_process::ask(&mut command, work, heard, |answer| {
            Some((answer.text("rootfs_digest")?, answer.text("bytes")?.parse::<u64>().ok()?))
        });
        let path = target.display().to_string();
        match saved {
            Ok((rootfs_digest, bytes)) => Ok(Some(SavedFile { path, rootfs_digest, bytes })),
            Err(WorkFailure { interrupted: Some(signal), .. }) => Err(EngineError::Interrupted { signal }),
            Err(WorkFailure { class, message, remedy, .. }) => {
                // No container is lost with who saves: other nodes' tasks go on.
                let class = if class == EngineClass::ServerLost { EngineClass::SetupFailed } else { class };
                Err(EngineError::Save { path, message, class, remedy })
            }
        }
    }
}

/// Whether this node writes a file. No two nodes write one.
fn writes(pattern: &str, allocation: &Allocation) -> Result<bool, EngineError> {
    if names_node(pattern) {
        return Ok(true);
    }
    let is_step = allocation.step.is_some_and(|step| step.is_numeric());
    if is_step && allocation.het.is_some() {
        // Each component counts its nodes from zero.
        return Err(bad(
            format!("--container-save={pattern} is one file for all components of a heterogeneous job"),
            "write %N into it, which becomes the name of the node",
        ));
    }
    let index = allocation.node_index.map(|index| index.0);
    if is_step && index.is_none() && allocation.n_nodes() != Some(1) {
        return Err(bad(
            format!(
                "--container-save={pattern} is one file, and which of the nodes is the first is not known"
            ),
            "write %N into it, which becomes the name of the node",
        ));
    }
    Ok(index.unwrap_or(0) == 0)
}

fn names_node(pattern: &str) -> bool {
    let is_of_node = |part: &Part| matches!(part, Part::Value('N' | 'n', _));
    parse(pattern).is_ok_and(|parts| parts.iter().any(is_of_node))
}

/// What a letter of a pattern stands for here.
fn value(letter: char, allocation: &Allocation) -> Option<String> {
    let job = allocation.job.0;
    let step = allocation.step.map_or_else(|| "shell".to_owned(), |step| step.to_string());
    match letter {
        'j' => Some(job.to_string()),
        'J' => Some(format!("{job}.{step}")),
        's' => Some(step),
        'N' => allocation.node.clone(),
        'n' => Some(allocation.node_index.map_or(0, |index| index.0).to_string()),
        'A' => Some(allocation.array.map_or(job, |array| array.job.0).to_string()),
        'a' => allocation.array.map(|array| array.task.to_string()),
        'u' => allocation.user.clone(),
        'x' => allocation.job_name.clone(),
        _ => None,
    }
}

/// Letters behind a `%` as in Slurm's names of files. `%t` is none of them: tasks of a node have one container.
const LETTERS: &str = "jJsNnAaux";

/// A part of a pattern.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// What a letter stands for, with as many digits at least.
    Value(char, usize),
}

/// Fails where `--container-save` names no file, or has a letter in it that stands for nothing.
///
/// # Errors
/// It does.
pub fn check_pattern(pattern: &str) -> Result<(), EngineError> {
    parse(pattern).map(drop)
}

fn parse(pattern: &str) -> Result<Vec<Part>, EngineError> {
    /// As in Slurm's own names of files.
    const MAX_WIDTH: usize = 10;
    let wrong = |what: &str| {
        bad(
            format!("--container-save={pattern} {what}"),
            "name a file, such as ./saved.sqsh or ./saved-%j-%N.sqsh",
        )
    };
    let names_directory = pattern.ends_with('/') || pattern.ends_with("/.");
    if names_directory || Path::new(pattern).file_name().is_none() {
        return Err(wrong("names no file"));
    }
    let mut parts = Vec::new();
    let mut left = pattern;
    while let Some((text, behind)) = left.split_once('%') {
        parts.push(Part::Text(text.to_owned()));
        let letter = behind.trim_start_matches(|c: char| c.is_ascii_digit());
        let width = &behind[..behind.len() - letter.len()];
        let width = if width.is_empty() { 0 } else { width.parse().unwrap_or(usize::MAX) };
        let mut letters = letter.chars();
        match letters.next() {
            Some('%') if width == 0 => parts.push(Part::Text("%".to_owned())),
            Some(letter) if LETTERS.contains(letter) && width <= MAX_WIDTH => {
                parts.push(Part::Value(letter, width));
            }
            Some('t') => return Err(wrong("has %t in it, and the tasks of a node have one container")),
            _ => return Err(wrong("has a % in it that stands for nothing; %% stands for itself")),
        }
        left = letters.as_str();
    }
    parts.push(Part::Text(left.to_owned()));
    Ok(parts)
}

/// Puts in what letters stand for, with zeros in front of numbers that are too short.
fn expand(pattern: &str, value: &dyn Fn(char) -> Option<String>) -> Result<String, EngineError> {
    let mut path = String::new();
    for part in parse(pattern)? {
        match part {
            Part::Text(text) => path.push_str(&text),
            Part::Value(letter, width) => {
                let value = value(letter).ok_or_else(|| {
                    bad(
                        format!("--container-save={pattern} has %{letter} in it, which has no value here"),
                        "leave it out",
                    )
                })?;
                // Names of jobs may have anything in them.
                let value = value.replace('/', "_");
                let width = if value.bytes().all(|byte| byte.is_ascii_digit()) { width } else { 0 };
                path.push_str(&format!("{value:0>width$}"));
            }
        }
    }
    Ok(path)
}

fn bad(message: String, remedy: &str) -> EngineError {
    EngineError::BadOption { message, remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Allocation {
        let lookup =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Allocation::from_env(&lookup).unwrap().unwrap()
    }

    const STEP: [(&str, &str); 9] = [
        ("SLURM_JOB_ID", "7"),
        ("SLURM_STEP_ID", "2"),
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("SLURM_STEP_NUM_NODES", "2"),
        ("SLURM_PROCID", "1"),
        ("SLURM_LOCALID", "0"),
        ("SLURM_NODEID", "1"),
        ("SLURMD_NODENAME", "n2"),
        ("SLURM_JOB_NAME", "a/b"),
    ];

    #[test]
    fn patterns_are_those_of_slurm() {
        let allocation = of(&STEP);
        for (pattern, want) in [
            ("a.sqsh", "a.sqsh"),
            ("/x/%j-%4s-%N.sqsh", "/x/7-0002-n2.sqsh"),
            ("%n%%%x", "1%a_b"),
            ("%J", "7.2"),
            ("%5N", "n2"),
        ] {
            let got = expand(pattern, &|letter| value(letter, &allocation)).unwrap();
            assert_eq!(got, want, "{pattern}");
        }
        for pattern in ["", ".", "a/", "a/.", "..", "%t", "%q", "a%", "%11j", "%4%"] {
            assert!(check_pattern(pattern).is_err(), "{pattern}");
        }
        assert!(expand("%a", &|letter| value(letter, &allocation)).is_err(), "no array");
    }

    #[test]
    fn no_two_nodes_write_one_file() {
        let second = of(&STEP);
        let first = of(&[&[("SLURM_NODEID", "0")], &STEP[..]].concat());
        let batch = of(&[("SLURM_JOB_ID", "7"), ("SLURM_STEP_ID", "4294967291")]);
        let component = of(&[&[("SLURM_HET_SIZE", "2")], &STEP[..]].concat());
        for (pattern, allocation, want) in [
            ("a", &first, Some(true)),
            ("a", &second, Some(false)),
            ("a-%j", &second, Some(false)),
            ("a-%N", &second, Some(true)),
            ("a-%02n", &second, Some(true)),
            ("a-%%N", &second, Some(false)),
            ("a", &batch, Some(true)),
            ("a", &component, None),
            ("a%N", &component, Some(true)),
        ] {
            assert_eq!(writes(pattern, allocation).ok(), want, "{pattern} {:?}", allocation.node_index);
        }
    }
}
