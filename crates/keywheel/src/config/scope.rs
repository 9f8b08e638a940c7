//! One environment of the file: its names looked up, its drivers built.
//!
//! Building a driver asks nobody and reads no reference; so what a driver refuses in its own settings is found here, with its
//! line.

use keywheel_core::facts::IssuerFacts;
use keywheel_driver::Refusal;
use keywheel_drivers::{Build, Context, IssuerConfig, StoreConfig};

use super::file::{After, EnvironmentEntry, File, Named, WorkloadEntry};
use super::lend::lend;
use super::problem::{Place, Problem};
use super::resolve::{Environment, Store, Workload};
use super::rules::SecretScope;
use super::suggest::{nearest, shown};
use super::tree::{Node, Value};
use super::typed::without_values;
use crate::code;

/// The problems found so far. The same one is found in each environment; it is kept once.
#[derive(Default)]
pub(super) struct Found(Vec<Problem>);

impl Found {
    /// Adds a problem.
    pub(super) fn add(&mut self, problem: Problem) {
        if !self.0.contains(&problem) {
            self.0.push(problem);
        }
    }

    /// Adds the problem of a result, and returns what there is without one.
    pub(super) fn keep<T>(&mut self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.add(problem)).ok()
    }

    /// Returns how many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns a value where nothing was found.
    pub(super) fn into_result<T>(mut self, value: T) -> Result<T, Vec<Problem>> {
        self.0.sort_by_key(|problem| problem.place);
        if self.0.is_empty() { Ok(value) } else { Err(self.0) }
    }
}

/// What one environment's part of the file is checked against.
pub(super) struct Scope<'a> {
    /// The file as the environment sees it.
    pub(super) tree: Node,
    /// Its name.
    pub(super) name: &'a str,
    /// The names of all environments.
    pub(super) declared: &'a [&'a str],
    /// What drivers are built with.
    pub(super) context: &'a Context,
}

impl Scope<'_> {
    /// Resolves and checks the environment.
    pub(super) fn environment(self, file: File, found: &mut Found) -> Option<Environment> {
        if file.environments.is_some() && file.cluster.is_some() {
            found.add(self.both("cluster"));
        }
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
        if found.count() == 0 {
            lend(&self, &mut environment, found);
        }
        Some(environment)
    }

    fn entry(
        &self,
        environments: Option<Named<EnvironmentEntry>>,
        stores: Option<Named<StoreConfig>>,
        workloads: Option<Named<WorkloadEntry>>,
    ) -> Result<EnvironmentEntry, Problem> {
        match environments {
            Some(_) if stores.is_some() => Err(self.both("stores")),
            Some(_) if workloads.is_some() => Err(self.both("workloads")),
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
            None => Ok(EnvironmentEntry {
                stores: stores.unwrap_or_default(),
                workloads: workloads.unwrap_or_default(),
                ..Default::default()
            }),
        }
    }

    /// Says that what belongs into an environment stands beside them.
    fn both(&self, key: &str) -> Problem {
        let message = format!("`{key}` stands beside `environments`");
        let problem = Problem::new(code::TWO_FORMS, message).at(self.tree.place_of(&[key]));
        problem.hint(format!("move it into the environments, as `environments.NAME.{key}`"))
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

    /// Checks that the environment which goes first is another one that is declared.
    pub(super) fn goes_first(&self, after: &After, path: &[&str]) -> Result<(), Problem> {
        let others = self.declared.iter().copied().filter(|name| *name != self.name);
        if after.environment == self.name {
            let message = format!("`{}` names its own environment", shown_path(path));
            return Err(Problem::new(code::UNKNOWN_NAME, message).at(self.tree.place_of(path)));
        }
        self.known("environment", &after.environment, others, path)
    }

    /// Checks that a driver takes its settings.
    pub(super) fn builds<B: Build>(&self, config: &B, path: &[&str]) -> Result<(), Problem> {
        config.build(self.context).map(drop).map_err(|refusal| self.refused(refusal, path))
    }

    /// Checks that an issuer takes its settings, and returns what it can do.
    pub(super) fn issuer(
        &self,
        config: &IssuerConfig,
        path: &[&str],
    ) -> Result<IssuerFacts, Problem> {
        let driver = config.build(self.context).map_err(|refusal| self.refused(refusal, path))?;
        Ok(driver.facts())
    }

    /// Says that a driver refuses its settings.
    pub(super) fn refused(&self, refusal: Refusal, path: &[&str]) -> Problem {
        let node = self.tree.at(path).unwrap_or(&self.tree);
        let why = without_values(refusal.message, node)
            .unwrap_or_else(|| "its settings are refused".into());
        let problem = Problem::new(code::DRIVER_REFUSED, format!("`{}`: {why}", shown_path(path)));
        problem.at(self.tree.place_of(path))
    }

    /// Checks that a name is declared; the name itself is a value of the file and is not repeated.
    pub(super) fn known<'n>(
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
