//! Images as enroot makes them. No package provides it, so they are made here as its `import` does: a file system by its
//! options of mksquashfs, with what it writes about a configuration into `/etc`.

use std::fs;
use std::path::{Path, PathBuf};

use super::Desk;
use crate::command::{self, Output};
use crate::environment::{PATIENCE, WorkDir};
use crate::images::WITNESS;
use crate::tier::{self, Check, Skip};

/// The labels as comments, then what runs the entry point.
const RC: &str = "# maintainer somebody\n\nmkdir -p \"/usr/share\" 2> /dev/null\n\
    cd \"/usr/share\" && unset OLDPWD || exit 1\n\n\
    if [ -s /etc/rc.local ]; then\n    . /etc/rc.local\nfi\n\n\
    if [ $# -gt 0 ]; then\n    exec '/bin/sh' '-c' 'echo entry point in $(pwd), $FROM_LOCAL; exec \"$@\"' 'sh' \"$@\"\n\
    else\n    exec '/bin/sh' '-c' 'echo entry point in $(pwd), $FROM_LOCAL; exec \"$@\"' 'sh' 'echo' 'own command'\nfi\n";

/// A line for each variable; some that a user has written. One without a value counts as none, as in other images.
const ENVIRONMENT: &str = "PATH=/opt/tool/bin:/usr/local/bin:/usr/bin:/bin\nPLAIN=a b=c\nDOUBLE=\"in quotes\"\n\
    SINGLE='in quotes'\nENROOT_INNER=1\nno variable\n2X=no\n# COMMENT=no\nEMPTY=\n";

/// The volumes, bound onto themselves.
const FSTAB: &str = "/var/data /var/data none x-create=dir,bind,rw,nosuid,nodev\n";

/// Makes one of the tiny image's tree.
fn image(
    desk: &Desk,
    dir: &WorkDir,
    name: &str,
    options: &[&str],
) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let (tree, file) = (dir.path().join("tree"), dir.path().join(name));
    if !tree.exists() {
        let copy = [Path::new("cp"), Path::new("-a"), &desk.env.image_tree("tiny"), &tree];
        command::run(command::words(copy), PATIENCE)?.success()?;
        let local = "export FROM_LOCAL=local\n";
        for (name, text) in [("rc", RC), ("environment", ENVIRONMENT), ("fstab", FSTAB), ("rc.local", local)]
        {
            fs::write(tree.join("etc").join(name), text)?;
        }
        // What its containers have in their root, should one be packed as it is.
        fs::create_dir_all(tree.join(".enroot"))?;
        fs::create_dir_all(tree.join("usr/share"))?;
        fs::write(tree.join(".lock"), "")?;
    }
    let words = ["mksquashfs", &tree.display().to_string(), &file.display().to_string()].map(str::to_owned);
    let all = words.into_iter().chain(["-all-root", "-processors", "2", "-no-progress"].map(str::to_owned));
    let all = all.chain(options.iter().map(|option| (*option).to_owned()));
    command::run(command::words(all.collect::<Vec<_>>()), PATIENCE)?.success()?;
    Ok(file)
}

/// With enroot's own options and with a common choice, they run as they are, converted and extracted; their variables are there,
/// and what they run by themselves runs where they say. Another file of that name starts nothing.
///
/// # Errors
/// Something of it is otherwise.
pub fn as_its_import_makes_them(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("enroot")?;
    let run = |words: &[&str]| -> Result<Output, String> {
        // The host's must not be mistaken for the image's.
        let clean = ["env", "-u", "PLAIN", "-u", "DOUBLE", "-u", "SINGLE"];
        desk.env.as_user(dir.path(), clean.iter().chain(words))
    };
    let task = |image: &str, entry: &str, words: &[&str]| {
        let set = [format!("SITULA_TASK_IMAGE={image}"), format!("SITULA_TASK_ENTRYPOINT={entry}")];
        let program = format!("SITULA_TASK_PROGRAM={}", words.first().unwrap_or(&""));
        let start = ["env", &program, &set[0], &set[1], "situla"];
        let all: Vec<&str> = start.into_iter().chain(words.iter().skip(1).copied()).collect();
        run(&all)
    };
    let look = "echo $PATH; echo $PLAIN/$DOUBLE/$SINGLE/$ENROOT_INNER/${EMPTY-unset}";
    let seen = "/opt/tool/bin:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin\na b=c/in quotes/in quotes//unset\n";
    let entered = "entry point in /usr/share, local\n";
    for (name, options) in [
        ("lzo.sqsh", &["-comp", "lzo", "-noD", "-exit-on-error"][..]),
        ("zstd.sqsh", &["-comp", "zstd", "-Xcompression-level", "3", "-b", "1M", "-exit-on-error"]),
    ] {
        let image = image(desk, &dir, name, options)?.display().to_string();
        let told = |ran: Output, expected: &str| -> Check {
            let ran = ran.success()?;
            if ran.stdout == expected { Ok(()) } else { Err(format!("expected {expected}\n{ran}").into()) }
        };
        told(run(&["situla", "exec", &image, "sh", "-c", look])?, seen)?;
        told(run(&["situla", "exec", "--rootfs", "extract", &image, "sh", "-c", look])?, seen)?;
        told(task(&image, "0", &["sh", "-c", look])?, seen)?;
        told(task(&image, "1", &["echo", "command"])?, &format!("{entered}command\n"))?;
        told(run(&["situla", "run", &image])?, &format!("{entered}own command\n"))?;
        told(run(&["situla", "run", &image, "echo", "argument"])?, &format!("{entered}argument\n"))?;
        run(&["situla", "exec", &image, "cat", WITNESS])?.success()?.expect_text("situla tiny image")?;
        // Apptainer's names do as it does: it takes neither.
        let bare = run(&["apptainer", "exec", &image, "sh", "-c", "echo $PLAIN."])?.success()?;
        if bare.stdout != ".\n" {
            return Err(bare.to_string().into());
        }
        let converted = dir.path().join(format!("converted-{name}")).display().to_string();
        run(&["situla", "convert", &image, &converted])?.success()?;
        told(run(&["situla", "run", &converted])?, &format!("{entered}own command\n"))?;
    }
    // As old init systems have it: it would start services, and no command.
    fs::write(dir.path().join("tree/etc/rc"), "#!/bin/bash\nfor i in /etc/rc.d/S*; do $i start; done\n")?;
    let other = image(desk, &dir, "init.sqsh", &["-comp", "gzip"])?.display().to_string();
    let ran = run(&["situla", "run", &other, "-c", "echo shell: $PLAIN."])?.success()?;
    if ran.stdout != "shell: .\n" {
        return Err(ran.to_string().into());
    }
    task(&other, "1", &["true"])?.expect_code(125)?.expect_text("says nothing of an entry point")?;
    run(&["situla", "cache", "prune", "--all"])?.success().map(drop)?;
    Ok(())
}

/// Needs mksquashfs with lzo.
///
/// # Errors
/// It is not there.
pub fn maker() -> Result<(), Skip> {
    tier::succeeds("mksquashfs", &["-version"]).map_err(|why| Skip(format!("needs mksquashfs: {why}")))
}
