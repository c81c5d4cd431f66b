use super::*;
use crate::cgroup;

/// Reads a block of `NAME=value` lines.
fn read(text: &str) -> Result<Option<Allocation>, SlurmError> {
    let table: Vec<(String, String)> = text
        .lines()
        .filter_map(|line| line.trim().split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    Allocation::from_env(&|name| table.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone()))
}

fn allocation(text: &str) -> Allocation {
    read(text).expect("readable").expect("in a job")
}

/// The second task on the second of the three nodes that the step uses out of four.
const PARTIAL_STEP: &str = "
    SLURM_CLUSTER_NAME=demo
    SLURM_JOB_ID=42
    SLURM_JOBID=42
    SLURM_STEP_ID=3
    SLURM_STEPID=3
    SLURM_JOB_USER=alice
    SLURM_JOB_UID=1001
    SLURM_JOB_ACCOUNT=physics
    SLURM_JOB_PARTITION=main
    SLURM_JOB_NAME=container-demo
    SLURM_JOB_NODELIST=n[1-4]
    SLURM_JOB_NUM_NODES=4
    SLURM_NNODES=3
    SLURM_NTASKS=4
    SLURM_NPROCS=4
    SLURM_TASKS_PER_NODE=1,2,1
    SLURM_STEP_NODELIST=n[2-4]
    SLURM_STEP_NUM_NODES=3
    SLURM_STEP_NUM_TASKS=4
    SLURM_STEP_TASKS_PER_NODE=1,2,1
    SLURM_NODEID=1
    SLURM_PROCID=2
    SLURM_LOCALID=1
    SLURM_GTIDS=1,2
    SLURMD_NODENAME=n3
    SLURM_CPUS_ON_NODE=2
    SLURM_CPUS_PER_TASK=1
    SLURM_MEM_PER_NODE=500
    SLURM_STEP_GPUS=1
    SLURM_JOB_GPUS=0
    SLURM_RESTART_COUNT=2
    ENVIRONMENT=BATCH";

fn without(text: &str, names: &[&str]) -> String {
    let keep = |line: &&str| !names.iter().any(|name| line.trim().starts_with(&format!("{name}=")));
    text.lines().filter(keep).collect::<Vec<_>>().join("\n")
}

#[test]
fn no_job_is_no_allocation() {
    assert_eq!(read(""), Ok(None));
    assert_eq!(read("SLURM_JOB_ID="), Ok(None));
    assert_eq!(read("SLURM_CONF=/x\nSLURM_STEP_ID=bad"), Ok(None));
}

#[test]
fn a_partial_step_is_read_whole() {
    let got = allocation(PARTIAL_STEP);
    assert_eq!((got.job, got.step, got.context), (JobId(42), Some(StepId::Numeric(3)), Context::Step));
    assert_eq!(got.user.as_deref(), Some("alice"));
    assert_eq!(got.uid, Some(1001));
    assert_eq!((got.node.as_deref(), got.node_index), (Some("n3"), Some(NodeIndex(1))));
    assert_eq!(got.task, Some(TaskIdentity { proc_id: ProcId(2), local_rank: LocalRank(1) }));
    assert_eq!((got.n_nodes(), got.n_tasks(), got.job_layout.n_nodes), (Some(3), Some(4), Some(4)));
    assert_eq!(got.tasks_on_node, Some(2));
    assert_eq!(got.memory, Some(MemoryLimit::Node(500)));
    assert_eq!(got.gpus, Some(Gpus { ids: vec![1], source: GpuSource::Step }));
    assert_eq!(got.restart_count, 2);
    assert_eq!(got.warnings, Vec::<String>::new());
}

#[test]
fn tasks_on_this_node_from_each_source() {
    let table: &[(&str, &[&str], &str, Option<u32>)] = &[
        ("ranks alone", &["SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"], "", Some(2)),
        ("list alone", &["SLURM_GTIDS"], "", Some(2)),
        ("position from the node's name", &["SLURM_GTIDS", "SLURM_NODEID"], "", Some(2)),
        ("leftover ranks of the batch step", &["SLURM_GTIDS"], "SLURM_GTIDS=0", Some(2)),
        ("job list of the same size", &["SLURM_GTIDS", "SLURM_STEP_TASKS_PER_NODE"], "", Some(2)),
        (
            "job list of a preserved environment",
            &["SLURM_GTIDS", "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"],
            "SLURM_TASKS_PER_NODE=7(x4)",
            None,
        ),
        ("nothing", &["SLURM_GTIDS", "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"], "", None),
        ("a local rank that does not fit", &["SLURM_LOCALID"], "SLURM_LOCALID=2", None),
        (
            "a compressed list",
            &["SLURM_GTIDS", "SLURM_STEP_TASKS_PER_NODE"],
            "SLURM_STEP_TASKS_PER_NODE=3(x2),1",
            Some(3),
        ),
    ];
    for (name, drop, add, want) in table {
        let got = allocation(&format!("{}\n{add}", without(PARTIAL_STEP, drop)));
        assert_eq!(got.tasks_on_node, *want, "{name}");
    }
}

#[test]
fn disagreement_is_reported() {
    let text = without(PARTIAL_STEP, &["SLURM_STEP_TASKS_PER_NODE"]) + "\nSLURM_STEP_TASKS_PER_NODE=4(x3)";
    let got = allocation(&text);
    assert_eq!(got.tasks_on_node, Some(2));
    assert_eq!(got.warnings.len(), 1, "{:?}", got.warnings);
}

#[test]
fn contexts_without_a_numbered_step() {
    let batch = allocation(
        "SLURM_JOB_ID=5\nSLURMD_NODENAME=n1\nENVIRONMENT=BATCH\nSLURM_PROCID=0\nSLURM_LOCALID=0\nSLURM_NODEID=0\n\
         SLURM_GTIDS=0\nSLURM_NTASKS=8\nSLURM_TASKS_PER_NODE=2(x4)\nSLURM_JOB_GPUS=0,1",
    );
    assert_eq!(
        (batch.context, batch.step, batch.tasks_on_node),
        (Context::Batch, Some(StepId::Batch), Some(1))
    );
    assert_eq!(batch.n_tasks(), Some(8));
    assert_eq!(batch.gpus, Some(Gpus { ids: vec![0, 1], source: GpuSource::Job }));

    let shell = allocation("SLURM_JOB_ID=5\nSLURM_NNODES=2\nSLURM_TASKS_PER_NODE=1(x2)\nSLURM_NTASKS=2");
    assert_eq!((shell.context, shell.step, shell.task), (Context::AllocationShell, None, None));
    assert_eq!(shell.tasks_on_node, None);

    let interactive = allocation("SLURM_JOB_ID=5\nSLURM_STEP_ID=4294967290\nSLURMD_NODENAME=n1");
    assert_eq!((interactive.context, interactive.tasks_on_node), (Context::Interactive, Some(1)));
}

#[test]
fn arrays_and_heterogeneous_jobs() {
    let array = allocation("SLURM_JOB_ID=12\nSLURM_ARRAY_JOB_ID=10\nSLURM_ARRAY_TASK_ID=2");
    assert_eq!(array.array, Some(ArrayTask { job: JobId(10), task: 2 }));
    let het = allocation(
        "SLURM_JOB_ID=21\nSLURM_HET_SIZE=2\nSLURM_JOB_ID_HET_GROUP_0=20\nSLURM_JOB_ID_HET_GROUP_1=21",
    );
    let jobs = het.het.as_ref().map(|het| het.jobs.clone()).unwrap_or_default();
    assert_eq!(het.het, Some(HetGroup { size: 2, component: Some(1), jobs }));
    let huge = allocation("SLURM_JOB_ID=21\nSLURM_HET_SIZE=4294967295");
    assert_eq!(huge.het.map(|het| het.component), Some(None));
}

#[test]
fn gpus_of_the_batch_node_are_marked_as_inherited() {
    let got = allocation(&without(PARTIAL_STEP, &["SLURM_STEP_GPUS"]));
    assert_eq!(got.gpus, Some(Gpus { ids: vec![0], source: GpuSource::Inherited }));
}

#[test]
fn unreadable_identity_is_refused() {
    for line in [
        "SLURM_JOB_ID=abc",
        "SLURM_JOB_ID=-1",
        "SLURM_JOB_ID=1\nSLURM_STEP_ID=x",
        "SLURM_JOB_ID=1\nSLURM_STEP_ID=0\nSLURM_PROCID=x",
        "SLURM_JOB_ID=1\nSLURM_STEP_ID=0\nSLURM_LOCALID=1e3",
        "SLURM_JOB_ID=1\nSLURM_STEP_ID=0\nSLURM_NODEID=99999999999",
    ] {
        assert!(matches!(read(line), Err(SlurmError::BadIdentity { .. })), "{line}");
    }
}

#[test]
fn unreadable_description_is_a_warning() {
    let got =
        allocation("SLURM_JOB_ID=1\nSLURM_CPUS_ON_NODE=many\nSLURM_MEM_PER_NODE=lots\nSLURM_JOB_GPUS=x");
    assert_eq!((got.cpus_on_node, got.memory, got.gpus), (None, None, None));
    assert_eq!(got.warnings.len(), 3, "{:?}", got.warnings);
}

#[test]
fn the_cgroup_wins_over_the_environment() {
    let table = [
        ("/slurm/uid_1001/job_42/step_3/task_1", Confirmation::Confirmed),
        ("/slurm/uid_1001/job_42", Confirmation::Confirmed),
        ("/slurm/uid_1001/job_42/step_batch", Confirmation::StepCorrected),
        ("/slurm/uid_1001/job_43/step_3", Confirmation::OtherJob),
    ];
    for (path, want) in table {
        let mut got = allocation(PARTIAL_STEP);
        let place = cgroup::parse(&format!("1:freezer:{path}")).expect("well formed").expect("in a job");
        assert_eq!(got.confirm(&place), want, "{path}");
        if want == Confirmation::StepCorrected {
            assert_eq!((got.step, got.task, got.tasks_on_node), (Some(StepId::Batch), None, Some(1)));
        }
    }
}

#[test]
fn a_sluid_confirms_the_step_alone() {
    let scope = "0::/system.slice/slurmstepd.scope/s8FXKTA79XAR00";
    for (place, want) in [
        ("/step_3/user/task_1", Confirmation::JobUnknown),
        ("", Confirmation::JobUnknown),
        ("/step_batch/user/task_0", Confirmation::StepCorrected),
    ] {
        let mut got = allocation(PARTIAL_STEP);
        let (job, task) = (got.job, got.task);
        let placed = cgroup::parse(&format!("{scope}{place}")).expect("well formed").expect("in a job");
        assert_eq!(got.confirm(&placed), want, "{place}");
        // The number is the environment's, and what belongs to another step is not kept.
        let kept = if want == Confirmation::JobUnknown { task } else { None };
        assert_eq!((got.job, got.task), (job, kept), "{place}");
    }
}

#[test]
fn a_component_is_the_job_that_its_cgroup_names() {
    // As Slurm 22.05 tells the tasks of all components of one step.
    let told = "SLURM_JOB_ID=11\nSLURM_STEP_ID=0\nSLURM_HET_SIZE=2\nSLURM_JOB_ID_HET_GROUP_0=11\n\
                SLURM_JOB_ID_HET_GROUP_1=12\nSLURM_PROCID=2\nSLURM_LOCALID=0\nSLURM_NODEID=2";
    for (job, want) in [
        (11, Ok((11, Some(0)))),
        (12, Ok((12, Some(1)))),
        // Of a stranger, although it is between or beside them.
        (10, Err(Confirmation::OtherJob)),
        (13, Err(Confirmation::OtherJob)),
    ] {
        let mut got = allocation(told);
        let place = cgroup::parse(&format!("1:freezer:/slurm/uid_1/job_{job}/step_0"));
        let confirmed = got.confirm(&place.expect("well formed").expect("in a job"));
        match want {
            Ok((job, component)) => {
                assert_eq!(confirmed, Confirmation::Confirmed);
                assert_eq!((got.job.0, got.het.and_then(|het| het.component)), (job, component));
            }
            Err(want) => assert_eq!(confirmed, want),
        }
    }
}

#[test]
fn an_allocation_survives_json_shaped_storage() {
    // Serde's own value type keeps this crate free of a format; equality is what matters.
    let got = allocation(PARTIAL_STEP);
    let json = serde_json::to_string(&got).expect("serialisable");
    assert_eq!(serde_json::from_str::<Allocation>(&json).expect("readable"), got);
}
