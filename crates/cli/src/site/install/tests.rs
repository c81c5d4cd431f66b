use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

/// A tree that will be a machine, and what is asked for in it.
struct Tree {
    dir: tempfile::TempDir,
    root: Root,
}

const STACK: &str = "/etc/slurm/plugstack.conf";
const PREFIX: &str = "/opt/situla";
const LINE: &str = "required /opt/situla/lib/spank_situla.so trampoline=/opt/situla/bin/situla";

impl Tree {
    /// With this plugin stack, where there is one.
    fn new(stack: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(Some(dir.path()));
        let tree = Tree { dir, root };
        fs::create_dir_all(tree.place("/etc/slurm/plugstack.conf.d")).unwrap();
        if let Some(stack) = stack {
            tree.write(STACK, stack);
        }
        tree
    }

    fn place(&self, path: &str) -> PathBuf {
        self.root.place(Path::new(path))
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
        Some(Manifest::parse(&text).unwrap())
    }

    fn stack(&self) -> Stack {
        Stack::read(&self.root, Path::new(STACK)).unwrap()
    }

    fn plan(&self, release: &str, settings: &[&str], replaces: bool) -> Result<Plan, Refusal> {
        let settings: Vec<String> = settings.iter().map(|word| (*word).to_owned()).collect();
        Installation {
            root: &self.root,
            prefix: Path::new(PREFIX),
            stack: &self.stack(),
            settings: &settings,
            program: format!("program {release}").into_bytes(),
            program_source: Path::new("/dist/situla"),
            plugin: format!("plugin {release}").into_bytes(),
            plugin_source: Path::new("/dist/spank_situla.so"),
            replaces,
            manifest: self.manifest(),
        }
        .plan()
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
        plan_removal(&self.root, Path::new(PREFIX), &self.stack(), &self.manifest().unwrap())
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
            assert!(tree.root.place(&line.plugin).exists(), "after {n_done} steps");
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
