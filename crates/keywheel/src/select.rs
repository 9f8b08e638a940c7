//! Selectors: which secrets a command is about. They combine: each one narrows.

use clap::Args;
use keywheel_core::secret::SecretName;
use keywheel_core::time::Span;
use keywheel_driver::duration::Duration;

use crate::cli::Globals;
use crate::code;
use crate::compile::unknown_secret;
use crate::config::{Config, Environment, Secret};
use crate::output::Failure;
use crate::session::{self, Session};

/// Which secrets.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Selection {
    /// Secrets, by name
    #[arg(value_name = "SECRET")]
    pub(crate) names: Vec<String>,
    /// The environment
    #[arg(long, short, value_name = "ENV")]
    pub(crate) environment: Option<String>,
    /// Every secret
    #[arg(long)]
    pub(crate) all: bool,
    /// Those that are due, or will be within this time
    #[arg(long, value_name = "WITHIN", num_args = 0..=1, default_missing_value = "0s")]
    pub(crate) due: Option<Duration>,
    /// Those that a store holds
    #[arg(long, value_name = "STORE")]
    pub(crate) in_store: Option<String>,
    /// Those that a workload reads
    #[arg(long, value_name = "WORKLOAD")]
    pub(crate) read_by: Option<String>,
    /// Those of a kind of issuer
    #[arg(long, value_name = "KIND")]
    pub(crate) issuer: Option<String>,
    /// Those that somebody answers for
    #[arg(long, value_name = "OWNER")]
    pub(crate) owner: Option<String>,
}

impl Selection {
    /// Returns the environment.
    pub(crate) fn environment<'a>(&self, config: &'a Config) -> Result<&'a Environment, Failure> {
        let named = self
            .names
            .iter()
            .find_map(|name| name.split_once('@'))
            .map(|(_, environment)| environment);
        session::environment(config, self.environment.as_deref().or(named))
    }

    /// Returns whether anything narrows.
    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
            && !self.all
            && self.due.is_none()
            && self.in_store.is_none()
            && self.read_by.is_none()
            && self.issuer.is_none()
            && self.owner.is_none()
    }

    /// Returns the secrets, in the order of the file; none only where it was asked for what is due, and nothing is.
    pub(crate) async fn secrets<'a>(
        &self,
        globals: &Globals,
        config: &'a Config,
    ) -> Result<Vec<&'a Secret>, Failure> {
        let environment = self.environment(config)?;
        if self.is_empty() {
            let failure = Failure::new("which secrets?").code(code::USAGE);
            return Err(failure.hint("name them, or use `--all`, `--due`, `--in-store`, `--read-by`, `--issuer` or `--owner`"));
        }
        self.check_names(config, environment)?;
        let chosen: Vec<&Secret> =
            environment.secrets.iter().filter(|secret| self.takes(secret)).collect();
        if let Some(within) = self.due {
            return due(globals, config, environment, chosen, within.span()).await;
        }
        if chosen.is_empty() {
            return Err(Failure::new("no secret is selected")
                .code(code::USAGE)
                .hint("`keywheel status --all` lists them"));
        }
        Ok(chosen)
    }

    fn check_names(&self, config: &Config, environment: &Environment) -> Result<(), Failure> {
        for name in &self.names {
            let name = name.split_once('@').map_or(name.as_str(), |(name, _)| name);
            let full = SecretName::new(name, &environment.name)
                .map_err(|error| Failure::new(error.to_string()).code(code::USAGE))?;
            if config.secret(&full).is_none() {
                return Err(unknown_secret(config, &full));
            }
        }
        let known_store =
            self.in_store.as_deref().is_none_or(|name| environment.store(name).is_some());
        let known_workload =
            self.read_by.as_deref().is_none_or(|name| environment.workload(name).is_some());
        if known_store && known_workload {
            return Ok(());
        }
        Err(Failure::new("no store or workload has that name")
            .code(code::UNKNOWN_NAME)
            .hint("`keywheel config show` lists them"))
    }

    fn takes(&self, secret: &Secret) -> bool {
        let named = |name: &String| {
            name.split_once('@').map_or(name.as_str(), |(name, _)| name) == secret.name.name()
        };
        (self.names.is_empty() || self.names.iter().any(named))
            && self
                .in_store
                .as_ref()
                .is_none_or(|store| secret.deliveries.iter().any(|one| one.store == *store))
            && self.read_by.as_ref().is_none_or(|workload| secret.readers.contains(workload))
            && self.issuer.as_ref().is_none_or(|kind| secret.issuer.kind() == kind)
            && self.owner.as_ref().is_none_or(|owner| secret.owner.as_ref() == Some(owner))
    }
}

async fn due<'a>(
    globals: &Globals,
    config: &Config,
    environment: &Environment,
    secrets: Vec<&'a Secret>,
    within: Span,
) -> Result<Vec<&'a Secret>, Failure> {
    let Some(session) = Session::read(globals, config, &environment.name)? else {
        return Ok(Vec::new());
    };
    let mut chosen = Vec::new();
    for secret in secrets {
        let row = session.inventory(&secret.name).await?;
        let soon = session.now() + within;
        if row.is_some_and(|row| keywheel_core::due::due(&row, &secret.policy, soon).is_some()) {
            chosen.push(secret);
        }
    }
    Ok(chosen)
}
