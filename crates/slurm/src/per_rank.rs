//! Which environment variables differ between the ranks of one step on one node.
//!
//! Ranks that share a container compare their plans without these: everything else must agree,
//! or they were not asked for the same container.

/// Exact names that Slurm, a PMI or an MPI library sets per task.
const NAMES: &[&str] = &[
    // slurmstepd, per task. SLURM_GTIDS is not here: it lists all ranks of the node.
    "SLURM_LOCALID",
    "SLURM_PROCID",
    "SLURM_TASK_PID",
    // Binding of generic resources to tasks (--gpus-per-task, --gpu-bind, --tres-bind).
    "CUDA_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "HIP_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "SLURM_STEP_GPUS",
    "ZE_AFFINITY_MASK",
    // slurmstepd gives a default TMPDIR to the first task of a node only, if none was set.
    "TMPDIR",
    // PMI-1, PMI-2 and PMIx.
    "PMI_FD",
    "PMI_ID",
    "PMI_LOCAL_RANK",
    "PMI_RANK",
    "PMIX_RANK",
    // MVAPICH, Intel MPI, Cray PALS, Hydra.
    "MPI_LOCALRANKID",
    "MPI_RANKID",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "MV2_COMM_WORLD_RANK",
    "MVP_COMM_WORLD_LOCAL_RANK",
    "MVP_COMM_WORLD_RANK",
    "PALS_LOCAL_RANKID",
    "PALS_RANKID",
    // Launchers and task prologs for PyTorch.
    "LOCAL_RANK",
    "RANK",
];

/// Prefixes under which a launcher mixes rank numbers with settings. None of them says anything
/// about the container, so all names below them may differ.
const PREFIXES: &[&str] = &["OMPI_", "ORTE_", "PRTE_"];

/// Tells whether a variable may differ between ranks of the same step and node.
pub fn is_per_rank(name: &str) -> bool {
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_variables_are_told_from_step_variables() {
        for name in ["SLURM_PROCID", "PMIX_RANK", "PMI_FD", "OMPI_COMM_WORLD_RANK", "CUDA_VISIBLE_DEVICES"] {
            assert!(is_per_rank(name), "{name}");
        }
        for name in [
            "SLURM_JOB_ID",
            "SLURM_STEP_ID",
            "SLURM_NODEID",
            "SLURM_GTIDS",
            "PMIX_NAMESPACE",
            "PMIX_SERVER_TMPDIR",
            "PMI_JOBID",
            "PATH",
            "slurm_procid",
            "MY_OMPI_X",
        ] {
            assert!(!is_per_rank(name), "{name}");
        }
    }
}
