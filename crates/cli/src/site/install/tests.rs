use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::site::removal::{Extent, Removal};
use crate::site::slurm::Copy;

/// A tree that will be a machine, and what is asked for in it.
struct Tree {
    dir: tempfile::TempDir,
    root: Root,
    slurm: Slurm,
}

const STACK: &str = "/etc/slurm/plugstack.conf";
const PREFIX: &str = "/opt/situla";
const LINE: &str = "required /opt/situla/lib/spank_situla.so trampoline=/opt/situla/bin/situla";

impl Tree {
    /// With this plugin stack, where there is one.
    fn new(stack: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::tree(dir.path()).unwrap();
        let tree = Tree { dir, root, slurm: Slurm::default() };
        fs::create_dir_all(tree.place("/etc/slurm/plugstack.conf.d")).unwrap();
        if let Some(stack) = stack {
            tree.write(STACK, stack);
        }
        tree
    }

    fn place(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.place(path).parent().unwrap()).unwrap();
        fs::write(self.place(path), text).unwrap();
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.place(path)).unwrap_or_else(|error| format!("({error})"))
    }

    fn manifest(&self) -> Option<Manifest> {
        let text = fs::read_to_string(self.place(PREFIX).join(PLACE)).ok()?;
        let manifest = Manifest::parse(&text).unwrap();
        // Whatever was installed is believed afterwards.
        manifest.confine(Path::new(PREFIX), Path::new(STACK)).unwrap();
        Some(manifest)
    }

    fn stack(&self) -> Stack {
        Stack::read(&self.root, Path::new(STACK)).unwrap()
    }

    fn plan(&self, release: &str, settings: &[&str], replaces: bool) -> Result<Plan, Refusal> {
        self.plan_as(release, settings, |installation| installation.replaces = replaces)
    }

    /// The same, where more is as it is not usually.
    fn plan_as(
        &self,
        release: &str,
        settings: &[&str],
        change: impl FnOnce(&mut Installation<'_>),
    ) -> Result<Plan, Refusal> {
        let settings: Vec<String> = settings.iter().map(|word| (*word).to_owned()).collect();
        let stack = self.stack();
        let mut installation = Installation {
            root: &self.root,
            prefix: Path::new(PREFIX),
            slurm: &self.slurm,
            stack: &stack,
            readers: Readers::Own,
            prefix_is_own: true,
            wish: LineWish::Auto,
            srun: &Srun::Silent,
            settings: &settings,
            program: format!("program {release}").into_bytes(),
            program_source: Path::new("/dist/situla"),
            plugin: format!("plugin {release}").into_bytes(),
            plugin_source: Path::new("/dist/spank_situla.so"),
            replaces: false,
            manifest: self.manifest(),
        };
        change(&mut installation);
        installation.plan()
    }

    fn apply(&self, plan: &Plan) {
        for step in &plan.steps {
            step.apply(&self.root).unwrap_or_else(|error| panic!("{}: {error}", step.told(false)));
        }
    }

    fn install(&self, release: &str, settings: &[&str]) {
        self.apply(&self.plan(release, settings, false).unwrap());
    }

    fn removal(&self) -> Result<Plan, Refusal> {
        self.removal_as(Extent::Auto, Readers::Own, Sharing::Own("ext4"))
    }

    fn removal_as(&self, extent: Extent, readers: Readers, sharing: Sharing) -> Result<Plan, Refusal> {
        Removal {
            root: &self.root,
            prefix: Path::new(PREFIX),
            slurm: &self.slurm,
            stack: &self.stack(),
            readers,
            sharing,
            manifest: &self.manifest().unwrap(),
            extent,
        }
        .plan()
    }

    /// Everything in the tree, with modes and content.
    fn everything(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut waiting = vec![self.dir.path().to_owned()];
        while let Some(directory) = waiting.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                let about = fs::symlink_metadata(&path).unwrap();
                let content = match about.file_type() {
                    kind if kind.is_dir() => {
                        waiting.push(path.clone());
                        String::new()
                    }
                    kind if kind.is_symlink() => fs::read_link(&path).unwrap().display().to_string(),
                    _ => fs::read_to_string(&path).unwrap(),
                };
                let mode = about.mode();
                found.insert(
                    path.strip_prefix(self.dir.path()).unwrap().to_owned(),
                    format!("{mode:o} {content}"),
                );
            }
        }
        found
    }
}

#[test]
fn an_installation_and_its_removal_leave_the_tree_as_it_was() {
    for stack in [
        None,
        Some(""),
        Some("required other.so"),
        Some("# all\nrequired other.so\n"),
        Some("include plugstack.conf.d/*.conf\n"),
    ] {
        let tree = Tree::new(stack);
        if stack.is_some() {
            fs::set_permissions(tree.place(STACK), fs::Permissions::from_mode(0o640)).unwrap();
        }
        let before = tree.everything();
        tree.install("1", &[]);
        assert_eq!(tree.text("/opt/situla/bin/situla"), "program 1");
        assert_eq!(tree.text("/opt/situla/bin/run-singularity"), "program 1");
        assert_eq!(tree.text("/opt/situla/lib/spank_situla.so"), "plugin 1");
        let mode = |path| tree.place(path).metadata().unwrap().mode() & 0o7777;
        assert_eq!(
            (mode("/opt/situla/bin/situla"), mode("/opt/situla/etc/situla/site.toml")),
            (0o755, 0o644)
        );
        let loaded = tree.stack();
        let ours: Vec<&Line> = loaded.ours().collect();
        assert_eq!(ours.len(), 1, "{stack:?}");
        assert_eq!(ours[0].setting("trampoline"), Some("/opt/situla/bin/situla"));
        assert_eq!(
            ours[0].file == Path::new("/etc/slurm/plugstack.conf.d/situla.conf"),
            stack.is_some_and(|stack| stack.starts_with("include"))
        );
        // Once more changes nothing, and without doing it neither.
        let installed = tree.everything();
        assert_eq!(tree.plan("1", &[], false).unwrap().steps, [], "{stack:?}");
        assert!(!tree.plan("2", &[], false).unwrap().steps.is_empty());
        assert!(!tree.removal().unwrap().steps.is_empty());
        assert_eq!(tree.everything(), installed);
        let removal = tree.removal().unwrap();
        tree.apply(&removal);
        assert_eq!(removal.kept, [""; 0]);
        let mut after = tree.everything();
        if stack == Some("required other.so") {
            // The line was ended, for ours to come behind it.
            assert!(after.remove(Path::new("etc/slurm/plugstack.conf")).unwrap().ends_with("other.so\n"));
            let mut before = before.clone();
            before.remove(Path::new("etc/slurm/plugstack.conf"));
            assert_eq!(after, before);
        } else {
            assert_eq!(after, before, "{stack:?}");
        }
    }
}

#[test]
fn a_new_release_takes_the_place_of_the_old_one() {
    let tree = Tree::new(Some("include plugstack.conf.d/*.conf\n"));
    tree.install("1", &["prefix=box"]);
    tree.write("/opt/situla/etc/situla/site.toml", "[rootfs]\n");
    let plan = tree.plan("2", &[], false).unwrap();
    let changed: Vec<&Path> = plan
        .steps
        .iter()
        .map(|step| match step {
            Step::File { path, .. } => path.as_path(),
            other => panic!("{other:?}"),
        })
        .collect();
    let own = |path: &str| Path::new(PREFIX).join(path);
    // The plugin comes after the program that understands it; the list is there all the time.
    assert_eq!(changed, [own(PLACE), own("bin/situla"), own("lib/spank_situla.so"), own(PLACE)]);
    // However far it came, a removal takes away what is there.
    for n_done in 1..=plan.steps.len() {
        let tree = Tree::new(Some("include plugstack.conf.d/*.conf\n"));
        let before = tree.everything();
        tree.install("1", &[]);
        for step in &tree.plan("2", &[], false).unwrap().steps[..n_done] {
            step.apply(&tree.root).unwrap();
        }
        tree.apply(&tree.removal().unwrap());
        assert_eq!(tree.everything(), before, "after {n_done} steps");
    }
    tree.apply(&plan);
    assert_eq!(tree.text("/opt/situla/bin/situla"), "program 2");
    assert_eq!(tree.text("/opt/situla/etc/situla/site.toml"), "[rootfs]\n");
    let line = tree.text("/etc/slurm/plugstack.conf.d/situla.conf");
    assert!(line.contains("prefix=box"), "settings stay: {line}");
    // New settings replace the old ones.
    tree.install("2", &["sbatch_support=0"]);
    let line = tree.text("/etc/slurm/plugstack.conf.d/situla.conf");
    assert!(!line.contains("prefix=box") && line.contains("sbatch_support=0"), "{line}");
    // What the site has changed is left to it.
    let removal = tree.removal().unwrap();
    tree.apply(&removal);
    assert!(removal.kept.iter().any(|kept| kept.contains("site.toml")), "{:?}", removal.kept);
    assert_eq!(tree.text("/opt/situla/etc/situla/site.toml"), "[rootfs]\n");
    assert!(!tree.place("/opt/situla/bin").exists());
    assert_eq!(tree.stack().ours().count(), 0);
}

#[test]
fn an_interrupted_installation_can_be_removed_and_finished() {
    let n_steps = Tree::new(None).plan("1", &[], false).unwrap().steps.len();
    for n_done in 1..n_steps {
        let tree = Tree::new(None);
        let before = tree.everything();
        for step in &tree.plan("1", &[], false).unwrap().steps[..n_done] {
            step.apply(&tree.root).unwrap();
        }
        // Nobody loads a plugin before it is there.
        for line in tree.stack().ours() {
            assert!(tree.root.has(&line.plugin), "after {n_done} steps");
        }
        if tree.manifest().is_some() && n_done % 2 == 0 {
            tree.apply(&tree.removal().unwrap());
            assert_eq!(tree.everything(), before, "after {n_done} steps");
        }
        tree.install("1", &[]);
        assert_eq!(tree.plan("1", &[], false).unwrap().steps, []);
        tree.apply(&tree.removal().unwrap());
        // Directories that were made before there was a list of them are nobody's.
        let after = tree.everything();
        assert!(after.keys().all(|path| before.contains_key(path) || path.starts_with("opt")), "{after:?}");
        assert!(
            after.values().all(|about| about.starts_with("40") || before.values().any(|old| old == about))
        );
    }
}

#[test]
fn files_of_others_are_refused_or_kept() {
    let tree = Tree::new(None);
    tree.write("/opt/situla/bin/situla", "by hand");
    tree.write("/opt/situla/lib/other.so", "of somebody");
    tree.write("/opt/situla/etc/situla/site.toml", "[store]\n");
    let refused = tree.plan("1", &[], false).unwrap_err();
    assert!(refused.message.contains("/opt/situla/bin/situla"), "{refused:?}");
    assert!(!refused.message.contains("site.toml") && !refused.message.contains("other.so"), "{refused:?}");
    let before = tree.everything();
    tree.apply(&tree.plan("1", &[], true).unwrap());
    assert_eq!(tree.text("/opt/situla/bin/situla"), "program 1");
    assert_eq!(tree.text("/opt/situla/bin/situla.before-situla"), "by hand");
    assert_eq!(tree.text("/opt/situla/etc/situla/site.toml"), "[store]\n");
    // A release later it is still what was there before.
    tree.install("2", &[]);
    tree.apply(&tree.removal().unwrap());
    assert_eq!(tree.everything(), before);
    // What was changed behind the back of the installation is not ours any more.
    tree.apply(&tree.plan("1", &[], true).unwrap());
    tree.write("/opt/situla/lib/spank_situla.so", "by hand");
    let refused = tree.plan("2", &[], false).unwrap_err();
    assert!(refused.message.contains("/opt/situla/lib/spank_situla.so"), "{refused:?}");
}

#[test]
fn lines_of_others_are_left_alone() {
    let ours = |words: &str| {
        format!("required /opt/situla/lib/spank_situla.so trampoline=/opt/situla/bin/situla{words}\n")
    };
    for (stack, settings, told) in [
        (
            "required /usr/lib/slurm/spank_situla.so trampoline=/x\n".to_owned(),
            &[][..],
            "there cannot be two",
        ),
        (ours("").repeat(2), &[], "once more"),
        (ours("").replace("required", "optional"), &[], "optional"),
        (ours("").replace("bin/situla", "bin/other"), &[], "another trampoline"),
        (ours(" prefix=box"), &["prefix=can"], "other settings"),
        ("required spank_pyxis.so\n".to_owned(), &[], "pyxis"),
        ("required spank_pyxis.so\n".to_owned(), &["sbatch_support=0"], "pyxis"),
    ] {
        let tree = Tree::new(Some(&stack));
        let refused = tree.plan("1", settings, false).unwrap_err();
        assert!(refused.message.contains(told) && !refused.remedy.is_empty(), "{stack}: {refused:?}");
    }
    let tree = Tree::new(Some("required spank_pyxis.so\n"));
    tree.install("1", &["prefix=box"]);
    assert_eq!(tree.stack().ours().next().unwrap().prefix(), "box");
    // A line that was written by hand serves, and stays.
    let tree = Tree::new(Some(&ours(" prefix=box")));
    tree.install("1", &[]);
    assert_eq!(tree.text(STACK), ours(" prefix=box"));
    let refused = tree.removal().unwrap_err();
    assert!(refused.message.contains("line 1 of /etc/slurm/plugstack.conf"), "{refused:?}");
    tree.write(STACK, "");
    tree.apply(&tree.removal().unwrap());
    assert!(!tree.place(PREFIX).exists());
}

#[test]
fn a_line_that_was_changed_stops_the_removal_before_anything_is_gone() {
    for stack in ["include plugstack.conf.d/*.conf\n", "required other.so\n"] {
        let tree = Tree::new(Some(stack));
        tree.install("1", &[]);
        let file = tree.stack().ours().next().unwrap().file.display().to_string();
        let text = tree
            .text(&file)
            .replace("\nrequired /opt", "\nrequired  /opt")
            .replace("bin/situla\n", "bin/situla prefix=box\n");
        assert!(text.contains("prefix=box"), "{text}");
        tree.write(&file, &text);
        let refused = tree.removal().unwrap_err();
        assert!(refused.message.contains(&file), "{refused:?}");
        // Without a word about settings the change stays, and the rest is renewed.
        tree.install("2", &[]);
        assert_eq!(tree.text(&file), text);
        assert_eq!(tree.text("/opt/situla/lib/spank_situla.so"), "plugin 2");
    }
}

#[test]
fn added_lines_are_taken_out_and_nothing_else() {
    let added = ["# ours".to_owned(), LINE.to_owned()];
    for (text, want) in [
        (format!("x\n# ours\n{LINE}\n"), "x\n".to_owned()),
        (format!("x\n# ours\n{LINE}\ny\n"), "x\ny\n".to_owned()),
        (format!("x\n# ours\n{LINE} b\n"), format!("x\n{LINE} b\n")),
        ("x".to_owned(), "x".to_owned()),
        (format!("{LINE}\n# ours\n{LINE}\n"), format!("{LINE}\n")),
        (String::new(), String::new()),
    ] {
        assert_eq!(without(&text, &added), want, "{text:?}");
    }
}

/// A machine that others are near: the configuration is the controller's, or the files are shared.
fn copy() -> Copy {
    Copy {
        directory: Some("/run/slurm/conf".into()),
        controller: "ctl".to_owned(),
        stack: "/srv/slurm/plugstack.conf".into(),
        beside: None,
    }
}

#[test]
fn no_machine_reads_the_line_before_it_has_the_plugin() {
    let shared = || Readers::Others("is on nfs, which nodes share".to_owned());
    let adds = |plan: &Plan| {
        let line =
            |step: &&Step| matches!(step, Step::Edit { .. }) || step.told(false).contains("situla.conf (");
        plan.steps.iter().filter(|step| !step.told(false).contains("tmpfiles")).filter(line).count()
    };
    for stack in ["required other.so\n", "include plugstack.conf.d/*.conf\n"] {
        let tree = Tree::new(Some(stack));
        for (readers, prefix_is_own, wish, n_lines) in [
            (shared(), true, LineWish::Auto, None),
            (shared(), true, LineWish::Add, Some(1)),
            (shared(), true, LineWish::Leave, Some(0)),
            (shared(), false, LineWish::Auto, Some(1)),
            (Readers::Unknown, true, LineWish::Auto, Some(1)),
            (Readers::Own, true, LineWish::Auto, Some(1)),
            (Readers::Own, true, LineWish::Leave, Some(0)),
        ] {
            let shown = format!("{readers:?} {prefix_is_own} {wish:?}");
            let plan = tree.plan_as("1", &[], |installation| {
                installation.readers = readers;
                installation.prefix_is_own = prefix_is_own;
                installation.wish = wish;
            });
            match (plan, n_lines) {
                (Ok(plan), Some(n_lines)) => {
                    assert_eq!(adds(&plan), n_lines, "{shown}");
                    // All else is put there, and the line that is missing is told.
                    assert!(plan.steps.iter().any(|step| step.told(false).contains("lib/spank_situla.so")));
                    assert_eq!(
                        plan.kept.iter().filter(|told| told.contains(LINE)).count(),
                        1 - n_lines,
                        "{shown}"
                    );
                }
                (Err(refused), None) => {
                    assert!(
                        refused.message.contains("on nfs") && refused.message.contains("every srun fails")
                    );
                    assert!(
                        refused.remedy.contains("--without-line") && refused.remedy.contains("--with-line")
                    );
                }
                (plan, _) => panic!("{shown}: {plan:?}"),
            }
        }
        // With the line there, an upgrade is one of files.
        tree.install("1", &[]);
        let plan = tree.plan_as("2", &[], |installation| installation.readers = shared()).unwrap();
        assert_eq!(adds(&plan), 0);
    }
}

#[test]
fn the_line_comes_when_all_machines_have_the_plugin() {
    let tree = Tree::new(Some(""));
    let plan = tree.plan_as("1", &[], |installation| installation.wish = LineWish::Leave).unwrap();
    tree.apply(&plan);
    assert_eq!(tree.stack().ours().count(), 0);
    assert_eq!(tree.text("/opt/situla/lib/spank_situla.so"), "plugin 1");
    let again = tree.plan_as("1", &[], |installation| installation.wish = LineWish::Leave).unwrap();
    assert_eq!(again.steps, []);
    tree.install("1", &[]);
    assert_eq!(tree.stack().ours().count(), 1);
}

#[test]
fn a_copy_of_the_controllers_stack_is_not_changed() {
    const CACHED: &str = "/run/slurm/conf/plugstack.conf";
    for (stack, directory) in
        [("", None), ("include plugstack.d/*.conf\n", Some("/run/slurm/conf/plugstack.d"))]
    {
        let mut tree = Tree::new(None);
        tree.slurm.copy = Some(copy());
        tree.write(CACHED, stack);
        if let Some(directory) = directory {
            fs::create_dir_all(tree.place(directory)).unwrap();
        }
        let cached = Stack::read(&tree.root, Path::new(CACHED)).unwrap();
        let settings = ["prefix=box".to_owned()];
        let plan = tree
            .plan_as("1", &[], |installation| {
                installation.stack = Box::leak(Box::new(cached));
                installation.settings = Box::leak(Box::new(settings));
            })
            .unwrap();
        tree.apply(&plan);
        assert_eq!(tree.text(CACHED), stack);
        assert!(directory.is_none_or(|directory| fs::read_dir(tree.place(directory)).unwrap().count() == 0));
        let [told] = plan.kept.as_slice() else { panic!("{:?}", plan.kept) };
        for part in ["/srv/slurm/plugstack.conf on ctl", "scontrol reconfigure", LINE, "prefix=box"] {
            assert!(told.contains(part), "{told}");
        }
    }
    // What the controller's stack includes by its full path is each machine's own.
    let mut tree = Tree::new(None);
    tree.slurm.copy = Some(copy());
    tree.write(CACHED, "include /etc/slurm/plugstack.conf.d/*.conf\n");
    let cached = Stack::read(&tree.root, Path::new(CACHED)).unwrap();
    let plan =
        tree.plan_as("1", &[], |installation| installation.stack = Box::leak(Box::new(cached))).unwrap();
    tree.apply(&plan);
    assert!(tree.text("/etc/slurm/plugstack.conf.d/situla.conf").contains(LINE));
    // A controller hands out no files that are included.
    let mut tree = Tree::new(Some("include plugstack.conf.d/*.conf\n"));
    tree.slurm.hands_out = true;
    let plan = tree.plan("1", &[], false).unwrap();
    assert_eq!(plan.kept, [RECONFIGURE]);
    tree.apply(&plan);
    assert!(tree.text(STACK).contains(LINE));
    // Nor does it take a plugin away that others load by what they were handed.
    let others = || Readers::Others("is handed out".to_owned());
    let refused = tree.removal_as(Extent::Auto, others(), Sharing::Shared("nfs")).unwrap_err();
    assert!(refused.remedy.contains("--only-line, and scontrol reconfigure"), "{refused:?}");
    let line = tree.removal_as(Extent::Line, others(), Sharing::Shared("nfs")).unwrap();
    assert_eq!((line.steps.len(), line.kept.as_slice()), (1, &[RECONFIGURE.to_owned()][..]));
}

#[test]
fn no_plugin_goes_before_a_line_of_another_machine() {
    let others = || Readers::Others("is on nfs, which nodes share".to_owned());
    let tree = Tree::new(Some("required other.so\n"));
    tree.install("1", &[]);
    let nfs = || Sharing::Shared("nfs");
    let refused = tree.removal_as(Extent::Auto, Readers::Own, nfs()).unwrap_err();
    assert!(refused.message.contains("/opt/situla is on nfs"), "{refused:?}");
    assert!(refused.remedy.contains("--only-line") && refused.remedy.contains("--with-files"), "{refused:?}");
    assert!(tree.removal_as(Extent::Auto, Readers::Unknown, nfs()).is_err());
    for (extent, readers, sharing) in [
        (Extent::Auto, others(), nfs()),
        (Extent::Auto, Readers::Own, Sharing::Own("xfs")),
        (Extent::All, Readers::Own, nfs()),
    ] {
        let steps = tree.removal_as(extent, readers, sharing).unwrap().steps;
        let at = |part: &str| steps.iter().position(|step| step.told(false).contains(part)).unwrap();
        assert!(at("take out") < at("remove /opt/situla/lib/spank_situla.so"));
    }
    for stack in ["required other.so\n", "include plugstack.conf.d/*.conf\n"] {
        let tree = Tree::new(Some(stack));
        tree.install("1", &[]);
        tree.apply(&tree.removal_as(Extent::Line, Readers::Own, nfs()).unwrap());
        assert_eq!(tree.stack().ours().count(), 0);
        assert_eq!(tree.text("/opt/situla/lib/spank_situla.so"), "plugin 1");
        // Another machine has the same line, and takes it out by the same list.
        let manifest = tree.manifest().unwrap();
        tree.install("1", &[]);
        assert_eq!((tree.manifest().unwrap(), tree.stack().ours().count()), (manifest, 1));
        tree.apply(&tree.removal_as(Extent::Line, Readers::Own, nfs()).unwrap());
        tree.apply(&tree.removal_as(Extent::All, Readers::Own, nfs()).unwrap());
        assert!(!tree.place(PREFIX).exists());
        assert_eq!(tree.text(STACK), stack);
    }
}

#[test]
fn options_that_another_plugin_has_are_refused() {
    let has = |option: &str| Srun::Has { options: [option.to_owned()].into(), twice: Vec::new() };
    let tree = Tree::new(Some("optional /lib/engine.so\n"));
    tree.write("/lib/engine.so", "\0environment\0");
    for (srun, settings, told) in [
        // As far as its file tells, and as srun says.
        (Srun::Silent, &[][..], Some("line 1 of /etc/slurm/plugstack.conf loads /lib/engine.so")),
        (has("environment"), &[], Some("such as --environment")),
        (has("help"), &[], None),
        (Srun::Silent, &["prefix=box"], None),
        // Of a plugin whose file does not tell: a script.
        (has("box-image"), &["prefix=box"], Some("srun has an option --box-image already")),
    ] {
        let plan = tree.plan_as("1", settings, |installation| installation.srun = Box::leak(Box::new(srun)));
        match (plan, told) {
            (Ok(_), None) => {}
            (Err(refused), Some(told)) => {
                assert!(
                    refused.message.contains(told) && refused.remedy.contains("prefix=WORD"),
                    "{refused:?}"
                );
            }
            (plan, told) => panic!("{told:?}: {plan:?}"),
        }
    }
}
