//! The built program, from outside, in an installation of its own: without Slurm, root or a network.

mod above_the_image;
mod beside_the_root;
mod denied_plan;
mod fetching;
mod installation;
mod keeper;
mod newer_records;
mod plugins;
mod refusals;
mod shipped;
mod stalling;
