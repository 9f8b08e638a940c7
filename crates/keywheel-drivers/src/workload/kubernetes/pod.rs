//! What a pod shows of the values that it holds, and why one does not come up.
//!
//! The values of variables were read when a container started, and a file of a volume may have been mounted when the pod was
//! made. So a pod has more than one time that counts where these lie apart, and each is listed as a replica of its own: the
//! pod holds the values if every one of them does.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keywheel_core::evidence::{Replica, Shows};
use keywheel_core::fingerprint::Fingerprint;
use keywheel_core::planted;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::slot;

use super::reads::{Read, reads};
use super::secrets::{Content, Known};

/// How exact starts are: they are noted in whole seconds.
pub(super) const GRANULARITY: Span = Span::seconds(1);

/// How far the cluster's clock is ahead of this machine's, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Skew(i64);

impl Skew {
    /// Takes it from the `Date` of an answer, in whole seconds, that came between two times of this machine. Clocks that may be
    /// the same count as the same.
    pub(super) fn of(date: i64, asked: Timestamp, answered: Timestamp) -> Self {
        let least = date - answered.millis();
        let most = date + 1_000 - asked.millis();
        Self(if least > 0 { least } else { most.min(0) })
    }

    /// Returns the cluster's time at a time of this machine.
    pub(super) fn there(self, at: Timestamp) -> Timestamp {
        Timestamp::from_millis(at.millis() + self.0)
    }

    fn here(self, time: &Time) -> Timestamp {
        Timestamp::from_millis(time.0.as_millisecond() - self.0)
    }
}

/// How a pod is looked at.
pub(super) struct Look<'a> {
    /// The slots, by name.
    pub slots: &'a [String],
    /// Their Secrets.
    pub known: &'a Known,
    /// The only container that counts, where one is named.
    pub container: Option<&'a str>,
    /// Of the cluster's clock.
    pub skew: Skew,
}

impl Look<'_> {
    /// Lists what a pod shows; nothing where it is of an older template than the present one.
    pub(super) fn at(&self, pod: &Pod, is_current: bool) -> Vec<Replica> {
        let reads = pod.spec.as_ref().map(reads).unwrap_or_default();
        let mut seen = Seen::default();
        for slot in self.slots {
            self.take(slot, &reads, &mut seen);
        }
        let is_fixed = !seen.fixed.is_empty();
        let is_blind = seen.is_blind || !is_current && !planted!("older_revision_counts");
        let shows = || match is_blind {
            true => Shows::Nothing,
            false if !is_fixed => Shows::Slots(seen.shown.clone()),
            false if seen.shown.is_empty() => Shows::FixedAtStart,
            false => Shows::Partly { shown: seen.shown.clone(), fixed: seen.fixed.clone() },
        };
        let starts = self.starts(pod, &seen.by);
        let several = starts.len() > 1;
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let replicas = starts.into_iter().map(|(part, started_at)| Replica {
            id: if several { format!("{name}/{part}") } else { name.to_owned() },
            started_at,
            shows: shows(),
        });
        replicas.collect()
    }

    fn take<'r>(&self, slot: &String, reads: &'r [Read], seen: &mut Seen<'r>) {
        let (container, key) = slot::parts(slot);
        let Some(names) = self.known.secrets.get(container) else {
            seen.is_blind = true;
            return;
        };
        let counts = |read: &&Read| {
            let is_ours = self.container.is_none() || read.container.as_deref() == self.container;
            is_ours && names.all.contains_key(&read.secret) && read.gives(key)
        };
        let mut held = BTreeSet::new();
        let mut is_read = false;
        for read in reads.iter().filter(counts) {
            is_read = true;
            let any = planted!("any_version_counts").then_some(&names.current);
            match &names.all[any.unwrap_or(&read.secret)] {
                Content::Fixed(contents) => {
                    held.insert(contents.get(key).copied());
                }
                Content::CanChange if read.secret == names.current => {
                    seen.by.push(read);
                    if !seen.fixed.contains(slot) {
                        seen.fixed.push(slot.clone());
                    }
                }
                // It was current once, and nobody knows what it held when it was read.
                Content::CanChange | Content::Unread => seen.is_blind = true,
            }
        }
        let is_mixed = held.len() > 1 || !held.is_empty() && seen.fixed.contains(slot);
        seen.is_blind |= !is_read || is_mixed;
        seen.shown.extend(held.into_iter().flatten().map(|held| (slot.clone(), held)));
    }

    /// Lists when values that are fixed were read, at the latest and, where it differs, at the earliest.
    fn starts(&self, pod: &Pod, by: &[&Read]) -> Vec<(String, Option<Timestamp>)> {
        let made = pod.metadata.creation_timestamp.as_ref().map(|made| self.skew.here(made));
        let containers: BTreeSet<_> =
            by.iter().filter_map(|read| read.container.as_deref()).collect();
        let mut starts = Vec::new();
        let mut last = None;
        for container in containers {
            let start = started(pod, container).map(|at| self.skew.here(at));
            // A node whose clock is slow starts a container before its pod was made.
            let start = start.max(start.and(made));
            last = last.max(start);
            starts.push((container.to_owned(), start));
        }
        let is_early = last.zip(made).is_some_and(|(last, made)| last.since(made) > GRANULARITY);
        let is_mounted = by.iter().any(|read| read.how.is_mounted());
        if is_mounted && is_early && !planted!("mounted_when_it_started") {
            starts.push(("volumes".into(), made));
        }
        if starts.is_empty() {
            starts.push((String::new(), made));
        }
        starts
    }
}

#[derive(Default)]
struct Seen<'r> {
    shown: Vec<(String, Fingerprint)>,
    fixed: Vec<String>,
    /// What was fixed.
    by: Vec<&'r Read>,
    is_blind: bool,
}

/// Returns when a container last began to read, if it runs, or prepared its pod and ended well.
fn started<'p>(pod: &'p Pod, container: &str) -> Option<&'p Time> {
    let status = pod.status.as_ref()?;
    let of = |list: &'p Option<Vec<ContainerStatus>>| {
        list.iter().flatten().find(|status| status.name == container)
    };
    if let Some(prepared) = of(&status.init_container_statuses) {
        let state = prepared.state.as_ref()?;
        let ended = state.terminated.as_ref().filter(|ended| ended.exit_code == 0);
        let running = state.running.as_ref().and_then(|running| running.started_at.as_ref());
        return running.or_else(|| ended.and_then(|ended| ended.started_at.as_ref()));
    }
    let usual = of(&status.container_statuses).or_else(|| of(&status.ephemeral_container_statuses));
    usual?.state.as_ref()?.running.as_ref()?.started_at.as_ref()
}

/// Whether nothing of a pod runs, or will again. One that is being deleted counts for as long as a container runs.
pub(super) fn is_gone(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return true;
    }
    let containers = status.container_statuses.iter().flatten();
    let ended =
        |one: &ContainerStatus| one.state.as_ref().is_some_and(|it| it.terminated.is_some());
    let mut containers = containers.peekable();
    let is_leaving = pod.metadata.deletion_timestamp.is_some();
    is_leaving && containers.peek().is_some() && containers.all(ended)
}

/// Whether a pod is ready.
pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True")
}

/// Reasons for which a container waits and that no time cures.
const HOPELESS: &[&str] = &[
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
];

/// Says why a pod does not come up, if it does not: which container, and how it ended. What it wrote is not repeated, and what
/// began before a time of the cluster does not count.
pub(super) fn trouble(pod: &Pod, since: Option<Timestamp>) -> Option<String> {
    let status = pod.status.as_ref()?;
    let counts = |at: Option<&Time>| {
        let at = at.map(|at| Timestamp::from_millis(at.0.as_millisecond()));
        since.is_none_or(|since| at.is_none_or(|at| at > since))
    };
    let prepares = status.init_container_statuses.iter().flatten();
    let statuses = prepares.chain(status.container_statuses.iter().flatten());
    let of_one = |status: &ContainerStatus| {
        ended_badly(status, &counts).or_else(|| {
            let made = pod.metadata.creation_timestamp.as_ref();
            does_not_start(status).filter(|_| counts(made))
        })
    };
    if let Some(trouble) = statuses.into_iter().find_map(of_one) {
        return Some(trouble);
    }
    let reason = status.reason.as_deref().filter(|reason| is_word(reason));
    let evicted = matches!(reason, Some("Evicted" | "Preempting" | "Terminated" | "NodeShutdown"));
    (status.phase.as_deref() == Some("Failed") && !evicted)
        .then(|| format!("failed ({})", reason.unwrap_or("no reason given")))
}

fn ended_badly(
    status: &ContainerStatus,
    counts: &impl Fn(Option<&Time>) -> bool,
) -> Option<String> {
    let name = &status.name;
    let now = status.state.as_ref().and_then(|state| state.terminated.as_ref());
    let before = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let before = before.filter(|_| status.restart_count > 0);
    let mut ends = now.into_iter().chain(before);
    let ended = ends.find(|ended| ended.exit_code != 0 && counts(ended.started_at.as_ref()))?;
    let reason = ended.reason.as_deref().filter(|reason| is_word(reason));
    let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    Some(format!("container `{name}` ended with exit code {}{reason}", ended.exit_code))
}

fn does_not_start(status: &ContainerStatus) -> Option<String> {
    let waits = status.state.as_ref().and_then(|state| state.waiting.as_ref());
    let reason = waits.and_then(|waiting| waiting.reason.as_deref());
    let hopeless = reason.filter(|reason| HOPELESS.contains(reason))?;
    Some(format!("container `{}` does not start ({hopeless})", status.name))
}

/// Whether a text is a reason in one word, and nothing that a program wrote.
fn is_word(text: &str) -> bool {
    (1..=60).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use keywheel_core::evidence::{Expected, Proof, judge};
    use keywheel_core::fingerprint::{FingerprintKeyId, Fingerprinter};
    use serde_json::{Value, json};

    use super::super::secrets::Names;
    use super::*;

    const SLOT: &str = "keys\na";

    fn fingerprinter() -> Fingerprinter {
        Fingerprinter::new(FingerprintKeyId(1), zeroize::Zeroizing::new([1; 32]))
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    fn time(seconds: i64) -> String {
        jiff::Timestamp::from_second(seconds).unwrap().to_string()
    }

    fn env() -> Value {
        json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "a"}}}])
    }

    fn pod(made: i64, containers: Value, statuses: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "app-1", "creationTimestamp": time(made)},
            "spec": {"containers": containers, "volumes": [{"name": "v", "secret": {"secretName": "keys"}}]},
            "status": {"phase": "Running", "containerStatuses": statuses}
        }))
        .unwrap()
    }

    fn running(name: &str, since: i64) -> Value {
        json!({"name": name, "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {"startedAt": time(since)}}})
    }

    fn known(names: Names) -> Known {
        Known { secrets: BTreeMap::from([("keys".into(), names)]) }
    }

    fn proofs(pod: &Pod, known: &Known, is_current: bool, before: Option<Timestamp>) -> Vec<Proof> {
        let slots = [SLOT.to_owned()];
        let look = Look { slots: &slots, known, container: None, skew: Skew(0) };
        let wanted = [(SLOT.to_owned(), Some(fingerprinter().of(b"new")))];
        let expected = Expected {
            slots: &wanted,
            held_since: Some(at(100)),
            untouched_before: before,
            granularity: GRANULARITY,
        };
        look.at(pod, is_current).iter().map(|replica| judge(replica, &expected)).collect()
    }

    #[test]
    fn h42_a_variable_is_held_only_by_a_container_that_started_after_the_write() {
        let known = known(Names::in_place("keys"));
        let pod =
            |since| pod(50, json!([{"name": "app", "env": env()}]), json!([running("app", since)]));
        assert_eq!(proofs(&pod(90), &known, true, None), [Proof::Unknown]);
        assert_eq!(proofs(&pod(101), &known, true, None), [Proof::Unknown]);
        assert_eq!(proofs(&pod(102), &known, true, None), [Proof::Holds]);
        assert_eq!(
            proofs(&pod(102), &known, false, None),
            [Proof::Unknown],
            "of an older template"
        );
    }

    #[test]
    fn of_two_containers_that_read_each_must_have_started_after_the_write() {
        let known = known(Names::in_place("keys"));
        let containers = json!([{"name": "app", "env": env()}, {"name": "side", "env": env()}, {"name": "deaf"}]);
        let statuses = json!([running("app", 50), running("side", 200), running("deaf", 50)]);
        let pod = pod(50, containers, statuses);
        assert_eq!(proofs(&pod, &known, true, None), [Proof::Unknown, Proof::Holds]);
    }

    #[test]
    fn h44_a_file_that_may_have_been_mounted_before_the_write_proves_nothing() {
        let known = known(Names::in_place("keys"));
        let mounts = json!([{"name": "app", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]);
        let early = pod(50, mounts.clone(), json!([running("app", 200)]));
        assert!(proofs(&early, &known, true, None).contains(&Proof::Unknown));
        let late = pod(150, mounts, json!([running("app", 200)]));
        assert!(proofs(&late, &known, true, None).iter().all(|proof| *proof == Proof::Holds));
    }

    #[test]
    fn a_pod_that_was_there_before_the_rotation_is_untouched_unless_it_started_anew() {
        let known = known(Names::in_place("keys"));
        let pod =
            |since| pod(10, json!([{"name": "app", "env": env()}]), json!([running("app", since)]));
        assert_eq!(proofs(&pod(11), &known, true, Some(at(80))), [Proof::Holds]);
        assert_eq!(proofs(&pod(90), &known, true, Some(at(80))), [Proof::Unknown]);
    }

    #[test]
    fn a_container_that_waits_to_start_again_proves_nothing() {
        let known = known(Names::in_place("keys"));
        let waits = json!([{"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "startedAt": time(200)}}}]);
        let pod = pod(150, json!([{"name": "app", "env": env()}]), waits);
        assert_eq!(proofs(&pod, &known, true, Some(at(1_000))), [Proof::Unknown]);
    }

    #[test]
    fn h65_a_pod_that_names_an_immutable_secret_shows_what_that_holds_whenever_it_started() {
        let held = |value: &[u8]| {
            Content::Fixed(BTreeMap::from([("a".to_owned(), fingerprinter().of(value))]))
        };
        let names = Names {
            is_versioned: true,
            current: "keys-2".into(),
            all: BTreeMap::from([
                ("keys".into(), Content::CanChange),
                ("keys-1".into(), held(b"old")),
                ("keys-2".into(), held(b"new")),
            ]),
        };
        let known = known(names);
        let pod = |secret: &str| {
            let env =
                json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": secret, "key": "a"}}}]);
            pod(1, json!([{"name": "app", "env": env}]), json!([running("app", 2)]))
        };
        assert_eq!(proofs(&pod("keys-2"), &known, true, None), [Proof::Holds]);
        assert_eq!(proofs(&pod("keys-1"), &known, true, None), [Proof::Other]);
        assert_eq!(proofs(&pod("keys"), &known, true, None), [Proof::Unknown], "it could change");
        assert_eq!(proofs(&pod("else"), &known, true, None), [Proof::Unknown], "it reads it not");
    }

    #[test]
    fn a_pod_counts_until_nothing_of_it_runs() {
        let with = |phase: &str, deleted: bool, state: Value| -> Pod {
            let mut pod = json!({"metadata": {}, "status": {"phase": phase, "containerStatuses": [
                {"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state}]}});
            if deleted {
                pod["metadata"]["deletionTimestamp"] = json!(time(1));
            }
            serde_json::from_value(pod).unwrap()
        };
        let (runs, ended) = (json!({"running": {}}), json!({"terminated": {"exitCode": 0}}));
        assert!(!is_gone(&with("Running", true, runs.clone())));
        assert!(!is_gone(&with("Pending", false, runs)));
        assert!(!is_gone(&with("Running", false, ended.clone())), "it is started again");
        assert!(is_gone(&with("Running", true, ended.clone())));
        assert!(is_gone(&with("Failed", false, ended)));
    }

    #[test]
    fn what_keeps_a_pod_from_coming_up_is_named_without_what_it_wrote() {
        let told = |status: Value| {
            let pod = json!({"status": {"containerStatuses": [status]}});
            trouble(&serde_json::from_value(pod).unwrap(), None)
        };
        let with = |restarts: i32, state: Value, last: Value| {
            told(
                json!({"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": restarts, "state": state, "lastState": last}),
            )
        };
        let died =
            json!({"terminated": {"exitCode": 3, "reason": "Error", "message": "kwcanary-1f"}});
        let expected = Some("container `app` ended with exit code 3 (Error)".to_owned());
        assert_eq!(with(0, died.clone(), json!({})), expected);
        assert_eq!(with(1, json!({"running": {}}), died), expected);
        let waits = |reason: &str| {
            with(0, json!({"waiting": {"reason": reason, "message": "kwcanary-1f"}}), json!({}))
        };
        assert_eq!(waits("ContainerCreating"), None);
        let refused = waits("CreateContainerConfigError").unwrap();
        assert!(refused.contains("CreateContainerConfigError") && !refused.contains("kwcanary"));
        assert_eq!(with(0, json!({"running": {}}), json!({})), None);
    }

    #[test]
    fn clocks_that_may_be_the_same_count_as_the_same() {
        let skew = |date: i64, asked: i64, answered: i64| {
            Skew::of(date, Timestamp::from_millis(asked), Timestamp::from_millis(answered)).0
        };
        assert_eq!(skew(10_000, 10_100, 10_900), 0);
        assert_eq!(skew(10_000, 10_990, 11_010), 0);
        assert_eq!(skew(15_000, 10_000, 10_100), 4_900);
        assert_eq!(skew(5_000, 10_000, 10_100), -4_000);
    }
}
