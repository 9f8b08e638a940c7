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

    /// Lets somebody do exactly this, and reach the cluster.
    fn allow(&self, user: &str, rules: Vec<Rule>) {
        self.cluster.add_user(user, rules);
        self.cluster.write_kubeconfig(&self.folder.path().join("kubeconfig")).unwrap();
    }

    fn clean(&self) -> (Option<i32>, Value) {
        let output = self.command(&["clean"]).output().unwrap();
        (output.status.code(), report(&output))
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

/// What the guide says that a drill needs.
fn needed() -> Vec<Rule> {
    let apps = ["deployments", "statefulsets", "daemonsets", "replicasets"];
    let all = ["create", "get", "patch", "delete"];
    vec![
        Rule::new(&["create"], "authorization.k8s.io", &["selfsubjectaccessreviews"]),
        Rule::new(&["get"], "", &["namespaces"]).named(&["kube-system"]),
        Rule::new(&all, "", &["secrets"]).in_namespace(NAMESPACE),
        Rule::new(&all, "apps", &["deployments"]).in_namespace(NAMESPACE),
        Rule::new(&["list"], "apps", &apps).in_namespace(NAMESPACE),
        Rule::new(&["list"], "batch", &["jobs", "cronjobs"]).in_namespace(NAMESPACE),
        Rule::new(&["list"], "", &["pods"]).in_namespace(NAMESPACE),
    ]
}

fn report(output: &Output) -> Value {
    println!("{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_drill_in_a_namespace_leaves_nothing_but_its_evidence_and_asks_for_no_other_secret() {
    let rehearsal = Rehearsal::begin();
    rehearsal.allow("drill", needed());
    let output = rehearsal.drill("drill").output().unwrap();
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
    let (code, said) = rehearsal.clean();
    assert_eq!((code, said["running"].as_array().unwrap().len()), (Some(0), 1), "{said}");
    assert!(!rehearsal.left().is_empty());
    drill.kill().unwrap();
    drill.wait().unwrap();
    // The same context leads to another cluster for a while.
    let kubeconfig = rehearsal.folder.path().join("kubeconfig");
    let other = Cluster::start().unwrap();
    other.write_kubeconfig(&kubeconfig).unwrap();
    let output = rehearsal.command(&["clean"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("is another one than the configuration says"), "{said}");
    assert!(other.faults().seen().iter().all(|seen| seen.resource == "namespaces"));
    rehearsal.cluster.write_kubeconfig(&kubeconfig).unwrap();
    let (code, said) = rehearsal.clean();
    assert_eq!((code, said["cleaned"].as_array().unwrap().len()), (Some(0), 1), "{said}");
    assert_eq!(rehearsal.left(), [""; 0]);
    let (code, said) = rehearsal.clean();
    assert_eq!((code, &said["cleaned"]), (Some(0), &json!([])));
}

#[test]
fn h19_a_drill_that_cannot_be_run_says_why_makes_nothing_and_leaves_nothing_to_clean() {
    let rehearsal = Rehearsal::begin();
    let lists = |rule: &Rule| rule.verbs == ["list"] && rule.groups == ["batch"];
    rehearsal.allow("few", needed().into_iter().filter(|rule| !lists(rule)).collect());
    for (context, why) in [
        (
            "few",
            "this account may not `list` of `cronjobs` in namespace `shop`, nor `list` of `jobs`",
        ),
        ("nowhere", "has no context of that name"),
    ] {
        let output = rehearsal.drill(context).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains(why) && said.contains("nothing was made"), "{said}");
        assert!(said.contains("no secret of yours was touched"), "{said}");
    }
    assert_eq!((rehearsal.left(), rehearsal.cluster.faults().writes()), (Vec::new(), 0));
    let (code, said) = rehearsal.clean();
    assert_eq!((code, &said["cleaned"]), (Some(0), &json!([])), "{said}");
}

#[test]
fn a_drill_whose_pods_cannot_come_up_ends_at_once_with_the_reason() {
    let rehearsal = Rehearsal::begin();
    let mut drill = rehearsal.drill("admin");
    drill.args(["--image", "registry.example/missing:1"]);
    let output = drill.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("container `drill` does not start ("), "{said}");
    assert_eq!(rehearsal.left(), [""; 0]);
}
