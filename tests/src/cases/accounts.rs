//! Who a user is: one whom only a name service knows, as with LDAP, for which libnss-extrausers stands; and one
//! with subordinate ids.
//!
//! The machine's own configuration stays as it is: the files lie over it in a mount namespace of the case, and in those
//! of a node and of slurmctld.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::attacks::tenants;
use super::{Desk, Site};
use crate::cluster::Cluster;
use crate::command::{Output, run, words};
use crate::environment::{PATIENCE, WorkDir};
use crate::tier::{Check, Skip};

/// Nobody on the machine has these.
const NAME: &str = "situla-nss";
const UID: u32 = 54_321;
const GROUPS: [(&str, u32); 2] = [("situla-nss", 54_321), ("situla-guild", 54_322)];

/// Where libnss-extrausers looks.
const EXTRA: &str = "/var/lib/extrausers";

/// Needs the name service.
///
/// # Errors
/// It is not installed.
pub fn ready() -> Result<(), Skip> {
    if Path::new(EXTRA).is_dir() { Ok(()) } else { Err(Skip("libnss-extrausers is not installed".into())) }
}

/// A directory service with one user in it.
struct Service<'a> {
    desk: &'a Desk,
    dir: WorkDir,
}

impl<'a> Service<'a> {
    fn new(desk: &'a Desk) -> Result<Self, Box<dyn std::error::Error>> {
        let dir = desk.env.work_dir("nss")?;
        let home = dir.path().join("home");
        fs::create_dir(&home)?;
        chown(&home, Some(UID), Some(UID))?;
        let service = dir.path().join("extrausers");
        fs::create_dir(&service)?;
        let [(own, gid), (guild, guild_gid)] = GROUPS;
        let line = format!("{NAME}:x:{UID}:{gid}:Only by Name Service:{}:/bin/ash\n", home.display());
        fs::write(service.join("passwd"), line)?;
        fs::write(service.join("group"), format!("{own}:x:{gid}:\n{guild}:x:{guild_gid}:{NAME}\n"))?;
        let host = fs::read_to_string("/etc/nsswitch.conf")?;
        let others = host.lines().filter(|line| !line.starts_with("passwd:") && !line.starts_with("group:"));
        let mut lines: Vec<&str> = others.collect();
        lines.extend(["passwd: files extrausers", "group: files extrausers"]);
        dir.write("subids", &format!("{NAME}:1000000:100\n"))?;
        dir.write("nsswitch.conf", &(lines.join("\n") + "\n"))?;
        for secret in [("of-guild", GROUPS[1].1), ("of-others", 0)] {
            let path: PathBuf = dir.write(secret.0, "read\n")?;
            chown(&path, Some(0), Some(secret.1))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
        }
        Ok(Service { desk, dir })
    }

    /// Runs a command as the user, where the service is.
    fn run(&self, command: &[&str]) -> Result<Output, String> {
        run(self.command(command), PATIENCE)
    }

    fn command(&self, command: &[&str]) -> Command {
        let script = "mount --bind \"$1/nsswitch.conf\" /etc/nsswitch.conf && \
                      mount --bind \"$1/extrausers\" /var/lib/extrausers && \
                      mount --bind \"$1/subids\" /etc/subuid && mount --bind \"$1/subids\" /etc/subgid && cd \"$1/home\" && shift && exec \"$@\"";
        let dir = self.dir.path().display().to_string();
        let as_user = self.desk.env.script("as-user").display().to_string();
        let outer =
            ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh", &dir, &as_user, NAME];
        let mut all = words(outer.iter().chain(command));
        all.env_clear().env("PATH", self.desk.env.search_path());
        all
    }

    fn home(&self) -> String {
        self.dir.path().join("home").display().to_string()
    }
}

/// What a shell in a container is asked: whoever runs it may read a file of the group's, and none of others.
fn look() -> String {
    format!(
        "PATH=/bin:/usr/bin; id -un; id -gn; echo $HOME; pwd; grep ^{NAME}: /etc/passwd; grep ^situla- /etc/group; \
         cat ../of-guild; cat ../of-others 2>/dev/null || echo kept"
    )
}

/// What it says where all is as the service has it.
fn as_it_is(home: &str) -> String {
    format!(
        "{NAME}\nsitula-nss\n{home}\n{home}\n{NAME}:x:{UID}:54321:Only by Name Service:{home}:/bin/ash\n\
         situla-nss:x:54321:{NAME}\nsitula-guild:x:54322:{NAME}\nread\nkept\n"
    )
}

/// The service on one part of a cluster, a node or the controller, as long as this lives.
struct Installed<'a> {
    cluster: &'a Cluster,
    part: &'a str,
    above: Vec<&'static str>,
}

impl<'a> Installed<'a> {
    fn on(cluster: &'a Cluster, part: &'a str, service: &Service<'_>) -> Result<Self, String> {
        let mut installed = Installed { cluster, part, above: Vec::new() };
        for (name, place) in [("nsswitch.conf", "/etc/nsswitch.conf"), ("extrausers", EXTRA)] {
            let file = service.dir.path().join(name).display().to_string();
            cluster.control(&["enter", part, "mount", "--bind", &file, place])?;
            installed.above.push(place);
        }
        Ok(installed)
    }
}

impl Drop for Installed<'_> {
    fn drop(&mut self) {
        for place in &self.above {
            // If this fails, the look for leaks finds the mount.
            let _ = self.cluster.control(&["enter", self.part, "umount", place]);
        }
    }
}

/// Subordinate ids are those of the machine's files, which lie over its own here, and nothing else.
///
/// # Errors
/// They are others, or a lack of them is not explained.
pub fn subordinate_ids(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("subids")?;
    let user = desk.env.user().to_owned();
    let above = dir.path().join("above");
    fs::create_dir(&above)?;
    chown(&above, Some(desk.env.uid()?), None)?;
    let (above, here) = (above.display().to_string(), dir.path().display().to_string());
    dir.write("some", &format!("{user}:1000000:100\nother:2000000:100\n"))?;
    dir.write("none", "other:2000000:100\n")?;
    let as_user = desk.env.script("as-user").display().to_string();
    let sqsh = desk.images.path("tiny.sqsh");
    let run_with = |file: &str, words: &[&str]| {
        let script = "mount --bind \"$1/$2\" /etc/subuid && mount --bind \"$1/$2\" /etc/subgid && \
                      cd \"$1\" && shift 2 && exec \"$@\"";
        let outer = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh", &here, file];
        let mut command = crate::command::words(outer.iter().chain(&[as_user.as_str(), &user]).chain(words));
        command.env_clear().env("PATH", desk.env.search_path());
        run(command, PATIENCE)
    };
    for program in ["situla", "apptainer"] {
        let failed = if program == "situla" { 125 } else { 255 };
        let mut words =
            vec![program, "exec", "--fakeroot", "--subids", "--overlay", &above, &sqsh, "sh", "-c"];
        words.push(
            "cut -c 1-32 /proc/self/uid_map | tr -s ' '; touch /usr/given && chown 100:1 /usr/given && stat -c %u:%g /usr/given",
        );
        let output = run_with("some", &words)?.success()?;
        let uid = desk.env.uid()?;
        if output.stdout != format!(" 0 {uid} 1\n 1 1000000 100\n100:1\n") {
            return Err(output.to_string().into());
        }
        let given = fs::metadata(dir.path().join("above/upper/usr/given"))?;
        if (given.uid(), given.gid()) != (1_000_099, 1_000_000) {
            return Err(format!("on the host the file belongs to {}:{}", given.uid(), given.gid()).into());
        }
        run_with("none", &words)?
            .expect_code(failed)?
            .expect_text("/etc/subuid has no range of ids for")?
            .expect_text("usermod --add-subuids")?;
        let alone = [program, "exec", "--subids", &sqsh, "true"];
        run_with("some", &alone)?
            .expect_code(if program == "situla" { 2 } else { 1 })?
            .expect_text("without --fakeroot")?;
    }
    Ok(())
}

/// A range that is the user's, and another one.
const RANGES: [(&str, &str); 2] = [("some", "1000000"), ("other", "3000000")];

/// Tasks of a step share a container only if all ids are mapped alike in it: with subordinate ids and without, and with
/// those that were given to the user meanwhile, they have one each.
///
/// # Errors
/// They share one with other ids, or do not share the same.
pub fn sharing_by_ids(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("sharing")?;
    for (name, first) in RANGES {
        dir.write(name, &format!("{}:{first}:100\n", desk.env.user()))?;
    }
    let own = desk.env.uid()?;
    let map = |lines: &[(u32, &str, u32)]| -> String {
        lines.iter().map(|(inside, outside, n)| format!("{inside} {outside} {n}\n")).collect()
    };
    let own = own.to_string();
    let [some, other] = RANGES.map(|(_, first)| map(&[(0, own.as_str(), 1), (1, first, 100)]));
    let root = map(&[(0, own.as_str(), 1)]);
    let subids = "--fakeroot --subids";
    for (tasks, shared) in [
        ([("some", subids, &some), ("some", subids, &some)], true),
        ([("some", subids, &some), ("some", "--fakeroot", &root)], false),
        ([("some", "--fakeroot", &root), ("some", subids, &some)], false),
        ([("some", subids, &some), ("other", subids, &other)], false),
    ] {
        for image in [desk.images.path("tiny.sqsh"), desk.env.image_tree("tiny").display().to_string()] {
            let [first, second] =
                both(desk, &dir, tasks.map(|(ranges, options, _)| (ranges, options)), &image)?;
            let namespace = |said: &str| said.lines().next().unwrap_or_default().to_owned();
            let seen = [&first, &second]
                .map(|said| said.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>());
            let expected = tasks.map(|(_, _, map)| map.clone());
            if seen != expected || (namespace(&first) == namespace(&second)) != shared {
                let options = tasks.map(|(ranges, options, _)| (ranges, options));
                return Err(
                    format!("{options:?}: {first}{second}expected {expected:?}, shared: {shared}").into()
                );
            }
        }
    }
    Ok(())
}

/// What two tasks of a step, each with ranges and options of its own, say of their container, in which both are at once.
fn both(desk: &Desk, dir: &WorkDir, tasks: [(&str, &str); 2], image: &str) -> Result<[String; 2], String> {
    let gate = desk.env.work_dir("gate")?;
    let (here, shown) = (dir.path().display().to_string(), gate.path().display().to_string());
    let inside = format!(
        "{{ readlink /proc/self/ns/user; tr -s ' ' </proc/self/uid_map | sed 's/^ //'; }} >{shown}/new-$SLURM_PROCID; \
         mv {shown}/new-$SLURM_PROCID {shown}/task-$SLURM_PROCID; while [ ! -e {shown}/go ]; do sleep 0.05; done"
    );
    let job = tenants::job();
    let as_user = desk.env.script("as-user").display().to_string();
    let start = |rank: u32| {
        let (ranges, options) = tasks.get(usize::try_from(rank).unwrap_or(0)).copied().unwrap_or_default();
        format!(
            "unshare --mount --propagation slave sh -c 'mount --bind {here}/{ranges} /etc/subuid && mount --bind {here}/{ranges} /etc/subgid && \
             exec {as_user} {} env {} situla exec --no-home --bind {shown} {options} {image} sh -c \"$0\"' \"$1\" & \
             while kill -0 $! && [ ! -e {shown}/task-{rank} ]; do sleep 0.05; done",
            desk.env.user(),
            tenants::step_variables(job, rank, 2).join(" ")
        )
    };
    // With a PID namespace go the keepers, which would wait for tasks that are in another container.
    let script = format!("{}; {}; touch {shown}/go; wait", start(0), start(1));
    let mut command =
        words(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "slave"]);
    command.args(["bash", "-c", &script, "bash", &inside]).current_dir("/");
    command.env_clear().env("PATH", desk.env.search_path());
    let ran = run(command, PATIENCE)?;
    let said = [0, 1].map(|rank| fs::read_to_string(gate.path().join(format!("task-{rank}"))));
    match said {
        [Ok(first), Ok(second)] => Ok([first, second]),
        _ => Err(format!("a task did not start\n{ran}")),
    }
}

/// Name, home, shell and groups are those of the service, whatever the environment says.
///
/// # Errors
/// One of them is not.
pub fn only_by_name_service(desk: &Desk) -> Check {
    let service = Service::new(desk).map_err(|error| error.to_string())?;
    let home = service.home();
    unknown_to_the_machine()?;
    // The service works, and is asked by programs of the host.
    let known = service.run(&["id", "-Gn"])?.success()?;
    if known.stdout.trim_end() != "situla-nss situla-guild" {
        return Err(known.to_string().into());
    }
    let tree = desk.env.image_tree("tiny").display().to_string();
    let situla = desk.env.situla().display().to_string();
    let apptainer = desk.env.situla().with_file_name("apptainer").display().to_string();
    let sif = desk.images.path("tiny.sqsh");
    let lying = ["env", "USER=somebody", "LOGNAME=somebody", "HOME=/tmp", "SHELL=/bin/false"];
    let bare = ["env", "-i", "PATH=/no/such"];
    for image in [&tree, &sif] {
        // By either command line, and as the plugin starts a task.
        let bind = service.dir.path().display().to_string();
        let task = [
            "SITULA_TASK_PROGRAM=/bin/sh".to_owned(),
            format!("SITULA_TASK_IMAGE={image}"),
            format!("SITULA_TASK_MOUNTS={bind}:{bind}"),
            format!("SITULA_TASK_WORKDIR={home}"),
        ];
        let as_task: Vec<&str> = ["/usr/bin/env"]
            .into_iter()
            .chain(task.iter().map(String::as_str))
            .chain([situla.as_str()])
            .collect();
        let ways: [&[&str]; 3] = [
            &[&situla, "exec", "-B", &bind, image, "/bin/sh"],
            &[&apptainer, "exec", "-B", &bind, image, "/bin/sh"],
            &as_task,
        ];
        for (environment, way) in ways.iter().flat_map(|way| [(&lying[..], way), (&bare, way)]) {
            let script = look();
            let command = [environment, way, &["-c", &script]].concat();
            let output = service.run(&command)?.success()?;
            let expected = as_it_is(&home);
            if output.stdout != expected {
                return Err(format!("{way:?}, {environment:?}: expected {expected}\n{output}").into());
            }
        }
        // Root inside is the user to the host, with the groups that he has there and no others.
        let script = format!("id -u; cat {bind}/of-guild; cat {bind}/of-others 2>/dev/null || echo kept");
        for program in [&situla, &apptainer] {
            for options in [&["--fakeroot"][..], &["--fakeroot", "--subids"]] {
                let words: [&[&str]; 3] =
                    [&[program, "exec", "-B", &bind], options, &[image, "/bin/sh", "-c", &script]];
                let output = service.run(&words.concat())?.success()?;
                if output.stdout != "0\nread\nkept\n" {
                    return Err(format!("{options:?}: not with the user's groups\n{output}").into());
                }
            }
        }
    }
    Ok(())
}

fn unknown_to_the_machine() -> Check {
    if run(words(["getent", "passwd", NAME]), PATIENCE)?.status.success() {
        return Err(format!("the machine itself knows {NAME}").into());
    }
    Ok(())
}

/// The same in steps of a real Slurm, whose controller and node know the user by the service alone: by the plugin
/// and by either command line, in every task.
///
/// # Errors
/// It is not the same.
pub fn in_steps(site: &Site) -> Check {
    let desk = site.desk();
    let service = Service::new(&desk).map_err(|error| error.to_string())?;
    let (home, node) = (service.home(), site.cluster.a_node());
    let bind = service.dir.path().display().to_string();
    unknown_to_the_machine()?;
    let _installed = [
        Installed::on(&site.cluster, "controller", &service)?,
        Installed::on(&site.cluster, node, &service)?,
    ];
    let srun = |environment: &[&str], words: &[&str]| -> Result<Output, String> {
        let srun = ["srun", "--quiet", "--label", "-N1", "-n2", "-w", node];
        let mut command = service.command(&[environment, &srun, words].concat());
        site.cluster.talks_to(&mut command);
        run(command, PATIENCE)?.success()
    };
    // Slurm itself finds the user there.
    let known = srun(&[], &["id", "-Gn"])?;
    if ranks(&known).iter().any(|said| said != "situla-nss situla-guild\n") {
        return Err(known.to_string().into());
    }
    let lying = ["env", "USER=somebody", "LOGNAME=somebody", "HOME=/tmp", "SHELL=/bin/false"];
    for image in [desk.env.image_tree("tiny").display().to_string(), desk.images.path("tiny.sqsh")] {
        let options = [
            format!("--container-image={image}"),
            format!("--container-mounts={bind}:{bind}"),
            format!("--container-workdir={home}"),
        ];
        let plugin: Vec<&str> = options.iter().map(String::as_str).collect();
        let ways: [&[&str]; 3] =
            [&plugin, &["apptainer", "exec", "-B", &bind, &image], &["situla", "exec", "-B", &bind, &image]];
        for (environment, way) in ways.iter().flat_map(|way| [(&[][..], way), (&lying, way)]) {
            let output = srun(environment, &[way, &["/bin/sh", "-c", &look()][..]].concat())?;
            let said = ranks(&output);
            if said != [as_it_is(&home), as_it_is(&home)] {
                let expected = as_it_is(&home);
                return Err(format!("{way:?}, {environment:?}: expected {expected}\n{output}").into());
            }
        }
    }
    Ok(())
}

/// What each of two tasks has said, of what `srun --label` prints.
fn ranks(output: &Output) -> [String; 2] {
    ["0: ", "1: "].map(|label| {
        let own = output.stdout.lines().filter_map(|line| line.strip_prefix(label));
        own.map(|line| format!("{line}\n")).collect()
    })
}
