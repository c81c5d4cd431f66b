use super::*;

fn place(name: &str) -> ContainerPlace {
    ContainerPlace { scope: "job-c-1".to_owned(), node: "n1".to_owned(), name: name.to_owned() }
}

fn record() -> ContainerRecord {
    ContainerRecord::new("i".to_owned(), Digest::sha256(b"i"), None, "1.0".to_owned())
}

fn make(containers: &Containers, name: &str) -> ContainerLease {
    let MadeContainer::New(new) = containers.acquire(&place(name), true).unwrap() else {
        panic!("it exists")
    };
    let files = new.making().join("tree");
    fs::create_dir_all(&files).unwrap();
    fs::write(files.join("file"), "text").unwrap();
    new.finish(&files, &record()).unwrap()
}

fn found(containers: &Containers, name: &str) -> (ContainerLease, bool) {
    match containers.acquire(&place(name), true).unwrap() {
        MadeContainer::Found(lease, found, is_used) => {
            assert_eq!(found, record());
            (lease, is_used)
        }
        MadeContainer::New(_) => panic!("it does not exist"),
    }
}

#[test]
fn what_is_made_is_found_until_it_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let containers = Containers::new(dir.path().join("own"));
    assert_eq!(containers.look(&place("a")).unwrap(), None);
    let first = make(&containers, "a");
    assert_eq!(containers.look(&place("a")).unwrap(), Some(record()));
    let (second, is_used) = found(&containers, "a");
    assert!(is_used);
    assert_eq!(fs::read(second.root().join("file")).unwrap(), b"text");
    assert!(!second.root().with_file_name("making").exists());
    drop(first);
    assert!(!containers.remove(&place("a")).unwrap(), "in use");
    let listed = containers.list().unwrap();
    assert_eq!(listed, [ListedContainer { place: place("a"), record: Some(record()), is_used: true }]);
    drop(second);
    assert!(!found(&containers, "a").1);
    assert!(!containers.list().unwrap()[0].is_used);
    let other = make(&containers, "b");
    assert!(containers.remove(&place("a")).unwrap());
    assert_eq!(containers.list().unwrap().len(), 1);
    drop(other);
    assert!(containers.remove(&place("b")).unwrap() && containers.remove(&place("b")).is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_is_not_finished_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let containers = Containers::new(dir.path().join("own"));
    let MadeContainer::New(new) = containers.acquire(&place("a"), true).unwrap() else { panic!("it exists") };
    let left = new.making();
    fs::create_dir_all(left.join("half")).unwrap();
    // As whoever is killed leaves it.
    let (path, directory) = (new.path.clone(), new.directory.as_ref().unwrap().try_clone().unwrap());
    std::mem::forget(new);
    let listed = containers.list().unwrap();
    assert_eq!((listed[0].record.clone(), listed[0].is_used), (None, true));
    flock(&directory, FlockOperation::Unlock).unwrap();
    drop(directory);
    let lease = make(&containers, "a");
    assert!(!left.exists() && path.join("root/file").exists());
    drop(lease);
    // One that fails leaves nothing.
    let MadeContainer::New(new) = containers.acquire(&place("b"), true).unwrap() else { panic!("it exists") };
    drop(new);
    assert_eq!(containers.list().unwrap().len(), 1);
}

#[test]
fn closed_directories_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let containers = Containers::new(dir.path().join("own"));
    let lease = make(&containers, "a");
    let closed = lease.root().join("closed");
    fs::create_dir_all(closed.join("below")).unwrap();
    fs::write(closed.join("below/file"), "").unwrap();
    for path in [closed.join("below"), closed] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
    }
    drop(lease);
    assert!(containers.remove(&place("a")).unwrap());
    assert_eq!(containers.list().unwrap(), []);
}

#[test]
fn the_last_task_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let containers = Containers::new(dir.path().join("own"));
    let lease = make(&containers, "a");
    for step in ["1.0", "1.1"] {
        let told: Vec<TaskEnd> =
            (7..10).map(|process| lease.count_end(step, (process, 3), |_| true).unwrap()).collect();
        assert_eq!(told, [TaskEnd::NotLast, TaskEnd::NotLast, TaskEnd::Last]);
    }
    let never = |_: &BTreeSet<u32>| panic!("it is the last one");
    assert_eq!(lease.count_end("1.2", (7, 1), never).unwrap(), TaskEnd::Last);
    assert_eq!(fs::read_dir(lease.root().with_file_name("ends")).unwrap().count(), 0);
}

#[test]
fn a_task_that_never_comes_is_missed_by_the_last_one() {
    let dir = tempfile::tempdir().unwrap();
    let containers = Containers::new(dir.path().join("own"));
    let lease = make(&containers, "a");
    let living = |living: &[u32]| {
        let living: BTreeSet<u32> = living.iter().copied().collect();
        move |ended: &BTreeSet<u32>| !living.is_subset(ended)
    };
    // Of four, 9 never comes, and 10 neither; those that have ended take a moment until they are gone.
    assert_eq!(lease.count_end("1.0", (7, 4), living(&[7, 8, 9])).unwrap(), TaskEnd::NotLast);
    assert_eq!(lease.count_end("1.0", (8, 4), living(&[7, 8])).unwrap(), TaskEnd::LastButFor(2));
}

#[test]
fn a_directory_of_others_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own");
    fs::create_dir(&own).unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o777)).unwrap();
    let containers = Containers::new(own);
    assert!(matches!(containers.acquire(&place("a"), true), Err(TreeError::NotOwn { .. })));
    assert!(matches!(containers.look(&place("a")), Err(TreeError::NotOwn { .. })));
}

#[test]
fn who_looks_is_not_taken_for_somebody_who_uses_it() {
    let dir = tempfile::tempdir().unwrap();
    let containers = Containers::new(dir.path().join("own"));
    drop(make(&containers, "a"));
    let over = std::sync::atomic::AtomicBool::new(false);
    let is_over = || over.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over() {
                    containers.list().unwrap();
                }
            });
        }
        let judged = std::panic::catch_unwind(|| {
            for _ in 0..300 {
                // As `:exec` does, and is refused, while others list.
                assert!(!found(&containers, "a").1);
            }
        });
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        judged.unwrap();
        // Nor does a listing keep one from being removed.
        assert!(containers.remove(&place("a")).unwrap());
    });
}
