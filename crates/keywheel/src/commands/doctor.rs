//! `keywheel doctor`: does the world agree with the journal? Changes nothing but its note of what an issuer refuses, unless it is
//! told to end orphans.

use std::sync::Arc;

use clap::Args;
use keywheel_core::call::{CallError, RefusalKind};
use keywheel_core::evidence::{Expected, Proof, judge};
use keywheel_core::fingerprint::{Compared, Fingerprint};
use keywheel_core::inventory::{Inventory, Version};
use keywheel_core::plan::Plan;
use keywheel_core::planted;
use keywheel_core::rotation::Rotation;
use keywheel_core::secret::SecretName;
use keywheel_core::strategy::Side;
use keywheel_core::version::{Stage, VersionId};
use keywheel_driver::pin::elsewhere;
use keywheel_driver::writer;
use keywheel_engine::orphans::{Fate, InUse, Labelled, PREFIX, Sorted};
use keywheel_engine::request::can_be_put_right;
use keywheel_engine::{NoWatch, held};
use serde_json::{Value, json};

use crate::cli::Globals;
use crate::compile::{Built, drivers_of};
use crate::config::{Config, Environment, Secret};
use crate::exit::Exit;
use crate::output::{Failure, Format};
use crate::refused::Answer;
use crate::select::Selection;
use crate::session::{Session, engine_failure, journal_failure};
use crate::{claims, code, confirm, prepare, refused, words};

/// Compare journal and world: drift in stores, stale replicas, live credentials that nobody owns, keys that their issuer refuses; changes nothing but its note of what an issuer refuses
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    selection: Selection,
    /// End, for good, the live credentials that a rotation of this journal made and that nobody owns
    #[arg(long)]
    end_orphans: bool,
    /// Why, in your words, for the audit chain
    #[arg(long, value_name = "TEXT", requires = "end_orphans")]
    because: Option<String>,
    /// Do not ask
    #[arg(long, short, requires = "end_orphans")]
    yes: bool,
}

struct Finding {
    secret: String,
    what: String,
    then: String,
}

/// A labelled credential that no version of a secret owns.
struct Stray<'a> {
    secret: &'a Secret,
    /// Where its stores are, and its issuer.
    plan: Arc<Plan>,
    one: Labelled,
}

/// What was seen.
#[derive(Default)]
struct Seen<'a> {
    findings: Vec<Finding>,
    orphans: Vec<Stray<'a>>,
    /// Those that a store holds or may hold.
    in_use: Vec<(Stray<'a>, InUse)>,
    /// Under labels of somebody else.
    foreign: Vec<Stray<'a>>,
    /// Secrets that only a person could look at.
    unseen: Vec<String>,
    /// Secrets whose issuers say another thing than they last did of what readers use: whether they refuse it.
    answers: Vec<Said<'a>>,
}

/// What an issuer says now of a version that readers use.
struct Said<'a> {
    secret: &'a SecretName,
    version: VersionId,
    is_refused: bool,
}

/// What became of orphans.
#[derive(Default)]
struct Cleared<'a> {
    ended: Vec<Stray<'a>>,
    /// Each with the reason.
    left: Vec<(Stray<'a>, String)>,
}

pub(crate) async fn run(args: &DoctorArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let environment = args.selection.environment(&config)?;
    let selection = Selection {
        all: args.selection.all || args.selection.is_empty(),
        ..args.selection.clone()
    };
    let secrets = selection.secrets(globals, &config).await?;
    let session = Session::look(globals, &config, &environment.name)?;
    let mut seen = Seen::default();
    for &secret in &secrets {
        if let Some(row) = session.inventory(&secret.name).await? {
            let asks_people = args.end_orphans;
            let check = Check { session: &session, config: &config, secret, row, asks_people };
            check.all(&mut seen).await?;
        }
    }
    for (secret, place) in claims::left_behind(&session, &config, environment).await? {
        seen.findings.push(Finding {
            secret: secret.name().into(),
            what: format!(
                "our claim still stands on a store that no secret has any more: `{place}`"
            ),
            then: format!("rm {place}"),
        });
    }
    let verdict = session.journal.verify_audit().await.map_err(journal_failure)?;
    seen.findings.extend(verdict.faults.into_iter().map(|fault| Finding {
        secret: "-".into(),
        what: format!("audit chain: {fault}"),
        then: "keywheel audit verify".into(),
    }));
    let Seen { mut findings, orphans, in_use, foreign, mut unseen, answers } = seen;
    findings.extend(in_use.iter().map(|(stray, in_use)| stray.may_be_in_use(in_use)));
    unseen.extend(keep(globals, &config, environment, &answers).await);
    unseen.iter().for_each(|line| globals.output().note(line));
    let mut cleared = Cleared::default();
    if args.end_orphans {
        cleared = end_orphans(args, globals, &config, environment, orphans).await?;
        let left = cleared.left.iter().map(|(stray, why)| Finding {
            what: format!("was not ended: {}: {why}", stray.words()),
            ..stray.finding()
        });
        findings.extend(left);
        cleared.left.extend(in_use.into_iter().map(|(stray, in_use)| (stray, in_use.why)));
        let why = || "no rotation of this journal made it".to_owned();
        cleared.left.extend(foreign.into_iter().map(|stray| (stray, why())));
    } else {
        findings.extend(orphans.iter().map(Stray::finding));
    }
    tell(globals, environment, secrets.len(), &findings, &cleared)?;
    Ok(if findings.is_empty() { Exit::Done } else { Exit::NeedsOperator })
}

/// Keeps what issuers say, and returns what could not be kept: whoever may only read the journal sees it all the same.
async fn keep(
    globals: &Globals,
    config: &Config,
    environment: &Environment,
    answers: &[Said<'_>],
) -> Vec<String> {
    if answers.is_empty() {
        return Vec::new();
    }
    let lost = |of: &str, failure: &Failure| {
        format!(
            "  what issuers say of versions in use is not kept for `status`{of}: {}",
            failure.message
        )
    };
    let session = match Session::act(globals, config, &environment.name, Arc::new(NoWatch)) {
        Ok(session) => session,
        Err(failure) => return vec![lost("", &failure)],
    };
    let mut not_kept = Vec::new();
    for Said { secret, version, is_refused } in answers {
        let kept = refused::keep(&session, secret, *version, *is_refused).await;
        if let Err(failure) = kept.map_err(engine_failure) {
            not_kept.push(lost(&format!(" of `{secret}`"), &failure));
        }
    }
    not_kept
}

fn tell(
    globals: &Globals,
    environment: &Environment,
    secrets: usize,
    found: &[Finding],
    cleared: &Cleared<'_>,
) -> Result<(), Failure> {
    let output = globals.output();
    match output.format {
        Format::Text => {
            let rows: Vec<Vec<String>> =
                found.iter().map(|one| vec![one.secret.clone(), one.what.clone(), one.then.clone()]).collect();
            let verdict = if found.is_empty() { "world and journal agree".into() } else { words::counted(found.len(), "finding") };
            output.text(&format!("{}{}{}: {}, {verdict}\n", cleared.text(), words::table(&rows, "  "), environment.name, words::counted(secrets, "secret")))
        }
        Format::Json => output.json(&json!({
            "environment": environment.name,
            "findings": found.iter().map(|one| json!({ "secret": one.secret, "what": one.what, "then": one.then })).collect::<Vec<_>>(),
            "ended": cleared.ended.iter().map(|stray| stray.json(None)).collect::<Vec<_>>(),
            "left": cleared.left.iter().map(|(stray, why)| stray.json(Some(why))).collect::<Vec<_>>(),
        })),
    }
}

/// Ends what was confirmed, one after another; one that cannot be ended stops no other.
async fn end_orphans<'a>(
    args: &DoctorArgs,
    globals: &Globals,
    config: &Config,
    environment: &Environment,
    orphans: Vec<Stray<'a>>,
) -> Result<Cleared<'a>, Failure> {
    let mut cleared = Cleared::default();
    if orphans.is_empty() {
        return Ok(cleared);
    }
    let needs_reason = orphans.iter().find(|stray| stray.secret.rules.needs_reason);
    if let Some(stray) = needs_reason.filter(|_| args.because.is_none()) {
        let name = &stray.secret.name;
        let failure = Failure::new(format!("the policy of `{name}` requires a reason"));
        return Err(failure
            .code(code::POLICY_REQUIRES)
            .exit(Exit::Refused)
            .now("nothing changed")
            .hint("say why with `--because TEXT`"));
    }
    for stray in &orphans {
        globals.output().note(&format!("  {}: {}", stray.secret.name, stray.words()));
    }
    let question = format!("End {} for good?", words::counted(orphans.len(), "credential"));
    confirm::go_on(environment, &question, confirm::SAY_YES, args.yes)?;
    let session = Session::act(globals, config, &environment.name, Arc::new(NoWatch))?;
    let because = args.because.as_deref().unwrap_or("nobody owned it");
    for stray in orphans {
        let ended = session.engine.end_orphan(&stray.plan, &stray.one, because).await;
        match ended.map_err(engine_failure) {
            Ok(Fate::Ended) => cleared.ended.push(stray),
            Ok(Fate::Left(why)) => cleared.left.push((stray, why)),
            Err(failure) => cleared.left.push((stray, failure.message)),
        }
    }
    Ok(cleared)
}

impl Stray<'_> {
    fn words(&self) -> String {
        format!("credential `{}`, labelled `{}`", self.one.issued, self.one.label)
    }

    fn finding(&self) -> Finding {
        Finding {
            secret: self.secret.name.name().into(),
            what: format!(
                "a live credential that nobody owns carries our label `{}`: `{}`",
                self.one.label, self.one.issued
            ),
            then: format!("keywheel doctor --end-orphans {}", self.secret.name),
        }
    }

    /// The finding of one that no version has and that is never ended here.
    fn may_be_in_use(&self, in_use: &InUse) -> Finding {
        let name = &self.secret.name;
        let then = match in_use.is_certain {
            true => format!("keywheel reconcile --keep {name}"),
            false => format!("keywheel where {name}"),
        };
        Finding {
            secret: name.name().into(),
            what: format!("{} is of no version of the journal, and {}", self.words(), in_use.why),
            then,
        }
    }

    fn json(&self, because: Option<&str>) -> Value {
        json!({
            "secret": self.secret.name, "id": self.one.issued.to_string(),
            "label": self.one.label, "because": because,
        })
    }
}

impl Cleared<'_> {
    fn text(&self) -> String {
        let row = |what: &str, stray: &Stray<'_>, why: &str| {
            vec![what.into(), stray.secret.name.name().into(), stray.words(), why.into()]
        };
        let ended = self.ended.iter().map(|stray| row("ended", stray, ""));
        let left = self.left.iter().map(|(stray, why)| row("left", stray, why));
        words::table(&ended.chain(left).collect::<Vec<_>>(), "")
    }
}

/// Before a secret's first version is promoted, and after it was taken back, its stores may hold nothing.
fn may_hold_nothing(rotation: &Rotation) -> bool {
    rotation.plan().previous.is_none() && rotation.promoted_side() == Side::Previous
}

struct Check<'s, 'a> {
    session: &'s Session,
    config: &'s Config,
    secret: &'a Secret,
    row: Inventory,
    /// Whether a person is asked for what only a person can see.
    asks_people: bool,
}

impl<'a> Check<'_, 'a> {
    async fn all(&self, seen: &mut Seen<'a>) -> Result<(), Failure> {
        let open = match &self.row.open {
            Some(_) => self.session.open_rotation(&self.secret.name).await?,
            None => None,
        };
        let open = open.as_ref();
        let plan = match open {
            Some(rotation) => rotation.plan().as_ref().clone(),
            None => prepare::pinned_draft(self.session, self.config, self.secret).await?,
        };
        let built = drivers_of(&plan)?;
        let found = &mut seen.findings;
        for (_, objection) in claims::objections(&plan, &built).await? {
            found.push(self.finding(objection, "adopt --take-over --because …"));
        }
        self.stores(&plan, &built, open, found).await;
        if open.is_none_or(Rotation::rests) {
            self.replicas(&plan, &built, found).await;
        }
        if !open.is_some_and(refused::is_being_replaced) {
            self.refused(&plan, &built, seen).await;
        }
        let found = &mut seen.findings;
        let parked = open.and_then(Rotation::parked).map(|reason| words::parked(&plan, reason));
        found.extend(parked.map(|reason| self.finding(format!("parked: {reason}"), "resume")));
        self.unended(found);
        self.labelled(plan, &built, seen).await
    }

    fn finding(&self, what: String, command: &str) -> Finding {
        Finding {
            secret: self.secret.name.name().into(),
            what,
            then: format!("keywheel {command} {}", self.secret.name),
        }
    }

    /// Returns what a store may hold: the current version, and any of them while a rotation is on its way.
    fn known(&self, open: Option<&Rotation>) -> Vec<Fingerprint> {
        let is_moving = open.is_some_and(|rotation| !rotation.rests());
        let is_expected = |version: &&Version| is_moving || version.stage == Some(Stage::Current);
        let expected = self.row.versions.iter().filter(is_expected);
        expected.filter_map(|version| version.fingerprint).collect()
    }

    async fn stores(
        &self,
        plan: &Plan,
        built: &Built,
        open: Option<&Rotation>,
        found: &mut Vec<Finding>,
    ) {
        let known = self.known(open);
        let is_on_its_way = open.is_some_and(|rotation| can_be_put_right(rotation).is_err());
        let mend = if is_on_its_way { "resume" } else { "reconcile" };
        let may_be_empty = known.is_empty() || open.is_some_and(may_hold_nothing);
        let read = held::by_each(&built.stores, plan).await;
        let all = || read.iter().filter_map(|held| held.as_ref().ok()?.as_ref());
        // Where a part is missing, what another store holds is not all of a version, and says nothing of it.
        let is_all_read = read.iter().all(|held| matches!(held, Ok(Some(_))));
        let stores = built.stores.iter().zip(&plan.stores).zip(&read);
        let compared = stores.filter(|((_, planned), _)| planned.facts.is_readable());
        for ((store, planned), held) in compared {
            let name = &planned.bound.name;
            match held {
                Err(error) => found
                    .push(self.finding(format!("store `{name}` cannot be read: {error}"), "check")),
                // A list of logins names both while they take turns.
                Ok(None) if may_be_empty || planned.facts.answers_logins => {}
                Ok(None) => {
                    found.push(self.finding(format!("store `{name}` holds no value"), mend))
                }
                Ok(Some(held)) => {
                    let whole = held::completed(held, all());
                    let seen = self.session.engine.fingerprint(&plan.stores, &whole);
                    let is_other =
                        |known: &Fingerprint| known.compare(&seen) == Compared::Different;
                    let can_judge = is_all_read || held::is_whole(&plan.stores, &whole);
                    if can_judge && !known.is_empty() && known.iter().all(is_other) {
                        let slots = planned.slots.iter();
                        let addresses: Vec<_> = slots.map(|slot| slot.address.clone()).collect();
                        let others = store.others(&addresses).await.unwrap_or_default();
                        let others = writer::in_words(&others);
                        let what = format!("store `{name}` was changed by {others}");
                        found.push(self.finding(what, mend));
                    }
                }
            }
        }
    }

    /// A replica that holds another value than its stores do is stale.
    async fn replicas(&self, plan: &Plan, built: &Built, found: &mut Vec<Finding>) {
        let fingerprinter = &self.session.journal.installation().fingerprinter;
        for (workload, planned) in built.workloads.iter().zip(&plan.workloads) {
            let name = &planned.bound.name;
            if let Ok(Some(objection)) = elsewhere(workload.identity(), planned.pin.as_ref()).await
            {
                found.push(self.finding(format!("workload `{name}`: {objection}"), "check"));
                continue;
            }
            let Ok(slots) = prepare::slots_now(plan, built, planned, fingerprinter).await else {
                continue;
            };
            let names: Vec<String> = slots.iter().map(|(name, _)| name.clone()).collect();
            let granularity = planned.facts.start_granularity;
            let expected = Expected {
                slots: &slots,
                held_since: self.row.rotated_at,
                untouched_before: None,
                granularity,
            };
            let name = &planned.bound.name;
            match workload.observe(&names, fingerprinter).await {
                Err(error) => found.push(
                    self.finding(format!("workload `{name}` cannot be observed: {error}"), "check"),
                ),
                Ok(replicas) if replicas.is_empty() && !planted!("no_replica_is_fine") => {
                    found.push(self.finding(format!("workload `{name}` has no replica"), "check"))
                }
                Ok(replicas) => {
                    let stale = replicas
                        .iter()
                        .filter(|replica| judge(replica, &expected) == Proof::Other)
                        .count();
                    if stale > 0 {
                        let all = replicas.len();
                        found.push(self.finding(
                            format!("{stale} of {all} replicas of `{name}` hold another value"),
                            "reconcile",
                        ));
                    }
                }
            }
        }
    }

    /// The issuer may have ended the version in use by itself.
    async fn refused(&self, plan: &Plan, built: &Built, seen: &mut Seen<'a>) {
        let answer = refused::in_use(self.session, plan, built, Some(&self.row)).await;
        let Some(answer) = answer else { return };
        let is_refused = matches!(answer, Answer::Refuses(_));
        let changed = is_refused != self.row.refused_in_use().is_some();
        if let Some(current) = self.row.at(Stage::Current).filter(|_| changed) {
            let (secret, version) = (&self.secret.name, current.version);
            seen.answers.push(Said { secret, version, is_refused });
        }
        if let Answer::Refuses(what) = answer {
            let secret = self.secret.name.name().into();
            let then = refused::then(&self.secret.name);
            seen.findings.push(Finding { secret, what, then });
        }
    }

    /// Versions that readers no longer have, and that nobody ended: an edit by hand took their place.
    fn unended(&self, found: &mut Vec<Finding>) {
        for version in self.row.versions.iter().filter(|version| version.stage.is_none()) {
            let id = version
                .issued
                .as_ref()
                .map_or("of unknown id".into(), |issued| format!("called {issued} by its issuer"));
            found.push(self.finding(
                format!("{}, {id}, was replaced by hand and never ended", version.version),
                "rotate",
            ));
        }
    }

    /// Live credentials under a label that no version and no open rotation of this journal owns (L04).
    async fn labelled(
        &self,
        plan: Plan,
        built: &Built,
        seen: &mut Seen<'a>,
    ) -> Result<(), Failure> {
        if built.issuer.facts().is_kept_by_hand() && !self.asks_people {
            // Nobody is asked to look for what is not known to be missing.
            return Ok(());
        }
        let live = match built.issuer.list(PREFIX).await {
            Ok(live) => live,
            Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::NeedsPerson => {
                let name = &self.secret.name;
                seen.unseen.push(format!("  {name}: orphans were not looked for: {refusal}"));
                return Ok(());
            }
            Err(error) => {
                let what = format!("its issuer cannot be asked: {error}");
                seen.findings.push(self.finding(what, "check"));
                return Ok(());
            }
        };
        let engine = &self.session.engine;
        let owners = engine.owners(&self.secret.name).await;
        let Sorted { orphans, foreign } = owners.map_err(engine_failure)?.sort(live);
        let plan = Arc::new(plan);
        let stray = |one| Stray { secret: self.secret, plan: Arc::clone(&plan), one };
        if !orphans.is_empty() {
            let in_stores = engine.in_stores(&plan).await.map_err(engine_failure)?;
            for one in orphans {
                match in_stores.may_hold(&one) {
                    Some(in_use) => seen.in_use.push((stray(one), in_use)),
                    None => seen.orphans.push(stray(one)),
                }
            }
        }
        let is_told = |one: &Labelled| seen.foreign.iter().any(|told| told.one == *one);
        let untold: Vec<Labelled> = foreign.into_iter().filter(|one| !is_told(one)).collect();
        seen.foreign.extend(untold.into_iter().map(stray));
        Ok(())
    }
}
