//! The file of one instance.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use situla_plan::Seccomp;

use super::process::{ProcessRef, realm};

/// Version of the file. Other versions are left alone.
pub(crate) const SCHEMA: u32 = 1;

/// What is known of one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceState {
    pub(crate) schema: u32,
    /// Its name.
    pub name: String,
    /// Under which its keeper is found. It never repeats.
    pub(crate) key: String,
    /// Boot and PID namespace in which the numbers of processes are meant.
    pub(crate) boot: String,
    pub(crate) pid_namespace: String,
    /// The process that waits for it.
    pub(crate) holder: ProcessRef,
    /// Its first process.
    pub(crate) init: ProcessRef,
    /// The image as the user named it.
    pub image: String,
    /// The file or directory that this meant.
    pub image_path: PathBuf,
    /// The tree that was extracted from it, where that is the root.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) tree: Option<PathBuf>,
    /// When it was started, in seconds since 1970.
    pub started: u64,
    /// Job and step of Slurm that it lives in.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub step: Option<String>,
    /// Where its command's standard output goes.
    pub log_out: PathBuf,
    /// Where its command's standard error goes.
    pub log_err: PathBuf,
    /// The signal by which its image wants to be ended, if it names one that can be sent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stop_signal: Option<String>,
    /// Whether the user is root inside.
    #[serde(default)]
    pub(crate) root: bool,
    /// Whether it has files of its own.
    #[serde(default)]
    pub(crate) contain: bool,
    /// Home directory on the host and inside, where the user chose it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) home: Option<(PathBuf, PathBuf)>,
    /// Whether the user has no home inside.
    #[serde(default)]
    pub(crate) no_home: bool,
    /// The filter of system calls that holds for everybody inside.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) seccomp: Option<Seccomp>,
}

impl InstanceState {
    /// The number of its first process.
    pub fn pid(&self) -> i32 {
        self.init.pid
    }

    /// The number of the process that waits for it.
    pub fn holder_pid(&self) -> i32 {
        self.holder.pid
    }

    /// Whether the numbers in it mean processes that this one can see; `None` where nothing can be said.
    pub(crate) fn is_running(&self) -> Option<bool> {
        let (boot, namespace) = realm();
        if boot.is_empty() || boot != self.boot {
            // No process outlives its boot. One without a boot id is from nowhere.
            return Some(false);
        }
        (namespace == self.pid_namespace).then(|| self.holder.is_running())
    }
}
