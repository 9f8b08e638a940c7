//! From the file to what it means: one environment after another, every name looked up, every rule checked.
//!
//! The rules here need the file alone. Drivers are built, which asks nobody and reads no reference, so that what a driver
//! refuses in its own settings is found here too, with its line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use keywheel_core::facts::{Authority, IssuerFacts};
use keywheel_core::plan::{Accept, Part, Policy, Role, Slot, UrlPart};
use keywheel_core::secret::SecretName;
use keywheel_core::strategy::{Side, Strategy};
use keywheel_core::time::Span;
use keywheel_driver::Refusal;
use keywheel_drivers::{Build, Context, IssuerConfig, ProbeConfig, StoreConfig, WorkloadConfig};

use super::by_env;
use super::file::{
    After, File, Named, Next, PolicyEntry, ReadBy, Requirement, RollWindow, SecretEntry,
    WorkloadEntry,
};
use super::problem::{Place, Problem};
use super::suggest::{nearest, shown};
use super::tree::{Node, Value};
use super::typed::{read, without_values};
use super::version;
use crate::code::{self, Code};

/// The name of the only environment of a file without `environments`.
pub(crate) const DEFAULT_ENVIRONMENT: &str = "default";

/// The name of the policy that holds where a secret names none.
pub(crate) const DEFAULT_POLICY: &str = "default";

/// What a configuration file means.
pub(crate) struct Config {
    /// The file.
    pub(crate) file: PathBuf,
    /// Its folder, absolute; relative paths in it begin here.
    pub(crate) folder: PathBuf,
    /// The name of the project.
    pub(crate) project: String,
    /// The environments, in the order of the file.
    pub(crate) environments: Vec<Environment>,
}

/// One environment.
pub(crate) struct Environment {
    /// Its name.
    pub(crate) name: String,
    /// Whether its name is asked for before anything is changed in it.
    pub(crate) protected: bool,
    /// The environment that goes first.
    pub(crate) after: Option<After>,
    /// The stores, in the order of the file.
    pub(crate) stores: Vec<Store>,
    /// The workloads, in the order of the file.
    pub(crate) workloads: Vec<Workload>,
    /// The secrets, in the order of the file.
    pub(crate) secrets: Vec<Secret>,
    /// The file as this environment sees it, with the place of everything.
    pub(crate) tree: Node,
}

/// A declared store.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    /// Its name.
    pub(crate) name: String,
    /// Its driver.
    pub(crate) config: StoreConfig,
}

/// A declared workload.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    /// Its name.
    pub(crate) name: String,
    /// Its driver.
    pub(crate) config: WorkloadConfig,
    /// Questions put to the running system after each roll of it.
    pub(crate) probes: Vec<ProbeConfig>,
    /// The stores that it reads; none where it reads all of its environment.
    pub(crate) reads: Option<Vec<String>>,
}

impl Workload {
    /// Returns whether it reads a store.
    pub(crate) fn reads(&self, store: &str) -> bool {
        self.reads.as_ref().is_none_or(|names| names.iter().any(|name| name == store))
    }
}

/// A secret in one environment.
#[derive(Clone, Debug)]
pub(crate) struct Secret {
    /// Its name.
    pub(crate) name: SecretName,
    /// Who answers for it.
    pub(crate) owner: Option<String>,
    /// The name of its policy; none where the built-in one holds.
    pub(crate) policy_name: Option<String>,
    /// The limits.
    pub(crate) policy: Policy,
    /// The rules that are no limits of one rotation.
    pub(crate) rules: Rules,
    /// What mints and ends its versions.
    pub(crate) issuer: IssuerConfig,
    /// How one version gives way to the next.
    pub(crate) strategy: Strategy,
    /// The slots that it owns, by store, in the order of the file.
    pub(crate) deliveries: Vec<Delivery>,
    /// The workloads that read it; empty where nobody does.
    pub(crate) readers: Vec<String>,
    /// Why nobody reads it.
    pub(crate) because: Option<String>,
    /// The environment in which the same rotation must have completed first.
    #[expect(dead_code, reason = "the commands that act follow")]
    pub(crate) after: Option<After>,
}

/// The rules of a policy that are no limits of one rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// How long before the end of the cryptoperiod a secret counts as due soon.
    pub(crate) remind: Span,
    /// When workloads may be rolled.
    pub(crate) roll_window: Option<RollWindow>,
    /// Whether each rotation names a reason.
    pub(crate) needs_reason: bool,
    /// Whether a rotation may end the rollback window of the last one early.
    pub(crate) close_window: bool,
}

/// The slots of one store that a secret owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// The store.
    pub(crate) store: String,
    /// The slots, in order of their addresses.
    pub(crate) slots: Vec<Slot>,
}

impl Config {
    /// Reads and checks a file's text.
    ///
    /// # Errors
    /// Every [`Problem`] that was found, in the order of the file.
    pub(crate) fn parse(text: &str, file: &Path, folder: &Path) -> Result<Self, Vec<Problem>> {
        let tree = Node::parse(text).map_err(|problem| vec![problem])?;
        version::check(&tree).map_err(|problem| vec![problem])?;
        let declared = declared_environments(&tree);
        let context = Context { root: folder.to_owned() };
        let mut found = Found::default();
        let mut project = String::new();
        let mut environments = Vec::new();
        for name in &declared {
            let seen = by_env::resolve(&tree, name, &declared).and_then(|tree| {
                let file: File = read(&tree, &[], folder)?;
                Ok((tree, file))
            });
            let Some((tree, file)) = found.keep(seen) else { continue };
            project.clone_from(&file.project.0);
            let scope = Scope { tree, name, declared: &declared, context: &context };
            environments.extend(scope.environment(file, &mut found));
        }
        claims(&environments, &context, &mut found);
        found.into_result(Self {
            file: file.to_owned(),
            folder: folder.to_owned(),
            project,
            environments,
        })
    }

    /// Returns an environment.
    pub(crate) fn environment(&self, name: &str) -> Option<&Environment> {
        self.environments.iter().find(|environment| environment.name == name)
    }

    /// Returns a secret of an environment.
    pub(crate) fn secret(&self, name: &SecretName) -> Option<(&Environment, &Secret)> {
        let environment = self.environment(name.environment())?;
        environment
            .secrets
            .iter()
            .find(|secret| secret.name == *name)
            .map(|secret| (environment, secret))
    }
}

impl Environment {
    /// Returns a store.
    pub(crate) fn store(&self, name: &str) -> Option<&Store> {
        self.stores.iter().find(|store| store.name == name)
    }

    /// Returns a workload.
    pub(crate) fn workload(&self, name: &str) -> Option<&Workload> {
        self.workloads.iter().find(|workload| workload.name == name)
    }
}

impl Secret {
    /// Returns how long a rotation may be moving, from the mint to the promotion and through a keyring's last move, when
    /// each step needs all the patience that it is given.
    pub(crate) fn longest_move(&self) -> Span {
        let times =
            |span: Span, count: usize| Span::millis(span.as_millis().saturating_mul(count as u64));
        let (call, roll) =
            (self.policy.call + self.policy.patience, self.policy.roll + self.policy.patience);
        let moves = usize::from(self.strategy.line(false).end(Side::Pending));
        let one = times(call, self.deliveries.len())
            + times(roll, self.readers.len())
            + self.strategy.token_wait();
        times(call, 2) + times(one, moves)
    }
}

/// The problems found so far. The same one is found in each environment; it is kept once.
#[derive(Default)]
struct Found(Vec<Problem>);

impl Found {
    fn add(&mut self, problem: Problem) {
        if !self.0.contains(&problem) {
            self.0.push(problem);
        }
    }

    fn keep<T>(&mut self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.add(problem)).ok()
    }

    fn into_result<T>(mut self, value: T) -> Result<T, Vec<Problem>> {
        self.0.sort_by_key(|problem| problem.place);
        if self.0.is_empty() { Ok(value) } else { Err(self.0) }
    }
}

fn declared_environments(tree: &Node) -> Vec<&str> {
    let names: Vec<&str> = tree
        .get("environments")
        .map(|node| node.entries().iter().map(|(key, _)| key.name.as_str()).collect())
        .unwrap_or_default();
    if names.is_empty() { vec![DEFAULT_ENVIRONMENT] } else { names }
}

/// What one environment's part of the file is checked against.
struct Scope<'a> {
    tree: Node,
    name: &'a str,
    declared: &'a [&'a str],
    context: &'a Context,
}

impl Scope<'_> {
    fn environment(self, file: File, found: &mut Found) -> Option<Environment> {
        let entry = found.keep(self.entry(file.environments, file.stores, file.workloads))?;
        let stores: Vec<Store> =
            entry.stores.0.into_iter().map(|(name, config)| Store { name, config }).collect();
        let workloads: Vec<Workload> = entry.workloads.0.into_iter().map(workload).collect();
        let mut environment = Environment {
            name: self.name.to_owned(),
            protected: entry.protected,
            after: entry.after,
            stores,
            workloads,
            secrets: Vec::new(),
            tree: self.tree.clone(),
        };
        self.declarations(&environment, found);
        for (name, entry) in file.secrets.0 {
            let checks = SecretScope { scope: &self, environment: &environment, name: &name };
            if let Some(secret) = checks.secret(&entry, &file.policies, found) {
                environment.secrets.push(secret);
            }
        }
        Some(environment)
    }

    fn entry(
        &self,
        environments: Option<Named<super::file::EnvironmentEntry>>,
        stores: Option<Named<StoreConfig>>,
        workloads: Option<Named<WorkloadEntry>>,
    ) -> Result<super::file::EnvironmentEntry, Problem> {
        let both = |key: &str| {
            let message = format!("`{key}` stands beside `environments`");
            let problem = Problem::new(code::TWO_FORMS, message).at(self.tree.place_of(&[key]));
            problem.hint(format!("move it into the environments, as `environments.NAME.{key}`"))
        };
        match environments {
            Some(_) if stores.is_some() => Err(both("stores")),
            Some(_) if workloads.is_some() => Err(both("workloads")),
            Some(environments) => {
                let entry = environments
                    .0
                    .into_iter()
                    .find(|(name, _)| name == self.name)
                    .map(|(_, entry)| entry);
                entry.ok_or_else(|| {
                    let problem =
                        Problem::new(code::MISSING_KEY, "`environments` declares no environment");
                    problem
                        .at(self.tree.place_of(&["environments"]))
                        .hint("name one, or leave `environments` out")
                })
            }
            None => Ok(super::file::EnvironmentEntry {
                stores: stores.unwrap_or_default(),
                workloads: workloads.unwrap_or_default(),
                ..Default::default()
            }),
        }
    }

    /// Returns the path of something declared in this environment.
    fn path<'b>(&'b self, rest: &[&'b str]) -> Vec<&'b str> {
        let start: &[&str] = if self.tree.get("environments").is_some() {
            &["environments", self.name]
        } else {
            &[]
        };
        start.iter().chain(rest).copied().collect()
    }

    fn declarations(&self, environment: &Environment, found: &mut Found) {
        if let Some(after) = &environment.after {
            found.keep(self.goes_first(after, &self.path(&["after"])));
        }
        for store in &environment.stores {
            found.keep(self.builds(&store.config, &self.path(&["stores", &store.name])));
        }
        for workload in &environment.workloads {
            let path = self.path(&["workloads", &workload.name]);
            found.keep(self.builds(&workload.config, &path));
            for probe in &workload.probes {
                found
                    .keep(self.builds(probe, &self.path(&["workloads", &workload.name, "probes"])));
            }
            let stores = environment.stores.iter().map(|store| store.name.as_str());
            for name in workload.reads.iter().flatten() {
                let path = self.path(&["workloads", &workload.name, "reads"]);
                found.keep(self.known("store", name, stores.clone(), &path));
            }
        }
    }

    fn goes_first(&self, after: &After, path: &[&str]) -> Result<(), Problem> {
        let others = self.declared.iter().copied().filter(|name| *name != self.name);
        if after.environment == self.name {
            let message = format!("`{}` names its own environment", shown_path(path));
            return Err(Problem::new(code::UNKNOWN_NAME, message).at(self.tree.place_of(path)));
        }
        self.known("environment", &after.environment, others, path)
    }

    /// Checks that a driver takes its settings.
    fn builds<B: Build>(&self, config: &B, path: &[&str]) -> Result<(), Problem> {
        config.build(self.context).map(drop).map_err(|refusal| self.refused(refusal, path))
    }

    fn issuer(&self, config: &IssuerConfig, path: &[&str]) -> Result<IssuerFacts, Problem> {
        let driver = config.build(self.context).map_err(|refusal| self.refused(refusal, path))?;
        Ok(driver.facts())
    }

    fn refused(&self, refusal: Refusal, path: &[&str]) -> Problem {
        let node = self.tree.at(path).unwrap_or(&self.tree);
        let why = without_values(refusal.message, node)
            .unwrap_or_else(|| "its settings are refused".into());
        let problem = Problem::new(code::DRIVER_REFUSED, format!("`{}`: {why}", shown_path(path)));
        problem.at(self.tree.place_of(path))
    }

    /// Checks that a name is declared; the name itself is a value of the file and is not repeated.
    fn known<'n>(
        &self,
        kind: &str,
        name: &str,
        declared: impl IntoIterator<Item = &'n str> + Clone,
        path: &[&str],
    ) -> Result<(), Problem> {
        if declared.clone().into_iter().any(|candidate| candidate == name) {
            return Ok(());
        }
        let named = match kind {
            "environment" => "an environment that is not declared".into(),
            "policy" => "a policy that is not declared".into(),
            kind => format!("a {kind} that is not declared for environment `{}`", shown(self.name)),
        };
        let message = format!("`{}` names {named}", shown_path(path));
        let problem = Problem::new(code::UNKNOWN_NAME, message).at(self.place_of_text(path, name));
        let names: Vec<&str> = declared.clone().into_iter().map(shown).collect();
        Err(match nearest(name, declared) {
            Some(near) => problem.hint(format!("did you mean `{}`?", shown(near))),
            None if names.is_empty() => problem.hint(format!("no {kind} is declared")),
            None => problem.hint(format!("declared: `{}`", names.join("`, `"))),
        })
    }

    /// Returns the place of a text in a list or scalar under a path, else of the path's key.
    fn place_of_text(&self, path: &[&str], text: &str) -> Place {
        let is = |node: &&Node| matches!(&node.value, Value::Text(found) if found == text);
        let found = self.tree.at(path).and_then(|node| match &node.value {
            Value::List(items) => items.iter().find(is),
            _ => Some(node).filter(is),
        });
        found.map_or_else(|| self.tree.place_of(path), |node| node.place)
    }
}

fn workload((name, entry): (String, WorkloadEntry)) -> Workload {
    Workload { name, config: entry.driver, probes: entry.probes, reads: entry.reads }
}

fn shown_path(path: &[&str]) -> String {
    path.iter().map(|name| shown(name)).collect::<Vec<_>>().join(".")
}

/// What one secret is checked against.
struct SecretScope<'a> {
    scope: &'a Scope<'a>,
    environment: &'a Environment,
    name: &'a str,
}

impl SecretScope<'_> {
    fn secret(
        &self,
        entry: &SecretEntry,
        policies: &Named<PolicyEntry>,
        found: &mut Found,
    ) -> Option<Secret> {
        let name = SecretName::new(self.name, self.scope.name).expect("both were read as names");
        let before = found.0.len();
        let facts = found.keep(self.scope.issuer(&entry.issuer, &self.path(&["issuer"])));
        self.names(entry, found);
        let (policy_name, rules_of) = found.keep(self.policy(entry, policies))?;
        let (policy, rules) = merge(&rules_of, entry);
        let secret = Secret {
            name,
            owner: entry.owner.clone().filter(|owner| !owner.trim().is_empty()),
            policy_name,
            policy,
            rules,
            issuer: entry.issuer.clone(),
            strategy: entry.strategy.into(),
            deliveries: deliveries(entry),
            readers: match &entry.read_by {
                ReadBy::Workloads(names) => names.clone(),
                ReadBy::Nobody => Vec::new(),
            },
            because: entry.because.clone().filter(|because| !because.trim().is_empty()),
            after: entry.after.clone(),
        };
        found.keep(self.named_as_required(&secret, &rules_of));
        found.keep(self.arranged(&secret));
        if let Some(facts) = &facts {
            found.keep(self.suits(&secret, facts));
        }
        found.keep(self.cryptoperiod(&secret));
        if found.0.len() == before {
            self.read_by_someone(&secret, &entry.read_by, found);
        }
        Some(secret)
    }

    fn path<'b>(&'b self, rest: &[&'b str]) -> Vec<&'b str> {
        ["secrets", self.name].iter().chain(rest).copied().collect()
    }

    fn problem(&self, code: Code, rest: &[&str], message: impl Into<String>) -> Problem {
        Problem::new(code, message).at(self.scope.tree.place_of(&self.path(rest)))
    }

    fn shown(&self) -> &str {
        shown(self.name)
    }

    fn names(&self, entry: &SecretEntry, found: &mut Found) {
        let scope = self.scope;
        let stores = self.environment.stores.iter().map(|store| store.name.as_str());
        for store in entry.stores.names() {
            let path = self.path(&["stores", store]);
            found.keep(scope.known("store", store, stores.clone(), &path));
        }
        if let ReadBy::Workloads(names) = &entry.read_by {
            let workloads =
                self.environment.workloads.iter().map(|workload| workload.name.as_str());
            for name in names {
                found.keep(scope.known(
                    "workload",
                    name,
                    workloads.clone(),
                    &self.path(&["read_by"]),
                ));
            }
        }
        for name in entry.environments.iter().flatten() {
            let declared = scope.declared.iter().copied();
            found.keep(scope.known("environment", name, declared, &self.path(&["environments"])));
        }
        if entry.environments.as_ref().is_some_and(Vec::is_empty) {
            let message = format!("`secrets.{}.environments` is empty", self.shown());
            found.add(self.problem(code::WRONG_VALUE, &["environments"], message));
        }
        if let Some(after) = &entry.after
            && after.environment != scope.name
        {
            found.keep(scope.goes_first(after, &self.path(&["after"])));
        }
    }

    fn policy(
        &self,
        entry: &SecretEntry,
        policies: &Named<PolicyEntry>,
    ) -> Result<(Option<String>, PolicyEntry), Problem> {
        match &entry.policy {
            Some(name) => {
                self.scope.known("policy", name, policies.names(), &self.path(&["policy"]))?;
                Ok((Some(name.clone()), policies.get(name).cloned().unwrap_or_default()))
            }
            None => {
                let named = policies.get(DEFAULT_POLICY).cloned();
                Ok((named.is_some().then(|| DEFAULT_POLICY.into()), named.unwrap_or_default()))
            }
        }
    }

    fn named_as_required(&self, secret: &Secret, policy: &PolicyEntry) -> Result<(), Problem> {
        if policy.require.contains(&Requirement::Owner) && secret.owner.is_none() {
            let message =
                format!("`secrets.{}` names no `owner`, and its policy requires one", self.shown());
            return Err(self.problem(code::POLICY_REQUIRES, &[], message));
        }
        Ok(())
    }

    /// Checks that the slots fit the strategy (H83).
    fn arranged(&self, secret: &Secret) -> Result<(), Problem> {
        let count = |delivery: &Delivery, role| {
            delivery.slots.iter().filter(|slot| slot.role == role).count()
        };
        for delivery in &secret.deliveries {
            let problem = |message: &str| {
                let message = format!(
                    "`secrets.{}.stores.{}` {message}",
                    self.shown(),
                    shown(&delivery.store)
                );
                self.problem(code::NO_OVERLAP, &["stores", &delivery.store], message)
            };
            let (current, also) =
                (count(delivery, Role::Current), count(delivery, Role::AlsoAccepted));
            let two_values = matches!(secret.strategy, Strategy::Keyring { .. } | Strategy::Append);
            match (two_values, current, also) {
                (true, 1, 1) => {}
                (true, _, 0) => {
                    return Err(problem("has no `also_accepted` slot, so readers cannot accept two values").hint(
                        "let the readers accept a second value from a second slot, or choose `strategy: cutover` with \
                         `accept: [sessions_end]`",
                    ));
                }
                (true, ..) => {
                    return Err(problem(
                        "must have exactly one `current` and one `also_accepted` slot",
                    ));
                }
                (false, _, 1..) => {
                    return Err(problem(
                        "has an `also_accepted` slot, which only `strategy: keyring` fills",
                    ));
                }
                (false, ..) => self.fields(delivery)?,
            }
        }
        Ok(())
    }

    /// Checks that the strategy suits what the issuer can do (H83, H90).
    fn suits(&self, secret: &Secret, facts: &IssuerFacts) -> Result<(), Problem> {
        let accepts = |loss| secret.policy.accept.contains(&loss);
        let signs = facts.authority == Authority::Workload;
        let problem = |code: Code, message: &str| {
            self.problem(code, &["strategy"], format!("`secrets.{}` {message}", self.shown()))
        };
        match secret.strategy {
            Strategy::Cutover if signs && !accepts(Accept::SessionsEnd) => Err(problem(
                code::NO_OVERLAP,
                "signs sessions, and a cutover ends those of its previous version",
            )
            .hint("use `strategy: { keyring: … }`, or add `accept: [sessions_end]` if that loss is right")),
            Strategy::Cutover if !signs && !accepts(Accept::Outage) => {
                Err(problem(code::NO_OVERLAP, "is cut over, and requests may fail meanwhile")
                    .hint("add `accept: [outage]` if that loss is right"))
            }
            Strategy::Keyring { .. } | Strategy::Append | Strategy::Cutover => Ok(()),
            _ if signs => Err(problem(
                code::NO_OVERLAP,
                "signs sessions, and this strategy would end those of its previous version",
            )
            .hint("use `strategy: { keyring: … }`, or `strategy: cutover` with `accept: [sessions_end]`")),
            _ if facts.max_live == Some(1) => Err(problem(
                code::UNSUITABLE,
                "has an issuer that holds one live credential, so two versions cannot overlap",
            )
            .hint("use `strategy: cutover` with `accept: [outage]`")),
            _ => Ok(()),
        }
    }

    /// Checks that a store does not get a user name alone: the password that goes with it must reach the readers too.
    fn fields(&self, delivery: &Delivery) -> Result<(), Problem> {
        let username = |slot: &Slot| matches!(slot.part, Part::Url(UrlPart::Username));
        if delivery.slots.iter().all(username) {
            let message = format!(
                "`secrets.{}.stores.{}` delivers a user name and no password",
                self.shown(),
                shown(&delivery.store)
            );
            return Err(self.problem(code::UNSUITABLE, &["stores", &delivery.store], message));
        }
        Ok(())
    }

    fn cryptoperiod(&self, secret: &Secret) -> Result<(), Problem> {
        let policy = &secret.policy;
        let needed = policy.soak + policy.rollback + secret.longest_move();
        if policy.cryptoperiod >= needed || secret.rules.close_window {
            return Ok(());
        }
        let message = format!(
            "`secrets.{}`: a cryptoperiod of {} is shorter than soak, rollback window and the longest move together ({needed})",
            self.shown(),
            policy.cryptoperiod
        );
        let path: Vec<&str> = match &secret.policy_name {
            Some(name) => vec!["policies", name, "cryptoperiod"],
            None => self.path(&["policy"]),
        };
        let problem = Problem::new(code::CRYPTOPERIOD, message).at(self.scope.tree.place_of(&path));
        Err(problem.hint("lengthen it, shorten `soak` or `rollback`, or let the next rotation end the window: `next: close_window`"))
    }

    fn read_by_someone(&self, secret: &Secret, read_by: &ReadBy, found: &mut Found) {
        if *read_by == ReadBy::Nobody && secret.because.is_none() {
            let message =
                format!("`secrets.{}.read_by` is `nobody`, and nothing says why", self.shown());
            found.add(
                self.problem(code::NOBODY_READS, &["read_by"], message).hint("add `because: …`"),
            );
        }
        let readers: Vec<&Workload> =
            secret.readers.iter().filter_map(|name| self.environment.workload(name)).collect();
        for reader in &readers {
            if !secret.deliveries.iter().any(|delivery| reader.reads(&delivery.store)) {
                let message = format!(
                    "`secrets.{}` is read by workload `{}`, which reads none of its stores",
                    self.shown(),
                    shown(&reader.name)
                );
                found.add(self.problem(code::NOBODY_READS, &["read_by"], message).hint(format!(
                    "add a store to `workloads.{}.reads`, or take the workload out of `read_by`",
                    shown(&reader.name)
                )));
            }
        }
        for delivery in &secret.deliveries {
            if !readers.is_empty() && !readers.iter().any(|reader| reader.reads(&delivery.store)) {
                let message = format!(
                    "`secrets.{}.stores.{}` is read by none of the workloads in `read_by`",
                    self.shown(),
                    shown(&delivery.store)
                );
                found.add(self.problem(code::NOBODY_READS, &["stores", &delivery.store], message));
            }
        }
    }
}

fn deliveries(entry: &SecretEntry) -> Vec<Delivery> {
    let sorted = |slots: &[Slot]| {
        let mut slots = slots.to_vec();
        slots.sort_by(|a, b| a.address.cmp(&b.address));
        slots
    };
    entry
        .stores
        .0
        .iter()
        .map(|(store, slots)| Delivery { store: store.clone(), slots: sorted(&slots.0) })
        .collect()
}

/// Lays a policy of the file over the built-in one.
fn merge(entry: &PolicyEntry, secret: &SecretEntry) -> (Policy, Rules) {
    let built_in = Policy::default();
    let span = |given: Option<keywheel_driver::duration::Duration>, otherwise: Span| {
        given.map_or(otherwise, |d| d.span())
    };
    let policy = Policy {
        cryptoperiod: span(entry.cryptoperiod, built_in.cryptoperiod),
        soak: span(entry.soak, built_in.soak),
        rollback: span(entry.rollback, built_in.rollback),
        keep: entry.keep.map_or(built_in.keep, Into::into),
        cannot_tell: entry.cannot_tell.map_or(built_in.cannot_tell, Into::into),
        watch: span(entry.watch, built_in.watch),
        gate_limit: span(entry.gate_limit, built_in.gate_limit),
        fresh_for: span(entry.fresh_for, built_in.fresh_for),
        call: span(entry.call, built_in.call),
        roll: span(entry.roll, built_in.roll),
        patience: span(entry.patience, built_in.patience),
        retry: span(entry.retry, built_in.retry),
        refusals: entry.refusals.unwrap_or(built_in.refusals).max(1),
        accept: secret.accept.iter().map(|accept| (*accept).into()).collect(),
    };
    let rules = Rules {
        remind: span(entry.remind, Span::days(30)),
        roll_window: entry.roll_window.clone(),
        needs_reason: entry.require.contains(&Requirement::Reason),
        close_window: entry.next == Some(Next::CloseWindow),
    };
    (policy, rules)
}

/// Refuses a slot that has two owners, in this environment or across environments (H61).
fn claims(environments: &[Environment], context: &Context, found: &mut Found) {
    let mut owners: BTreeMap<(String, String), (SecretName, Place)> = BTreeMap::new();
    for environment in environments {
        for secret in &environment.secrets {
            for delivery in &secret.deliveries {
                let Some(store) = environment.store(&delivery.store) else { continue };
                let Ok(driver) = store.config.build(context) else { continue };
                for slot in &delivery.slots {
                    let path =
                        ["secrets", secret.name.name(), "stores", &delivery.store, &slot.address];
                    let place = environment.tree.place_of(&path);
                    let key = (driver.container(), slot.address.clone());
                    if let Some((owner, first)) = owners.get(&key) {
                        found.add(claimed(secret, owner, *first, place));
                    } else {
                        owners.insert(key, (secret.name.clone(), place));
                    }
                }
            }
        }
    }
}

fn claimed(secret: &Secret, owner: &SecretName, first: Place, place: Place) -> Problem {
    let shown_name =
        |name: &SecretName| format!("{}@{}", shown(name.name()), shown(name.environment()));
    let message = if secret.name == *owner {
        format!("`{}` claims one slot twice", shown_name(owner))
    } else {
        format!("`{}` claims a slot that `{}` owns", shown_name(&secret.name), shown_name(owner))
    };
    let problem = Problem::new(code::SLOT_CLAIMED, message).at(place);
    problem.hint(format!("the first claim is at line {}; each slot has one owner", first.line))
}
