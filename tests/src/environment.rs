//! Where things are: the repository, the built programs, the images, the user.
//!
//! Everything can be set from outside; the defaults are those of `scripts/` and of `make test`.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `SITULA_BIN` | the `situla` under test, with its personalities' links beside it | `/var/lib/situla-dist/bin/situla` |
//! | `SITULA_SPANK` | the plugin under test | `/var/lib/situla-dist/lib/spank_situla.so` |
//! | `SITULA_IMAGES` | what `scripts/make-image` made | `/var/lib/situla-images` |
//! | `SITULA_CLUSTER_USER` | the unprivileged user | `situla-demo` |
//! | `SITULA_TEST_FULL` | `1`: long cases at full length | |
//! | `SITULA_TEST_SEED` | a number: random cases make the choices they made with it before | the clock |
//! | `SITULA_TEST_REQUIRE`, `CI` | `1` and `true`: nothing may be skipped | |

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::command::{self, Output};

/// Time for anything that should take a second or two: a loaded machine with two cores is slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The surroundings of one test run.
#[derive(Debug, Clone)]
pub struct TestEnv {
    repository: PathBuf,
    situla: PathBuf,
    spank: PathBuf,
    images: PathBuf,
    user: String,
    ids: Option<(u32, u32, PathBuf)>,
    required: bool,
    full: bool,
}

impl TestEnv {
    /// Reads the surroundings from the environment.
    #[must_use]
    pub fn from_environment() -> Self {
        let variable = |name: &str, default: &str| std::env::var_os(name).unwrap_or_else(|| default.into());
        let user = variable("SITULA_CLUSTER_USER", "situla-demo").to_string_lossy().into_owned();
        Self {
            repository: Path::new(env!("CARGO_MANIFEST_DIR"))
                .parent()
                .map(Path::to_path_buf)
                .unwrap_or_default(),
            situla: variable("SITULA_BIN", "/var/lib/situla-dist/bin/situla").into(),
            spank: variable("SITULA_SPANK", "/var/lib/situla-dist/lib/spank_situla.so").into(),
            images: variable("SITULA_IMAGES", "/var/lib/situla-images").into(),
            ids: account(&user),
            user,
            required: std::env::var("CI").is_ok_and(|v| v == "true")
                || std::env::var("SITULA_TEST_REQUIRE").is_ok_and(|v| v == "1"),
            full: std::env::var("SITULA_TEST_FULL").is_ok_and(|v| v == "1"),
        }
    }

    /// Whether a case that cannot run must fail.
    #[must_use]
    pub fn required(&self) -> bool {
        self.required
    }

    /// Whether long cases run at full length (`make test-full`).
    #[must_use]
    pub fn full(&self) -> bool {
        self.full
    }

    /// The same surroundings of another user of the machine.
    #[must_use]
    pub fn of_user(&self, name: &str) -> Self {
        Self { user: name.to_owned(), ids: account(name), ..self.clone() }
    }

    /// A script of the repository.
    #[must_use]
    pub fn script(&self, name: &str) -> PathBuf {
        self.repository.join("scripts").join(name)
    }

    /// A file of the repository's `demo` folder.
    #[must_use]
    pub fn demo_file(&self, name: &str) -> PathBuf {
        self.repository.join("demo").join(name)
    }

    /// A file of the repository.
    #[must_use]
    pub fn file(&self, path: &str) -> PathBuf {
        self.repository.join(path)
    }

    /// The program under test.
    #[must_use]
    pub fn situla(&self) -> &Path {
        &self.situla
    }

    /// The plugin under test.
    #[must_use]
    pub fn spank(&self) -> &Path {
        &self.spank
    }

    /// The tree that `scripts/make-image` made for an image.
    #[must_use]
    pub fn image_tree(&self, name: &str) -> PathBuf {
        self.images.join("rootfs").join(name)
    }

    /// The OCI layout that `scripts/make-image` made for an image.
    #[must_use]
    pub fn image_layout(&self, name: &str) -> PathBuf {
        self.images.join("oci").join(name)
    }

    /// The name of the unprivileged user.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The unprivileged user's uid.
    ///
    /// # Errors
    /// There is no such user.
    pub fn uid(&self) -> Result<u32, String> {
        self.account().map(|(uid, _, _)| *uid)
    }

    /// The unprivileged user's home.
    ///
    /// # Errors
    /// There is no such user.
    pub fn home(&self) -> Result<&Path, String> {
        self.account().map(|(_, _, home)| home.as_path())
    }

    fn account(&self) -> Result<&(u32, u32, PathBuf), String> {
        self.ids.as_ref().ok_or_else(|| format!("there is no user {}", self.user))
    }

    /// A search path on which `situla`, `apptainer` and `singularity` are the programs under test.
    #[must_use]
    pub fn search_path(&self) -> String {
        let bin = self.situla.parent().unwrap_or(Path::new("/")).display();
        format!("{bin}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
    }

    /// A command to be run as the unprivileged user, in `cwd`, with a clean environment.
    ///
    /// # Errors
    /// There is no such user.
    pub fn user_command<I, S>(&self, cwd: &Path, words: I) -> Result<Command, String>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let home = self.home()?;
        let mut command = Command::new(self.script("as-user"));
        command.arg(&self.user).args(words).current_dir(cwd).env_clear();
        command
            .env("PATH", self.search_path())
            .env("HOME", home)
            .env("USER", &self.user)
            .env("LANG", "C.UTF-8");
        Ok(command)
    }

    /// Runs a command as the unprivileged user.
    ///
    /// # Errors
    /// The command cannot be started.
    pub fn as_user<I, S>(&self, cwd: &Path, words: I) -> Result<Output, String>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        command::run(self.user_command(cwd, words)?, PATIENCE)
    }

    /// Makes an empty directory of the user's own, in the home that all nodes share.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn work_dir(&self, name: &str) -> Result<WorkDir, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (uid, gid, home) = self.account()?;
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = home.join(format!("test-{}-{number}-{name}", std::process::id()));
        let io = |e: std::io::Error| format!("{}: {e}", path.display());
        fs::create_dir(&path).map_err(io)?;
        // Fails for an ordinary user, who is the owner already.
        if rustix::process::geteuid().is_root() {
            chown(&path, Some(*uid), Some(*gid)).map_err(io)?;
        }
        Ok(WorkDir { path })
    }
}

/// A directory that is removed when the case is over.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file into it that everybody may read and execute.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf, String> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path.join(name);
        fs::write(&path, text)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
            .map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(path)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        // What cannot be removed is found by the next look for leaks, or by `down --purge`.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Uid, gid and home of a user, from the password file: the users of these tests are local.
fn account(name: &str) -> Option<(u32, u32, PathBuf)> {
    let file = fs::read_to_string("/etc/passwd").ok()?;
    file.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        match fields.as_slice() {
            [user, _, uid, gid, _, home, ..] if *user == name => {
                Some((uid.parse().ok()?, gid.parse().ok()?, home.into()))
            }
            _ => None,
        }
    })
}
