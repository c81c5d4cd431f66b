//! The bind syntax of Apptainer (`--bind`, `--mount`) and of pyxis (`--container-mounts`).
//!
//! A relative source is taken from the working directory. Unknown words are errors and never
//! ignored: a `ro` that got lost is worse than a job that does not start.

use std::path::{Component, Path, PathBuf};

use thiserror::Error;

use crate::bind::{BindRequest, BindSource, ImageSource, Origin, Propagation};

/// Binds accepted in one text.
pub const MAX_BINDS: usize = 1024;

/// Bytes of a path, as in Linux's PATH_MAX.
const MAX_PATH: usize = 4096;

/// The flags that pyxis-style mounts take, joined with `+`.
pub const KNOWN_PYXIS_FLAGS: &[&str] = &[
    "ro",
    "rw",
    "bind",
    "rbind",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "noexec",
    "exec",
    "nosuid",
    "nodev",
    "nofail",
    "x-create=auto",
    "x-create=dir",
    "x-create=file",
    "size=BYTES[kmg] (tmpfs)",
    "sqsh (an image file)",
];

/// A bind cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SyntaxError {
    /// There are too many binds.
    #[error("more than {limit} binds")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// The source is missing.
    #[error("bind {text:?} has no source")]
    NoSource {
        /// The bind.
        text: String,
    },
    /// The destination is missing.
    #[error("bind {text:?} has no destination")]
    NoDestination {
        /// The bind.
        text: String,
    },
    /// There are more than three fields between colons.
    #[error("bind {text:?} has more than SRC:DST:OPTIONS; write a colon within a path as \\:")]
    TooManyFields {
        /// The bind.
        text: String,
    },
    /// The destination is relative, the root itself, or has `..` in it.
    #[error("bind destination {path:?} must be an absolute path below / without ..")]
    BadDestination {
        /// The destination.
        path: String,
    },
    /// A path is too long or holds a zero byte.
    #[error("path of {length} bytes is longer than {limit} or holds a zero byte")]
    BadPath {
        /// Its length in bytes.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// An option is not known.
    #[error("unknown option {option:?} in bind {text:?}; known: {known}")]
    UnknownOption {
        /// The option.
        option: String,
        /// The bind.
        text: String,
        /// What is known.
        known: String,
    },
    /// An option is known to Apptainer or pyxis and not available here.
    #[error("{option} in bind {text:?} is not supported")]
    Unsupported {
        /// The option.
        option: String,
        /// The bind.
        text: String,
    },
    /// Two options contradict each other.
    #[error("bind {text:?} says both {first} and {second}")]
    Contradiction {
        /// The bind.
        text: String,
        /// One option.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// An option is for images, and there is none.
    #[error("{option} in bind {text:?} is for images; add image-src=/")]
    NoImage {
        /// The option.
        option: String,
        /// The bind.
        text: String,
    },
    /// What is to be shown of an image is no plain absolute path, or its object has no number.
    #[error("{option} in bind {text:?} must name an absolute path without .., or an object by its number")]
    BadImage {
        /// The option.
        option: String,
        /// The bind.
        text: String,
    },
    /// A quote is not closed or not where a field begins.
    #[error("unbalanced quote in mount {text:?}")]
    Quote {
        /// The record.
        text: String,
    },
}

/// Reads `--bind SRC[:DST[:OPTIONS]][,…]`.
///
/// A comma separates both binds and options; after the options of a bind began, a word that is an
/// option belongs to them. `\:` and `\,` stand for themselves; any other backslash is one.
///
/// # Errors
/// Everything that is not this syntax.
pub fn parse_apptainer_bind(text: &str, cwd: &Path, option: &str) -> Result<Vec<BindRequest>, SyntaxError> {
    let mut groups: Vec<Vec<Vec<String>>> = Vec::new();
    // Split at commas, each part at colons; then give stray options back to the bind before.
    for part in split_escaped(text, ',') {
        let fields: Vec<String> = split_escaped(part, ':').into_iter().map(unescape).collect();
        let continues = groups.last().is_some_and(|group| group[0].len() >= 3) && is_bind_option(&fields);
        if continues && let Some(group) = groups.last_mut() {
            group.push(fields);
        } else if groups.len() == MAX_BINDS {
            return Err(SyntaxError::TooMany { limit: MAX_BINDS });
        } else {
            groups.push(vec![fields]);
        }
    }
    groups.iter().map(|group| bind_from_fields(group, cwd, option)).collect()
}

fn is_bind_option(fields: &[String]) -> bool {
    match fields {
        [word] => {
            matches!(word.as_str(), "ro" | "rw") || word.starts_with("image-src=") || word.starts_with("id=")
        }
        _ => false,
    }
}

fn bind_from_fields(group: &[Vec<String>], cwd: &Path, option: &str) -> Result<BindRequest, SyntaxError> {
    let fields = &group[0];
    let text = fields.join(":");
    let source = fields.first().filter(|source| !source.is_empty());
    let source = absolute(source.ok_or_else(|| SyntaxError::NoSource { text: text.clone() })?, cwd)?;
    let destination = match fields.get(1) {
        Some(destination) if destination.is_empty() => return Err(SyntaxError::NoDestination { text }),
        Some(destination) => inside(destination)?,
        None => inside_of_path(&source)?,
    };
    if fields.len() > 3 {
        return Err(SyntaxError::TooManyFields { text });
    }
    let words = fields.get(2).into_iter().chain(group[1..].iter().flatten());
    let (mut read_only, mut image) = (None, ImageWords::default());
    for word in words {
        match word.split_once('=') {
            None if word == "ro" => set_access(&mut read_only, true, &text)?,
            None if word == "rw" => set_access(&mut read_only, false, &text)?,
            Some((key @ ("image-src" | "id"), value)) => image.hear(key, value, &text)?,
            _ => {
                let known = "ro, rw, image-src=PATH, id=NUMBER".to_owned();
                return Err(SyntaxError::UnknownOption { option: word.clone(), text, known });
            }
        }
    }
    image.apply(user_bind(source, destination, read_only, option), read_only, &text)
}

/// Reads `--mount type=bind,src=…,dst=…[,ro][,image-src=…]`: CSV fields with double quotes, one mount a line.
///
/// # Errors
/// Everything that is not this syntax; `bind-propagation` is not supported.
pub fn parse_apptainer_mount(text: &str, cwd: &Path, option: &str) -> Result<Vec<BindRequest>, SyntaxError> {
    let mut binds = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        if binds.len() == MAX_BINDS {
            return Err(SyntaxError::TooMany { limit: MAX_BINDS });
        }
        let (mut source, mut destination, mut read_only) = (None, None, None);
        let mut image = ImageWords::default();
        for field in split_csv(line)? {
            let (key, value) = field.split_once('=').map_or((field.as_str(), None), |(k, v)| (k, Some(v)));
            match (key, value) {
                ("type", Some("bind")) => {}
                ("source" | "src", Some(path)) => source = Some(path.to_owned()),
                ("destination" | "dst" | "target", Some(path)) => destination = Some(path.to_owned()),
                ("ro" | "readonly", None | Some("true")) => set_access(&mut read_only, true, line)?,
                ("ro" | "readonly", Some("false")) | ("rw", None) => set_access(&mut read_only, false, line)?,
                (key @ ("image-src" | "id"), Some(value)) => image.hear(key, value, line)?,
                ("type" | "bind-propagation" | "nonested", _) => {
                    return Err(SyntaxError::Unsupported { option: field, text: line.to_owned() });
                }
                _ => {
                    let known = "type=bind, source|src=PATH, destination|dst|target=PATH, ro|readonly, \
                                 image-src=PATH, id=NUMBER"
                        .to_owned();
                    return Err(SyntaxError::UnknownOption { option: field, text: line.to_owned(), known });
                }
            }
        }
        let missing_source = || SyntaxError::NoSource { text: line.to_owned() };
        let missing_destination = || SyntaxError::NoDestination { text: line.to_owned() };
        let source = absolute(&source.filter(|s| !s.is_empty()).ok_or_else(missing_source)?, cwd)?;
        let destination = inside(&destination.filter(|d| !d.is_empty()).ok_or_else(missing_destination)?)?;
        binds.push(image.apply(user_bind(source, destination, read_only, option), read_only, line)?);
    }
    Ok(binds)
}

/// What the options of a bind say of an image.
#[derive(Debug, Default)]
struct ImageWords {
    directory: Option<String>,
    object: Option<u32>,
}

impl ImageWords {
    fn hear(&mut self, key: &str, value: &str, text: &str) -> Result<(), SyntaxError> {
        let bad = || SyntaxError::BadImage { option: format!("{key}={value}"), text: text.to_owned() };
        if key == "id" {
            self.object = Some(value.parse().ok().filter(|id| *id > 0).ok_or_else(bad)?);
        } else {
            let path = Path::new(value);
            let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
            if !path.is_absolute() || !plain || check_path(value).is_err() {
                return Err(bad());
            }
            let path: PathBuf = path.components().collect();
            self.directory = Some(path.to_string_lossy().into_owned());
        }
        Ok(())
    }

    /// Makes `bind` one of the image that its source is, where the options say so.
    fn apply(
        self,
        mut bind: BindRequest,
        read_only: Option<bool>,
        text: &str,
    ) -> Result<BindRequest, SyntaxError> {
        match (self.directory, self.object, bind.source) {
            (Some(directory), object, BindSource::Host(path)) => {
                if read_only == Some(false) {
                    let (first, second) = ("image-src", "rw");
                    return Err(SyntaxError::Contradiction { text: text.to_owned(), first, second });
                }
                bind.source = BindSource::Image(ImageSource { path, directory, object });
                bind.read_only = true;
            }
            (None, Some(id), _) => {
                let option = format!("id={id}");
                return Err(SyntaxError::NoImage { option, text: text.to_owned() });
            }
            (_, _, source) => bind.source = source,
        }
        Ok(bind)
    }
}

/// What `--container-mounts` asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PyxisMounts {
    /// What is mounted.
    pub binds: Vec<BindRequest>,
    /// What would be mounted without being asked for, and is not to be.
    pub unmounted: Vec<PathBuf>,
}

/// Reads `--container-mounts SRC:DST[:FLAGS][,…]`; `SRC` alone shows it at the same path,
/// `tmpfs:/DST` is an empty memory filesystem, and `umount:/DST` leaves out a mount that every container
/// has. The flag `sqsh` shows what is in the image file `SRC`. Exact repetitions count once. A backslash takes a comma or a colon as part of a path.
///
/// # Errors
/// Everything that is not this syntax. A relative destination, which pyxis takes, is refused.
pub fn parse_pyxis_mounts(text: &str, cwd: &Path, option: &str) -> Result<PyxisMounts, SyntaxError> {
    let mut mounts = PyxisMounts::default();
    for part in split_escaped(text, ',') {
        if mounts.binds.len() + mounts.unmounted.len() == MAX_BINDS {
            return Err(SyntaxError::TooMany { limit: MAX_BINDS });
        }
        if let Some(destination) = part.strip_prefix("umount:") {
            mounts.unmounted.push(inside(&unescape(destination))?);
            continue;
        }
        let bind = pyxis_mount(part, cwd, option)?;
        if !mounts.binds.contains(&bind) {
            mounts.binds.push(bind);
        }
    }
    Ok(mounts)
}

/// Reads one of the mounts of an environment definition file, `SRC:DST[:FLAGS]`, in which flags are joined with `+`
/// or with commas.
///
/// # Errors
/// Everything that is not this syntax.
pub fn parse_edf_mount(text: &str, cwd: &Path, option: &str) -> Result<BindRequest, SyntaxError> {
    let fields = split_escaped(text, ':');
    if fields.len() < 2 {
        return Err(SyntaxError::NoDestination { text: text.to_owned() });
    }
    let mut fields: Vec<String> = fields.into_iter().map(str::to_owned).collect();
    if let Some(flags) = fields.get_mut(2) {
        *flags = flags.replace(',', "+");
    }
    pyxis_mount(&fields.join(":"), cwd, option)
}

fn pyxis_mount(part: &str, cwd: &Path, option: &str) -> Result<BindRequest, SyntaxError> {
    let text = || part.to_owned();
    let fields: Vec<String> = split_escaped(part, ':').into_iter().map(unescape).collect();
    let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
    let (source, destination, flags) = match fields[..] {
        [""] | ["", ..] => return Err(SyntaxError::NoSource { text: text() }),
        [source] => (source, None, ""),
        [_, ""] | [_, "", _] => return Err(SyntaxError::NoDestination { text: text() }),
        [source, destination] => (source, Some(destination), ""),
        [source, destination, flags] => (source, Some(destination), flags),
        _ => return Err(SyntaxError::TooManyFields { text: text() }),
    };
    let tmpfs = source == "tmpfs";
    if !tmpfs && !source.starts_with(['/', '.']) {
        let known = "a path that begins with / or ., tmpfs, or umount".to_owned();
        return Err(SyntaxError::UnknownOption { option: source.to_owned(), text: text(), known });
    }
    let mut bind = if tmpfs {
        let destination = inside(destination.ok_or_else(|| SyntaxError::NoDestination { text: text() })?)?;
        let reason = format!("{option} {part}");
        let origin = Origin::User(option.to_owned());
        BindRequest::new(BindSource::Tmpfs { size: None }, destination, origin, reason)
    } else {
        let source = absolute(source, cwd)?;
        let destination = match destination {
            Some(destination) => inside(destination)?,
            None => inside_of_path(&source)?,
        };
        user_bind(source, destination, None, option)
    };
    let mut read_only = None;
    let flags = || flags.split('+').filter(|_| !flags.is_empty());
    for flag in flags().filter(|flag| *flag != "sqsh") {
        pyxis_flag(flag, part, &mut bind, &mut read_only)?;
    }
    bind.read_only = read_only.unwrap_or(false);
    if flags().any(|flag| flag == "sqsh") {
        // What is copied of the host's mounts, and how they spread, does not arise; nor can an image be written to.
        let others = ["rw", "bind", "rbind", "private", "rprivate", "slave", "rslave"];
        if let Some(second) = others.into_iter().find(|other| flags().any(|flag| flag == *other)) {
            return Err(SyntaxError::Contradiction { text: text(), first: "sqsh", second });
        }
        bind.source = match bind.source {
            BindSource::Host(path) => BindSource::Image(ImageSource::whole(path)),
            _ => {
                return Err(SyntaxError::Contradiction { text: text(), first: "tmpfs", second: "sqsh" });
            }
        };
        bind.read_only = true;
    }
    Ok(bind)
}

fn pyxis_flag(
    flag: &str,
    text: &str,
    bind: &mut BindRequest,
    read_only: &mut Option<bool>,
) -> Result<(), SyntaxError> {
    match flag {
        "ro" => set_access(read_only, true, text)?,
        "rw" => set_access(read_only, false, text)?,
        "bind" => bind.recursive = false,
        "rbind" => bind.recursive = true,
        "private" | "rprivate" => bind.propagation = Propagation::Private,
        "slave" | "rslave" => bind.propagation = Propagation::Slave,
        "noexec" => bind.no_exec = true,
        "exec" => bind.no_exec = false,
        "nofail" => bind.optional = true,
        // Always so: set-uid bits and device nodes of a bind never work in a user namespace of ours,
        // and mount points are always made as needed.
        "nosuid" | "nodev" | "x-create=auto" | "x-create=dir" | "x-create=file" => {}
        _ => match (&mut bind.source, flag.strip_prefix("size=").and_then(parse_size)) {
            (BindSource::Tmpfs { size }, Some(bytes)) => *size = Some(bytes),
            _ => {
                let known = KNOWN_PYXIS_FLAGS.join(", ");
                return Err(SyntaxError::UnknownOption {
                    option: flag.to_owned(),
                    text: text.to_owned(),
                    known,
                });
            }
        },
    }
    Ok(())
}

fn user_bind(source: PathBuf, destination: PathBuf, read_only: Option<bool>, option: &str) -> BindRequest {
    let reason = format!("{option} {}:{}", source.display(), destination.display());
    let mut bind =
        BindRequest::new(BindSource::Host(source), destination, Origin::User(option.to_owned()), reason);
    bind.read_only = read_only.unwrap_or(false);
    bind
}

fn set_access(access: &mut Option<bool>, read_only: bool, text: &str) -> Result<(), SyntaxError> {
    if *access == Some(!read_only) {
        return Err(SyntaxError::Contradiction { text: text.to_owned(), first: "ro", second: "rw" });
    }
    *access = Some(read_only);
    Ok(())
}

fn absolute(path: &str, cwd: &Path) -> Result<PathBuf, SyntaxError> {
    check_path(path)?;
    // `join` keeps an absolute path; `components` drops inner dots and doubled slashes. A `..` stays:
    // on the host it means what the kernel makes of it.
    Ok(cwd.join(path).components().collect())
}

fn inside(path: &str) -> Result<PathBuf, SyntaxError> {
    check_path(path)?;
    inside_of_path(Path::new(path))
}

pub(crate) fn inside_of_path(path: &Path) -> Result<PathBuf, SyntaxError> {
    let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || path.parent().is_none() {
        return Err(SyntaxError::BadDestination { path: path.display().to_string() });
    }
    Ok(path.components().collect())
}

fn check_path(path: &str) -> Result<(), SyntaxError> {
    if path.len() >= MAX_PATH || path.contains('\0') {
        return Err(SyntaxError::BadPath { length: path.len(), limit: MAX_PATH });
    }
    Ok(())
}

/// Splits at a separator that has no backslash before it.
fn split_escaped(text: &str, separator: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut before = None;
    for (offset, c) in text.char_indices() {
        if c == separator && before != Some('\\') {
            parts.push(&text[start..offset]);
            start = offset + c.len_utf8();
        }
        before = Some(c);
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(text: &str) -> String {
    text.replace("\\:", ":").replace("\\,", ",")
}

/// Splits one CSV record (RFC 4180): a field may be quoted, and a doubled quote in it is one.
fn split_csv(line: &str) -> Result<Vec<String>, SyntaxError> {
    let bad = || SyntaxError::Quote { text: line.to_owned() };
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        if let Some(mut quoted) = rest.strip_prefix('"') {
            let mut field = String::new();
            loop {
                let (before, after) = quoted.split_once('"').ok_or_else(bad)?;
                field.push_str(before);
                match after.strip_prefix('"') {
                    Some(more) => {
                        field.push('"');
                        quoted = more;
                    }
                    None => {
                        rest = after;
                        break;
                    }
                }
            }
            fields.push(field);
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None if rest.is_empty() => return Ok(fields),
                None => return Err(bad()),
            }
        } else {
            let (field, more) =
                rest.split_once(',').map_or((rest, None), |(field, more)| (field, Some(more)));
            if field.contains('"') {
                return Err(bad());
            }
            fields.push(field.to_owned());
            match more {
                Some(more) => rest = more,
                None => return Ok(fields),
            }
        }
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.chars().last()?.to_ascii_lowercase() {
        'k' => (&text[..text.len() - 1], 10),
        'm' => (&text[..text.len() - 1], 20),
        'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests;
