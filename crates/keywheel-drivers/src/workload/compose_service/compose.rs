//! Compose itself: the program that makes containers from the project's files.
//!
//! It is run without keywheel's own environment, so that a variable of a shell cannot mask what a file says (H100).

use std::fs::{File, TryLockError};
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};

use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::Span;
use keywheel_driver::{CallError, Refusal, RefusalKind};
use serde_json::{Map, Value};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::model::Model;
use super::{POLL, yaml};
use crate::program::{self, Ended};

/// How long Compose may take to read its files, or to say what it is.
const ANSWER: Span = Span::seconds(30);

/// What is tried where no program is configured, the present generation first.
const KNOWN: [&[&str]; 2] = [&["docker", "compose"], &["docker-compose"]];

pub(super) struct Compose {
    pub(super) configured: Option<Vec<String>>,
    pub(super) files: Vec<PathBuf>,
    pub(super) project: Option<String>,
    pub(super) service: String,
    pub(super) socket: PathBuf,
    pub(super) found: OnceCell<Found>,
    pub(super) model: OnceCell<Model>,
}

/// The program, and its version.
#[derive(Clone)]
pub(super) struct Found {
    argv: Vec<String>,
    pub(super) version: String,
}

impl Found {
    /// Compose 1 is written in another language, and its `config` speaks no JSON.
    pub(super) fn is_first_generation(&self) -> bool {
        self.version.starts_with("1.")
    }
}

impl Compose {
    pub(super) fn folder(&self) -> &Path {
        self.files[0].parent().unwrap_or(Path::new("/"))
    }

    /// Finds the program.
    ///
    /// # Errors
    /// A refusal where none answers.
    pub(super) async fn found(&self) -> Result<&Found, Refusal> {
        self.found.get_or_try_init(|| self.find()).await
    }

    async fn find(&self) -> Result<Found, Refusal> {
        let owned = |argv: &[&str]| argv.iter().map(|word| (*word).to_owned()).collect();
        let candidates = match &self.configured {
            Some(argv) => vec![argv.clone()],
            None => KNOWN.iter().map(|argv| owned(argv)).collect(),
        };
        for argv in candidates {
            let asked = [argv.as_slice(), &["version".into(), "--short".into()]].concat();
            let Ok(said) = program::read(&asked, self.folder(), &self.variables(), ANSWER).await
            else {
                continue;
            };
            let said =
                String::from_utf8_lossy(said.expose()).trim().trim_start_matches('v').to_owned();
            if said.starts_with(|first: char| first.is_ascii_digit()) {
                return Ok(Found { argv, version: said });
            }
        }
        Err(Refusal::operator(
            RefusalKind::Local,
            "Docker Compose does not answer: install it, or say with `program` where it is",
        ))
    }

    /// Makes the containers that are missing up to a number, and touches none that is there.
    ///
    /// # Errors
    /// A refusal where Compose ended badly, and unknown where it was ended: either may have made some of them.
    pub(super) async fn up(&self, containers: usize, within: Span) -> Result<(), CallError> {
        let scale = format!("{}={containers}", self.service);
        let service = &self.service;
        let argv = self
            .argv(&[
                "up",
                "-d",
                "--no-deps",
                "--no-build",
                "--no-recreate",
                "--scale",
                &scale,
                service,
            ])
            .await?;
        let turn = self.turn(within).await?;
        let ended =
            program::run_with(&argv, self.folder(), &self.variables(), turn, within).await?;
        match ended {
            ended if ended.well() => Ok(()),
            Ended::With(_) => {
                let message = format!("`compose up` {}", ended.in_words());
                Err(Refusal::operator(RefusalKind::WorkloadFailed, message).into())
            }
            _ => Err(CallError::Unknown(format!("`compose up` {}", ended.in_words()))),
        }
    }

    /// Waits until no `up` is under way.
    ///
    /// # Errors
    /// A refusal where one does not end in time.
    pub(super) async fn is_idle(&self, within: Span) -> Result<(), Refusal> {
        self.turn(within).await.map(drop)
    }

    /// Waits until no other `up` is under way: one whose keywheel was killed still makes containers. The lock is on the
    /// file that is this project, and whoever reads from it holds it: it is free when Compose and all that it started are gone.
    async fn turn(&self, within: Span) -> Result<File, Refusal> {
        let file = &self.files[0];
        let failed = |error: std::io::Error| {
            let message = format!("file `{}`: {}", file.display(), error.kind());
            Refusal::operator(RefusalKind::Local, message)
        };
        let mut turn = File::open(file).map_err(failed)?;
        turn.seek(SeekFrom::End(0)).map_err(failed)?;
        let deadline = Instant::now() + within.into();
        while !planted!("orphans_are_not_awaited") {
            match turn.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    tokio::time::sleep(POLL).await
                }
                Err(TryLockError::WouldBlock) => {
                    let message = "another `compose up` of this project does not end";
                    return Err(Refusal::retry(RefusalKind::Unavailable, None, message));
                }
                // Where a file system knows no locks, nobody holds one.
                Err(TryLockError::Error(_)) => break,
            }
        }
        Ok(turn)
    }

    /// Returns the hash that Compose would put on a container that it made now.
    pub(super) async fn hash(&self) -> Result<Option<String>, Refusal> {
        let said = self.say(&["config", "--hash", &self.service]).await?;
        let said = String::from_utf8_lossy(said.expose()).into_owned();
        let of_service = said.lines().filter_map(|line| line.split_once(' '));
        Ok(of_service
            .filter(|(name, _)| *name == self.service)
            .map(|(_, hash)| hash.trim().to_owned())
            .next())
    }

    /// Returns the ids of the service's containers, stopped ones too, as Compose itself finds them.
    pub(super) async fn ids(&self) -> Result<Vec<String>, Refusal> {
        let said = self.say(&["ps", "-a", "-q", &self.service]).await?;
        Ok(String::from_utf8_lossy(said.expose()).lines().map(str::to_owned).collect())
    }

    /// Returns the environment that a container would get now.
    ///
    /// # Errors
    /// A refusal where Compose cannot read the project.
    pub(super) async fn environment(&self) -> Result<Environment, Refusal> {
        let mut model = self.config(&[]).await?;
        let variables = match model["services"][&self.service]["environment"].take() {
            Value::Object(variables) => variables,
            _ => Map::new(),
        };
        let text = |value: Value| match value {
            Value::String(text) => Some(SecretValue::new(text.replace("$$", "$").into_bytes())),
            Value::Number(number) => Some(SecretValue::new(number.to_string().into_bytes())),
            _ => None,
        };
        let variables =
            variables.into_iter().filter_map(|(name, value)| Some((name, text(value)?)));
        Ok(Environment(variables.collect()))
    }

    /// Returns the project as its files have it, without values as far as this Compose can leave them out.
    ///
    /// # Errors
    /// A refusal where Compose cannot read the project.
    pub(super) async fn model(&self) -> Result<&Model, Refusal> {
        self.model.get_or_try_init(|| self.read_model()).await
    }

    async fn read_model(&self) -> Result<Model, Refusal> {
        let (bare, partly) = (["--no-interpolate", "--no-env-resolution"], ["--no-interpolate"]);
        let whole = match self.found().await?.is_first_generation() {
            true => None,
            false => self.config(&bare).await.ok(),
        };
        let (document, is_merged) = match whole {
            Some(document) => (document, false),
            None => (self.config(&partly).await?, true),
        };
        Ok(Model { document, folder: self.folder().to_owned(), is_merged })
    }

    async fn config(&self, words: &[&str]) -> Result<Value, Refusal> {
        let speaks_json = !self.found().await?.is_first_generation();
        let json: &[&str] = if speaks_json { &["--format", "json"] } else { &[] };
        let said = self.say(&[&["config"], json, words].concat()).await?;
        let read = match speaks_json {
            true => serde_json::from_slice(said.expose()).ok(),
            false => std::str::from_utf8(said.expose()).ok().and_then(yaml::read),
        };
        read.ok_or_else(|| {
            let message = "`compose config` wrote what this version cannot read";
            Refusal::operator(RefusalKind::Unsupported, message)
        })
    }

    async fn say(&self, words: &[&str]) -> Result<SecretValue, Refusal> {
        let argv = self.argv(words).await?;
        program::read(&argv, self.folder(), &self.variables(), ANSWER).await.map_err(|refusal| {
            let message = format!("{}: `docker compose {}` says why", refusal.message, words[0]);
            Refusal::operator(refusal.kind, message)
        })
    }

    async fn argv(&self, words: &[&str]) -> Result<Vec<String>, Refusal> {
        let mut argv = self.found().await?.argv.clone();
        for file in &self.files {
            argv.extend(["-f".into(), file.display().to_string()]);
        }
        if let Some(project) = &self.project {
            argv.extend(["-p".into(), project.clone()]);
        }
        argv.extend(words.iter().map(|word| (*word).to_owned()));
        Ok(argv)
    }

    fn variables(&self) -> [(&'static str, String); 1] {
        [("DOCKER_HOST", format!("unix://{}", self.socket.display()))]
    }
}

/// The environment that Compose would give a container.
pub(super) struct Environment(Vec<(String, SecretValue)>);

impl Environment {
    pub(super) fn variable(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.expose())
    }
}
