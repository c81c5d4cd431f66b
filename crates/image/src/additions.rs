//! What every converted image gets beside its own content.
//!
//! `/.singularity.d` makes Apptainer and Singularity give the image its environment and entry point;
//! `/.situla` holds the exact manifest and configuration, so that the identity can be checked offline.
//! Nothing here depends on time, host or user.

use situla_oci::{ExecConfig, ImageConfig};

use crate::image_parts::{Addition, ImageParts};

/// Path of the manifest in a converted image.
pub const MANIFEST_PATH: &str = ".situla/manifest.json";
/// Path of the image configuration in a converted image.
pub const CONFIG_PATH: &str = ".situla/config.json";
/// Path of the script that sets the image's environment.
pub(crate) const ENVIRONMENT_PATH: &str = ".singularity.d/env/10-docker2singularity.sh";
/// Directory of the Apptainer and Singularity metadata.
pub(crate) const SINGULARITY_DIR: &str = ".singularity.d";

/// Tells Apptainer where its `--env` values go; it also keeps injected host libraries last.
const BASE_ENV: &str = "#!/bin/sh\n\
    # Host libraries that the runtime binds come after the image's own.\n\
    LD_LIBRARY_PATH=\"${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs\"\n\
    PS1=\"Apptainer> \"\n\
    export LD_LIBRARY_PATH PS1\n";
const EMPTY_SCRIPT: &str = "#!/bin/sh\n";

/// Returns what goes above the layers of an OCI image.
#[must_use]
pub fn image_additions(image: &ImageParts) -> Vec<Addition> {
    let mut additions = vec![
        Addition::directory(".situla", 0o755),
        Addition::file(MANIFEST_PATH, 0o644, image.manifest_bytes.clone()),
        Addition::file(CONFIG_PATH, 0o644, image.config_bytes.clone()),
    ];
    additions.extend(singularity_additions(&image.config));
    additions
}

/// Returns `/.singularity.d` for a configuration.
#[must_use]
pub fn singularity_additions(config: &ImageConfig) -> Vec<Addition> {
    let mut labels = serde_json::to_vec_pretty(&config.config.labels).unwrap_or_else(|_| b"{}".to_vec());
    labels.push(b'\n');
    vec![
        Addition::directory(SINGULARITY_DIR, 0o755),
        Addition::directory(".singularity.d/actions", 0o755),
        Addition::directory(".singularity.d/env", 0o755),
        Addition::directory(".singularity.d/libs", 0o755),
        Addition::file(
            ".singularity.d/env/10-docker2singularity.sh",
            0o755,
            environment_script(&config.config),
        ),
        Addition::file(".singularity.d/env/90-environment.sh", 0o755, EMPTY_SCRIPT),
        Addition::file(".singularity.d/env/99-base.sh", 0o755, BASE_ENV),
        Addition::file(".singularity.d/labels.json", 0o644, labels),
        Addition::file(".singularity.d/runscript", 0o755, run_script(&config.config)),
        Addition::file(".singularity.d/startscript", 0o755, EMPTY_SCRIPT),
    ]
}

/// Returns what goes below everything: mount points and files that runtimes bind over. A read-only image
/// cannot grow them later.
#[must_use]
pub fn mount_points() -> Vec<Addition> {
    vec![
        Addition::directory("dev", 0o755),
        Addition::directory("etc", 0o755),
        Addition::directory("home", 0o755),
        Addition::directory("proc", 0o755),
        Addition::directory("root", 0o700),
        Addition::directory("sys", 0o755),
        Addition::directory("tmp", 0o1777),
        Addition::directory("var", 0o755),
        Addition::directory("var/tmp", 0o1777),
        Addition::file("etc/group", 0o644, ""),
        Addition::file("etc/hosts", 0o644, ""),
        Addition::file("etc/passwd", 0o644, ""),
        Addition::file("etc/resolv.conf", 0o644, ""),
        Addition::symlink("environment", ".singularity.d/env/90-environment.sh"),
        Addition::symlink("singularity", ".singularity.d/runscript"),
    ]
}

/// Writes the image's environment so that a value given from outside wins, but for PATH.
pub(crate) fn environment_script(config: &ExecConfig) -> String {
    let mut script = EMPTY_SCRIPT.to_owned();
    for line in &config.env {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        // Others cannot be exported by a shell; a NUL cannot be in an environment at all.
        if !is_variable_name(name) || value.contains('\0') {
            continue;
        }
        let value = escape_double_quoted(value);
        if name == "PATH" {
            script.push_str(&format!("export PATH=\"{value}\"\n"));
        } else {
            script.push_str(&format!("export {name}=\"${{{name}:-\"{value}\"}}\"\n"));
        }
    }
    script
}

/// Writes a script that runs entry point and command as an OCI runtime would: arguments replace the
/// command, never the entry point.
pub(crate) fn run_script(config: &ExecConfig) -> String {
    let words = |list: &[String]| -> String { list.iter().map(|word| quote(word) + " ").collect() };
    let mut script = EMPTY_SCRIPT.to_owned();
    let default = if config.cmd.is_empty() && config.entrypoint.is_empty() {
        "'/bin/sh' ".to_owned()
    } else {
        words(&config.cmd)
    };
    if !default.is_empty() {
        script.push_str(&format!("if [ $# -eq 0 ]; then\n    set -- {}\nfi\n", default.trim_end()));
    }
    script.push_str(&format!("exec {}\"$@\"\n", words(&config.entrypoint)));
    script
}

fn is_variable_name(name: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !name.is_empty() && !name.as_bytes()[0].is_ascii_digit() && name.bytes().all(word)
}

fn escape_double_quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '"' | '\\' | '$' | '`') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\0', "").replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn config(json: &str) -> ExecConfig {
        serde_json::from_str(json).unwrap()
    }

    /// Runs a script as the image's shell would and returns what it printed.
    fn run(script: &str, args: &[&str], env: &[(&str, &str)]) -> String {
        let output = Command::new("/bin/sh")
            .arg("-c")
            .arg(script)
            .arg("script")
            .args(args)
            .env_clear()
            .envs(env.iter().copied())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn run_script_keeps_words_and_replaces_only_the_command() {
        let show = r#""Entrypoint":["/usr/bin/printf","[%s]"]"#;
        let cases: &[(String, &[&str], &str)] = &[
            (
                format!(r#"{{{show},"Cmd":["a b","it's","$x","`y`","\\","*"]}}"#),
                &[],
                "[a b][it's][$x][`y`][\\][*]",
            ),
            (format!(r#"{{{show},"Cmd":["default"]}}"#), &["one", "two words"], "[one][two words]"),
            (format!("{{{show}}}"), &["x"], "[x]"),
            (r#"{"Cmd":["/bin/echo","cmd"]}"#.to_owned(), &[], "cmd\n"),
            (r#"{"Cmd":["/bin/echo","cmd"]}"#.to_owned(), &["/bin/echo", "args"], "args\n"),
        ];
        for (json, args, want) in cases {
            assert_eq!(run(&run_script(&config(json)), args, &[]), *want, "{json}");
        }
        assert!(run_script(&config("{}")).contains("'/bin/sh'"));
    }

    #[test]
    fn environment_script_gives_values_exactly() {
        let value = "a b'c\"d$HOME`id`\\n}*;é\nnext";
        let env = vec![
            format!("V={value}"),
            "PATH=/x:$y".into(),
            "W=default".into(),
            "E=".into(),
            "1BAD=x".into(),
            "B-D=x".into(),
            "NOEQ".into(),
        ];
        let script = environment_script(&ExecConfig { env, ..ExecConfig::default() });
        assert!(!script.contains("BAD") && !script.contains("B-D"), "{script}");
        let print = format!("{script}printf '%s|%s|%s' \"$V\" \"$PATH\" \"$W\"");
        assert_eq!(run(&print, &[], &[]), format!("{value}|/x:$y|default"));
        assert_eq!(run(&print, &[], &[("W", "host"), ("PATH", "/host")]), format!("{value}|/x:$y|host"));
    }
}
