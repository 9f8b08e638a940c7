//! From the configuration to a plan, and from a plan back to drivers.
//!
//! A plan holds everything that a rotation needs to finish after the file was edited. So a rotation is only ever run with
//! the drivers that [`drivers_of`] makes from its plan, in the first process and in the tenth alike.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use keywheel_core::call::CallError;
use keywheel_core::facts::{IssuerFacts, Revert, StoreFacts};
use keywheel_core::incident::Incident;
use keywheel_core::plan::{
    Bound, CannotTell, FORMAT, IssuerPlan, Mode, Part, Pin, Plan, Policy, ProbePlan, Reason, Role,
    RotationId, Slot, StorePlan, VersionRef, WorkloadPlan,
};
use keywheel_core::secret::SecretName;
use keywheel_core::time::Timestamp;
use keywheel_core::version::VersionId;
use keywheel_driver::{Issuer, Probe, Refusal, Store, Workload};
use keywheel_drivers::{Build, Context, IssuerConfig, ProbeConfig, StoreConfig, WorkloadConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::code;
use crate::config::suggest::shown;
use crate::config::{self, Config, Environment, Secret};
use crate::exit::Exit;
use crate::guide::Terminal;
use crate::output::Failure;
use crate::session;

/// What the configuration does not say about one rotation.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    /// The installation that makes the plan.
    pub(crate) installation: String,
    /// The version in use now; none for the first one ever.
    pub(crate) previous: Option<VersionRef>,
    /// The number of the version to be made.
    pub(crate) pending: VersionId,
    /// Why it is rotated.
    pub(crate) reason: Reason,
    /// The words of whoever asked.
    pub(crate) because: Option<String>,
    /// Forward at a steady pace, or an emergency.
    pub(crate) mode: Mode,
    /// Versions beside `previous` that an emergency must end.
    pub(crate) suspects: Vec<VersionRef>,
    /// The rotation that this one takes over.
    pub(crate) takes_over: Option<RotationId>,
    /// Until when a call of the rotation that is taken over can still land.
    pub(crate) inherits_until: Option<Timestamp>,
    /// The emergency that it is a part of.
    pub(crate) incident: Option<Incident>,
    /// The other secrets that share its rolls.
    pub(crate) batch: Vec<SecretName>,
    /// Whether a lease is only extended.
    pub(crate) extend: bool,
}

/// The drivers of one rotation, in the order of its plan.
pub(crate) struct Built {
    /// What mints and ends the versions.
    pub(crate) issuer: Arc<dyn Issuer>,
    /// One for each of the plan's stores.
    pub(crate) stores: Vec<Arc<dyn Store>>,
    /// One for each of the plan's workloads.
    pub(crate) workloads: Vec<Arc<dyn Workload>>,
    /// One for each of the plan's probes.
    pub(crate) probes: Vec<Arc<dyn Probe>>,
}

/// The answer of a place that is asked which one it is.
pub(crate) type Identity<'a> = BoxFuture<'a, Result<Option<Pin>, CallError>>;

impl Built {
    /// Asks workloads and stores where they are, once each answer is waited for, in the order of [`Plan::pinned`].
    pub(crate) fn identities(&self) -> impl Iterator<Item = Identity<'_>> {
        let workloads = self.workloads.iter().map(|workload| workload.identity());
        workloads.chain(self.stores.iter().map(|store| store.identity()))
    }
}

/// Compiles the plan of one rotation. Drivers are built to read what they can do; nobody is asked anything.
///
/// # Errors
/// A [`Failure`] where a driver refuses its settings, or policy wants a reason.
pub(crate) fn compile(config: &Config, name: &SecretName, inputs: Inputs) -> Result<Plan, Failure> {
    let (environment, secret) = config.secret(name).ok_or_else(|| unknown_secret(config, name))?;
    if secret.rules.needs_reason
        && inputs.because.as_deref().is_none_or(|words| words.trim().is_empty())
    {
        let failure = Failure::new(format!("the policy of `{name}` requires a reason"));
        return Err(failure
            .code(code::POLICY_REQUIRES)
            .exit(Exit::Refused)
            .hint("say why with `--because TEXT`"));
    }
    let planner = Planner { context: Context::at(&config.folder), environment, secret };
    let issuer = planner.issuer()?;
    let stores = planner.stores()?;
    let workloads = planner.workloads(&stores)?;
    let mut policy = Policy { notify: config.notifies(), ..secret.policy.clone() };
    await_runs(&mut policy, &issuer.facts, &stores);
    Ok(Plan {
        format: FORMAT,
        installation: inputs.installation,
        secret: name.clone(),
        reason: inputs.reason,
        because: inputs.because,
        strategy: secret.strategy,
        mode: inputs.mode,
        previous: inputs.previous,
        pending: inputs.pending,
        suspects: inputs.suspects,
        takes_over: inputs.takes_over,
        inherits_until: inputs.inherits_until,
        incident: inputs.incident,
        extend: inputs.extend,
        batch: inputs.batch,
        folder: config.folder.to_str().map(str::to_owned).ok_or_else(not_utf8)?,
        issuer,
        stores,
        workloads,
        probes: planner.probes(),
        policy,
    })
}

/// Builds the drivers of a plan, from the plan alone.
///
/// # Errors
/// A [`Failure`] where this version of keywheel lacks a driver, or a driver refuses its settings.
pub(crate) fn drivers_of(plan: &Plan) -> Result<Built, Failure> {
    let guide = Terminal::for_secret(&plan.secret);
    let claim = Some(session::claim(&plan.installation, &plan.folder, plan.secret.environment()));
    let rotation = Some(plan.rotation().0);
    let context = Context { guide, claim, rotation, ..Context::at(&plan.folder) };
    let stores = plan.stores.iter().map(|store| rebuild::<StoreConfig>(&store.bound, &context));
    let workloads =
        plan.workloads.iter().map(|workload| rebuild::<WorkloadConfig>(&workload.bound, &context));
    let probes = plan.probes.iter().map(|probe| rebuild::<ProbeConfig>(&probe.bound, &context));
    Ok(Built {
        issuer: rebuild::<IssuerConfig>(&plan.issuer.bound, &context)?,
        stores: stores.collect::<Result<_, _>>()?,
        workloads: workloads.collect::<Result<_, _>>()?,
        probes: probes.collect::<Result<_, _>>()?,
    })
}

/// Says that a secret is not in the configuration, and which one was probably meant.
pub(crate) fn unknown_secret(config: &Config, name: &SecretName) -> Failure {
    let failure =
        Failure::new(format!("`{name}` is not in the configuration")).code(code::UNKNOWN_NAME);
    match config.environment(name.environment()) {
        None => {
            let names: Vec<&str> =
                config.environments.iter().map(|environment| environment.name.as_str()).collect();
            failure.hint(format!("environments: `{}`", names.join("`, `")))
        }
        Some(environment) => {
            let names = environment.secrets.iter().map(|secret| secret.name.name());
            match config::suggest::nearest(name.name(), names) {
                Some(near) => failure.hint(format!("did you mean `{near}@{}`?", environment.name)),
                None => failure.hint("`keywheel config show` lists the secrets"),
            }
        }
    }
}

struct Planner<'a> {
    context: Context,
    environment: &'a Environment,
    secret: &'a Secret,
}

impl Planner<'_> {
    fn issuer(&self) -> Result<IssuerPlan, Failure> {
        let config = &self.secret.issuer;
        let driver = config
            .build(&self.context)
            .map_err(|refusal| refused("issuer", config.kind(), &refusal))?;
        Ok(IssuerPlan { bound: bound(config.kind(), config), facts: driver.facts() })
    }

    /// Staged-capable stores come first, and those last that cannot be read or put back, so that what fails early is undone with least harm;
    /// between them the file's order holds.
    fn stores(&self) -> Result<Vec<StorePlan>, Failure> {
        let mut plans = Vec::new();
        for delivery in &self.secret.deliveries {
            let store =
                self.environment.store(&delivery.store).expect("the configuration was checked");
            let driver = store
                .config
                .build(&self.context)
                .map_err(|refusal| refused("store", &store.name, &refusal))?;
            let facts = driver.facts();
            if !facts.is_readable() {
                delivery.slots.iter().try_for_each(check_attested).map_err(|why| {
                    let failure = Failure::new(format!(
                        "store `{}` cannot be given this part of `{}`",
                        shown(&store.name),
                        self.secret.name
                    ));
                    failure.caused_by(why).code(code::DRIVER_REFUSED)
                })?;
            }
            plans.push(StorePlan {
                bound: bound(&store.name, &store.config),
                facts,
                slots: delivery.slots.clone(),
                pin: None,
            });
        }
        plans.sort_by_key(|plan| write_order(&plan.facts));
        Ok(plans)
    }

    fn workloads(&self, stores: &[StorePlan]) -> Result<Vec<WorkloadPlan>, Failure> {
        let mut plans = Vec::new();
        for workload in self.readers() {
            let driver = workload
                .config
                .build(&self.context)
                .map_err(|refusal| refused("workload", &workload.name, &refusal))?;
            let reads = (0_u8..).zip(stores).filter(|(_, store)| {
                // Readers log in at such a store; none of them holds its slots.
                workload.reads(&store.bound.name) && !store.facts.answers_logins
            });
            plans.push(WorkloadPlan {
                bound: bound(&workload.name, &workload.config),
                facts: driver.facts(),
                reads: reads.map(|(index, _)| index).collect(),
                pin: None,
            });
        }
        Ok(plans)
    }

    fn probes(&self) -> Vec<ProbePlan> {
        let of = |workload: &config::Workload| {
            let numbered = workload.probes.iter().enumerate();
            let probes = numbered.map(|(index, probe)| ProbePlan {
                bound: bound(&format!("{}.{}.{}", workload.name, probe.kind(), index + 1), probe),
            });
            probes.collect::<Vec<_>>()
        };
        self.readers().into_iter().flat_map(of).collect()
    }

    /// Returns the workloads that read the secret, by name, each once.
    fn readers(&self) -> Vec<&config::Workload> {
        let mut names: Vec<&str> = self.secret.readers.iter().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names.into_iter().filter_map(|name| self.environment.workload(name)).collect()
    }
}

fn write_order(facts: &StoreFacts) -> u8 {
    match facts {
        StoreFacts { revert: Revert::No, .. } => 3,
        facts if !facts.is_readable() => 2,
        StoreFacts { staged: true, .. } => 0,
        _ => 1,
    }
}

/// A store that cannot be read takes whole values only: neither what stands around a part, nor whether a second slot is free, is known.
fn check_attested(slot: &Slot) -> Result<(), String> {
    let address = &slot.address;
    match (&slot.part, slot.role) {
        (Part::Plain(_), Role::Current) => Ok(()),
        (Part::Plain(_), Role::AlsoAccepted) => Err(format!(
            "`{address}` would hold a second accepted version, and whether it is free cannot be read"
        )),
        _ => Err(format!(
            "`{address}` holds more than a value of its own, and what stands around it cannot be read: give it one whole field"
        )),
    }
}

/// Lets soak last until the longest run has ended that may have begun with the former version, unless its issuer is waited for to
/// tell no use of it. A brown-out would break such a run, and is left out.
fn await_runs(policy: &mut Policy, issuer: &IssuerFacts, stores: &[StorePlan]) {
    let Some(longest) = stores.iter().filter_map(|store| store.facts.longest_run).max() else {
        return;
    };
    policy.brownout = None;
    if issuer.last_used.is_none() || policy.cannot_tell == CannotTell::Allow {
        policy.soak = policy.soak.max(longest);
    }
}

fn bound(name: &str, config: &impl Serialize) -> Bound {
    let mut driver = serde_json::to_value(config).expect("a driver's configuration is plain data");
    // The plan's hash must not hang on the order in which a map happens to keep its keys.
    driver.sort_all_objects();
    Bound { name: name.to_owned(), driver }
}

fn rebuild<C: Build + DeserializeOwned>(
    bound: &Bound,
    context: &Context,
) -> Result<Arc<C::Driver>, Failure> {
    let config: C = serde_json::from_value(bound.driver.clone()).map_err(|_| {
        let failure = Failure::new(format!(
            "the driver of `{}` is not one of this version's",
            shown(&bound.name)
        ));
        let failure = failure.code(code::DRIVER_REFUSED).exit(Exit::NeedsOperator);
        failure.hint("finish the rotation with the version of keywheel that began it")
    })?;
    config
        .build(context)
        .map_err(|refusal| refused("driver", &bound.name, &refusal).exit(Exit::NeedsOperator))
}

fn refused(kind: &str, name: &str, refusal: &Refusal) -> Failure {
    Failure::new(format!("{kind} `{}` refuses its settings", shown(name)))
        .caused_by(refusal.message.clone())
        .code(code::DRIVER_REFUSED)
}

fn not_utf8() -> Failure {
    Failure::new("the folder of the configuration has a name that is not UTF-8")
        .code(code::UNREADABLE)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use keywheel_core::facts::{LastUsedFacts, ReadBack};
    use keywheel_core::plan::UrlPart;
    use keywheel_core::secret::Field;
    use keywheel_core::strategy::Strategy;
    use keywheel_core::time::Span;

    use super::*;

    const FILE: &str = r#"
project: shop
policies:
  strict: { require: [reason], soak: 2h }
stores:
  app: { env_file: { path: .env } }
  key: { file: { path: /run/session.key } }
workloads:
  web:
    process: { replicas: [{ pid_file: run/web.pid }], shows: start }
    probes: [{ http: { url: "http://127.0.0.1:3000/health" } }]
    reads: [key]
  api:
    process: { replicas: [{ pid_file: run/api.pid }], shows: environ }
secrets:
  session:
    policy: strict
    issuer: random
    stores: { key: value, app: SESSION_SECRET }
    read_by: [web, api]
"#;

    fn config(text: &str) -> Config {
        Config::parse(text, Path::new("keywheel.yaml"), Path::new("/srv/shop"))
            .unwrap_or_else(|problems| panic!("{problems:?}"))
    }

    fn inputs() -> Inputs {
        Inputs {
            installation: "i-1".into(),
            previous: None,
            pending: VersionId(1),
            reason: Reason::Requested,
            because: Some("a test".into()),
            mode: Mode::Normal,
            suspects: Vec::new(),
            takes_over: None,
            inherits_until: None,
            incident: None,
            batch: Vec::new(),
            extend: false,
        }
    }

    fn name() -> SecretName {
        SecretName::new("session", "default").unwrap()
    }

    fn plan() -> Plan {
        compile(&config(FILE), &name(), inputs())
            .unwrap_or_else(|failure| panic!("{}", failure.text(false)))
    }

    #[test]
    fn a_plan_holds_everything_that_the_file_said() {
        let plan = plan();
        assert_eq!(plan.strategy, Strategy::Overlap);
        assert_eq!(plan.policy, Policy { soak: Span::hours(2), ..Policy::default() });
        assert_eq!(plan.issuer.bound.driver, serde_json::json!({ "random": { "length": 43 } }));
        let names =
            |bounds: Vec<&Bound>| bounds.iter().map(|bound| bound.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(plan.stores.iter().map(|s| &s.bound).collect()), ["key", "app"]);
        assert_eq!(names(plan.workloads.iter().map(|w| &w.bound).collect()), ["api", "web"]);
        assert_eq!(names(plan.probes.iter().map(|p| &p.bound).collect()), ["web.http.1"]);
        assert_eq!(
            plan.workloads.iter().map(|w| w.reads.clone()).collect::<Vec<_>>(),
            [vec![0, 1], vec![0]]
        );
        let slot = Slot {
            address: "SESSION_SECRET".into(),
            role: Role::Current,
            part: Part::Plain(Field::value()),
        };
        assert_eq!(plan.stores[1].slots, [slot]);
    }

    #[test]
    fn a_plan_can_be_finished_from_another_folder() {
        let plan = plan();
        assert_eq!(plan.stores[1].bound.driver["env_file"]["path"], "/srv/shop/.env");
        assert_eq!(plan.stores[0].bound.driver["file"]["path"], "/run/session.key");
        assert_eq!(
            plan.workloads[0].bound.driver["process"]["replicas"][0]["pid_file"],
            "/srv/shop/run/api.pid"
        );
        assert_eq!(plan.folder, "/srv/shop");
    }

    #[test]
    fn drivers_are_built_from_the_plan_alone() {
        let plan = plan();
        let stored = serde_json::to_string(&plan).unwrap();
        let plan: Plan = serde_json::from_str(&stored).unwrap();
        let built = drivers_of(&plan).unwrap_or_else(|failure| panic!("{}", failure.text(false)));
        assert_eq!((built.stores.len(), built.workloads.len(), built.probes.len()), (2, 2, 1));
        assert!(built.stores[1].container().ends_with("/srv/shop/.env"));
        assert_eq!(built.issuer.facts(), plan.issuer.facts);
        assert_eq!(built.workloads[0].facts(), plan.workloads[0].facts);
    }

    #[test]
    fn a_driver_of_another_version_is_named_and_its_settings_are_not() {
        let mut plan = plan();
        plan.stores[0].bound.driver = serde_json::json!({ "future": { "key": "CANARY" } });
        let failure = drivers_of(&plan).err().unwrap();
        assert_eq!(failure.exit, Exit::NeedsOperator);
        assert!(!failure.text(false).contains("CANARY") && failure.message.contains("`key`"));
    }

    #[test]
    fn stores_that_cannot_be_put_back_are_written_last_and_staged_ones_first() {
        let facts =
            |staged, revert| StoreFacts { staged, revert, ..plan().stores[0].facts.clone() };
        let unread = StoreFacts { read_back: ReadBack::None, ..facts(true, Revert::Restore) };
        let mut order = [
            ("unread", unread),
            ("irreversible", facts(true, Revert::No)),
            ("plain", facts(false, Revert::Restore)),
            ("staged", facts(true, Revert::Append)),
            ("plain too", facts(false, Revert::Append)),
        ];
        order.sort_by_key(|(_, facts)| write_order(facts));
        assert_eq!(
            order.map(|(name, _)| name),
            ["staged", "plain", "plain too", "unread", "irreversible"]
        );
    }

    const CI: &str = r#"
project: shop
policies:
  short: { soak: { for: 1h, brownout: 10m } }
stores:
  app: { env_file: { path: .env } }
  ci: { github_actions: { repository: acme/shop, token: { file: token }, longest_run: 5h } }
secrets:
  session:
    policy: short
    issuer: random
    stores: { ci: SESSION_SECRET, app: SESSION_SECRET }
    read_by: nobody
    because: a test
"#;

    fn ci() -> Result<Plan, Failure> {
        compile(&config(CI), &name(), inputs())
    }

    #[test]
    fn h56_soak_lasts_as_long_as_a_run_that_began_with_the_former_version() {
        let plan = ci().unwrap_or_else(|failure| panic!("{}", failure.text(false)));
        assert_eq!((plan.policy.soak, plan.policy.brownout), (Span::hours(5), None));
        let names: Vec<&str> = plan.stores.iter().map(|store| store.bound.name.as_str()).collect();
        assert_eq!(names, ["app", "ci"]);
        let used = LastUsedFacts { lag: Span::ZERO, granularity: Span::ZERO };
        let quiet = IssuerFacts { last_used: Some(used), ..plan.issuer.facts.clone() };
        let soak = |cannot_tell| {
            let mut policy = Policy { soak: Span::hours(1), cannot_tell, ..Policy::default() };
            await_runs(&mut policy, &quiet, &plan.stores);
            policy.soak
        };
        assert_eq!(
            [CannotTell::Wait, CannotTell::Allow].map(soak),
            [Span::hours(1), Span::hours(5)],
            "only an issuer that is waited for closes the question"
        );
    }

    #[test]
    fn a_store_that_cannot_be_read_is_given_whole_values_only() {
        let slot = |part, role| Slot { address: "KEY".into(), role, part };
        let whole = || Part::Plain(Field::value());
        assert_eq!(check_attested(&slot(whole(), Role::Current)), Ok(()));
        for refused in
            [slot(Part::Url(UrlPart::Password), Role::Current), slot(whole(), Role::AlsoAccepted)]
        {
            assert!(check_attested(&refused).is_err_and(|why| why.contains("cannot be read")));
        }
    }

    #[test]
    fn a_policy_that_requires_a_reason_gets_one() {
        let refused =
            compile(&config(FILE), &name(), Inputs { because: Some(" ".into()), ..inputs() })
                .err()
                .unwrap();
        assert_eq!((refused.exit, refused.code), (Exit::Refused, Some(code::POLICY_REQUIRES)));
    }

    #[test]
    fn a_mistyped_secret_is_suggested() {
        let wrong = SecretName::new("sesion", "default").unwrap();
        let failure = compile(&config(FILE), &wrong, inputs()).err().unwrap();
        assert_eq!(failure.hint.as_deref(), Some("did you mean `session@default`?"));
    }
}
