//! The records that the cases of a tier have left behind, judged by somebody else's reading of the published
//! schema.

use std::process::Command;

use super::Site;
use crate::command;
use crate::environment::PATIENCE;
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
