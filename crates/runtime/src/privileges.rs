//! What the payload may do: capabilities in its user namespace, and resource limits.
//!
//! A Plan that names no capabilities gets none. Those that it names are capabilities over the container's
//! own namespaces, and never more than this process has: the kernel refuses to add any.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, configure_capability_in_ambient_set, remove_capability_from_bounding_set,
    set_capabilities,
};
use situla_plan::{Capabilities, ProcessSpec};

use crate::failure::{Context, Failure, FailureClass};

/// What a Plan allows, its names understood.
#[derive(Debug)]
pub(crate) struct Privileges {
    capabilities: Option<Sets>,
    limits: Vec<(Resource, Rlimit, String)>,
}

#[derive(Debug)]
struct Sets {
    bounding: CapabilitySet,
    own: CapabilitySets,
    ambient: CapabilitySet,
}

impl Privileges {
    /// Reads what `process` says.
    pub(crate) fn prepare(process: &ProcessSpec) -> Result<Self, Failure> {
        let limits = process.rlimits.iter().map(|limit| {
            let resource = resource(&limit.kind).ok_or_else(|| unknown("resource limit", &limit.kind))?;
            // RLIM_INFINITY is the largest number: getrlimit(2).
            let value = |value: u64| (value != u64::MAX).then_some(value);
            let set = Rlimit { current: value(limit.soft), maximum: value(limit.hard) };
            Ok((resource, set, limit.kind.clone()))
        });
        Ok(Privileges {
            capabilities: process.capabilities.as_ref().map(Sets::parse).transpose()?,
            limits: limits.collect::<Result<_, Failure>>()?,
        })
    }

    /// Sets the limits and gives up what is not allowed.
    pub(crate) fn apply(&self) -> Result<(), Failure> {
        for (resource, limit, name) in &self.limits {
            setrlimit(*resource, *limit).or_fail(FailureClass::Setup, || {
                format!("cannot set {name}: it may be more than you have")
            })?;
        }
        match &self.capabilities {
            None => situla_sys::drop_all_capabilities()
                .or_fail(FailureClass::Setup, || "cannot drop capabilities".to_owned()),
            Some(sets) => sets.apply().or_fail(FailureClass::Setup, || {
                "cannot set capabilities: they may be more than you have".to_owned()
            }),
        }
    }
}

fn unknown(what: &str, name: &str) -> Failure {
    Failure::new(FailureClass::Setup, format!("unknown {what} {name}"))
}

impl Sets {
    fn parse(lists: &Capabilities) -> Result<Self, Failure> {
        let set = |names: &[String]| {
            names.iter().try_fold(CapabilitySet::empty(), |set, name| {
                let found = name.strip_prefix("CAP_").and_then(CapabilitySet::from_name);
                found.map(|one| set | one).ok_or_else(|| unknown("capability", name))
            })
        };
        let own = CapabilitySets {
            effective: set(&lists.effective)?,
            permitted: set(&lists.permitted)?,
            inheritable: set(&lists.inheritable)?,
        };
        Ok(Sets { bounding: set(&lists.bounding)?, own, ambient: set(&lists.ambient)? })
    }

    fn apply(&self) -> Result<(), Errno> {
        for one in CapabilitySet::all().difference(self.bounding).iter() {
            match remove_capability_from_bounding_set(one) {
                // A kernel that does not know it.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(errno) => return Err(errno),
            }
        }
        set_capabilities(None, self.own)?;
        self.ambient.iter().try_for_each(|one| configure_capability_in_ambient_set(one, true))
    }
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        _ => return None,
    })
}
