//! Whole homes, with files of several tools and a helper.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use super::*;

/// A home directory, and the variables of its user.
struct Home {
    dir: TempDir,
}

impl Home {
    fn new(files: &[(&str, &str)]) -> Self {
        let home = Self { dir: tempfile::tempdir().unwrap() };
        for (name, text) in files {
            let path = home.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn files(&self, user: Option<&str>) -> Files {
        self.files_by("", user)
    }

    /// The same with a `registries.conf`.
    fn files_by(&self, registries: &str, user: Option<&str>) -> Files {
        let mut read = Registries::default();
        read.add(registries).unwrap();
        let home = self.dir.path().display().to_string();
        let variable = move |name: &str| (name == "HOME").then(|| home.clone());
        let mut files = Files::new(Places::of(&variable, None), &read, user.map(str::to_owned));
        // The machine's own are none of the test's business.
        files.places.certificates.retain(|place| place.starts_with(self.dir.path()));
        let path = format!("{}:/usr/bin:/bin", self.path("bin").display());
        files.programs = Programs { limit: Duration::from_secs(20), path: Some(path.into()) };
        files
    }

    /// Puts a helper into the search path, which keeps logins in files beside it.
    fn install_helper(&self, suffix: &str) {
        let kept = self.path("kept").display().to_string();
        fs::create_dir_all(self.path("kept")).unwrap();
        let script = format!(
            "#!/bin/sh\nread -r input || :\n[ \"$1\" = store ] || input=$(printf %s \"$input\" | tr / _)\ncase $1 in\n\
             get) cat '{kept}/'\"$input\" 2>/dev/null || {{ echo credentials not found in native keychain; exit 1; }};;\n\
             store) host=${{input#*ServerURL\\\":\\\"}}; printf %s \"$input\" > '{kept}/'\"${{host%%\\\"*}}\";;\n\
             erase) rm '{kept}/'\"$input\";;\n\
             list) ls '{kept}' | tr _ / | sed 's/.*/\"&\":\"me\"/' | paste -sd, | sed 's/^/{{/; s/$/}}/';;\nesac\n"
        );
        let path = self.path(&format!("bin/docker-credential-{suffix}"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn password(user: &str, password: &str) -> Login {
    Login::Password { user: user.to_owned(), password: Secret::new(password) }
}

/// Who is found for a registry, and in which file; or why nobody is.
fn found(files: &Files, registry: &str) -> String {
    match files.login(&registry.parse().unwrap(), None) {
        Ok(None) => "nobody".to_owned(),
        Ok(Some(Credentials { login: Login::Password { user, password }, origin, of_any_port })) => {
            let name = origin.rsplit('/').next().unwrap_or_default();
            let kept = if of_any_port { " of any port" } else { "" };
            format!("{user} {} {name}{kept}", password.expose())
        }
        Ok(Some(other)) => format!("{other:?}"),
        Err(error) => format!("{error}; {}", error.remedy),
    }
}

const DOCKER: &str = ".docker/config.json";

#[test]
fn files_of_all_tools_are_asked_in_their_order() {
    // Docker's has "d:p", containers' "c:p", Apptainer's "a:p".
    let home = Home::new(&[
        (DOCKER, r#"{"auths": {"one.example": {"auth": "ZDpw"}}}"#),
        (
            ".config/containers/auth.json",
            r#"{"auths": {"one.example": {"auth": "Yzpw"}, "two.example": {"auth": "Yzpw"}}}"#,
        ),
        (
            ".apptainer/docker-config.json",
            r#"{"auths": {"two.example": {"auth": "YTpw"}, "three.example": {"auth": "YTpw"}}}"#,
        ),
        (
            ".config/enroot/.credentials",
            "machine three.example login e password p\nmachine four.example login e password p\nmachine five.example login $oauthtoken password $(echo s3cret)\n",
        ),
        (
            ".netrc",
            "machine four.example login n password p\nmachine six.example login n password p\nmachine eight.example login n password q\nmachine eight.example:5000 login n password p\ndefault login x password y\n",
        ),
    ]);
    let files = home.files(None);
    for (registry, want) in [
        ("one.example", "d p config.json"),
        ("two.example", "c p auth.json"),
        ("three.example", "a p docker-config.json"),
        ("four.example", "e p .credentials"),
        ("four.example:5000", "e p .credentials of any port"),
        ("eight.example:5000", "n p .netrc"),
        ("eight.example:5001", "n q .netrc of any port"),
        ("eight.example", "n q .netrc"),
        ("five.example", "$oauthtoken s3cret .credentials"),
        ("six.example", "n p .netrc"),
        ("seven.example", "nobody"),
        ("one.example:5000", "nobody"),
    ] {
        assert_eq!(found(&files, registry), want, "{registry}");
    }
    // The one user who was named.
    let theirs = home.files(Some("n"));
    assert_eq!(found(&theirs, "four.example"), "n p .netrc");
    assert_eq!(
        found(&theirs, "one.example"),
        "no password of n is known, but one of d; situla login one.example -u n"
    );
    assert_eq!(found(&Home::new(&[]).files(None), "one.example"), "nobody");
}

#[test]
fn a_file_that_cannot_be_read_is_named_where_it_may_matter() {
    let home = Home::new(&[
        (DOCKER, "{\"auths\": {\"a.example\": {\"auth\": \"c2VjcmV0OnNlY3JldA==\""),
        (".netrc", "machine b.example login n password p"),
    ]);
    let files = home.files(None);
    assert_eq!(found(&files, "b.example"), "n p .netrc");
    let error = found(&files, "a.example");
    assert!(error.contains(DOCKER) && error.contains("no JSON") && !error.contains("c2Vj"), "{error}");
    // Somebody else's commands are not run; that somebody else reads it is his owner's business.
    let home = Home::new(&[(
        ".config/enroot/.credentials",
        "machine a.example login e password $(touch ran; echo x)",
    )]);
    let path = home.path(".config/enroot/.credentials");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
    let error = found(&home.files(None), "a.example");
    assert!(error.contains("can be written by others") && error.contains("chmod 600"), "{error}");
}

#[test]
fn helpers_are_asked_told_and_made_forget() {
    let home =
        Home::new(&[(DOCKER, r#"{"credHelpers": {"a.example": "test"}, "credsStore": "gone", "x": 1}"#)]);
    home.install_helper("test");
    let files = home.files(None);
    let registry: Registry = "a.example".parse().unwrap();
    assert_eq!(found(&files, "a.example"), "nobody");
    assert_eq!(files.keep(&registry, &password("me", "hunter2")).unwrap(), "docker-credential-test");
    assert!(!home.read(DOCKER).contains("hunter2") && home.read(DOCKER).contains("\"x\": 1"));
    assert_eq!(found(&files, "a.example"), "me hunter2 docker-credential-test");
    assert!(files.forget(&registry).unwrap());
    assert!(!files.forget(&registry).unwrap());
    assert_eq!(found(&files, "a.example"), "nobody");
    // A store that is not there matters to those alone whose login it has.
    assert_eq!(found(&files, "b.example"), "nobody");
    let error = files.keep(&"b.example".parse().unwrap(), &password("me", "hunter2")).unwrap_err();
    assert!(error.message.contains("docker-credential-gone is not in the search path"), "{error}");
    let home = Home::new(&[(DOCKER, r#"{"credsStore": "gone", "auths": {"b.example": {}}}"#)]);
    let error = found(&home.files(None), "b.example");
    assert!(error.contains("docker-credential-gone") && error.contains("credsStore"), "{error}");
}

#[test]
fn a_secret_is_forgotten_under_every_name_of_the_server() {
    let secret = r#"{"Username": "me", "Secret": "hunter2"}"#;
    // Docker's own name for it, one that only the helper knows, and those of others.
    let kept = [
        "https:__a.example_v1_",
        "http:__a.example_x",
        "a.example",
        "https:__b.example_v1_",
        "a.example:5000",
    ];
    let home = Home::new(&[(DOCKER, r#"{"credsStore": "test", "auths": {"https://a.example/v1/": {}}}"#)]);
    home.install_helper("test");
    for name in kept {
        fs::write(home.path("kept").join(name), secret).unwrap();
    }
    assert!(home.files(None).forget(&"a.example".parse().unwrap()).unwrap());
    let mut left: Vec<_> =
        fs::read_dir(home.path("kept")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["a.example:5000", "https:__b.example_v1_"]);
    assert!(!home.read(DOCKER).contains("a.example"));
}

#[test]
fn a_helper_that_knows_hosts_alone_is_no_obstacle() {
    let home = Home::new(&[(DOCKER, r#"{"credsStore": "strict"}"#)]);
    home.install_helper("strict");
    let path = home.path("bin/docker-credential-strict");
    let script = fs::read_to_string(&path).unwrap();
    let strict = "case $input in https:*) echo no such host; exit 1;; esac\ncase $1 in";
    fs::write(&path, script.replacen("case $1 in", strict, 1)).unwrap();
    let (files, registry) = (home.files(None), "a.example".parse().unwrap());
    files.keep(&registry, &password("me", "hunter2")).unwrap();
    assert!(files.forget(&registry).unwrap());
    assert_eq!(fs::read_dir(home.path("kept")).unwrap().count(), 0);
    // One that fails for the registry itself is told.
    fs::write(&path, script.replacen("case $1 in", "echo locked; exit 1\ncase $1 in", 1)).unwrap();
    assert!(files.forget(&registry).unwrap_err().message.contains("locked"));
}

#[test]
fn registries_conf_says_which_helpers_are_asked() {
    let home = Home::new(&[
        (DOCKER, r#"{"auths": {"a.example": {"auth": "ZDpw"}, "b.example": {"auth": "ZDpw"}}}"#),
        (".netrc", "machine c.example login n password p"),
    ]);
    home.install_helper("test");
    let kept = |name: &str, user: &str| {
        let text = format!(r#"{{"Username": "{user}", "Secret": "hunter2"}}"#);
        fs::write(home.path("kept").join(name), text).unwrap();
    };
    kept("a.example", "h");
    kept("e.example:5000", "h");
    let found = |helpers: &str, registry: &str| {
        found(&home.files_by(&format!("credential-helpers = [{helpers}]"), None), registry)
    };
    for (helpers, registry, want) in [
        ("", "a.example", "d p config.json"),
        ("", "e.example:5000", "nobody"),
        ("'containers-auth.json'", "a.example", "d p config.json"),
        ("'test', 'containers-auth.json'", "a.example", "h hunter2 docker-credential-test"),
        ("'test', 'containers-auth.json'", "b.example", "d p config.json"),
        ("'containers-auth.json', 'test'", "a.example", "d p config.json"),
        ("'containers-auth.json', 'test'", "e.example:5000", "h hunter2 docker-credential-test"),
        // What is not listed is not asked; netrc is none of its business.
        ("'test'", "b.example", "nobody"),
        ("'test'", "c.example", "n p .netrc"),
        ("'test'", "e.example", "nobody"),
        // One that is missing matters where nobody else has a login.
        ("'missing', 'containers-auth.json'", "b.example", "d p config.json"),
        (
            "'missing', 'containers-auth.json'",
            "e.example",
            "docker-credential-missing is not in the search path; check the helper, or take it out of \
             credential-helpers in registries.conf",
        ),
    ] {
        assert_eq!(found(helpers, registry), want, "{helpers} {registry}");
    }
    // The helpers of single registries, which the file names, are part of the file.
    let own = Home::new(&[(DOCKER, r#"{"credHelpers": {"a.example": "test"}}"#)]);
    own.install_helper("test");
    fs::write(own.path("kept/a.example"), r#"{"Username": "h", "Secret": "s"}"#).unwrap();
    for (list, want) in [("'containers-auth.json'", "h s docker-credential-test"), ("'x'", "search path")] {
        let files = own.files_by(&format!("credential-helpers = [{list}]"), None);
        let found = super::tests::found(&files, "a.example");
        assert!(found.contains(want), "{list}: {found}");
    }
}

#[test]
fn new_logins_go_to_the_first_helper() {
    let home = Home::new(&[(DOCKER, r#"{"auths": {"b.example": {"auth": "ZDpw"}}}"#)]);
    home.install_helper("test");
    let registry: Registry = "a.example".parse().unwrap();
    let login = password("me", "hunter2");
    let files = home.files_by("credential-helpers = ['test', 'containers-auth.json']", None);
    assert_eq!(files.keep(&registry, &login).unwrap(), "docker-credential-test");
    assert!(!home.read(DOCKER).contains("a.example"));
    assert!(home.path("kept/a.example").exists());
    assert!(files.forget(&registry).unwrap());
    assert!(!home.path("kept/a.example").exists());
    assert!(!files.forget(&registry).unwrap());
    assert!(files.forget(&"b.example".parse().unwrap()).unwrap(), "the file's are forgotten as well");
    // Files come first, or one was named.
    let files = home.files_by("credential-helpers = ['containers-auth.json', 'test']", None);
    assert!(files.keep(&registry, &login).unwrap().ends_with(DOCKER));
    let mut files = home.files_by("credential-helpers = ['test']", None);
    let named = home.path("named.json");
    files.places = Places { named: Some(named.clone()), written: Some(named.clone()), ..files.places };
    assert_eq!(files.keep(&registry, &login).unwrap(), named.display().to_string());
    assert_eq!(found(&files, "a.example"), "me hunter2 named.json");
    // One that cannot keep it says so.
    let missing = home.files_by("credential-helpers = ['missing']", None);
    let error = missing.keep(&registry, &login).unwrap_err();
    assert!(error.message.contains("docker-credential-missing") && error.remedy.contains("registries.conf"));
}

#[test]
fn a_secret_that_stays_is_told() {
    let secret = r#"{"Username": "me", "Secret": "hunter2"}"#;
    // One that the file has, one that only the helper knows, and one with another helper that is not asked for logins.
    for (config, name) in [
        (r#"{"credsStore": "test", "auths": {"https://a.example/v1/": {}}}"#, "https:__a.example_v1_"),
        (r#"{"credsStore": "test"}"#, "http:__a.example_x"),
        (r#"{"credsStore": "test", "credHelpers": {"a.example": "other"}}"#, "https:__a.example_v2_"),
    ] {
        let home = Home::new(&[(DOCKER, config)]);
        home.install_helper("test");
        home.install_helper("other");
        fs::write(home.path("kept").join(name), secret).unwrap();
        let path = home.path("bin/docker-credential-test");
        let script = fs::read_to_string(&path).unwrap();
        // It neither shows nor erases what it has.
        let locked = "case $1 in get|erase) [ ! -e '{kept}/'\"$input\" ] || { echo locked; exit 1; };; esac\ncase $1 in"
            .replace("{kept}", &home.path("kept").display().to_string());
        fs::write(&path, script.replacen("case $1 in", &locked, 1)).unwrap();
        // The other one shares its files, and has nothing.
        let none = "#!/bin/sh\n[ $1 = list ] && { echo '{}'; exit; }\necho credentials not found; exit 1\n";
        fs::write(home.path("bin/docker-credential-other"), none).unwrap();
        let error = home.files(None).forget(&"a.example".parse().unwrap()).unwrap_err();
        assert!(
            error.message.contains("docker-credential-test") && error.message.contains("locked"),
            "{error}"
        );
        assert!(home.path("kept").join(name).exists());
    }
}

#[test]
fn a_helper_that_hangs_has_one_patience() {
    let home = Home::new(&[(DOCKER, r#"{"credsStore": "slow", "auths": {"https://a.example/v1/": {}}}"#)]);
    home.install_helper("slow");
    // It is asked for hosts, and hangs with all else.
    let script = "#!/bin/sh\nread -r input || :\n[ \"$input\" != a.example ] || { echo credentials not found; exit 1; }\nexec sleep 60\n";
    fs::write(home.path("bin/docker-credential-slow"), script).unwrap();
    let mut files = home.files(None);
    files.programs.limit = Duration::from_secs(2);
    let began = Instant::now();
    let error = files.forget(&"a.example".parse().unwrap()).unwrap_err();
    assert!(error.message.contains("gives no answer within 2 s"), "{error}");
    // Each name and the list of them would take two seconds more.
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

#[test]
fn where_there_is_nothing_to_forget_nothing_is_made() {
    let home = Home::new(&[]);
    assert!(!home.files(None).forget(&"a.example".parse().unwrap()).unwrap());
    assert!(!home.path(".docker").exists());
    // Nor does anybody need to be able to write there.
    let home = Home::new(&[(DOCKER, r#"{"auths": {"b.example": {"auth": "eDp5"}}}"#)]);
    let before = fs::metadata(home.path(".docker")).unwrap().modified().unwrap();
    assert!(!home.files(None).forget(&"a.example".parse().unwrap()).unwrap());
    assert_eq!(fs::metadata(home.path(".docker")).unwrap().modified().unwrap(), before);
}

#[test]
fn logins_at_the_same_time_are_all_kept() {
    const N: u32 = 12;
    let home = Home::new(&[(DOCKER, r#"{"x": 1}"#)]);
    let together = std::sync::Barrier::new(N as usize);
    std::thread::scope(|scope| {
        for n in 0..N {
            let (home, together) = (&home, &together);
            scope.spawn(move || {
                let files = home.files(None);
                together.wait();
                files.keep(&format!("r{n}.example").parse().unwrap(), &password("me", "pw")).unwrap();
            });
        }
    });
    let text: serde_json::Value = serde_json::from_str(&home.read(DOCKER)).unwrap();
    assert_eq!((text["auths"].as_object().unwrap().len(), &text["x"]), (N as usize, &serde_json::json!(1)));
    assert_eq!(fs::read_dir(home.path(".docker")).unwrap().count(), 1, "nothing else stays");
}

#[test]
fn logins_are_kept_for_their_owner_alone() {
    let home = Home::new(&[("real.json", r#"{"auths": {"b.example": {"auth": "eDp5"}}, "other": true}"#)]);
    fs::create_dir(home.path(".docker")).unwrap();
    symlink("../real.json", home.path(DOCKER)).unwrap();
    fs::set_permissions(home.path("real.json"), fs::Permissions::from_mode(0o644)).unwrap();
    let files = home.files(None);
    let registry: Registry = "a.example:5000".parse().unwrap();
    let place = files.keep(&registry, &password("me", "hunter2")).unwrap();
    assert!(place.ends_with(DOCKER), "{place}");
    assert!(home.path(DOCKER).is_symlink(), "the link stays");
    assert_eq!(fs::metadata(home.path("real.json")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(home.read("real.json").contains("\"other\": true"));
    assert_eq!(found(&files, "a.example:5000"), "me hunter2 config.json");
    assert_eq!(found(&files, "b.example"), "x y config.json");
    assert!(files.forget(&registry).unwrap());
    assert_eq!(found(&files, "a.example:5000"), "nobody");
    assert_eq!(found(&files, "b.example"), "x y config.json");
    let names: Vec<_> =
        fs::read_dir(home.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "no temporary file stays: {names:?}");
    // Nothing is written over what is not understood.
    let broken = Home::new(&[(DOCKER, "{")]);
    assert!(broken.files(None).keep(&registry, &password("me", "hunter2")).is_err());
    assert_eq!(broken.read(DOCKER), "{");
}

#[test]
fn certificates_are_those_of_the_host() {
    let home = Home::new(&[
        (".config/containers/certs.d/a.example:5000/ca.crt", "one"),
        (".config/containers/certs.d/a.example:5000/more.crt", "two"),
        (".config/containers/certs.d/a.example:5000/client.cert", "chain"),
        (".config/containers/certs.d/a.example:5000/client.key", "key"),
        (".config/containers/certs.d/a.example:5000/notes.txt", "x"),
        (".config/containers/certs.d/b.example/client.cert", "chain"),
        (".config/containers/ca.crt", "not of a host"),
    ]);
    let files = home.files(None);
    let certificates = files.certificates("a.example:5000").unwrap().unwrap();
    assert_eq!(certificates.authorities, [b"one", b"two"]);
    assert_eq!(certificates.client.unwrap().chain, b"chain");
    assert_eq!(files.certificates("a.example").unwrap(), None);
    for host in ["..", ".", "", "a/b"] {
        assert_eq!(files.certificates(host).unwrap(), None, "{host}");
    }
    let error = files.certificates("b.example").unwrap_err();
    assert!(error.message.contains("client.key"), "{error}");
}
