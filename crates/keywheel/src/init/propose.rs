//! From what was found to a proposal: stores, workloads and secrets with names, by environment.
//!
//! Variables that hold one value are one secret: the issuer would end it for all of them. A secret is proposed as it stands
//! only where its issuer is certain and something that keywheel can roll reads it.

use std::collections::{BTreeMap, BTreeSet};

use keywheel_core::plan::Role;

use super::compose::Project;
use super::credential::Kind;
use super::environment::{of_folder, of_path, of_word};
use super::known::Known;
use super::survey::{Credential, Spot, Survey};
use crate::config::resolve::DEFAULT_ENVIRONMENT;

/// What is proposed.
pub(crate) struct Proposal {
    /// The name of the project.
    pub(crate) project: String,
    /// Whether there is one environment, which needs no name.
    pub(crate) single: bool,
    /// The environments.
    pub(crate) environments: Vec<Environment>,
    /// The cluster of an environment that names none yet, as it is written, with remarks.
    pub(crate) cluster: Option<(usize, Vec<String>)>,
    /// The secrets.
    pub(crate) secrets: Vec<Secret>,
    /// What was found and cannot be a secret of the configuration.
    pub(crate) listed: Vec<Listed>,
}

/// An environment.
pub(crate) struct Environment {
    /// Its name.
    pub(crate) name: String,
    /// Whether it is in the file already.
    pub(crate) known: bool,
    /// Its stores.
    pub(crate) stores: Vec<Store>,
    /// Its workloads.
    pub(crate) workloads: Vec<Workload>,
}

impl Environment {
    /// An environment that is not in the file yet.
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.into(), known: false, stores: Vec::new(), workloads: Vec::new() }
    }
}

/// A store.
pub(crate) struct Store {
    /// Its name.
    pub(crate) name: String,
    /// Whether it is in the file already.
    pub(crate) known: bool,
    /// The file, or namespace and name of the Secret.
    pub(crate) file: String,
    /// What it is.
    pub(crate) held: Held,
}

/// What a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// A file of variables.
    Variables,
    /// A file that is one value.
    Whole,
    /// A Secret of a cluster.
    Secret {
        /// The driver and its settings as they are written.
        settings: String,
        /// Remarks on them.
        remarks: Vec<String>,
        /// Whether people must add to them first.
        is_open: bool,
    },
}

impl Store {
    /// Whether it is a Secret of a cluster.
    pub(crate) fn is_secret(&self) -> bool {
        matches!(self.held, Held::Secret { .. })
    }
}

/// A workload.
pub(crate) struct Workload {
    /// Its name.
    pub(crate) name: String,
    /// Whether it is in the file already.
    pub(crate) known: bool,
    /// What runs.
    pub(crate) runs: Runs,
    /// The stores that it reads.
    pub(crate) reads: BTreeSet<String>,
}

/// What a workload is.
pub(crate) enum Runs {
    /// A Compose service.
    Service(Service),
    /// Pods of a cluster.
    Pods(Pods),
    /// Something that is in the file already.
    Known,
}

/// Pods of a cluster.
pub(crate) struct Pods {
    /// Namespace, kind and name of what makes them.
    pub(crate) id: String,
    /// The driver and its settings as they are written.
    pub(crate) settings: String,
    /// Remarks on them.
    pub(crate) remarks: Vec<String>,
}

/// A Compose service.
pub(crate) struct Service {
    /// The Compose file.
    pub(crate) file: String,
    /// The files that Compose merges into it.
    pub(crate) overs: Vec<String>,
    /// The project's name, where Compose does not find it by itself.
    pub(crate) project: Option<String>,
    /// The service.
    pub(crate) service: String,
    /// How many containers it has, where that is not one.
    pub(crate) replicas: Option<i64>,
    /// The variables in the container that are not called like their slots.
    pub(crate) variables: BTreeMap<String, String>,
}

/// How one version of a secret gives way to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Road {
    /// The issuer holds two live credentials.
    Overlap,
    /// Readers accept two values.
    Keyring,
    /// One value at a time.
    Cutover,
}

/// A secret.
pub(crate) struct Secret {
    /// Its name.
    pub(crate) name: String,
    /// What it is.
    pub(crate) kind: Kind,
    /// How it is rotated.
    pub(crate) road: Road,
    /// Why it is not proposed as it stands; empty where it is.
    pub(crate) obstacles: Vec<String>,
    /// Whether its lines stand in the file already, commented out, for every environment.
    pub(crate) is_there: bool,
    /// What else people should know of it.
    pub(crate) notes: Vec<String>,
    /// Its part in each environment.
    pub(crate) parts: BTreeMap<usize, Part>,
}

impl Secret {
    /// Returns whether it is proposed as it stands.
    pub(crate) fn stands(&self) -> bool {
        self.obstacles.is_empty() && self.kind != Kind::Unknown
    }
}

/// A secret in one environment.
#[derive(PartialEq, Eq)]
pub(crate) struct Part {
    /// Where it stands.
    pub(crate) spots: Vec<Spot>,
    /// Its slots, by store.
    pub(crate) stores: Vec<(String, Vec<(String, Role)>)>,
    /// The workloads that read it.
    pub(crate) readers: BTreeSet<String>,
}

/// Something that was found and cannot be a secret of the configuration.
pub(crate) struct Listed {
    /// Where it stands.
    pub(crate) spot: Spot,
    /// What it is.
    pub(crate) kind: Kind,
    /// The environment, where its place does not tell it.
    pub(crate) home: Option<usize>,
}

/// Arranges what was found and is not in the file yet.
pub(crate) fn propose(survey: &Survey, known: Option<&Known>, folder: &str) -> Proposal {
    let new: Vec<&Credential> = survey
        .credentials
        .iter()
        .filter(|one| !known.is_some_and(|known| known.mentions(&one.spot)))
        .collect();
    let mut draft = Draft { survey, known, environments: Vec::new(), single: true };
    draft.environments(&new);
    let listed = new.iter().filter(|one| one.kind.issuer().is_none());
    let listed = listed.map(|one| Listed { spot: one.spot.clone(), kind: one.kind, home: None });
    let listed = listed.collect();
    let secrets = draft.secrets(&new);
    draft.trim();
    Proposal {
        project: project_name(survey, folder),
        single: draft.single,
        environments: draft.environments,
        cluster: None,
        secrets,
        listed,
    }
}

struct Draft<'a> {
    survey: &'a Survey,
    known: Option<&'a Known>,
    environments: Vec<Environment>,
    /// Whether there is one environment, which needs no name.
    single: bool,
}

impl<'a> Draft<'a> {
    /// Returns the environment of a credential: that of the project that reads it, else what the path of its file tells.
    fn told(&self, one: &Credential) -> Option<&'static str> {
        match one.readers.first() {
            Some(reader) => told_of_project(self.survey, reader.project),
            None => of_path(&one.spot.file),
        }
    }

    /// Finds which environments there are.
    fn environments(&mut self, new: &[&Credential]) {
        let slots = new.iter().filter(|one| one.kind.issuer().is_some());
        let told: BTreeSet<Option<&str>> = slots.map(|one| self.told(one)).collect();
        if let Some(known) = self.known {
            self.environments = known.environments();
        }
        self.single = self.known.map_or(told.len() < 2, |known| known.single);
        if self.environments.is_empty() && self.single {
            self.environments.push(Environment::new(DEFAULT_ENVIRONMENT));
        }
        for name in told {
            if self.find(name).is_none() {
                self.environments.push(Environment::new(name.unwrap_or(DEFAULT_ENVIRONMENT)));
            }
        }
    }

    /// Returns the environment with a name; a file that tells none belongs to the first that is known.
    fn find(&self, told: Option<&str>) -> Option<usize> {
        match told {
            _ if self.single => Some(0),
            None if self.known.is_some() => Some(0),
            told => {
                let told = told.unwrap_or(DEFAULT_ENVIRONMENT);
                let is = |one: &Environment| one.name == told || of_word(&one.name) == Some(told);
                self.environments.iter().position(is)
            }
        }
    }

    fn home(&self, one: &Credential) -> usize {
        self.find(self.told(one)).unwrap_or_default()
    }

    fn secrets(&mut self, new: &[&'a Credential]) -> Vec<Secret> {
        let mut secrets: Vec<Secret> = Vec::new();
        for group in self.groups(new) {
            let secret = self.secret(&group);
            self.place(secret, &mut secrets);
        }
        secrets
    }

    /// Puts credentials of one environment, kind and value together.
    fn groups(&self, new: &[&'a Credential]) -> Vec<Vec<&'a Credential>> {
        let mut groups: Vec<Vec<&Credential>> = Vec::new();
        let single =
            |one: &&&Credential| one.kind.issuer().is_some() && one.accepted_beside.is_none();
        for one in new.iter().filter(single) {
            let fits = |group: &&mut Vec<&Credential>| {
                group[0].kind == one.kind
                    && self.home(group[0]) == self.home(one)
                    && group[0].same_value(one)
            };
            match groups.iter_mut().find(fits) {
                Some(group) => group.push(one),
                None => groups.push(vec![one]),
            }
        }
        groups
    }

    fn secret(&mut self, group: &[&'a Credential]) -> Secret {
        let home = self.home(group[0]);
        let mut obstacles: BTreeSet<String> =
            group.iter().filter_map(|one| one.obstacle.clone()).collect();
        let accepted: Vec<Option<&Credential>> =
            group.iter().map(|one| self.accepted(one)).collect();
        let files: BTreeSet<&str> = group.iter().map(|one| one.spot.file.as_str()).collect();
        let keyring = accepted.iter().all(Option::is_some) && files.len() == group.len();
        let mut part = Part { spots: Vec::new(), stores: Vec::new(), readers: BTreeSet::new() };
        for (one, accepted) in group.iter().zip(accepted) {
            let store = self.store(home, &one.spot);
            self.slot(home, one, &store, Role::Current, &mut part);
            if let Some(accepted) = accepted.filter(|_| keyring) {
                self.slot(home, accepted, &store, Role::AlsoAccepted, &mut part);
            }
            obstacles.extend(self.elsewhere(home, one));
            obstacles.extend(self.owned(one).or_else(|| self.shared(one, group)));
            obstacles.extend(self.unread(home, one, group.len()));
        }
        if part.readers.is_empty() {
            obstacles.insert("no Compose service was found that reads it".into());
        }
        let road = match group[0].kind {
            Kind::Jwt if keyring => Road::Keyring,
            Kind::Jwt => Road::Cutover,
            _ => Road::Overlap,
        };
        Secret {
            name: secret_name(&group[0].spot),
            kind: group[0].kind,
            road,
            obstacles: obstacles.into_iter().collect(),
            is_there: false,
            notes: Vec::new(),
            parts: BTreeMap::from([(home, part)]),
        }
    }

    /// Returns the second signing secret beside one, where everything that reads the one reads the other.
    fn accepted(&self, one: &Credential) -> Option<&'a Credential> {
        let services = |one: &Credential| -> BTreeSet<(usize, String)> {
            one.readers.iter().map(|reader| (reader.project, reader.service.clone())).collect()
        };
        self.survey.credentials.iter().find(|other| {
            other.spot.file == one.spot.file
                && one.spot.variable.is_some()
                && other.accepted_beside == one.spot.variable
                && other.obstacle.is_none()
                && services(one).is_subset(&services(other))
        })
    }

    fn slot(&mut self, home: usize, one: &Credential, store: &str, role: Role, part: &mut Part) {
        part.spots.push(one.spot.clone());
        let slot = (one.spot.address().to_owned(), role);
        match part.stores.iter_mut().find(|(name, _)| name == store) {
            Some((_, slots)) => slots.push(slot),
            None => part.stores.push((store.to_owned(), vec![slot])),
        }
        for reader in self.readers_at(home, one) {
            let workload = self.workload(home, reader.project, &reader.service);
            let _: bool = workload.reads.insert(store.to_owned());
            if let (Some(variable), Runs::Service(service)) = (reader.variable, &mut workload.runs)
            {
                let address = one.spot.address();
                let plain = variable == address;
                let _: &mut String = service
                    .variables
                    .entry(address.to_owned())
                    .and_modify(|other| {
                        if plain {
                            other.clone_from(&variable)
                        }
                    })
                    .or_insert(variable.clone());
            }
            let name = workload.name.clone();
            let _: bool = part.readers.insert(name);
        }
    }

    fn readers_at(&self, home: usize, one: &Credential) -> Vec<super::survey::Reader> {
        let here = |project: usize| self.find(told_of_project(self.survey, project)) == Some(home);
        one.readers.iter().filter(|reader| here(reader.project)).cloned().collect()
    }

    /// Says where services of another environment read it too.
    fn elsewhere(&self, home: usize, one: &Credential) -> Option<String> {
        let all = self.readers_at(home, one).len() == one.readers.len();
        let why = "services of two environments read it; give each environment a file of its own";
        (!all).then(|| why.into())
    }

    /// Says where else a value stands that its issuer would end for all places at once.
    fn shared(&self, one: &Credential, group: &[&Credential]) -> Option<String> {
        let apart = |other: &&Credential| {
            one.same_value(other) && !group.iter().any(|member| member.spot == other.spot)
        };
        let other =
            self.survey.credentials.iter().filter(|_| one.kind.ends_everywhere()).find(apart)?;
        let place = other.spot.words();
        Some(format!("{place} holds the same value and would lose it too; give each its own first"))
    }

    /// Says that nothing was found which reads a place, where others that hold the same value are read.
    fn unread(&self, home: usize, one: &Credential, places: usize) -> Option<String> {
        let unread = places > 1 && self.readers_at(home, one).is_empty();
        unread.then(|| format!("nothing was found that reads {}", one.spot.words()))
    }

    /// Says where a secret of the file owns the same value.
    fn owned(&self, one: &Credential) -> Option<String> {
        let known = self.known?;
        let others = self.survey.credentials.iter().filter(|other| one.same_value(other));
        let owner = others.filter_map(|other| known.owner(&other.spot)).next()?;
        Some(format!("it is the value of secret `{owner}`; add this slot to its `stores`"))
    }

    /// Returns the name of the store for a file.
    fn store(&mut self, home: usize, spot: &Spot) -> String {
        let environment = &mut self.environments[home];
        let is = |store: &&Store| store.file == spot.file && !store.is_secret();
        if let Some(store) = environment.stores.iter().find(is) {
            return store.name.clone();
        }
        let taken = |name: &str| environment.stores.iter().any(|store| store.name == name);
        let name = free(&[store_name(spot, 1), store_name(spot, usize::MAX)], taken);
        environment.stores.push(Store {
            name: name.clone(),
            known: false,
            file: spot.file.clone(),
            held: if spot.variable.is_none() { Held::Whole } else { Held::Variables },
        });
        name
    }

    fn workload(&mut self, home: usize, project: usize, service: &str) -> &mut Workload {
        let project = &self.survey.projects[project];
        let environment = &mut self.environments[home];
        let is = |one: &Workload| matches!(&one.runs, Runs::Service(own) if own.file == project.file && own.service == service);
        if let Some(at) = environment.workloads.iter().position(is) {
            return &mut environment.workloads[at];
        }
        let taken = |name: &str| environment.workloads.iter().any(|one| one.name == name);
        let with_folder = format!("{}-{service}", project.folder);
        let name = free(&[slug(service), slug(&with_folder)], taken);
        let found = project.services.iter().find(|one| one.name == service);
        environment.workloads.push(Workload {
            name,
            known: false,
            runs: Runs::Service(Service {
                file: project.file.clone(),
                overs: project.overs.clone(),
                project: project.runs_as.clone(),
                service: service.into(),
                replicas: found.and_then(|service| service.replicas),
                variables: BTreeMap::new(),
            }),
            reads: BTreeSet::new(),
        });
        environment.workloads.last_mut().expect("one was pushed")
    }

    /// Adds a secret: to the one of the same name in other environments where they are alike, else under a name of its own.
    fn place(&self, secret: Secret, secrets: &mut Vec<Secret>) {
        let alike = |other: &&mut Secret| {
            other.name == secret.name
                && other.kind == secret.kind
                && other.road == secret.road
                && other.obstacles == secret.obstacles
                && !other.parts.keys().any(|home| secret.parts.contains_key(home))
        };
        if let Some(other) = secrets.iter_mut().find(alike) {
            other.parts.extend(secret.parts);
            return;
        }
        let known = self.known.map(|known| known.secrets.as_slice()).unwrap_or_default();
        let taken = |name: &str| {
            known.iter().any(|other| other == name)
                || secrets.iter().any(|other| other.name == name)
        };
        let (home, part) = secret.parts.first_key_value().expect("a secret stands somewhere");
        let store = part.stores.first().map_or("", |(store, _)| store);
        let with_store = slug(&format!("{}-{store}", secret.name));
        let with_environment = slug(&format!("{}-{}", secret.name, self.environments[*home].name));
        let names = match self.environments.len() {
            1 => [secret.name.clone(), with_store],
            _ => [secret.name.clone(), with_environment],
        };
        let name = free(&names, taken);
        secrets.push(Secret { name, ..secret });
    }

    /// Leaves out the names of variables that are called like their slots.
    fn trim(&mut self) {
        for workload in self.environments.iter_mut().flat_map(|one| &mut one.workloads) {
            if let Runs::Service(service) = &mut workload.runs {
                service.variables.retain(|address, variable| address != variable);
            }
        }
    }
}

/// Returns the environment of a project: what its folder tells, else what all the files that it reads tell alike.
fn told_of_project(survey: &Survey, index: usize) -> Option<&'static str> {
    let project: &Project = &survey.projects[index];
    if let Some(told) = of_folder(&project.folder) {
        return Some(told);
    }
    let read = survey
        .credentials
        .iter()
        .filter(|one| one.readers.iter().any(|reader| reader.project == index));
    let told: BTreeSet<Option<&str>> = read.map(|one| of_path(&one.spot.file)).collect();
    match told.len() {
        1 => told.into_iter().next().flatten(),
        _ => None,
    }
}

fn project_name(survey: &Survey, folder: &str) -> String {
    let named = survey.projects.iter().filter(|project| project.folder.is_empty());
    named_project(named.filter_map(|project| project.name.as_deref()).next().unwrap_or(folder))
}

/// Returns a name for a project.
pub(crate) fn named_project(name: &str) -> String {
    match slug(name) {
        name if name.is_empty() => "project".into(),
        name => name,
    }
}

/// Returns the first name that is free, with a number behind it where none is.
pub(crate) fn free(names: &[String], taken: impl Fn(&str) -> bool) -> String {
    let usable = || names.iter().filter(|name| !name.is_empty());
    if let Some(name) = usable().find(|name| !taken(name)) {
        return name.clone();
    }
    let base = usable().next_back().map_or("one", String::as_str);
    let numbered = (2_usize..).map(|number| format!("{}-{number}", &base[..base.len().min(56)]));
    numbered.into_iter().find(|name| !taken(name)).expect("some number is free")
}

/// Makes a name of the configuration: letters, digits, `-` and `_`.
pub(crate) fn slug(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    let name: String = text.chars().map(plain).collect();
    let parts = name.split('-').filter(|part| !part.is_empty());
    let mut name = parts.collect::<Vec<_>>().join("-");
    name.truncate(60);
    name.trim_end_matches('-').into()
}

fn secret_name(spot: &Spot) -> String {
    let name = match &spot.variable {
        Some(variable) => variable.as_str(),
        None => stem(&spot.file),
    };
    match slug(&name.to_ascii_lowercase().replace('_', "-")) {
        name if name.is_empty() => "secret".into(),
        name => name,
    }
}

fn stem(file: &str) -> &str {
    let name = file.rsplit_once('/').map_or(file, |(_, name)| name);
    name.split('.').find(|part| !part.is_empty()).unwrap_or(name)
}

/// Names a store after its file and as many of the folders above it; words that tell the environment are left out.
fn store_name(spot: &Spot, folders: usize) -> String {
    let (folder, name) = spot.file.rsplit_once('/').unwrap_or(("", &spot.file));
    if spot.variable.is_none() {
        return slug(&stem(name).replace('_', "-"));
    }
    let folders: Vec<&str> = folder.rsplit('/').take(folders).collect();
    let words = folders.into_iter().rev().chain(name.split('.'));
    let words: Vec<&str> = words.filter(|word| *word != "env" && of_word(word).is_none()).collect();
    match slug(&words.join("-")) {
        name if name.is_empty() => "app".into(),
        name => name,
    }
}
