//! The rules that a secret keeps: its names are declared, its slots fit its strategy, its limits fit each other, and someone
//! reads it.

use keywheel_core::planted;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use keywheel_core::facts::{Authority, IssuerFacts};
use keywheel_core::plan::{Accept, Part, Policy, Role, Slot};
use keywheel_core::secret::{Field, SecretName};
use keywheel_core::strategy::Strategy;
use keywheel_core::time::Span;
use keywheel_driver::duration::Duration;
use keywheel_drivers::{Build, Context};

use super::file::{Named, Next, PolicyEntry, ReadBy, Requirement, SecretEntry};
use super::problem::{Place, Problem};
use super::resolve::{DEFAULT_POLICY, Delivery, Environment, Rules, Secret, Store, Workload};
use super::scope::{Found, Scope};
use super::suggest::shown;
use crate::code::{self, Code};

/// What one secret is checked against.
pub(super) struct SecretScope<'a> {
    /// The environment as it is checked.
    pub(super) scope: &'a Scope<'a>,
    /// The environment as far as it is resolved.
    pub(super) environment: &'a Environment,
    /// The secret's name.
    pub(super) name: &'a str,
}

impl SecretScope<'_> {
    /// Resolves and checks the secret.
    pub(super) fn secret(
        &self,
        entry: &SecretEntry,
        policies: &Named<PolicyEntry>,
        found: &mut Found,
    ) -> Option<Secret> {
        let name = SecretName::new(self.name, self.scope.name).expect("both were read as names");
        let before = found.count();
        let facts = found.keep(self.scope.issuer(&entry.issuer, &self.path(&["issuer"])));
        self.names(entry, found);
        let (policy_name, rules_of) = found.keep(self.policy(entry, policies))?;
        let (mut policy, rules) = merge(&rules_of, entry);
        let publishable = facts.as_ref().is_some_and(|facts| facts.publishable);
        policy.unscheduled = publishable && entry.policy.is_none();
        let secret = Secret {
            name,
            owner: entry.owner.clone().filter(|owner| !owner.trim().is_empty()),
            policy_name,
            policy,
            rules,
            issuer: entry.issuer.clone(),
            strategy: match entry.strategy {
                Some(strategy) => strategy.into(),
                None if facts.as_ref().is_some_and(|facts| facts.takes_turns) => {
                    Strategy::Alternate
                }
                None if facts.as_ref().is_some_and(|facts| facts.lease.is_some()) => {
                    Strategy::Lease
                }
                None => Strategy::Overlap,
            },
            deliveries: deliveries(entry),
            readers: match &entry.read_by {
                ReadBy::Workloads(names) => names.clone(),
                ReadBy::Nobody => Vec::new(),
            },
            because: entry.because.clone().filter(|because| !because.trim().is_empty()),
            after: entry.after.clone(),
            deny_list: entry.deny_list.clone(),
        };
        found.keep(self.named_as_required(&secret, &rules_of));
        found.keep(self.arranged(&secret));
        if let Some(facts) = &facts {
            found.keep(self.suits(&secret, facts));
            found.keep(self.named_login(&secret, facts));
            found.keep(self.lists_both_logins(&secret, facts));
            found.keep(self.lists_tokens(&secret, facts));
        }
        found.keep(self.brown_out(&secret));
        found.keep(self.cryptoperiod(&secret));
        if found.count() == before {
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
            Strategy::Keyring { .. } | Strategy::Append | Strategy::Cutover
                if facts.lease.is_none() =>
            {
                Ok(())
            }
            strategy if facts.lease.is_some() && strategy != Strategy::Lease => Err(problem(
                code::UNSUITABLE,
                "has an issuer whose versions end by themselves, which leaves no soak",
            )
            .hint("leave `strategy` out: such a secret is leased")),
            Strategy::Lease if facts.lease.is_none() => Err(problem(
                code::UNSUITABLE,
                "is leased, and what its issuer makes does not end by itself",
            )
            .hint("leave `strategy` out")),
            Strategy::Alternate if !facts.takes_turns => Err(problem(
                code::UNSUITABLE,
                "alternates, and its issuer has no two logins that take turns",
            )
            .hint("leave `strategy` out, or give the issuer a second login")),
            Strategy::Overlap if facts.takes_turns => Err(problem(
                code::UNSUITABLE,
                "overlaps, and its issuer has two logins that take turns",
            )
            .hint("leave `strategy` out: such a secret alternates")),
            _ if signs && !planted!("sessions_end_unasked") => Err(problem(
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

    /// Checks that whatever has a list of refused tokens signs tokens, and says how long they live.
    fn lists_tokens(&self, secret: &Secret, facts: &IssuerFacts) -> Result<(), Problem> {
        let Some(deny_list) = &secret.deny_list else { return Ok(()) };
        let path = self.path(&["deny_list"]);
        let has_end = matches!(secret.strategy, Strategy::Keyring { .. });
        if facts.authority != Authority::Workload || !has_end {
            let message = format!(
                "`secrets.{}` has a deny list, and does not say how long a token of it lives",
                self.shown()
            );
            let problem = self.problem(code::UNSUITABLE, &["deny_list"], message);
            return Err(problem.hint(
                "a deny list goes with `issuer: { jwt_secret: … }` and `strategy: { keyring: { longest_token: … } }`",
            ));
        }
        let built = deny_list.build(self.scope.context);
        built.map(drop).map_err(|refusal| self.scope.refused(refusal, &path))
    }

    /// Checks that readers of a login that takes turns are told its name: it changes with the password.
    fn named_login(&self, secret: &Secret, facts: &IssuerFacts) -> Result<(), Problem> {
        for delivery in secret.deliveries.iter().filter(|_| facts.takes_turns) {
            let fields: Vec<Field> =
                delivery.slots.iter().flat_map(|slot| slot.part.fields()).collect();
            let gives = |name: &str| fields.contains(&Field::new(name));
            if !gives("username") && !self.answers_logins(&delivery.store) {
                let message = format!(
                    "`secrets.{}.stores.{}` delivers a password without the user name, and the logins take turns",
                    self.shown(),
                    shown(&delivery.store)
                );
                let problem = self.problem(code::UNSUITABLE, &["stores", &delivery.store], message);
                return Err(problem.hint("add a slot for it, as in `PGUSER: username`"));
            }
        }
        Ok(())
    }

    /// Checks that a list of logins has a slot for each of two that take turns: both are let in while readers move, and what
    /// stands in the row of one of them is never the other's password (H72).
    fn lists_both_logins(&self, secret: &Secret, facts: &IssuerFacts) -> Result<(), Problem> {
        let lists =
            |delivery: &&Delivery| facts.takes_turns && self.answers_logins(&delivery.store);
        for delivery in secret.deliveries.iter().filter(lists) {
            let logins = delivery.slots.iter().filter_map(|slot| match &slot.part {
                Part::PasswordOf(login) => Some(login.as_str()),
                _ => None,
            });
            let logins: BTreeSet<&str> = logins.collect();
            if logins.len() != 2 || delivery.slots.len() != 2 {
                let message = format!(
                    "`secrets.{}.stores.{}` lists logins, and needs one slot for each of the two that take turns",
                    self.shown(),
                    shown(&delivery.store)
                );
                let problem = self.problem(code::UNSUITABLE, &["stores", &delivery.store], message);
                return Err(problem.hint(
                    "name both, as in `{ app_a: { password_of: app_a }, app_b: { password_of: app_b } }`",
                ));
            }
        }
        Ok(())
    }

    /// Checks that a store does not get a user name alone: the password that goes with it must reach the readers too.
    fn fields(&self, delivery: &Delivery) -> Result<(), Problem> {
        let username = |slot: &Slot| slot.part.fields() == [Field::new("username")];
        if delivery.slots.iter().all(username) {
            let message = format!(
                "`secrets.{}.stores.{}` delivers a user name and no password",
                self.shown(),
                shown(&delivery.store)
            );
            return Err(self.problem(code::UNSUITABLE, &["stores", &delivery.store], message));
        }
        let listed = |slot: &Slot| matches!(slot.part, Part::PasswordOf(_));
        if delivery.slots.iter().any(listed) && !self.answers_logins(&delivery.store) {
            let message = format!(
                "`secrets.{}.stores.{}` has a slot `password_of` a login, and lists no logins",
                self.shown(),
                shown(&delivery.store)
            );
            return Err(self.problem(code::UNSUITABLE, &["stores", &delivery.store], message));
        }
        Ok(())
    }

    /// Returns whether readers log in at a store, instead of reading it.
    fn answers_logins(&self, store: &str) -> bool {
        let store = self.environment.store(store);
        let built = store.and_then(|store| store.config.build(self.scope.context).ok());
        built.is_some_and(|store| store.facts().answers_logins)
    }

    fn brown_out(&self, secret: &Secret) -> Result<(), Problem> {
        let soak = secret.policy.soak;
        let Some(brownout) = secret.policy.brownout.filter(|brownout| *brownout > soak) else {
            return Ok(());
        };
        let message = format!(
            "`secrets.{}`: a brown-out of {brownout} does not fit into a soak of {soak}",
            self.shown()
        );
        Err(Problem::new(code::UNSUITABLE, message)
            .at(self.of_policy(secret, &["soak", "brownout"])))
    }

    /// Where a key of a secret's policy stands; where the secret names it, if no file has it.
    fn of_policy(&self, secret: &Secret, key: &[&str]) -> Place {
        let path: Vec<&str> = match &secret.policy_name {
            Some(name) => ["policies", name].iter().chain(key).copied().collect(),
            None => self.path(&["policy"]),
        };
        self.scope.tree.place_of(&path)
    }

    fn cryptoperiod(&self, secret: &Secret) -> Result<(), Problem> {
        let policy = &secret.policy;
        let needed = policy.soak + policy.rollback + secret.longest_move();
        if policy.cryptoperiod >= needed || secret.rules.close_window || policy.unscheduled {
            return Ok(());
        }
        let message = format!(
            "`secrets.{}`: a cryptoperiod of {} is shorter than soak, rollback window and the longest move together ({needed})",
            self.shown(),
            policy.cryptoperiod
        );
        let problem =
            Problem::new(code::CRYPTOPERIOD, message).at(self.of_policy(secret, &["cryptoperiod"]));
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
            let reads = |delivery: &Delivery| {
                reader.reads(&delivery.store) && !self.answers_logins(&delivery.store)
            };
            if !secret.deliveries.iter().any(reads) {
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
            if self.answers_logins(&delivery.store) {
                continue;
            }
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
    let soak = entry.soak.unwrap_or_default();
    let span = |given: Option<Duration>, otherwise: Span| given.map_or(otherwise, |d| d.span());
    let policy = Policy {
        cryptoperiod: span(entry.cryptoperiod, built_in.cryptoperiod),
        soak: span(soak.lasts, built_in.soak),
        brownout: soak.brownout.map(Duration::span).filter(|length| !length.is_zero()),
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
        notify: false,
        unscheduled: false,
    };
    let rules = Rules {
        remind: span(entry.remind, Span::days(30)),
        needs_reason: entry.require.contains(&Requirement::Reason),
        close_window: entry.next == Some(Next::CloseWindow),
    };
    (policy, rules)
}

/// One claim to a slot.
#[derive(Clone, Copy)]
struct Claim<'a> {
    environment: &'a Environment,
    secret: &'a Secret,
    store: &'a str,
    address: &'a str,
}

impl Claim<'_> {
    fn place(&self) -> Place {
        let path = ["secrets", self.secret.name.name(), "stores", self.store, self.address];
        self.environment.tree.place_of(&path)
    }

    fn owner(&self) -> String {
        format!("{}@{}", shown(self.secret.name.name()), shown(self.secret.name.environment()))
    }
}

/// Refuses a slot that has two owners, in this environment or across environments (H61).
pub(super) fn claims<'e>(environments: &'e [Environment], context: &Context, found: &mut Found) {
    let mut first: BTreeMap<(String, &str), Claim<'e>> = BTreeMap::new();
    for environment in environments {
        let container = |store: &'e Store| {
            Some((store.name.as_str(), store.config.build(context).ok()?.container()))
        };
        let containers: BTreeMap<&str, String> =
            environment.stores.iter().filter_map(container).collect();
        for secret in &environment.secrets {
            for delivery in &secret.deliveries {
                let Some(container) = containers.get(delivery.store.as_str()) else { continue };
                for slot in &delivery.slots {
                    let claim = Claim {
                        environment,
                        secret,
                        store: &delivery.store,
                        address: &slot.address,
                    };
                    match first.entry((container.clone(), &slot.address)) {
                        Entry::Vacant(free) => drop(free.insert(claim)),
                        Entry::Occupied(_) if planted!("slot_owned_twice") => {}
                        Entry::Occupied(taken) => found.add(claimed(&claim, taken.get())),
                    }
                }
            }
        }
    }
}

fn claimed(claim: &Claim<'_>, first: &Claim<'_>) -> Problem {
    let message = if claim.secret.name == first.secret.name {
        format!("`{}` claims one slot twice", claim.owner())
    } else {
        format!("`{}` claims a slot that `{}` owns", claim.owner(), first.owner())
    };
    let problem = Problem::new(code::SLOT_CLAIMED, message).at(claim.place());
    problem
        .hint(format!("the first claim is at line {}; each slot has one owner", first.place().line))
}
