//! One module for each command.

pub(crate) mod apptainer_cache;
pub(crate) mod cache;
pub(crate) mod container;
pub(crate) mod convert;
pub(crate) mod environment;
pub(crate) mod images;
pub(crate) mod inspect;
pub(crate) mod instance;
pub(crate) mod login;
pub(crate) mod manual;
pub(crate) mod prune;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod runs;
pub(crate) mod sif;
pub(crate) mod site;
pub(crate) mod task_killed;
pub(crate) mod transfer;
