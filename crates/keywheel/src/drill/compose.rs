//! A drill by Docker Compose: one service of an image with a shell.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use clap::Args;
use keywheel_core::secret::SecretValue;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::process::Command;

use super::{LENGTH, SLOT, call, ready};

/// How long the service may take to come up, the pull of its image included.
const UP: Duration = Duration::from_secs(300);

/// How long Compose may take to say which version it is.
const ANSWERS: Duration = Duration::from_secs(30);

/// The file that describes the service.
const FILE: &str = "docker-compose.yml";

/// What a drill by Docker Compose is run with.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
pub(crate) struct Options {
    /// An image with `sh` and `sleep`
    #[arg(long, default_value = "busybox")]
    image: String,
    /// The Compose program, in place of `docker compose`
    #[arg(long, value_name = "PROGRAM")]
    program: Option<String>,
}

/// The service, under a name of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ground {
    options: Options,
    project: String,
}

impl Ground {
    /// Names the service's project after the id of the drill.
    pub(crate) fn new(options: Options, id: &str) -> Self {
        Self { options, project: format!("keywheel-drill-{id}") }
    }

    fn program(&self) -> Command {
        let mut compose = match &self.options.program {
            Some(program) => Command::new(program),
            None => {
                let mut docker = Command::new("docker");
                docker.arg("compose");
                docker
            }
        };
        super::without_settings(&mut compose);
        compose
    }

    fn compose(&self, folder: &Path, arguments: &[&str]) -> Command {
        let mut compose = self.program();
        compose.arg("-p").arg(&self.project).arg("--project-directory").arg(folder);
        compose.arg("-f").arg(folder.join(FILE)).args(arguments).current_dir(folder);
        compose
    }
}

#[async_trait]
impl super::Ground for Ground {
    fn place(&self) -> String {
        "by Docker Compose".into()
    }

    fn drivers(&self) -> (Value, Value) {
        let mut service = json!({
            "file": FILE,
            "service": "drill",
            "project": self.project,
            "start_first": true,
            "ready_for": "200ms",
            "settle_for": "1s",
        });
        if let Some(program) = &self.options.program {
            service["program"] = json!([program]);
        }
        (json!({ "env_file": { "path": ".env" } }), json!({ "compose_service": service }))
    }

    async fn look(&mut self, _folder: &Path) -> anyhow::Result<()> {
        let mut version = self.program();
        version.arg("version");
        call(version, ANSWERS, "`docker compose version`").await
    }

    async fn make(&self, folder: &Path, first: &SecretValue) -> anyhow::Result<()> {
        let script = format!(
            "trap 'exit 0' TERM; [ $${{#{SLOT}}} -eq {LENGTH} ] || exit 7; while :; do sleep 0.2; done"
        );
        let file = json!({ "services": { "drill": {
            "image": self.options.image,
            "network_mode": "none",
            "stop_grace_period": "2s",
            "env_file": [".env"],
            "command": ["sh", "-c", script],
        }}});
        std::fs::write(folder.join(FILE), serde_json::to_string_pretty(&file)?)?;
        let env = SecretValue::new([SLOT.as_bytes(), b"=", first.expose(), b"\n"].concat());
        let mut new = std::fs::OpenOptions::new();
        new.write(true)
            .create_new(true)
            .mode(0o600)
            .open(folder.join(".env"))?
            .write_all(env.expose())?;
        call(self.compose(folder, &["up", "-d"]), UP, "`docker compose up`").await?;
        ready(self.drivers().1, folder, UP).await
    }

    async fn take_away(&self, folder: &Path) -> anyhow::Result<()> {
        if !folder.join(FILE).is_file() {
            return Ok(());
        }
        let down = self.compose(folder, &["down", "--timeout", "2", "--remove-orphans"]);
        call(down, UP, "`docker compose down`")
            .await
            .context("the throwaway service is still there")
    }
}
