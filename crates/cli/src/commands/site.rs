//! `situla site`: installing on a cluster, for administrators.

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::command_error::CommandError;
use crate::output::{data, note};
use crate::site::{
    Extent, Finding, Findings, Installation, Level, LineWish, MAX_PLUGIN, Manifest, PLACE, PLUGIN, Plan,
    PluginFacts, Readers, Refusal, Removal, Root, SETTINGS, Sharing, Slurm, Srun, Stack, Version,
    configuration, distrusted, facts, installation, machine, place, takes,
};

/// Version of what `--json` prints here.
const SCHEMA: u32 = 1;

/// Where an installation goes if nobody says.
const PREFIX: &str = "/opt/situla";

/// Install, check and remove the program and Slurm's plugin, for administrators.
#[derive(Debug, Subcommand)]
pub(crate) enum SiteCommand {
    /// Install this program and the plugin for this Slurm, and add it to the plugin stack
    Install(InstallArgs),
    /// Remove what was installed, and nothing else
    Uninstall(UninstallArgs),
    /// Say what is wrong with the installation or this machine, and what to do; status 1 if containers would not start
    Check(CheckArgs),
}

#[derive(Args, Debug)]
struct Place {
    /// The directory of the installation, which every node and submit host must see (default: that of this program, if it
    /// is installed, else /opt/situla)
    #[arg(long, value_name = "DIR")]
    prefix: Option<PathBuf>,
    /// Work on the tree of a machine below this directory; what is written there names paths without it
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Slurm's plugstack.conf (default: as Slurm says)
    #[arg(long, value_name = "FILE")]
    plugstack: Option<PathBuf>,
    /// The version of Slurm, such as 23.11 (default: as slurmd says)
    #[arg(long, value_name = "VERSION", value_parser = parse_version)]
    slurm_version: Option<Version>,
}

/// Install.
#[derive(Args, Debug)]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    place: Place,
    /// Print what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Take program and plugins from this directory, or from bin and lib in it (default: this program, and what is beside it)
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// A setting of the plugin, such as prefix=box; several times. Without any, those of a line that is there stay
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_setting)]
    setting: Vec<String>,
    /// Add the line although other machines read it that have a prefix of their own: when all of them have the plugin
    #[arg(long, conflicts_with = "without_line")]
    with_line: bool,
    /// Put the files there and add no line: first on each machine that has a prefix of its own and reads a plugstack.conf
    /// that others read too
    #[arg(long)]
    without_line: bool,
    /// Replace files that are not from such an installation; they are kept as FILE.before-situla
    #[arg(long)]
    replace: bool,
}

/// Uninstall.
#[derive(Args, Debug)]
pub(crate) struct UninstallArgs {
    #[command(flatten)]
    place: Place,
    /// Print what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Take out the line of this machine, and leave the files: first on each machine that has a plugstack.conf of its own and
    /// sees a prefix that others see too
    #[arg(long, conflicts_with = "with_files")]
    only_line: bool,
    /// Remove the files although other machines see them: when none of them loads the plugin any more
    #[arg(long)]
    with_files: bool,
}

/// Check.
#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn parse_version(text: &str) -> Result<Version, String> {
    Version::parse(text).ok_or_else(|| "write it as 23.11 or 23.11.4".to_owned())
}

fn parse_setting(text: &str) -> Result<String, String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    if name == "trampoline" || !SETTINGS.contains(&name) {
        let known: Vec<&str> = SETTINGS.into_iter().filter(|name| *name != "trampoline").collect();
        return Err(format!("the plugin's settings are {}", known.join(", ")));
    }
    match (is_word(value), takes(name, value)) {
        (true, true) => Ok(text.to_owned()),
        (true, false) => Err(format!("{name} takes no such value, and every container would be refused")),
        (false, _) => Err("Slurm takes no value with blanks, or none at all".to_owned()),
    }
}

/// Whether Slurm takes it as one word of a line.
fn is_word(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('#')
        && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

/// Runs one of the commands.
pub(crate) fn site(command: SiteCommand) -> Result<ExitCode, CommandError> {
    match command {
        SiteCommand::Install(arguments) => install(&arguments),
        SiteCommand::Uninstall(arguments) => uninstall(&arguments),
        SiteCommand::Check(arguments) => check(&arguments),
    }
}

fn failed(refusal: Refusal) -> CommandError {
    CommandError::refused("setup-failed", refusal.message, refusal.remedy)
}

fn own_program() -> PathBuf {
    fs::read_link("/proc/self/exe").unwrap_or_default()
}

/// What all three work on.
struct Ground {
    root: Root,
    prefix: PathBuf,
    slurm: Slurm,
    manifest: Option<Manifest>,
}

impl Ground {
    fn of(place: &Place) -> Result<Self, CommandError> {
        let root = match &place.root {
            None => Root::machine(),
            Some(path) => Root::tree(path).map_err(|error| {
                CommandError::usage(format!("cannot look into {}: {error}", path.display()), "--root DIR")
            })?,
        };
        let own = own_program();
        let own = own
            .parent()
            .and_then(Path::parent)
            .filter(|prefix| root.is_machine() && prefix.join(PLACE).exists());
        let prefix = place.prefix.as_deref().or(own).unwrap_or(Path::new(PREFIX)).to_owned();
        if !prefix.is_absolute() || !prefix.to_str().is_some_and(is_word) {
            let message =
                format!("the prefix {} is no absolute path that plugstack.conf can name", prefix.display());
            return Err(CommandError::usage(message, "choose one without blanks"));
        }
        let file = prefix.join(PLACE);
        let slurm = Slurm::gather(&root, place.slurm_version, place.plugstack.as_deref());
        let manifest = read_manifest(&root, &file, &prefix, &slurm)?;
        Ok(Ground { root, prefix, slurm, manifest })
    }

    fn stack(&self) -> Result<Stack, String> {
        Stack::read(&self.root, &self.slurm.stack)
    }
}

/// The list of what is installed, if there is one and it can be believed.
fn read_manifest(
    root: &Root,
    file: &Path,
    prefix: &Path,
    slurm: &Slurm,
) -> Result<Option<Manifest>, CommandError> {
    let refused = |message: String, remedy: &str| CommandError::refused("setup-failed", message, remedy);
    let found =
        root.follow(file).and_then(|place| place.metadata()).and_then(|about| Ok((about, root.read(file)?)));
    let (about, bytes) = match found {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| {
            refused(format!("cannot read {}: {error}", file.display()), "try again as root")
        })?,
    };
    if let Some(why) = distrusted(&about).filter(|_| root.is_machine()) {
        return Err(refused(
            format!("{} is not believed, since root does what it says: {why}", file.display()),
            "see who has changed it, and what else; chown root, chmod 644",
        ));
    }
    let manifest = Manifest::parse(&String::from_utf8_lossy(&bytes)).map_err(|error| {
        refused(
            format!("cannot understand {}: {error}", file.display()),
            "use the program that has installed it",
        )
    })?;
    manifest.confine(prefix, &slurm.stack).map_err(|error| {
        refused(
            format!("{} is not believed: {error}", file.display()),
            "see who has changed it; what an installation has, docs/administrators/install.md says",
        )
    })?;
    Ok(Some(manifest))
}

fn install(arguments: &InstallArgs) -> Result<ExitCode, CommandError> {
    let ground = Ground::of(&arguments.place)?;
    let mut findings = Findings::default();
    machine(&ground.root, &ground.slurm, &mut findings);
    configuration(&ground.root, &ground.slurm, &mut findings);
    place(&ground.root, &ground.prefix, &mut findings);
    refuse_open(&ground.prefix, &findings)?;
    for finding in findings.0.iter().filter(|finding| finding.level != Level::Good) {
        note(&format!("warning: {}; {}", finding.message, finding.remedy));
    }
    let Some(version) = ground.slurm.version() else {
        let message = "the version of Slurm cannot be found out, and the plugin must fit it";
        return Err(CommandError::refused("setup-failed", message, "say it: --slurm-version 23.11"));
    };
    let program_source = match &arguments.from {
        None => own_program(),
        Some(from) => ["situla", "bin/situla"]
            .map(|name| from.join(name))
            .into_iter()
            .find(|path| path.is_file())
            .ok_or_else(|| {
                CommandError::usage(
                    format!("there is no program in {}", from.display()),
                    "give the directory that `cargo xtask dist` fills",
                )
            })?,
    };
    let (plugin_source, plugin) = find_plugin(arguments.from.as_deref(), version)?;
    let program = read_own(&program_source)?;
    if read_own(&plugin_source)? != plugin {
        let message = format!("{} changes while it is read", plugin_source.display());
        return Err(CommandError::refused("setup-failed", message, "try again when it is complete"));
    }
    let stack = ground.stack().map_err(|error| failed(error.into()))?;
    // With our line there, what srun has of ours is ours.
    let srun = match stack.ours().next() {
        Some(_) => Srun::Silent,
        None => Srun::ask(&ground.root),
    };
    let installation = Installation {
        root: &ground.root,
        prefix: &ground.prefix,
        slurm: &ground.slurm,
        stack: &stack,
        readers: Readers::of(&ground.root, &ground.slurm, &stack.file),
        prefix_is_own: !ground.root.is_machine() || Sharing::of_future(&ground.prefix).is_own(),
        wish: match (arguments.with_line, arguments.without_line) {
            (true, _) => LineWish::Add,
            (_, true) => LineWish::Leave,
            _ => LineWish::Auto,
        },
        srun: &srun,
        settings: &arguments.setting,
        program,
        program_source: &program_source,
        plugin,
        plugin_source: &plugin_source,
        replaces: arguments.replace,
        manifest: ground.manifest.clone(),
    };
    let plan = installation.plan().map_err(failed)?;
    carry_out(&plan, &ground.root, arguments.dry_run)
}

/// Refuses a place that others can change: whoever can is root on every node, and every user.
fn refuse_open(prefix: &Path, findings: &Findings) -> Result<(), CommandError> {
    let is_open = |finding: &&Finding| finding.check == "prefix-permissions" && finding.level != Level::Good;
    let Some(open) = findings.0.iter().find(is_open) else { return Ok(()) };
    let message = format!("others could change what is installed in {}: {}", prefix.display(), open.message);
    Err(CommandError::refused("setup-failed", message, open.remedy.clone()))
}

/// Reads what is to be installed, and refuses what another user may have put there: it will be root's on every node.
/// What belongs to root, or to whoever the running program belongs to, is as good as that.
fn read_own(source: &Path) -> Result<Vec<u8>, CommandError> {
    const BY_ALL: u32 = 0o002;
    let refuse = |why: &str| {
        let message = format!("{} is not safe to install: {why}", source.display());
        let remedy = "unpack or build it where nobody else can write, and try again from there";
        Err(CommandError::refused("setup-failed", message, remedy))
    };
    let cannot = |error| {
        CommandError::refused("setup-failed", format!("cannot read {}: {error}", source.display()), "")
    };
    // Whatever the name leads to next, this file is looked at and read.
    let mut file = fs::File::open(source).map_err(cannot)?;
    let about = file.metadata().map_err(cannot)?;
    let own = fs::metadata("/proc/self/exe").map(|program| program.uid()).unwrap_or_default();
    let is_others = |about: &fs::Metadata| about.uid() != 0 && about.uid() != own;
    if is_others(&about) {
        return refuse("it belongs to another user");
    }
    let real = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(cannot)?;
    let Some(directory) = real.parent().and_then(|directory| fs::metadata(directory).ok()) else {
        return refuse("its directory cannot be looked at");
    };
    if is_others(&directory) {
        return refuse("its directory belongs to another user");
    }
    if about.mode() & BY_ALL != 0 || directory.mode() & BY_ALL != 0 {
        return refuse("everybody can write to it or to its directory");
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(cannot)?;
    Ok(bytes)
}

/// The plugin for this Slurm, among those that are beside the program.
fn find_plugin(from: Option<&Path>, version: Version) -> Result<(PathBuf, Vec<u8>), CommandError> {
    let beside = own_program().parent().map(Path::to_owned).unwrap_or_default();
    let near = match from {
        Some(from) => vec![from.to_owned(), from.join("lib")],
        None => vec![beside.clone(), beside.join("../lib")],
    };
    let mut others = Vec::new();
    for directory in near.iter().flat_map(|directory| with_subdirectories(directory)) {
        for path in plugins_in(&directory) {
            let bytes = fs::read(&path).unwrap_or_default();
            match facts(&bytes) {
                Some(PluginFacts { slurm, .. }) if slurm.fits(version) => return Ok((path, bytes)),
                Some(PluginFacts { slurm, .. }) => {
                    others.push(format!("{} is for {}", path.display(), slurm.release()));
                }
                None => others.push(format!("{} is no plugin", path.display())),
            }
        }
    }
    let among = match others.as_slice() {
        [] => format!("no {PLUGIN} in {}", near[0].display()),
        others => others.join(", "),
    };
    let release = version.release();
    Err(CommandError::refused(
        "setup-failed",
        format!("there is no plugin for Slurm {release}: {among}"),
        format!("build one: SITULA_SLURM_VERSION={release} cargo xtask dist; or say where it is: --from DIR"),
    ))
}

fn with_subdirectories(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut below: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    below.sort();
    std::iter::once(directory.to_owned()).chain(below).collect()
}

fn plugins_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let is_plugin = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_small = path.metadata().is_ok_and(|file| file.is_file() && file.len() <= MAX_PLUGIN);
        name.starts_with("spank_situla") && name.ends_with(".so") && is_small
    };
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_plugin).collect();
    found.sort();
    found
}

fn uninstall(arguments: &UninstallArgs) -> Result<ExitCode, CommandError> {
    let ground = Ground::of(&arguments.place)?;
    let Some(manifest) = &ground.manifest else {
        let message = format!("nothing was installed in {} by this command", ground.prefix.display());
        return Err(CommandError::refused("setup-failed", message, "say where: --prefix DIR"));
    };
    let mut findings = Findings::default();
    place(&ground.root, &ground.prefix, &mut findings);
    // What is removed, and what is put back, is as the manifest there says.
    refuse_open(&ground.prefix, &findings)?;
    let stack = ground.stack().map_err(|error| failed(error.into()))?;
    let removal = Removal {
        root: &ground.root,
        prefix: &ground.prefix,
        slurm: &ground.slurm,
        stack: &stack,
        readers: Readers::of(&ground.root, &ground.slurm, &stack.file),
        sharing: match ground.root.is_machine() {
            true => Sharing::of_future(&ground.prefix),
            false => Sharing::Unknown,
        },
        manifest,
        extent: match (arguments.only_line, arguments.with_files) {
            (true, _) => Extent::Line,
            (_, true) => Extent::All,
            _ => Extent::Auto,
        },
    };
    let plan = removal.plan().map_err(failed)?;
    carry_out(&plan, &ground.root, arguments.dry_run)
}

fn carry_out(plan: &Plan, root: &Root, dry_run: bool) -> Result<ExitCode, CommandError> {
    if root.is_machine() && !dry_run && !plan.steps.is_empty() && !rustix::process::geteuid().is_root() {
        let message =
            "only root can install on this machine: the program runs as every user, and the plugin as root";
        return Err(CommandError::refused(
            "setup-failed",
            message,
            "try again as root; --dry-run shows what would be done",
        ));
    }
    for step in &plan.steps {
        if !dry_run {
            step.apply(root).map_err(|error| {
                let remedy = match error.kind() {
                    std::io::ErrorKind::PermissionDenied => {
                        "try again as root; what was done so far stays, and does no harm"
                    }
                    _ => "what was done so far stays, and does no harm; mend the cause and try again",
                };
                let message = format!("this went wrong: {}: {error}", step.told(false));
                CommandError::refused("setup-failed", message, remedy)
            })?;
        }
        data(&format!("{}\n", step.told(!dry_run)))?;
    }
    for kept in &plan.kept {
        data(&format!("{kept}\n"))?;
    }
    if plan.steps.is_empty() {
        data("nothing to do\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn check(arguments: &CheckArgs) -> Result<ExitCode, CommandError> {
    let ground = Ground::of(&arguments.place)?;
    let mut findings = Findings::default();
    machine(&ground.root, &ground.slurm, &mut findings);
    configuration(&ground.root, &ground.slurm, &mut findings);
    installation(&ground.root, &ground.slurm, ground.stack(), ground.manifest.as_ref(), &mut findings);
    let worst = findings.0.iter().map(|finding| finding.level).max().unwrap_or(Level::Good);
    if arguments.json {
        let value = json!({
            "schema": SCHEMA,
            "result": worst.name(),
            "slurm_version": ground.slurm.version().map(|version| version.to_string()),
            "plugstack": ground.slurm.stack.to_string_lossy(),
            "prefix": ground.prefix.to_string_lossy(),
            "installed_version": ground.manifest.as_ref().map(|manifest| manifest.version.as_str()),
            "findings": findings.0.iter().map(Finding::to_json).collect::<Vec<_>>(),
        });
        data(&format!("{value:#}\n"))?;
    } else {
        for finding in &findings.0 {
            data(&format!("{:8} {}\n", finding.level.name(), finding.message))?;
            if !finding.remedy.is_empty() {
                data(&format!("{:8} -> {}\n", "", finding.remedy))?;
            }
        }
    }
    Ok(ExitCode::from(u8::from(worst == Level::Problem)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_words_that_the_plugin_knows() {
        for (text, want) in [
            ("prefix=box", true),
            ("sbatch_support=0", true),
            ("config=/etc/situla/site.toml", true),
            ("trampoline=/x", false),
            ("colour=red", false),
            ("prefix", false),
            ("prefix=", false),
            ("config=/a b", false),
            ("config=#", false),
        ] {
            assert_eq!(parse_setting(text).is_ok(), want, "{text}");
        }
    }
}
