use super::*;
use crate::request::Subject;

const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

const SITE: &str = r#"
    [registry]
    allow = ["127.0.0.1:5000/demo/*", "registry.example/library/*"]
    deny = ["registry.example/library/evil"]
    [files]
    allow = ["/apps/images", "/scratch"]
    deny = ["/scratch/incoming"]
    [options]
    refuse = ["writable", "bind:/etc", "bind-rw:/apps"]
"#;

fn policy(text: &str) -> Policy {
    Policy::parse(text, "site.toml").expect("well formed")
}

fn request(image: Image, options: Vec<RequestedOption>) -> Request {
    Request { image, options, subject: Subject::default() }
}

fn registry(registry: &str, repository: &str, digest: Option<&str>) -> Image {
    Image::Registry(RegistryImage {
        registry: registry.to_owned(),
        repository: repository.to_owned(),
        tag: Some("1".to_owned()),
        digest: digest.map(str::to_owned),
    })
}

fn file(path: &str) -> Image {
    Image::File { path: path.into(), digest: None }
}

fn bind(source: &str, read_only: bool) -> RequestedOption {
    RequestedOption::Bind(BindUse { source: source.into(), read_only })
}

/// The keys of all broken rules.
fn keys(request: &Request, policy: &Policy) -> Vec<String> {
    decide(request, policy).reasons.into_iter().map(|reason| reason.rule.key).collect()
}

#[test]
fn images_are_judged_by_source() {
    let site = policy(SITE);
    let table: &[(Image, &[&str])] = &[
        (registry("127.0.0.1:5000", "demo/python", None), &[]),
        (registry("registry.example", "library/debian", None), &[]),
        (registry("registry.example", "library/evil", None), &["registry.deny"]),
        (registry("registry.example", "someone/debian", None), &["registry.allow"]),
        (registry("hub.example", "library/debian", None), &["registry.allow"]),
        (file("/apps/images/a.sif"), &[]),
        (file("/scratch/alice/a.sqsh"), &[]),
        (file("/scratch/incoming/a.sqsh"), &["files.deny"]),
        (file("/scratch-old/a.sqsh"), &["files.allow"]),
        (file("a.sqsh"), &["files.allow"]),
        (file("/scratch/../home/alice/a.sqsh"), &["files.allow"]),
        (Image::Directory { path: "/home/alice/rootfs".into() }, &["files.allow"]),
        (Image::Directory { path: "/scratch/rootfs".into() }, &[]),
    ];
    for (image, want) in table {
        assert_eq!(keys(&request(image.clone(), vec![]), &site), *want, "{image:?}");
    }
}

#[test]
fn options_are_judged() {
    let site = policy(SITE);
    let table: &[(RequestedOption, bool)] = &[
        (RequestedOption::Named("writable".into()), false),
        (RequestedOption::Named("writable-tmpfs".into()), true),
        (bind("/etc", true), false),
        (bind("/etc/passwd", true), false),
        (bind("/etcetera", true), true),
        (bind("/", true), false),
        (bind("/home/../etc", true), false),
        (bind("relative", true), false),
        (bind("/apps/tool", true), true),
        (bind("/apps/tool", false), false),
        (bind("/scratch", false), true),
    ];
    for (option, fine) in table {
        let request = request(file("/scratch/a.sif"), vec![option.clone()]);
        assert_eq!(keys(&request, &site).is_empty(), *fine, "{option:?}");
    }
    let none = policy("[options]\nrefuse = [\"bind\"]");
    assert_eq!(keys(&request(file("/a.sif"), vec![bind("/scratch", true)]), &none), ["options.refuse"]);
}

#[test]
fn digests_can_be_required() {
    let site = policy("[registry]\nrequire-digest = true\n[files]\nrequire-digest = true");
    let cut = &DIGEST[..60];
    let table = [
        (registry("r", "a", Some(DIGEST)), vec![]),
        (registry("r", "a", None), vec!["registry.require-digest"]),
        (registry("r", "a", Some(cut)), vec!["registry.require-digest"]),
        (registry("r", "a", Some("md5:00")), vec!["registry.require-digest"]),
        (file("/a.sif"), vec!["files.require-digest"]),
        (Image::File { path: "/a.sif".into(), digest: Some(DIGEST.to_owned()) }, vec![]),
        (Image::Directory { path: "/a".into() }, vec!["files.require-digest"]),
    ];
    for (image, want) in table {
        assert_eq!(keys(&request(image.clone(), vec![]), &site), want, "{image:?}");
    }
}

#[test]
fn the_mode_decides_what_a_broken_rule_does() {
    let request = request(file("/home/alice/a.sif"), vec![RequestedOption::Named("writable".into())]);
    for (mode, want) in [("enforce", Decision::Deny), ("warn", Decision::Warn), ("audit", Decision::Allow)] {
        let verdict = decide(&request, &policy(&format!("mode = \"{mode}\"\n{SITE}")));
        assert_eq!((verdict.decision, verdict.reasons.len()), (want, 2), "{mode}");
    }
}

#[test]
fn empty_lists_allow_nothing_and_absent_ones_everything() {
    let none = policy("[registry]\nallow = []\n[files]\nallow = []");
    assert_eq!(keys(&request(registry("r", "a", None), vec![]), &none), ["registry.allow"]);
    assert_eq!(keys(&request(file("/a"), vec![]), &none), ["files.allow"]);
    let everything = Policy::default();
    for image in [registry("r", "a", None), file("/a"), file("relative")] {
        let options = vec![bind("/etc", false), RequestedOption::Named("writable".into())];
        assert_eq!(decide(&request(image, options), &everything).decision, Decision::Allow);
    }
}

#[test]
fn a_reason_names_the_thing_the_rule_and_the_remedy() {
    let verdict = decide(&request(registry("hub.example", "a/b", None), vec![]), &policy(SITE));
    let line = verdict.reasons[0].to_string();
    for part in ["hub.example/a/b", "registry.allow", "site.toml", "127.0.0.1:5000/demo/*"] {
        assert!(line.contains(part), "{line}");
    }
    assert!(!line.contains('\n'));
}

#[test]
fn a_verdict_is_stored_and_read_back() {
    let verdict = decide(&request(file("/home/a.sif"), vec![]), &policy(SITE));
    let json = serde_json::to_value(&verdict).expect("serialisable");
    assert_eq!(json["decision"], "deny");
    assert_eq!(json["mode"], "enforce");
    assert_eq!(json["reasons"][0]["rule"]["key"], "files.allow");
    assert_eq!(serde_json::from_value::<Verdict>(json).expect("readable"), verdict);
}
