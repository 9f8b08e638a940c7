//! Two environments of Compose projects, and two container engines.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use keywheel_ground::docker::{Docker, IMAGE, composes};

use super::{OLD, engine, first_or_skip, private};

const COMPOSE: &str = r#"
services:
  web:
    image: IMAGE
    network_mode: none
    stop_grace_period: 1s
    env_file: [.env]
    command: ["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM; busybox sleep 1d & wait"]
"#;

/// No `socket`: the engine is the one that `DOCKER_HOST` names, as on a machine of a person.
const CONFIG: &str = r#"
project: shop
policies:
  slow: { soak: 1h }
environments:
  staging:
    stores: { app: { env_file: { path: staging/.env } } }
    workloads: { web: { compose_service: { file: staging/compose.yaml, service: web, program: [PROGRAM], ready_for: 200ms, settle_for: 1s } } }
  production:
    protected: true
    stores: { app: { env_file: { path: production/.env } } }
    workloads: { web: { compose_service: { file: production/compose.yaml, service: web, program: [PROGRAM], ready_for: 200ms, settle_for: 1s } } }
secrets:
  app-key:
    policy: slow
    issuer: { random: { length: { by_env: { staging: 24, production: 40 } } } }
    stores: { app: { by_env: { staging: { STAGING_KEY: current }, production: { APP_KEY: current } } } }
    read_by: [web]
"#;

struct Shop {
    folder: tempfile::TempDir,
    program: PathBuf,
}

impl Shop {
    fn new(program: PathBuf) -> Self {
        let folder = tempfile::Builder::new().prefix("shop").tempdir().unwrap();
        let shop = Self { folder, program };
        for name in ["state", "keys", "staging", "production"] {
            private(&shop.folder.path().join(name));
        }
        let config = CONFIG.replace("PROGRAM", &shop.program.display().to_string());
        shop.write("keywheel.yaml", &config);
        for (name, variable) in [("staging", "STAGING_KEY"), ("production", "APP_KEY")] {
            shop.write(&format!("{name}/compose.yaml"), &COMPOSE.replace("IMAGE", IMAGE));
            shop.write(&format!("{name}/.env"), &format!("{variable}={OLD}-{name}\n"));
        }
        shop
    }

    fn write(&self, name: &str, text: &str) {
        super::write(&self.folder.path().join(name), text);
    }

    fn value(&self, environment: &str) -> String {
        let path = self.folder.path().join(environment).join(".env");
        let text = std::fs::read_to_string(path).unwrap();
        text.trim().split_once('=').unwrap().1.to_owned()
    }

    fn up(&self, docker: &Docker, environment: &str) {
        let mut up = docker.command(&self.program);
        up.args(["up", "-d"]).current_dir(self.folder.path().join(environment));
        assert!(up.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    }

    /// Runs the program as somebody does whose `DOCKER_HOST` names this engine.
    #[track_caller]
    fn run(&self, docker: &Docker, arguments: &[&str], ends: i32) -> String {
        let mut command: Command = docker.command(env!("CARGO_BIN_EXE_keywheel"));
        command.args(arguments).stdin(Stdio::null());
        command.arg("--config").arg(self.folder.path().join("keywheel.yaml"));
        command.arg("--journal").arg(self.folder.path().join("state/journal.sqlite"));
        command.arg("--kek").arg(self.folder.path().join("keys/kek"));
        let output = command.output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!said.contains("kwcanary"), "a value was printed: {said}");
        assert_eq!(output.status.code(), Some(ends), "{said}");
        said
    }
}

/// Returns the containers of an environment, each with what it was given.
fn containers(docker: &Docker, environment: &str) -> String {
    let own = format!("label=com.docker.compose.project={environment}");
    let ids = docker.docker(&["ps", "-aq", "--no-trunc", "--filter", &own]);
    let each = ids.lines().map(|id| {
        format!("{id} {}", docker.docker(&["inspect", "-f", "{{.Config.Env}}", id]).trim())
    });
    each.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_workload_is_rolled_at_the_engine_that_it_is_pinned_to_and_at_no_other() {
    let Some(program) = first_or_skip(composes(), "none is installed") else { return };
    let (Some(own), Some(other)) = (engine(), engine()) else { return };
    let shop = Shop::new(program);
    let all = |docker| ["staging", "production"].map(|name| containers(docker, name));
    for name in ["staging", "production"] {
        shop.up(&own, name);
        shop.up(&other, name);
    }
    let before = (all(&own), all(&other));
    shop.run(&own, &["check", "-e", "production"], 0);
    let said = shop.run(&own, &["rotate", "app-key", "-e", "production"], 4);
    assert!(said.contains("K0206"), "it is protected: {said}");
    let said = shop.run(&own, &["adopt", "-e", "staging", "--yes"], 0);
    assert!(said.contains("workload `web` runs at"), "{said}");
    let (staging, yes) = (["-e", "staging"], "--yes");
    let said = shop.run(&other, &[&["check"][..], &staging].concat(), 4);
    assert!(said.contains("it is pinned to"), "{said}");
    for command in [&["rotate", "app-key", yes][..], &["reconcile", "app-key", yes]] {
        let said = shop.run(&other, &[command, &staging].concat(), 4);
        assert!(said.contains("K0213") && said.contains("nothing changed"), "{said}");
        for engine in [&own, &other] {
            let folder = engine.docker(&["info", "-f", "{{.DockerRootDir}}"]);
            assert!(said.contains(folder.trim()), "both are named: {said}");
        }
    }
    assert_eq!((all(&own), all(&other)), before);
    shop.run(&own, &["rotate", "app-key", "-e", "staging", yes], 0);
    for command in [&["resume", "--all"][..], &["undo", "app-key", yes]] {
        let said = shop.run(&other, &[command, &staging].concat(), 4);
        assert!(said.contains("K0213"), "{said}");
    }
    let new = shop.value("staging");
    assert_eq!((new.len(), shop.value("production")), (24, format!("{OLD}-production")));
    assert!(containers(&own, "staging").contains(&new));
    assert_eq!(containers(&own, "production"), before.0[1], "staging alone was rotated");
    shop.run(&own, &["rotate", "app-key", "-e", "production", yes], 0);
    let new = shop.value("production");
    assert!(new.len() == 40 && containers(&own, "production").contains(&new));
    assert_eq!(all(&other), before.1);
    let anew = ["adopt", "--pin-anew", "--because", "it moved", "-e", "staging", yes];
    let said = shop.run(&other, &anew, 0);
    assert!(said.contains("adopted 1"), "{said}");
    let said = shop.run(&own, &["check", "-e", "staging"], 4);
    assert!(said.contains("it is pinned to"), "{said}");
    let said = shop.run(&own, &["audit", "list", "-e", "staging"], 0);
    assert!(said.contains("pinned its stores and workloads anew: it moved"), "{said}");
}
