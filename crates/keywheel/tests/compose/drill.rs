//! The rehearsal, on a real engine.

use super::*;

struct Rehearsal {
    docker: Arc<Docker>,
    compose: PathBuf,
    home: tempfile::TempDir,
}

impl Rehearsal {
    fn begin() -> Option<Self> {
        let (compose, docker) = (compose()?, engine()?);
        Some(Self { docker, compose, home: tempfile::tempdir().unwrap() })
    }

    fn run(&self, arguments: &[&str]) -> (Option<i32>, serde_json::Value) {
        let mut drill = Command::new(env!("CARGO_BIN_EXE_keywheel"));
        drill.args(["drill", "compose", "--output", "json", "--program"]).arg(&self.compose);
        drill.args(arguments).stdin(Stdio::null()).current_dir(self.home.path());
        drill.env("XDG_STATE_HOME", self.home.path());
        let socket = format!("unix://{}", self.docker.socket().display());
        let output = drill.env("DOCKER_HOST", socket).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("{said}");
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Returns the containers of drills.
    fn left(&self) -> Vec<String> {
        let label = "label=com.docker.compose.service=drill";
        let told = Engine::Docker(Arc::clone(&self.docker)).run(&["ps", "-aq", "--filter", label]);
        told.lines().map(str::to_owned).collect()
    }
}

#[test]
fn a_drill_rotates_a_throwaway_secret_and_leaves_nothing_but_its_evidence() {
    let Some(rehearsal) = Rehearsal::begin() else { return };
    let (status, report) = rehearsal.run(&["--image", IMAGE]);
    assert_eq!((status, &report["passed"]), (Some(0), &true.into()), "{report}");
    assert_eq!(report["checks"].as_array().unwrap().len(), 6, "{report}");
    assert_eq!(rehearsal.left(), [""; 0]);
    let folder = PathBuf::from(report["evidence"].as_str().unwrap());
    let kept = std::fs::read_to_string(folder.join("report.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
    assert_eq!((&kept["passed"], &kept["checks"]), (&true.into(), &report["checks"]));
    assert!(folder.join("journal/journal.sqlite").is_file() && !folder.join("world").exists());
}

#[test]
fn a_drill_that_cannot_be_run_fails_and_leaves_nothing() {
    let Some(rehearsal) = Rehearsal::begin() else { return };
    let mut drill = Command::new(env!("CARGO_BIN_EXE_keywheel"));
    drill.args(["drill", "compose", "--image", "keywheel/not-there", "--program"]);
    drill.arg(&rehearsal.compose).stdin(Stdio::null()).env("XDG_STATE_HOME", rehearsal.home.path());
    let socket = format!("unix://{}", rehearsal.docker.socket().display());
    let output = drill.env("DOCKER_HOST", socket).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("the drill failed") && said.contains("no secret of yours"), "{said}");
    assert_eq!(rehearsal.left(), [""; 0]);
}
