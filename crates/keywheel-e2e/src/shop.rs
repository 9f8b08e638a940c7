//! One shop: a Secret, the workload that reads it, a project of keywheel, and how it fares.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::process::{Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keywheel_example::load::{Counts, Load, Target};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::api::{Api, Kind, text, until};
use crate::edge::Edge;
use crate::ground::Ground;
use crate::manifest::{self, LABEL, PEPPER, Reads, SHOP, TOKEN_LIFE};

/// The longest that one call of keywheel may take.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// A length of the pepper with which the backend starts, and one with which it does not.
pub(crate) const GOOD: usize = 32;
pub(crate) const BAD: usize = 80;

const CONFIG: &str = r#"
project: e2e
cluster: CLUSTER
policies:
  fast: { soak: SOAK, rollback: 1s, watch: 1s }
stores:
  app: { kubernetes_secret: { namespace: NAMESPACE, name: NAME, approach: APPROACH } }
workloads:
  backend:
    kubernetes: { namespace: NAMESPACE, KIND: NAME, TAKES_UP, settle_for: 2s }
secrets:
  pepper:
    policy: fast
    issuer: { random: { length: PEPPER } }
    stores: { app: pepper }
    read_by: [backend]
"#;

/// A secret of pods that serve people.
const JWT: &str = r"
  jwt:
    policy: fast
    issuer: { jwt_secret: { bytes: 32 } }
    strategy: { keyring: { longest_token: LIFEs, skew: 1s } }
    stores: { app: { jwt: current, jwt-also: also_accepted } }
    read_by: [backend]
";

/// How a shop is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) replicas: u32,
    pub(crate) approach: &'static str,
    pub(crate) soak: &'static str,
    pub(crate) reads: Reads,
}

impl Plan {
    /// Plans a Deployment of three pods, whose Secret changes in place.
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            kind: Kind::Deployment,
            replicas: 3,
            approach: "in_place",
            soak: "1s",
            reads: Reads::Once,
        }
    }
}

/// A shop that is open.
pub(crate) struct Shop<'a> {
    pub(crate) ground: &'a Ground,
    pub(crate) plan: Plan,
    folder: tempfile::TempDir,
    /// Every value that was ever seen; none of them may be printed.
    values: Mutex<BTreeSet<String>>,
}

/// What a call of keywheel answered.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) said: String,
}

impl<'a> Shop<'a> {
    /// Opens a shop, and waits until each of its pods is ready and old enough.
    pub(crate) async fn open(ground: &'a Ground, plan: Plan) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("keywheel-e2e-").tempdir()?;
        for name in ["project", "state", "keys", "state-2", "keys-2"] {
            fs::DirBuilder::new().mode(0o700).create(folder.path().join(name))?;
        }
        let shop = Self { ground, plan, folder, values: Mutex::default() };
        shop.configure(GOOD)?;
        let value = |name| format!("kwcanary-{name}-{}", random());
        let (jwt, pepper, other) = (value("jwt"), value("pepper"), value("other"));
        let values =
            [("jwt", jwt.as_str()), ("jwt-also", ""), ("pepper", &pepper), ("other", &other)];
        let _made = shop.api().create(Kind::Secret, &manifest::secret(plan.name, &values)).await?;
        ground.start(plan.kind, plan.name, plan.replicas, plan.reads).await?;
        // Starts are told by the second: pods that are this old have certainly read nothing of what follows.
        if plan.reads == Reads::Once {
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        Ok(shop)
    }

    pub(crate) fn api(&self) -> &Api {
        &self.ground.api
    }

    /// Writes the configuration, with so long a pepper.
    pub(crate) fn configure(&self, pepper: usize) -> anyhow::Result<()> {
        let mut cluster = json!({ "context": self.ground.context });
        if let Some(kubeconfig) = &self.ground.kubeconfig {
            cluster["kubeconfig"] = std::path::absolute(kubeconfig)?.display().to_string().into();
        }
        let (takes_up, jwt) = match self.plan.reads {
            Reads::Once => ("token: { port: 8080, path: /me }", JWT),
            Reads::Again => ("take_up: { sync: { rereads_within: 2s } }", ""),
        };
        let config = format!("{CONFIG}{jwt}")
            .replace("TAKES_UP", takes_up)
            .replace("NAMESPACE", self.api().namespace())
            .replace("NAME", self.plan.name)
            .replace("KIND", self.plan.kind.key())
            .replace("APPROACH", self.plan.approach)
            .replace("SOAK", self.plan.soak)
            .replace("LIFE", &TOKEN_LIFE.to_string())
            .replace("PEPPER", &pepper.to_string())
            // A context may have any name.
            .replace("CLUSTER", &cluster.to_string());
        fs::write(self.folder.path().join("project/keywheel.yaml"), config)?;
        Ok(())
    }

    fn command(&self, journal: &str, arguments: &[&str]) -> Command {
        let at = |name: &str| self.folder.path().join(name);
        let mut command = Command::new(&self.ground.keywheel);
        command.args(arguments);
        command.arg("--config").arg(at("project/keywheel.yaml"));
        command.arg("--journal").arg(at(&format!("state{journal}")).join("journal.sqlite"));
        command.arg("--kek").arg(at(&format!("keys{journal}")).join("kek"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        command
    }

    /// Starts keywheel with a journal: the first has no name.
    pub(crate) fn spawn(&self, journal: &str, arguments: &[&str]) -> anyhow::Result<Child> {
        let spawned = self.command(journal, arguments).spawn();
        spawned.with_context(|| format!("`{}` cannot be run", self.ground.keywheel.display()))
    }

    /// Waits until keywheel has ended.
    pub(crate) async fn ended(&self, child: Child) -> anyhow::Result<Ran> {
        let ended = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
        let Output { status, stdout, stderr } = ended.context("keywheel does not end")??;
        let said = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
        self.learn().await?;
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let is_told =
            said.contains("kwcanary") || values.iter().any(|value| said.contains(value.as_str()));
        ensure!(!is_told, "keywheel printed a value");
        Ok(Ran { code: status.code(), said })
    }

    /// Runs keywheel, which must end with a code.
    pub(crate) async fn keywheel(&self, arguments: &[&str], ends: i32) -> anyhow::Result<String> {
        let ran = self.ended(self.spawn("", arguments)?).await?;
        let told = format!("keywheel {}", arguments.join(" "));
        ensure!(
            ran.code == Some(ends),
            "`{told}` ended with {:?}, not {ends}:\n{}",
            ran.code,
            ran.said
        );
        Ok(ran.said)
    }

    /// Notes the values that are there now.
    async fn learn(&self) -> anyhow::Result<()> {
        let mut found = BTreeSet::new();
        for secret in self.api().list(Kind::Secret, Some(SHOP)).await? {
            for (_, value) in secret["data"].as_object().into_iter().flatten() {
                let value = STANDARD.decode(value.as_str().unwrap_or_default())?;
                found.insert(String::from_utf8_lossy(&value).into_owned());
            }
        }
        found.retain(|value| value.len() > 8);
        self.values.lock().unwrap_or_else(PoisonError::into_inner).append(&mut found);
        Ok(())
    }

    /// Returns what a key of the Secret holds.
    pub(crate) async fn stored(&self, key: &str) -> anyhow::Result<String> {
        let secret = self.api().read(Kind::Secret, self.plan.name).await?;
        let value = secret["data"][key].as_str().unwrap_or_default();
        Ok(String::from_utf8(STANDARD.decode(value)?)?)
    }

    /// Writes a key of the Secret as somebody else would.
    pub(crate) async fn edit(&self, key: &str, value: &str) -> anyhow::Result<()> {
        let patch = json!({ "data": { key: STANDARD.encode(value) } });
        self.api().patch(Kind::Secret, self.plan.name, &patch).await
    }

    /// Returns the identities of the pods that are not asked to end.
    pub(crate) async fn pods(&self) -> anyhow::Result<BTreeSet<String>> {
        let pods = self.ground.pods(self.plan.name).await?;
        let stay = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        Ok(stay.map(|pod| text(pod, "/metadata/uid").to_owned()).collect())
    }

    /// Returns what each pod shows of the file that it reads again and again.
    pub(crate) async fn shown(&self) -> anyhow::Result<Vec<String>> {
        let mut shown = Vec::new();
        for pod in self.ground.pods(self.plan.name).await? {
            shown.push(self.api().output(text(&pod, "/metadata/name"), &["cat", PEPPER]).await?);
        }
        Ok(shown)
    }

    /// Returns how often containers of the pods were started again.
    pub(crate) async fn restarts(&self) -> anyhow::Result<u64> {
        let pods = self.ground.pods(self.plan.name).await?;
        let statuses = pods
            .iter()
            .flat_map(|pod| pod["status"]["containerStatuses"].as_array().into_iter().flatten());
        Ok(statuses.filter_map(|status| status["restartCount"].as_u64()).sum())
    }

    /// Returns the template of the pods.
    pub(crate) async fn template(&self) -> anyhow::Result<Value> {
        let mut workload = self.api().read(self.plan.kind, self.plan.name).await?;
        Ok(workload["spec"]["template"].take())
    }

    /// Waits until the pods are these.
    pub(crate) async fn settle(&self, wanted: &BTreeSet<String>) -> anyhow::Result<()> {
        let same =
            until("the pods that served do not serve on", Duration::from_secs(60), async || {
                Ok((self.pods().await? == *wanted).then_some(()))
            });
        same.await
    }

    /// Waits until a container has ended with an error, and returns when that was seen.
    pub(crate) async fn crashed(&self) -> anyhow::Result<Instant> {
        let seen = until("no container crashed", PATIENCE, async || {
            let pods = self.ground.pods(self.plan.name).await?;
            let crashed = pods.iter().any(|pod| {
                let state = &pod["status"]["containerStatuses"][0];
                [&state["state"], &state["lastState"]]
                    .iter()
                    .any(|it| it["terminated"]["exitCode"].as_i64().is_some_and(|code| code != 0))
            });
            Ok(crashed.then(Instant::now))
        });
        seen.await
    }

    /// Opens the way to the pods, and waits until each of them answers.
    pub(crate) async fn edge(&self) -> anyhow::Result<Edge> {
        let label = format!("{LABEL}={}", self.plan.name);
        let edge = Edge::open(self.api(), label, self.ground.direct).await?;
        let client = keywheel_example::client(0)?;
        let answers = until("the pods do not answer", Duration::from_secs(60), async || {
            let each = edge.each();
            let mut answering = 0;
            for address in &each {
                let answer = client.get(format!("http://{address}/health")).send().await;
                answering += usize::from(answer.is_ok_and(|answer| answer.status().is_success()));
            }
            Ok((!each.is_empty() && answering == self.plan.replicas as usize).then_some(()))
        });
        answers.await?;
        Ok(edge)
    }

    /// Starts the people who use the shop.
    pub(crate) fn load(&self, edge: &Edge) -> anyhow::Result<Load> {
        let target =
            Target { edge: edge.address().to_string(), replicas: edge.replicas(), asks: false };
        Load::start(target, self.ground.each_second)
    }
}

/// Returns what users counted, in words, or an error where anything went wrong for them.
pub(crate) fn unharmed(shop: &Shop<'_>, counts: &Counts, edge: &Edge) -> anyhow::Result<String> {
    let harmed = counts.failed > 0 || counts.tokens_refused > 0;
    ensure!(!harmed, "{counts}; {}", counts.failures.join("; "));
    let meant = u64::from(shop.ground.each_second) * counts.elapsed_ms / 1_000;
    let came = counts.requests * 2 > meant && counts.tokens_shown > 10;
    ensure!(came, "hardly anybody came: {counts}");
    let again = match edge.led_again() {
        0 => String::new(),
        count => format!("; the API server did not lead {count} connections at first"),
    };
    Ok(format!("{counts}{again}"))
}

/// Returns letters that nobody can guess.
pub(crate) fn random() -> String {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    hex::encode(bytes)
}
