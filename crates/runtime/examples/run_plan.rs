//! Runs the Plan in a JSON file: the runtime alone, for tests and measurements.
//!
//! Usage: `run_plan PLAN.json [exec-only]`. Exits as the payload does; 125 where it did not start.
//! System calls that the variable `REFUSE` lists (`ERRNO:NAME,NAME...`) fail, as on another kernel or
//! under a filter.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use situla_plan::{Plan, RootfsSource, Text};
use situla_runtime::{Exit, MountedImage, Observer, OpenImage, OpenImages, SignalInfo};
use situla_squashfs::{Image, ReadOptions, Window};
use situla_sys::{Errno, SystemCall, refuse_calls};

/// Says on standard error that the payload has started, where the variable `TELL` asks for that.
struct Teller;

impl Observer for Teller {
    fn phase(&mut self, _: &'static str) {}
    fn met(&mut self, _: &str, _: bool) {}
    fn started(&mut self, _: i32) {
        if std::env::var_os("TELL").is_some() {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "started");
        }
    }
    fn signal(&mut self, _: &SignalInfo) {}
    fn warning(&mut self, failure: &situla_runtime::Failure) {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "warning: {failure}");
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(Exit::Code(code)) => ExitCode::from(u8::try_from(code).unwrap_or(255)),
        Ok(Exit::Signal(signal)) => {
            situla_runtime::die_by(signal);
            ExitCode::FAILURE
        }
        Err(message) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "error: {message}");
            ExitCode::from(125)
        }
    }
}

fn run() -> Result<Exit, String> {
    if let Ok(refused) = std::env::var("REFUSE") {
        refuse(&refused)?;
    }
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("which plan?")?;
    let text = std::fs::read(&path).map_err(|error| format!("{path}: {error}"))?;
    let plan: Plan = serde_json::from_slice(&text).map_err(|error| format!("{path}: {error}"))?;
    if arguments.next().is_some() {
        return Err(describe(&situla_runtime::replace(&plan)));
    }
    let open = |path: &Text, offset: u64, length: Option<u64>| -> Result<OpenImage, String> {
        let file = File::open(path.as_os_str()).map_err(|error| error.to_string())?;
        let length = length.map_or_else(|| file.metadata().map(|metadata| metadata.len()), Ok);
        let length = length.map_err(|error| error.to_string())?;
        let descriptor = file.as_raw_fd();
        let image = Image::open(Window::new(file, offset, length), ReadOptions::default());
        Ok(OpenImage { image: image.map_err(|error| error.to_string())?, descriptor })
    };
    let root = match &plan.rootfs.source {
        RootfsSource::Directory { .. } => None,
        RootfsSource::Squashfs { path, offset, length } => Some(open(path, *offset, Some(*length))?),
    };
    let mounted = plan.spec.mounts.iter().filter(|mount| mount.kind == "squashfs").map(|mount| {
        let open = open(&mount.source, 0, None)?;
        let root = open.image.root();
        Ok(MountedImage { open, root })
    });
    let images = OpenImages { root, mounted: mounted.collect::<Result<_, String>>()? };
    // Every process is a rank of its own, unless the test says otherwise.
    let rank = std::env::var("RANK").ok().and_then(|rank| rank.parse().ok()).unwrap_or_else(std::process::id);
    situla_runtime::run(&plan, images, rank, "run", &mut Teller).map_err(|failure| describe(&failure))
}

/// Installs a filter that lasts for the container too.
fn refuse(text: &str) -> Result<(), String> {
    let (errno, names) = text.split_once(':').ok_or("REFUSE is no ERRNO:NAMES")?;
    let errno = errno.parse().map(Errno::from_raw_os_error).map_err(|_| "REFUSE begins with no number")?;
    let calls: Option<Vec<SystemCall>> = names.split(',').map(SystemCall::named).collect();
    refuse_calls(&calls.ok_or("REFUSE names an unknown call")?, errno).map_err(|errno| errno.to_string())
}

fn describe(failure: &situla_runtime::Failure) -> String {
    let cause = failure.errno().map(|errno| format!(": {errno}")).unwrap_or_default();
    format!("{:?}: {failure}{cause}", failure.class())
}
