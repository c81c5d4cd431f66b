//! What a user asks for, whatever front end he uses.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use situla_bindings::{BindRequest, DefaultOptions, DeviceEdits, DeviceName};

use crate::slurm_client::SlurmClient;
use crate::way::RootfsWay;

/// The variables in which the Slurm plugin tells a task what to do: its program, and one for each setting of the
/// container. They concern the process that the plugin has started and nobody below it.
pub const TASK_VARIABLES: [&str; 16] = [
    "SITULA_TASK_PROGRAM",
    "SITULA_TASK_IMAGE",
    "SITULA_TASK_MOUNTS",
    "SITULA_TASK_WORKDIR",
    "SITULA_TASK_ENV",
    "SITULA_TASK_UNSHARE",
    "SITULA_TASK_MOUNT_HOME",
    "SITULA_TASK_REMAP_ROOT",
    "SITULA_TASK_ENTRYPOINT",
    "SITULA_TASK_ENTRYPOINT_LOG",
    "SITULA_TASK_WRITABLE",
    "SITULA_TASK_ENVIRONMENT",
    "SITULA_TASK_NAME",
    "SITULA_TASK_SAVE",
    "SITULA_TASK_SCOPE",
    "SITULA_TASK_PROTOCOL",
];

/// Whose conventions a run follows where they differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Personality {
    /// The `apptainer` command line.
    Apptainer,
    /// Our own command line: Apptainer's defaults, our exit codes.
    Native,
    /// A task that the Slurm plugin sent here: pyxis's defaults.
    Task,
}

/// Whether the image's entry point stands before a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryPoint {
    /// It does not.
    No,
    /// Where the image has one: a site's habit must not stop the images that have none.
    IfAny,
    /// It does, and an image that says nothing of one is refused.
    Yes,
}

/// What to execute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A command.
    Exec(Vec<OsString>),
    /// The image's own command, with arguments.
    Run(Vec<OsString>),
    /// A shell, of the user's choice or the best that the image has.
    Shell(Option<OsString>),
    /// What the image starts in an instance, with arguments; nothing where it has no such script.
    Start(Vec<OsString>),
}

impl Action {
    /// The words that the user gave.
    pub fn words(&self) -> &[OsString] {
        match self {
            Action::Exec(words) | Action::Run(words) | Action::Start(words) => words,
            Action::Shell(shell) => shell.as_slice(),
        }
    }

    /// The word for it in `APPTAINER_COMMAND`.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Action::Exec(_) => "exec",
            Action::Run(_) => "run",
            Action::Shell(_) => "shell",
            Action::Start(_) => "start",
        }
    }
}

/// A directory of the host to be laid over the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayRequest {
    /// Absolute path on the host.
    pub path: PathBuf,
    /// Whether it is only shown, or takes what the payload writes.
    pub read_only: bool,
}

/// What a container has of its own beside its files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    /// Processes.
    pub pid: bool,
    /// System V IPC and POSIX message queues.
    pub ipc: bool,
    /// Host name.
    pub uts: bool,
    /// That host name, where it is another than the host's.
    pub hostname: Option<String>,
    /// Network devices: none but loopback.
    pub network: bool,
    /// The view of the control groups.
    pub cgroup: bool,
}

/// What a run has to do with an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InstanceUse {
    /// Its name.
    pub(crate) name: String,
    /// Under which it is found.
    pub(crate) key: String,
    /// Whether it is entered, and not started.
    pub(crate) enters: bool,
}

/// What is asked of a container with a name, as pyxis has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContainerMode {
    /// It is used where it is there, else made.
    #[default]
    Auto,
    /// It is made, and must not be there.
    Create,
    /// Somebody must be running in it.
    Exec,
}

/// A container whose files stay when the run has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRequest {
    /// Its name; none where it is kept for this step alone.
    pub name: Option<String>,
    /// Whether it must be there.
    pub mode: ContainerMode,
    /// Whether it stays when the job has ended.
    pub global: bool,
    /// Whether the payload may write to it.
    pub writable: bool,
    /// Where its files are written to when the tasks have ended, as the user names it.
    pub save: Option<String>,
}

/// A run, as asked for.
#[derive(Clone, Debug)]
pub struct RunRequest {
    /// Whose conventions.
    pub personality: Personality,
    /// The image, as the user named it.
    pub image: String,
    /// What to execute.
    pub action: Action,
    /// Whether the image's entry point stands before a command.
    pub entrypoint: EntryPoint,
    /// Bind mounts that the user asked for.
    pub binds: Vec<BindRequest>,
    /// Which of the default binds to make.
    pub defaults: DefaultOptions,
    /// Devices by their names.
    pub devices: Vec<DeviceName>,
    /// What they ask for, once that is known.
    pub(crate) device_edits: DeviceEdits,
    /// Whether Slurm's tools are inside.
    pub slurm: bool,
    /// What they need, once that is known.
    pub(crate) slurm_client: SlurmClient,
    /// Directories to lay over the image, the topmost last; at most one of them is written to.
    pub overlays: Vec<OverlayRequest>,
    /// Whether the payload may write anywhere, into memory.
    pub writable_tmpfs: bool,
    /// The container whose files stay; one of its own, which goes with the run, where there is none.
    pub container: Option<ContainerRequest>,
    /// The bytes of memory that control groups leave this process, where they limit it and it matters.
    pub memory: Option<u64>,
    /// Namespaces beside those that every container has.
    pub isolation: Isolation,
    /// A file with a filter of system calls.
    pub seccomp: Option<PathBuf>,
    /// Whether the user is root inside.
    pub root: bool,
    /// Whether root has the user's subordinate ids inside, too.
    pub subids: bool,
    /// Working directory inside, where the user named one.
    pub workdir: Option<String>,
    /// Variables for the container, in order; later ones win.
    pub env: Vec<(String, String)>,
    /// Variables of which the host's value, where it has one, wins over the image's.
    pub host_env: Vec<String>,
    /// What others read of this run: by name.
    pub annotations: BTreeMap<String, String>,
    /// Whether the host's variables stay outside.
    pub clean_env: bool,
    /// Whether values of `env` are taken letter by letter (`--no-eval`).
    pub no_eval: bool,
    /// Whether the tasks of a step share one container where they can.
    pub share: bool,
    /// Whether a run outside Slurm is recorded as well.
    pub record: bool,
    /// Whether a fetch shows on standard error how it is going.
    pub progress: bool,
    /// By which way an image file becomes the root; the site's where none is asked for.
    pub rootfs: Option<RootfsWay>,
    /// Descriptors that the payload keeps wherever it runs.
    pub keep_fds: Vec<i32>,
    /// Options that a policy may refuse, by name.
    pub options: Vec<String>,
    /// The instance that is started or entered.
    pub(crate) instance: Option<InstanceUse>,
}

impl RunRequest {
    /// A request with nothing but an image and an action.
    pub fn new(personality: Personality, image: impl Into<String>, action: Action) -> Self {
        RunRequest {
            personality,
            image: image.into(),
            action,
            entrypoint: EntryPoint::No,
            binds: Vec::new(),
            defaults: DefaultOptions::default(),
            devices: Vec::new(),
            device_edits: DeviceEdits::default(),
            slurm: false,
            slurm_client: SlurmClient::default(),
            overlays: Vec::new(),
            writable_tmpfs: false,
            container: None,
            memory: None,
            isolation: Isolation::default(),
            seccomp: None,
            root: false,
            subids: false,
            workdir: None,
            env: Vec::new(),
            host_env: Vec::new(),
            annotations: BTreeMap::new(),
            clean_env: false,
            no_eval: false,
            share: true,
            record: false,
            progress: false,
            rootfs: None,
            keep_fds: Vec::new(),
            options: Vec::new(),
            instance: None,
        }
    }
}
