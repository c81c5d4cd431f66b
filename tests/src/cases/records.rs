//! The records that the cases of a tier have left behind, judged by somebody else's reading of the published
//! schema.

use std::fs;
use std::process::Command;

use super::Site;
use crate::command;
use crate::environment::PATIENCE;
use crate::outcome::{self, Exit};
use crate::tier::{self, Check, Skip};

/// Debian's Python, for which Debian has the validator.
const PYTHON: &str = "/usr/bin/python3";

/// Needs the validator.
///
/// # Errors
/// It is not there.
pub fn validator() -> Result<(), Skip> {
    tier::succeeds(PYTHON, &["-c", "import jsonschema"]).map_err(|_| Skip("needs python3-jsonschema".into()))
}

/// Tasks of a step on a node have one record together, whether they share a container or not, and whether they all fail
/// before they meet or only one does; what each starts one after another has one each.
///
/// # Errors
/// There are more or fewer, or one does not say how each task ended.
pub fn one_per_step_and_node(site: &Site) -> Check {
    /// Enough that they write at the same moment.
    const MANY: usize = 64;
    /// Class, the exits of all tasks, and how many errors.
    type Expected = (&'static str, Vec<Exit>, usize);
    let dir = site.env().work_dir("one-record")?;
    let tiny = site.images.path("tiny.sqsh");
    let image = format!("--container-image={tiny}");
    let nowhere = "--container-image=./no-such-image.sqsh";
    let script = |text: String| vec!["sh".to_owned(), "-c".to_owned(), text];
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let exits = |codes: &[(i64, usize)]| -> Vec<Exit> {
        codes.iter().flat_map(|(code, times)| std::iter::repeat_n(Exit::Code(*code), *times)).collect()
    };
    // What srun is asked for, with how many nodes and tasks on each; the records of each node, in order.
    let missing = ("engine-image-missing", exits(&[(125, MANY)]), MANY);
    let mount = ("engine-bind-source-missing", exits(&[(125, MANY)]), MANY);
    let no_option = ("engine-bad-option", exits(&[(1, 4)]), 4);
    let each_alone = ("app-error", exits(&[(3, 4)]), 0);
    let one_lost = ("engine-image-missing", exits(&[(0, 2), (255, 1), (0, 1)]), 1);
    let contain = format!("apptainer exec --contain {tiny} sh -c 'exit 3'");
    // The same name means an image to three tasks, and nothing to one.
    fs::copy(&tiny, dir.path().join("here.sqsh"))?;
    let one_elsewhere = "[ $SLURM_PROCID != 2 ] || cd /; apptainer exec ./here.sqsh true".to_owned();
    let several = format!(
        "apptainer exec {tiny} true; apptainer exec --contain {tiny} sh -c 'exit 3'; apptainer exec /nowhere.sif true"
    );
    let three =
        [("ok", exits(&[(0, 4)]), 0), each_alone.clone(), ("engine-image-missing", exits(&[(255, 4)]), 4)];
    let table: [(usize, usize, Vec<String>, Vec<Expected>); 6] = [
        (2, MANY, words(&[nowhere, "true"]), vec![missing]),
        (1, MANY, words(&[&image, "--container-mounts=/no/where:/x", "true"]), vec![mount]),
        (1, 4, words(&["apptainer", "--no-such-option", "exec", &tiny, "true"]), vec![no_option]),
        (1, 4, script(contain), vec![each_alone]),
        (1, 4, script(one_elsewhere), vec![one_lost]),
        (1, 4, script(several), three.into()),
    ];
    // At once: what takes time is the accounting of each.
    let mut started = Vec::new();
    for (n_nodes, n_tasks, asked, expected) in table {
        let layout = [format!("-N{n_nodes}"), format!("-n{}", n_nodes * n_tasks), "--overcommit".to_owned()];
        let running = site.cluster.start_srun(dir.path(), layout.into_iter().chain(asked.iter().cloned()))?;
        started.push((n_nodes, asked, expected, running));
    }
    for (n_nodes, asked, expected, (name, running)) in started {
        let job = site.cluster.job(&name, running.finish(PATIENCE)?)?;
        let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
        let wrong = |what: &str| {
            Err(format!("{asked:?}: {what}; the records say {records:#?}\n{}", job.output).into())
        };
        if records.len() != n_nodes * expected.len() {
            return wrong("not as many records as there should be");
        }
        // Those of a node are one after another.
        for of_node in records.chunks(expected.len()) {
            for (record, (class, exits, n_errors)) in of_node.iter().zip(&expected) {
                let errors = record.record["errors"].as_array().map_or(0, Vec::len);
                if record.class != *class || record.exits != *exits || errors != *n_errors {
                    return wrong(&format!("expected {class} with {n_errors} errors and {exits:?}"));
                }
                if record.record["ended"] != true {
                    return wrong("one is not over");
                }
            }
        }
    }
    site.cluster.settled()?;
    Ok(())
}

/// Every journal of this cluster, and every record made from one, is as the schema says.
///
/// # Errors
/// One is not, or there are none.
pub fn match_the_schema(site: &Site) -> Check {
    let env = site.env();
    let dir = env.home()?.join(".local/state/situla/records").join(site.cluster.name()?);
    let work = env.work_dir("schema")?;
    // Everything that `runs` makes of them; the user's other records count as well.
    let mut runs = site.cluster.user_command(work.path(), [env.situla().as_os_str()])?;
    runs.args(["runs", "--json", "--limit", "1000000"]);
    let runs = command::run(runs, PATIENCE)?.success()?;
    let records = work.write("runs.json", &runs.stdout)?;
    let mut validate = Command::new(PYTHON);
    validate.arg(env.file("tests/validate_records.py"));
    validate.arg(env.file("docs/formats/record.schema.json")).arg(records).arg(&dir);
    let output = command::run(validate, PATIENCE * 2)?.success()?;
    // A schema is judged by what came by.
    for seen in ["start ", "task-start ", "task-exit ", "engine-error ", "class ok "] {
        if !output.stdout.lines().any(|line| line.starts_with(seen)) {
            return Err(format!("no journal has {seen:?}\n{output}").into());
        }
    }
    Ok(())
}
