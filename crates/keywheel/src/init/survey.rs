//! Which credentials there are, who reads each, and what people should know of them.

use std::collections::{BTreeMap, BTreeSet};

use keywheel_core::secret::SecretValue;
use keywheel_drivers::store::env_file::{Held, Variable, is_slot_name, variables};

use super::compose::{Project, Service, Setting, Source};
use super::credential::{self, Kind};
use super::walk::{self, Files};
use super::{Warning, environment, git, plain, running};
use crate::config::suggest::{reads_like_a_name, shown};

/// Shorter values stand in two places by chance.
const TELLING: usize = 8;

/// What a credential stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Home {
    /// A file.
    File,
    /// A Secret of a cluster, as namespace and name.
    Secret,
}

/// Where a credential stands: a variable of a file, or the whole of it, or a key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Spot {
    /// What it stands in.
    pub(crate) home: Home,
    /// The file or Secret.
    pub(crate) file: String,
    /// The variable or key; none for a file that holds one value.
    pub(crate) variable: Option<String>,
}

impl Spot {
    /// A variable of a file, or a file that holds one value.
    pub(crate) fn in_file(file: &str, variable: Option<&str>) -> Self {
        Self { home: Home::File, file: file.into(), variable: variable.map(Into::into) }
    }

    /// A key of a Secret.
    pub(crate) fn in_secret(namespace: &str, name: &str, key: &str) -> Self {
        let file = format!("{namespace}/{name}");
        Self { home: Home::Secret, file, variable: Some(key.into()) }
    }

    /// Returns the address in its store.
    pub(crate) fn address(&self) -> &str {
        self.variable.as_deref().unwrap_or(keywheel_drivers::store::file::CONTENT)
    }

    /// Returns it in words, which a later run looks for in what an earlier one wrote.
    pub(crate) fn words(&self) -> String {
        let file = plain(&self.file);
        match (&self.variable, self.home) {
            (Some(variable), Home::File) => format!("`{variable}` in `{file}`"),
            (Some(key), Home::Secret) => format!("`{}` in Secret `{file}`", plain(key)),
            (None, _) => format!("`{file}`"),
        }
    }
}

/// A service that reads a credential.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Reader {
    /// Which project.
    pub(crate) project: usize,
    /// The service.
    pub(crate) service: String,
    /// The variable in its container; none for a mounted file.
    pub(crate) variable: Option<String>,
}

/// A credential that was found.
pub(crate) struct Credential {
    /// Where it stands.
    pub(crate) spot: Spot,
    /// The line.
    pub(crate) line: u64,
    /// What it is.
    pub(crate) kind: Kind,
    /// Its value, where one stands there.
    pub(crate) value: Option<SecretValue>,
    /// The signing secret beside which readers accept this one.
    pub(crate) accepted_beside: Option<String>,
    /// Who reads it, in a way that a roll can prove.
    pub(crate) readers: BTreeSet<Reader>,
    /// Why it cannot be proposed as it stands.
    pub(crate) obstacle: Option<String>,
}

impl Credential {
    /// Returns whether two credentials are one by their value.
    pub(crate) fn same_value(&self, other: &Self) -> bool {
        match (&self.value, &other.value) {
            (Some(a), Some(b)) => same(a, b),
            _ => false,
        }
    }

    /// Notes why it cannot be proposed; the first reason stays.
    fn hinder(&mut self, why: impl Into<String>) {
        self.obstacle.get_or_insert_with(|| why.into());
    }
}

/// What a folder holds.
pub(crate) struct Survey {
    /// The Compose projects.
    pub(crate) projects: Vec<Project>,
    /// The credentials, by file and line.
    pub(crate) credentials: Vec<Credential>,
    /// Whether any file was there to look into.
    pub(crate) any_file: bool,
    /// What people should know.
    pub(crate) warnings: Vec<Warning>,
}

/// Looks at a folder.
pub(crate) async fn survey(mut files: Files) -> Survey {
    let mut warnings = std::mem::take(&mut files.warnings);
    let mut projects = super::compose::projects(&files, &mut warnings);
    let any_file = !(files.compose.is_empty() && files.env.is_empty());
    let mut look = Look { files, warnings, sheets: BTreeMap::new(), found: Vec::new() };
    look.sheets(&projects);
    look.running(&mut projects).await;
    look.mounted(&projects);
    look.readers(&projects);
    look.literals(&projects);
    look.examples();
    look.duplicates();
    look.tracked().await;
    look.warnings.sort();
    look.warnings.dedup();
    Survey { projects, credentials: look.found, any_file, warnings: look.warnings }
}

struct Look {
    files: Files,
    warnings: Vec<Warning>,
    /// The variables of each file.
    sheets: BTreeMap<String, Vec<Variable>>,
    found: Vec<Credential>,
}

impl Look {
    fn warn(&mut self, file: &str, line: u64, message: impl Into<String>) {
        self.warnings.push(Warning::of(file, message).line(line));
    }

    async fn running(&mut self, projects: &mut [Project]) {
        let (root, sheets) = (&self.files.root, &self.sheets);
        let named = |project: &Project| {
            let sheet = sheets.get(&running::env_file(project)).into_iter().flatten();
            let mut given = sheet.filter(|one| one.name == "COMPOSE_PROJECT_NAME");
            let given = given.next_back().and_then(|one| match &one.held {
                Held::Literal(name) => String::from_utf8(name.expose().to_vec()).ok(),
                _ => None,
            });
            let of_folder = || running::name_of_folder(root, &project.folder);
            given.or_else(|| project.name.clone()).unwrap_or_else(of_folder)
        };
        running::look(root, projects, named, &mut self.warnings).await;
    }

    fn sheets(&mut self, projects: &[Project]) {
        let services = projects.iter().flat_map(|project| &project.services);
        let listed: Vec<(String, bool)> = services
            .flat_map(|service| &service.env_files)
            .map(|file| (file.path.clone(), file.raw))
            .collect();
        let raw: BTreeSet<&String> =
            listed.iter().filter(|(_, raw)| *raw).map(|(path, _)| path).collect();
        let named = listed.iter().map(|(path, _)| path.clone());
        let files: BTreeSet<String> = self.files.env.iter().cloned().chain(named).collect();
        for file in &files {
            self.sheet(file, raw.contains(file));
        }
    }

    fn sheet(&mut self, file: &str, raw: bool) {
        let contents = match walk::read(&self.files.root, file) {
            Ok(contents) => contents,
            Err(why) => return self.warnings.push(Warning::of(file, why)),
        };
        let sheet = match variables(&contents.text) {
            Ok(sheet) => sheet,
            Err(unreadable) => {
                let message = "this is nothing that Compose can read; the file is left out";
                return self.warn(file, unreadable.line as u64, message);
            }
        };
        let before = self.found.len();
        for variable in &sheet {
            self.variable(file, variable, &sheet, raw);
        }
        if contents.open && self.found.len() > before {
            self.open(file);
        }
        drop(self.sheets.insert(file.into(), sheet));
    }

    fn open(&mut self, file: &str) {
        let message = "is open to every user of this machine (`chmod 600` closes it)";
        self.warnings.push(Warning::of(file, message));
    }

    fn variable(&mut self, file: &str, variable: &Variable, sheet: &[Variable], raw: bool) {
        let value = match &variable.held {
            Held::Literal(value) => Some(value),
            Held::Expanded => None,
            Held::Inherited => return,
        };
        let beside = credential::accepted_beside(&variable.name)
            .filter(|name| credential::names_signing_secret(name))
            .filter(|name| sheet.iter().any(|other| other.name == **name));
        let kind = match beside {
            Some(_) => Some(Kind::Jwt),
            None => credential::recognise(&variable.name, value),
        };
        let Some(kind) = kind else { return };
        let line = variable.line as u64;
        if !is_slot_name(&variable.name) || !reads_like_a_name(&variable.name) {
            let message = format!(
                "{} stands under a name that does not read like one, and is left out",
                kind.words()
            );
            return self.warn(file, line, message);
        }
        if self
            .found
            .iter()
            .any(|one| one.spot.file == file && one.spot.variable.as_ref() == Some(&variable.name))
        {
            return self.twice(file, &variable.name);
        }
        let mut one = Credential {
            spot: Spot::in_file(file, Some(&variable.name)),
            line,
            kind,
            value: value.map(SecretValue::duplicate),
            accepted_beside: beside.map(Into::into),
            readers: BTreeSet::new(),
            obstacle: None,
        };
        match value {
            None => one.hinder("it is expanded from another variable; give it a value of its own"),
            Some(value) if value.expose().is_empty() && beside.is_none() => {
                one.hinder("it is empty");
            }
            Some(_) if raw => {
                one.hinder("Compose reads the file with `format: raw`, which no store writes");
            }
            Some(_) => {}
        }
        self.browsers(&one);
        self.found.push(one);
    }

    fn twice(&mut self, file: &str, name: &str) {
        let is = |one: &&mut Credential| {
            one.spot.file == file && one.spot.variable.as_deref() == Some(name)
        };
        if let Some(one) = self.found.iter_mut().find(is) {
            one.obstacle = Some(
                "it is assigned more than once, and only the last one counts; leave one of them"
                    .into(),
            );
        }
    }

    fn browsers(&mut self, one: &Credential) {
        let name = one.spot.address();
        if credential::is_for_browsers(name) && !matches!(one.kind, Kind::Public(_)) {
            let message = format!(
                "`{}` is {}, and its name says that browsers get it",
                shown(name),
                one.kind.words()
            );
            self.warn(&one.spot.file.clone(), one.line, message);
        }
    }

    /// Finds the files of top-level secrets.
    fn mounted(&mut self, projects: &[Project]) {
        let mounted = projects.iter().flat_map(|project| &project.secrets);
        let files: BTreeMap<&String, &String> = mounted
            .filter_map(|secret| match &secret.source {
                Source::File(path) => Some((path, &secret.name)),
                Source::Variable(_) => None,
            })
            .collect();
        for (path, name) in files {
            self.whole_file(path, name);
        }
    }

    fn whole_file(&mut self, file: &str, name: &str) {
        let contents = match walk::read(&self.files.root, file) {
            Ok(contents) => contents,
            Err(why) => return self.warnings.push(Warning::of(file, why)),
        };
        if contents.open {
            self.open(file);
        }
        let mut one = Credential {
            spot: Spot::in_file(file, None),
            line: 1,
            kind: credential::recognise(name, Some(&contents.text)).unwrap_or(Kind::Unknown),
            value: None,
            accepted_beside: None,
            readers: BTreeSet::new(),
            obstacle: None,
        };
        let text = contents.text.expose();
        if text.trim_ascii().is_empty() {
            one.hinder("it is empty");
        } else if text.ends_with(b"\n") {
            one.hinder("it ends with a line break, which would be taken for a part of the value; take it off first");
        }
        one.value = Some(SecretValue::new(text.trim_ascii_end().to_vec()));
        self.found.push(one);
    }

    fn readers(&mut self, projects: &[Project]) {
        for (index, project) in projects.iter().enumerate() {
            let env = walk::joined(&project.folder, ".env");
            let env = match walk::place(&self.files.root, &env) {
                walk::Place::Inside(path) => path,
                _ => env,
            };
            for service in &project.services {
                self.service(index, &env, service);
                self.mounts(index, &env, project, service);
            }
        }
    }

    /// Finds where a service gets each variable: `environment` counts before `env_file`, and a later file before an earlier.
    fn service(&mut self, project: usize, env: &str, service: &Service) {
        let mut given: BTreeMap<String, String> = BTreeMap::new();
        for file in &service.env_files {
            let names: Vec<String> = self
                .sheets
                .get(&file.path)
                .into_iter()
                .flatten()
                .map(|one| one.name.clone())
                .collect();
            for name in names {
                let before = given.insert(name.clone(), file.path.clone());
                if let Some(before) = before.filter(|before| *before != file.path) {
                    let message = format!(
                        "is hidden from service `{}` by `{}`",
                        shown(&service.name),
                        plain(&file.path)
                    );
                    self.masked(&before, &name, &message);
                }
            }
        }
        for entry in &service.environment {
            let hidden = given.remove(&entry.name);
            let source = match &entry.setting {
                Setting::Literal(_) => None,
                Setting::Inherited => Some(entry.name.as_str()),
                Setting::Taken(taken) => taken.whole.as_deref(),
            };
            if let Setting::Taken(taken) = &entry.setting {
                let others = taken.names.iter().filter(|name| Some(name.as_str()) != source);
                let others: Vec<&String> = others.collect();
                self.within(env, others, service, "a longer text of `environment`");
            }
            let read = source.is_some_and(|source| {
                let reader = Reader {
                    project,
                    service: service.name.clone(),
                    variable: Some(entry.name.clone()),
                };
                self.reads(env, source, reader)
            });
            let Some(hidden) = hidden else { continue };
            if read && hidden == env {
                continue;
            }
            let message = format!(
                "is hidden from service `{}` by its `environment` ({}:{})",
                shown(&service.name),
                plain(&entry.file),
                entry.line
            );
            self.masked(&hidden, &entry.name, &message);
        }
        for (name, file) in given {
            let reader =
                Reader { project, service: service.name.clone(), variable: Some(name.clone()) };
            let _: bool = self.reads(&file, &name, reader);
        }
        self.within(env, &service.elsewhere, service, "a part that is not its `environment`");
    }

    fn at(&mut self, file: &str, name: &str) -> Option<&mut Credential> {
        let mut found = self.found.iter_mut();
        found.find(|one| one.spot.file == file && one.spot.variable.as_deref() == Some(name))
    }

    /// Notes a reader; returns whether the file has such a variable at all.
    fn reads(&mut self, file: &str, name: &str, reader: Reader) -> bool {
        if let Some(one) = self.at(file, name) {
            let _: bool = one.readers.insert(reader);
        }
        self.sheets.get(file).is_some_and(|sheet| sheet.iter().any(|one| one.name == name))
    }

    fn masked(&mut self, file: &str, name: &str, how: &str) {
        let Some(line) = self.at(file, name).map(|one| one.line) else { return };
        self.warn(
            file,
            line,
            format!("`{}` {how}, so that a new value would not reach it", shown(name)),
        );
    }

    /// Notes variables that a service gets where nothing can prove which value it holds.
    fn within<'n>(
        &mut self,
        env: &str,
        names: impl IntoIterator<Item = &'n String>,
        service: &Service,
        place: &str,
    ) {
        for name in names {
            let why = format!(
                "service `{}` gets it in {place}, where no roll can prove it",
                shown(&service.name)
            );
            if let Some(one) = self.at(env, name) {
                one.hinder(why);
            }
        }
    }

    fn mounts(&mut self, index: usize, env: &str, project: &Project, service: &Service) {
        for secret in project.secrets.iter().filter(|one| service.secrets.contains(&one.name)) {
            match &secret.source {
                Source::Variable(name) => {
                    self.within(env, [name], service, "a file that Compose makes");
                }
                Source::File(path) => {
                    let is = |one: &&mut Credential| {
                        one.spot.file == *path && one.spot.variable.is_none()
                    };
                    if let Some(one) = self.found.iter_mut().find(is) {
                        let service = service.name.clone();
                        let _: bool =
                            one.readers.insert(Reader { project: index, service, variable: None });
                    }
                }
            }
        }
    }

    /// Warns of credentials that stand in Compose files themselves.
    fn literals(&mut self, projects: &[Project]) {
        let services = projects.iter().flat_map(|project| &project.services);
        for entry in services.flat_map(|service| &service.environment) {
            let Setting::Literal(value) = &entry.setting else { continue };
            let kind = credential::recognise(&entry.name, Some(value));
            let Some(kind) = kind.filter(|kind| !matches!(kind, Kind::Public(_))) else { continue };
            if value.expose().is_empty() || value.expose().starts_with(b"/") {
                continue;
            }
            let message = format!(
                "`{}` stands in the Compose file itself: {}; move it into a file of variables",
                shown(&entry.name),
                kind.words()
            );
            self.warn(&entry.file, entry.line, message);
        }
    }

    /// Warns of credentials in files that are there to be copied.
    fn examples(&mut self) {
        for file in self.files.examples.clone() {
            let Ok(contents) = walk::read(&self.files.root, &file) else { continue };
            for variable in variables(&contents.text).unwrap_or_default() {
                let Held::Literal(value) = &variable.held else { continue };
                let kind = credential::by_format(Some(value));
                let Some(kind) = kind.filter(|kind| !matches!(kind, Kind::Public(_))) else {
                    continue;
                };
                let message = format!(
                    "`{}` has the format of a credential, in an example: {}",
                    shown(&variable.name),
                    kind.words()
                );
                self.warn(&file, variable.line as u64, message);
            }
        }
    }

    /// Warns of credentials whose value stands somewhere else too.
    fn duplicates(&mut self) {
        let mut warnings = Vec::new();
        for (at, one) in self.found.iter().enumerate() {
            let Some(value) = one.value.as_ref().filter(|_| !matches!(one.kind, Kind::Public(_)))
            else {
                continue;
            };
            let earlier: BTreeSet<&Spot> =
                self.found[..=at].iter().map(|other| &other.spot).collect();
            for (file, variable) in self
                .sheets
                .iter()
                .flat_map(|(file, sheet)| sheet.iter().map(move |one| (file, one)))
            {
                let spot = Spot::in_file(file, Some(&variable.name));
                let Held::Literal(other) = &variable.held else { continue };
                if !earlier.contains(&spot) && same(value, other) && !self.pair(one, &spot) {
                    warnings.push(also(one, &spot, variable.line));
                }
            }
            let files = self.found[at + 1..].iter().filter(|other| other.spot.variable.is_none());
            for other in files.filter(|other| one.same_value(other)) {
                warnings.push(also(one, &other.spot, 1));
            }
        }
        self.warnings.extend(warnings);
    }

    /// Returns whether one is the second signing secret beside the other.
    fn pair(&self, one: &Credential, spot: &Spot) -> bool {
        let beside = |name: &str, other: &str| credential::accepted_beside(name) == Some(other);
        let (a, b) = (one.spot.address(), spot.address());
        one.spot.file == spot.file && (beside(a, b) || beside(b, a))
    }

    async fn tracked(&mut self) {
        let files: BTreeSet<String> = self.found.iter().map(|one| one.spot.file.clone()).collect();
        let tracked = git::tracked(&self.files.root, &files).await;
        for file in tracked.files {
            let message = "is tracked by git, whose history keeps every value that was committed";
            self.warnings.push(Warning::of(&file, message));
        }
        for folder in tracked.silent {
            let folder = if folder.is_empty() { "." } else { &folder };
            let message = "git does not say which files it tracks here";
            self.warnings.push(Warning::of(folder, message));
        }
    }
}

fn same(a: &SecretValue, b: &SecretValue) -> bool {
    a.expose().len() >= TELLING && a.same_as(b)
}

fn also(one: &Credential, spot: &Spot, line: usize) -> Warning {
    let environment = |spot: &Spot| environment::of_path(&spot.file);
    let other = if reads_like_a_name(spot.address()) {
        spot.words()
    } else {
        format!("line {line} of `{}`", plain(&spot.file))
    };
    let mut message = format!("`{}` holds the same value as {other}", shown(one.spot.address()));
    if let (Some(a), Some(b)) = (environment(&one.spot), environment(spot))
        && a != b
    {
        message.push_str(&format!(
            ": {a} and {b} share it; give each its own before the first rotation"
        ));
    }
    Warning::of(&one.spot.file, message).line(one.line)
}
