//! What of the host is visible inside a container, and why.
//!
//! Pure decisions: command-line syntax in, requests out; facts about the host in, default binds out.
//! Nothing here opens a file, reads the environment or mounts anything; where a decision needs the
//! machine, the caller hands in the answer or a probe. Every output carries its reason, because the
//! plan prints it.

mod bind;
mod cdi;
mod defaults;
mod devices;
mod pmi;
mod syntax;

pub use bind::{BindRequest, BindSource, ImageSource, Origin, Propagation, Skipped};
pub use cdi::{CdiError, CdiSpec, DeviceEdits, DeviceName, MAX_SPEC, SpecFile, Syntax, resolve};
pub use defaults::{CustomHome, DefaultBinds, DefaultOptions, HostFacts, NoMount, plan_default_binds};
pub use devices::{DeviceNode, DevicePlan, DeviceRole, Openable, plan_devices};
pub use pmi::{KeepFd, PmiFacts, PmiPlan, plan_pmi, plan_shm};
pub use syntax::{
    KNOWN_PYXIS_FLAGS, MAX_BINDS, SyntaxError, parse_apptainer_bind, parse_apptainer_mount, parse_edf_mount,
    parse_pyxis_mounts,
};
