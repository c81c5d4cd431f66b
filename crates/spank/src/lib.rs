//! The SPANK plugin: parses options and sends the task through the trampoline.
//!
//! It runs inside srun, sbatch, salloc and slurmstepd, so it does next to nothing: it registers the
//! options of a container, and where one is asked for it replaces the task's program by the
//! *trampoline*, our static binary, which enters the container and executes the real program. No
//! image, network or mount work happens here, and nothing is read or written on disk as root. One process
//! is started, as the user, where a task of ours was killed (`killed`). TaskProlog runs on the host, since Slurm executes it before the program.
//!
//! All fallible work is in `task_init`: on Slurm before 23.11 a required plugin that fails in an
//! earlier remote callback makes a step that never ran look completed, or drains the node.

mod callbacks;
mod child;
mod ffi;
mod killed;
mod multi_prog;
mod options;
