//! The use case of running: request to Plan, Plan to payload, payload to record.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use situla_bindings::{BindRequest, BindSource, Origin};
use situla_image::{Identities, TreeLease, UseMark};
use situla_oci::{Reference, ReferenceError};
use situla_plan::{NamespaceKind, Plan};
use situla_policy::{
    BindUse, Decision, Image as PolicyImage, Request as PolicyRequest, RequestedOption, Subject, Verdict,
    decide,
};
use situla_records::EngineClass;
use situla_runtime::{Exit, Observer, OpenImage, OpenImages, SignalInfo};

use crate::assemble::{Parts, assemble};
use crate::container::{self, Asked, KeptContainer, Meanwhile};
use crate::devices;
use crate::error::EngineError;
use crate::events::{Heard, Listener};
use crate::hearing::Hearing;
use crate::host::Host;
use crate::image_view::ImageView;
use crate::image_watch::ImageWatch;
use crate::journal::{Phases, Recorder};
use crate::mounted_images;
use crate::overlay::plan_layers;
use crate::pins::Pins;
use crate::places::{self, Judged};
use crate::planned_binds::{WORKING_DIRECTORY, plan_binds};
use crate::request::{Personality, RunRequest};
use crate::resolve::{self, Found, Opening, Resolved};
use crate::site::Site;
use crate::slurm_client;
use crate::status::FailureKind;
use crate::store_place::store_places;
use crate::way::{self, Acts, Rooted};

/// A run that is ready: the Plan is frozen, the image open, nothing done yet.
#[derive(Debug)]
pub struct Prepared {
    plan: Plan,
    images: OpenImages,
    /// The file or directory that the image's name meant, whatever the root is.
    image_path: PathBuf,
    /// The signal by which the image wants to be ended.
    stop_signal: Option<String>,
    /// Keeps the extracted tree that is the root, as long as this process lives.
    lease: Option<TreeLease>,
    /// Keeps the image in its store, as long as this process lives.
    use_mark: Option<UseMark>,
    /// The images that are served.
    watches: Vec<ImageWatch>,
    /// The container whose files stay.
    container: Option<KeptContainer>,
    recorder: Recorder,
    rank: u32,
    /// Warnings of the policy, for the user.
    warnings: Vec<String>,
}

/// Resolves, admits and plans, and writes nothing.
///
/// # Errors
/// Everything that can be known before the container is made.
pub fn plan(request: &RunRequest, host: &Host, site: &Site) -> Result<Plan, EngineError> {
    let hearing = Hearing::nobody();
    decided(request, host, site, &mut Phases::begin(), (Acts::No, &hearing)).map(|planned| planned.plan)
}

/// Resolves, admits and plans, for a run. A failure is recorded before it is returned.
///
/// # Errors
/// Everything that can be known before the container is made.
pub fn prepare(request: &RunRequest, host: &Host, site: &Site) -> Result<Prepared, EngineError> {
    let mut phases = Phases::begin();
    let hearing = Hearing::of(host, request);
    match decided(request, host, site, &mut phases, (Acts::Yes, &hearing)) {
        Ok(planned) => {
            let Planned {
                plan,
                images,
                image_path,
                stop_signal,
                lease,
                use_mark,
                watches,
                container,
                warnings,
            } = planned;
            let mut recorder = Recorder::open(host, request.record, request.personality, phases);
            recorder.describe(host, &plan);
            if let Some(container) = &container {
                recorder.describe_container(&container.facts);
            }
            let task = host.allocation.as_ref().and_then(|allocation| allocation.task);
            let rank = task.map_or(0, |task| task.local_rank.0);
            Ok(Prepared {
                plan,
                images,
                image_path,
                stop_signal,
                lease,
                use_mark,
                watches,
                container,
                recorder,
                rank,
                warnings,
            })
        }
        Err(error) => {
            let mut recorder = hearing.into_recorder().unwrap_or_else(|| {
                let mut recorder = Recorder::open(host, request.record, request.personality, phases);
                recorder.describe_request(host, &request.image, texts(request.action.words()));
                recorder
            });
            match &error {
                EngineError::Interrupted { signal } => recorder.interrupted(signal),
                other => recorder.error(other),
            }
            Err(error)
        }
    }
}

/// Finds out what can be known of a request where its image and its mounts need not be: whether it makes sense, and
/// whether what is there of them is what it must be.
///
/// # Errors
/// It does not.
pub fn check(request: &RunRequest, host: &Host, site: &Site) -> Result<(), EngineError> {
    if request.image.is_empty() && request.container.is_some() {
        // What it was made of is for the nodes to say.
        return Ok(());
    }
    match resolve::name(&request.image, &host.cwd, request.personality, site) {
        // A directory that only the nodes have, or a short name that they know.
        Err(EngineError::Reference { source: ReferenceError::NoRegistry { .. }, .. }) => {}
        Ok(resolve::Named::Path(path)) => resolve::expect_image(&path, &request.image)?,
        other => drop(other?),
    }
    mounted_images::check(request, host)
}

/// Why a run could not even be asked for: an option that nobody knows, or a value that makes no sense.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The class under which records count it.
    pub class: EngineClass,
    /// One line for people.
    pub message: String,
    /// What kind of failure.
    pub kind: FailureKind,
    /// By whose conventions the process ends.
    pub personality: Personality,
}

/// Records a refusal in a step of Slurm.
pub fn record_refusal(host: &Host, image: &str, words: &[OsString], refusal: Refusal) {
    let mut recorder = Recorder::open(host, false, refusal.personality, Phases::begin());
    recorder.describe_request(host, image, texts(words));
    recorder.failure(refusal.class, refusal.message, refusal.kind);
}

/// Words as a record has them: bytes that are not UTF-8 are replaced.
pub(crate) fn texts(words: &[OsString]) -> Vec<String> {
    words.iter().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// Admits and plans a run inside a container that stands already: the image was opened at `opened`, and the
/// user calls it `request.image`, which is `path`. Only what belongs to the process is planned.
pub(crate) fn plan_inside(
    request: &RunRequest,
    host: &Host,
    site: &Site,
    (opened, path): (&Path, &Path),
    phases: &mut Phases,
) -> Result<(Plan, Vec<String>), EngineError> {
    let named = match resolve::name(&request.image, &host.cwd, request.personality, site)? {
        // It was named in another directory.
        resolve::Named::Path(_) => resolve::Named::Path(path.to_owned()),
        named => named,
    };
    let (_, home, pmi_fds) = plan_binds(request, host);
    let layers = plan_layers(request, host)?;
    let image = resolve::for_policy(&named);
    let (verdict, judged) = admit(request, &[], &layers.directories, host, site, image)?;
    phases.end("admit");
    let opened = resolve::open_as(opened, path, &request.image)?;
    phases.end("resolve");
    let image = way::look_into(opened, phases)?;
    let warnings = warnings(&verdict);
    let binds = Vec::new();
    let images = &[];
    let mut plan = assemble(Parts {
        request,
        host,
        image: &image,
        verdict,
        judged,
        binds,
        images,
        layers,
        home,
        pmi_fds,
    })?;
    // These are the container's, whatever they are.
    plan.rootfs.patches.clear();
    plan.spec.mounts.clear();
    // What is bound there may have the command as well.
    plan.command_paths.clear();
    phases.end("plan");
    Ok((plan, warnings))
}

/// What a run is made of.
pub(crate) struct PreparedParts {
    pub(crate) plan: Plan,
    pub(crate) images: OpenImages,
    pub(crate) lease: Option<TreeLease>,
    pub(crate) recorder: Recorder,
    pub(crate) rank: u32,
}

/// A frozen Plan, and what it needs open.
struct Planned {
    plan: Plan,
    images: OpenImages,
    image_path: PathBuf,
    stop_signal: Option<String>,
    lease: Option<TreeLease>,
    use_mark: Option<UseMark>,
    watches: Vec<ImageWatch>,
    container: Option<KeptContainer>,
    warnings: Vec<String>,
}

fn decided(
    request: &RunRequest,
    host: &Host,
    site: &Site,
    phases: &mut Phases,
    (acts, hearing): (Acts, &Hearing<'_>),
) -> Result<Planned, EngineError> {
    let names_image = !request.image.is_empty();
    let known;
    let request = match &request.container {
        Some(container) if !names_image => {
            let image = container::image_of(Asked { container, request, host, site, heard: &|_| () })?;
            known = RunRequest { image, ..request.clone() };
            &known
        }
        _ => request,
    };
    let named = resolve::name(&request.image, &host.cwd, request.personality, site)?;
    let with_devices = devices::apply(request, host, site)?;
    let request = with_devices.as_ref().unwrap_or(request);
    let with_slurm = slurm_client::plan(request, host)?;
    let with_slurm = with_slurm.map(|client| RunRequest { slurm_client: client, ..request.clone() });
    let request = with_slurm.as_ref().unwrap_or(request);
    let (mut binds, home, pmi_fds) = plan_binds(request, host);
    expect_unmounted(request, host)?;
    let layers = plan_layers(request, host)?;
    // Before anything is fetched: what is forbidden is not downloaded either.
    let asked = resolve::for_policy(&named);
    let (verdict, judged) = admit(request, &binds, &layers.directories, host, site, asked.clone())?;
    phases.end("admit");
    // A mistake here is found before anything is fetched.
    let mounted = mounted_images::open(&mut binds, &judged, host)?;
    let stores = store_places(site, host);
    let identities = stores.own.as_deref().map(Identities::of_store);
    let epoch = host.variable("SOURCE_DATE_EPOCH").and_then(|text| text.parse().ok());
    let (requested, progress) = (request.image.as_str(), request.progress);
    let pins = Pins::of(host);
    let so_far = phases.clone();
    let heard = |signal: &SignalInfo| hearing.heard(signal, &so_far);
    let opening = Opening { requested, progress, acts, identities, stores, epoch, pins, heard: &heard };
    let open = || {
        let found = resolve::open(&named, &opening)?;
        resolve::expect_judged(&named, &found.opened, &asked)?;
        Ok::<_, EngineError>(found)
    };
    let (Rooted { image, lease, rung }, container, use_mark, warning) = match &request.container {
        None => {
            let Found { opened, mark, warning } = open()?;
            phases.end("resolve");
            (way::to_root(opened, request, (host, site), phases, (acts, hearing))?, None, mark, warning)
        }
        Some(container) => {
            let found = names_image.then(open).transpose()?;
            phases.end("resolve");
            let (opened, mark, warning) =
                found.map_or((None, None, None), |found| (Some(found.opened), found.mark, found.warning));
            let so_far = phases.clone();
            let heard = |signal: &SignalInfo| hearing.heard(signal, &so_far);
            let asked = Asked { container, request, host, site, heard: &heard };
            let (rooted, kept) = container::to_root(asked, opened, opening.identities.as_ref())?;
            phases.end("container");
            (rooted, Some(kept), mark, warning)
        }
    };
    let warnings = warnings(&verdict).into_iter().chain(warning).collect();
    let mounted_paths: Vec<PathBuf> = binds.iter().filter_map(image_path_of).collect();
    let images = &mounted;
    let mut plan = assemble(Parts {
        request,
        host,
        image: &image,
        verdict,
        judged,
        binds,
        images,
        layers,
        home,
        pmi_fds,
    })?;
    if let Some((rung, reason)) = rung {
        (plan.rootfs.rung, plan.rootfs.reason) = (rung, reason);
    }
    if let Some(container) = &container {
        container.inscribe(&mut plan)?;
    }
    phases.end("plan");
    let Resolved { view, descriptor, config, path: image_path, .. } = image;
    let stop_signal = config.map(|config| config.stop_signal).filter(|signal| !signal.is_empty());
    let root = match (view, descriptor) {
        (ImageView::Squashfs(image), Some(descriptor)) => Some(OpenImage { image: *image, descriptor }),
        _ => None,
    };
    let mounted = mounted.into_iter().map(|opened| opened.mounted).collect();
    let images = OpenImages { root, mounted };
    let paths = images.root.iter().map(|_| &image_path).chain(&mounted_paths);
    let watches = images.descriptors().zip(paths);
    let watches = watches.filter_map(|(descriptor, path)| ImageWatch::begin(descriptor, path)).collect();
    Ok(Planned { plan, images, image_path, stop_signal, lease, use_mark, watches, container, warnings })
}

/// The image file that a bind mounts, where it does.
fn image_path_of(bind: &BindRequest) -> Option<PathBuf> {
    match &bind.source {
        BindSource::Image(image) => Some(image.path.clone()),
        _ => None,
    }
}

/// Fails where something is to be left out that is not mounted.
fn expect_unmounted(request: &RunRequest, host: &Host) -> Result<(), EngineError> {
    if request.defaults.unmounted.is_empty() {
        return Ok(());
    }
    let mut all = request.clone();
    all.defaults.unmounted.clear();
    let (binds, ..) = plan_binds(&all, host);
    let own = |bind: &&BindRequest| !matches!(bind.origin, Origin::User(_));
    let places: Vec<&Path> = binds.iter().filter(own).map(|bind| bind.destination.as_path()).collect();
    let is_none = |path: &&PathBuf| !places.iter().any(|place| place.starts_with(path));
    let Some(path) = request.defaults.unmounted.iter().find(is_none) else { return Ok(()) };
    let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    Err(EngineError::BadOption {
        message: format!("nothing is mounted at {} that could be left out", path.display()),
        remedy: format!("choose from {}", places.join(", ")),
    })
}

/// Asks the policy. Gives also where the paths led that it was asked about.
fn admit(
    request: &RunRequest,
    binds: &[BindRequest],
    layers: &[(PathBuf, bool)],
    host: &Host,
    site: &Site,
    image: PolicyImage,
) -> Result<(Verdict, Judged), EngineError> {
    let mut judged = Judged::new();
    let mut options: Vec<RequestedOption> =
        request.options.iter().cloned().map(RequestedOption::Named).collect();
    // The working directory is the user's choice as well, though no option names it.
    let chosen =
        |bind: &&BindRequest| matches!(bind.origin, Origin::User(_)) || bind.reason == WORKING_DIRECTORY;
    for bind in binds.iter().filter(chosen) {
        let source = match &bind.source {
            BindSource::Host(source) => Some(source),
            BindSource::Image(image) => Some(&image.path),
            _ => None,
        };
        if let Some(source) = source {
            // Links must not lead around a rule about paths.
            let real = places::find(source).map_or_else(|_| source.clone(), |found| found.path);
            judged.insert(source.clone(), real.clone());
            options.push(RequestedOption::Bind(BindUse { source: real, read_only: bind.read_only }));
        }
    }
    // So are the layers above the image: paths of the host that become visible.
    options.extend(layers.iter().map(|(source, read_only)| {
        RequestedOption::Bind(BindUse { source: source.clone(), read_only: *read_only })
    }));
    judge(image, options, host, site).map(|verdict| (verdict, judged))
}

/// Asks the policy whether an image of a registry may be fetched; nothing is known yet of what it will
/// be used for. Gives the policy's warnings.
///
/// # Errors
/// The policy says no.
pub fn admit_reference(reference: &Reference, host: &Host, site: &Site) -> Result<Vec<String>, EngineError> {
    judge(resolve::of_registry(reference), Vec::new(), host, site).map(|verdict| warnings(&verdict))
}

fn warnings(verdict: &Verdict) -> Vec<String> {
    match verdict.decision {
        Decision::Warn => verdict.reasons.iter().map(ToString::to_string).collect(),
        _ => Vec::new(),
    }
}

fn judge(
    image: PolicyImage,
    options: Vec<RequestedOption>,
    host: &Host,
    site: &Site,
) -> Result<Verdict, EngineError> {
    let allocation = host.allocation.as_ref();
    let asked = PolicyRequest {
        image,
        options,
        subject: Subject {
            uid: Some(host.user.uid),
            user: Some(host.user.name.clone()),
            account: allocation.and_then(|allocation| allocation.account.clone()),
            partition: allocation.and_then(|allocation| allocation.partition.clone()),
        },
    };
    let verdict = decide(&asked, &site.policy);
    if verdict.decision == Decision::Deny {
        return Err(EngineError::Denied(Box::new(verdict)));
    }
    Ok(verdict)
}

impl Prepared {
    /// What the user should be told before the run.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Lets go of what only this process needs. One that runs it and closes all but [`Prepared::descriptors`] would
    /// otherwise close by number what it believes to own still.
    pub(crate) fn for_another_process(self) -> Self {
        Prepared { watches: Vec::new(), ..self }
    }

    /// The descriptors that whoever runs it must have open.
    pub(crate) fn descriptors(&self) -> Vec<i32> {
        self.images.descriptors().chain(way::lease_descriptors(self.lease.as_ref())).collect()
    }

    /// The Plan.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The file or directory that the image's name meant.
    pub(crate) fn image_path(&self) -> &Path {
        &self.image_path
    }

    /// The signal by which the image wants to be ended, as it writes it.
    pub(crate) fn stop_signal(&self) -> Option<&str> {
        self.stop_signal.as_deref()
    }

    /// Takes it apart, to be run by another process.
    pub(crate) fn into_parts(self) -> PreparedParts {
        let Prepared { plan, images, lease, recorder, rank, .. } = self;
        PreparedParts { plan, images, lease, recorder, rank }
    }

    /// Runs the payload. Where nobody need wait for it (no image to serve, nothing shared, no
    /// record, no other task of the step, no `listener`) this process becomes the payload and does not return.
    ///
    /// # Errors
    /// The payload could not be started, or its container was lost. A listener is not told of that: who
    /// calls this knows how the program ends.
    pub fn run(self, listener: Option<&mut dyn Listener>) -> Result<Exit, EngineError> {
        // A tree stays as long as somebody waits who has its lease: until this returns.
        let Prepared {
            plan,
            images,
            lease,
            use_mark: _use_mark,
            watches,
            container,
            recorder,
            rank,
            warnings,
            ..
        } = self;
        let alone = matches!(plan.share, situla_plan::Share::Nobody { .. }) && lease.is_none();
        let alone = alone && container.is_none();
        let alone = alone && !plan.spec.linux.has(NamespaceKind::Pid) && plan.spec.hooks.is_none();
        let unheard = !recorder.is_wanted() && !recorder.must_tell() && listener.is_none();
        if images.is_empty() && alone && unheard {
            return Err(EngineError::Runtime(situla_runtime::replace(&plan)));
        }
        let run = recorder.run().to_owned();
        let mut heard = Heard { recorder, listener };
        heard.planned(&plan, &warnings);
        match situla_runtime::run(&plan, images, rank, &run, &mut heard) {
            Ok(exit) => {
                let failed = exit != Exit::Code(0);
                let changed = watches.iter().filter(|_| failed).find_map(ImageWatch::changed);
                if let Some(path) = changed {
                    let error = EngineError::ImageChanged { path: path.display().to_string(), exit };
                    heard.error(&error);
                    container.into_iter().for_each(KeptContainer::abandoned);
                    return Err(error);
                }
                let mut tell = |what: Meanwhile<'_>| match what {
                    Meanwhile::Writing(path) => heard.recorder.saving(exit, path),
                    Meanwhile::Asked(signal) => heard.recorder.signal(signal),
                };
                match container.map_or(Ok(None), |kept| kept.ended(&mut tell)) {
                    Ok(saved) => {
                        if let Some(file) = saved {
                            heard.recorder.saved(file);
                        }
                    }
                    Err(error) => {
                        match &error {
                            EngineError::Interrupted { signal } => heard.recorder.interrupted(signal),
                            other => heard.error(other),
                        }
                        return Err(error);
                    }
                }
                Ok(heard.exit(exit))
            }
            Err(failure) => {
                let error = EngineError::Runtime(failure);
                heard.error(&error);
                container.into_iter().for_each(KeptContainer::abandoned);
                Err(error)
            }
        }
    }
}
