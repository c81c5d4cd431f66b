//! One tier: decides what can run, runs it case by case, and looks for leaks after each.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::command;
use crate::environment::{PATIENCE, TestEnv};

/// What a case returns: nothing, or the story of its failure.
pub type Check = Result<(), Failed>;

/// Why a case did not run.
#[derive(Debug, Clone)]
pub struct Skip(pub String);

/// Makes a trial of a case. `ready` says whether it can run, or why not; it is asked when its turn comes.
pub fn trial<T: 'static>(
    env: &TestEnv,
    name: &str,
    ready: impl FnOnce() -> Result<T, Skip> + Send + 'static,
    case: impl FnOnce(T) -> Check + Send + 'static,
) -> Trial {
    let required = env.required();
    Trial::ignorable_test(name, move || match ready() {
        Ok(context) => case(context).map(|()| Completion::Completed),
        Err(Skip(reason)) if required => Err(Failed::from(format!("cannot run, and here it must: {reason}"))),
        Err(Skip(reason)) => Ok(Completion::ignored_with(format!("skipped: {reason}"))),
    })
}

/// Runs the trials of a tier one after the other (they watch the whole machine for leaks).
#[must_use]
pub fn run(trials: Vec<Trial>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Needs root.
///
/// # Errors
/// We are not.
pub fn root() -> Result<(), Skip> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err(Skip("needs root".into())) }
}

/// Needs the unprivileged user.
///
/// # Errors
/// It does not exist.
pub fn user(env: &TestEnv) -> Result<(), Skip> {
    env.uid().map(drop).map_err(|e| Skip(format!("{e}: run scripts/slurm-cluster up")))
}

/// Needs another program, which shall succeed with these arguments.
///
/// # Errors
/// It is not there, or fails.
pub fn succeeds(program: &str, arguments: &[&str]) -> Result<(), String> {
    let words = [program].into_iter().chain(arguments.iter().copied());
    command::run(command::words(words), PATIENCE)?.success().map(drop)
}

/// Needs the program under test.
///
/// # Errors
/// It is not there.
pub fn program(env: &TestEnv) -> Result<(), Skip> {
    if env.situla().is_file() {
        Ok(())
    } else {
        Err(Skip(format!(
            "no program at {}: run scripts/install-dist, or set SITULA_BIN",
            env.situla().display()
        )))
    }
}

/// Needs the plugin under test.
///
/// # Errors
/// It is not there.
pub fn plugin(env: &TestEnv) -> Result<(), Skip> {
    if env.spank().is_file() {
        Ok(())
    } else {
        Err(Skip(format!(
            "no plugin at {}: run scripts/install-dist, or set SITULA_SPANK",
            env.spank().display()
        )))
    }
}

/// Needs an image of `scripts/make-image`.
///
/// # Errors
/// It is not there.
pub fn image(env: &TestEnv, name: &str) -> Result<(), Skip> {
    if env.image_tree(name).join("etc/situla-image-witness").is_file() {
        Ok(())
    } else {
        Err(Skip(format!("no image {name}: run scripts/make-image")))
    }
}
