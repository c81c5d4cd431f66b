//! The installation of a site: what is put where, taken away again, and looked at.
//!
//! What Slurm and the machine say is gathered first; which steps follow is decided from that; only then is anything
//! changed, one step at a time. Nothing here is part of a run.

mod checks;
mod install;
mod manifest;
mod plugin_file;
mod removal;
mod rivals;
mod root;
mod sharing;
mod slurm;
mod stack;
mod steps;

pub(crate) use checks::{Finding, Findings, Level, configuration, installation, machine, place};
pub(crate) use install::{Installation, LineWish, Plan, Readers, Refusal};
pub(crate) use manifest::{Manifest, PLACE, distrusted};
pub(crate) use plugin_file::{MAX_PLUGIN, PluginFacts, facts};
pub(crate) use removal::{Extent, Removal};
pub(crate) use rivals::Srun;
pub(crate) use root::Root;
pub(crate) use sharing::Sharing;
pub(crate) use slurm::{Slurm, Version};
pub(crate) use stack::{PLUGIN, SETTINGS, Stack, takes};
