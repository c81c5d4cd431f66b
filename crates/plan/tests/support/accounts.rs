//! Account files that may hold anything.
//!
//! The invariants, here and in the fuzz target: a file that was completed holds the user, keeps every other line, and
//! is complete; one that is not completed is too long.

use situla_plan::{HostGroup, HostUser, MAX_ACCOUNT_FILE, PatchContent};

/// Completes account files. The first byte chooses the user's id, so that images may have it or not.
pub(crate) fn accounts(bytes: &[u8]) {
    let (choice, image) = bytes.split_first().unwrap_or((&0, &[]));
    let user = HostUser {
        name: "alice".to_owned(),
        uid: u32::from(*choice % 4) * 500,
        gid: 100,
        gecos: "Alice A".to_owned(),
        home: "/home/alice".to_owned(),
        shell: "/bin/sh".to_owned(),
    };
    let uid = user.uid;
    let passwd = PatchContent::Passwd { user, others: Vec::new() };
    if let Some(completed) = complete(&passwd, image) {
        let entry = completed.split_terminator('\n').find(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            fields.len() == 7 && fields[2].parse() == Ok(uid)
        });
        let entry = entry.expect("the user has an entry");
        // The superuser keeps his names.
        assert!(uid == 0 || entry.starts_with("alice:"), "{entry:?}");
        assert!(entry.contains(":/home/alice:"), "{entry:?}");
        let n_before = String::from_utf8_lossy(image).split_terminator('\n').count();
        let n_after = completed.split_terminator('\n').count();
        assert!(n_after == n_before || n_after == n_before + 1);
    }
    let groups = [("users", 100), ("physics", 2000)];
    let groups = groups.map(|(name, gid)| HostGroup { name: name.to_owned(), gid }).to_vec();
    let group = PatchContent::Group { user: "alice".to_owned(), groups };
    if let Some(completed) = complete(&group, image) {
        let before = String::from_utf8_lossy(image);
        let n_before = before.split_terminator('\n').count();
        assert!(before.split_terminator('\n').eq(completed.split_terminator('\n').take(n_before)));
        for line in ["users:x:100:", "physics:x:2000:"] {
            let (name, id) = line.split_once(":x:").expect("as written above");
            let has = |line: &str| {
                let fields: Vec<&str> = line.split(':').collect();
                fields.len() == 4
                    && fields[0] == name
                    && fields[2].parse::<u32>().ok() == id.trim_end_matches(':').parse().ok()
                    && fields[3].split(',').any(|member| member == "alice")
            };
            assert!(completed.split_terminator('\n').any(has), "{line}");
        }
    }
}

/// What a file comes to; `None` where it is too long. Completing it once more changes nothing.
fn complete(content: &PatchContent, image: &[u8]) -> Option<String> {
    let Ok(completed) = content.complete(image).expect("an account file") else {
        assert!(image.len() > MAX_ACCOUNT_FILE);
        return None;
    };
    let again = content.complete(&completed).expect("an account file");
    assert!(again.is_err() || again == Ok(completed.clone()));
    Some(String::from_utf8_lossy(&completed).into_owned())
}
