//! Why a run did not happen, with what to do about it.

use std::path::PathBuf;

use rustix::io::Errno;
use situla_image::Scheme;
use situla_oci::ReferenceError;
use situla_policy::{PolicyError, Verdict};
use situla_records::EngineClass;
use situla_runtime::{Exit, Failure, FailureClass, SignalInfo};

use crate::image_view::ViewError;

/// A use case failed before or while the payload was started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The image is not where the user says.
    #[error("image {path} does not exist")]
    ImageMissing {
        /// The path as the user named it.
        path: String,
    },
    /// The image cannot be opened.
    #[error("cannot open image {path}")]
    OpenImage {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no image of a known format.
    #[error("{path} is neither a SquashFS nor a SIF image")]
    UnknownFormat {
        /// The path.
        path: String,
    },
    /// The SIF file is damaged, or has no root file system that can be served.
    #[error("cannot use the SIF image {path}")]
    Sif {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The SquashFS is damaged.
    #[error("cannot read the SquashFS image {path}")]
    Squashfs {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: situla_squashfs::Error,
    },
    /// The root file system cannot be looked into.
    #[error("cannot look into image {path}")]
    LookInto {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The image's name cannot be understood.
    #[error("cannot tell which image {text} means")]
    Reference {
        /// What the user gave.
        text: String,
        /// Why.
        #[source]
        source: ReferenceError,
    },
    /// An image of layers must be fetched or converted before it can be run.
    #[error("cannot fetch {reference}")]
    Fetch {
        /// The reference, or the layout or archive.
        reference: String,
        /// What the fetching process said, if it could be started at all.
        message: String,
        /// The class that it gave.
        class: EngineClass,
        /// What it said can be done.
        remedy: Option<String>,
    },
    /// Somebody has asked this process to end before there was a container.
    #[error("interrupted by signal {}", signal.signal)]
    Interrupted {
        /// By what, and who.
        signal: SignalInfo,
    },
    /// What only plans fetches nothing.
    #[error("{image} is not in your store, and a plan fetches nothing")]
    NotFetched {
        /// The image, as `situla pull` is told.
        image: String,
    },
    /// An image cannot be extracted.
    #[error("cannot extract {image}")]
    Extract {
        /// The image.
        image: String,
        /// What the extracting process said, if it could be started at all.
        message: String,
        /// The class that it gave.
        class: EngineClass,
        /// What it said can be done.
        remedy: Option<String>,
    },
    /// An image is not mounted by the kernel, and by no other way.
    #[error("{image} cannot be mounted by the kernel: {why}")]
    KernelMount {
        /// The image.
        image: String,
        /// The reason, as the end of a sentence.
        why: String,
        /// What can be done instead.
        remedy: &'static str,
    },
    /// The extracted trees of this node cannot be used.
    #[error("cannot use the extracted images of this node")]
    Trees {
        /// Why.
        #[source]
        source: Box<situla_image::TreeError>,
    },
    /// The containers of this node cannot be used.
    #[error("cannot use the containers of this node")]
    Containers {
        /// Why.
        #[source]
        source: Box<situla_image::TreeError>,
    },
    /// The files of a container could not be saved when the tasks had ended.
    #[error("cannot save the container to {path}: {message}")]
    Save {
        /// The file.
        path: String,
        /// What the saving process said, if it could be started at all.
        message: String,
        /// The class that it gave.
        class: EngineClass,
        /// What it said can be done.
        remedy: Option<String>,
    },
    /// The site's settings cannot be understood.
    #[error("cannot apply the site's settings {}: {message}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// An option's value cannot be used.
    #[error("{message}")]
    BadOption {
        /// What is wrong.
        message: String,
        /// What to do instead.
        remedy: String,
    },
    /// A device cannot be had.
    #[error("{message}")]
    Device {
        /// Which, and what is wrong.
        message: String,
        /// What to do instead.
        remedy: String,
    },
    /// The source of a bind mount does not exist.
    #[error("the bind source {path} does not exist on {host}")]
    BindSourceMissing {
        /// The path.
        path: PathBuf,
        /// The host.
        host: String,
    },
    /// The source of a bind mount, or a layer, cannot be looked at.
    #[error("{path} cannot be looked at on {host}")]
    Unreachable {
        /// The path.
        path: PathBuf,
        /// The host.
        host: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The site's policy says no.
    #[error("the site's policy refuses this: {}", reasons(.0))]
    Denied(Box<Verdict>),
    /// The policy file cannot be read.
    #[error("cannot read the site's policy {path}")]
    ReadPolicy {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The policy file cannot be understood.
    #[error("cannot apply the site's policy")]
    Policy(#[from] PolicyError),
    /// A passwd or group file cannot be made.
    #[error("cannot make the container's account files")]
    Accounts(#[from] situla_plan::AccountError),
    /// The image was changed under a payload, which then failed.
    #[error("image {path} was changed while it was used, and the program ended with {}", ending(.exit))]
    ImageChanged {
        /// The path.
        path: String,
        /// How the payload ended.
        exit: Exit,
    },
    /// The container could not be started, or was lost.
    #[error("{0}")]
    Runtime(Failure),
}

fn ending(exit: &Exit) -> String {
    match exit {
        Exit::Code(code) => format!("status {code}"),
        Exit::Signal(signal) => format!("signal {signal}"),
    }
}

fn reasons(verdict: &Verdict) -> String {
    let denied: Vec<String> = verdict.reasons.iter().map(ToString::to_string).collect();
    denied.join("; ")
}

impl EngineError {
    pub(crate) fn look_into(path: impl Into<String>) -> impl FnOnce(ViewError) -> EngineError {
        let path = path.into();
        |source| EngineError::LookInto { path, source: Box::new(source) }
    }

    /// The class under which records count this failure.
    pub fn class(&self) -> EngineClass {
        match self {
            EngineError::ImageMissing { .. } => EngineClass::ImageMissing,
            EngineError::OpenImage { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                EngineClass::ImageMissing
            }
            EngineError::OpenImage { .. }
            | EngineError::UnknownFormat { .. }
            | EngineError::Sif { .. }
            | EngineError::Squashfs { .. }
            | EngineError::LookInto { .. } => EngineClass::ImageCorrupt,
            EngineError::Reference { .. } | EngineError::BadOption { .. } | EngineError::Device { .. } => {
                EngineClass::BadOption
            }
            EngineError::ImageChanged { .. } => EngineClass::ImageChanged,
            EngineError::Fetch { class, .. }
            | EngineError::Extract { class, .. }
            | EngineError::Save { class, .. } => class.clone(),
            EngineError::NotFetched { .. } => EngineClass::ImageMissing,
            EngineError::BindSourceMissing { .. } => EngineClass::BindSourceMissing,
            EngineError::Unreachable { .. } => EngineClass::SetupFailed,
            EngineError::Denied(_) => EngineClass::PolicyDenied,
            EngineError::ReadPolicy { .. }
            | EngineError::Policy(_)
            | EngineError::Settings { .. }
            | EngineError::KernelMount { .. }
            | EngineError::Trees { .. }
            | EngineError::Interrupted { .. }
            | EngineError::Containers { .. }
            | EngineError::Accounts(_) => EngineClass::SetupFailed,
            EngineError::Runtime(failure) => match failure.class() {
                FailureClass::NoUserNamespaces | FailureClass::AppArmor => EngineClass::NoUserns,
                FailureClass::NoFuse => EngineClass::NoFuse,
                FailureClass::BindSourceMissing => EngineClass::BindSourceMissing,
                FailureClass::CommandNotFound | FailureClass::CommandNotExecutable => {
                    EngineClass::CommandMissing
                }
                FailureClass::ServerLost => EngineClass::ServerLost,
                _ => EngineClass::SetupFailed,
            },
        }
    }

    /// What the user or the administrator can do about it.
    pub fn remedy(&self) -> Option<String> {
        // Whatever was being done when it ran out.
        let is_ours = matches!(self, EngineError::Runtime(_));
        if let Some(remedy) = self.errno().and_then(|errno| exhaustion_remedy(errno, is_ours)) {
            return Some(remedy.to_owned());
        }
        Some(match self {
            EngineError::ImageMissing { .. } => {
                "check the path; on a cluster it must be visible on the compute node".to_owned()
            }
            EngineError::OpenImage { .. } => "check the file's permissions".to_owned(),
            EngineError::UnknownFormat { .. } => "make one with `situla pull` or `situla convert`".to_owned(),
            EngineError::Sif { .. } | EngineError::Squashfs { .. } | EngineError::LookInto { .. } => {
                "the file may be cut short or damaged; copy or pull it again".to_owned()
            }
            EngineError::Reference { text, source } => match (Scheme::split(text), source) {
                (Some((scheme, _)), ReferenceError::NoRegistry { .. }) => {
                    format!("name the registry, as in {scheme}REGISTRY/NAME:TAG")
                }
                _ => "name a file, or a reference such as docker://REGISTRY/NAME:TAG".to_owned(),
            },
            EngineError::Fetch { remedy, .. }
            | EngineError::Extract { remedy, .. }
            | EngineError::Save { remedy, .. } => return remedy.clone(),
            EngineError::NotFetched { image } => format!("fetch it first: situla pull {image}"),
            EngineError::KernelMount { remedy, .. } => (*remedy).to_owned(),
            EngineError::Trees { .. } | EngineError::Containers { .. } => {
                "remove the directory if it is yours, or ask the administrator for another place (rootfs.cache)"
                    .to_owned()
            }
            EngineError::BadOption { remedy, .. } | EngineError::Device { remedy, .. } => remedy.clone(),
            EngineError::BindSourceMissing { .. } => "create it, or leave the bind out".to_owned(),
            EngineError::Unreachable { .. } => {
                "check that its file system works and its permissions, or leave it out".to_owned()
            }
            // Every reason of a verdict carries its own remedy.
            EngineError::Denied(_) | EngineError::Interrupted { .. } => return None,
            EngineError::ReadPolicy { .. } | EngineError::Policy(_) | EngineError::Settings { .. } => {
                "the administrator must mend the file".to_owned()
            }
            EngineError::ImageChanged { .. } => {
                "run it again; put a new image in the place of an old one by `mv`, which leaves running jobs the old one"
                    .to_owned()
            }
            EngineError::Accounts(_) => "report the account's entry to the administrator".to_owned(),
            EngineError::Runtime(failure) => return runtime_remedy(failure).map(str::to_owned),
        })
    }
}

impl EngineError {
    /// What the system said, at the end of the chain of causes.
    fn errno(&self) -> Option<Errno> {
        let mut cause: &(dyn std::error::Error + 'static) = match self {
            EngineError::Runtime(failure) => return failure.errno(),
            other => other,
        };
        loop {
            if let Some(error) = cause.downcast_ref::<std::io::Error>() {
                return error.raw_os_error().map(Errno::from_raw_os_error);
            }
            cause = match cause.downcast_ref::<Errno>() {
                Some(errno) => return Some(*errno),
                None => cause.source()?,
            };
        }
    }
}

/// What to do where the system is at an end with something, whatever it was wanted for; or a mount of somebody's
/// with its server, if it cannot be one of ours.
fn exhaustion_remedy(errno: Errno, is_ours: bool) -> Option<&'static str> {
    Some(match errno {
        Errno::MFILE => "raise the limit on open files, which `ulimit -n` shows: 64 are enough",
        Errno::NFILE => "the machine has too many files open; the administrator can raise fs.file-max",
        Errno::AGAIN => "raise the limit on processes, which `ulimit -u` shows, or end some",
        Errno::NOTCONN | Errno::CONNABORTED if !is_ours => {
            "the process behind that mount has ended: mount it again, or leave it out"
        }
        _ => return None,
    })
}

/// The way out depends on what is wrong with the device: it is not there, not for this user, or kept from the job.
fn no_fuse_remedy(errno: Option<Errno>) -> &'static str {
    match errno {
        Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
            "the administrator can run `modprobe fuse`, or you can extract the image with --rootfs extract, or with \
             `situla convert IMAGE DIRECTORY/`"
        }
        Some(Errno::ACCESS) => {
            "the administrator can run `chmod 0666 /dev/fuse`, or you can extract the image with --rootfs extract, or \
             with `situla convert IMAGE DIRECTORY/`"
        }
        Some(Errno::PERM) => {
            "the administrator can let jobs use /dev/fuse: in their device cgroup (c 10:229), and in security \
             modules; or you can extract the image with --rootfs extract, or with `situla convert IMAGE DIRECTORY/`"
        }
        _ => {
            "extract the image with --rootfs extract, or with `situla convert IMAGE DIRECTORY/` and run that"
        }
    }
}

fn runtime_remedy(failure: &Failure) -> Option<&'static str> {
    Some(match failure.class() {
        FailureClass::NoUserNamespaces => {
            "the administrator can allow user namespaces with `sysctl user.max_user_namespaces=15000`, and on \
             Debian and Ubuntu with `kernel.unprivileged_userns_clone=1`"
        }
        FailureClass::AppArmor => {
            "the administrator can install the profile packaging/apparmor/situla as /etc/apparmor.d/situla and load \
             it with `apparmor_parser -r /etc/apparmor.d/situla`"
        }
        FailureClass::NoFuse => no_fuse_remedy(failure.errno()),
        FailureClass::BindSourceMissing => "create it, or leave the bind out",
        FailureClass::MountFailed => "see the cause above; choose another source or destination for the bind",
        FailureClass::Rootfs => "the image may be damaged; check it with `situla inspect`",
        FailureClass::Overlay => {
            "use a directory on a local file system that you may write to, or --writable-tmpfs"
        }
        FailureClass::SubordinateIds => {
            "the administrator can install newuidmap and newgidmap (Debian's package uidmap) and give you ranges \
             in /etc/subuid and /etc/subgid; or leave --subids out"
        }
        FailureClass::Hook => "see what it said above; a hook is a program of this site's",
        FailureClass::WorkingDirectory => "name a directory that exists inside, or bind it",
        FailureClass::CommandNotFound => "check the name, and the image's PATH",
        FailureClass::CommandNotExecutable => {
            "check that it is a program for this machine, and its permissions"
        }
        FailureClass::ServerLost => {
            "look for messages about killed processes in the node's log, then run again"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_up_is_named_whatever_it_was_for() {
        let failure = |errno| Failure::of_call(FailureClass::MountFailed, "no mount", errno);
        let policy = |errno: Errno| EngineError::ReadPolicy { path: "/etc/x".into(), source: errno.into() };
        for (errno, way_out) in
            [(Errno::MFILE, "ulimit -n"), (Errno::NFILE, "file-max"), (Errno::AGAIN, "ulimit -u")]
        {
            for error in [EngineError::Runtime(failure(errno)), policy(errno)] {
                let remedy = error.remedy().unwrap();
                assert!(remedy.contains(way_out), "{errno}: {remedy}");
            }
        }
        assert!(policy(Errno::NOTCONN).remedy().unwrap().contains("mount it again"));
        // Our own server is meant.
        assert!(!EngineError::Runtime(failure(Errno::NOTCONN)).remedy().unwrap().contains("mount it again"));
    }

    #[test]
    fn the_way_out_fits_what_is_wrong_with_fuse() {
        for (errno, way_out) in [
            (Errno::NOENT, "modprobe fuse"),
            (Errno::NODEV, "modprobe fuse"),
            (Errno::ACCESS, "chmod 0666 /dev/fuse"),
            (Errno::PERM, "c 10:229"),
            (Errno::NOMEM, "extract the image"),
        ] {
            let failure = Failure::of_call(FailureClass::NoFuse, "no device", errno);
            let remedy = EngineError::Runtime(failure).remedy().unwrap();
            assert!(remedy.contains(way_out), "{errno}: {remedy}");
            assert_eq!(remedy.contains("modprobe"), way_out.starts_with("modprobe"), "{errno}: {remedy}");
        }
    }
}
