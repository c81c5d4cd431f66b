//! The images that the cases start: made once by the program under test, kept for the next tier.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command;
use crate::environment::TestEnv;

/// The line that `scripts/make-image` put into every image.
pub const WITNESS: &str = "/etc/situla-image-witness";

/// Converting the demo image compresses 270 MB on two cores.
const CONVERSION: Duration = Duration::from_secs(180);

/// Files in the user's home, which all nodes share.
#[derive(Debug, Clone)]
pub struct Images {
    dir: PathBuf,
}

impl Images {
    /// Makes them with `situla convert`, unless this very program has made them before from the same trees.
    ///
    /// # Errors
    /// A conversion failed.
    pub fn prepare(env: &TestEnv) -> Result<Self, String> {
        let dir = env.home()?.join(".situla-test-images");
        let images = Self { dir: dir.clone() };
        let stamp = stamp(env)?;
        let made = dir.join("made-by");
        if fs::read_to_string(&made).is_ok_and(|text| text.trim() == stamp) {
            return Ok(images);
        }
        let home = env.home()?.to_path_buf();
        env.as_user(&home, [Path::new("rm"), Path::new("-rf"), &dir])?.success()?;
        env.as_user(&home, [Path::new("mkdir"), &dir])?.success()?;
        for (name, tree) in [("tiny", env.image_tree("tiny")), ("demo", env.image_tree("demo"))] {
            for kind in ["sqsh", "sif"] {
                let target = dir.join(format!("{name}.{kind}"));
                // As root: a whole system has files that nobody else may read, such as /etc/shadow.
                let words = [env.situla(), Path::new("convert"), &tree, &target];
                command::run(command::words(words), CONVERSION)?.success()?;
            }
        }
        let script = format!("printf '%s\\n' '{stamp}' > '{}'", made.display());
        env.as_user(&home, ["sh", "-c", &script])?.success()?;
        Ok(images)
    }

    /// The path of an image, such as `demo.sqsh` or `tiny.sif`.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

/// Changes when the program or an image changes.
fn stamp(env: &TestEnv) -> Result<String, String> {
    let mut stamp = String::new();
    let program = env.situla().to_path_buf();
    for path in
        [program, env.image_tree("demo").join(&WITNESS[1..]), env.image_tree("tiny").join(&WITNESS[1..])]
    {
        let meta = fs::metadata(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        stamp.push_str(&format!("{}.{}.{} ", meta.mtime(), meta.mtime_nsec(), meta.size()));
    }
    Ok(stamp.trim().to_owned())
}
