//! `keywheel demo`: the main job from end to end, on loopback, with everything real but the provider.
//!
//! Three backends run under load while this program, started as anybody would start it, rotates what they read: a signing
//! secret and a key as one batch; the key again, killed in the middle and resumed; a value that the backends refuse.

use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use keywheel_core::secret::SecretValue;
use keywheel_twins::openai::{Twin, TwinOptions};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

use super::{Counts, LONGEST_PEPPER, Setup, World};
use crate::cli::Globals;
use crate::exit::Exit;
use crate::output::{Failure, Format, Output};
use crate::words;

/// Run the main job on this machine: three backends under load, four rotations, one kill; needs no network
#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// Keep the folder of the demonstration, and say where it is
    #[arg(long)]
    keep: bool,
}

const ADMIN_KEY: &str = "KEYWHEEL_DEMO_ADMIN_KEY";
const REPLICAS: usize = 3;
const EACH_SECOND: u32 = 240;

/// Runs the demonstration; a wrong number in its result is a failure.
pub(crate) async fn run(args: DemoArgs, globals: &Globals) -> Result<Exit, Failure> {
    let output = globals.output();
    let folder = tempfile::Builder::new().prefix("keywheel-demo-").tempdir();
    let mut folder = folder.map_err(|error| failure(&anyhow::Error::new(error)))?;
    folder.disable_cleanup(args.keep);
    let result = demonstrate(folder.path(), output).await.map_err(|error| failure(&error))?;
    match output.format {
        Format::Json => output.json(&result.json())?,
        Format::Text => output.text(&result.table())?,
    }
    if args.keep {
        output.note(&format!("kept in {}", folder.path().display()));
    }
    let wrong = result.wrong();
    if wrong.is_empty() {
        return Ok(Exit::Done);
    }
    let failure = Failure::new("the demonstration went wrong").exit(Exit::NeedsOperator);
    Err(wrong.into_iter().fold(failure, Failure::caused_by))
}

fn failure(error: &anyhow::Error) -> Failure {
    let failure = Failure::new("the demonstration could not be run").exit(Exit::NeedsOperator);
    error.chain().fold(failure, |failure, cause| failure.caused_by(cause.to_string()))
}

/// What came of it.
struct Shown {
    counts: Counts,
    rotations: Vec<Value>,
    killed_and_resumed: bool,
    bad_value_undone: bool,
    audit_verified: bool,
}

impl Shown {
    fn json(&self) -> Value {
        let rotation = |one: &Value| {
            json!({
                "secret": one["secret"], "strategy": one["strategy"],
                "outcome": one["outcome"], "old_refused": one["old_refused"],
            })
        };
        json!({
            "requests": self.counts.requests,
            "failed": self.counts.failed,
            "tokens_refused": self.counts.tokens_refused,
            "rotations": self.rotations.iter().map(rotation).collect::<Vec<_>>(),
            "killed_and_resumed": self.killed_and_resumed,
            "bad_value_undone": self.bad_value_undone,
            "audit_verified": self.audit_verified,
            "tokens_shown": self.counts.tokens_shown,
            "retried_by_edge": self.counts.retried_by_edge,
            "elapsed_ms": self.counts.elapsed_ms,
        })
    }

    fn table(&self) -> String {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let mut rows = vec![
            ["secret", "strategy", "outcome", "former version refused"].map(str::to_owned).to_vec(),
        ];
        rows.extend(self.rotations.iter().map(|one| {
            let refused = if one["old_refused"] == json!(true) { "yes" } else { "no one to ask" };
            vec![
                text(&one["secret"]),
                text(&one["strategy"]),
                text(&one["outcome"]),
                refused.into(),
            ]
        }));
        let counts = &self.counts;
        let yes = |it: bool| if it { "yes" } else { "NO" };
        format!(
            "{}\n{} requests in {} s, {} failed; {} tokens shown to every replica, {} refused\n\
             killed in the middle and resumed: {}; bad value undone: {}; audit chain verified: {}\n",
            words::table(&rows, ""),
            counts.requests,
            counts.elapsed_ms / 1_000,
            counts.failed,
            counts.tokens_shown,
            counts.tokens_refused,
            yes(self.killed_and_resumed),
            yes(self.bad_value_undone),
            yes(self.audit_verified),
        )
    }

    fn wrong(&self) -> Vec<String> {
        let counts = &self.counts;
        let mut wrong = Vec::new();
        let mut expect = |right: bool, words: String| {
            if !right {
                wrong.push(words);
            }
        };
        expect(
            counts.failed == 0,
            format!("{} requests failed: {}", counts.failed, counts.failures.join(", ")),
        );
        expect(
            counts.tokens_refused == 0,
            format!("{} tokens were refused", counts.tokens_refused),
        );
        expect(counts.requests > 1_000, format!("only {} requests were made", counts.requests));
        expect(self.killed_and_resumed, "the killed rotation was not completed".into());
        expect(self.bad_value_undone, "the bad value was not undone".into());
        expect(self.audit_verified, "the audit chain is broken".into());
        for one in self.rotations.iter().filter(|one| one["secret"] != json!("pepper@default")) {
            expect(
                one["outcome"] == json!("completed"),
                format!("{} ended {}", one["secret"], one["outcome"]),
            );
            expect(
                one["old_refused"] == json!(true),
                format!("the former version of {} is not refused", one["secret"]),
            );
        }
        wrong
    }
}

async fn demonstrate(folder: &Path, output: Output) -> anyhow::Result<Shown> {
    for name in ["world", "project", "state", "keys"] {
        std::fs::DirBuilder::new().mode(0o700).create(folder.join(name))?;
    }
    let twin = Twin::start(TwinOptions {
        propagation: Duration::from_millis(200),
        ..TwinOptions::default()
    })?;
    let first = twin.make_key("backend");
    let base = twin.base_url();
    let variables = [
        ("JWT_SECRET", random_text()),
        ("JWT_LIFE_SECONDS", SecretValue::new(b"3".to_vec())),
        ("OPENAI_API_KEY", SecretValue::new(first.value.into_bytes())),
        ("SESSION_PEPPER", random_text()),
    ];
    let program = std::env::current_exe()?;
    let world = folder.join("world");
    let setup = Setup {
        program: &program,
        folder: &world,
        replicas: REPLICAS,
        openai_base: Some(&base),
        variables: &variables,
        warm_up: Duration::ZERO,
        each_second: EACH_SECOND,
    };
    let world = World::start(&setup).await?;
    write_config(&folder.join("project/keywheel.yaml"), &world, &twin)?;
    let keywheel = Keywheel {
        program,
        folder: folder.to_owned(),
        admin_key: twin.admin_key().to_owned(),
        output,
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    let shown = rotations(&keywheel, &twin).await;
    let counts = world.stop().await?;
    let (rotations, killed_and_resumed, bad_value_undone, audit_verified) = shown?;
    twin.shutdown();
    Ok(Shown { counts, rotations, killed_and_resumed, bad_value_undone, audit_verified })
}

async fn rotations(
    keywheel: &Keywheel,
    twin: &Twin,
) -> anyhow::Result<(Vec<Value>, bool, bool, bool)> {
    let mut done = Vec::new();
    keywheel.output.note("1. a signing secret and a key, together");
    let (code, answer) = keywheel.run(&["rotate", "jwt", "openai", "--soak", "--yes"]).await?;
    ensure!(code == 0, "the first batch ended with {code}");
    done.extend(list(&answer));

    keywheel.output.note("2. the key again; killed as soon as its store is written");
    let killed = keywheel.run_and_kill(&["rotate", "openai", "--soak", "--yes"], "write").await?;
    let (code, answer) = keywheel.run(&["resume", "--all", "--soak", "--yes"]).await?;
    let resumed = list(&answer);
    let completed = resumed.len() == 1 && resumed[0]["outcome"] == json!("completed");
    let live = twin.keys().iter().filter(|key| key.live && key.label.starts_with("kw-")).count();
    let killed_and_resumed = killed && code == 0 && completed && live == 1;
    done.extend(resumed);

    keywheel.output.note("3. a value that the backends refuse");
    let (code, answer) = keywheel.run(&["rotate", "pepper", "--soak", "--yes"]).await?;
    let refused = list(&answer);
    let bad_value_undone =
        code == 2 && refused.len() == 1 && refused[0]["outcome"] == json!("undone");
    done.extend(refused);

    let (code, _) = keywheel.run(&["audit", "verify"]).await?;
    Ok((done, killed_and_resumed, bad_value_undone, code == 0))
}

fn list(answer: &Value) -> Vec<Value> {
    answer["rotations"].as_array().cloned().unwrap_or_default()
}

/// This program, started as anybody would start it.
struct Keywheel {
    program: PathBuf,
    folder: PathBuf,
    admin_key: String,
    output: Output,
}

impl Keywheel {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).args(["--output", "json"]);
        command.arg("--config").arg(self.folder.join("project/keywheel.yaml"));
        command.arg("--journal").arg(self.folder.join("state/journal.sqlite"));
        command.arg("--kek").arg(self.folder.join("keys/kek"));
        command.env(ADMIN_KEY, &self.admin_key);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs a command to its end, and returns its exit code and its answer.
    async fn run(&self, arguments: &[&str]) -> anyhow::Result<(i32, Value)> {
        let mut child = self.command(arguments).spawn()?;
        let mut out = child.stdout.take().context("stdout is piped")?;
        let answer = async {
            let mut text = String::new();
            out.read_to_string(&mut text).await?;
            anyhow::Ok(text)
        };
        let (text, ()) = tokio::try_join!(answer, self.pass_on(&mut child, None))?;
        let status = child.wait().await?;
        let answer =
            if text.trim().is_empty() { Value::Null } else { serde_json::from_str(&text)? };
        Ok((status.code().unwrap_or(-1), answer))
    }

    /// Runs a command, and kills it as soon as it says that it took the step; returns whether it died of that.
    async fn run_and_kill(&self, arguments: &[&str], step: &str) -> anyhow::Result<bool> {
        let mut child = self.command(arguments).spawn()?;
        self.pass_on(&mut child, Some(step)).await?;
        let status = child.wait().await?;
        Ok(std::os::unix::process::ExitStatusExt::signal(&status) == Some(9))
    }

    /// Passes on what a command says beside its answer, until it ends or has said that it took the step.
    async fn pass_on(
        &self,
        child: &mut tokio::process::Child,
        kill_at: Option<&str>,
    ) -> anyhow::Result<()> {
        let stderr = child.stderr.take().context("stderr is piped")?;
        let mut lines = BufReader::new(stderr).lines();
        while let Some(line) = lines.next_line().await? {
            self.output.note(&format!("   {line}"));
            if kill_at.is_some_and(|step| line.trim_start().starts_with(step)) {
                child.start_kill()?;
                self.output.note("   (killed with SIGKILL)");
            }
        }
        Ok(())
    }
}

fn random_text() -> SecretValue {
    use base64::Engine;
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    SecretValue::new(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes).into_bytes())
}

/// The configuration that anybody would write for this; JSON is YAML.
fn write_config(path: &Path, world: &World, twin: &Twin) -> anyhow::Result<()> {
    let Some(workload) = world.workload().as_object().cloned() else {
        bail!("a workload is a mapping")
    };
    let mut backend = workload;
    backend.insert(
        "probes".into(),
        json!([{ "http": { "url": format!("http://{}/health", world.edge()) } }]),
    );
    let openai = json!({
        "project": twin.project(),
        "admin_key": { "env": ADMIN_KEY },
        "base_url": twin.base_url(),
        "propagation": "5s",
        "settle_for": "2s",
        "last_used": { "lag": "1s", "granularity": "1s" },
    });
    let config = json!({
        "project": "demo",
        "policies": { "demo": { "cryptoperiod": "90d", "soak": "2s", "rollback": "1s", "watch": "1s" } },
        "stores": { "app": { "env_file": { "path": world.env_file() } } },
        "workloads": { "backend": backend },
        "secrets": {
            "jwt": {
                "policy": "demo",
                "issuer": { "jwt_secret": { "bytes": 32 } },
                "strategy": { "keyring": { "longest_token": "3s", "skew": "1s" } },
                "stores": { "app": { "JWT_SECRET": "current", "JWT_SECRET_ALSO_ACCEPTED": "also_accepted" } },
                "read_by": ["backend"],
            },
            "openai": {
                "policy": "demo",
                "issuer": { "openai": openai },
                "stores": { "app": { "OPENAI_API_KEY": "current" } },
                "read_by": ["backend"],
            },
            "pepper": {
                "policy": "demo",
                "issuer": { "random": { "length": LONGEST_PEPPER + 16 } },
                "stores": { "app": { "SESSION_PEPPER": "current" } },
                "read_by": ["backend"],
            },
        },
    });
    let mut file = std::fs::File::create_new(path)?;
    Ok(file.write_all(serde_json::to_string_pretty(&config)?.as_bytes())?)
}
