//! Instances: containers with a name that stay after the command that has started them.
//!
//! An instance belongs to one user on one host. What is known of it is one small file in the user's state
//! directory ([`Instances`]), written by the process that holds the instance and removed by it at the end. The
//! file is a hint and nothing more: boot, process ids with their start times, and the meeting point, where
//! both sides ask the kernel who the other is, decide whether an instance is there. What a killed holder has
//! left is noticed and removed by whoever looks next.

mod enter;
mod error;
mod name;
mod place;
mod process;
mod start;
mod state;
mod stop;
mod usage;

pub use enter::{Entering, find};
pub use error::{InstanceError, InstanceFlaw};
pub use name::InstanceName;
pub use place::{Condition, Instances, Listed};
pub use start::start;
pub use state::InstanceState;
pub use stop::{Stop, parse_signal, stop};
pub use usage::{Usage, UsageSource, usage};
