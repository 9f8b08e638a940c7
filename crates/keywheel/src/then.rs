//! `keywheel rotate … --then ENVIRONMENT`: the same secrets in a second environment, once they have completed in the first.
//!
//! The plans of the second are shown and approved before anything begins. The request is then kept in the journal of the second,
//! so that cron can begin it days later: with exactly the approved plan, or not at all (H127).

use std::sync::Arc;

use keywheel_core::inventory::{Queued, Staged};
use keywheel_core::secret::SecretName;
use keywheel_engine::run::Group;

use crate::cli::Globals;
use crate::compile::unknown_secret;
use crate::config::{Config, Environment, Secret};
use crate::drive::{self, Taken};
use crate::exit::Exit;
use crate::output::{Failure, Output};
use crate::prepare::{self, Prepared, Request};
use crate::progress::Progress;
use crate::queue::{self, Staging, Waiting};
use crate::session::{self, Session};
use crate::{claims, code, commands, confirm, notify};

/// What follows in a second environment.
pub(crate) struct Then<'a> {
    first: &'a Environment,
    second: &'a Environment,
    /// One plan for each secret, with rolls of its own: each follows its own rotation.
    prepared: Vec<Prepared>,
}

impl<'a> Then<'a> {
    /// Compiles the plans of what is to follow; changes nothing.
    ///
    /// # Errors
    /// [`Failure`] where one of the secrets is not there, is on its way there, or waits there already.
    pub(crate) async fn plan(
        globals: &Globals,
        config: &'a Config,
        (first, second): (&'a Environment, &str),
        secrets: &[&Secret],
        request: &Request,
    ) -> Result<Self, Failure> {
        let second = session::environment(config, Some(second))?;
        if second.name == first.name {
            let failure = Failure::new(format!("`{}` cannot follow itself", first.name));
            return Err(failure.code(code::USAGE).hint("name another environment with `--then`"));
        }
        let session = Session::plan(globals, config, &second.name)?;
        let mut prepared = Vec::new();
        for secret in secrets {
            let name = in_environment(&secret.name, second);
            let (_, secret) = config.secret(&name).ok_or_else(|| unknown_secret(config, &name))?;
            check_free(&session, &name).await?;
            prepared.extend(prepare::plans(&session, config, &[secret], request).await?);
        }
        Ok(Self { first, second, prepared })
    }

    /// Shows the plans.
    pub(crate) fn show(&self, output: Output) {
        output.note(&format!("then, each once it has completed in {}:", self.first.name));
        for one in &self.prepared {
            let plan = std::slice::from_ref(one);
            output.note(commands::plan::text(plan, session::now(), "").trim_end());
        }
    }

    /// Asks whether they may follow, in the way that the second environment wants to be asked.
    pub(crate) fn confirm(&self, yes: bool) -> Result<(), Failure> {
        let question = format!("And run the plans for `{}` after that?", self.second.name);
        confirm::go_on(self.second, &question, confirm::READ_BOTH, yes)
    }

    /// Keeps the request, runs what was begun in the first environment, and goes on in the second with what has completed by
    /// then.
    pub(crate) async fn run(
        &self,
        (globals, config): (&Globals, &Config),
        session: &Session,
        Taken { groups, mut failures }: Taken,
        request: &Request,
        rest: bool,
    ) -> Result<Exit, Failure> {
        if groups.is_empty() {
            return drive::ended(Ok(Exit::Refused), failures);
        }
        let output = globals.output();
        let second =
            Session::act(globals, config, &self.second.name, Arc::new(Progress::new(output)))?;
        let mut waiting = Vec::new();
        for one in &self.prepared {
            match self.queue(&second, one, &groups, request).await {
                Ok(queued) => waiting.extend(queued),
                Err(failure) => failures.push(failure),
            }
        }
        let mut stand = drive::go(session, groups, rest, output).await;
        if !stand.stopped {
            let is_ours = |name: &SecretName| waiting.iter().any(|one| one.secret() == name);
            let Taken { groups, failures: refused } =
                queue::begin(globals, &second, config, self.second, is_ours).await?;
            failures.extend(refused);
            stand.extend(drive::go(&second, groups, rest, output).await);
        }
        failures.append(&mut stand.failures);
        let mut left = Vec::new();
        for one in waiting {
            left.extend(one.still(globals, config, &second).await?);
        }
        let told = stand.tell(session, &left, output);
        notify::deliver(session, output).await;
        notify::deliver(&second, output).await;
        drive::ended(told, failures)
    }

    /// Puts one request into the queue of the second environment; none where its first rotation could not be begun.
    async fn queue(
        &self,
        session: &Session,
        one: &Prepared,
        groups: &[Group],
        request: &Request,
    ) -> Result<Option<Waiting>, Failure> {
        let secret = in_environment(&one.plan.secret, self.first);
        let mut begun = groups.iter().flat_map(Group::rotations);
        let Some(rotation) = begun.find(|rotation| rotation.plan().secret == secret) else {
            return Ok(None);
        };
        let rotation = rotation.id().clone();
        let approved = prepare::hash(std::slice::from_ref(one));
        let queued = Queued {
            at: session.now(),
            because: request.because.clone(),
            after: Some(Staged {
                secret,
                rotation: rotation.clone(),
                approved,
                pending: Some(one.plan.pending),
                previous: one.plan.previous.clone(),
                in_its_place: None,
            }),
        };
        claims::take([one.plan.as_ref()]).await?;
        if let Some(row) = &one.adopted {
            session.adopt(row).await?;
        }
        session.queue(&one.plan.secret, queued).await?;
        let row = session.inventory(&one.plan.secret).await?;
        Ok(row.map(|row| Waiting::new(row, rotation)))
    }
}

/// Names the same secret in an environment.
fn in_environment(secret: &SecretName, environment: &Environment) -> SecretName {
    SecretName::new(secret.name(), &environment.name).expect("both names were checked")
}

async fn check_free(session: &Session, secret: &SecretName) -> Result<(), Failure> {
    let Some(row) = session.inventory(secret).await? else { return Ok(()) };
    if let Some(open) = row.open.as_ref().filter(|open| !open.retirement || open.parked.is_some()) {
        let no_way_back = session.no_way_back(std::slice::from_ref(secret)).await?.is_some();
        return Err(queue::still_moving(secret, open, no_way_back));
    }
    if row.queued.is_none() {
        return Ok(());
    }
    let failure = Failure::new(format!("a rotation of `{secret}` waits already"));
    let failure = failure.code(code::NOT_NOW).exit(Exit::Refused).now("nothing changed");
    Err(failure.hint(format!("`keywheel cancel {secret}` takes it back")))
}

impl Waiting {
    /// Returns the request if it still waits, with what it waits for.
    async fn still(
        self,
        globals: &Globals,
        config: &Config,
        session: &Session,
    ) -> Result<Option<Self>, Failure> {
        let row = session.inventory(self.secret()).await?;
        let Some(staged) = row.and_then(|row| row.queued).and_then(|queued| queued.after) else {
            return Ok(None);
        };
        Ok(Some(match queue::staging(globals, config, &staged).await? {
            Staging::Failed(why) => self.in_vain(why),
            Staging::Completed | Staging::UnderWay(_) => self,
        }))
    }
}
