//! Containers whose files stay: with a name, for the later steps of a job, or until their step has ended and they are saved.
//!
//! Their files are a directory of their own on the node, extracted from the image when the container is made. Each step that
//! runs in one has namespaces of its own, so it can have other mounts, and does not end with the step that came first;
//! what it writes the others see at once.

mod over;
mod save;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, OFlags, unlinkat};
use rustix::process::{getppid, getuid};
use situla_image::{
    ContainerLease, ContainerPlace, ContainerRecord, Containers, Identities, MadeContainer, NewContainer,
    TaskEnd, TreeCache, TreeError, hash_image,
};
use situla_oci::Digest;
use situla_plan::{Plan, RootfsIdentity, RootfsSource, Rung};
use situla_records::{ContainerFacts, SavedFile};
use situla_runtime::{Links, SignalInfo, inscribe, open_inside};
use situla_slurm::Allocation;

use crate::error::EngineError;
use crate::host::Host;
use crate::request::{ContainerMode, ContainerRequest, RunRequest};
use crate::resolve::{self, Opened, Resolved};
use crate::site::Site;
use crate::way::{self, Rooted};

pub use over::{Swept, sweep};
use save::Save;
pub use save::check_pattern;

/// The scope of containers that stay when their job has ended.
const GLOBAL: &str = "global";

/// How the scopes of jobs begin.
const OF_JOB: &str = "job-";

/// The containers of the user on this machine.
pub fn containers(site: &Site, host: &Host) -> Containers {
    Containers::new(way::tree_directory(site, host))
}

/// A container that a run is in.
#[derive(Debug)]
pub(crate) struct KeptContainer {
    containers: Containers,
    place: ContainerPlace,
    lease: ContainerLease,
    /// What records say of it.
    pub(crate) facts: ContainerFacts,
    save: Option<Save>,
}

/// What is known where a container is asked for.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) container: &'a ContainerRequest,
    pub(crate) request: &'a RunRequest,
    pub(crate) host: &'a Host,
    pub(crate) site: &'a Site,
    /// Who is told that this process is asked to end while the files are made.
    pub(crate) heard: &'a dyn Fn(&SignalInfo),
}

/// The image of a container that is there, for who names none.
pub(crate) fn image_of(asked: Asked<'_>) -> Result<String, EngineError> {
    let containers = containers(asked.site, asked.host);
    let place = place(asked.container, asked.host, &containers)?;
    let record = containers.look(&place).map_err(failed)?;
    record.map(|record| record.image).ok_or_else(|| absent(&place))
}

/// Takes the container, which is made of the open `image` where it is not there, and makes it the root.
pub(crate) fn to_root(
    asked: Asked<'_>,
    image: Option<Opened>,
    identities: Option<&Identities>,
) -> Result<(Rooted, KeptContainer), EngineError> {
    let Asked { container, request, host, site, heard } = asked;
    let containers = containers(site, host);
    let place = place(container, host, &containers)?;
    // Before there is anything to be saved.
    let save = container.save.as_deref().map(|pattern| Save::plan(pattern, host)).transpose()?;
    let image = image.map(|image| readable(image, identities)).transpose()?;
    if host
        .allocation
        .as_ref()
        .and_then(|allocation| allocation.task)
        .is_none_or(|task| task.local_rank.0 == 0)
    {
        // What cannot be removed now stays for the next one.
        let _ = over::sweep_others(&containers, host);
    }
    let step = step(host)?;
    let must_run = container.mode == ContainerMode::Exec;
    let (lease, record) = match containers.acquire(&place, must_run).map_err(failed)? {
        MadeContainer::Found(lease, record, is_used) => {
            expect_wanted(
                container,
                &place,
                (&record, is_used),
                (image.as_ref().map(|(_, digest)| digest), &step),
            )?;
            (lease, record)
        }
        MadeContainer::New(new) => {
            let (image, digest) = image.as_ref().ok_or_else(|| absent(&place))?;
            if must_run {
                return Err(not_running(&place));
            }
            let called = called(request, host, image);
            let manifest = image.identity.manifest_digest.clone();
            let record = ContainerRecord::new(called, digest.clone(), manifest, step.clone());
            (make(new, image, &record, request.progress, heard)?, record)
        }
    };
    let root = lease.root();
    let image = match image {
        Some((image, _)) => resolve::open_tree(&root, image)?,
        None => match resolve::open_as(&root, &root, &record.image)? {
            Opened::Readable(image) => *image,
            Opened::Erofs(_) => return Err(absent(&place)),
        },
    };
    let image = identified(image, &lease, &record)?;
    let facts = ContainerFacts {
        name: container.name.clone(),
        scope: place.scope.clone(),
        made_by: record.made_by.clone(),
        writable: container.writable,
    };
    let whose = match &container.name {
        Some(name) => format!("the files of the container {name}, made of {}", record.image),
        None => format!("files of this step, made of {}", record.image),
    };
    let rooted = Rooted { image, lease: None, rung: Some((Rung::Extracted, whose)) };
    Ok((rooted, KeptContainer { containers, place, lease, facts, save }))
}

/// Gives an image opened as the container's files what is known of the image that they were made of.
fn identified(
    image: Resolved,
    lease: &ContainerLease,
    record: &ContainerRecord,
) -> Result<Resolved, EngineError> {
    let mut identity = image.identity;
    identity.rootfs = RootfsIdentity::Verified(record.rootfs_digest.to_string());
    identity.manifest_digest.clone_from(&record.manifest_digest);
    // The files change, and all tasks of a step are to find the same.
    let state = resolve::state_of(&lease.record_path())?;
    Ok(Resolved { identity, state, ..image })
}

/// Fails where a container that is there is not the one that is asked for.
fn expect_wanted(
    container: &ContainerRequest,
    place: &ContainerPlace,
    (record, is_used): (&ContainerRecord, bool),
    (image, step): (Option<&Digest>, &str),
) -> Result<(), EngineError> {
    let name = &place.name;
    if let Some(digest) = image.filter(|digest| **digest != record.rootfs_digest) {
        return Err(EngineError::BadOption {
            message: format!(
                "the container {name} on {} was made of another image, {} ({}); this one is {digest}",
                place.node, record.image, record.rootfs_digest
            ),
            remedy: format!(
                "leave the image out, or take another name, or remove it there with `situla container rm {name}`"
            ),
        });
    }
    match container.mode {
        // The other tasks of the step that has made it.
        ContainerMode::Create if record.made_by != step => Err(EngineError::BadOption {
            message: format!("the container {name} is there already on {}", place.node),
            remedy: format!("leave :create out, or remove it there with `situla container rm {name}`"),
        }),
        ContainerMode::Exec if !is_used => Err(not_running(place)),
        _ => Ok(()),
    }
}

fn absent(place: &ContainerPlace) -> EngineError {
    EngineError::BadOption {
        message: format!("there is no container {} on {}", place.name, place.node),
        remedy: "name its image as well (--container-image), so that it is made; it is kept on each node for itself"
            .to_owned(),
    }
}

fn not_running(place: &ContainerPlace) -> EngineError {
    EngineError::BadOption {
        message: format!("nothing runs in the container {} on {}", place.name, place.node),
        remedy: "leave :exec out".to_owned(),
    }
}

fn failed(source: TreeError) -> EngineError {
    EngineError::Containers { source: Box::new(source) }
}

/// Where the container is.
fn place(
    container: &ContainerRequest,
    host: &Host,
    containers: &Containers,
) -> Result<ContainerPlace, EngineError> {
    let allocation = allocation(host)?;
    let scope = match container.global && container.name.is_some() {
        true => GLOBAL.to_owned(),
        false => scope_here(host, allocation, containers),
    };
    let node = allocation.node.as_deref().unwrap_or(&host.hostname).replace('/', "_");
    // No user's name begins with a dot.
    let name = container.name.clone().map_or_else(|| step(host).map(|step| format!(".step-{step}")), Ok)?;
    Ok(ContainerPlace { scope, node, name })
}

/// The scope of a job. One that was requeued begins anew, also on a node that it had before.
fn scope_of(allocation: &Allocation) -> String {
    let cluster = plain(allocation.cluster.as_deref().unwrap_or("cluster"));
    format!("{OF_JOB}{cluster}-{}{}", allocation.job, of_restart(allocation))
}

/// The scope of the job that this process is in. Slurm tells the batch script alone how often it was requeued, and what
/// inherits from it: a step that is started from elsewhere (`srun --jobid`) takes the last one that there is.
fn scope_here(host: &Host, allocation: &Allocation, containers: &Containers) -> String {
    let own = scope_of(allocation);
    if host.variable("SLURM_RESTART_COUNT").is_some() {
        return own;
    }
    last_of(own, containers.scopes().unwrap_or_default())
}

/// Of the scopes that are there, the last one of the job whose first scope is `first`; that one where there is none.
fn last_of(first: String, there: Vec<String>) -> String {
    let restarts = |scope: &String| match scope.strip_prefix(&first)? {
        "" => Some(0),
        rest => rest.strip_prefix('.')?.parse::<u32>().ok(),
    };
    let own = there.into_iter().filter(|scope| restarts(scope).is_some());
    own.max_by_key(restarts).unwrap_or(first)
}

/// What tells a job that was requeued from what it was before.
fn of_restart(allocation: &Allocation) -> String {
    match allocation.restart_count {
        0 => String::new(),
        restarts => format!(".{restarts}"),
    }
}

fn plain(cluster: &str) -> String {
    cluster.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect()
}

/// The step, as no other is called.
fn step(host: &Host) -> Result<String, EngineError> {
    let allocation = allocation(host)?;
    let step = allocation.step.map_or_else(|| "shell".to_owned(), |step| step.to_string());
    Ok(format!("{}.{step}{}", allocation.job, of_restart(allocation)))
}

fn allocation(host: &Host) -> Result<&Allocation, EngineError> {
    host.allocation.as_ref().ok_or_else(|| EngineError::BadOption {
        message: "a container can be kept in a job of Slurm only".to_owned(),
        remedy: "start it with srun, or use `situla instance`".to_owned(),
    })
}

/// An image that a container can be made of, with its digest.
fn readable(opened: Opened, identities: Option<&Identities>) -> Result<(Resolved, Digest), EngineError> {
    let cannot = |path: &Path, what: &str| EngineError::BadOption {
        message: format!("a container cannot be kept that is made of {}: {what}", path.display()),
        remedy: "use an image file or a reference; `situla convert DIRECTORY image.sqsh` makes a file"
            .to_owned(),
    };
    let image = match opened {
        Opened::Readable(image) => *image,
        Opened::Erofs(image) => return Err(cannot(&image.path, "it is an EROFS image")),
    };
    let Some((file, part)) = open_again(&image)? else {
        return Err(cannot(&image.path, "it is a directory"));
    };
    let known = match &image.identity.rootfs {
        // A store's is that of the whole file.
        RootfsIdentity::Verified(digest) if part.0 == 0 => digest.parse().ok(),
        _ => None,
    };
    let digest =
        known.map_or_else(|| hash_image(&file, part, &image.path, identities).map_err(failed), Ok)?;
    Ok((image, digest))
}

/// The file of an image, and the offset and length of the SquashFS in it.
type ImagePart = (File, (u64, u64));

/// Opens the file of an open image once more; `None` for a directory.
fn open_again(image: &Resolved) -> Result<Option<ImagePart>, EngineError> {
    let (RootfsSource::Squashfs { offset, length, .. }, Some(descriptor)) = (&image.source, image.descriptor)
    else {
        return Ok(None);
    };
    let file = situla_runtime::duplicate(descriptor).map_err(|errno| EngineError::OpenImage {
        path: image.path.display().to_string(),
        source: errno.into(),
    })?;
    Ok(Some((File::from(file), (*offset, *length))))
}

/// How an image is called by who is in another directory.
fn called(request: &RunRequest, host: &Host, image: &Resolved) -> String {
    match resolve::name(&request.image, &host.cwd, request.personality, &Site::default()) {
        Ok(resolve::Named::Path(_)) => image.path.display().to_string(),
        _ => resolve::name_anywhere(&request.image, &host.cwd),
    }
}

/// Extracts the image into the container.
fn make(
    new: NewContainer,
    image: &Resolved,
    record: &ContainerRecord,
    progress: bool,
    heard: &dyn Fn(&SignalInfo),
) -> Result<ContainerLease, EngineError> {
    let Some((file, part)) = open_again(image)? else {
        return Err(EngineError::UnknownFormat { path: image.path.display().to_string() });
    };
    let making = new.making();
    let digest =
        way::fill(&file, part, (&making, &image.path, Some(&record.rootfs_digest)), progress, heard)?;
    let made = TreeCache::new(making.clone()).lease(&digest).map_err(failed)?;
    let files =
        made.map(|lease| lease.path().to_owned()).ok_or(TreeError::Lock { path: making }).map_err(failed)?;
    forget_manifest(&files);
    new.finish(&files, record).map_err(failed)
}

/// Takes the image's manifest out of files that will not stay what it describes: a file that is made of them must not claim to
/// be that image. How it wants to be run stays.
fn forget_manifest(files: &Path) {
    let Ok(root) = File::open(files) else { return };
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    if let Ok(own) = open_inside(root.as_fd(), b"/.situla", flags, Links::Refuse) {
        let _ = unlinkat(own, "manifest.json", AtFlags::empty());
    }
}

/// What happens while a container is saved.
#[derive(Debug)]
pub(crate) enum Meanwhile<'a> {
    /// The file at this path is about to be written.
    Writing(&'a Path),
    /// This process is asked to end.
    Asked(&'a SignalInfo),
}

impl KeptContainer {
    /// Writes what a Plan shows above the image into the container's files, and takes it out of the Plan.
    pub(crate) fn inscribe(&self, plan: &mut Plan) -> Result<(), EngineError> {
        let root = self.lease.root();
        let open = File::open(&root)
            .map_err(|source| EngineError::OpenImage { path: root.display().to_string(), source })?;
        inscribe(open.as_fd(), &plan.rootfs.patches).map_err(EngineError::Runtime)?;
        plan.rootfs.patches.clear();
        Ok(())
    }

    /// Does what is to be done when a payload has ended: the last one of the step on this node saves the container, and
    /// one that was for this step alone goes. `tell` hears of what happens meanwhile.
    pub(crate) fn ended(self, tell: &mut dyn FnMut(Meanwhile<'_>)) -> Result<Option<SavedFile>, EngineError> {
        let Some(save) = &self.save else { return Ok(None) };
        let root = self.lease.root();
        let counted = (std::process::id(), save.n_tasks);
        match self.lease.count_end(&save.step, counted, siblings_live).map_err(failed)? {
            TaskEnd::Last => {}
            TaskEnd::NotLast => return Ok(None),
            TaskEnd::LastButFor(n_missing) => return save.missed(n_missing, &root),
        }
        if let Some(target) = &save.target {
            tell(Meanwhile::Writing(target));
        }
        let saved =
            save.write(&root, &mut |signal| tell(Meanwhile::Asked(signal))).map_err(|error| match error {
                EngineError::Save { path, message, class, remedy } => {
                    EngineError::Save { path, message: staying(&message, &root), class, remedy }
                }
                other => other,
            });
        if saved.is_ok() {
            self.abandoned();
        }
        saved
    }

    /// One that is for this step alone goes, unless another task uses it.
    pub(crate) fn abandoned(self) {
        if self.facts.name.is_none() {
            let KeptContainer { containers, place, lease, .. } = self;
            drop(lease);
            // What cannot be removed goes when the job is over.
            let _ = containers.remove(&place);
        }
    }
}

/// What is said of a container that could not be saved.
fn staying(message: &str, root: &Path) -> String {
    format!("{message}; the files stay in {} until the job is over", root.display())
}

/// Whether slurmstepd has tasks besides these processes: they are its children, as this one is, and have its user's ids.
/// Where they cannot be seen there are none.
fn siblings_live(ended: &BTreeSet<u32>) -> bool {
    let Some(parent) = getppid().map(|parent| parent.as_raw_nonzero().to_string()) else { return true };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let own = getuid().as_raw();
    pids.any(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name before it may have anything in it: proc_pid_stat(5).
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let lives = fields.next().is_some_and(|state| !matches!(state, "Z" | "X"));
        lives && fields.next() == Some(&parent) && !ended.contains(&pid) && uid_of(pid) == Some(own)
    })
}

/// Whose process it is. Who owns its directory in `/proc` says so only once it has executed its program.
fn uid_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A name and what is asked of it, in pyxis's spelling: `NAME[:FLAG]`.
///
/// # Errors
/// It is no name, or there is no such flag.
pub fn parse_container_name(text: &str) -> Result<(String, ContainerMode), EngineError> {
    let (name, flag) = text.split_once(':').unwrap_or((text, "auto"));
    let mode = match flag {
        // Namespaces are never shared with another step.
        "auto" | "no_exec" => ContainerMode::Auto,
        "create" => ContainerMode::Create,
        "exec" => ContainerMode::Exec,
        _ => {
            return Err(EngineError::BadOption {
                message: format!(
                    "--container-name={text} has {flag:?} in it, which says nothing of a container"
                ),
                remedy: "choose from create, exec, auto and no_exec: --container-name=NAME:create".to_owned(),
            });
        }
    };
    match crate::InstanceName::parse(name) {
        Some(name) => Ok((name.as_str().to_owned(), mode)),
        None => Err(EngineError::BadOption {
            message: format!("--container-name={text}: {name:?} cannot be the name of a container"),
            remedy: "use letters, digits, dots, hyphens and underscores; no dot comes first".to_owned(),
        }),
    }
}

/// The directory that a path lies in.
fn above(path: &Path) -> PathBuf {
    path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_flags() {
        for (text, name, mode) in [
            ("a", "a", ContainerMode::Auto),
            ("a:auto", "a", ContainerMode::Auto),
            ("a.b-c_1:no_exec", "a.b-c_1", ContainerMode::Auto),
            ("a:create", "a", ContainerMode::Create),
            ("a:exec", "a", ContainerMode::Exec),
        ] {
            assert_eq!(parse_container_name(text).unwrap(), (name.to_owned(), mode), "{text}");
        }
        for text in ["", ":create", "a:", "a:new", "a:exec:create", "a/b", ".a", "..", "a b"] {
            let error = parse_container_name(text).unwrap_err();
            assert!(error.remedy().is_some_and(|remedy| !remedy.is_empty()), "{text}");
        }
    }

    #[test]
    fn who_does_not_know_how_often_a_job_was_requeued_takes_its_last_scope() {
        for (there, want) in [
            (&[][..], "job-c-7"),
            (&["job-c-7"], "job-c-7"),
            (&["job-c-7", "job-c-7.2", "job-c-7.10"], "job-c-7.10"),
            (&["job-c-7.1"], "job-c-7.1"),
            (&["job-c-70", "job-c-71.3", "job-c-7.x", "job-c-7.", "global"], "job-c-7"),
        ] {
            let there: Vec<String> = there.iter().map(|scope| (*scope).to_owned()).collect();
            assert_eq!(last_of("job-c-7".to_owned(), there.clone()), want, "{there:?}");
        }
    }

    #[test]
    fn scopes_are_names_of_files() {
        for (cluster, restarts, scope) in [
            (Some("demo"), "0", "job-demo-7"),
            (Some("../a b"), "0", "job-ab-7"),
            (None, "0", "job-cluster-7"),
            (Some("demo"), "2", "job-demo-7.2"),
        ] {
            let lookup = |name: &str| {
                let value = match name {
                    "SLURM_JOB_ID" => "7",
                    "SLURM_RESTART_COUNT" => restarts,
                    "SLURM_CLUSTER_NAME" => return cluster.map(str::to_owned),
                    _ => return None,
                };
                Some(value.to_owned())
            };
            assert_eq!(scope_of(&Allocation::from_env(&lookup).unwrap().unwrap()), scope);
        }
    }
}
