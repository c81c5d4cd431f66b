//! Who a user is: one whom only a name service knows, as with LDAP, for which libnss-extrausers stands; and one
//! with subordinate ids.
//!
//! The machine's own configuration stays as it is: the files lie over it in a mount namespace of the case.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::Desk;
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
        let script = "mount --bind \"$1/nsswitch.conf\" /etc/nsswitch.conf && \
                      mount --bind \"$1/extrausers\" /var/lib/extrausers && cd \"$1/home\" && shift && exec \"$@\"";
        let dir = self.dir.path().display().to_string();
        let as_user = self.desk.env.script("as-user").display().to_string();
        let outer =
            ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh", &dir, &as_user, NAME];
        let mut all = words(outer.iter().chain(command));
        all.env_clear().env("PATH", self.desk.env.search_path());
        run(all, PATIENCE)
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

/// Name, home, shell and groups are those of the service, whatever the environment says.
///
/// # Errors
/// One of them is not.
pub fn only_by_name_service(desk: &Desk) -> Check {
    let service = Service::new(desk).map_err(|error| error.to_string())?;
    let home = service.dir.path().join("home").display().to_string();
    if run(words(["getent", "passwd", NAME]), PATIENCE)?.status.success() {
        return Err(format!("the machine itself knows {NAME}").into());
    }
    // The service works, and is asked by programs of the host.
    let known = service.run(&["id", "-Gn"])?.success()?;
    if known.stdout.trim_end() != "situla-nss situla-guild" {
        return Err(known.to_string().into());
    }
    let tree = desk.env.image_tree("tiny").display().to_string();
    let situla = desk.env.situla().display().to_string();
    let sif = desk.images.path("tiny.sqsh");
    let lying = ["env", "USER=somebody", "LOGNAME=somebody", "HOME=/tmp", "SHELL=/bin/false"];
    let bare = ["env", "-i", "PATH=/no/such"];
    for image in [&tree, &sif] {
        for (environment, how) in [(&lying[..], "exec"), (&bare, "exec")] {
            let script = format!(
                "PATH=/bin:/usr/bin; id -un; id -gn; echo $HOME; pwd; grep ^{NAME}: /etc/passwd; grep ^situla- /etc/group; \
                 cat ../of-guild; cat ../of-others 2>/dev/null || echo kept"
            );
            let bind = service.dir.path().display().to_string();
            let command = [situla.as_str(), how, "-B", &bind, image, "/bin/sh", "-c", &script];
            let output = service.run(&[environment, &command].concat())?.success()?;
            let expected = format!(
                "{NAME}\nsitula-nss\n{home}\n{home}\n{NAME}:x:{UID}:54321:Only by Name Service:{home}:/bin/ash\n\
                 situla-nss:x:54321:{NAME}\nsitula-guild:x:54322:{NAME}\nread\nkept\n"
            );
            if output.stdout != expected {
                return Err(format!("{environment:?}: expected {expected}\n{output}").into());
            }
        }
    }
    Ok(())
}
