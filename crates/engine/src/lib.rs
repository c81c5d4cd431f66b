//! The use cases of Situla: resolve an image, ask the policy, plan, run, record.
//!
//! Each step is a function from values to values, up to [`Prepared::run`], which acts. Facts about
//! the host come in as a [`Host`], made by the edge; nothing here reads the environment, prints, or
//! ends the process.

mod assemble;
mod env_script;
mod environment;
mod error;
mod host;
mod identity;
mod image_view;
mod journal;
mod overlay;
mod prepare;
mod request;
mod resolve;
mod site;
mod status;

pub use error::EngineError;
pub use host::{Host, HostError};
pub use prepare::{Prepared, Refusal, admit_reference, plan, prepare, record_refusal};
pub use request::{Action, Isolation, OverlayRequest, Personality, RunRequest, TASK_VARIABLES};
pub use site::Site;
pub use situla_plan::SCHEMA as PLAN_SCHEMA;
pub use situla_records::EngineClass;
pub use situla_runtime::{Exit, Failure, FailureClass, die_by};
pub use situla_slurm::StepId;
pub use status::FailureKind;
