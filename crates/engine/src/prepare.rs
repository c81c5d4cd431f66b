//! The use case of running: request to Plan, Plan to payload, payload to record.

use std::ffi::OsString;
use std::path::PathBuf;

use situla_bindings::{BindRequest, BindSource, Origin};
use situla_oci::Reference;
use situla_plan::{NamespaceKind, Plan};
use situla_policy::{
    BindUse, Decision, Image as PolicyImage, Request as PolicyRequest, RequestedOption, Subject, Verdict,
    decide,
};
use situla_records::EngineClass;
use situla_runtime::{Exit, OpenImage};

use crate::assemble::{Parts, WORKING_DIRECTORY, assemble, plan_binds};
use crate::error::EngineError;
use crate::host::Host;
use crate::image_view::ImageView;
use crate::journal::{Phases, Recorder};
use crate::overlay::plan_layers;
use crate::request::{Personality, RunRequest};
use crate::resolve::{self, Resolved};
use crate::site::Site;
use crate::status::FailureKind;

/// A run that is ready: the Plan is frozen, the image open, nothing done yet.
#[derive(Debug)]
pub struct Prepared {
    plan: Plan,
    image: Option<OpenImage>,
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
    decided(request, host, site, &mut Phases::begin()).map(|(plan, _, _)| plan)
}

/// Resolves, admits and plans, for a run. A failure is recorded before it is returned.
///
/// # Errors
/// Everything that can be known before the container is made.
pub fn prepare(request: &RunRequest, host: &Host, site: &Site) -> Result<Prepared, EngineError> {
    let mut phases = Phases::begin();
    match decided(request, host, site, &mut phases) {
        Ok((plan, image, warnings)) => {
            let mut recorder = Recorder::open(host, request.record, request.personality, phases);
            recorder.describe(host, &plan);
            let task = host.allocation.as_ref().and_then(|allocation| allocation.task);
            let rank = task.map_or(0, |task| task.local_rank.0);
            Ok(Prepared { plan, image, recorder, rank, warnings })
        }
        Err(error) => {
            let mut recorder = Recorder::open(host, request.record, request.personality, phases);
            recorder.describe_request(host, &request.image, texts(request.action.words()));
            recorder.error(&error);
            Err(error)
        }
    }
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
fn texts(words: &[OsString]) -> Vec<String> {
    words.iter().map(|word| word.to_string_lossy().into_owned()).collect()
}

type Planned = (Plan, Option<OpenImage>, Vec<String>);

fn decided(
    request: &RunRequest,
    host: &Host,
    site: &Site,
    phases: &mut Phases,
) -> Result<Planned, EngineError> {
    let named = resolve::name(&request.image, &host.cwd, request.personality)?;
    let (binds, home, keep_fds) = plan_binds(request, host);
    let layers = plan_layers(request, host)?;
    // Before anything is fetched: what is forbidden is not downloaded either.
    let verdict = admit(request, &binds, &layers.directories, host, site, &named)?;
    phases.end("admit");
    let image = resolve::open(&named, &request.image, request.progress)?;
    phases.end("resolve");
    let warnings = warnings(&verdict);
    let plan = assemble(Parts { request, host, image: &image, verdict, binds, layers, home, keep_fds })?;
    phases.end("plan");
    let Resolved { view, descriptor, .. } = image;
    let open = match (view, descriptor) {
        (ImageView::Squashfs(image), Some(descriptor)) => Some(OpenImage { image: *image, descriptor }),
        _ => None,
    };
    Ok((plan, open, warnings))
}

/// Asks the policy.
fn admit(
    request: &RunRequest,
    binds: &[BindRequest],
    layers: &[(PathBuf, bool)],
    host: &Host,
    site: &Site,
    named: &resolve::Named,
) -> Result<Verdict, EngineError> {
    let mut options: Vec<RequestedOption> =
        request.options.iter().cloned().map(RequestedOption::Named).collect();
    // The working directory is the user's choice as well, though no option names it.
    let chosen =
        |bind: &&BindRequest| matches!(bind.origin, Origin::User(_)) || bind.reason == WORKING_DIRECTORY;
    for bind in binds.iter().filter(chosen) {
        if let BindSource::Host(source) = &bind.source {
            // Links must not lead around a rule about paths.
            let source = source.canonicalize().unwrap_or_else(|_| source.clone());
            options.push(RequestedOption::Bind(BindUse { source, read_only: bind.read_only }));
        }
    }
    // So are the layers above the image: paths of the host that become visible.
    options.extend(layers.iter().map(|(source, read_only)| {
        RequestedOption::Bind(BindUse { source: source.clone(), read_only: *read_only })
    }));
    judge(resolve::for_policy(named), options, host, site)
}

/// Asks the policy whether an image of a registry may be fetched; nothing is known yet of what it will
/// be used for. Gives the policy's warnings.
///
/// # Errors
/// The policy says no.
pub fn admit_reference(reference: &Reference, host: &Host, site: &Site) -> Result<Vec<String>, EngineError> {
    let image = resolve::for_policy(&resolve::Named::Registry(reference.clone()));
    judge(image, Vec::new(), host, site).map(|verdict| warnings(&verdict))
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

    /// Runs the payload. Where nobody need wait for it (no image to serve, nothing shared, no
    /// record) this process becomes the payload and does not return.
    ///
    /// # Errors
    /// The payload could not be started, or its container was lost.
    pub fn run(self) -> Result<Exit, EngineError> {
        let Prepared { plan, image, mut recorder, rank, .. } = self;
        let alone = matches!(plan.share, situla_plan::Share::Nobody { .. });
        let alone = alone && !plan.spec.linux.has(NamespaceKind::Pid);
        if image.is_none() && alone && !recorder.is_wanted() {
            return Err(EngineError::Runtime(situla_runtime::replace(&plan)));
        }
        let run = recorder.run().to_owned();
        match situla_runtime::run(&plan, image, rank, &run, &mut recorder) {
            Ok(exit) => {
                recorder.exit(exit);
                Ok(exit)
            }
            Err(failure) => {
                let error = EngineError::Runtime(failure);
                recorder.error(&error);
                Err(error)
            }
        }
    }
}
