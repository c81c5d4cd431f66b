//! `/etc/passwd` and `/etc/group` for the container: the image's own, with the host's user in them.
//!
//! The image's bytes, in whatever encoding, are untrusted and kept line by line as they are, so that a
//! malformed line stays the image's problem. The host's names are checked, because a colon or newline in one (from a careless
//! directory service) would add fields or whole accounts.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Bytes of an image's passwd or group file.
pub const MAX_ACCOUNT_FILE: usize = 4 << 20;

/// Groups that are added, as in Linux's NGROUPS_MAX.
pub const MAX_GROUPS: usize = 65536;

/// The merged file cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AccountError {
    /// The image's file is too long.
    #[error("{file} of the image has {length} bytes, more than {limit}")]
    TooLong {
        /// Which.
        file: String,
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The user is in too many groups.
    #[error("user is in {count} groups, more than {limit}")]
    TooManyGroups {
        /// How many.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// A name or path of the host holds a colon or a control character.
    #[error("{field} {value:?} of the host cannot be written into {file}")]
    BadField {
        /// What it is.
        field: &'static str,
        /// Its value.
        value: String,
        /// Where it should have gone.
        file: &'static str,
    },
}

/// The user, as the host knows him.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostUser {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Full name and the like.
    pub gecos: String,
    /// Home directory as it is inside.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// A group the user is in, as the host knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostGroup {
    /// Its name.
    pub name: String,
    /// Its id.
    pub gid: u32,
}

/// Puts the user into the image's passwd: an entry of the same uid takes the host's name, full name
/// and home and keeps its group and shell (the superuser's keeps its names); else one is added. Of `others` those are
/// added whose names it does not have.
///
/// # Errors
/// The image's file is too long, or a field of the user cannot be written.
pub(crate) fn merge_passwd(
    image: &[u8],
    user: &HostUser,
    others: &[HostUser],
) -> Result<Vec<u8>, AccountError> {
    const FILE: &str = "/etc/passwd";
    check_length(FILE, image)?;
    for HostUser { name, gecos, home, shell, .. } in [user].into_iter().chain(others) {
        for (field, value) in [("name", name), ("gecos", gecos), ("home", home), ("shell", shell)] {
            check_field(FILE, field, value)?;
        }
        if name.is_empty() {
            return Err(AccountError::BadField { field: "name", value: String::new(), file: FILE });
        }
    }

    let HostUser { name, uid, gid, gecos, home, shell } = user;
    let mut merged = Vec::with_capacity(image.len() + 256);
    let mut found = false;
    for line in lines_of(image) {
        let parts: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
        match parts[..] {
            [theirs, password, id, group, full_name, _, login] if !found && number(id) == Some(*uid) => {
                found = true;
                let (name, gecos) = match uid {
                    0 => (theirs, full_name),
                    _ => (name.as_bytes(), gecos.as_bytes()),
                };
                merged.extend([name, password, id, group, gecos, home.as_bytes(), login].join(&b':'));
            }
            _ => merged.extend_from_slice(line),
        }
        merged.push(b'\n');
    }
    if !found {
        merged.extend(format!("{name}:x:{uid}:{gid}:{gecos}:{home}:{shell}\n").into_bytes());
    }
    for HostUser { name, uid, gid, gecos, home, shell } in others {
        let known =
            lines_of(&merged).any(|line| line.split(|byte| *byte == b':').next() == Some(name.as_bytes()));
        if !known {
            merged.extend(format!("{name}:x:{uid}:{gid}:{gecos}:{home}:{shell}\n").into_bytes());
        }
    }
    Ok(merged)
}

/// Adds a line to the image's group file for each of the user's groups, each with him as member, but
/// where the image has it already.
///
/// # Errors
/// The image's file is too long, the groups too many, or a name cannot be written.
pub(crate) fn merge_group(image: &[u8], user: &str, groups: &[HostGroup]) -> Result<Vec<u8>, AccountError> {
    const FILE: &str = "/etc/group";
    check_length(FILE, image)?;
    if groups.len() > MAX_GROUPS {
        return Err(AccountError::TooManyGroups { count: groups.len(), limit: MAX_GROUPS });
    }
    check_field(FILE, "name", user)?;
    let mut merged = Vec::with_capacity(image.len() + 32 * groups.len() + 1);
    for line in lines_of(image) {
        merged.extend_from_slice(line);
        merged.push(b'\n');
    }
    for HostGroup { name, gid } in groups {
        check_field(FILE, "group name", name)?;
        if lines_of(image).any(|line| is_member(line, name, *gid, user)) {
            continue;
        }
        merged.extend(format!("{name}:x:{gid}:{user}\n").into_bytes());
    }
    Ok(merged)
}

/// Tells whether a line of a group file says that `user` is in this group.
fn is_member(line: &[u8], group: &str, gid: u32, user: &str) -> bool {
    let mut fields = line.split(|byte| *byte == b':');
    let (name, _, id, members) = (fields.next(), fields.next(), fields.next(), fields.next());
    name == Some(group.as_bytes())
        && id.is_some_and(|id| number(id) == Some(gid))
        && members.is_some_and(|members| {
            members.split(|byte| *byte == b',').any(|member| member == user.as_bytes())
        })
        && fields.next().is_none()
}

/// The lines of a file, each as it is: a carriage return at its end belongs to it.
fn lines_of(image: &[u8]) -> impl Iterator<Item = &[u8]> {
    let terminated = image.strip_suffix(b"\n").unwrap_or(image);
    let lines = terminated.split(|byte| *byte == b'\n');
    lines.take(if image.is_empty() { 0 } else { usize::MAX })
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn check_length(file: &'static str, image: &[u8]) -> Result<(), AccountError> {
    match image.len() > MAX_ACCOUNT_FILE {
        true => {
            Err(AccountError::TooLong { file: file.to_owned(), length: image.len(), limit: MAX_ACCOUNT_FILE })
        }
        false => Ok(()),
    }
}

fn check_field(file: &'static str, field: &'static str, value: &str) -> Result<(), AccountError> {
    match value.contains(|c: char| c == ':' || c.is_control()) {
        true => Err(AccountError::BadField { field, value: value.to_owned(), file }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passwd(image: &str, user: &HostUser) -> Result<String, AccountError> {
        merge_passwd(image.as_bytes(), user, &[]).map(|merged| String::from_utf8(merged).expect("text"))
    }

    fn group(image: &str, user: &str, groups: &[HostGroup]) -> Result<String, AccountError> {
        merge_group(image.as_bytes(), user, groups).map(|merged| String::from_utf8(merged).expect("text"))
    }

    fn alice(uid: u32) -> HostUser {
        HostUser {
            name: "alice".to_owned(),
            uid,
            gid: 100,
            gecos: "Alice A".to_owned(),
            home: "/home/alice".to_owned(),
            shell: "/bin/zsh".to_owned(),
        }
    }

    #[test]
    fn others_are_added_where_their_names_are_missing() {
        let other = |name: &str, uid: u32| HostUser { name: name.to_owned(), ..alice(uid) };
        let others = [other("slurm", 64030), other("root", 5)];
        let merged = merge_passwd(b"root:x:0:0::/root:/bin/sh\n", &alice(1001), &others).expect("fine");
        let merged = String::from_utf8(merged).expect("text");
        let names: Vec<&str> = merged.lines().filter_map(|line| line.split(':').next()).collect();
        assert_eq!(names, ["root", "alice", "slurm"]);
        assert!(merge_passwd(b"", &alice(1), &[other("a:b", 2)]).is_err());
    }

    #[test]
    fn passwd_takes_the_user() {
        let image = "root:x:0:0:root:/root:/bin/bash\nubuntu:x:1000:1000:Ubuntu:/home/ubuntu:/bin/sh\n";
        let table = [
            ("added", 1001, format!("{image}alice:x:1001:100:Alice A:/home/alice:/bin/zsh\n")),
            (
                "same uid",
                1000,
                "root:x:0:0:root:/root:/bin/bash\nalice:x:1000:1000:Alice A:/home/alice:/bin/sh\n".to_owned(),
            ),
            (
                "superuser",
                0,
                "root:x:0:0:root:/home/alice:/bin/bash\nubuntu:x:1000:1000:Ubuntu:/home/ubuntu:/bin/sh\n"
                    .to_owned(),
            ),
        ];
        for (name, uid, want) in table {
            assert_eq!(passwd(image, &alice(uid)).as_deref(), Ok(want.as_str()), "{name}");
        }
    }

    #[test]
    fn odd_images_are_left_alone() {
        let added = "alice:x:1001:100:Alice A:/home/alice:/bin/zsh\n";
        for image in ["", "no newline at end:x", "x:1001\n::::\n", "a:x:1001:1:a:/a:/a:extra\n"] {
            let got = passwd(image, &alice(1001)).expect("bounded");
            let kept: String = image.lines().map(|line| format!("{line}\n")).collect();
            assert_eq!(got, format!("{kept}{added}"), "{image:?}");
        }
        // A carriage return is the image's own, however often the file is completed.
        let once = passwd("a:x:1:1::/a:/s\r\r\n", &alice(1001)).expect("bounded");
        assert_eq!(once, format!("a:x:1:1::/a:/s\r\r\n{added}"));
        assert_eq!(passwd(&once, &alice(1001)), Ok(once));
        // Only the first of two equal ids speaks for the user.
        let twice = "a:x:7:7::/a:/s\nb:x:7:7::/b:/s\n";
        let got = passwd(twice, &alice(7)).expect("bounded");
        assert_eq!(got, "alice:x:7:7:Alice A:/home/alice:/s\nb:x:7:7::/b:/s\n");
    }

    #[test]
    fn text_of_another_encoding_is_kept_and_completed() {
        // Latin-1: "Müller", as long as a file may be.
        let line = b"mueller:x:7:7:M\xfcller:/home/m\xfcller:/bin/sh\n";
        let mut image = line.repeat(MAX_ACCOUNT_FILE / line.len());
        image.resize(MAX_ACCOUNT_FILE, 0xfc);
        let added = b"\nalice:x:1001:100:Alice A:/home/alice:/bin/zsh\n";
        assert_eq!(merge_passwd(&image, &alice(1001), &[]), Ok([&image[..], added].concat()));
        let groups = [HostGroup { name: "users".to_owned(), gid: 100 }];
        let added = b"\nusers:x:100:alice\n";
        assert_eq!(merge_group(&image, "alice", &groups), Ok([&image[..], added].concat()));
        // A line of the user's own keeps what it has.
        let want = b"alice:x:7:7:Alice A:/home/alice:/bin/sh\n";
        assert_eq!(merge_passwd(line, &alice(7), &[]), Ok(want.to_vec()));
    }

    #[test]
    fn hostile_input_is_refused() {
        let long = "x".repeat(MAX_ACCOUNT_FILE + 1);
        assert!(matches!(passwd(&long, &alice(1)), Err(AccountError::TooLong { .. })));
        assert!(matches!(group(&long, "alice", &[]), Err(AccountError::TooLong { .. })));
        for bad in ["a:b", "a\nroot:x:0:0::/:/bin/sh", "a\0"] {
            let user = HostUser { gecos: bad.to_owned(), ..alice(1) };
            assert!(matches!(passwd("", &user), Err(AccountError::BadField { .. })), "{bad:?}");
            let bad_group = HostGroup { name: bad.to_owned(), gid: 1 };
            assert!(
                matches!(group("", "alice", &[bad_group]), Err(AccountError::BadField { .. })),
                "{bad:?}"
            );
            assert!(group("", bad, &[]).is_err(), "{bad:?}");
        }
        assert!(passwd("", &HostUser { name: String::new(), ..alice(1) }).is_err());
        let many = vec![HostGroup { name: "g".to_owned(), gid: 1 }; MAX_GROUPS + 1];
        assert!(matches!(group("", "alice", &many), Err(AccountError::TooManyGroups { .. })));
    }

    #[test]
    fn group_lists_the_users_groups() {
        let groups = [
            HostGroup { name: "users".to_owned(), gid: 100 },
            HostGroup { name: "physics".to_owned(), gid: 2000 },
        ];
        let got = group("root:x:0:\nusers:x:100:", "alice", &groups).expect("fine");
        assert_eq!(got, "root:x:0:\nusers:x:100:\nusers:x:100:alice\nphysics:x:2000:alice\n");
        // What it made before, it leaves as it is.
        assert_eq!(group(&got, "alice", &groups).as_deref(), Ok(got.as_str()));
        let others = ["users:x:100:bob", "users:x:101:alice", "user:x:100:alice", "users:x:100:alice:x"];
        for line in others {
            let got = group(line, "alice", &groups[..1]).expect("fine");
            assert_eq!(got, format!("{line}\nusers:x:100:alice\n"));
        }
    }
}
