//! The container engine behind a Compose project, asked over its socket: Docker's API, which Podman serves too.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use keywheel_core::secret::SecretValue;
use keywheel_core::time::Timestamp;
use keywheel_driver::CallError;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Deserializer};

use crate::http::{self, Effect};

/// The labels that Compose puts on what it makes.
const SERVICE: &str = "com.docker.compose.service";
const FOLDER: &str = "com.docker.compose.project.working_dir";
const PROJECT: &str = "com.docker.compose.project";
const ONE_OFF: &str = "com.docker.compose.oneoff";
const HASH: &str = "com.docker.compose.config-hash";
const VERSION: &str = "com.docker.compose.version";

/// A connection to the engine.
pub(super) struct Engine {
    client: reqwest::Client,
    name: String,
}

/// One container, as the engine tells of it. It holds values, so nothing of it is ever printed but its name and its state.
pub(super) struct Container {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) labels: Labels,
    pub(super) created: Option<Timestamp>,
    pub(super) state: State,
    pub(super) restarts: u32,
    pub(super) has_health_check: bool,
    pub(super) on_host_network: bool,
    pub(super) has_fixed_port: bool,
    pub(super) address: Option<IpAddr>,
    variables: Vec<Variable>,
    mounts: Vec<Mount>,
}

/// What Compose wrote on a container.
pub(super) struct Labels {
    pub(super) project: Option<String>,
    pub(super) is_one_off: bool,
    pub(super) hash: Option<String>,
    pub(super) version: Option<String>,
}

/// How a container does.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct State {
    pub(super) status: String,
    #[serde(default)]
    pub(super) exit_code: i64,
    health: Option<Health>,
}

impl State {
    pub(super) fn runs(&self) -> bool {
        self.status == "running"
    }

    /// Whether nothing will come of it any more.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.status.as_str(), "exited" | "dead")
    }

    pub(super) fn health(&self) -> &str {
        self.health.as_ref().map_or("none", |health| &health.status)
    }
}

impl Container {
    /// Returns what its environment gives a variable; the last assignment counts.
    pub(super) fn variable(&self, name: &str) -> Option<&[u8]> {
        self.variables.iter().rev().find_map(|variable| {
            let whole = variable.0.expose();
            let at = whole.iter().position(|byte| *byte == b'=')?;
            (&whole[..at] == name.as_bytes()).then(|| &whole[at + 1..])
        })
    }

    /// Returns whether a file of this machine is mounted into it, by itself or with a folder that holds it.
    pub(super) fn mounts(&self, file: &Path) -> bool {
        self.mounts.iter().any(|mount| mount.kind == "bind" && file.starts_with(&mount.source))
    }

    /// Returns whether it has a volume without a name, which nothing but this container knows.
    pub(super) fn has_anonymous_volume(&self) -> bool {
        self.mounts.iter().any(|mount| {
            mount.kind == "volume"
                && mount.name.len() == 64
                && mount.name.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
    }
}

impl Engine {
    pub(super) fn at(socket: &Path) -> Self {
        let name = format!("the container engine at `{}`", socket.display());
        Self { client: http::over_socket(socket), name }
    }

    /// Lists every container of a service, one-off ones and those that do not run included.
    pub(super) async fn containers(
        &self,
        folder: &Path,
        project: Option<&str>,
        service: &str,
    ) -> Result<Vec<Container>, CallError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Row {
            id: String,
        }
        let mut labels =
            vec![format!("{SERVICE}={service}"), format!("{FOLDER}={}", folder.display())];
        labels.extend(project.map(|project| format!("{PROJECT}={project}")));
        let filters = serde_json::json!({ "label": labels }).to_string();
        let query = [("all", "1"), ("filters", &filters)];
        let rows: Vec<Row> = parsed(&self.get("containers/json", &query).await?)?;
        let mut containers = Vec::new();
        for row in rows {
            // One that went away between the list and the look is gone.
            containers.extend(self.container(&row.id).await?);
        }
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(containers)
    }

    /// Looks at one container; none where it is gone.
    pub(super) async fn container(&self, id: &str) -> Result<Option<Container>, CallError> {
        match self.get(&format!("containers/{id}/json"), &[]).await {
            Ok(body) => {
                let inspected: Inspected = parsed(&body)?;
                Ok((inspected.state.status != "removing").then(|| inspected.into()))
            }
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks a container to end, with the signal and the time that its service grants it.
    pub(super) async fn stop(&self, id: &str) -> Result<(), CallError> {
        self.change(Method::POST, &format!("containers/{id}/stop")).await
    }

    /// Removes a container that does not run; its volumes stay.
    pub(super) async fn remove(&self, id: &str) -> Result<(), CallError> {
        self.change(Method::DELETE, &format!("containers/{id}")).await
    }

    /// The mistake of the hand-made way: a container that is started again keeps the environment that it was made with.
    pub(super) async fn restart(&self, id: &str) -> Result<(), CallError> {
        self.change(Method::POST, &format!("containers/{id}/restart")).await
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<SecretValue, CallError> {
        let request = self.client.get(format!("http://localhost/{path}")).query(query);
        let response = request.send().await.map_err(|error| self.call_error(error))?;
        match response.status() {
            StatusCode::OK => http::body(&self.name, response).await.map(SecretValue::new),
            status => {
                Err(http::answer_error(&self.name, Effect::Reads, status, response.headers()))
            }
        }
    }

    /// The host of a URL means nothing on a socket.
    fn call_error(&self, error: reqwest::Error) -> CallError {
        http::call_error(&self.name, &error.without_url())
    }

    /// What is changed already, or gone, is as it should be.
    async fn change(&self, method: Method, path: &str) -> Result<(), CallError> {
        let request = self.client.request(method, format!("http://localhost/{path}"));
        let response = request.send().await.map_err(|error| self.call_error(error))?;
        match response.status().as_u16() {
            200..=299 | 304 | 404 => Ok(()),
            _ => Err(http::answer_error(
                &self.name,
                Effect::Changes,
                response.status(),
                response.headers(),
            )),
        }
    }
}

fn is_gone(error: &CallError) -> bool {
    use keywheel_driver::RefusalKind;
    matches!(error, CallError::Refused(refusal) if refusal.kind == RefusalKind::NotFound)
}

fn parsed<T: serde::de::DeserializeOwned>(body: &SecretValue) -> Result<T, CallError> {
    let unread = |_| {
        CallError::Unknown("the container engine answered what this version cannot read".into())
    };
    serde_json::from_slice(body.expose()).map_err(unread)
}

/// `NAME=value`.
struct Variable(SecretValue);

impl<'de> Deserialize<'de> for Variable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(SecretValue::new(text.into_bytes())))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Health {
    status: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Mount {
    #[serde(rename = "Type", default)]
    kind: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    source: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    name: String,
    created: String,
    state: State,
    #[serde(default)]
    restart_count: u32,
    config: Settings,
    #[serde(default)]
    host_config: HostSettings,
    #[serde(default)]
    mounts: Vec<Mount>,
    #[serde(default)]
    network_settings: Networks,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Settings {
    env: Option<Vec<Variable>>,
    labels: Option<std::collections::BTreeMap<String, String>>,
    healthcheck: Option<HealthCheck>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HealthCheck {
    test: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostSettings {
    network_mode: String,
    port_bindings: Option<std::collections::BTreeMap<String, Option<Vec<PortBinding>>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PortBinding {
    #[serde(default)]
    host_port: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Networks {
    networks: Option<std::collections::BTreeMap<String, Network>>,
}

#[derive(Deserialize)]
struct Network {
    #[serde(rename = "IPAddress", default)]
    address: String,
}

impl From<Inspected> for Container {
    fn from(inspected: Inspected) -> Self {
        let labels = inspected.config.labels.unwrap_or_default();
        let label = |name: &str| labels.get(name).cloned();
        let networks = inspected.network_settings.networks.unwrap_or_default();
        let ports = inspected.host_config.port_bindings.unwrap_or_default();
        let check = inspected.config.healthcheck.and_then(|check| check.test).unwrap_or_default();
        Self {
            id: inspected.id,
            name: inspected.name.trim_start_matches('/').to_owned(),
            labels: Labels {
                project: label(PROJECT),
                is_one_off: label(ONE_OFF).is_some_and(|is| is.eq_ignore_ascii_case("true")),
                hash: label(HASH),
                version: label(VERSION),
            },
            created: inspected
                .created
                .parse::<jiff::Timestamp>()
                .ok()
                .map(|at| Timestamp::from_millis(at.as_millisecond())),
            state: inspected.state,
            restarts: inspected.restart_count,
            has_health_check: check.first().is_some_and(|first| first != "NONE"),
            on_host_network: inspected.host_config.network_mode == "host",
            has_fixed_port: ports
                .values()
                .flatten()
                .flatten()
                .any(|port| !matches!(port.host_port.as_str(), "" | "0")),
            address: networks.values().find_map(|network| network.address.parse().ok()),
            variables: inspected.config.env.unwrap_or_default(),
            mounts: inspected.mounts,
        }
    }
}
