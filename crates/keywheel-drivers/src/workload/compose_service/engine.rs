//! The container engine behind a Compose project, asked over its socket: Docker's API, which Podman serves too.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use keywheel_core::plan::Pin;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::Timestamp;
use keywheel_driver::{CallError, Refusal, RefusalKind};
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Deserializer};

use super::running::Labelled;
use crate::http::{self, Effect};
use crate::lines::Line;

/// The labels that Compose puts on what it makes.
pub(super) const SERVICE: &str = "com.docker.compose.service";
pub(super) const FOLDER: &str = "com.docker.compose.project.working_dir";
pub(super) const PROJECT: &str = "com.docker.compose.project";
pub(super) const ONE_OFF: &str = "com.docker.compose.oneoff";
pub(super) const FILES: &str = "com.docker.compose.project.config_files";
const HASH: &str = "com.docker.compose.config-hash";
const VERSION: &str = "com.docker.compose.version";

/// Takes one line of a log.
pub(crate) type Take<'a> = dyn FnMut(&str) -> Result<(), CallError> + Send + 'a;

/// A connection to the engine.
pub(crate) struct Engine {
    client: reqwest::Client,
    name: String,
}

/// One container, as the engine tells of it. It holds values, so nothing of it is ever printed but its name and its state.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(super) name: String,
    pub(super) labels: Labels,
    pub(super) created: Option<Timestamp>,
    pub(super) image: Image,
    pub(super) state: State,
    pub(super) restarts: u32,
    pub(super) has_health_check: bool,
    pub(super) on_host_network: bool,
    pub(super) has_fixed_port: bool,
    pub(crate) address: Option<IpAddr>,
    pub(super) log: Log,
    variables: Vec<Variable>,
    mounts: Vec<Mount>,
}

/// What Compose wrote on a container.
pub(crate) struct Labels {
    pub(super) project: Option<String>,
    pub(super) is_one_off: bool,
    pub(super) hash: Option<String>,
    pub(super) version: Option<String>,
}

/// What takes what a container writes.
pub(crate) struct Log {
    pub(super) driver: String,
    /// Its file on the engine's machine, where there is one.
    pub(super) file: Option<String>,
}

impl Log {
    /// Returns whether it is still there when the container is gone; none where that hangs on a plug-in.
    pub(super) fn outlives(&self) -> Option<bool> {
        match self.driver.as_str() {
            "json-file" | "local" | "k8s-file" | "none" | "passthrough" => Some(false),
            "journald" | "syslog" | "fluentd" | "gelf" | "awslogs" | "splunk" | "gcplogs"
            | "etwlogs" | "logentries" => Some(true),
            _ => None,
        }
    }

    /// Returns whether nothing takes it.
    pub(super) fn is_none(&self) -> bool {
        matches!(self.driver.as_str(), "none" | "passthrough")
    }
}

/// The image that a container was made from.
pub(super) struct Image {
    /// What it was asked for by.
    pub(super) name: String,
    /// What that meant then.
    pub(super) id: String,
}

/// How a container does.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct State {
    pub(super) status: String,
    #[serde(default)]
    started_at: String,
    #[serde(default)]
    pub(super) exit_code: i64,
    health: Option<Health>,
}

impl State {
    pub(crate) fn runs(&self) -> bool {
        self.status == "running"
    }

    /// Whether nothing will come of it any more.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.status.as_str(), "exited" | "dead")
    }

    pub(crate) fn health(&self) -> &str {
        self.health.as_ref().map_or("none", |health| &health.status)
    }

    /// Returns when it was started last.
    pub(super) fn started_at(&self) -> Option<Timestamp> {
        timestamp(&self.started_at)
    }
}

impl Container {
    /// Whether it runs for its service, and is none of `compose run`.
    pub(crate) fn serves(&self) -> bool {
        self.state.runs() && !self.labels.is_one_off
    }

    /// Returns what its environment gives a variable; the last assignment counts.
    pub(crate) fn variable(&self, name: &str) -> Option<&[u8]> {
        self.variables.iter().rev().find_map(|variable| {
            let whole = variable.0.expose();
            let at = whole.iter().position(|byte| *byte == b'=')?;
            (&whole[..at] == name.as_bytes()).then(|| &whole[at + 1..])
        })
    }

    /// Returns whether a file of this machine is mounted into it, by itself or with a folder that holds it.
    pub(crate) fn mounts(&self, file: &Path) -> bool {
        self.mounts.iter().any(|mount| mount.kind == "bind" && file.starts_with(&mount.source))
    }

    /// Returns whether it has a volume without a name, which nothing but this container knows.
    pub(crate) fn has_anonymous_volume(&self) -> bool {
        self.mounts.iter().any(|mount| {
            mount.kind == "volume"
                && mount.name.len() == 64
                && mount.name.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
    }
}

impl Engine {
    pub(crate) fn at(socket: &Path) -> Self {
        let name = format!("the container engine at `{}`", socket.display());
        Self { client: http::over_socket(socket), name }
    }

    /// Returns how the engine names itself; none where the name does not last, as Podman makes up another id each time.
    pub(crate) async fn identity(&self) -> Result<Option<Pin>, CallError> {
        let (one, other) = (self.info().await?, self.info().await?);
        let lasts = one.id == other.id && !one.id.is_empty();
        Ok(lasts.then_some(Pin { id: one.id, machine: one.name, folder: one.docker_root_dir }))
    }

    async fn info(&self) -> Result<Info, CallError> {
        parsed(&self.get("info", &[]).await?)
    }

    /// Lists every container of a service, one-off ones and those that do not run included.
    pub(crate) async fn containers(
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

    /// Lists what the labels of every container of a Compose project say.
    pub(super) async fn labels(&self) -> Result<Vec<Labelled>, CallError> {
        let filters = serde_json::json!({ "label": [PROJECT] }).to_string();
        parsed(&self.get("containers/json", &[("all", "1"), ("filters", &filters)]).await?)
    }

    /// Looks at one container; none where it is gone.
    pub(crate) async fn container(&self, id: &str) -> Result<Option<Container>, CallError> {
        match self.get(&format!("containers/{id}/json"), &[]).await {
            Ok(body) => {
                let inspected: Inspected = parsed(&body)?;
                Ok((inspected.state.status != "removing").then(|| inspected.into()))
            }
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the id of the image that a name means now; none where there is none.
    pub(super) async fn image(&self, name: &str) -> Result<Option<String>, CallError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Row {
            id: String,
        }
        match self.get(&format!("images/{name}/json"), &[]).await {
            Ok(body) => parsed::<Row>(&body).map(|row| Some(bare(row.id))),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads what a container wrote in a time, line by line, each after its time in RFC 3339 and a space. A container that is
    /// gone wrote nothing. It ends with the first line that is not taken.
    pub(crate) async fn logs(
        &self,
        id: &str,
        range: &Range<Timestamp>,
        take: &mut Take<'_>,
    ) -> Result<(), CallError> {
        let (since, until) = (http::unix_seconds(range.start), http::unix_seconds(range.end));
        let yes = "1";
        let query = [
            ("stdout", yes),
            ("stderr", yes),
            ("timestamps", yes),
            ("since", &since),
            ("until", &until),
        ];
        let url = format!("http://localhost/containers/{id}/logs");
        let request = self.client.get(url).query(&query);
        let mut response = request.send().await.map_err(|error| self.call_error(error))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(()),
            status => {
                let headers = response.headers();
                return Err(http::answer_error(&self.name, Effect::Reads, status, headers));
            }
        }
        let mut lines = Lines::default();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.call_error(error))? {
            lines.read(&chunk, take)?;
        }
        lines.end(take)
    }

    /// Asks a container to end, with the signal and the time that its service grants it.
    pub(crate) async fn stop(&self, id: &str) -> Result<(), CallError> {
        self.change(Method::POST, &format!("containers/{id}/stop")).await
    }

    /// Starts a container that was stopped.
    pub(crate) async fn start(&self, id: &str) -> Result<(), CallError> {
        self.change(Method::POST, &format!("containers/{id}/start")).await
    }

    /// Removes a container that does not run; its volumes stay.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), CallError> {
        self.change(Method::DELETE, &format!("containers/{id}")).await
    }

    /// The mistake of the hand-made way: a container that is started again keeps the environment that it was made with.
    pub(crate) async fn restart(&self, id: &str) -> Result<(), CallError> {
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
        match error.is_connect().then(|| http::io_kind(&error)).flatten() {
            Some(ErrorKind::PermissionDenied) => {
                let message = format!("{}: this account may not use it", self.name);
                Refusal::operator(RefusalKind::Permission, message).into()
            }
            Some(ErrorKind::NotFound) => {
                let message =
                    format!("{}: there is no such socket; does the engine run?", self.name);
                Refusal::retry(RefusalKind::Unavailable, None, message).into()
            }
            _ => http::call_error(&self.name, &error.without_url()),
        }
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

/// What a container wrote, put together again: with a terminal as it is, else in frames with a header of 8 bytes, whose first
/// names the stream and whose last four tell the length.
#[derive(Default)]
struct Lines {
    is_framed: Option<bool>,
    header: Vec<u8>,
    left: usize,
    stream: usize,
    /// The line that is not whole yet, of each stream.
    lines: [Line; 3],
}

impl Lines {
    fn read(&mut self, mut chunk: &[u8], take: &mut Take<'_>) -> Result<(), CallError> {
        while let Some(first) = chunk.first() {
            // No text begins with one of these.
            if !*self.is_framed.get_or_insert(*first <= 2) {
                return self.text(chunk, take);
            }
            if self.left == 0 {
                let (header, rest) = chunk.split_at(chunk.len().min(8 - self.header.len()));
                self.header.extend(header);
                chunk = rest;
                if let [stream, _, _, _, a, b, c, d] = self.header[..] {
                    self.stream = usize::from(stream).min(2);
                    self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                    self.header.clear();
                }
            } else {
                let (text, rest) = chunk.split_at(chunk.len().min(self.left));
                self.left -= text.len();
                chunk = rest;
                self.text(text, take)?;
            }
        }
        Ok(())
    }

    fn text(&mut self, text: &[u8], take: &mut Take<'_>) -> Result<(), CallError> {
        self.lines[self.stream].add(text, take)
    }

    fn end(self, take: &mut Take<'_>) -> Result<(), CallError> {
        self.lines.iter().try_for_each(|line| line.end(take))
    }
}

/// Podman writes ids without the name of their hash.
fn bare(id: String) -> String {
    id.strip_prefix("sha256:").map_or(id.clone(), str::to_owned)
}

fn timestamp(text: &str) -> Option<Timestamp> {
    let at = text.parse::<jiff::Timestamp>().ok()?;
    Some(Timestamp::from_millis(at.as_millisecond()))
}

fn is_gone(error: &CallError) -> bool {
    matches!(error, CallError::Refused(refusal) if refusal.kind == RefusalKind::NotFound)
}

fn parsed<T: serde::de::DeserializeOwned>(body: &SecretValue) -> Result<T, CallError> {
    let unread = |_| {
        CallError::Unknown("the container engine answered what this version cannot read".into())
    };
    serde_json::from_slice(body.expose()).map_err(unread)
}

/// What the engine says of itself.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    docker_root_dir: String,
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
    #[serde(default)]
    image: String,
    state: State,
    #[serde(default)]
    restart_count: u32,
    config: Settings,
    #[serde(default)]
    host_config: HostSettings,
    #[serde(default)]
    log_path: String,
    #[serde(default)]
    mounts: Vec<Mount>,
    #[serde(default)]
    network_settings: Networks,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Settings {
    #[serde(default)]
    image: String,
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
    log_config: LogConfig,
    port_bindings: Option<std::collections::BTreeMap<String, Option<Vec<PortBinding>>>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LogConfig {
    #[serde(rename = "Type")]
    kind: String,
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
            created: timestamp(&inspected.created),
            image: Image { name: inspected.config.image, id: bare(inspected.image) },
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
            log: Log {
                driver: inspected.host_config.log_config.kind,
                file: Some(inspected.log_path).filter(|path| !path.is_empty()),
            },
            variables: inspected.config.env.unwrap_or_default(),
            mounts: inspected.mounts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines::LONGEST;

    fn frame(stream: u8, text: &str) -> Vec<u8> {
        let length = u32::try_from(text.len()).unwrap().to_be_bytes();
        [&[stream, 0, 0, 0], &length[..], text.as_bytes()].concat()
    }

    fn lines(bytes: &[u8], size: usize) -> Vec<String> {
        let mut seen = Vec::new();
        let mut take = |line: &str| {
            seen.push(line.to_owned());
            Ok(())
        };
        let mut lines = Lines::default();
        bytes.chunks(size).for_each(|chunk| lines.read(chunk, &mut take).unwrap());
        lines.end(&mut take).unwrap();
        seen
    }

    #[test]
    fn lines_are_put_together_again_however_they_come() {
        let framed = [frame(1, "one\ntw"), frame(2, "error\n"), frame(1, "o\n"), frame(1, "three")];
        let framed = framed.concat();
        for size in 1..=framed.len() {
            assert_eq!(lines(&framed, size), ["one", "error", "two", "three"], "{size}");
            assert_eq!(lines(b"one\r\ntwo\n", size), ["one", "two"], "{size}");
        }
        let long = format!("{}\nnext\n", "x".repeat(LONGEST + 9));
        assert_eq!(
            lines(long.as_bytes(), 999).iter().map(String::len).collect::<Vec<_>>(),
            [LONGEST, 4]
        );
    }
}
