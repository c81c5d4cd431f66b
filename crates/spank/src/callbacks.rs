//! The callbacks that Slurm calls, and the data by which it knows the plugin.

use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::ffi::{
    Arguments, Context, FAILURE, Handle, SUCCESS, TaskEnd, context, n_options, option_argument,
    plugin_arguments, report_error, set_own_variable, tell_user,
};
use crate::killed;
use crate::multi_prog::{CommandLine, Programs, is_led_by, is_table, led_by};
use crate::options::{
    CONFIG_VARIABLE, ContainerOption, EDF_PATH_VARIABLE, Given, PROGRAM_VARIABLE, PROGRAMS_VARIABLE,
    PROTOCOL_VARIABLE, SCOPE_VARIABLE, Setting, Settings,
};

/// `SPANK_PLUGIN(situla, 1)`: Slurm looks these symbols up by name.
#[unsafe(no_mangle)]
static plugin_name: [u8; 7] = *b"situla\0";
#[unsafe(no_mangle)]
static plugin_type: [u8; 6] = *b"spank\0";
/// `SLURM_VERSION_NUMBER` of the Slurm that this plugin was built for: Slurm refuses a plugin of
/// another major or minor version.
#[unsafe(no_mangle)]
static plugin_version: u32 = parse_version(env!("SITULA_SLURM_VERSION"));
#[unsafe(no_mangle)]
static spank_plugin_version: u32 = 1;

/// How this plugin speaks to the trampoline: which variables there are, and what they mean. A trampoline refuses numbers
/// that it does not know. A symbol, so that it can be read from the file.
#[unsafe(no_mangle)]
static situla_protocol: u32 = 2;

/// `SLURM_VERSION_NUM(major, minor, micro)`: a byte each.
const fn parse_version(text: &str) -> u32 {
    let bytes = text.as_bytes();
    let mut parts = [0u32; 3];
    let (mut part, mut index) = (0, 0);
    while index < bytes.len() && part < 3 {
        match bytes[index] {
            b'.' => part += 1,
            digit if digit.is_ascii_digit() => parts[part] = parts[part] * 10 + (digit - b'0') as u32,
            _ => break,
        }
        index += 1;
    }
    (parts[0] << 16) | (parts[1] << 8) | parts[2]
}

/// What the plugin knows in this process.
struct State {
    given: Given,
    settings: Option<Settings>,
    /// An error of an early callback, to be raised where Slurm takes notice of it.
    pending: Option<String>,
    /// Which options this process has heard of.
    heard: [bool; ContainerOption::ALL.len()],
    /// Options of one command line that contradict each other.
    conflict: Option<String>,
    /// In srun, sbatch and salloc: what the first component of the command line asks for.
    first: Option<FirstComponent>,
    /// In srun: the programs so far.
    programs: Programs,
    /// In srun: whether the component that was parsed last was the first, and has its programs from a table.
    from_table: bool,
}

impl State {
    /// Takes an option that was given: the one with this number.
    fn take(&mut self, number: usize, option: ContainerOption, value: CString, context: Context) {
        let prefix = self.settings.as_ref().map_or("", |settings| settings.prefix.as_str());
        // What salloc or sbatch was told stands in the variables that they have set, all of it; Slurm has the last value of
        // each option alone, and nothing would tell it from what this command line says.
        let is_first = self.heard.get_mut(number).is_some_and(|heard| !std::mem::replace(heard, true));
        if context != Context::Remote && is_first && option.is_replayed(prefix) {
            return;
        }
        let former = self.given.get(option.setting).cloned();
        self.given.set(option.setting, value);
        let overrides = former.is_some_and(|former| self.given.get(option.setting) != Some(&former));
        // In sbatch a command line overrides the lines of its script.
        if overrides && !option.setting.is_list() && context == Context::Local {
            let same = ContainerOption::ALL.into_iter().filter(|other| other.setting == option.setting);
            let names: Vec<String> = same.map(|other| format!("--{}", other.name(prefix))).collect();
            self.conflict = Some(format!("{} was given twice, with different values", names.join(" or ")));
        }
    }
}

/// A component of a heterogeneous command line, or the whole of an ordinary one.
#[derive(Clone)]
struct FirstComponent {
    /// What the environment had, before this plugin set anything in it.
    environment: Vec<(CString, CString)>,
    /// What it asks for, with that.
    complete: Given,
}

static STATE: Mutex<State> = Mutex::new(State {
    given: Given::NOTHING,
    settings: None,
    pending: None,
    heard: [false; ContainerOption::ALL.len()],
    conflict: None,
    first: None,
    programs: Programs::NOTHING,
    from_table: false,
});

fn with_state<T>(act: impl FnOnce(&mut State) -> T) -> T {
    act(&mut STATE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Runs a callback so that no panic reaches Slurm.
fn guarded(body: impl FnOnce() -> Result<(), String>, fail: impl FnOnce(&str)) -> c_int {
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| Err("internal error".to_owned()));
    match result {
        Ok(()) => SUCCESS,
        Err(message) => {
            fail(&format!("situla: {message}"));
            FAILURE
        }
    }
}

/// Called first in every context: registers the options.
///
/// # Safety
/// Called by Slurm alone, with a valid handle and `ac` terminated strings in `av`.
#[unsafe(no_mangle)]
unsafe extern "C" fn slurm_spank_init(spank: Handle, ac: c_int, av: *mut *mut c_char) -> c_int {
    // SAFETY: Slurm passes the words of plugstack.conf.
    let arguments = unsafe { plugin_arguments(ac, av) };
    guarded(|| init(spank, &arguments), report_error)
}

fn init(spank: Handle, arguments: &[String]) -> Result<(), String> {
    let context = context();
    if context == Context::Other {
        return Ok(());
    }
    // A flaw of the line is told to who asks for a container. In srun it would stop everybody's steps here, and on
    // the node it would drain it, or let the step look completed.
    let settings = Settings::parse(arguments);
    let has_options = context != Context::Allocator || settings.sbatch_support;
    for (value, option) in (0..).zip(ContainerOption::ALL).filter(|_| has_options) {
        let name = option.name(&settings.prefix);
        let usage = format!("[situla] {}", option.usage);
        if !spank.register(&name, option.arginfo, &usage, value, option_given) {
            let message = format!("the option --{name} cannot be registered; does another plugin have it?");
            // Nor does a word that was not understood, which may have been the prefix, stop everybody.
            if context != Context::Remote && settings.flaw.is_none() {
                return Err(message);
            }
            with_state(|state| state.pending = Some(message));
            break;
        }
    }
    with_state(|state| state.settings = Some(settings));
    Ok(())
}

/// Called for every option that was given, in srun or sbatch and again on the node.
extern "C" fn option_given(value: c_int, argument: *const c_char, _remote: c_int) -> c_int {
    // SAFETY: Slurm passes null or the option's argument.
    let argument = unsafe { option_argument(argument) };
    let result = catch_unwind(|| {
        let number = usize::try_from(value).unwrap_or(usize::MAX);
        let option = ContainerOption::ALL.get(number).copied();
        if let Some((option, value)) = option.and_then(|option| Some((option, option.value(argument)?))) {
            with_state(|state| state.take(number, option, value, context()));
        }
    });
    if result.is_ok() { SUCCESS } else { FAILURE }
}

/// Called when all options of a component are known: refuses in srun and sbatch what cannot work.
#[unsafe(no_mangle)]
extern "C" fn slurm_spank_init_post_opt(_spank: Handle, _ac: c_int, _av: *mut *mut c_char) -> c_int {
    guarded(init_post_opt, report_error)
}

fn init_post_opt() -> Result<(), String> {
    let context = context();
    if !matches!(context, Context::Local | Context::Allocator) {
        return Ok(());
    }
    // What was given belongs to this component; Slurm goes on to the next one after this.
    let (given, conflict, settings, first) = with_state(|state| {
        let given = std::mem::replace(&mut state.given, Given::NOTHING);
        (given, state.conflict.take(), state.settings.clone(), state.first.clone())
    });
    let Some(settings) = settings else { return Ok(()) };
    if context == Context::Allocator && !settings.sbatch_support {
        // What an outer step was told is not for this script either.
        let is_set = |name: &&CString| std::env::var_os(OsStr::from_bytes(name.as_bytes())).is_some();
        let names = Setting::ALL.map(Setting::carried_variable);
        names.iter().filter(is_set).for_each(|name| set_own_variable(name, c""));
        return Ok(());
    }
    let prefix = settings.prefix.as_str();
    if let Some(conflict) = conflict {
        return Err(conflict);
    }
    let complete = match &first {
        None => {
            let environment = own_variables();
            let mut complete = given.complete(|name| Ok(find(&environment, name)))?;
            if complete.asks_for_container() {
                settings.admit()?;
                check(&mut complete, &settings)?;
            }
            let component = FirstComponent { environment, complete: complete.clone() };
            with_state(|state| state.first = Some(component));
            complete
        }
        Some(first) => {
            let mut complete = given.complete(|name| Ok(find(&first.environment, name)))?;
            if complete.asks_for_container() {
                settings.admit()?;
                check(&mut complete, &settings)?;
            }
            complete
        }
    };
    if let Some(first) = &first {
        same_container(&first.complete, &complete, prefix)?;
    }
    if !complete.asks_for_container() {
        return match given.orphans().next() {
            Some(setting) => Err(format!(
                "--{} has no effect without an image; add --{prefix}-image=IMAGE",
                setting.option(prefix)
            )),
            None => Ok(()),
        };
    }
    if complete.get(Setting::Environment).is_some() {
        // What the file inherits is found by this.
        let path = std::env::var_os("EDF_PATH").and_then(|path| CString::new(path.into_encoded_bytes()).ok());
        set_own_variable(EDF_PATH_VARIABLE, &path.unwrap_or_default());
    }
    // All of them: the node takes an empty one for what was not asked for, whatever an outer step has left there.
    for setting in Setting::ALL {
        set_own_variable(
            &setting.carried_variable(),
            complete.get(setting).map_or(c"", |value| value.as_c_str()),
        );
    }
    if context == Context::Local {
        let line = std::fs::read("/proc/self/cmdline").unwrap_or_default();
        let line = line.strip_suffix(b"\0").unwrap_or(&line);
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        // A loader that was started with srun as an argument has taken its own words away: those that the process got.
        let n_of_loader = match std::env::args_os().len() {
            0 => 0,
            n_of_srun => words.len().saturating_sub(n_of_srun),
        };
        let words = words.get(n_of_loader..).unwrap_or_default().to_vec();
        tell_programs(CommandLine { words: &words, n_own: n_options() }, first.is_none(), prefix)?;
    }
    Ok(())
}

/// Asks the trampoline whether the options make sense, so that nobody waits in a queue for a refusal, and which file an
/// environment is, so that the nodes take the same. Where it cannot be asked, as on a host that submits jobs and runs
/// none, the nodes will tell.
fn check(complete: &mut Given, settings: &Settings) -> Result<(), String> {
    /// Who waits in srun must not wait for a file system that does not answer.
    const PATIENCE: Duration = Duration::from_millis(900);
    if check_trampoline(settings).is_err() {
        return Ok(());
    }
    let mut command = Command::new(OsStr::from_bytes(settings.trampoline.as_bytes()));
    command.arg("task-check").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    for (name, value) in words(settings, complete) {
        let name = OsStr::from_bytes(name.as_bytes());
        match value {
            Some(value) => command.env(name, OsStr::from_bytes(value.as_bytes())),
            None => command.env_remove(name),
        };
    }
    // Nor does it count here what an outer srun has sent.
    for name in [PROGRAM_VARIABLE, EDF_PATH_VARIABLE, SCOPE_VARIABLE] {
        command.env_remove(OsStr::from_bytes(name.to_bytes()));
    }
    let Ok(mut child) = command.spawn() else { return Ok(()) };
    let begun = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(None) if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(1)),
            Ok(Some(status)) => break status,
            _ => {
                // One that cannot be killed is left to itself.
                let _ = child.kill();
                return Ok(());
            }
        }
    };
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        // One line: it has been in the pipe since before the process ended.
        let _ = stdout.take(MAX_ANSWER).read_to_end(&mut said);
    }
    match (status.code(), said.trim_ascii()) {
        (Some(0 | 1), b"") => Ok(()),
        (Some(1), refusal) => Err(String::from_utf8_lossy(refusal).into_owned()),
        (Some(0), file) => {
            if let Ok(file) = CString::new(file) {
                complete.set(Setting::Environment, file);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What the trampoline is told: what was asked for, and what this plugin itself has to say.
fn words(settings: &Settings, complete: &Given) -> Vec<(CString, Option<CString>)> {
    let asked = Setting::ALL
        .map(|setting| (setting.task_variable(), settings.value(complete, setting).map(CStr::to_owned)));
    // By the loaded file, whatever the compiler knows of it.
    let protocol = std::hint::black_box(&situla_protocol).to_string();
    let protocol = (PROTOCOL_VARIABLE.to_owned(), CString::new(protocol).ok());
    let config = (CONFIG_VARIABLE.to_owned(), settings.config.clone());
    asked.into_iter().chain([protocol, config]).collect()
}

/// Bytes of an answer; more than a pipe holds would keep the process that says it.
const MAX_ANSWER: u64 = 64 * 1024;

/// Slurm has one set of options for all components of a heterogeneous step, and the last one counts.
fn same_container(first: &Given, other: &Given, prefix: &str) -> Result<(), String> {
    let differs = |setting: &Setting| first.get(*setting) != other.get(*setting);
    match Setting::ALL.into_iter().find(differs) {
        Some(setting) => Err(format!(
            "--{} differs between the components of a heterogeneous command line, and Slurm would \
             use one for all; give each component the same, or start an srun for each container",
            setting.option(prefix)
        )),
        None => Ok(()),
    }
}

/// Tells the node what it needs to know a step of `--multi-prog` from others. Of several components the table of one alone
/// can be handed on, so that is refused where it is certain.
fn tell_programs(line: CommandLine<'_>, is_first: bool, prefix: &str) -> Result<(), String> {
    let (asked, programs) = with_state(|state| {
        state.programs.add(line);
        let from_table = is_first && line.surely_asks();
        (std::mem::replace(&mut state.from_table, from_table), state.programs.clone())
    });
    if asked {
        return Err(format!(
            "--{prefix}-image cannot be combined with --multi-prog in a heterogeneous step; start an srun for each component"
        ));
    }
    if let Ok(text) = CString::new(programs.to_text())
        && !programs.is_empty()
    {
        set_own_variable(PROGRAMS_VARIABLE, &text);
    }
    Ok(())
}

/// Called in srun when there is a step, before it launches tasks: once, also for several components, with the words of one.
#[unsafe(no_mangle)]
extern "C" fn slurm_spank_local_user_init(spank: Handle, _ac: c_int, _av: *mut *mut c_char) -> c_int {
    guarded(|| local_user_init(spank), report_error)
}

/// Leads the programs of a table to the container.
fn local_user_init(spank: Handle) -> Result<(), String> {
    let (is_inside, programs, settings) = with_state(|state| {
        let is_inside = state.first.as_ref().is_some_and(|first| first.complete.asks_for_container());
        (is_inside, state.programs.clone(), state.settings.clone())
    });
    let (Some(settings), Some(arguments)) = (settings, spank.arguments()) else { return Ok(()) };
    // Where nothing was counted, a guess is not enough to change words: the node refuses what it takes for a table.
    if !is_inside || programs.is_empty() {
        return Ok(());
    }
    let sent = CString::new(programs.to_text()).unwrap_or_default();
    let is_one = is_multi_prog(&arguments, Some(&sent));
    let Some(table) = arguments.get(1).filter(|table| is_one && is_table(Some(table))) else { return Ok(()) };
    if is_led_by(table.to_bytes(), settings.trampoline.as_bytes()) {
        return Ok(());
    }
    let led = CString::new(led_by(table.to_bytes(), settings.trampoline.as_bytes()));
    match led.is_ok_and(|led| arguments.replace(1, led)) {
        true => Ok(()),
        // It would be refused on the node.
        false => Err("the table of --multi-prog cannot be handed on".to_owned()),
    }
}

/// The variables of this process that say something of containers.
fn own_variables() -> Vec<(CString, CString)> {
    let is_of_ours =
        |name: &[u8]| name.starts_with(b"PYXIS_CONTAINER_") || name.starts_with(b"SLURM_SITULA_");
    let all =
        std::env::vars_os().map(|(name, value)| (name.into_encoded_bytes(), value.into_encoded_bytes()));
    let ours = all.filter(|(name, _)| is_of_ours(name));
    ours.filter_map(|(name, value)| Some((CString::new(name).ok()?, CString::new(value).ok()?))).collect()
}

fn find(variables: &[(CString, CString)], name: &CStr) -> Option<CString> {
    variables.iter().find(|(other, _)| other.as_c_str() == name).map(|(_, value)| value.clone())
}

/// Called in the task's process, as the user, last before TaskProlog and exec.
#[unsafe(no_mangle)]
extern "C" fn slurm_spank_task_init(spank: Handle, _ac: c_int, _av: *mut *mut c_char) -> c_int {
    guarded(
        || task_init(spank),
        |message| {
            let (job, step) = spank.job_and_step();
            tell_user(&format!("{message} (job {job}, step {})", step_name(step)));
        },
    )
}

fn task_init(spank: Handle) -> Result<(), String> {
    let (given, settings, pending) =
        with_state(|state| (state.given.clone(), state.settings.clone(), state.pending.take()));
    let complete = wanted(spank, &given, settings.as_ref())?;
    if !complete.asks_for_container() {
        return match given.orphans().next() {
            // The image was lost on the way, or never there: on the host the task must not run.
            Some(setting) => {
                let setting = setting.suffix();
                Err(format!(
                    "the {setting} of a container came here without its image; start it where this plugin is loaded"
                ))
            }
            None => Ok(()),
        };
    }
    if let Some(message) = pending {
        return Err(message);
    }
    let settings = settings.ok_or("the plugin was not initialised")?;
    settings.admit()?;
    if spank.job_and_step().1 == BATCH_STEP && !settings.sbatch_support {
        return Err("this site runs no batch script in a container (sbatch_support=0); ask for one in srun"
            .to_owned());
    }
    let arguments = spank.arguments().ok_or("Slurm does not tell the program of the task")?;
    let sent = spank.variable(PROGRAMS_VARIABLE)?;
    // It describes this step alone, and a step that the payload starts may say nothing.
    spank.unset_variable(PROGRAMS_VARIABLE);
    let from_table = spank.job_and_step().1 != BATCH_STEP && is_multi_prog(&arguments, sent.as_deref());
    let is_led = |table: &CStr| is_led_by(table.to_bytes(), settings.trampoline.as_bytes());
    if from_table && !arguments.get(1).is_some_and(is_led) {
        return Err(format!(
            "the table of --multi-prog does not lead to {} here: srun sees to that for a step of one component, with this \
             release of the plugin and the same trampoline; or leave the container options out and write `apptainer exec \
             IMAGE` into the table",
            settings.trampoline.to_string_lossy()
        ));
    }
    check_trampoline(&settings)?;
    let program = arguments.get(0).ok_or("the task has no program")?.to_owned();
    // The trampoline of a table finds it among its words.
    let program = if from_table { CString::default() } else { program };
    for (name, value) in words(&settings, &complete) {
        match value {
            Some(value) if !spank.set_variable(&name, &value) => {
                return Err(format!("cannot pass on {} to the container", name.to_string_lossy()));
            }
            Some(_) => {}
            // Whatever the job's environment has under this name is not from this plugin.
            None => spank.unset_variable(&name),
        }
    }
    let told =
        spank.set_variable(SCOPE_VARIABLE, settings.scope) && spank.set_variable(PROGRAM_VARIABLE, &program);
    // What was made of a table is out of reach here, and needs nothing. Should the step be another one after all, its
    // program must not run on the host.
    if !told || !arguments.replace(0, settings.trampoline) {
        return Err("cannot send the task into the container".to_owned());
    }
    Ok(())
}

/// What the task is to run in. Where batch scripts have no containers, a profile that names an image for every srun is
/// not meant for them.
fn wanted(spank: Handle, given: &Given, settings: Option<&Settings>) -> Result<Given, String> {
    let is_hidden =
        settings.is_some_and(|settings| !settings.sbatch_support) && spank.job_and_step().1 == BATCH_STEP;
    let is_seen = |name: &CStr| !(is_hidden && name.to_bytes().starts_with(b"PYXIS_"));
    given.carried(|name| if is_seen(name) { spank.variable(name) } else { Ok(None) })
}

/// Tells whether the task's program comes from a table, by what srun has `sent`.
fn is_multi_prog(arguments: &Arguments, sent: Option<&CStr>) -> bool {
    match sent {
        _ if arguments.len() < 2 => false,
        Some(sent) => {
            let words = (1..arguments.len()).filter_map(|index| arguments.get(index)).map(CStr::to_bytes);
            !Programs::parse(&sent.to_string_lossy()).have(words)
        }
        None => is_table(arguments.get(1)),
    }
}

/// Refuses a trampoline that is missing, or that anybody could have replaced: it runs as every user.
fn check_trampoline(settings: &Settings) -> Result<(), String> {
    let path = Path::new(OsStr::from_bytes(settings.trampoline.as_bytes()));
    let metadata = std::fs::metadata(path).map_err(|error| {
        let path = path.display();
        format!("the trampoline {path} cannot be used on this node: {error}; the site must install it there")
    })?;
    if metadata.mode() & 0o002 != 0 {
        return Err(format!(
            "the trampoline {} is writable by everybody; the site must mend that",
            path.display()
        ));
    }
    Ok(())
}

/// Called in slurmstepd when a task has ended.
#[unsafe(no_mangle)]
extern "C" fn slurm_spank_task_exit(spank: Handle, _ac: c_int, _av: *mut *mut c_char) -> c_int {
    // The task is over; nothing that fails here may change what Slurm makes of it.
    guarded(
        || task_exit(spank),
        |message| {
            let (job, step) = spank.job_and_step();
            report_error(&format!("{message} (job {job}, step {})", step_name(step)));
        },
    );
    SUCCESS
}

fn task_exit(spank: Handle) -> Result<(), String> {
    let is_last = killed::is_last(spank.n_local_tasks());
    let concerns = |task: &TaskEnd| task.was_killed() || is_last && killed::owes_cleaning();
    let Some(task) = spank.ended_task().filter(concerns) else { return Ok(()) };
    let (given, settings) = with_state(|state| (state.given.clone(), state.settings.clone()));
    let Some(settings) = settings.filter(|settings| settings.flaw.is_none()) else { return Ok(()) };
    let in_container = wanted(spank, &given, Some(&settings))?.asks_for_container();
    let arguments = spank.arguments();
    let program = arguments.as_ref().and_then(|arguments| arguments.get(0)).filter(|_| !in_container);
    let is_own = in_container || program.is_some_and(|program| killed::is_own(program, &settings.trampoline));
    let (job, step) = spank.job_and_step();
    if step > LAST_STEP_OF_SRUN || !is_own {
        return Ok(());
    }
    if killed::look_into(spank, &task, &settings, program, is_last)? {
        // Whether somebody has cancelled the step that way cannot be known here.
        let what = "was killed while its container ran; ending the step";
        report_error(&format!("situla: task {} {what} (job {job}, step {step})", task.rank));
    }
    Ok(())
}

/// `SLURM_MAX_NORMAL_STEP_ID` of `slurm/slurm.h`.
const LAST_STEP_OF_SRUN: u32 = 0xffff_fff0;

/// `SLURM_BATCH_SCRIPT` of `slurm/slurm.h`.
const BATCH_STEP: u32 = 0xffff_fffb;

/// The name of a step as users know it.
fn step_name(step: u32) -> String {
    match step {
        BATCH_STEP => "batch".to_owned(),
        // SLURM_INTERACTIVE_STEP.
        0xffff_fffa => "interactive".to_owned(),
        number => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers_of_three_bytes() {
        for (text, number) in [("22.05.8", 0x16_0508), ("23.11", 0x17_0b00), ("26.05.3-1", 0x1a_0503)] {
            assert_eq!(parse_version(text), number, "{text}");
        }
    }
}
