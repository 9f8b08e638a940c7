//! `compose_service`: the containers of one service of a Docker Compose project.
//!
//! A container's environment is fixed when it is made, so a value is taken up by a new container only: `restart` keeps the old
//! one (H98). A roll removes one container after the other and lets Compose make its successor, which must come up, be healthy
//! and hold the new values before the next one is touched.
//!
//! - The slot of a `.env` file is read as the variable of the same name in the container's own environment; `variables` names
//!   it where Compose passes it on under another name. The slot of a `file` store is read as a file that is mounted into the
//!   container. Such a mount stays on the file that was there when the container started (H101), and nothing shows what the
//!   program made of it: only a container made after the write counts.
//! - Compose runs without the environment of keywheel's own shell (H100). Containers that were made from other settings than
//!   the files give now are found before anything changes: a roll would change more than the secret.
//! - `docker compose run` leaves containers that no roll replaces. While one of them runs, it counts as a replica.

mod compose;
pub(crate) mod engine;
mod keep;
mod model;
mod running;
mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration as StdDuration;

use async_trait::async_trait;
use keywheel_core::evidence::{Proof, Replica, Shows};
use keywheel_core::facts::WorkloadFacts;
use keywheel_core::fingerprint::{Compared, Fingerprinter};
use keywheel_core::incident::LogReference;
use keywheel_core::plan::Pin;
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::Span;
use keywheel_driver::duration::Duration;
use keywheel_driver::workload::{Answer, Ensure, ReadLog, Reader, Reading, Workload};
use keywheel_driver::{CallError, Finding, Refusal, RefusalKind, fail_point, slot};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use self::compose::Compose;
use self::engine::{Container, Engine};
use self::keep::Keep;
pub use self::running::{Running, running};
use super::clock;
use crate::store::file::CONTENT;
use crate::{Build, Context, http, program};

/// How often a container is looked at while something is waited for.
const POLL: StdDuration = StdDuration::from_millis(100);

/// How long one question to a replica may take.
const ANSWER: StdDuration = StdDuration::from_secs(3);

/// How long the log of one container may hold up an emergency, before and after its stop.
const COPY: StdDuration = StdDuration::from_secs(5);

/// How exact the time is at which a container was made: the engine notes it when it begins to make it.
const GRANULARITY: Span = Span::millis(20);

/// The containers of one service of a Docker Compose project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The Compose file; relative paths begin at the folder of the configuration file.
    pub file: PathBuf,
    /// Further Compose files, in the order in which Compose merges them; `docker-compose.override.yml` is read only if it is
    /// named here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<PathBuf>,
    /// The service.
    pub service: String,
    /// The project's name, where Compose was given another one than it would find by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// How many containers the service has.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub replicas: usize,
    /// Whether a new container is started before the old one is removed; for a service without fixed host ports, without a
    /// container name, and off the host's network.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub start_first: bool,
    /// The variable in the container that holds a slot, where it is not called like the slot.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, String>,
    /// A place of each container that answers 200 to a bearer token that it accepts, and 401 or 403 to any other; asked at
    /// the container's own address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenPlace>,
    /// The Compose program and its first arguments; by default `docker compose`, else `docker-compose`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<Vec<String>>,
    /// The socket of the container engine; by default that of `DOCKER_HOST`, else Docker's, else Podman's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// A folder into which the log of a container is copied before a roll removes it, readable by its owner only; for logs
    /// that go with their container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_logs: Option<PathBuf>,
    /// How long a container may take to be made and ready.
    #[serde(default = "seconds::<60>")]
    pub ready_within: Duration,
    /// How long a new container must have been ready before the next one is removed: at least as long as whatever balances
    /// requests takes to notice.
    #[serde(default = "seconds::<2>")]
    pub ready_for: Duration,
    /// How long a roll that was broken off can still make or remove containers.
    #[serde(default = "seconds::<60>")]
    pub settle_for: Duration,
}

/// Where a container answers tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenPlace {
    /// The port inside the container.
    pub port: u16,
    /// The path, from its slash on.
    pub path: String,
}

fn one() -> usize {
    1
}

fn seconds<const N: u64>() -> Duration {
    Span::seconds(N).into()
}

impl Build for Config {
    type Driver = dyn Workload;

    fn build(&self, context: &Context) -> Result<Arc<dyn Workload>, Refusal> {
        self.check()?;
        let socket = self.socket.clone().unwrap_or_else(usual_socket);
        let files = std::iter::once(&self.file).chain(&self.overrides);
        let files: Vec<_> = files.map(|file| settled(&context.root.join(file))).collect();
        Ok(Arc::new(Service {
            engine: Engine::at(&socket),
            compose: Compose {
                configured: self.program.clone(),
                files,
                project: self.project.clone(),
                service: self.service.clone(),
                socket,
                found: OnceCell::new(),
                model: OnceCell::new(),
            },
            keep: self.keep_logs.as_ref().map(|folder| Keep::new(context.root.join(folder))),
            config: self.clone(),
        }))
    }
}

impl Config {
    fn check(&self) -> Result<(), Refusal> {
        if self.service.is_empty() || self.service.starts_with('-') {
            return Err(unsupported("`service` names none"));
        }
        if self.project.as_deref().is_some_and(|name| name.is_empty() || name.starts_with('-')) {
            return Err(unsupported("`project` is no name"));
        }
        if self.replicas == 0 {
            return Err(unsupported("`replicas` must be one at least"));
        }
        if self.ready_for >= self.ready_within {
            return Err(unsupported("`ready_for` must be shorter than `ready_within`"));
        }
        if self.token.as_ref().is_some_and(|token| !token.path.starts_with('/')) {
            return Err(unsupported("`token.path` begins with a slash"));
        }
        self.program.as_deref().map_or(Ok(()), |argv| program::check("program", argv))
    }
}

/// The containers of a Compose service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContainersOf {
    /// The Compose file; a relative path begins at the folder of the configuration file.
    pub file: PathBuf,
    /// The service.
    pub service: String,
    /// The project's name, where several have services in the same folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The socket of the container engine; by default that of `DOCKER_HOST`, else Docker's, else Podman's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

impl ContainersOf {
    /// Makes relative paths begin at the folder of the configuration file.
    pub(crate) fn rooted(&self, context: &Context) -> Self {
        Self {
            file: settled(&context.root.join(&self.file)),
            socket: self.socket.as_ref().map(|socket| context.root.join(socket)),
            ..self.clone()
        }
    }

    pub(crate) fn engine(&self) -> Engine {
        Engine::at(&self.socket.clone().unwrap_or_else(usual_socket))
    }

    /// Lists every container of the service, those that do not run included.
    pub(crate) async fn all(&self, engine: &Engine) -> Result<Vec<Container>, CallError> {
        let folder = self.file.parent().unwrap_or(Path::new("/"));
        engine.containers(folder, self.project.as_deref(), &self.service).await
    }
}

/// Returns the socket that `docker` itself would use.
pub(crate) fn usual_socket() -> PathBuf {
    let of_host = std::env::var("DOCKER_HOST")
        .ok()
        .and_then(|host| host.strip_prefix("unix://").map(PathBuf::from));
    let of_user = std::env::var_os("XDG_RUNTIME_DIR")
        .map(|folder| PathBuf::from(folder).join("podman/podman.sock"));
    let docker = PathBuf::from("/var/run/docker.sock");
    let known = [Some(docker.clone()), Some("/run/podman/podman.sock".into()), of_user];
    of_host.or_else(|| known.into_iter().flatten().find(|socket| socket.exists())).unwrap_or(docker)
}

/// Compose writes the folder of its files on containers with links resolved.
pub(crate) fn settled(file: &Path) -> PathBuf {
    let folder = file.parent().and_then(|folder| folder.canonicalize().ok());
    match (folder, file.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => file.to_owned(),
    }
}

struct Service {
    config: Config,
    engine: Engine,
    compose: Compose,
    keep: Option<Keep>,
}

#[async_trait]
impl Workload for Service {
    fn facts(&self) -> WorkloadFacts {
        WorkloadFacts {
            settle_for: self.config.settle_for.span(),
            start_granularity: GRANULARITY,
            answers_tokens: self.config.token.is_some(),
            gap: self.config.replicas == 1 && !self.config.start_first,
        }
    }

    fn resource(&self) -> String {
        self.resource_of(&self.config.service)
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        let containers = self.containers().await?;
        let mut findings = self.examine_project(&containers).await?;
        for container in &containers {
            self.examine(container, &mut findings);
            findings.extend(self.other_image(container).await?.map(Finding::blocks));
        }
        findings.extend(self.examine_logs(&containers));
        if self.facts().gap {
            let message = "there is one container: requests fail while its successor starts; `start_first: true` starts that one first where nothing forbids two at once";
            findings.push(Finding::note(message));
        }
        Ok(findings)
    }

    async fn readers(&self, slots: &[String]) -> Result<Option<Vec<Reader>>, CallError> {
        let model = self.compose.model().await?;
        let mut readers = Vec::new();
        for service in model.services() {
            let is_own = *service == self.config.service;
            let takes = |slot: &&String| {
                let (file, address) = slot::parts(slot);
                let file = Path::new(file.trim_start_matches("file:"));
                let may_take = model.is_merged || model.sees(service, file);
                model.takes(service, file, address) || is_own && may_take
            };
            let taken: Vec<String> = slots.iter().filter(takes).cloned().collect();
            if taken.is_empty() && !is_own {
                continue;
            }
            readers.push(Reader {
                name: format!("service `{service}`"),
                resource: self.resource_of(service),
                slots: taken,
                runs: self.containers_of(service).await?.iter().any(|one| !one.state.has_ended()),
            });
        }
        Ok(Some(readers))
    }

    async fn identity(&self) -> Result<Option<Pin>, CallError> {
        self.engine.identity().await
    }

    async fn observe(
        &self,
        slots: &[String],
        fingerprinter: &Fingerprinter,
    ) -> Result<Vec<Replica>, CallError> {
        let mut containers = self.containers().await?;
        if planted!("stopped_containers_unseen") {
            containers.retain(|container| container.state.runs());
        }
        Ok(containers.iter().map(|one| self.look(one, slots, fingerprinter)).collect())
    }

    async fn logs(&self) -> Result<Option<Vec<LogReference>>, CallError> {
        let containers = self.containers().await?;
        Ok(Some(containers.iter().map(|container| self.log_of(container)).collect()))
    }

    async fn read_logs(
        &self,
        reading: &mut Reading<'_>,
    ) -> Result<Option<Vec<ReadLog>>, CallError> {
        let deadline = Instant::now() + reading.within.into();
        let mut read = Vec::new();
        for container in self.containers().await? {
            read.push(self.read_log(&container, reading, deadline).await);
            if planted!("one_log_stands_for_all") {
                break;
            }
        }
        Ok(Some(read))
    }

    async fn roll(&self, ensure: &Ensure<'_>) -> Result<(), CallError> {
        clock::pass(ensure.held_since, GRANULARITY).await?;
        self.compose.is_idle(self.config.ready_within.span()).await?;
        self.check_environment(ensure).await?;
        let mut containers = self.containers().await?;
        self.refuse_one_off(&containers, ensure)?;
        containers.retain(|container| !container.labels.is_one_off);
        let wanted = self.wanted(&containers);
        self.refuse_other_image(&containers, ensure).await?;
        // What a roll that was broken off left missing is made before anything else is removed.
        if !planted!("missing_is_made_later") {
            self.fill(wanted, ensure).await?;
        }
        // One that serves is removed only when every other one serves.
        containers.sort_by_key(|one| (is_ready(one), self.proof(one, ensure) != Proof::Holds));
        for container in containers {
            self.bring(container, wanted, ensure).await?;
        }
        self.fill(wanted, ensure).await
    }

    async fn present(&self, token: &SecretValue) -> Result<Vec<Answer>, CallError> {
        let Some(place) = &self.config.token else { return Ok(Vec::new()) };
        let bearer =
            http::bearer(token).map_err(|_| unsupported("the token does not fit into a header"))?;
        let mut answers = Vec::new();
        for container in self.containers().await? {
            let accepted = match container.address {
                Some(address) => {
                    let address = std::net::SocketAddr::new(address, place.port);
                    let url = format!("http://{address}{}", place.path);
                    let request = http::client()
                        .get(url)
                        .header(reqwest::header::AUTHORIZATION, bearer.clone())
                        .timeout(ANSWER);
                    match request.send().await.map(|response| response.status().as_u16()) {
                        Ok(200) => Some(true),
                        Ok(401 | 403) => Some(false),
                        _ => None,
                    }
                }
                None => None,
            };
            answers.push(Answer { replica: container.name, accepted });
        }
        Ok(answers)
    }
}

/// Looking.
impl Service {
    /// Lists the containers of the service. One that `compose run` made and that ended is done, and cannot start by itself.
    async fn containers(&self) -> Result<Vec<Container>, CallError> {
        self.containers_of(&self.config.service).await
    }

    async fn containers_of(&self, service: &str) -> Result<Vec<Container>, CallError> {
        let project = self.config.project.as_deref();
        let mut found = self.engine.containers(self.compose.folder(), project, service).await?;
        found.retain(|container| !container.labels.is_one_off || container.state.runs());
        Ok(found)
    }

    /// The name under which everyone who rolls a service of the project knows it.
    fn resource_of(&self, service: &str) -> String {
        let project = self.config.project.as_deref().unwrap_or_default();
        format!("compose:{}:{project}:{service}", self.compose.folder().display())
    }

    fn look(
        &self,
        container: &Container,
        slots: &[String],
        fingerprinter: &Fingerprinter,
    ) -> Replica {
        let (mut shown, mut unseen, mut is_blind) = (Vec::new(), Vec::new(), false);
        for name in slots {
            let (file, address) = slot::parts(name);
            if address != CONTENT {
                let held = container.variable(self.variable(address));
                shown.extend(held.map(|value| (name.clone(), fingerprinter.of(value))));
            } else if container.mounts(Path::new(file.trim_start_matches("file:"))) {
                unseen.push(name.clone());
            } else {
                is_blind = true;
            }
        }
        let shows = match is_blind {
            true => Shows::Nothing,
            false if unseen.is_empty() => Shows::Slots(shown),
            // A file that is mounted changes under the container.
            false => Shows::Live { shown, unseen },
        };
        let started_at = match planted!("mounts_are_live") {
            true => Some(clock::now() + GRANULARITY),
            false => container.created,
        };
        Replica { id: container.name.clone(), started_at, shows }
    }

    fn log_of(&self, container: &Container) -> LogReference {
        let (id, log) = (&container.id, &container.log);
        let is_podman = self.compose.socket.to_string_lossy().contains("podman");
        let program = if is_podman { "podman" } else { "docker" };
        let place = match log.outlives() {
            _ if log.is_none() => None,
            Some(true) if log.driver == "journald" => {
                Some(format!("journalctl CONTAINER_ID_FULL={id}"))
            }
            Some(true) => None,
            _ => Some(format!("{program} logs {id}")),
        };
        let keep = self.copies(container).filter(|keep| keep.obstacle().is_none());
        LogReference {
            replica: container.name.clone(),
            id: Some(id.clone()),
            driver: Some(log.driver.clone()),
            place,
            file: log.file.clone(),
            since: container.created,
            until: clock::now(),
            outlives: log.outlives(),
            kept_in: keep.map(|keep| keep.file(container).display().to_string()),
        }
    }

    /// Reads both streams of one container, as far as the bounds let it.
    async fn read_log(
        &self,
        container: &Container,
        reading: &mut Reading<'_>,
        deadline: Instant,
    ) -> ReadLog {
        let Reading { since, most_bytes, within, .. } = *reading;
        let (mut bytes, mut is_full) = (0, false);
        let mut take = |line: &str| {
            bytes += line.len() as u64 + 1;
            is_full = bytes > most_bytes;
            if is_full {
                return Err(CallError::Unknown("it is longer than is read".into()));
            }
            (reading.take)(&container.name, line);
            Ok(())
        };
        let range = since..clock::now() + Span::seconds(1);
        let read = self.engine.logs(&container.id, &range, &mut take);
        let read = tokio::time::timeout_at(deadline, read).await;
        let not_read = match read {
            _ if container.log.is_none() => Some("nothing keeps what it writes".into()),
            _ if is_full => Some(format!(
                "it is longer than {} MiB, and later lines were not read: ask for a later time",
                most_bytes >> 20
            )),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!(
                "it was not read to its end within {within}, and later lines are missing: ask for a later time"
            )),
            Ok(Ok(())) if bytes == 0 => self.gone_meanwhile(container).await,
            Ok(Ok(())) => None,
        };
        ReadLog { replica: container.name.clone(), id: Some(container.id.clone()), not_read }
    }

    /// Says of a container that showed no line if it is not there any more.
    async fn gone_meanwhile(&self, container: &Container) -> Option<String> {
        match self.engine.container(&container.id).await {
            Ok(Some(_)) => None,
            Ok(None) => Some("the container was removed meanwhile".into()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Returns where the log of a container is copied to, if it is one that goes with the container.
    fn copies(&self, container: &Container) -> Option<&Keep> {
        let goes = container.log.outlives() != Some(true) && !container.log.is_none();
        self.keep.as_ref().filter(|_| goes)
    }

    /// Returns the variable of the container that holds a slot.
    fn variable<'a>(&'a self, address: &'a str) -> &'a str {
        self.config.variables.get(address).map_or(address, String::as_str)
    }

    fn proof(&self, container: &Container, ensure: &Ensure<'_>) -> Proof {
        let slots: Vec<_> = ensure.slots.iter().map(|(slot, _)| slot.clone()).collect();
        ensure.judge(&self.look(container, &slots, ensure.fingerprinter), self.facts())
    }

    /// Returns how many containers there shall be. A roll that was broken off between a removal and its successor leaves one
    /// too few, and that one is not forgotten; one that starts its successors first leaves one too many.
    fn wanted(&self, containers: &[Container]) -> usize {
        match self.config.start_first {
            true => self.config.replicas,
            false if planted!("removed_container_forgotten") => containers.len(),
            false => containers.len().max(self.config.replicas),
        }
    }
}

/// Before anything changes.
impl Service {
    async fn examine_project(&self, containers: &[Container]) -> Result<Vec<Finding>, CallError> {
        let mut findings = Vec::new();
        let found = self.compose.found().await?;
        if let Some(file) = self.compose.files.iter().find(|file| !file.is_file()) {
            let message = format!("there is no Compose file `{}`", file.display());
            return Ok(vec![Finding::blocks(message)]);
        }
        let members: Vec<_> = containers.iter().filter(|one| !one.labels.is_one_off).collect();
        let service = &self.config.service;
        if members.is_empty() {
            let message = format!(
                "service `{service}` has no container: `docker compose up -d {service}` makes it"
            );
            return Ok(vec![Finding::blocks(message)]);
        }
        if members.len() != self.config.replicas {
            findings.push(Finding::blocks(format!(
                "containers of service `{service}`: {}, and `replicas: {}` is configured",
                members.len(),
                self.config.replicas
            )));
        }
        if self.is_of_another_project(&members).await? {
            findings.push(Finding::blocks(
                "the containers belong to a project that Compose does not find by itself: name it with `project`",
            ));
        }
        if found.is_first_generation() {
            findings.push(Finding::note("Compose 1 gets no more corrections since July 2023"));
        }
        findings.extend(self.examine_hash(&members, &found.version).await?);
        findings.extend(self.examine_needs().await?);
        Ok(findings)
    }

    /// A roll leaves the services alone that this one depends on, so they must be there.
    async fn examine_needs(&self) -> Result<Vec<Finding>, CallError> {
        let mut findings = Vec::new();
        for need in self.compose.model().await?.needs(&self.config.service) {
            let containers = self.containers_of(&need.service).await?;
            let is_done = |one: &Container| one.state.has_ended() && one.state.exit_code == 0;
            let is_there = match need.ends {
                true => containers.is_empty() || containers.iter().any(is_done),
                false => containers.iter().any(is_ready),
            };
            if !is_there {
                let (service, needed) = (&self.config.service, &need.service);
                findings.push(Finding::blocks(format!(
                    "service `{service}` depends on `{needed}`, which is not there: `docker compose up -d {needed}` starts it"
                )));
            }
        }
        Ok(findings)
    }

    async fn is_of_another_project(&self, members: &[&Container]) -> Result<bool, Refusal> {
        let mut projects: Vec<_> =
            members.iter().map(|one| one.labels.project.as_deref()).collect();
        projects.dedup();
        let ids = self.compose.ids().await?;
        let is_known = |one: &&Container| ids.iter().any(|id| one.id.starts_with(id.as_str()));
        Ok(projects.len() > 1 || !members.iter().all(is_known))
    }

    /// Containers that were made from other settings, by a file that was edited since, another `-f`, or a variable of a shell.
    async fn examine_hash(
        &self,
        members: &[&Container],
        version: &str,
    ) -> Result<Option<Finding>, Refusal> {
        if planted!("other_settings_rolled_out") {
            return Ok(None);
        }
        let is_ours = |one: &&Container| one.labels.version.as_deref() == Some(version);
        if !members.iter().all(is_ours) {
            let message = "the containers were made by another version of Compose: whether a roll changes more than the secret cannot be told";
            return Ok(Some(Finding::note(message)));
        }
        let hash = self.compose.hash().await?;
        let differ: Vec<_> = members
            .iter()
            .filter(|one| one.labels.hash != hash)
            .map(|one| format!("`{}`", one.name))
            .collect();
        Ok((!differ.is_empty()).then(|| {
            Finding::blocks(format!(
                "{} was made from other settings than the files give now, so a roll would change more than the secret; look for an edit, a file missing from `overrides`, or a variable of the shell that called Compose, then run `compose up -d` without it",
                differ.join(", ")
            ))
        }))
    }

    fn examine_logs(&self, containers: &[Container]) -> Option<Finding> {
        let Some((keep, folder)) = self.keep.as_ref().zip(self.config.keep_logs.as_ref()) else {
            let goes = containers.iter().find(|one| one.log.outlives() == Some(false))?;
            return Some(Finding::note(format!(
                "a roll removes containers with their logs (`{}`): `keep_logs` names a folder for copies",
                goes.log.driver
            )));
        };
        let why = keep.obstacle()?;
        Some(Finding::blocks(format!("folder `{}` of `keep_logs` {why}", folder.display())))
    }

    /// Says why a successor would not run what a container runs: its image is gone, or was built or pulled anew.
    async fn other_image(&self, container: &Container) -> Result<Option<String>, CallError> {
        if planted!("other_image_rolled_out") || container.labels.is_one_off {
            return Ok(None);
        }
        let image = &container.image;
        let (name, of) = (&container.name, &image.name);
        Ok(match self.engine.image(of).await? {
            Some(id) if id == image.id => None,
            Some(_) => Some(format!(
                "`{of}` is another image now than the one that container `{name}` runs, so a roll would bring more than the secret: `docker compose up -d {}` brings it first",
                self.config.service
            )),
            None => Some(format!(
                "image `{of}` of container `{name}` is no longer there, so no successor could be made: build or pull it, or tag it again"
            )),
        })
    }

    fn examine(&self, container: &Container, findings: &mut Vec<Finding>) {
        let name = &container.name;
        let mut blocks =
            |message: &str| findings.push(Finding::blocks(format!("container `{name}` {message}")));
        if container.labels.is_one_off {
            return blocks("was made by `compose run` and still runs: no roll replaces it");
        }
        if !is_ready(container) {
            blocks(&format!(
                "is {} and its health {}",
                container.state.status,
                container.state.health()
            ));
        }
        if container.has_anonymous_volume() {
            blocks(
                "has a volume without a name, which its successor would not get: name it in the Compose file",
            );
        }
        if self.config.start_first && (container.has_fixed_port || container.on_host_network) {
            blocks(
                "holds ports of the host, so its successor cannot start before it is gone: configure `start_first: false`",
            );
        }
        if self.config.token.is_some() && container.address.is_none() {
            blocks("has no address of its own, at which `token` could be asked");
        }
        if !container.has_health_check {
            findings.push(Finding::note(format!(
                "container `{name}` has no health check: it counts as ready when it ran for {}",
                self.config.ready_for.span()
            )));
        }
    }
}

/// Rolling.
impl Service {
    /// Asks Compose what a new container would get, before any old one is removed for it.
    async fn check_environment(&self, ensure: &Ensure<'_>) -> Result<(), CallError> {
        if planted!("mask_unseen") {
            return Ok(());
        }
        let environment = self.compose.environment().await?;
        for (name, expected) in ensure.slots {
            let (_, address) = slot::parts(name);
            let Some(expected) = expected.filter(|_| address != CONTENT) else { continue };
            let variable = self.variable(address);
            let seen = environment.variable(variable).map(|value| ensure.fingerprinter.of(value));
            let why = match seen {
                None => {
                    "does not give it to the service: name the variable that holds it in `variables`"
                }
                Some(seen) if seen.compare(&expected) == Compared::Different => {
                    "gives the service another value for it: `environment:` or a later `env_file` hides the file"
                }
                Some(_) => continue,
            };
            let message =
                format!("Compose {why} (`{variable}` of service `{}`)", self.config.service);
            return Err(Refusal::operator(RefusalKind::WorkloadFailed, message).into());
        }
        Ok(())
    }

    fn refuse_one_off(
        &self,
        containers: &[Container],
        ensure: &Ensure<'_>,
    ) -> Result<(), CallError> {
        let stale = containers
            .iter()
            .find(|one| one.labels.is_one_off && self.proof(one, ensure) != Proof::Holds);
        match stale {
            None => Ok(()),
            Some(one) => {
                let message = format!(
                    "container `{}` was made by `compose run` and does not hold the new values: end it",
                    one.name
                );
                Err(Refusal::operator(RefusalKind::Unsupported, message).into())
            }
        }
    }

    /// A successor is made from the image that the old one runs, or the old one stays.
    async fn refuse_other_image(
        &self,
        containers: &[Container],
        ensure: &Ensure<'_>,
    ) -> Result<(), CallError> {
        let to_replace = |one: &&Container| self.proof(one, ensure) != Proof::Holds;
        for container in containers.iter().filter(to_replace) {
            if let Some(why) = self.other_image(container).await? {
                return Err(Refusal::operator(RefusalKind::WorkloadFailed, why).into());
            }
        }
        Ok(())
    }

    /// Replaces one container and waits until its successor serves; leaves one alone that holds the arrangement and can serve.
    async fn bring(
        &self,
        container: Container,
        wanted: usize,
        ensure: &Ensure<'_>,
    ) -> Result<(), CallError> {
        let holds = self.proof(&container, ensure) == Proof::Holds;
        let can_serve = !container.state.has_ended() && container.state.status != "created";
        if holds && can_serve {
            return self.wait_until_ready(&container.id, ensure, Some(&container)).await;
        }
        if is_ready(&container) {
            self.check_successors(ensure).await?;
        }
        let is_surplus = self.members().await?.len() > wanted;
        if self.config.start_first && container.state.runs() && !is_surplus {
            self.fill(wanted + 1, ensure).await?;
        }
        if planted!("restart_is_enough") {
            return self.engine.restart(&container.id).await;
        }
        self.remove(&container, ensure).await?;
        self.fill(wanted, ensure).await
    }

    /// One that came up with the new values may have ended since, and then the old ones are needed.
    async fn check_successors(&self, ensure: &Ensure<'_>) -> Result<(), CallError> {
        if planted!("successors_are_trusted") {
            return Ok(());
        }
        for container in self.members().await? {
            if self.proof(&container, ensure) == Proof::Holds {
                self.wait_until_ready(&container.id, ensure, Some(&container)).await?;
            }
        }
        Ok(())
    }

    async fn remove(&self, container: &Container, ensure: &Ensure<'_>) -> Result<(), CallError> {
        let keep = self.copies(container).filter(|_| !planted!("log_goes_with_its_container"));
        let begun = match keep {
            Some(keep) => {
                let copy = keep.begin(&self.engine, container);
                self.in_time(container, ensure, copy).await?.map(|begun| (keep, begun))
            }
            None => None,
        };
        if !container.state.has_ended() && container.state.status != "created" {
            self.engine.stop(&container.id).await?;
        }
        fail_point::pass("container_stopped", &self.config.service);
        if let Some((keep, begun)) = begun {
            let copy = keep.finish(&self.engine, container, begun);
            if let Err(error) = self.in_time(container, ensure, copy).await {
                // It is not removed, so it serves on: what is left of its log goes with nobody.
                self.engine.start(&container.id).await?;
                return Err(error);
            }
        }
        self.engine.remove(&container.id).await?;
        fail_point::pass("container_removed", &self.config.service);
        Ok(())
    }

    /// A log that cannot be copied ends a roll at a steady pace; an emergency goes on without it, and soon.
    async fn in_time<T>(
        &self,
        container: &Container,
        ensure: &Ensure<'_>,
        copy: impl Future<Output = Result<T, CallError>> + Send,
    ) -> Result<Option<T>, CallError> {
        let Some(notes) = ensure.emergency else { return copy.await.map(Some) };
        let why = match tokio::time::timeout(COPY, copy).await {
            Ok(Ok(done)) => return Ok(Some(done)),
            Ok(Err(error)) => error.to_string(),
            Err(_) => {
                format!("the log of container `{}` is long: not all of it is kept", container.name)
            }
        };
        notes.add(why);
        Ok(None)
    }

    /// Lets Compose make the containers that are missing, and waits until each serves.
    async fn fill(&self, wanted: usize, ensure: &Ensure<'_>) -> Result<(), CallError> {
        let before = self.members().await?;
        if before.len() >= wanted {
            return Ok(());
        }
        let up = self.compose.up(wanted, self.config.ready_within.span()).await;
        fail_point::pass("container_made", &self.config.service);
        let known: Vec<_> = before.iter().map(|one| one.id.as_str()).collect();
        let mut made = self.members().await?;
        made.retain(|one| !known.contains(&one.id.as_str()));
        if let (Err(why), true) = (&up, made.iter().all(|one| one.state.status == "created")) {
            return Err(self.not_made(why, made.first()));
        }
        for container in &made {
            self.wait_until_ready(&container.id, ensure, None).await?;
        }
        match (up, before.len() + made.len()) {
            (up, enough) if enough >= wanted || up.is_err() => up,
            _ => Err(self.failed("has fewer containers than before and Compose makes none")),
        }
    }

    /// Says that Compose made nothing that runs. Where it was ended at its limit, it may be made yet.
    fn not_made(&self, why: &CallError, made: Option<&Container>) -> CallError {
        let CallError::Refused(refusal) = why else { return why.clone() };
        let what = match made {
            Some(made) => format!("got container `{}`, which cannot be started", made.name),
            None => "gets no new container".into(),
        };
        self.failed(&format!(
            "{what}: {}; `docker compose up -d --no-recreate {}` says why",
            refusal.message, self.config.service
        ))
    }

    async fn members(&self) -> Result<Vec<Container>, CallError> {
        let mut containers = self.containers().await?;
        containers.retain(|container| !container.labels.is_one_off);
        Ok(containers)
    }

    /// Waits until a container serves with the expected values and has done so for a while. One that holds other values, ends,
    /// or is started again by the engine will not come to it. One that was `there` before has been ready for as long as it runs.
    async fn wait_until_ready(
        &self,
        id: &str,
        ensure: &Ensure<'_>,
        there: Option<&Container>,
    ) -> Result<(), CallError> {
        let within = self.config.ready_within.span();
        let deadline = Instant::now() + within.into();
        let steady = self.config.ready_for.span();
        let restarts = there.map_or(0, |container| container.restarts);
        let mut ready_since = None;
        loop {
            let Some(container) = self.engine.container(id).await? else {
                return Err(self.failed("lost a container while it came up"));
            };
            let name = format!("container `{}`", container.name);
            if planted!("ready_is_not_awaited") {
                return Ok(());
            }
            if self.proof(&container, ensure) != Proof::Holds && !planted!("evidence_unasked") {
                return Err(
                    self.failed(&format!("got {name} with other values than its stores hold"))
                );
            }
            if container.state.has_ended() {
                let code = container.state.exit_code;
                return Err(self
                    .failed(&format!("got {name}, which ended with {code} before it was ready")));
            }
            if container.restarts > restarts {
                let message =
                    format!("got {name}, which ended again and again before it was ready");
                return Err(self.failed(&message));
            }
            if container.state.health() == "unhealthy" {
                return Err(self.failed(&format!("got {name}, which is unhealthy")));
            }
            if is_ready(&container) {
                let since = *ready_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= StdDuration::from(steady)
                    || there.is_some() && runs_for(&container, steady)
                {
                    return Ok(());
                }
            } else {
                ready_since = None;
            }
            if Instant::now() > deadline {
                return Err(
                    self.failed(&format!("got {name}, which was not ready within {within}"))
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn failed(&self, what: &str) -> CallError {
        let message = format!("service `{}` {what}", self.config.service);
        Refusal::operator(RefusalKind::WorkloadFailed, message).into()
    }
}

/// Without a health check, one that runs is ready.
fn is_ready(container: &Container) -> bool {
    container.state.runs() && matches!(container.state.health(), "healthy" | "none" | "")
}

fn runs_for(container: &Container, time: Span) -> bool {
    container.state.started_at().is_some_and(|at| clock::now().since(at) >= time)
}

fn unsupported(message: &str) -> Refusal {
    Refusal::operator(RefusalKind::Unsupported, message)
}
