//! The decision.

use std::path::Path;

use crate::policy::{FileRules, Mode, OptionRule, Policy, RegistryRules, is_plain};
use crate::request::{BindUse, Image, RegistryImage, Request, RequestedOption};
use crate::verdict::{Decision, Reason, Rule, Verdict};

/// Entries of an allow list that a remedy quotes.
const MAX_QUOTED: usize = 5;

/// Judges a request; all broken rules are listed.
pub fn decide(request: &Request, policy: &Policy) -> Verdict {
    let mut judge = Judge { source: &policy.source, reasons: Vec::new() };
    match &request.image {
        Image::Registry(image) => judge.registry(image, &policy.registry),
        Image::File { path, digest } => judge.file(path, digest.as_deref(), &policy.files),
        Image::Directory { path } => judge.file(path, None, &policy.files),
    }
    for option in &request.options {
        judge.option(option, &policy.options.refuse);
    }
    let decision = match (judge.reasons.is_empty(), policy.mode) {
        (true, _) | (false, Mode::Audit) => Decision::Allow,
        (false, Mode::Warn) => Decision::Warn,
        (false, Mode::Enforce) => Decision::Deny,
    };
    Verdict { decision, mode: policy.mode, policy: policy.source.clone(), reasons: judge.reasons }
}

struct Judge<'a> {
    source: &'a str,
    reasons: Vec<Reason>,
}

impl Judge<'_> {
    fn broken(&mut self, key: &str, entry: Option<String>, message: String, remedy: String) {
        let rule = Rule { key: key.to_owned(), entry, source: self.source.to_owned() };
        self.reasons.push(Reason { rule, message, remedy });
    }

    fn registry(&mut self, image: &RegistryImage, rules: &RegistryRules) {
        let RegistryImage { registry, repository, .. } = image;
        let name = format!("{registry}/{repository}");
        if let Some(glob) = rules.deny.iter().find(|glob| glob.matches(registry, repository)) {
            self.broken(
                "registry.deny",
                Some(glob.to_string()),
                format!("image {name} is denied at this site"),
                "use another image or ask the site to lift the rule".to_owned(),
            );
        } else if let Some(allow) = &rules.allow
            && !allow.iter().any(|glob| glob.matches(registry, repository))
        {
            self.broken(
                "registry.allow",
                None,
                format!("image {name} is not from an allowed registry"),
                match allow.is_empty() {
                    true => "this site allows no registry: use an image file".to_owned(),
                    false => format!("use an image that matches {}", quote(allow)),
                },
            );
        }
        if rules.require_digest && !image.digest.as_deref().is_some_and(is_digest) {
            self.broken(
                "registry.require-digest",
                None,
                match &image.tag {
                    Some(tag) => format!("image {name}:{tag} is named by a tag, which can change"),
                    None => format!("image {name} is not named by digest"),
                },
                format!("name it as {name}@sha256:DIGEST"),
            );
        }
    }

    fn file(&mut self, path: &Path, digest: Option<&str>, rules: &FileRules) {
        let shown = path.display();
        let restricted = rules.allow.is_some() || !rules.deny.is_empty();
        if restricted && !is_plain(path) {
            // Only a resolved path can be held against a prefix.
            self.broken(
                if rules.allow.is_some() { "files.allow" } else { "files.deny" },
                None,
                format!("image path {shown} is not a resolved absolute path"),
                "name the image by its real path".to_owned(),
            );
        } else if let Some(prefix) = rules.deny.iter().find(|prefix| prefix.covers(path)) {
            self.broken(
                "files.deny",
                Some(prefix.to_string()),
                format!("image {shown} lies in a denied directory"),
                "use an image from another directory or ask the site to lift the rule".to_owned(),
            );
        } else if let Some(allow) = &rules.allow
            && !allow.iter().any(|prefix| prefix.covers(path))
        {
            self.broken(
                "files.allow",
                None,
                format!("image {shown} is not in an allowed directory"),
                match allow.is_empty() {
                    true => "this site allows no image files: use a registry".to_owned(),
                    false => format!("use an image below {}", quote(allow)),
                },
            );
        }
        if rules.require_digest && !digest.is_some_and(is_digest) {
            self.broken(
                "files.require-digest",
                None,
                format!("the content of {shown} has no verified digest"),
                "name the image in a registry, as docker://REGISTRY/NAME@sha256:DIGEST".to_owned(),
            );
        }
    }

    fn option(&mut self, option: &RequestedOption, refuse: &[OptionRule]) {
        let Some(rule) = refuse.iter().find(|rule| breaks(option, rule)) else { return };
        let (message, remedy) = match option {
            RequestedOption::Named(name) => {
                (format!("option {name} is refused at this site"), format!("run without {name}"))
            }
            RequestedOption::Bind(bind) => (
                format!("bind of {} is refused at this site", bind.source.display()),
                match rule {
                    OptionRule::BindWritable(_) => "bind it read-only (:ro) or leave it out".to_owned(),
                    _ => "run without this bind".to_owned(),
                },
            ),
        };
        self.broken("options.refuse", Some(rule.to_string()), message, remedy);
    }
}

fn breaks(option: &RequestedOption, rule: &OptionRule) -> bool {
    match (option, rule) {
        (RequestedOption::Named(name), OptionRule::Named(refused)) => name == refused,
        (RequestedOption::Bind(_), OptionRule::Named(refused)) => refused == "bind",
        (RequestedOption::Bind(bind), OptionRule::Bind(prefix)) => {
            // A parent of the path shows the path too. A source that is not resolved could be anything.
            prefix.covers(&bind.source) || prefix.is_within(&bind.source) || !is_plain(&bind.source)
        }
        (RequestedOption::Bind(BindUse { read_only: true, .. }), OptionRule::BindWritable(_)) => false,
        (RequestedOption::Bind(_), OptionRule::BindWritable(prefix)) => {
            breaks(option, &OptionRule::Bind(prefix.clone()))
        }
        (RequestedOption::Named(_), OptionRule::Bind(_) | OptionRule::BindWritable(_)) => false,
    }
}

/// Tells whether a text is a complete digest; a cut-off one pins nothing.
fn is_digest(text: &str) -> bool {
    let length = match text.split_once(':') {
        Some(("sha256", hex)) => (hex, 64),
        Some(("sha512", hex)) => (hex, 128),
        _ => return false,
    };
    let (hex, want) = length;
    hex.len() == want && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn quote<T: ToString>(list: &[T]) -> String {
    let mut text = list.iter().take(MAX_QUOTED).map(ToString::to_string).collect::<Vec<_>>().join(" or ");
    if list.len() > MAX_QUOTED {
        text.push_str(" or others");
    }
    text
}

#[cfg(test)]
mod tests;
