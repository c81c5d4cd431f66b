//! Finding a file, and putting together what it inherits.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::EdfError;
use crate::expand::{Origin, expand};
use crate::file::RawFile;

/// Levels of inheritance, the first file among them.
pub const MAX_LEVELS: usize = 10;

/// Bytes of a file.
pub const MAX_FILE: u64 = 1 << 20;

/// Files in all: each level may name several.
const MAX_FILES: usize = 100;

/// What the meaning of a name depends on, beside the files.
pub struct Surroundings<'a> {
    /// The directory that relative paths start from: the user's, not that of the file.
    pub cwd: &'a Path,
    /// The user's home, where `.edf` is.
    pub home: Option<&'a Path>,
    /// The site's directories, which are looked into last.
    pub site: &'a [PathBuf],
    /// The value of a variable.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// Reads a file; `None` where there is none. What is longer than [`MAX_FILE`] is an error.
    pub read: &'a dyn Fn(&Path) -> io::Result<Option<String>>,
}

impl std::fmt::Debug for Surroundings<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings")
            .field("cwd", &self.cwd)
            .field("home", &self.home)
            .finish_non_exhaustive()
    }
}

/// An environment, with all that it inherits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edf {
    /// The image; an empty one counts as none.
    pub image: Option<String>,
    /// The working directory inside.
    pub workdir: Option<String>,
    /// Whether the image's entry point is run.
    pub entrypoint: bool,
    /// Whether the root can be written to.
    pub writable: bool,
    /// Whether Slurm's tools are inside.
    pub slurm: bool,
    /// Mounts, `SRC:DST[:FLAGS]`.
    pub mounts: Vec<String>,
    /// Devices, by path or by the name that CDI gives them.
    pub devices: Vec<String>,
    /// Variables; an empty value takes the variable away.
    pub env: BTreeMap<String, String>,
    /// Annotations, with dots in their names.
    pub annotations: BTreeMap<String, String>,
    /// The files that it is made of, in the order in which they count: the last one wins.
    pub files: Vec<PathBuf>,
    /// Keys of a file that nobody knows.
    pub unknown: Vec<(PathBuf, String)>,
}

/// Reads the environment `name`: a path, if it begins with `.` or `/` or ends with `.toml`, or else the name of a
/// file in one of the directories for them.
///
/// # Errors
/// There is no such file, or it or one that it inherits from is not what it must be.
pub fn load(name: &str, around: &Surroundings<'_>) -> Result<Edf, EdfError> {
    let mut loader = Loader { around, edf: Edf { writable: true, ..Edf::default() }, chain: Vec::new() };
    loader.add(name)?;
    let Loader { mut edf, .. } = loader;
    edf.image = edf.image.filter(|image| !image.is_empty());
    edf.workdir = edf.workdir.filter(|workdir| !workdir.is_empty());
    Ok(edf)
}

/// Finds the file of the environment `name`, as [`load`] does.
///
/// # Errors
/// There is no such file, or it cannot be read.
pub fn find(name: &str, around: &Surroundings<'_>) -> Result<PathBuf, EdfError> {
    let loader = Loader { around, edf: Edf::default(), chain: Vec::new() };
    loader.find(name).map(|(file, _)| file)
}

struct Loader<'a> {
    around: &'a Surroundings<'a>,
    edf: Edf,
    /// The files that are being read, each inherited by the one before.
    chain: Vec<PathBuf>,
}

impl Loader<'_> {
    fn add(&mut self, name: &str) -> Result<(), EdfError> {
        let (file, text) = self.find(name)?;
        if let Some(place) = self.chain.iter().position(|other| *other == file) {
            let chain = self.chain.split_off(place);
            return Err(EdfError::Cycle { file, chain });
        }
        self.chain.push(file.clone());
        if self.chain.len() > MAX_LEVELS {
            return Err(EdfError::TooDeep { limit: MAX_LEVELS, chain: std::mem::take(&mut self.chain) });
        }
        let raw = RawFile::parse(&text, &file)?;
        for base in &raw.bases {
            self.add(base)?;
        }
        if self.edf.files.len() == MAX_FILES {
            return Err(EdfError::TooMany { limit: MAX_FILES });
        }
        self.merge(raw, &file)?;
        self.edf.files.push(file);
        self.chain.pop();
        Ok(())
    }

    fn find(&self, name: &str) -> Result<(PathBuf, String), EdfError> {
        let read = |file: &Path| {
            (self.around.read)(file).map_err(|source| EdfError::Read { file: file.to_owned(), source })
        };
        if name.starts_with(['.', '/']) || name.ends_with(".toml") {
            let file: PathBuf = self.around.cwd.join(name).components().collect();
            return match read(&file)? {
                Some(text) => Ok((file, text)),
                None => Err(EdfError::Read { file, source: io::ErrorKind::NotFound.into() }),
            };
        }
        let directories = self.directories();
        // A name leads nowhere else than below these directories.
        let is_plain = !name.is_empty() && !name.split('/').any(|part| part == "..");
        for directory in directories.iter().filter(|_| is_plain) {
            let file = directory.join(format!("{name}.toml"));
            if let Some(text) = read(&file)? {
                return Ok((file, text));
            }
        }
        Err(EdfError::NotFound { name: name.to_owned(), directories })
    }

    /// `EDF_PATH`, or else `.edf` of the home; and then the site's.
    fn directories(&self) -> Vec<PathBuf> {
        let of_user = match (self.around.variable)("EDF_PATH").filter(|list| !list.is_empty()) {
            Some(list) => list.split(':').map(PathBuf::from).filter(|path| path.is_absolute()).collect(),
            None => self.around.home.map(|home| home.join(".edf")).into_iter().collect::<Vec<_>>(),
        };
        of_user.into_iter().chain(self.around.site.iter().cloned()).collect()
    }

    /// Puts a file above what it inherits.
    fn merge(&mut self, raw: RawFile, file: &Path) -> Result<(), EdfError> {
        let variable = self.around.variable;
        let expanded = |key: &str, text: &str| expand(text, variable, Origin { file, key });
        let edf = &mut self.edf;
        if let Some(image) = raw.image {
            edf.image = Some(expanded("image", &image)?);
        }
        if let Some(workdir) = raw.workdir {
            edf.workdir = Some(expanded("workdir", &workdir)?);
        }
        edf.entrypoint = raw.entrypoint.unwrap_or(edf.entrypoint);
        edf.slurm = raw.slurm.unwrap_or(edf.slurm);
        edf.writable = raw.writable.unwrap_or(edf.writable);
        for (key, list, found) in
            [("mounts", raw.mounts, &mut edf.mounts), ("devices", raw.devices, &mut edf.devices)]
        {
            for text in list {
                let text = expanded(key, &text)?;
                if !found.contains(&text) {
                    found.push(text);
                }
            }
        }
        for (name, value) in raw.env {
            let value = expanded(&format!("env.{name}"), &value)?;
            edf.env.insert(name, value);
        }
        for (name, value) in raw.annotations {
            let value = expanded(&format!("annotations.{name}"), &value)?;
            edf.annotations.insert(name, value);
        }
        edf.unknown.extend(raw.unknown.into_iter().map(|key| (file.to_owned(), key)));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
