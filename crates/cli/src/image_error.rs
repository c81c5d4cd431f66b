//! Failures of image operations: under which class they count, and what can be done about them.

use std::error::Error;
use std::io::ErrorKind;

use situla_image::sif::{SifEditError, SifError};
use situla_image::{
    ArchiveError, ClientError, ConvertError, DirectoryError, Distrusted, DockerArchiveError, Doing,
    FileError, FlattenError, Incapable, KeyringError, Lacks, LayerWriteError, LayoutError, PullError,
    PushError, ResolveError, SaveError, SifFileError, SifTransferError, SourceError, SourceNameError,
    StoreError, TreeError, VerifyError, Withheld,
};
use situla_records::EngineClass;

use crate::command_error::CommandError;

/// Class and remedy of a failure.
type Judgement = (EngineClass, Option<&'static str>);

impl CommandError {
    /// A pull failed.
    pub(crate) fn pull(error: &PullError) -> Self {
        judged(error, of_pull(error))
    }

    /// An image of layers is not what it should be.
    pub(crate) fn resolve(error: &ResolveError) -> Self {
        judged(error, of_resolve(error))
    }

    /// A push failed.
    pub(crate) fn push(error: &PushError) -> Self {
        let (class, remedy) = of_push(error);
        let class = match error {
            // It is no failure of a run, and so has none of the classes of records.
            PushError::Registry { source, .. } if !matches!(source, ClientError::Content { .. }) => {
                "push-failed"
            }
            _ => class.name(),
        };
        judged_as(error, class, remedy)
    }

    /// A SIF file was not fetched or pushed.
    pub(crate) fn sif_transfer(error: &SifTransferError) -> Self {
        match error {
            SifTransferError::Push(error) => Self::push(error),
            error => judged(error, of_sif_transfer(error)),
        }
    }

    /// A registry did not answer as hoped.
    pub(crate) fn registry(error: &ClientError) -> Self {
        judged(error, of_client(error))
    }

    /// Logins cannot be read or kept.
    pub(crate) fn keyring(error: &KeyringError) -> Self {
        judged(error, (EngineClass::SetupFailed, None))
    }

    /// A conversion failed.
    pub(crate) fn convert(error: &ConvertError) -> Self {
        judged(error, of_convert(error))
    }

    /// A SIF file cannot be looked at or changed.
    pub(crate) fn sif(error: &SifFileError) -> Self {
        judged(error, of_sif(error))
    }

    /// The extracted images of this node failed.
    pub(crate) fn trees(error: &TreeError) -> Self {
        judged(error, of_trees(error))
    }

    /// The store failed.
    pub(crate) fn store(error: &StoreError) -> Self {
        judged(error, of_store(error))
    }

    /// The name of a source makes no sense.
    pub(crate) fn source_name(error: &SourceNameError) -> Self {
        let remedy = match error {
            SourceNameError::Reference { .. } => "write docker://REGISTRY/NAME:TAG, or NAME@sha256:...",
            SourceNameError::Scheme(_) => {
                "use docker://REGISTRY/NAME:TAG, or oras://REGISTRY/NAME:TAG for a SIF file"
            }
            SourceNameError::Tag { .. } => "write oci:DIR:TAG",
            SourceNameError::Digest { .. } => {
                "write oci:DIR@sha256:... or oci:DIR@sha512:..., with all digits"
            }
            SourceNameError::Kind(_) => {
                "save it with `docker save` or `skopeo copy SOURCE oci:DIR:TAG` first"
            }
        };
        CommandError::usage(error.to_string(), remedy)
    }

    /// An image cannot be saved to a layout or archive.
    pub(crate) fn save(error: &SaveError) -> Self {
        judged(error, of_save(error))
    }

    /// An archive of `docker save` cannot be used.
    pub(crate) fn docker_archive(error: &DockerArchiveError) -> Self {
        judged(error, of_docker_archive(error))
    }

    /// A layout cannot be used.
    pub(crate) fn layout(error: &LayoutError) -> Self {
        judged(error, of_layout(error))
    }
}

/// Whether a registry wants to know who asks before it gives what failed to come.
pub(crate) fn wants_login(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // Of an error of a stream the one in it is not its source.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let inner = inner.map(|inner| inner as &(dyn Error + 'static));
        let found = inner.unwrap_or(error);
        if let Some(ClientError::Unauthorized { .. } | ClientError::Denied { .. }) = found.downcast_ref() {
            return true;
        }
        cause = found.source();
    }
    false
}

fn judged(error: &(dyn Error + 'static), (class, remedy): Judgement) -> CommandError {
    judged_as(error, class.name(), remedy)
}

fn judged_as(error: &(dyn Error + 'static), class: &str, remedy: Option<&'static str>) -> CommandError {
    // What is known of logins knows best, since it names the file.
    let mut cause = Some(error);
    while let Some(error) = cause.filter(|error| !error.is::<KeyringError>()) {
        cause = error.source();
    }
    let own = cause.and_then(|error| error.downcast_ref::<KeyringError>()).map(|error| error.remedy.clone());
    CommandError::other(error, class, own.or_else(|| remedy.map(str::to_owned)))
}

fn of_push(error: &PushError) -> Judgement {
    match error {
        PushError::Resolve(source) => of_resolve(source),
        PushError::File(source) => of_file(source),
        PushError::Registry { source, .. } => match source {
            ClientError::Content { .. } => of_client(source),
            // The remedies of the others are those of one who fetches.
            ClientError::NotFound { .. } => (
                EngineClass::FetchFailed,
                Some("check the name; some registries want a repository to be made first"),
            ),
            ClientError::Unauthorized { .. } | ClientError::Denied { .. } => (
                EngineClass::FetchFailed,
                Some("check that you may write there; `situla login REGISTRY -u USER` keeps a login"),
            ),
            ClientError::TooManyRequests { .. } => (EngineClass::FetchFailed, Some("wait, and push again")),
            ClientError::Verify(_) => (
                EngineClass::FetchFailed,
                Some("the registry has stored something else; report it to its administrator"),
            ),
            source => of_client(source),
        },
    }
}

fn of_sif_transfer(error: &SifTransferError) -> Judgement {
    match error {
        SifTransferError::Registry { source, .. } => of_client(source),
        SifTransferError::Resolve { source, .. } => of_resolve(source),
        SifTransferError::NotASif { .. } => {
            (EngineClass::ImageCorrupt, Some("use docker://REGISTRY/NAME:TAG for images of layers"))
        }
        SifTransferError::NoSifFile { .. } => (
            EngineClass::ImageCorrupt,
            Some(
                "make one with `situla convert SOURCE image.sif`, or push it as layers, to docker://REGISTRY/NAME:TAG",
            ),
        ),
        SifTransferError::Copy { source, .. } => of_io(source),
        SifTransferError::File(source) => of_convert(source),
        SifTransferError::Store(source) => of_store(source),
        SifTransferError::Push(source) => of_push(source),
    }
}

fn of_pull(error: &PullError) -> Judgement {
    match error {
        PullError::Resolve { source, .. } => of_resolve(source),
        PullError::Convert { source, .. } => of_convert(source),
        PullError::Store(source) => of_store(source),
    }
}

fn of_resolve(error: &ResolveError) -> Judgement {
    match error {
        ResolveError::Source(SourceError::Registry(source)) => of_client(source),
        ResolveError::Source(SourceError::Layout(source)) => of_layout(source),
        ResolveError::Verify(source) => of_verify(source),
        ResolveError::FetchConfig(source) => of_io(source),
        ResolveError::Platform(_) => (
            EngineClass::ImageMissing,
            Some("the image is not made for this kind of machine; ask its maker, or choose another tag"),
        ),
        ResolveError::IsSif => {
            (EngineClass::ImageCorrupt, Some("name it as a SIF file: oras://REGISTRY/NAME:TAG"))
        }
        ResolveError::Manifest { .. }
        | ResolveError::TooDeep
        | ResolveError::TooLarge { .. }
        | ResolveError::Config { .. } => (EngineClass::ImageCorrupt, Some(DAMAGED)),
    }
}

const DAMAGED: &str = "the image is damaged or not a container image; ask its maker to push it again";
const CHANGED: &str = "the registry, or a proxy on the way, changed the bytes; try again, and report it to the \
                       registry's administrator if it stays";
const NO_ROOM: &str = "check that the directory is writable and has room; SITULA_STORE moves the store";

const NO_MEMORY: &str = "give the job more memory (--mem), of which 512 MiB are used at most; an image that needs more has \
                         millions of files: keep data outside of images";

fn of_client(error: &ClientError) -> Judgement {
    use EngineClass as Class;
    match error {
        ClientError::NotFound { .. } => {
            (Class::ImageMissing, Some("check the name and the tag; a private image needs a login"))
        }
        ClientError::Unauthorized { .. } | ClientError::Denied { .. } => (
            Class::FetchFailed,
            Some(
                "check the name; for an image that is not public, `situla login REGISTRY -u USER` keeps a login",
            ),
        ),
        ClientError::LoginRejected { .. } => (
            Class::FetchFailed,
            Some("check user and password; `situla login REGISTRY -u USER` checks and keeps a new one"),
        ),
        ClientError::Withheld { why: Withheld::InClear, .. } => (
            Class::FetchFailed,
            Some(
                "use --plain-http if you trust the network to this registry; `situla pull --plain-http REGISTRY/NAME@sha256:...` \
                 stores an image that then runs without asking again",
            ),
        ),
        ClientError::Withheld { why: Withheld::AnotherPort, .. } => (
            Class::FetchFailed,
            Some("name the port in that file, as in `machine HOST:PORT`, or use `situla login HOST:PORT`"),
        ),
        ClientError::Realm { .. } => (
            Class::FetchFailed,
            Some(
                "a login is sent over TLS, or without it to the registry's own host; report it to the registry's \
                 administrator",
            ),
        ),
        // The cause has its own remedy.
        ClientError::Keyring { .. } => (Class::FetchFailed, None),
        ClientError::Verify(source) => of_verify(source),
        ClientError::NotARegistry { .. } => (
            Class::FetchFailed,
            Some("check the registry's name; a captive portal or proxy may have answered instead"),
        ),
        ClientError::TooManyRequests { .. } => {
            (Class::FetchFailed, Some("wait, or pull from a mirror of your site"))
        }
        ClientError::Unreachable { .. } if error.distrusted() == Some(Distrusted::Client) => (
            Class::FetchFailed,
            Some(
                "the registry wants a certificate that it trusts: put it and its key into \
                 ~/.config/containers/certs.d/HOST:PORT/, as client.cert and client.key",
            ),
        ),
        ClientError::Unreachable { .. } if error.distrusted() == Some(Distrusted::Registry) => (
            Class::FetchFailed,
            Some(
                "if it is the right registry, put the certificate of its authority into \
                 ~/.config/containers/certs.d/HOST:PORT/, as ca.crt",
            ),
        ),
        ClientError::Unreachable { .. } => (
            Class::FetchFailed,
            Some(
                "check the registry's name and port, and whether this machine reaches the network: compute \
                 nodes often need HTTPS_PROXY, or a pull on the login node",
            ),
        ),
        ClientError::Content { source, .. } => of_io(source),
        ClientError::Interrupted { .. } => {
            (Class::FetchFailed, Some("try again; if it stays, check the network and the proxy"))
        }
        ClientError::Server { .. } | ClientError::Protocol { .. } => {
            (Class::FetchFailed, Some("try again later, or report it to the registry's administrator"))
        }
        ClientError::TooLarge { .. } => (Class::ImageCorrupt, Some(DAMAGED)),
        ClientError::PlainHttp { .. } => {
            (Class::FetchFailed, Some("use --plain-http if you trust the network to this registry"))
        }
        ClientError::NoRoots { .. } => {
            (Class::FetchFailed, Some("install ca-certificates, or name a file in SSL_CERT_FILE"))
        }
        ClientError::BadProxy { .. } => (Class::BadOption, Some("correct HTTPS_PROXY or HTTP_PROXY")),
    }
}

fn of_verify(error: &VerifyError) -> Judgement {
    match error {
        VerifyError::DigestMismatch { .. } | VerifyError::TooLong { .. } => {
            (EngineClass::DigestMismatch, Some(CHANGED))
        }
        VerifyError::Truncated { .. } => {
            (EngineClass::DigestMismatch, Some("the image was cut short on the way; try again"))
        }
    }
}

/// An error of a stream may hold one of ours.
fn of_io(error: &std::io::Error) -> Judgement {
    if let Some(inner) = error.get_ref() {
        if let Some(client) = inner.downcast_ref::<ClientError>() {
            return of_client(client);
        }
        if let Some(verify) = inner.downcast_ref::<VerifyError>() {
            return of_verify(verify);
        }
        if let Some(layout) = inner.downcast_ref::<LayoutError>() {
            return of_layout(layout);
        }
        if let Some(archive) = inner.downcast_ref::<DockerArchiveError>() {
            return of_docker_archive(archive);
        }
    }
    (EngineClass::FetchFailed, Some("try again; if it stays, check the network and the proxy"))
}

fn of_flatten(error: &FlattenError) -> Judgement {
    match error {
        FlattenError::Verify(source) => of_verify(source),
        FlattenError::DiffId { .. } => (EngineClass::DigestMismatch, Some(DAMAGED)),
        FlattenError::Fetch { source, .. } => of_io(source),
        FlattenError::Merge { source, .. } => of_merge(source),
        FlattenError::Thread(_) => {
            (EngineClass::SetupFailed, Some("check the limit of processes, ulimit -u"))
        }
        FlattenError::LayerCount { .. }
        | FlattenError::NotALayer { .. }
        | FlattenError::Decompress { .. }
        | FlattenError::TooLarge { .. } => (EngineClass::ImageCorrupt, Some(DAMAGED)),
        FlattenError::Memory { .. } => (EngineClass::SetupFailed, Some(NO_MEMORY)),
    }
}

fn of_merge(error: &situla_image::MergeError) -> Judgement {
    match error {
        // The sink is the output file.
        situla_image::MergeError::Sink(_) => (EngineClass::SetupFailed, Some(NO_ROOM)),
        situla_image::MergeError::Memory(_) => (EngineClass::SetupFailed, Some(NO_MEMORY)),
        _ => (EngineClass::ImageCorrupt, Some(DAMAGED)),
    }
}

fn of_convert(error: &ConvertError) -> Judgement {
    use EngineClass as Class;
    match error {
        ConvertError::Resolve(source) => of_resolve(source),
        ConvertError::Flatten(source) => of_flatten(source),
        ConvertError::Directory(DirectoryError::Take { source, .. }) => of_merge(source),
        ConvertError::Directory(DirectoryError::File(source)) => of_file(source),
        ConvertError::Directory(_) => (Class::SetupFailed, None),
        ConvertError::Tree(source) => of_merge(source),
        ConvertError::Squash { .. } | ConvertError::SifWrite { .. } => (Class::SetupFailed, Some(NO_ROOM)),
        ConvertError::File(source) => of_file(source),
        ConvertError::SifRead { .. } | ConvertError::NotSquashfs { .. } => {
            (Class::ImageCorrupt, Some("the file may be cut short or damaged; copy or pull it again"))
        }
        ConvertError::TooMuch { .. } => (Class::ImageCorrupt, Some(DAMAGED)),
        ConvertError::Memory { .. } => (Class::SetupFailed, Some(NO_MEMORY)),
        ConvertError::SifFs { .. } => (
            Class::ImageCorrupt,
            Some("build it again with SquashFS; encrypted and writable images are not supported"),
        ),
        ConvertError::SifRoots { .. } => (
            Class::ImageCorrupt,
            Some("use the file itself: situla pull oras://REGISTRY/NAME:TAG -o FILE.sif"),
        ),
        ConvertError::UnknownFormat { .. } => {
            (Class::ImageCorrupt, Some("name a .sif or .sqsh image, a directory, oci:DIR or docker://REF"))
        }
        ConvertError::Exists { .. } => (Class::BadOption, Some("choose another name, or use --force")),
        ConvertError::Damaged { .. } => {
            (Class::DigestMismatch, Some("delete that file and pull again; check the disk it is on"))
        }
    }
}

fn of_sif(error: &SifFileError) -> Judgement {
    use EngineClass as Class;
    const CUT: &str = "the file may be cut short or damaged; copy or pull it again";
    let of_read = |source: &SifError| match source {
        SifError::UnknownId { .. } => (Class::BadOption, Some("see `situla sif list` for the ids")),
        SifError::NotSif => (Class::ImageCorrupt, Some("name a .sif file; `situla convert` makes one")),
        _ => (Class::ImageCorrupt, Some(CUT)),
    };
    match error {
        SifFileError::File(source) => of_file(source),
        SifFileError::Read { source, .. } => of_read(source),
        SifFileError::Busy { .. } => (Class::SetupFailed, Some("try again when it has ended")),
        SifFileError::NotAddable { .. } => (Class::BadOption, Some("name a file with the object's content")),
        SifFileError::Dump(_) => (Class::SetupFailed, Some("check where standard output leads")),
        SifFileError::Edit { source, .. } => match source {
            SifEditError::Read(source) => of_read(source),
            SifEditError::Write(_) => (Class::SetupFailed, Some("check that the disk has room")),
            SifEditError::Source(_) => (Class::SetupFailed, None),
            SifEditError::Full(_) => (Class::SetupFailed, Some("delete an object that is not needed first")),
            SifEditError::SecondPrimary(_) => (
                Class::BadOption,
                Some(
                    "add a system for another architecture with --parttype system, or delete the primary first",
                ),
            ),
            SifEditError::UnknownGroup(_) => (Class::BadOption, Some("see `situla sif list` for the groups")),
            SifEditError::Name | SifEditError::Alignment(_) | SifEditError::Field => {
                (Class::BadOption, Some("correct the option"))
            }
        },
    }
}

fn of_file(error: &FileError) -> Judgement {
    if let Some(incapable) = Incapable::in_io(&error.source) {
        let remedy = match incapable.lacks {
            Lacks::NewNames => {
                "use --force, if a file of that name may be replaced, or write to another file system and copy it"
            }
            Lacks::SymbolicLinks | Lacks::HardLinks => {
                "unpack to another file system, or run the image as a file, which needs none of it"
            }
        };
        return (EngineClass::SetupFailed, Some(remedy));
    }
    match error.source.kind() {
        _ if error.doing != Doing::Read => (EngineClass::SetupFailed, Some(NO_ROOM)),
        ErrorKind::NotFound | ErrorKind::NotADirectory => (
            EngineClass::ImageMissing,
            Some("check the path; on a cluster it must be visible on the compute node"),
        ),
        ErrorKind::PermissionDenied => (EngineClass::SetupFailed, Some("check the permissions")),
        _ => (EngineClass::SetupFailed, None),
    }
}

fn of_trees(error: &TreeError) -> Judgement {
    match error {
        TreeError::File(source) => of_file(source),
        TreeError::Extract(source) => of_convert(source),
        TreeError::Changed { .. } => {
            (EngineClass::SetupFailed, Some("run it again when the image is complete"))
        }
        TreeError::NoPlace { .. } => (
            EngineClass::SetupFailed,
            Some(
                "ask the administrator to make it, with mode 1777, or to name another one in site.toml (rootfs.cache)",
            ),
        ),
        TreeError::Unknown { .. } => (
            EngineClass::SetupFailed,
            Some("use the version that has made it, or remove the container: situla container rm NAME"),
        ),
        TreeError::NotOwn { .. } => (
            EngineClass::SetupFailed,
            Some("remove it if it is yours, or ask the administrator for another place (rootfs.cache)"),
        ),
        _ => (EngineClass::SetupFailed, None),
    }
}

fn of_store(error: &StoreError) -> Judgement {
    match error {
        StoreError::Busy { .. } => {
            (EngineClass::FetchFailed, Some("see whether that process is stuck, end it, and try again"))
        }
        StoreError::File(_) => (EngineClass::SetupFailed, Some(NO_ROOM)),
        StoreError::NoRoom { .. } => (
            EngineClass::SetupFailed,
            Some(
                "make room, for example by `situla prune`, or set SITULA_STORE to a directory that has more",
            ),
        ),
        StoreError::NotPrivate { .. } => (
            EngineClass::SetupFailed,
            Some(
                "take that permission away with `chmod go-w`, or set SITULA_STORE to a directory of your own",
            ),
        ),
        StoreError::OpenToAll { .. } => (
            EngineClass::SetupFailed,
            Some("ask the administrator to take the permission away, or store.site out of site.toml"),
        ),
        _ => (EngineClass::SetupFailed, None),
    }
}

fn of_layout(error: &LayoutError) -> Judgement {
    use EngineClass as Class;
    match error {
        LayoutError::File(source) => of_file(source),
        LayoutError::Archive(source) => of_archive(source),
        LayoutError::NoSuchImage { .. } => {
            (Class::ImageMissing, Some("`skopeo list-tags oci:DIR` lists its tags"))
        }
        LayoutError::Ambiguous { .. } => {
            (Class::BadOption, Some("write oci:DIR:TAG, or oci:DIR@sha256:... with the digest of one"))
        }
        LayoutError::Version { .. } => (Class::ImageCorrupt, Some("make it again with a tool of today")),
        LayoutError::TooLarge { .. } | LayoutError::Index { .. } | LayoutError::NotALayout { .. } => (
            Class::ImageCorrupt,
            Some("name a directory that holds an OCI image layout, with the files oci-layout and index.json"),
        ),
    }
}

fn of_save(error: &SaveError) -> Judgement {
    use EngineClass as Class;
    match error {
        SaveError::Resolve(source) => of_resolve(source),
        SaveError::Image(source) => of_convert(source),
        SaveError::Layout(source) => of_layout(source),
        SaveError::File(source) => of_file(source),
        SaveError::Copy { source, .. } => of_io(source),
        SaveError::Layer(LayerWriteError::Write(_)) => (Class::SetupFailed, Some(NO_ROOM)),
        SaveError::Layer(LayerWriteError::Read { .. }) => {
            (Class::ImageCorrupt, Some("the file may be cut short or damaged; copy or pull it again"))
        }
        SaveError::Layer(_) => {
            (Class::SetupFailed, Some("rename the file in the image, or keep the image as a .sqsh"))
        }
        SaveError::DiffId { .. } => (Class::DigestMismatch, Some(DAMAGED)),
        SaveError::LayerCount { .. } => (Class::ImageCorrupt, Some(DAMAGED)),
        SaveError::Exists(_) => (Class::BadOption, Some("choose another name or tag, or use --force")),
        SaveError::NotALayout { .. } => (Class::BadOption, Some("name an OCI layout or an empty directory")),
        SaveError::Name(_) => {
            (Class::BadOption, Some("write docker-archive:FILE:NAME:TAG, in small letters"))
        }
    }
}

fn of_archive(error: &ArchiveError) -> Judgement {
    use EngineClass as Class;
    match error {
        ArchiveError::File(source) => of_file(source),
        ArchiveError::Decompress { .. } => {
            (Class::ImageCorrupt, Some("it may be cut short, or the disk full; check both"))
        }
        ArchiveError::Tar { .. } | ArchiveError::Missing { .. } | ArchiveError::Twice { .. } => {
            (Class::ImageCorrupt, Some("the archive may be cut short or damaged; copy or save it again"))
        }
    }
}

fn of_docker_archive(error: &DockerArchiveError) -> Judgement {
    use EngineClass as Class;
    match error {
        DockerArchiveError::Archive(source) => of_archive(source),
        DockerArchiveError::File(source) => of_file(source),
        DockerArchiveError::NotSaved { .. } => {
            (Class::ImageCorrupt, Some("save it again with `docker save`; an OCI layout is oci-archive:FILE"))
        }
        DockerArchiveError::Config { .. } => (Class::ImageCorrupt, Some(DAMAGED)),
        DockerArchiveError::NoSuchImage { .. } => (Class::ImageMissing, Some("name one of those")),
        DockerArchiveError::Ambiguous { .. } => (Class::BadOption, Some("write docker-archive:FILE:NAME")),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use situla_image::{ProxyAddress, Source};
    use situla_oci::Digest;

    use super::*;

    fn mismatch() -> VerifyError {
        let (expected, actual) = (Digest::sha256(b"a"), Digest::sha256(b"b"));
        VerifyError::DigestMismatch { what: "layer 1 of 1".to_owned(), expected, actual }
    }

    fn file(doing: Doing, path: &str, source: io::Error) -> FileError {
        FileError { doing, path: path.into(), source }
    }

    fn pull(source: ResolveError) -> PullError {
        PullError::Resolve {
            image: Box::new(Source::parse("docker://registry.example/a:1").unwrap()),
            source,
        }
    }

    fn client(source: ClientError) -> PullError {
        pull(ResolveError::Source(SourceError::Registry(source)))
    }

    #[test]
    fn failures_have_classes_and_remedies() {
        let what = || "manifest of x".to_owned();
        let stream = |inner: ClientError| FlattenError::Fetch {
            what: "layer 1 of 1".to_owned(),
            source: io::Error::other(inner),
        };
        let layers = |source| PullError::Convert {
            image: Box::new(Source::parse("docker://registry.example/a:1").unwrap()),
            source: ConvertError::Flatten(source),
        };
        let denied = || io::Error::from(ErrorKind::PermissionDenied);
        let keyring = || ClientError::Keyring {
            host: "registry.example".to_owned(),
            source: KeyringError { message: "no".to_owned(), remedy: "mend /file".to_owned() },
        };
        for (error, class, remedy) in [
            (client(ClientError::NotFound { what: what() }), "image-missing", "tag"),
            (client(ClientError::Verify(Box::new(mismatch()))), "digest-mismatch", "changed the bytes"),
            (pull(ResolveError::Verify(Box::new(mismatch()))), "digest-mismatch", "changed the bytes"),
            (layers(FlattenError::Verify(Box::new(mismatch()))), "digest-mismatch", "changed the bytes"),
            (
                layers(stream(ClientError::Interrupted { what: what(), source: denied() })),
                "fetch-failed",
                "try again",
            ),
            (layers(stream(ClientError::NotFound { what: what() })), "image-missing", "tag"),
            (client(ClientError::PlainHttp { host: "h".to_owned() }), "fetch-failed", "--plain-http"),
            (client(ClientError::BadProxy { proxy: ProxyAddress::new("x") }), "bad-option", "PROXY"),
            (
                client(ClientError::Unauthorized { what: what(), message: String::new() }),
                "fetch-failed",
                "situla login",
            ),
            (client(keyring()), "fetch-failed", "mend /file"),
            (layers(stream(keyring())), "fetch-failed", "mend /file"),
            (
                PullError::Store(StoreError::File(file(Doing::Write, "/s", denied()))),
                "setup-failed",
                "SITULA_STORE",
            ),
            (
                PullError::Store(StoreError::NoRoom {
                    path: "/s".into(),
                    needed: 9,
                    left: situla_image::RoomLeft::Quota,
                }),
                "setup-failed",
                "situla prune",
            ),
        ] {
            let json = CommandError::pull(&error).to_json();
            assert_eq!(json["class"], class, "{json}");
            assert!(json["remedy"].as_str().unwrap().contains(remedy), "{json}");
        }
    }

    #[test]
    fn conversions_name_what_is_wrong() {
        let path = || PathBuf::from("/x.sif");
        let missing = io::Error::from(ErrorKind::NotFound);
        for (error, class) in [
            (ConvertError::Exists { path: path() }, "bad-option"),
            (ConvertError::File(file(Doing::Read, "/x.sif", missing)), "image-missing"),
            (ConvertError::UnknownFormat { path: path() }, "image-corrupt"),
            (ConvertError::Damaged { path: path(), source: mismatch() }, "digest-mismatch"),
        ] {
            let json = CommandError::convert(&error).to_json();
            assert_eq!(json["class"], class, "{json}");
            assert!(json["message"].as_str().unwrap().contains("/x.sif"), "{json}");
            assert!(!json["remedy"].is_null(), "{json}");
        }
    }
}
