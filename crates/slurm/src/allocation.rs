//! The allocation as the environment of a process describes it.
//!
//! [`Allocation::from_env`] reads the variables through a function, so a test passes a table and
//! the edge passes the real environment. Identity that is present but unreadable is an error;
//! anything else that cannot be read becomes a warning and an absent value, because a container
//! must not fail over a variable that only describes it.

mod reading;

use serde::{Deserialize, Serialize};

use crate::cgroup::{CgroupJob, SlurmCgroup};
use crate::error::SlurmError;
use crate::ids::{JobId, LocalRank, NodeIndex, ProcId, StepId};
use crate::repeat::RepeatList;

use reading::Reader;

/// What kind of process inside a job this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Context {
    /// A task of a step that srun launched.
    Step,
    /// The batch script, or something it started itself.
    Batch,
    /// The shell of an interactive step.
    Interactive,
    /// The extern step.
    Extern,
    /// A shell of salloc: it owns an allocation but is not in it, and may run on a login node.
    AllocationShell,
}

/// Nodes and tasks of a whole job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLayout {
    /// The nodes, in hostlist notation as Slurm wrote them; [`crate::expand`] lists them.
    pub nodelist: Option<String>,
    /// Number of nodes.
    pub n_nodes: Option<u32>,
    /// Number of tasks.
    pub n_tasks: Option<u32>,
    /// Tasks on each node.
    pub tasks_per_node: Option<RepeatList>,
}

/// Nodes and tasks of a step, which may use part of the job only.
pub type StepLayout = NodeLayout;

/// Which rank this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskIdentity {
    /// Rank in the step.
    pub proc_id: ProcId,
    /// Rank on this node.
    pub local_rank: LocalRank,
}

/// The memory the job asked for, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "per", content = "mib")]
pub enum MemoryLimit {
    /// `SLURM_MEM_PER_NODE`; zero means all of the node.
    Node(u64),
    /// `SLURM_MEM_PER_CPU`.
    Cpu(u64),
    /// `SLURM_MEM_PER_GPU`.
    Gpu(u64),
}

/// Membership in a job array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrayTask {
    /// Id of the array (`SLURM_ARRAY_JOB_ID`).
    pub job: JobId,
    /// Index of this element (`SLURM_ARRAY_TASK_ID`).
    pub task: u32,
}

/// Membership in a heterogeneous job. Each component is a job with a number of its own, which is what cgroups and
/// accounting have; `SLURM_JOB_ID` is that of the first in all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HetGroup {
    /// Number of components (`SLURM_HET_SIZE`).
    pub size: u32,
    /// The component whose job id is ours, if the environment lists one.
    pub component: Option<u32>,
    /// The components' jobs (`SLURM_JOB_ID_HET_GROUP_n`), as far as they are known.
    #[serde(default)]
    pub jobs: Vec<JobId>,
}

/// Which variable named the GPUs, because they are not equally good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GpuSource {
    /// `SLURM_STEP_GPUS`: this node's, for this step.
    Step,
    /// `SLURM_JOB_GPUS` in the batch or interactive step: this node's.
    Job,
    /// `SLURM_JOB_GPUS` inherited by an srun step from the batch script: maybe another node's.
    Inherited,
}

/// Node-wide GPU numbers. `CUDA_VISIBLE_DEVICES` is no substitute: with `ConstrainDevices` it
/// counts within the step's cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpus {
    /// The numbers, as in the node's gres.conf.
    pub ids: Vec<u32>,
    /// Where they were read.
    pub source: GpuSource,
}

/// A job, and the place of this process in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// The job.
    pub job: JobId,
    /// The step; absent in a shell of salloc.
    pub step: Option<StepId>,
    /// What kind of process this is.
    pub context: Context,
    /// Name of the cluster.
    pub cluster: Option<String>,
    /// Login name of the job's owner.
    pub user: Option<String>,
    /// Numeric id of the job's owner.
    pub uid: Option<u32>,
    /// Account charged.
    pub account: Option<String>,
    /// Partition.
    pub partition: Option<String>,
    /// Quality of service.
    pub qos: Option<String>,
    /// Name of the job.
    pub job_name: Option<String>,
    /// Slurm's name of this node, which need not be the host name. Absent outside the allocation.
    pub node: Option<String>,
    /// Index of this node in the step.
    pub node_index: Option<NodeIndex>,
    /// Nodes and tasks of the job, as far as the environment still tells.
    pub job_layout: NodeLayout,
    /// Nodes and tasks of the srun step.
    pub step_layout: Option<StepLayout>,
    /// The rank; absent in a shell of salloc.
    pub task: Option<TaskIdentity>,
    /// Tasks of this step on this node, if that is known for sure.
    pub tasks_on_node: Option<u32>,
    /// CPUs of this job or step on this node.
    pub cpus_on_node: Option<u32>,
    /// CPUs asked for per task.
    pub cpus_per_task: Option<u32>,
    /// Memory asked for.
    pub memory: Option<MemoryLimit>,
    /// The array element.
    pub array: Option<ArrayTask>,
    /// The heterogeneous job.
    pub het: Option<HetGroup>,
    /// GPUs of this step on this node.
    pub gpus: Option<Gpus>,
    /// How often the job was requeued.
    pub restart_count: u32,
    /// Variables that could not be read, each with the reason.
    pub warnings: Vec<String>,
}

/// What comparing the environment with the cgroup showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmation {
    /// Both name the same job and step.
    Confirmed,
    /// The job agrees but the step does not: the step variables are left over from elsewhere, as in
    /// a job submitted from within a step. Step details were dropped and the cgroup's step taken.
    StepCorrected,
    /// The process is in another job than its environment says; the environment is stale.
    OtherJob,
    /// The cgroup names the job by SLUID and cannot be compared; the step agrees.
    JobUnknown,
}

impl Allocation {
    /// Reads the allocation from an environment.
    ///
    /// Gives `None` if there is no `SLURM_JOB_ID`, that is outside Slurm.
    ///
    /// # Errors
    /// A job, step, node or rank number that is present but not a number.
    pub fn from_env(env: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, SlurmError> {
        Reader::new(env).read()
    }

    /// Gives the tasks of the step, or of the job outside a step.
    pub fn n_tasks(&self) -> Option<u32> {
        self.step_layout.as_ref().map_or(self.job_layout.n_tasks, |layout| layout.n_tasks)
    }

    /// Gives the nodes of the step, or of the job outside a step.
    pub fn n_nodes(&self) -> Option<u32> {
        self.step_layout.as_ref().map_or(self.job_layout.n_nodes, |layout| layout.n_nodes)
    }

    /// Compares with what the kernel knows and lets the kernel win.
    pub fn confirm(&mut self, cgroup: &SlurmCgroup) -> Confirmation {
        let job_known = match cgroup.job {
            CgroupJob::Id(job) if job != self.job => {
                let of_component = |het: &HetGroup| het.jobs.iter().position(|other| *other == job);
                let Some(het) = &mut self.het else { return Confirmation::OtherJob };
                let Some(component) = of_component(het) else { return Confirmation::OtherJob };
                het.component = u32::try_from(component).ok();
                self.job = job;
                true
            }
            CgroupJob::Id(_) => true,
            CgroupJob::Sluid(_) => false,
        };
        if let Some(step) = cgroup.step
            && self.step != Some(step)
        {
            self.step = Some(step);
            self.context = Context::of(step);
            self.step_layout = None;
            self.task = None;
            self.node_index = None;
            self.tasks_on_node = (!step.is_numeric()).then_some(1);
            self.gpus = None;
            return Confirmation::StepCorrected;
        }
        if job_known { Confirmation::Confirmed } else { Confirmation::JobUnknown }
    }
}

impl Context {
    fn of(step: StepId) -> Self {
        match step {
            StepId::Numeric(_) | StepId::Pending => Self::Step,
            StepId::Batch => Self::Batch,
            StepId::Interactive => Self::Interactive,
            StepId::Extern => Self::Extern,
        }
    }
}

#[cfg(test)]
mod tests;
