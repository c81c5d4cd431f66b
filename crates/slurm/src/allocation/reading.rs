//! Reading one environment into an [`Allocation`].

use super::{
    Allocation, ArrayTask, Context, GpuSource, Gpus, HetGroup, MemoryLimit, NodeLayout, TaskIdentity,
};
use crate::error::SlurmError;
use crate::hostlist;
use crate::ids::{JobId, LocalRank, NodeIndex, ProcId, StepId, parse_digits};
use crate::repeat::RepeatList;

/// Numbers accepted in a list of ids (GPUs of a node, ranks of a node).
const MAX_LIST: usize = 1 << 16;

/// Components of a heterogeneous job that are looked up; Slurm's own limit is 128.
const MAX_HET_COMPONENTS: u32 = 128;

pub(super) struct Reader<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { env, warnings: Vec::new() }
    }

    pub(super) fn read(mut self) -> Result<Option<Allocation>, SlurmError> {
        let job = match self.identity("SLURM_JOB_ID", "job id")? {
            Some(job) => JobId(job),
            None => match self.identity("SLURM_JOBID", "job id")? {
                Some(job) => JobId(job),
                None => return Ok(None),
            },
        };
        let node = self.text("SLURMD_NODENAME");
        let step = self.step(node.is_some())?;
        let context = step.map_or(Context::AllocationShell, Context::of);
        let task = self.task(context)?;
        let step_layout = (context == Context::Step).then(|| self.step_layout());
        let job_layout = self.job_layout();
        let node_index = self.node_index(context, node.as_deref(), step_layout.as_ref())?;
        let tasks_on_node = self.tasks_on_node(context, node_index, task, step_layout.as_ref(), &job_layout);

        Ok(Some(Allocation {
            job,
            step,
            context,
            cluster: self.text("SLURM_CLUSTER_NAME"),
            user: self.text("SLURM_JOB_USER"),
            uid: self.number("SLURM_JOB_UID"),
            account: self.text("SLURM_JOB_ACCOUNT"),
            partition: self.text("SLURM_JOB_PARTITION"),
            qos: self.text("SLURM_JOB_QOS"),
            job_name: self.text("SLURM_JOB_NAME"),
            node,
            node_index,
            job_layout,
            step_layout,
            task,
            tasks_on_node,
            cpus_on_node: self.number("SLURM_CPUS_ON_NODE"),
            cpus_per_task: self.number("SLURM_CPUS_PER_TASK"),
            memory: self.memory(),
            array: self.array(),
            het: self.het(job),
            gpus: self.gpus(context),
            restart_count: self.number("SLURM_RESTART_COUNT").unwrap_or(0),
            warnings: self.warnings,
        }))
    }

    /// An empty variable counts as absent: that is how scripts switch one off.
    fn text(&self, name: &str) -> Option<String> {
        (self.env)(name).filter(|value| !value.is_empty())
    }

    fn identity(&self, variable: &'static str, what: &'static str) -> Result<Option<u32>, SlurmError> {
        let Some(value) = self.text(variable) else { return Ok(None) };
        match parse_digits(&value) {
            Some(number) => Ok(Some(number)),
            None => Err(bad_identity(variable, what, &value)),
        }
    }

    fn number(&mut self, name: &str) -> Option<u32> {
        let value = self.text(name)?;
        let number = parse_digits(&value);
        if number.is_none() {
            self.warn(name, &value, "not a number");
        }
        number
    }

    fn warn(&mut self, name: &str, value: &str, reason: &str) {
        let value: String = value.chars().take(60).collect();
        self.warnings.push(format!("{name}={value:?} ignored: {reason}"));
    }

    fn step(&self, on_a_node: bool) -> Result<Option<StepId>, SlurmError> {
        for variable in ["SLURM_STEP_ID", "SLURM_STEPID"] {
            if let Some(value) = self.text(variable) {
                let step = value.parse().map_err(|_| bad_identity(variable, "step id", &value))?;
                return Ok(Some(step));
            }
        }
        // The batch step is given no step id; slurmd sets ENVIRONMENT and its node's name for it.
        let batch = on_a_node && self.text("ENVIRONMENT").as_deref() == Some("BATCH");
        Ok(batch.then_some(StepId::Batch))
    }

    fn task(&self, context: Context) -> Result<Option<TaskIdentity>, SlurmError> {
        if context == Context::AllocationShell {
            return Ok(None);
        }
        let proc_id = self.identity("SLURM_PROCID", "rank")?;
        let local_rank = self.identity("SLURM_LOCALID", "local rank")?;
        Ok(proc_id
            .zip(local_rank)
            .map(|(proc_id, local)| TaskIdentity { proc_id: ProcId(proc_id), local_rank: LocalRank(local) }))
    }

    fn step_layout(&mut self) -> NodeLayout {
        NodeLayout {
            nodelist: self.text("SLURM_STEP_NODELIST"),
            n_nodes: self.number("SLURM_STEP_NUM_NODES"),
            n_tasks: self.number("SLURM_STEP_NUM_TASKS"),
            tasks_per_node: self.repeat("SLURM_STEP_TASKS_PER_NODE"),
        }
    }

    fn job_layout(&mut self) -> NodeLayout {
        let first = |this: &mut Self, names: [&str; 2]| match this.number(names[0]) {
            Some(number) => Some(number),
            None => this.number(names[1]),
        };
        NodeLayout {
            nodelist: self.text("SLURM_JOB_NODELIST").or_else(|| self.text("SLURM_NODELIST")),
            n_nodes: first(self, ["SLURM_JOB_NUM_NODES", "SLURM_NNODES"]),
            n_tasks: first(self, ["SLURM_NTASKS", "SLURM_NPROCS"]),
            tasks_per_node: self.repeat("SLURM_TASKS_PER_NODE"),
        }
    }

    fn repeat(&mut self, name: &str) -> Option<RepeatList> {
        let value = self.text(name)?;
        match value.parse() {
            Ok(list) => Some(list),
            Err(error) => {
                self.warn(name, &value, &format!("{error}"));
                None
            }
        }
    }

    fn node_index(
        &mut self,
        context: Context,
        node: Option<&str>,
        layout: Option<&NodeLayout>,
    ) -> Result<Option<NodeIndex>, SlurmError> {
        if context == Context::AllocationShell {
            return Ok(None);
        }
        if let Some(index) = self.identity("SLURM_NODEID", "node index")? {
            return Ok(Some(NodeIndex(index)));
        }
        let (Some(node), Some(nodelist)) = (node, layout.and_then(|layout| layout.nodelist.as_deref()))
        else {
            return Ok(None);
        };
        match hostlist::expand(nodelist) {
            Ok(hosts) => {
                let position = hosts.iter().position(|host| host == node);
                Ok(position.and_then(|i| u32::try_from(i).ok()).map(NodeIndex))
            }
            Err(error) => {
                self.warn("SLURM_STEP_NODELIST", nodelist, &format!("{error}"));
                Ok(None)
            }
        }
    }

    /// Counts the ranks that will come to this node's container.
    ///
    /// `SLURM_GTIDS` is written by this node's slurmstepd for exactly this step, so it is the best
    /// witness, if it lists our own rank (a leftover of the batch step says `0`). The per-node list
    /// comes next. `SLURM_TASKS_PER_NODE` alone describes the *job* when srun ran with
    /// `--preserve-env`, so it serves only if it covers as many nodes as the step has.
    fn tasks_on_node(
        &mut self,
        context: Context,
        node_index: Option<NodeIndex>,
        task: Option<TaskIdentity>,
        step: Option<&NodeLayout>,
        job: &NodeLayout,
    ) -> Option<u32> {
        match context {
            Context::AllocationShell => return None,
            Context::Batch | Context::Interactive | Context::Extern => return Some(1),
            Context::Step => {}
        }
        let own_rank = task.map(|task| task.proc_id.0);
        let ranks =
            self.id_list("SLURM_GTIDS").filter(|ids| own_rank.is_some_and(|rank| ids.contains(&rank)));
        let from_ranks = ranks.and_then(|ids| u32::try_from(ids.len()).ok());

        let step = step?;
        let from_list = step.tasks_per_node.as_ref().or_else(|| {
            let list = job.tasks_per_node.as_ref()?;
            (list.n_nodes() == u64::from(step.n_nodes?)).then_some(list)
        });
        let from_list = node_index.zip(from_list).and_then(|(index, list)| list.get(index));

        if let (Some(ranks), Some(list)) = (from_ranks, from_list)
            && ranks != list
        {
            self.warn(
                "SLURM_STEP_TASKS_PER_NODE",
                &list.to_string(),
                "SLURM_GTIDS lists another number of ranks",
            );
        }
        let count = from_ranks.or(from_list)?;
        if let Some(task) = task
            && task.local_rank.0 >= count
        {
            self.warn(
                "SLURM_LOCALID",
                &task.local_rank.to_string(),
                "not below the number of tasks on this node",
            );
            return None;
        }
        Some(count)
    }

    fn memory(&mut self) -> Option<MemoryLimit> {
        // Slurm sets one of the three.
        self.mebibytes("SLURM_MEM_PER_NODE")
            .map(MemoryLimit::Node)
            .or_else(|| self.mebibytes("SLURM_MEM_PER_CPU").map(MemoryLimit::Cpu))
            .or_else(|| self.mebibytes("SLURM_MEM_PER_GPU").map(MemoryLimit::Gpu))
    }

    fn mebibytes(&mut self, name: &str) -> Option<u64> {
        let value = self.text(name)?;
        let mib = parse_mebibytes(&value);
        if mib.is_none() {
            self.warn(name, &value, "not a memory size");
        }
        mib
    }

    fn array(&mut self) -> Option<ArrayTask> {
        let job = JobId(self.number("SLURM_ARRAY_JOB_ID")?);
        Some(ArrayTask { job, task: self.number("SLURM_ARRAY_TASK_ID")? })
    }

    fn het(&mut self, job: JobId) -> Option<HetGroup> {
        let size = self.number("SLURM_HET_SIZE")?;
        let read = |i: u32| {
            let id = self.text(&format!("SLURM_JOB_ID_HET_GROUP_{i}"));
            id.and_then(|id| parse_digits(&id)).map(JobId)
        };
        // They count without gaps.
        let jobs: Vec<JobId> = (0..size.min(MAX_HET_COMPONENTS)).map_while(read).collect();
        let component = jobs.iter().position(|other| *other == job).and_then(|i| u32::try_from(i).ok());
        Some(HetGroup { size, component, jobs })
    }

    fn gpus(&mut self, context: Context) -> Option<Gpus> {
        if let Some(ids) = self.id_list("SLURM_STEP_GPUS") {
            return Some(Gpus { ids, source: GpuSource::Step });
        }
        let ids = self.id_list("SLURM_JOB_GPUS")?;
        let source = if context == Context::Step { GpuSource::Inherited } else { GpuSource::Job };
        Some(Gpus { ids, source })
    }

    /// Reads `0,2-3` into numbers.
    fn id_list(&mut self, name: &str) -> Option<Vec<u32>> {
        let value = self.text(name)?;
        let ids = parse_id_list(&value);
        if ids.is_none() {
            self.warn(name, &value, "not a list of numbers");
        }
        ids
    }
}

fn bad_identity(variable: &'static str, what: &'static str, value: &str) -> SlurmError {
    SlurmError::BadIdentity { variable, what, value: value.chars().take(60).collect() }
}

fn parse_id_list(text: &str) -> Option<Vec<u32>> {
    let mut ids = Vec::new();
    for element in text.split(',') {
        let (first, last) = element.split_once('-').unwrap_or((element, element));
        let (first, last) = (parse_digits(first)?, parse_digits(last)?);
        let count = usize::try_from(last.checked_sub(first)?).ok()?;
        if count >= MAX_LIST - ids.len().min(MAX_LIST) {
            return None;
        }
        ids.extend(first..=last);
    }
    Some(ids)
}

/// Reads a size in MiB, with the suffixes that the matching srun options take.
fn parse_mebibytes(text: &str) -> Option<u64> {
    let (digits, unit) = match text.chars().last()? {
        '0'..='9' => (text, 'M'),
        letter => (text.strip_suffix(letter)?, letter.to_ascii_uppercase()),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        'K' => Some(number / 1024),
        'M' => Some(number),
        'G' => number.checked_mul(1 << 10),
        'T' => number.checked_mul(1 << 20),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_lists() {
        let sizes = [
            ("2000", Some(2000)),
            ("2G", Some(2048)),
            ("1t", Some(1 << 20)),
            ("4096K", Some(4)),
            ("0", Some(0)),
            ("", None),
            ("G", None),
            ("-1", None),
            ("1.5G", None),
            ("1é", None),
            ("99999999999999999999", None),
            ("18446744073709551615T", None),
        ];
        for (text, want) in sizes {
            assert_eq!(parse_mebibytes(text), want, "{text:?}");
        }
        let lists = [
            ("0", Some(vec![0])),
            ("0,2-4", Some(vec![0, 2, 3, 4])),
            ("", None),
            ("0,", None),
            ("3-1", None),
            ("0-4294967295", None),
            ("GPU-1234", None),
        ];
        for (text, want) in lists {
            assert_eq!(parse_id_list(text), want, "{text:?}");
        }
    }
}
