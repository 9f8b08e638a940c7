//! The rehearsal, in a namespace of the stand-in, whose pods are real processes.

use keywheel_twins::kubernetes::Rule;

use super::*;

struct Rehearsal {
    cluster: Cluster,
    _run: Run,
    folder: tempfile::TempDir,
}

impl Rehearsal {
    /// Starts a cluster with a Secret of somebody else in the namespace.
    fn begin() -> Self {
        let folder = tempfile::Builder::new().prefix("keywheel-drill-").tempdir().unwrap();
        let pods = folder.path().join("pods");
        std::fs::create_dir(&pods).unwrap();
        let cluster = Cluster::start().unwrap();
        let runtime = Runtime::Processes { folder: pods };
        let settings = Settings { pace: Pace::times(10.0), runtime, ..Settings::default() };
        let run = cluster.run(settings).unwrap();
        cluster.objects().make_namespace(NAMESPACE);
        cluster.objects().create(Kind::Secret, secret(OLD), "test").unwrap();
        cluster.write_kubeconfig(&folder.path().join("kubeconfig")).unwrap();
        Self { cluster, _run: run, folder }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut drill = Command::new(env!("CARGO_BIN_EXE_keywheel"));
        drill.arg("drill").args(arguments).stdin(Stdio::null()).current_dir(self.folder.path());
        drill.args(["--output", "json"]).env("XDG_STATE_HOME", self.folder.path().join("state"));
        drill
    }

    fn drill(&self, user: &str) -> Command {
        let context = ["kubernetes", "--context", user, "--kubeconfig", "kubeconfig"];
        self.command(&[&context[..], &["--namespace", NAMESPACE]].concat())
    }

    fn left(&self) -> Vec<String> {
        let kinds = [Kind::Secret, Kind::Deployment, Kind::ReplicaSet, Kind::Pod];
        let all =
            kinds.iter().flat_map(|kind| self.cluster.objects().list(*kind, Some(NAMESPACE)).0);
        let names = all.map(|object| object["metadata"]["name"].as_str().unwrap().to_owned());
        names.filter(|name| name != "app").collect()
    }

    /// Whoever rehearses asks for nothing but its own Secret.
    fn assert_only_its_own_was_asked_for(&self) {
        for seen in self.cluster.faults().seen() {
            let is_its_own =
                seen.name.as_deref().is_some_and(|name| name.starts_with("keywheel-drill-"));
            let makes = seen.verb == "create";
            assert!(seen.resource != "secrets" || is_its_own || makes, "{seen:?}");
        }
    }
}

fn report(output: &Output) -> Value {
    println!("{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_drill_in_a_namespace_leaves_nothing_but_its_evidence_and_asks_for_no_other_secret() {
    let rehearsal = Rehearsal::begin();
    let output = rehearsal.drill("admin").output().unwrap();
    let report = report(&output);
    assert_eq!((output.status.code(), &report["passed"]), (Some(0), &true.into()), "{report:#}");
    assert_eq!(report["checks"].as_array().unwrap().len(), 6, "{report}");
    assert_eq!(rehearsal.left(), [""; 0]);
    rehearsal.assert_only_its_own_was_asked_for();
    let folder = PathBuf::from(report["evidence"].as_str().unwrap());
    assert!(folder.join("report.json").is_file() && !folder.join("world").exists());
}

#[test]
fn a_drill_that_was_killed_is_cleaned_up_and_one_that_runs_is_not() {
    let rehearsal = Rehearsal::begin();
    let mut drill =
        rehearsal.drill("admin").stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    for _ in 0..1_200 {
        if rehearsal.left().len() >= 4 {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let clean = || {
        let output = rehearsal.command(&["clean"]).output().unwrap();
        (output.status.code(), report(&output))
    };
    let (code, said) = clean();
    assert_eq!((code, said["running"].as_array().unwrap().len()), (Some(0), 1), "{said}");
    assert!(!rehearsal.left().is_empty());
    drill.kill().unwrap();
    drill.wait().unwrap();
    let (code, said) = clean();
    assert_eq!((code, said["cleaned"].as_array().unwrap().len()), (Some(0), 1), "{said}");
    assert_eq!(rehearsal.left(), [""; 0]);
    let (code, said) = clean();
    assert_eq!((code, &said["cleaned"]), (Some(0), &json!([])));
}

#[test]
fn h19_a_drill_without_rights_says_which_are_missing_and_makes_nothing() {
    let rehearsal = Rehearsal::begin();
    let read = Rule::everything();
    rehearsal
        .cluster
        .add_user("reader", vec![Rule { verbs: vec!["get".into(), "list".into()], ..read }]);
    rehearsal.cluster.write_kubeconfig(&rehearsal.folder.path().join("kubeconfig")).unwrap();
    let output = rehearsal.drill("reader").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("`create` of `secrets` in namespace `shop`"), "{said}");
    assert!(said.contains("no secret of yours was touched"), "{said}");
    assert_eq!(rehearsal.left(), [""; 0]);
}
