//! From what is given Secrets in a cluster, or in its manifests, to a proposal: a store for each Secret, a workload for each object that
//! can be rolled, and a secret for each key whose name says what it holds.
//!
//! Values are not looked at, so that names are all there is to go by; what they leave open is left to people in remarks.

use std::collections::{BTreeMap, BTreeSet};

use keywheel_core::plan::Role;
use keywheel_drivers::kubernetes::is_name;
use keywheel_drivers::workload::kubernetes::inventory::{External, Inventory, Runner};

use super::credential::{self, Kind};
use super::known::Known;
use super::propose::{
    Environment, Held, Listed, Part, Pods, Proposal, Road, Runs, Secret, Store, Workload, free,
    slug,
};
use super::survey::{Credential, Reader, Spot, Survey};
use super::text::{self, scalar};
use super::{Warning, plain};
use crate::config::suggest::{reads_like_a_name, shown};

/// Names of keys that tell nothing without that of their Secret.
const BARE: [&str; 8] = ["key", "value", "password", "token", "secret", "content", "data", "pass"];

/// What is looked at.
pub(crate) struct Scene<'a> {
    /// What was found.
    pub(crate) inventory: &'a Inventory,
    /// Whether it runs, rather than stands in manifests.
    pub(crate) live: bool,
    /// The namespace of what names none.
    pub(crate) namespace: &'a str,
    /// What the configuration says already.
    pub(crate) known: Option<&'a Known>,
    /// The environment that is written, and whether it needs no name.
    pub(crate) environment: (&'a str, bool),
    /// The name of the project.
    pub(crate) project: String,
    /// The cluster, as it is written where the environment names none.
    pub(crate) cluster: Vec<String>,
}

/// Arranges what was found and is not in the file yet.
pub(crate) fn propose(scene: &Scene<'_>, mut warnings: Vec<Warning>) -> (Survey, Proposal) {
    let (name, single) = scene.environment;
    let mut environments: Vec<Environment> =
        scene.known.map(Known::environments).unwrap_or_default();
    let home = match environments.iter().position(|one| one.name == name) {
        Some(home) => home,
        None => {
            environments.push(Environment::new(name));
            environments.len() - 1
        }
    };
    literals(scene, &mut warnings);
    let mut draft = Draft {
        scene,
        warnings,
        home,
        environments,
        secrets: Vec::new(),
        listed: Vec::new(),
        found: Vec::new(),
    };
    for (place, one) in &held(scene) {
        draft.one_secret(place, one);
    }
    let Draft { mut warnings, environments, secrets, listed, found, .. } = draft;
    warnings.sort();
    warnings.dedup();
    let has_cluster = scene.known.is_some_and(|known| known.cluster(name).is_some());
    let cluster =
        (!has_cluster && !scene.cluster.is_empty()).then(|| (home, scene.cluster.clone()));
    let survey = Survey { projects: Vec::new(), credentials: found, any_file: true, warnings };
    let project = scene.project.clone();
    let mut proposal = Proposal { project, single, environments, cluster, secrets, listed };
    if let Some(known) = scene.known {
        let is_there = proposal.secrets.iter().map(|secret| {
            let (name, stores) = text::name_and_stores(secret, &proposal);
            !secret.stands() && known.comments_out(&name, &stores)
        });
        let is_there: Vec<_> = is_there.collect();
        proposal.secrets.iter_mut().zip(is_there).for_each(|(secret, is)| secret.is_there = is);
    }
    (survey, proposal)
}

/// Namespace and name of a Secret.
type Place = (String, String);

/// Who is given a Secret, which keys, where none stands for all, and in which variable.
type ToRunner<'a> = (&'a Runner, Option<&'a [String]>, Option<&'a str>);

/// What is known of a Secret.
#[derive(Default)]
struct OneSecret<'a> {
    keys: BTreeSet<&'a str>,
    /// Who is given it.
    given: Vec<ToRunner<'a>>,
    external: Option<&'a External>,
    /// That an operator brings it, of which nothing more was seen.
    brought: Option<String>,
    obstacles: Vec<String>,
    /// What stands in the way of some of its keys.
    of_keys: BTreeMap<String, Vec<String>>,
    is_immutable: bool,
    /// Whether it was seen itself, so that all of its keys are known.
    was_seen: bool,
}

impl<'a> OneSecret<'a> {
    /// Returns who is given a key, each once.
    fn readers(&self, key: &str) -> Vec<&'a Runner> {
        let gives =
            |keys: &Option<&[String]>| keys.is_none_or(|keys| keys.iter().any(|it| it == key));
        let mut readers: Vec<&Runner> = Vec::new();
        for (runner, keys, _) in &self.given {
            if gives(keys) && !readers.iter().any(|other| is_same(other, runner)) {
                readers.push(runner);
            }
        }
        readers
    }

    /// Returns the variables that hold a key.
    fn variables(&self, key: &str) -> BTreeSet<&'a str> {
        let named =
            |keys: &Option<&[String]>| keys.is_some_and(|keys| keys.iter().any(|it| it == key));
        self.given
            .iter()
            .filter(|(_, keys, _)| named(keys))
            .filter_map(|(.., name)| *name)
            .collect()
    }

    /// Returns what a key holds by its name, or by that of the variables that hold it: first by the one that says more.
    fn kind(&self, key: &str) -> Option<Kind> {
        let told: BTreeSet<&str> = self.variables(key);
        let mut told = told.into_iter().map(credential::recognise_unseen);
        let first = told.next().flatten();
        let by_variables = first.filter(|_| told.all(|other| other == first));
        let by_key = credential::recognise_unseen(key);
        match is_bare(key) {
            true => by_variables.or(by_key),
            false => by_key.or(by_variables),
        }
    }
}

/// Whether the name of a key tells nothing without that of its Secret.
fn is_bare(key: &str) -> bool {
    BARE.contains(&slug(&key.to_ascii_lowercase()).as_str())
}

fn is_same(one: &Runner, other: &Runner) -> bool {
    (&one.kind, &one.namespace, &one.name) == (&other.kind, &other.namespace, &other.name)
}

/// Gathers what is known of each Secret.
fn held<'a>(scene: &Scene<'a>) -> BTreeMap<Place, OneSecret<'a>> {
    let within =
        |namespace: &Option<String>| namespace.clone().unwrap_or_else(|| scene.namespace.into());
    let versions = scene.inventory.secrets.iter().filter_map(|secret| {
        let place = (within(&secret.namespace), secret.name.clone());
        Some((place, secret.version_of.clone()?))
    });
    let versions: BTreeMap<Place, String> = versions.collect();
    // What keywheel made is a version of the Secret that is configured.
    let place = |namespace: &Option<String>, name: &str| {
        let own = (within(namespace), name.to_owned());
        match versions.get(&own) {
            Some(base) => (own.0, base.clone()),
            None => own,
        }
    };
    let mut secrets: BTreeMap<Place, OneSecret<'_>> = BTreeMap::new();
    for runner in &scene.inventory.runners {
        for given in &runner.given {
            let place = place(&runner.namespace, &given.secret);
            let one = secrets.entry(place).or_default();
            one.keys.extend(given.keys.iter().flatten().map(String::as_str));
            one.given.push((runner, given.keys.as_deref(), given.variable.as_deref()));
        }
    }
    for secret in &scene.inventory.secrets {
        let place = place(&secret.namespace, &secret.name);
        let one = secrets.entry(place).or_default();
        one.keys.extend(secret.keys.iter().map(String::as_str));
        one.obstacles.extend(secret.obstacles.iter().cloned());
        one.brought.clone_from(&secret.brought);
        for (key, why) in &secret.of_keys {
            one.of_keys.entry(key.clone()).or_default().extend(why.iter().cloned());
        }
        one.is_immutable |= secret.is_immutable;
        one.was_seen = true;
        if secret.stands_in_manifest {
            one.obstacles.push(in_git(&secret.name));
        }
    }
    for external in &scene.inventory.externals {
        let place = (within(&external.namespace), external.target.clone());
        let one = secrets.entry(place).or_default();
        one.keys.extend(external.keys.iter().map(String::as_str));
        one.external = Some(external);
        // It is written where the operator reads.
        one.brought = None;
    }
    for one in secrets.values_mut() {
        one.obstacles.extend(one.brought.take());
    }
    secrets
}

fn in_git(name: &str) -> String {
    format!(
        "Secret `{}` stands in the manifests with its values, and whatever deploys them would bring the old value back: a value that is rotated cannot stand in Git; take the Secret out and make it with `kubectl create secret generic`, or let the External Secrets Operator bring it",
        plain(name)
    )
}

/// Warns of credentials that stand in a pod's template.
fn literals(scene: &Scene<'_>, warnings: &mut Vec<Warning>) {
    for runner in &scene.inventory.runners {
        for (name, value) in &runner.literals {
            let is_placeholder = value.expose().is_empty() || value.expose().starts_with(b"$(");
            let kind = credential::recognise(name, Some(value)).filter(|_| !is_placeholder);
            let Some(kind) = kind.filter(|kind| !matches!(kind, Kind::Public(_))) else { continue };
            warnings.push(Warning {
                file: None,
                line: None,
                message: format!(
                    "{} sets `{}` to a value: {}, for everybody who may read it; put it into a Secret",
                    runner.words(),
                    shown(name),
                    kind.words()
                ),
            });
        }
    }
}

struct Draft<'a> {
    scene: &'a Scene<'a>,
    warnings: Vec<Warning>,
    home: usize,
    environments: Vec<Environment>,
    secrets: Vec<Secret>,
    listed: Vec<Listed>,
    found: Vec<Credential>,
}

impl<'a> Draft<'a> {
    fn warn(&mut self, message: String) {
        self.warnings.push(Warning { file: None, line: None, message });
    }

    fn one_secret(&mut self, place: &Place, one: &OneSecret<'a>) {
        let (namespace, name) = place;
        if !is_name(namespace) || !is_name(name) {
            return self.warn(format!(
                "a Secret has a name that none can have (`{}`), and is left out",
                shown(name)
            ));
        }
        self.obstacles_told(one);
        self.unknown_keys(place, one);
        let keys: Vec<&str> = one.keys.iter().copied().collect();
        for key in keys {
            if !reads_like_a_name(key) && one.kind(key).is_none() && !key.contains('.') {
                self.warn(format!(
                    "a key of Secret `{namespace}/{name}` has a name that does not read like one, and is left out"
                ));
                continue;
            }
            self.one_key(place, one, key);
        }
    }

    /// Says once what stands in the way of a whole Secret.
    fn obstacles_told(&mut self, one: &OneSecret<'a>) {
        for why in &one.obstacles {
            self.warn(why.clone());
        }
    }

    /// Says where all keys are given and nothing says which there are.
    fn unknown_keys(&mut self, (namespace, name): &Place, one: &OneSecret<'a>) {
        let whole: BTreeSet<String> = one
            .given
            .iter()
            .filter(|(_, keys, _)| keys.is_none())
            .map(|(runner, ..)| runner.words())
            .collect();
        if !whole.is_empty() && !one.was_seen && one.external.is_none() {
            let whole: Vec<_> = whole.into_iter().collect();
            self.warn(format!(
                "Secret `{namespace}/{name}` was not seen, and {} is given all of its keys: add those that are missing by hand",
                whole.join(", ")
            ));
        }
    }

    fn one_key(&mut self, place: &Place, one: &OneSecret<'a>, key: &str) {
        let spot = Spot::in_secret(&place.0, &place.1, key);
        let (environment, _) = self.scene.environment;
        let kind = one.kind(key).unwrap_or(Kind::Unnamed);
        let readers = one.readers(key);
        let is_known = self.scene.known.is_some_and(|known| known.mentions_in(environment, &spot));
        let first = self.beside(one, key);
        self.found.push(Credential {
            spot: spot.clone(),
            line: 0,
            kind,
            value: None,
            accepted_beside: first.map(Into::into),
            readers: readers
                .iter()
                .map(|runner| Reader { project: 0, service: runner.words(), variable: None })
                .collect(),
            obstacle: None,
        });
        if is_known || first.is_some() {
            return;
        }
        if kind.issuer().is_none() {
            return self.listed.push(Listed { spot, kind, home: Some(self.home) });
        }
        self.propose_key(place, one, key, kind, &readers);
    }

    /// Returns the signing secret beside which a key holds the second one.
    fn beside<'k>(&self, one: &OneSecret<'k>, key: &str) -> Option<&'k str> {
        let upper = credential::as_variable(key);
        let first = credential::accepted_beside(&upper)
            .filter(|name| credential::names_signing_secret(name))?;
        one.keys.iter().copied().find(|other| credential::as_variable(other) == first)
    }

    fn propose_key(
        &mut self,
        place: &Place,
        one: &OneSecret<'a>,
        key: &str,
        kind: Kind,
        readers: &[&'a Runner],
    ) {
        let (store, is_open) = self.store(place, one);
        let mut slots = vec![(key.to_owned(), Role::Current)];
        let second = one.keys.iter().copied().find(|other| self.beside(one, other) == Some(key));
        let covers = |second: &&str| {
            let others = one.readers(second);
            readers.iter().all(|reader| others.iter().any(|other| is_same(other, reader)))
        };
        if let Some(second) = second.filter(covers) {
            slots.push((second.to_owned(), Role::AlsoAccepted));
        }
        let road = match kind {
            Kind::Jwt if slots.len() > 1 => Road::Keyring,
            Kind::Jwt => Road::Cutover,
            _ => Road::Overlap,
        };
        let of_key = one.of_keys.get(key).into_iter().flatten();
        let mut obstacles: BTreeSet<String> = one.obstacles.iter().chain(of_key).cloned().collect();
        let mut notes = Vec::new();
        let mut names = BTreeSet::new();
        for runner in readers {
            match (runner.setting, runner.comes_round) {
                (Some(setting), _) => {
                    names.insert(self.workload(
                        &place.0,
                        runner,
                        setting,
                        (!is_open).then_some(&store),
                    ));
                }
                (None, true) if one.is_immutable => {
                    obstacles.insert(format!(
                        "{} reads it too, and each of its runs goes on with the version that it names",
                        runner.words()
                    ));
                }
                (None, true) => {
                    notes.push(format!("{} reads it anew at its next run.", runner.words()))
                }
                (None, false) if runner.kind == "Job" && !self.scene.live => {
                    notes.push(format!("{} reads it too, when it runs.", runner.words()));
                }
                (None, false) => {
                    obstacles
                        .insert(format!("{} reads it too, and cannot be rolled", runner.words()));
                }
            }
        }
        if is_open {
            obstacles.insert(format!("store `{store}` does not say yet where the operator reads"));
        }
        if names.is_empty() {
            obstacles
                .insert("no Deployment, StatefulSet or DaemonSet was found that reads it".into());
        }
        let spot = Spot::in_secret(&place.0, &place.1, key);
        let (environment, _) = self.scene.environment;
        if self.scene.known.is_some_and(|known| known.covers(environment, &spot)) {
            return;
        }
        let spots = slots.iter().map(|(key, _)| Spot::in_secret(&place.0, &place.1, key));
        let part =
            Part { spots: spots.collect(), stores: vec![(store.clone(), slots)], readers: names };
        let name = self.secret_name(place, one, key, &store);
        let obstacles = obstacles.into_iter().collect();
        let parts = BTreeMap::from([(self.home, part)]);
        let is_there = false;
        self.secrets.push(Secret { name, kind, road, obstacles, is_there, notes, parts });
    }

    /// Names a secret after its key, and after variable or Secret where that says too little.
    fn secret_name(&self, place: &Place, one: &OneSecret<'_>, key: &str, store: &str) -> String {
        let words = |text: &str| slug(&text.to_ascii_lowercase().replace('_', "-"));
        let own = words(key);
        let by_variable = one.variables(key).first().map(|name| words(name));
        let by_secret = slug(&format!("{}-{own}", place.1));
        let first =
            if is_bare(key) { by_variable.unwrap_or_else(|| by_secret.clone()) } else { own };
        let (environment, _) = self.scene.environment;
        let names = [
            first.clone(),
            slug(&format!("{first}-{store}")),
            slug(&format!("{first}-{environment}")),
        ];
        let known = self.scene.known.map(|known| known.secrets.as_slice()).unwrap_or_default();
        let taken = |name: &str| {
            known.iter().any(|it| it == name) || self.secrets.iter().any(|it| it.name == name)
        };
        free(&names, taken)
    }

    /// Returns the name of the store of a Secret, and whether something of it is still to be said.
    fn store(&mut self, place: &Place, one: &OneSecret<'_>) -> (String, bool) {
        let (namespace, name) = place;
        let file = format!("{namespace}/{name}");
        let stores = &self.environments[self.home].stores;
        if let Some(store) = stores.iter().find(|store| store.is_secret() && store.file == file) {
            return (store.name.clone(), matches!(store.held, Held::Secret { is_open: true, .. }));
        }
        let taken = |name: &str| stores.iter().any(|store| store.name == name);
        let store = free(&[slug(name), slug(&format!("{namespace}-{name}"))], taken);
        let held = match one.external {
            Some(external) => self.external(place, external),
            None => secret_settings(place, one),
        };
        let is_open = matches!(held, Held::Secret { is_open: true, .. });
        let new = Store { name: store.clone(), known: false, file, held };
        self.environments[self.home].stores.push(new);
        (store, is_open)
    }

    fn external(&self, (namespace, target): &Place, external: &External) -> Held {
        let upstream = self.upstream(external);
        let named = match *target == external.name {
            true => format!("namespace: {}, name: {}", scalar(namespace), scalar(&external.name)),
            false => format!(
                "namespace: {}, name: {}, target: {}",
                scalar(namespace),
                scalar(&external.name),
                scalar(target)
            ),
        };
        let (written, remarks) = match &upstream {
            Ok(upstream) => {
                let remark = "The operator makes it from here. Name how keywheel logs in there: what the operator may read, keywheel writes.";
                (upstream.as_str(), vec![remark.to_owned()])
            }
            Err(why) => ("{ … }", vec![format!("{why}; say as `upstream` which store that is:")]),
        };
        let settings = format!("{{ external_secret: {{ {named}, upstream: {written} }} }}");
        Held::Secret { settings, remarks, is_open: upstream.is_err() }
    }

    /// Returns the store in which the operator reads, as it is written, or why that is not known.
    fn upstream(&self, external: &External) -> Result<String, String> {
        let (kind, name) = &external.provider;
        let mut providers = self.scene.inventory.providers.iter();
        let is = |one: &&keywheel_drivers::workload::kubernetes::inventory::Provider| {
            let is_near = one.kind == "ClusterSecretStore" || one.namespace == external.namespace;
            one.kind == *kind && one.name == *name && is_near
        };
        let unknown = || format!("ExternalSecret `{}` reads by {kind} `{name}`", external.name);
        let provider = providers.find(is).ok_or_else(unknown)?;
        let server = provider.vault.as_deref().ok_or_else(unknown)?;
        let mut remotes = external.remotes.iter();
        let (Some(remote), None) = (remotes.next(), remotes.next()) else {
            return Err(format!(
                "ExternalSecret `{}` reads more than one secret, and a store is one",
                external.name
            ));
        };
        let (mount, path) = match &provider.mount {
            Some(mount) => (mount.as_str(), remote.as_str()),
            None => remote.split_once('/').ok_or_else(unknown)?,
        };
        let path = path.strip_prefix("data/").unwrap_or(path);
        Ok(format!(
            "{{ vault_kv: {{ address: {}, auth: {{ token: {{ env: VAULT_TOKEN }} }}, mount: {}, path: {} }} }}",
            scalar(server),
            scalar(mount),
            scalar(path)
        ))
    }

    /// Returns the name of the workload of something that is rolled, which reads a store.
    fn workload(
        &mut self,
        namespace: &str,
        runner: &Runner,
        setting: &str,
        store: Option<&String>,
    ) -> String {
        let id = format!("{namespace}/{setting}/{}", runner.name);
        let environment = &mut self.environments[self.home];
        let is = |one: &Workload| matches!(&one.runs, Runs::Pods(pods) if pods.id == id);
        let at = environment.workloads.iter().position(is);
        let at = at.unwrap_or_else(|| {
            let taken = |name: &str| environment.workloads.iter().any(|one| one.name == name);
            let names = [
                runner.name.clone(),
                format!("{}-{setting}", runner.name),
                format!("{namespace}-{}", runner.name),
            ];
            let name = free(&names.map(|name| slug(&name.replace('.', "-"))), taken);
            let settings = format!(
                "kubernetes: {{ namespace: {}, {setting}: {} }}",
                scalar(namespace),
                scalar(&runner.name)
            );
            let runs = Runs::Pods(Pods { id, settings, remarks: remarks(runner) });
            environment.workloads.push(Workload {
                name,
                known: false,
                runs,
                reads: BTreeSet::new(),
            });
            environment.workloads.len() - 1
        });
        let workload = &mut environment.workloads[at];
        workload.reads.extend(store.cloned());
        workload.name.clone()
    }
}

fn secret_settings((namespace, name): &Place, one: &OneSecret<'_>) -> Held {
    let named = format!("namespace: {}, name: {}", scalar(namespace), scalar(name));
    let (approach, remarks) = match one.is_immutable {
        true => (", approach: versioned", vec!["It is immutable: each write makes a new one, and the roll of a workload leads its references there.".to_owned()]),
        false => ("", Vec::new()),
    };
    let settings = format!("{{ kubernetes_secret: {{ {named}{approach} }} }}");
    Held::Secret { settings, remarks, is_open: false }
}

/// Says what people should know of a workload before it is rolled.
fn remarks(runner: &Runner) -> Vec<String> {
    let outage = runner.outage.iter().map(|why| {
        format!("Nothing serves for a while when it is rolled: {why}. Change that, or add `gap: true` here and `accept: [outage]` to its secrets.")
    });
    let obstacle =
        runner.obstacle.iter().map(|why| format!("Not as it is: {} {why}.", runner.words()));
    outage.chain(obstacle).chain(runner.notes.iter().map(|note| format!("{note}."))).collect()
}
