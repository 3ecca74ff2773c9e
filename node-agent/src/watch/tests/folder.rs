//! One look at the folder after the other, with no thread and no inotify.

use std::{fs, os::unix::fs::symlink};

use fairlead_crds::{NodeAgentConfig, Scheduler};
use tempfile::TempDir;

use super::{super::Change, super::folder::Folder, NODE, names, service, write};

struct Case {
    dir: TempDir,
    folder: Folder,
}

impl Case {
    fn new(node_name: Option<&str>) -> Self {
        let dir = TempDir::new().unwrap();
        let folder = Folder::new(dir.path().to_owned(), node_name.map(str::to_owned));
        Self { dir, folder }
    }

    fn write(&self, name: &str, text: &str) {
        write(self.dir.path(), name, text);
    }

    /// What a look brings, with errors without the folder's path.
    fn scan(&mut self) -> (Vec<String>, Vec<String>) {
        let scan = self.folder.scan();
        let prefix = format!("{}/", self.dir.path().display());
        let errors = scan.errors.iter().map(|e| e.to_string().replace(&prefix, "")).collect();
        (names(&scan.changes), errors)
    }
}

#[test]
fn the_first_look_sends_all_and_says_so() {
    let mut case = Case::new(None);
    case.write("node.yaml", NODE);
    case.write("b.yml", &service("b", "10.96.0.2"));
    case.write("a.json", r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"clusterIP": "10.96.0.1"}}"#);
    case.write("headless.yaml", &service("headless", "None"));
    case.write(".hidden.yaml", "nonsense");
    case.write("notes.txt", "nonsense");
    fs::create_dir(case.dir.path().join("folder.yaml")).unwrap();
    let (changes, errors) = case.scan();
    assert_eq!(
        changes,
        ["+ServiceNetwork", "+Node node-a", "+Service default/a", "+Service default/b", "Synced"]
    );
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(case.scan().0, Vec::<String>::new());
}

#[test]
fn only_what_changed_is_sent() {
    let mut case = Case::new(None);
    case.write("node.yaml", NODE);
    case.write("ab.yaml", &format!("{}---\n{}", service("a", "10.96.0.1"), service("b", "10.96.0.2")));
    case.scan();
    case.write("ab.yaml", &format!("{}---\n{}", service("b", "10.96.0.3"), service("c", "10.96.0.4")));
    assert_eq!(case.scan().0, ["-Service default/a", "+Service default/b", "+Service default/c"]);
    case.write(
        "ab.yaml",
        &format!("# moved\n{}---\n{}", service("c", "10.96.0.4"), service("b", "10.96.0.3")),
    );
    assert_eq!(case.scan().0, Vec::<String>::new());
    fs::remove_file(case.dir.path().join("ab.yaml")).unwrap();
    assert_eq!(case.scan().0, ["-Service default/b", "-Service default/c"]);
}

#[test]
fn a_service_that_stops_being_ours_is_gone() {
    let mut case = Case::new(None);
    case.write("node.yaml", NODE);
    case.write("a.yaml", &service("a", "10.96.0.1"));
    case.scan();
    case.write("a.yaml", &service("a", "None"));
    assert_eq!(case.scan().0, ["-Service default/a"]);
    fs::remove_file(case.dir.path().join("a.yaml")).unwrap();
    assert_eq!(case.scan().0, Vec::<String>::new());
}

#[test]
fn a_broken_file_at_start_holds_back_synced_and_nothing_else() {
    let mut case = Case::new(None);
    case.write("node.yaml", NODE);
    case.write("a.yaml", &service("a", "10.96.0.1"));
    case.write("b.yaml", "kind: [");
    let (changes, errors) = case.scan();
    // Not even the default configuration: the broken file may hold another.
    assert_eq!(changes, ["+Node node-a", "+Service default/a"]);
    assert!(errors[0].starts_with("b.yaml:"), "{errors:?}");
    case.write("b.yaml", &service("b", "10.96.0.2"));
    assert_eq!(
        case.scan(),
        (vec!["+ServiceNetwork".into(), "+Service default/b".into(), "Synced".into()], vec![])
    );
}

#[test]
fn a_file_that_breaks_keeps_its_last_good_objects() {
    let mut case = Case::new(None);
    case.write("node.yaml", NODE);
    case.write("a.yaml", &service("a", "10.96.0.1"));
    case.scan();
    case.write("a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: 80}\n");
    let (changes, errors) = case.scan();
    assert_eq!(changes, Vec::<String>::new());
    assert!(errors[0].starts_with("a.yaml:4:15: "), "{errors:?}");
    // Said as long as it is so, with or without a change elsewhere.
    assert_eq!(case.scan().1, errors);
    case.write("b.yaml", &service("b", "10.96.0.2"));
    assert_eq!(case.scan(), (vec!["+Service default/b".into()], errors));
    case.write("a.yaml", &service("a", "10.96.0.9"));
    assert_eq!(case.scan(), (vec!["+Service default/a".into()], vec![]));
}

#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let mut case = Case::new(None);
    case.write("node.yaml", NODE);
    let pipe = case.dir.path().join("pipe.yaml");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    let (_, errors) = case.scan();
    assert_eq!(
        errors,
        ["pipe.yaml: failed to read the file: it is no regular file, remove it from the folder"]
    );
    fs::remove_file(pipe).unwrap();
    assert!(case.scan().1.is_empty());
}

#[test]
fn an_object_in_two_files_is_an_error_that_names_both() {
    let mut case = Case::new(None);
    case.write("node.yaml", NODE);
    case.write("b.yaml", &service("web", "10.96.0.1"));
    case.scan();
    // The one that was there first stays, although the other's name is smaller.
    case.write("a.yaml", &format!("\n{}", service("web", "10.96.0.2")));
    let (changes, errors) = case.scan();
    assert_eq!(changes, Vec::<String>::new());
    assert_eq!(
        errors,
        ["a.yaml:2:1: Service default/web is defined in b.yaml:1:1 already: remove one of the two"]
    );
    fs::remove_file(case.dir.path().join("b.yaml")).unwrap();
    assert_eq!(case.scan(), (vec!["+Service default/web".into()], vec![]));
}

#[test]
fn there_is_one_service_network_and_without_it_the_defaults_hold() {
    let network = |scheduler: &str| {
        format!(
            "apiVersion: fairlead.dev/v1alpha1\nkind: ServiceNetwork\nmetadata: {{name: cluster}}\nspec: {{proxy: {{ipvs: {{scheduler: {scheduler}}}}}}}\n"
        )
    };
    let mut case = Case::new(None);
    case.write("node.yaml", NODE);
    case.write("network.yaml", &network("wlc"));
    let changes = case.folder.scan().changes;
    let Some(Change::Config(config)) = changes.first() else { panic!("{changes:?}") };
    assert_eq!(config.config.proxy.ipvs.scheduler, Scheduler::Wlc);

    case.write("another.yaml", &network("sh"));
    let (changes, errors) = case.scan();
    assert_eq!(changes, Vec::<String>::new());
    assert_eq!(
        errors,
        ["another.yaml:1:1: ServiceNetwork is defined in network.yaml:1:1 already: remove one of the two"]
    );

    fs::remove_file(case.dir.path().join("another.yaml")).unwrap();
    fs::remove_file(case.dir.path().join("network.yaml")).unwrap();
    assert_eq!(case.folder.scan().changes, [Change::Config(NodeAgentConfig::default().into())]);
}

#[test]
fn one_node_needs_no_name_and_several_do() {
    let mut case = Case::new(None);
    let (changes, errors) = case.scan();
    assert_eq!(changes, ["+ServiceNetwork"]);
    assert!(
        errors[0]
            .ends_with(": no Node: add the Node of this machine, with its addresses in status.addresses")
    );

    case.write("node.yaml", NODE);
    assert_eq!(case.scan(), (vec!["+Node node-a".into(), "Synced".into()], vec![]));

    case.write("other.yaml", &NODE.replace("node-a", "node-b"));
    let (changes, errors) = case.scan();
    assert_eq!(changes, Vec::<String>::new());
    assert!(
        errors[0].contains("several Nodes (node-a, node-b)") && errors[0].contains("--node-name"),
        "{errors:?}"
    );
}

#[test]
fn other_nodes_are_ignored() {
    let mut case = Case::new(Some("node-b"));
    case.write("a.yaml", NODE);
    let (changes, errors) = case.scan();
    assert_eq!(changes, ["+ServiceNetwork"]);
    assert!(
        errors[0].ends_with(": no Node node-b, only node-a: add it, or correct --node-name"),
        "{errors:?}"
    );
    case.write("b.yaml", &NODE.replace("node-a", "node-b"));
    assert_eq!(case.scan(), (vec!["+Node node-b".into(), "Synced".into()], vec![]));
    case.write("a.yaml", &NODE.replace("192.0.2.1", "192.0.2.9"));
    assert_eq!(case.scan(), (vec![], vec![]));
}

#[test]
fn a_missing_folder_changes_nothing() {
    let mut case = Case::new(None);
    case.write("node.yaml", NODE);
    case.write("a.yaml", &service("a", "10.96.0.1"));
    case.scan();
    fs::remove_dir_all(case.dir.path()).unwrap();
    let (changes, errors) = case.scan();
    assert_eq!(changes, Vec::<String>::new());
    assert!(errors[0].contains("failed to read the manifests folder"), "{errors:?}");
    // Made anew, and empty: now they are gone.
    fs::create_dir(case.dir.path()).unwrap();
    assert_eq!(case.scan().0, ["-Service default/a"]);
}

#[test]
fn an_unreadable_file_is_reported() {
    let mut case = Case::new(None);
    case.write("node.yaml", NODE);
    symlink("nowhere", case.dir.path().join("a.yaml")).unwrap();
    fs::write(case.dir.path().join("b.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    let (_, errors) = case.scan();
    assert!(errors[0].starts_with("a.yaml: failed to read the file: "), "{errors:?}");
    assert!(errors[1].starts_with("b.yaml: the file is not UTF-8 text: "), "{errors:?}");
}

#[test]
fn a_rewrite_within_one_tick_of_the_clock_is_seen() {
    let mut case = Case::new(None);
    case.write("node.yaml", NODE);
    for i in 1..50 {
        case.write("a.yaml", &service("a", &format!("10.96.0.{}", 100 + i)));
        assert!(case.scan().0.contains(&"+Service default/a".to_owned()), "rewrite {i}");
    }
}
