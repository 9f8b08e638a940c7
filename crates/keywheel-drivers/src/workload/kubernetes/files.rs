//! Files that the kubelet brings up to date, looked into from inside the containers that read them: by `cat`, which the image
//! must have. What they hold stays in memory, and nothing but its fingerprint is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration as StdDuration;

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use keywheel_core::fingerprint::{Fingerprint, Fingerprinter};
use keywheel_core::secret::SecretValue;
use keywheel_driver::slot;
use kube::Api;
use kube::api::AttachParams;
use tokio::io::AsyncReadExt;
use zeroize::Zeroizing;

use super::namespace::Namespace;
use super::pod::statuses;
use super::reads::{Read, reads};
use super::secrets::Known;
use super::{OnePod, Pods};

/// How long a look into one file may take.
const ANSWER: StdDuration = StdDuration::from_secs(10);

/// How many files are looked into at once.
const AT_ONCE: usize = 8;

/// The most that a file may hold: as much as a Secret.
const LARGEST: u64 = 1 << 20;

/// A file of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct File {
    /// The pod, which no other one of its name is.
    uid: String,
    pod: String,
    container: String,
    path: String,
}

impl File {
    /// Returns what people call it.
    pub(super) fn in_words(&self) -> String {
        format!("`{}` of container `{}` of pod `{}`", self.path, self.container, self.pod)
    }
}

/// What a file holds; none where it is not there.
type Held = Option<SecretValue>;

/// What the files hold that were looked into; none where one is not there.
#[derive(Default)]
pub(super) struct Files(BTreeMap<File, Option<Fingerprint>>);

impl Files {
    /// Returns what the files hold by which a pod is given a key; none where not all of them were looked into.
    pub(super) fn told(
        &self,
        pod: &Pod,
        read: &Read,
        key: &str,
    ) -> Option<Vec<Option<Fingerprint>>> {
        let files = files(pod, read, key);
        let told: Option<Vec<_>> = files.iter().map(|file| self.0.get(file).copied()).collect();
        told.filter(|told| !told.is_empty())
    }
}

impl Pods {
    /// Looks into the files of slots, of every container that runs. What cannot be looked into is missing.
    pub(super) async fn files(
        &self,
        pods: &[OnePod],
        slots: &[String],
        known: &Known,
        fingerprinter: &Fingerprinter,
    ) -> Files {
        if self.config.take_up.is_roll() {
            return Files::default();
        }
        let looked = self.look_into(pods, slots, known).await.into_iter();
        let told = looked.filter_map(|(file, held)| {
            let held = held.ok()?;
            Some((file, held.map(|held| fingerprinter.of(held.expose()))))
        });
        Files(told.collect())
    }

    /// Says of each file whether it can be looked into, and what is in it.
    pub(super) async fn look_into(
        &self,
        pods: &[OnePod],
        slots: &[String],
        known: &Known,
    ) -> Vec<(File, Result<Held, String>)> {
        let all: BTreeSet<_> =
            pods.iter().flat_map(|one| self.files_of(&one.pod, slots, known)).collect();
        let looked = stream::iter(all).map(|file| async {
            let look = held(&self.namespace, &file);
            let held = tokio::time::timeout(ANSWER, look).await;
            let late = || Err(format!("no answer came within {} s", ANSWER.as_secs()));
            (file, held.unwrap_or_else(|_| late()))
        });
        looked.buffer_unordered(AT_ONCE).collect().await
    }

    /// Lists the files by which the containers of a pod that run are given slots.
    fn files_of(&self, pod: &Pod, slots: &[String], known: &Known) -> Vec<File> {
        let reads = pod.spec.as_ref().map(reads).unwrap_or_default();
        let counts = self.config.container.as_deref();
        let counts = |read: &&Read| counts.is_none() || read.container.as_deref() == counts;
        let mut all = Vec::new();
        for slot in slots {
            let (container, key) = slot::parts(slot);
            let Some(names) = known.secrets.get(container) else { continue };
            for read in reads.iter().filter(counts) {
                if read.secret == names.current && read.gives(key) && runs(pod, read) {
                    all.extend(files(pod, read, key));
                }
            }
        }
        all
    }
}

fn files(pod: &Pod, read: &Read, key: &str) -> Vec<File> {
    let meta = &pod.metadata;
    let Some(container) = &read.container else { return Vec::new() };
    let files = read.files(key).into_iter().map(|path| File {
        uid: meta.uid.clone().unwrap_or_default(),
        pod: meta.name.clone().unwrap_or_default(),
        container: container.clone(),
        path,
    });
    files.collect()
}

fn runs(pod: &Pod, read: &Read) -> bool {
    let mut own = statuses(pod).filter(|status| read.container.as_ref() == Some(&status.name));
    own.any(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()))
}

/// Reads a file; says why where it cannot be read.
async fn held(namespace: &Namespace, file: &File) -> Result<Held, String> {
    let shown = run(namespace, file, &["cat", &file.path]).await?;
    match shown.code {
        0 => Ok(Some(shown.out)),
        // It may be missing, or be kept from whoever the container runs as.
        1 => match run(namespace, file, &["test", "-e", &file.path]).await?.code {
            1 => Ok(None),
            _ => Err("it is there, and cannot be read".into()),
        },
        code => Err(format!("`cat` ended with exit code {code}")),
    }
}

/// What a program did.
struct Ended {
    out: SecretValue,
    code: i32,
}

async fn run(namespace: &Namespace, file: &File, command: &[&str]) -> Result<Ended, String> {
    let client = namespace.cluster.client().await.map_err(|refusal| refusal.to_string())?;
    let pods: Api<Pod> = Api::namespaced(client, &namespace.name);
    let how = AttachParams::default().container(&file.container).stdin(false).stderr(false);
    // What a server says of it may repeat what it was sent.
    let refused = |_| "the cluster lets no program run in it".to_owned();
    let mut running = pods.exec(&file.pod, command.iter().copied(), &how).await.map_err(refused)?;
    let (Some(out), Some(status)) = (running.stdout(), running.take_status()) else {
        return Err("its program has no output".into());
    };
    let mut read = Zeroizing::new(Vec::new());
    let broken = |_| "its output broke off".to_owned();
    out.take(LARGEST + 1).read_to_end(&mut read).await.map_err(broken)?;
    if read.len() as u64 > LARGEST {
        return Err("it holds more than a Secret can".into());
    }
    let status = status.await.ok_or("nothing tells how its program ended")?;
    let code =
        exit_code(&status).ok_or_else(|| format!("`{}` cannot be run in its image", command[0]))?;
    Ok(Ended { out: SecretValue::new(std::mem::take(&mut *read)), code })
}

/// Returns how a program ended; none where it did not begin.
fn exit_code(status: &Status) -> Option<i32> {
    if status.status.as_deref() == Some("Success") {
        return Some(0);
    }
    let details =
        status.details.as_ref().filter(|_| status.reason.as_deref() == Some("NonZeroExitCode"))?;
    let mut causes = details.causes.iter().flatten();
    let code = causes.find(|cause| cause.reason.as_deref() == Some("ExitCode"))?;
    let code = code.message.as_deref()?.parse().ok()?;
    // So ends what starts a program where it cannot be started.
    (!matches!(code, 126 | 127)).then_some(code)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_program_that_ran_has_an_exit_code() {
        let code = |status| exit_code(&serde_json::from_value(status).unwrap());
        let failed = |code: &str| json!({"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": [{"reason": "ExitCode", "message": code}]}});
        assert_eq!(code(json!({"status": "Success"})), Some(0));
        assert_eq!(code(failed("1")), Some(1));
        assert_eq!(code(failed("127")), None);
        assert_eq!(code(json!({"status": "Failure", "reason": "InternalError"})), None);
    }
}
