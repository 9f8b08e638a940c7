//! `env_file`: variables of a `.env` file, as Docker Compose reads it; a slot is the name of a variable.
//!
//! A slot holds the value as Compose reads it, quotes and escapes resolved. A value that hangs on other variables (`$X`), a
//! bare name (inherited), and a name that is assigned twice are refused: what they hold is not in this one place. Files that
//! Compose is told to read with `format: raw` have another grammar and do not belong here.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::facts::StoreFacts;
use keywheel_core::secret::SecretValue;
use keywheel_driver::store::{Edit, Written};
use keywheel_driver::{CallError, Finding, Refusal, RefusalKind, Store};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::dotenv::{self, DotenvError};
use super::local::{self, OwnedEdit, PRIVATE};
use super::replace::{Change, LocalFile};
use crate::{Build, Context};

/// A `.env` file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file; a relative path begins at the folder of the configuration file.
    pub path: PathBuf,
    /// Whether the file is made, readable by its owner only, where it is missing.
    #[serde(default)]
    pub create: bool,
}

impl Build for Config {
    type Driver = dyn Store;

    fn build(&self, context: &Context) -> Result<Arc<dyn Store>, Refusal> {
        Ok(Arc::new(EnvFile {
            file: local::local_file(context, &self.path, self.create.then_some(PRIVATE)),
        }))
    }
}

struct EnvFile {
    file: LocalFile,
}

#[async_trait]
impl Store for EnvFile {
    fn facts(&self) -> StoreFacts {
        local::facts()
    }

    fn container(&self) -> String {
        local::container(&self.file)
    }

    async fn preflight(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        let mut findings = local::findings(&self.file).await?;
        let (file, addresses) = (self.file.clone(), addresses.to_vec());
        findings.extend(local::blocking(move |_| Ok(slot_findings(&file, &addresses))).await?);
        Ok(findings)
    }

    async fn read(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        let (file, addresses) = (self.file.clone(), addresses.to_vec());
        let read = move || {
            let text = text_or_empty(file.read()?);
            addresses.iter().map(|name| read(&file, &text, name)).collect::<Result<_, Refusal>>()
        };
        local::blocking(move |_| Ok(read()?)).await
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        let (file, edits): (_, Vec<_>) =
            (self.file.clone(), edits.iter().map(OwnedEdit::of).collect());
        local::blocking(move |abandoned| {
            file.rewrite(abandoned, |text| rewritten(&file, text, &edits))
        })
        .await
    }
}

/// Applies all edits to a text, or none; what each slot holds now is checked before the first is applied.
fn rewritten(
    file: &LocalFile,
    text: Option<&SecretValue>,
    edits: &[OwnedEdit],
) -> Result<Change, Refusal> {
    let mut new = text_or_empty(text.map(SecretValue::duplicate));
    let mut due = Vec::new();
    let mut names = BTreeSet::new();
    for edit in edits {
        let present = read(file, &new, &edit.address)?;
        if !names.insert(&edit.address) {
            return Err(refused(
                file,
                RefusalKind::Unsupported,
                &format!("two edits name `{}`", edit.address),
            ));
        }
        if !edit.accepts(present.as_ref()) {
            let why = format!("`{}` holds something else than expected", edit.address);
            return Err(refused(file, RefusalKind::Conflict, &why));
        }
        let same = match (&present, &edit.value) {
            (Some(present), Some(value)) => present.same_as(value),
            (present, value) => present.is_none() && value.is_none(),
        };
        due.extend((!same).then_some(edit));
    }
    for edit in &due {
        let applied = match &edit.value {
            Some(value) => dotenv::set(&new, &edit.address, value),
            None => dotenv::remove(&new, &edit.address),
        };
        new = applied.map_err(|error| unreadable(file, &error))?;
    }
    Ok(if due.is_empty() { Change::Nothing } else { Change::Contents(new) })
}

fn slot_findings(file: &LocalFile, addresses: &[String]) -> Vec<Finding> {
    // A file that cannot be read is among the findings about the file itself.
    let Ok(text) = file.read().map(text_or_empty) else { return Vec::new() };
    let sample = SecretValue::new(b"sample".to_vec());
    let blocking = addresses.iter().filter_map(|name| dotenv::set(&text, name, &sample).err());
    let blocking: BTreeSet<_> = blocking.map(|error| unreadable(file, &error).message).collect();
    let notes = addresses.iter().flat_map(|name| {
        let dependent = dotenv::expanded_from(&text, name).unwrap_or_default();
        dependent.into_iter().map(move |other| {
            let message = format!("`{other}` is expanded from `{name}` and changes with it");
            Finding::note(format!("file `{}`: {message}", file.path().display()))
        })
    });
    blocking.into_iter().map(Finding::blocks).chain(notes).collect()
}

fn read(file: &LocalFile, text: &SecretValue, name: &str) -> Result<Option<SecretValue>, Refusal> {
    dotenv::check_name(name)
        .and_then(|()| dotenv::read(text, name))
        .map_err(|error| unreadable(file, &error))
}

fn text_or_empty(text: Option<SecretValue>) -> SecretValue {
    text.unwrap_or_else(|| SecretValue::new(Vec::new()))
}

fn unreadable(file: &LocalFile, error: &DotenvError) -> Refusal {
    let kind = match error {
        DotenvError::Expanded { .. } | DotenvError::Inherited { .. } => RefusalKind::Conflict,
        _ => RefusalKind::Unsupported,
    };
    refused(file, kind, &error.to_string())
}

fn refused(file: &LocalFile, kind: RefusalKind, why: &str) -> Refusal {
    Refusal::operator(kind, format!("file `{}`: {why}", file.path().display()))
}
