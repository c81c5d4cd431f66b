//! The use cases of Situla: resolve an image, ask the policy, plan, run, record.
//!
//! Each step is a function from values to values, up to [`Prepared::run`], which acts. Facts about
//! the host come in as a [`Host`], made by the edge; nothing here reads the environment, prints, or
//! ends the process.

mod accelerators;
mod aftermath;
mod assemble;
mod container;
mod descriptors;
mod devices;
mod directory_view;
mod env_script;
mod environment;
mod error;
mod events;
mod hearing;
mod host;
mod identity;
mod image_view;
mod image_watch;
mod instance;
mod journal;
mod killed_task;
mod mounted_images;
mod overlay;
mod own_process;
mod pins;
mod places;
mod planned_binds;
mod prepare;
mod request;
mod resolve;
mod seccomp_profile;
mod site;
mod slurm_client;
mod slurm_conf;
mod status;
mod step_end;
mod store_place;
mod way;

pub use aftermath::remove_leavings;
pub use container::{Swept, check_pattern, containers, parse_container_name, sweep};
pub use error::EngineError;
pub use events::{EVENT_SCHEMA, EventLine, Listener, RunEvent};
pub use host::{Host, HostError, home_of_account};
pub use instance::{
    Condition, Entering, InstanceError, InstanceFlaw, InstanceName, InstanceState, Instances, Listed, Stop,
    Usage, UsageSource, find, parse_signal, start, stop, usage,
};
pub use killed_task::{Killed, judge_killed};
pub use prepare::{Prepared, Refusal, admit_reference, check, plan, prepare, record_refusal};
pub use request::{
    Action, ContainerMode, ContainerRequest, EntryPoint, Isolation, OverlayRequest, Personality, RunRequest,
    TASK_VARIABLES,
};
pub use site::{RootfsSettings, ShortNames, Site, site_places, untrusted};
pub use situla_plan::SCHEMA as PLAN_SCHEMA;
pub use situla_records::EngineClass;
pub use situla_runtime::{Exit, Failure, FailureClass, Links, die_by, open_inside, read_own_files};
pub use situla_slurm::StepId;
pub use status::FailureKind;
pub use step_end::{StepEnd, StepEndError};
pub use store_place::{StorePlaces, StoreSettings, store_places};
pub use way::{RootfsWay, tree_directory};
