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
use keywheel_driver::{CallError, Claims, Finding, Refusal, RefusalKind, Store};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::claim::Claimed;
use super::dotenv::{self, DotenvError};
pub use super::dotenv::{Held, Unreadable, Variable, is_slot_name, variables};
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
        let file = local::local_file(context, &self.path, self.create.then_some(PRIVATE));
        Ok(Arc::new(EnvFile { claimed: local::claimed(&file), file }))
    }
}

struct EnvFile {
    file: LocalFile,
    claimed: Option<Claimed>,
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

    async fn addresses(&self) -> Result<Option<Vec<String>>, CallError> {
        let file = self.file.clone();
        local::blocking(move |_| {
            let text = text_or_empty(file.read()?);
            let variables = variables(&text).map_err(|Unreadable { line }| {
                unreadable(&file, &DotenvError::Malformed { line })
            })?;
            let names: BTreeSet<_> = variables.into_iter().map(|variable| variable.name).collect();
            Ok(Some(names.into_iter().collect()))
        })
        .await
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

    fn claims(&self) -> Option<&dyn Claims> {
        self.claimed.as_ref().map(|claimed| claimed as &dyn Claims)
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
        let same = SecretValue::same(present.as_ref(), edit.value.as_ref());
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use keywheel_driver::conformance::store::{self as conformance, Subject};
    use keywheel_driver::store::Accept;
    use keywheel_driver::{Remedy, Severity};
    use tempfile::TempDir;

    use super::*;

    const FILE: &str = "\u{feff}# the app's settings\r\nexport PORT = 3001 # not a secret\r\nKEY: \"old\"\r\n\r\nLAST='it'";

    fn store_at(root: &Path, create: bool) -> Arc<dyn Store> {
        let config = Config { path: ".env".into(), create };
        config.build(&Context::at(root)).unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    fn folder_with(text: impl AsRef<[u8]>) -> (TempDir, Arc<dyn Store>) {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join(".env"), text).unwrap();
        fs::set_permissions(folder.path().join(".env"), fs::Permissions::from_mode(0o600)).unwrap();
        let store = store_at(folder.path(), false);
        (folder, store)
    }

    fn text_of(folder: &TempDir) -> String {
        fs::read_to_string(folder.path().join(".env")).unwrap()
    }

    async fn set(store: &dyn Store, address: &str, value: &str) -> Result<Written, CallError> {
        let value = SecretValue::new(value.into());
        store.write(&[Edit { address, accept: Accept::Anything, value: Some(&value) }]).await
    }

    async fn value_of(store: &dyn Store, name: &str) -> Option<String> {
        let values = store.read(&[name.into()]).await.unwrap_or_else(|error| panic!("{error}"));
        values[0].as_ref().map(|value| String::from_utf8(value.expose().to_vec()).unwrap())
    }

    fn subject(folder: TempDir, create: bool) -> Subject {
        let store = || store_at(folder.path(), create);
        Subject {
            store: store(),
            other: store(),
            addresses: ["API_KEY", "OPENAI_API_KEY", "API_KEY_2", "export"].map(Into::into).into(),
            uncarriable: vec![b"nul\0inside".to_vec(), b"latin\xe91".to_vec(), vec![0], vec![0xff]],
            guard: Box::new(folder),
        }
    }

    #[tokio::test]
    async fn it_conforms_over_a_file_that_is_there() {
        conformance::every_case(async || subject(folder_with(FILE).0, false)).await;
    }

    #[tokio::test]
    async fn it_conforms_over_a_file_that_it_makes() {
        conformance::every_case(async || subject(TempDir::new().unwrap(), true)).await;
    }

    #[tokio::test]
    async fn h103_only_the_value_changes_and_the_way_back_ends_where_it_began() {
        let (folder, store) = folder_with(FILE);
        assert_eq!(set(&*store, "KEY", "new").await, Ok(Written { changed: true }));
        assert_eq!(text_of(&folder), FILE.replace("\"old\"", "\"new\""));
        assert_eq!(set(&*store, "PORT", "3002").await, Ok(Written { changed: true }));
        assert_eq!(text_of(&folder), FILE.replace("\"old\"", "\"new\"").replace("3001", "3002"));
        let back = [("KEY", "old"), ("PORT", "3001")];
        for (name, value) in back {
            assert!(set(&*store, name, value).await.is_ok());
        }
        assert_eq!(text_of(&folder), FILE);
    }

    #[tokio::test]
    async fn a_slot_whose_value_lives_elsewhere_is_refused() {
        let (folder, store) = folder_with(
            "A=$OTHER\nB=\"x${OTHER}\"\nC\nD=1\nD=2\nE='$literal'\nF=\"\\$literal\"\nG=$$x\n",
        );
        for (name, kind) in [
            ("A", RefusalKind::Conflict),
            ("B", RefusalKind::Conflict),
            ("C", RefusalKind::Conflict),
            ("D", RefusalKind::Unsupported),
            ("no name", RefusalKind::Unsupported),
            ("9LIVES", RefusalKind::Unsupported),
            ("", RefusalKind::Unsupported),
        ] {
            let before = text_of(&folder);
            for answer in [
                store.read(&[name.into()]).await.map(|_| ()),
                set(&*store, name, "new").await.map(|_| ()),
            ] {
                let Err(CallError::Refused(refusal)) = answer else {
                    panic!("`{name}` is not refused")
                };
                assert_eq!((refusal.kind, refusal.remedy), (kind, Remedy::Operator), "`{name}`");
            }
            assert_eq!(text_of(&folder), before);
            let findings = store.preflight(&[name.into()]).await.unwrap();
            assert!(findings.iter().any(|f| f.severity == Severity::Blocks), "`{name}`");
        }
        for (name, literal) in [("E", "$literal"), ("F", "$literal"), ("G", "$x")] {
            assert_eq!(value_of(&*store, name).await.as_deref(), Some(literal));
        }
    }

    #[tokio::test]
    async fn two_edits_of_one_slot_are_refused() {
        let (folder, store) = folder_with(FILE);
        let (one, two) = (SecretValue::new(b"one".to_vec()), SecretValue::new(b"two".to_vec()));
        let edit = |value| Edit { address: "KEY", accept: Accept::Anything, value: Some(value) };
        assert!(matches!(store.write(&[edit(&one), edit(&two)]).await, Err(CallError::Refused(_))));
        assert_eq!(text_of(&folder), FILE);
    }

    #[tokio::test]
    async fn a_missing_file_is_refused_and_not_made() {
        let folder = TempDir::new().unwrap();
        let store = store_at(folder.path(), false);
        for answer in [
            store.read(&["KEY".into()]).await.map(|_| ()),
            set(&*store, "KEY", "new").await.map(|_| ()),
        ] {
            assert!(
                matches!(answer, Err(CallError::Refused(r)) if r.kind == RefusalKind::NotFound)
            );
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(store.preflight(&["KEY".into()]).await.unwrap()[0].severity, Severity::Blocks);
    }

    #[tokio::test]
    async fn a_file_that_is_made_is_private() {
        let folder = TempDir::new().unwrap();
        assert!(set(&*store_at(folder.path(), true), "KEY", "it's").await.is_ok());
        assert_eq!(text_of(&folder), "KEY=\"it's\"\n");
        let mode = fs::metadata(folder.path().join(".env")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn h105_preflight_names_what_is_open_tracked_or_left_beside() {
        let (folder, store) = folder_with(FILE);
        assert_eq!(store.preflight(&["KEY".into()]).await.unwrap(), []);
        let path = folder.path().join(".env");
        let notes = async || {
            let findings = store.preflight(&["KEY".into()]).await.unwrap();
            assert!(findings.iter().all(|f| f.severity == Severity::Note));
            findings.into_iter().map(|f| f.message).collect::<Vec<_>>().join("\n")
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(notes().await.contains("is open to its group"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(notes().await.contains("is open to every user"));
        for left in [".env.bak", ".env~", "..env.swp", "..env.keywheel-0123456789abcdef.tmp"] {
            fs::write(folder.path().join(left), b"").unwrap();
        }
        let notes = notes().await;
        assert!(
            notes.contains(".env.bak` looks like a copy")
                && notes.contains(".env~` looks like a copy")
        );
        assert!(
            notes.contains("an editor has the file open")
                && notes.contains("left an unfinished file")
        );
    }

    #[tokio::test]
    async fn h105_preflight_names_a_file_that_git_tracks() {
        let (folder, store) = folder_with(FILE);
        let git = |arguments: &[&str]| {
            let mut git = std::process::Command::new("git");
            git.arg("-C").arg(folder.path()).args(arguments).env("GIT_CONFIG_GLOBAL", "/dev/null");
            git.stdout(std::process::Stdio::null()).status().is_ok_and(|status| status.success())
        };
        if !git(&["init", "-q"]) {
            return;
        }
        assert_eq!(store.preflight(&["KEY".into()]).await.unwrap(), []);
        assert!(git(&["add", ".env"]));
        let findings = store.preflight(&["KEY".into()]).await.unwrap();
        assert_eq!(findings.len(), 1);
        assert!(findings[0].message.contains("is tracked by git"));
    }

    #[tokio::test]
    async fn preflight_blocks_what_a_write_would_refuse() {
        let (folder, store) = folder_with("KEY='old'\nURL=https://$KEY@host\nthis is nothing\n");
        let messages = async || {
            let findings = store.preflight(&["KEY".into()]).await.unwrap();
            findings.into_iter().map(|f| (f.severity, f.message)).collect::<Vec<_>>()
        };
        let found = messages().await;
        assert!(found.iter().any(|(s, m)| *s == Severity::Blocks
            && m.ends_with("line 3 is nothing that Compose can read")));
        fs::write(folder.path().join(".env"), "KEY='old'\nURL=https://$KEY@host\n").unwrap();
        let found = messages().await;
        assert!(
            found
                .iter()
                .any(|(s, m)| *s == Severity::Note && m.contains("`URL` is expanded from `KEY`"))
        );
        fs::hard_link(folder.path().join(".env"), folder.path().join("link")).unwrap();
        let found = messages().await;
        assert!(found.iter().any(|(s, m)| *s == Severity::Blocks && m.contains("hard links")));
    }

    #[tokio::test]
    async fn preflight_blocks_a_file_that_is_frozen() {
        let (folder, store) = folder_with(FILE);
        let file = fs::File::open(folder.path().join(".env")).unwrap();
        let Ok(flags) = rustix::fs::ioctl_getflags(&file) else { return };
        if rustix::fs::ioctl_setflags(&file, flags | rustix::fs::IFlags::IMMUTABLE).is_err() {
            eprintln!("skipped: this user or file system cannot freeze a file");
            return;
        }
        let findings = store.preflight(&["KEY".into()]).await;
        rustix::fs::ioctl_setflags(&file, flags).unwrap();
        let findings = findings.unwrap();
        assert!(
            findings[0].message.contains("immutable") && findings[0].severity == Severity::Blocks
        );
    }

    #[tokio::test]
    async fn preflight_blocks_a_folder_that_cannot_be_written() {
        if rustix::process::geteuid().is_root() {
            eprintln!("skipped: root may write every folder");
            return;
        }
        let (folder, store) = folder_with(FILE);
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o500)).unwrap();
        let findings = store.preflight(&["KEY".into()]).await.unwrap();
        assert!(
            findings[0].message.contains("cannot be written")
                && findings[0].severity == Severity::Blocks
        );
        let refused = set(&*store, "KEY", "new").await;
        assert!(
            matches!(refused, Err(CallError::Refused(r)) if r.kind == RefusalKind::Local && r.remedy == Remedy::Operator)
        );
        assert_eq!(text_of(&folder), FILE);
    }

    #[test]
    fn the_configuration_names_the_store() {
        let config = serde_json::from_str(r#"{ "env_file": { "path": ".env" } }"#).unwrap();
        assert_eq!(
            crate::StoreConfig::EnvFile(Config { path: ".env".into(), create: false }),
            config
        );
        assert!(serde_json::from_str::<Config>(r#"{ "path": ".env", "crate": true }"#).is_err());
    }

    #[tokio::test]
    async fn everyone_knows_a_file_by_the_same_name() {
        let (folder, store) = folder_with(FILE);
        let beside = TempDir::new().unwrap();
        symlink(folder.path().join(".env"), beside.path().join(".env")).unwrap();
        assert_eq!(store.container(), store_at(beside.path(), true).container());
        assert_eq!(
            store.container(),
            store_at(&folder.path().join("..").join(folder.path().file_name().unwrap()), false)
                .container()
        );
        let missing = TempDir::new().unwrap();
        let before = store_at(missing.path(), true).container();
        fs::write(missing.path().join(".env"), "").unwrap();
        assert_eq!(store_at(missing.path(), true).container(), before);
    }

    #[tokio::test]
    async fn a_dropped_call_does_not_land_later() {
        let (folder, store) = folder_with(FILE);
        let lock = fs::File::open(folder.path()).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let write = set(&*store, "KEY", "late");
        assert!(tokio::time::timeout(std::time::Duration::from_millis(50), write).await.is_err());
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock).unwrap();
        // A later writer waits for the abandoned one if that still holds the lock.
        assert_eq!(set(&*store, "PORT", "3002").await, Ok(Written { changed: true }));
        assert_eq!(value_of(&*store, "KEY").await.as_deref(), Some("old"));
    }
}
