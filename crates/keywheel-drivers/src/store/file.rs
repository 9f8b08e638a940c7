//! `file`: one file that holds one value and nothing else; its one slot is `content`.
//!
//! The bytes are exact: nothing is added and nothing trimmed, a newline at the end included (H59).

use keywheel_core::planted;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::facts::StoreFacts;
use keywheel_core::secret::SecretValue;
use keywheel_driver::store::{Edit, Written};
use keywheel_driver::{CallError, Claims, Finding, Refusal, RefusalKind, Store};
use rustix::fs::Mode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::claim::Claimed;
use super::local::{self, OwnedEdit, PRIVATE};
use super::replace::{Change, LocalFile};
use crate::{Build, Context};

/// The one slot of a file.
pub const CONTENT: &str = "content";

/// A file that holds one value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file; a relative path begins at the folder of the configuration file.
    pub path: PathBuf,
    /// Whether the file is made where it is missing, and removed where the slot is to be empty again.
    #[serde(default)]
    pub create: bool,
    /// The mode of a file that is made, in octal digits and quotes: `"0640"`. A file that is there keeps its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

impl Config {
    fn mode_to_make(&self) -> Result<Option<Mode>, Refusal> {
        let refused = |why: &str| Err(Refusal::operator(RefusalKind::Unsupported, why));
        let mode = match self.mode.as_deref().map(|digits| u32::from_str_radix(digits, 8)) {
            None => PRIVATE,
            Some(Ok(mode)) if mode <= 0o777 => Mode::from_raw_mode(mode),
            Some(_) => return refused("`mode` must be octal digits up to `0777`"),
        };
        match (self.create, &self.mode) {
            (true, _) => Ok(Some(mode)),
            (false, None) => Ok(None),
            (false, Some(_)) => {
                refused("`mode` is for a file that is made; configure `create: true` with it")
            }
        }
    }
}

impl Build for Config {
    type Driver = dyn Store;

    fn build(&self, context: &Context) -> Result<Arc<dyn Store>, Refusal> {
        let file = local::local_file(context, &self.path, self.mode_to_make()?);
        Ok(Arc::new(WholeFile { claimed: local::claimed(&file), file }))
    }
}

struct WholeFile {
    file: LocalFile,
    claimed: Option<Claimed>,
}

#[async_trait]
impl Store for WholeFile {
    fn facts(&self) -> StoreFacts {
        local::facts()
    }

    fn container(&self) -> String {
        local::container(&self.file)
    }

    async fn preflight(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        let mut findings = local::findings(&self.file).await?;
        findings.extend(
            addresses
                .iter()
                .filter_map(|a| self.check_address(a).err())
                .map(|r| Finding::blocks(r.message)),
        );
        let file = self.file.clone();
        let present = local::blocking(move |_| Ok(file.read().ok().flatten())).await?;
        if present.is_some_and(|value| value.expose().ends_with(b"\n")) {
            let message = "ends in a newline, which counts as part of its value; a new value is written without one";
            findings
                .push(Finding::note(format!("file `{}` {message}", self.file.path().display())));
        }
        Ok(findings)
    }

    async fn addresses(&self) -> Result<Option<Vec<String>>, CallError> {
        Ok(Some(vec![CONTENT.into()]))
    }

    async fn read(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        addresses.iter().try_for_each(|address| self.check_address(address))?;
        let file = self.file.clone();
        let present = local::blocking(move |_| Ok(file.read()?)).await?;
        Ok(addresses.iter().map(|_| present.as_ref().map(SecretValue::duplicate)).collect())
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        edits.iter().try_for_each(|edit| self.check_address(edit.address))?;
        let edit = match edits {
            [] => return Ok(Written { changed: false }),
            [edit] => OwnedEdit::of(edit),
            _ => {
                return Err(self
                    .refused(RefusalKind::Unsupported, "has one slot, and two edits name it")
                    .into());
            }
        };
        let store = Self { file: self.file.clone(), claimed: None };
        local::blocking(move |abandoned| {
            store.file.rewrite(abandoned, |present| store.rewritten(present, &edit))
        })
        .await
    }

    fn claims(&self) -> Option<&dyn Claims> {
        self.claimed.as_ref().map(|claimed| claimed as &dyn Claims)
    }
}

impl WholeFile {
    fn rewritten(
        &self,
        present: Option<&SecretValue>,
        edit: &OwnedEdit,
    ) -> Result<Change, Refusal> {
        if !edit.accepts(present) {
            return Err(self.refused(RefusalKind::Conflict, "holds something else than expected"));
        }
        match (present, &edit.value) {
            (_, Some(value)) if planted!("newline_added") => {
                Ok(Change::Contents(SecretValue::new([value.expose(), b"\n"].concat())))
            }
            (_, Some(value)) => Ok(Change::Contents(value.duplicate())),
            (None, None) => Ok(Change::Nothing),
            (Some(_), None) if self.file.is_made() => Ok(Change::Removal),
            (Some(_), None) => {
                let why = "can only be removed with `create: true`, without which it could not be made again";
                Err(self.refused(RefusalKind::Unsupported, why))
            }
        }
    }

    fn check_address(&self, address: &str) -> Result<(), Refusal> {
        if address == CONTENT {
            return Ok(());
        }
        Err(self.refused(
            RefusalKind::Unsupported,
            &format!("has the one slot `{CONTENT}`, and not `{address}`"),
        ))
    }

    fn refused(&self, kind: RefusalKind, why: &str) -> Refusal {
        Refusal::operator(kind, format!("file `{}` {why}", self.file.path().display()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use keywheel_driver::Severity;
    use keywheel_driver::conformance::store::{self as conformance, Subject};
    use keywheel_driver::store::Accept;
    use tempfile::TempDir;

    use super::*;

    fn config(create: bool, mode: Option<&str>) -> Config {
        Config { path: "key".into(), create, mode: mode.map(Into::into) }
    }

    fn store_at(root: &Path, config: &Config) -> Arc<dyn Store> {
        config.build(&Context::at(root)).unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    async fn write(store: &dyn Store, value: Option<&[u8]>) -> Result<Written, CallError> {
        let value = value.map(|bytes| SecretValue::new(bytes.to_vec()));
        store
            .write(&[Edit { address: CONTENT, accept: Accept::Anything, value: value.as_ref() }])
            .await
    }

    #[tokio::test]
    async fn it_conforms() {
        let fresh = async || {
            let folder = TempDir::new().unwrap();
            let store = || store_at(folder.path(), &config(true, None));
            Subject {
                store: store(),
                other: store(),
                addresses: vec![CONTENT.into()],
                uncarriable: vec![vec![0; (1 << 20) + 1]],
                guard: Box::new(folder),
            }
        };
        conformance::every_case(fresh).await;
    }

    #[tokio::test]
    async fn h59_bytes_are_exact_and_a_newline_at_the_end_is_noted() {
        for bytes in [&b"value\n"[..], b"value", b"\n", b"\0\xff\r\n", b""] {
            let folder = TempDir::new().unwrap();
            let path = folder.path().join("key");
            let store = store_at(folder.path(), &config(false, None));
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
            let read =
                store.read(&[CONTENT.into()]).await.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(read[0].as_ref().map(SecretValue::expose), Some(bytes));
            let noted = store.preflight(&[CONTENT.into()]).await.unwrap();
            assert_eq!(
                noted.iter().any(|f| f.message.contains("ends in a newline")),
                bytes.ends_with(b"\n")
            );
            assert!(noted.iter().all(|f| f.severity == Severity::Note));
            assert!(write(&*store, Some(b"new")).await.is_ok());
            assert_eq!(fs::read(&path).unwrap(), b"new");
        }
    }

    #[tokio::test]
    async fn a_file_that_could_not_be_made_again_is_not_removed() {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("key"), b"value").unwrap();
        let store = store_at(folder.path(), &config(false, None));
        assert!(
            matches!(write(&*store, None).await, Err(CallError::Refused(r)) if r.kind == RefusalKind::Unsupported)
        );
        assert_eq!(fs::read(folder.path().join("key")).unwrap(), b"value");
    }

    #[tokio::test]
    async fn a_mode_is_octal_and_for_files_that_are_made() {
        let folder = TempDir::new().unwrap();
        assert!(
            write(&*store_at(folder.path(), &config(true, Some("0640"))), Some(b"value"))
                .await
                .is_ok()
        );
        assert_eq!(
            fs::metadata(folder.path().join("key")).unwrap().permissions().mode() & 0o777,
            0o640
        );
        let context = Context::at(folder.path());
        for bad in [
            config(false, Some("0640")),
            config(true, Some("0999")),
            config(true, Some("1777")),
            config(true, Some("")),
        ] {
            assert!(bad.build(&context).is_err());
        }
    }

    #[tokio::test]
    async fn there_is_one_slot() {
        let folder = TempDir::new().unwrap();
        let store = store_at(folder.path(), &config(true, None));
        assert!(matches!(store.read(&["other".into()]).await, Err(CallError::Refused(_))));
        let findings = store.preflight(&["other".into()]).await.unwrap();
        assert!(findings.iter().any(|f| f.severity == Severity::Blocks));
    }
}
