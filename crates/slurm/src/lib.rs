//! The Slurm allocation as a step sees it.
//!
//! Everything here is a pure function of text: the environment a task was given, a hostlist
//! expression, the contents of `/proc/self/cgroup`. Nothing in this crate reads the process
//! environment, opens a file or talks to Slurm; the edge hands the text in.
//!
//! Trust: the environment belongs to the user and can say anything, so it serves for naming and
//! layout only. What a step *is* for the purpose of sharing or accounting must be checked against
//! [`cgroup`], whose directories the user's process cannot rename.

pub mod cgroup;

mod allocation;
mod conf;
mod error;
mod hostlist;
mod ids;
mod repeat;

pub use allocation::{
    Allocation, ArrayTask, Confirmation, Context, GpuSource, Gpus, HetGroup, MemoryLimit, NodeLayout,
    StepLayout, TaskIdentity,
};
pub use conf::{MAX_CONF, SlurmConf};
pub use error::{HostlistError, RepeatError, SlurmError};
pub use hostlist::{MAX_HOSTS, compress, expand};
pub use ids::{JobId, LocalRank, NodeIndex, ProcId, StepId};
pub use repeat::RepeatList;
