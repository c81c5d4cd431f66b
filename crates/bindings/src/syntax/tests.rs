use super::*;

/// Writes binds as `SRC:DST:ro` or `SRC:DST:rw`.
fn show(binds: Result<Vec<BindRequest>, SyntaxError>) -> Result<String, SyntaxError> {
    let one = |bind: &BindRequest| {
        let source = match &bind.source {
            BindSource::Host(path) => path.display().to_string(),
            BindSource::Tmpfs { size } => format!("tmpfs({size:?})"),
            BindSource::MinimalDev => "dev".to_owned(),
            BindSource::Image(ImageSource { path, directory, object }) => {
                let object = object.map(|id| format!(", {id}")).unwrap_or_default();
                format!("image({}, {directory}{object})", path.display())
            }
        };
        format!("{source}|{}|{}", bind.destination.display(), if bind.read_only { "ro" } else { "rw" })
    };
    Ok(binds?.iter().map(one).collect::<Vec<_>>().join(" "))
}

const CWD: &str = "/start/dir";

fn bind(text: &str) -> Result<String, SyntaxError> {
    show(parse_apptainer_bind(text, Path::new(CWD), "--bind"))
}

fn mount(text: &str) -> Result<String, SyntaxError> {
    show(parse_apptainer_mount(text, Path::new(CWD), "--mount"))
}

fn pyxis(text: &str) -> Result<String, SyntaxError> {
    show(parse_pyxis_mounts(text, Path::new(CWD), "--container-mounts").map(|mounts| mounts.binds))
}

#[test]
fn apptainer_binds() {
    let table = [
        ("/a", "/a|/a|rw"),
        ("/a:/b", "/a|/b|rw"),
        ("/a:/b:ro", "/a|/b|ro"),
        ("/a:/b:rw,/c", "/a|/b|rw /c|/c|rw"),
        ("/a,/b:/c:ro,/d:/e", "/a|/a|rw /b|/c|ro /d|/e|rw"),
        ("/a:/b:ro,ro", "/a|/b|ro"),
        // Without options of its own, a word like an option is a relative path.
        ("/a:/b,ro", "/a|/b|rw /start/dir/ro|/start/dir/ro|rw"),
        ("/a:/b:ro,ro/x", "/a|/b|ro /start/dir/ro/x|/start/dir/ro/x|rw"),
        (r"/a\:b:/c\,d", "/a:b|/c,d|rw"),
        (r"/a\b", r"/a\b|/a\b|rw"),
        ("data", "/start/dir/data|/start/dir/data|rw"),
        ("./data/:/d//e/", "/start/dir/data|/d/e|rw"),
        ("../x:/x", "/start/dir/../x|/x|rw"),
        ("/é:/ü:ro", "/é|/ü|ro"),
        ("/a.sqsh:/b:image-src=/", "image(/a.sqsh, /)|/b|ro"),
        ("a.sif:/b:image-src=/x//y/,id=3,/c", "image(/start/dir/a.sif, /x/y, 3)|/b|ro /c|/c|rw"),
        ("/a.sif:/b:ro,id=3,image-src=/x", "image(/a.sif, /x, 3)|/b|ro"),
    ];
    for (text, want) in table {
        assert_eq!(bind(text).as_deref(), Ok(want), "{text}");
    }
}

#[test]
fn apptainer_binds_that_are_refused() {
    use SyntaxError as E;
    type Fits = fn(&E) -> bool;
    let is: [(&str, Fits); 18] = [
        ("", |e| matches!(e, E::NoSource { .. })),
        (":/b", |e| matches!(e, E::NoSource { .. })),
        ("/a,", |e| matches!(e, E::NoSource { .. })),
        ("/a::ro", |e| matches!(e, E::NoDestination { .. })),
        ("/a:/b:ro:rw", |e| matches!(e, E::TooManyFields { .. })),
        ("/a:b", |e| matches!(e, E::BadDestination { .. })),
        ("/a:/", |e| matches!(e, E::BadDestination { .. })),
        ("/", |e| matches!(e, E::BadDestination { .. })),
        ("/a:/b/../c", |e| matches!(e, E::BadDestination { .. })),
        ("/a:/b:readonly", |e| matches!(e, E::UnknownOption { .. })),
        ("/a:/b:ro,rw", |e| matches!(e, E::Contradiction { .. })),
        ("/a.sif:/b:image-src=x", |e| matches!(e, E::BadImage { .. })),
        ("/a.sif:/b:image-src=/../x", |e| matches!(e, E::BadImage { .. })),
        ("/a.sif:/b:image-src=/,id=0", |e| matches!(e, E::BadImage { .. })),
        ("/a.sif:/b:image-src=", |e| matches!(e, E::BadImage { .. })),
        ("/a.sif:/b:id=1", |e| matches!(e, E::NoImage { .. })),
        ("/a.sif:/b:image-src=/,rw", |e| matches!(e, E::Contradiction { .. })),
        ("/a\0:/b", |e| matches!(e, E::BadPath { .. })),
    ];
    for (text, fits) in is {
        let error = bind(text).expect_err(text);
        assert!(fits(&error), "{text}: {error}");
    }
    assert!(matches!(bind(&format!("/{}", "x".repeat(5000))), Err(E::BadPath { .. })));
    assert!(matches!(bind(&"/a,".repeat(2000)), Err(E::TooMany { .. })));
}

#[test]
fn apptainer_mounts() {
    let table = [
        ("type=bind,src=/a,dst=/b", "/a|/b|rw"),
        ("type=bind,source=/a,destination=/b,ro", "/a|/b|ro"),
        ("src=/a,target=/b,readonly", "/a|/b|ro"),
        ("type=bind,\"src=/a,b\",dst=/c", "/a,b|/c|rw"),
        ("type=bind,\"src=/a\"\"b\",dst=/c", "/a\"b|/c|rw"),
        ("type=bind,src=/a:x,dst=/b", "/a:x|/b|rw"),
        ("type=bind,src=/a,dst=/b\n\ntype=bind,src=/c,dst=/d,ro\n", "/a|/b|rw /c|/d|ro"),
        ("type=bind,src=a.sif,dst=/b,image-src=/x,id=2", "image(/start/dir/a.sif, /x, 2)|/b|ro"),
        ("", ""),
    ];
    for (text, want) in table {
        assert_eq!(mount(text).as_deref(), Ok(want), "{text}");
    }
    for text in [
        "type=bind,src=/a",
        "type=bind,dst=/a",
        "type=tmpfs,dst=/a",
        "type=bind,src=,dst=/a",
        "type=bind,src=/a,dst=b",
        "type=bind,src=/a,dst=/b,bind-propagation=shared",
        "type=bind,src=/a,dst=/b,image-src",
        "type=bind,src=/a,dst=/b,image-src=..",
        "type=bind,src=/a,dst=/b,image-src=/,rw",
        "type=bind,src=/a,dst=/b,id=2",
        "type=bind,src=/a,dst=/b,read-only",
        "type=bind,src=/a,dst=/b,ro,rw",
        "type=bind,\"src=/a,dst=/b",
        "type=bind,src=/\"a\",dst=/b",
        "type=bind,\"src=/a\"x,dst=/b",
        "type=bind,src=/a,dst=/b,",
    ] {
        assert!(mount(text).is_err(), "{text}");
    }
}

#[test]
fn pyxis_mounts() {
    let table = [
        ("/a", "/a|/a|rw"),
        ("/a:/b,/c:/d:ro", "/a|/b|rw /c|/d|ro"),
        ("/a:/b:ro+rbind+rprivate", "/a|/b|ro"),
        ("/a:/b,/a:/b", "/a|/b|rw"),
        ("./data", "/start/dir/data|/start/dir/data|rw"),
        (".:/here", "/start/dir|/here|rw"),
        ("tmpfs:/scratch", "tmpfs(None)|/scratch|rw"),
        ("tmpfs:/scratch:size=2m+noexec", "tmpfs(Some(2097152))|/scratch|rw"),
        (r"/a\,b\:c:/d\,e:ro,/f", "/a,b:c|/d,e|ro /f|/f|rw"),
        ("/a,umount:/tmp", "/a|/a|rw"),
        ("/a.sqsh:/b:sqsh,./c.sqsh:/d:ro+sqsh", "image(/a.sqsh, /)|/b|ro image(/start/dir/c.sqsh, /)|/d|ro"),
    ];
    for (text, want) in table {
        assert_eq!(pyxis(text).as_deref(), Ok(want), "{text}");
    }
    let unmounted = parse_pyxis_mounts(r"umount:/tmp,/a,umount:/x\:y", Path::new(CWD), "o").expect("paths");
    assert_eq!(unmounted.unmounted, [Path::new("/tmp"), Path::new("/x:y")]);
    let flags =
        parse_pyxis_mounts("/a:/b:bind+private+noexec+nofail", Path::new(CWD), "o").expect("known flags");
    let bind = &flags.binds[0];
    assert!(!bind.recursive && bind.no_exec && bind.optional && bind.propagation == Propagation::Private);
}

#[test]
fn mounts_of_environments() {
    let parse = |text: &str| show(parse_edf_mount(text, Path::new(CWD), "o").map(|bind| vec![bind]));
    for (text, want) in [
        ("/a:/b", "/a|/b|rw"),
        ("./a:/b:ro", "/start/dir/a|/b|ro"),
        ("/a:/b:ro+private", "/a|/b|ro"),
        ("/a:/b:private,ro", "/a|/b|ro"),
        ("./a.sqsh:/b:sqsh", "image(/start/dir/a.sqsh, /)|/b|ro"),
        ("/a.sqsh:/b:nofail,sqsh", "image(/a.sqsh, /)|/b|ro"),
    ] {
        assert_eq!(parse(text).as_deref(), Ok(want), "{text}");
    }
    for text in
        ["/a", "", "/a:", "a:/b", "/a:b", "/a:/b:fast", "/a:/b:ro:x", "/a.sqsh:/b:sqsh,rw", "a.sqsh:/b:sqsh"]
    {
        assert!(parse(text).is_err(), "{text}");
    }
}

#[test]
fn pyxis_mounts_that_are_refused() {
    for text in [
        "",
        "/a,",
        ":/b",
        "/a:",
        "/a::ro",
        "data:/b",
        "overlay:/b",
        "umount:",
        "umount:proc",
        "umount:/a:/b/..",
        "tmpfs",
        "tmpfs:",
        "/a:b",
        "/a:./b",
        "/a:/b:ro:x",
        "/a:/b:readonly",
        "/a:/b:ro+",
        "/a:/b:ro+rw",
        "/a:/b:size=1m",
        "tmpfs:/b:size=x",
        "tmpfs:/b:size=99999999999999999999g",
        "/a:/b:shared",
        "/a:/b:sqsh+rw",
        "/a:/b:bind+sqsh",
        "/a:/b:sqsh+private",
        "tmpfs:/b:sqsh",
    ] {
        assert!(pyxis(text).is_err(), "{text:?}");
    }
    let error = pyxis("/a:/b:readonly").expect_err("unknown").to_string();
    assert!(error.contains("readonly") && error.contains("rprivate"), "{error}");
}

#[test]
fn a_bind_says_who_asked() {
    let binds = parse_apptainer_bind("/a:/b", Path::new("/"), "APPTAINER_BIND").expect("fine");
    assert_eq!(binds[0].origin, Origin::User("APPTAINER_BIND".to_owned()));
    assert_eq!(binds[0].reason, "APPTAINER_BIND /a:/b");
}
