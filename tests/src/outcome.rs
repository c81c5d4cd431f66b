//! Reads our records through `situla show … --json`, as any user's script would.

use std::fmt;

use serde_json::Value;

use crate::cluster::Cluster;

/// How one task of a record ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With a status.
    Code(i64),
    /// By a signal.
    Signal(i64),
}

/// What one record (a step on a node) says.
#[derive(Clone)]
pub struct Outcome {
    /// The class, such as `ok` or `engine-image-missing`.
    pub class: String,
    /// The end of every task that was seen, by local rank.
    pub exits: Vec<Exit>,
    /// The whole record, for messages.
    pub text: String,
    /// The whole record, as `situla show --json` has it.
    pub record: Value,
}

impl fmt::Debug for Outcome {
    /// What tells records apart; a whole one fills screens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.record["id"], self.class, self.exits)?;
        write!(f, " {} errors {}", self.record["outcome"], self.record["errors"])
    }
}

/// The records of a step, one for each node, as the user sees them.
///
/// # Errors
/// `situla show` fails, prints no JSON, or has no record of that step.
pub fn records(cluster: &Cluster, step: &str) -> Result<Vec<Outcome>, String> {
    let home = cluster.env().home()?.to_path_buf();
    let mut command = cluster.user_command(&home, [cluster.env().situla().as_os_str()])?;
    // The user's records are of both variants' clusters, and job numbers repeat.
    command.args(["show", &format!("{}/{step}", cluster.name()?), "--json"]);
    let shown = crate::command::run(command, crate::environment::PATIENCE)?.success()?;
    let value: Value = serde_json::from_str(&shown.stdout).map_err(|e| format!("{e}\n{shown}"))?;
    // One record, a list of them, or a list inside an object of the whole listing.
    let list = match &value {
        Value::Array(list) => list.clone(),
        Value::Object(object) => match object.get("records").and_then(Value::as_array) {
            Some(list) => list.clone(),
            None => vec![value.clone()],
        },
        _ => Vec::new(),
    };
    let outcomes: Vec<Outcome> = list.iter().filter_map(parse).collect();
    if outcomes.is_empty() || outcomes.len() != list.len() {
        return Err(format!("no outcome in what this shows\n{shown}"));
    }
    Ok(outcomes)
}

fn parse(record: &Value) -> Option<Outcome> {
    // A listing may wrap the record with its name.
    let record = record.get("record").unwrap_or(record);
    let exit = |task: &Value| {
        let exit = task.get("exit")?;
        let number = |name: &str| exit.get(name).and_then(Value::as_i64);
        number("code").map(Exit::Code).or_else(|| number("signal").map(Exit::Signal))
    };
    Some(Outcome {
        class: record.get("outcome")?.get("class")?.as_str()?.to_owned(),
        exits: record.get("tasks")?.as_array()?.iter().filter_map(exit).collect(),
        text: serde_json::to_string_pretty(record).unwrap_or_default(),
        record: record.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_class_and_exits() {
        let record = serde_json::json!({
            "outcome": {"class": "signal"},
            "tasks": [{"exit": {"code": 3}}, {"exit": {"signal": 15}}, {"exit": null}],
        });
        let outcome = parse(&record).unwrap();
        assert_eq!(
            (outcome.class.as_str(), outcome.exits),
            ("signal", vec![Exit::Code(3), Exit::Signal(15)])
        );
        assert!(parse(&serde_json::json!({"tasks": []})).is_none());
    }
}
