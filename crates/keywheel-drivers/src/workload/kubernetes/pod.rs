//! What a pod shows of the values that it holds, and why one does not come up.
//!
//! Whatever a pod was given, it was given after the API server made it. So a pod proves a value by when it was made, on the clock
//! of the API server; when its containers started is told by the clock of its node, which may be another.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keywheel_core::evidence::{Replica, Shows};
use keywheel_core::fingerprint::Fingerprint;
use keywheel_core::planted;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::slot;

use super::files::Files;
use super::reads::{Read, reads};
use super::secrets::{Content, Known};

/// How exact starts are: they are noted in whole seconds, and the clocks are compared by answers that are dated likewise.
pub(super) const GRANULARITY: Span = Span::millis(1_500);

/// How long an answer may take by which clocks are compared.
const SOON: i64 = 1_000;

/// How far the cluster's clock is ahead of this machine's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Skew {
    /// In milliseconds.
    ahead: i64,
    /// Since when this machine's clock was not set: what was made before cannot be compared with what was written before (H32).
    since: Timestamp,
}

impl Skew {
    /// Takes it from the `Date` of an answer, in whole seconds, that came between two times of this machine: the middle of what it
    /// may be. None where that is too much.
    pub(super) fn of(date: i64, asked: Timestamp, answered: Timestamp) -> Option<Self> {
        let least = date - answered.millis();
        let most = date + 1_000 - asked.millis();
        let is_exact = most - least <= 1_000 + SOON || planted!("slow_answer_tells_the_time");
        let ahead = least + (most - least) / 2;
        is_exact.then_some(Self { ahead, since: Timestamp::from_millis(i64::MIN) })
    }

    /// Takes it for what was made since an instant.
    pub(super) fn since(self, since: Timestamp) -> Self {
        Self { since, ..self }
    }

    /// Returns the cluster's time at a time of this machine.
    pub(super) fn there(self, at: Timestamp) -> Timestamp {
        Timestamp::from_millis(at.millis().saturating_add(self.ahead))
    }

    /// Returns this machine's time in the middle of a second of the cluster.
    fn here(self, time: &Time) -> Option<Timestamp> {
        let at = Timestamp::from_millis(time.0.as_millisecond() + 500 - self.ahead);
        (at >= self.since || planted!("set_clock_unnoticed")).then_some(at)
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
    /// What the files hold that were looked into.
    pub files: &'a Files,
}

impl Look<'_> {
    /// Says what a pod shows; nothing where it is of an older template than the present one, unless its files themselves tell.
    pub(super) fn at(&self, pod: &Pod, is_current: bool) -> Replica {
        let reads = pod.spec.as_ref().map(reads).unwrap_or_default();
        let mut seen = Seen::default();
        for slot in self.slots {
            self.take(slot, pod, &reads, &mut seen);
        }
        let counts = is_current || seen.is_looked_into() || planted!("older_revision_counts");
        let is_blind = seen.is_blind || !counts;
        let started_at = self.started(pod, &seen.by);
        let Seen { shown, unseen, by, .. } = seen;
        let is_live = by.iter().any(|read| read.how.is_live()) || has_restarted(pod, &by);
        let shows = match is_blind {
            true => Shows::Nothing,
            false if unseen.is_empty() => Shows::Slots(shown),
            false if is_live => Shows::Live { shown, unseen },
            false => Shows::Partly { shown, fixed: unseen },
        };
        Replica { id: pod.metadata.name.clone().unwrap_or_default(), started_at, shows }
    }

    fn take<'r>(&self, slot: &String, pod: &Pod, reads: &'r [Read], seen: &mut Seen<'r>) {
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
                    if let Some(told) = self.files.told(pod, read, key) {
                        seen.looked_into = true;
                        held.extend(told);
                        continue;
                    }
                    seen.by.push(read);
                    if !seen.unseen.contains(slot) {
                        seen.unseen.push(slot.clone());
                    }
                }
                // It was current once, and nobody knows what it held when it was read.
                Content::CanChange | Content::Unread => seen.is_blind = true,
            }
        }
        let is_mixed = held.len() > 1 || !held.is_empty() && seen.unseen.contains(slot);
        seen.is_blind |= !is_read || is_mixed;
        seen.shown.extend(held.into_iter().flatten().map(|held| (slot.clone(), held)));
    }

    /// Returns when a pod was made, where every container that reads values has begun to.
    fn started(&self, pod: &Pod, by: &[&Read]) -> Option<Timestamp> {
        let made = self.skew.here(pod.metadata.creation_timestamp.as_ref()?)?;
        let mut started = made;
        for container in by.iter().filter_map(|read| read.container.as_deref()) {
            let by_its_node = self.skew.here(begun(pod, container)?);
            if planted!("clock_of_the_node_counts") {
                started = started.max(by_its_node?);
            }
        }
        Some(started)
    }
}

#[derive(Default)]
struct Seen<'r> {
    shown: Vec<(String, Fingerprint)>,
    unseen: Vec<String>,
    /// What gives what it does not show.
    by: Vec<&'r Read>,
    is_blind: bool,
    /// Whether some of it stands in files that were looked into.
    looked_into: bool,
}

impl Seen<'_> {
    /// Whether everything that can change stands in files that were looked into.
    fn is_looked_into(&self) -> bool {
        self.looked_into && self.unseen.is_empty()
    }
}

/// Whether a container that reads started more than once: nobody tells when, other than by the clock of its node.
fn has_restarted(pod: &Pod, by: &[&Read]) -> bool {
    let reads = |status: &ContainerStatus| {
        by.iter().any(|read| read.container.as_ref() == Some(&status.name))
    };
    let again = |status: &ContainerStatus| status.restart_count > 0 && reads(status);
    statuses(pod).any(again) && !planted!("restart_is_a_start")
}

/// Lists what is said of each container, whatever kind it is of.
pub(super) fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status.iter().flat_map(|status| {
        let prepares = status.init_container_statuses.iter().flatten();
        let usual = status.container_statuses.iter().flatten();
        prepares.chain(usual).chain(status.ephemeral_container_statuses.iter().flatten())
    })
}

/// Returns when a container last began to read, if it runs, or prepared its pod and ended well.
fn begun<'p>(pod: &'p Pod, container: &str) -> Option<&'p Time> {
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

/// Whether nothing of a pod runs, or will again. One that is being deleted, or ended, counts for as long as a container runs:
/// those beside the usual ones too.
pub(super) fn is_gone(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let counts = |one: &&ContainerStatus| match planted!("only_usual_containers_run") {
        true => status.container_statuses.iter().flatten().any(|it| it.name == one.name),
        false => true,
    };
    let states = || statuses(pod).filter(counts).map(|one| one.state.as_ref());
    let runs = states().flatten().any(|state| state.running.is_some());
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return !runs;
    }
    let have_ended = states().all(|state| state.is_some_and(|it| it.terminated.is_some()));
    pod.metadata.deletion_timestamp.is_some() && have_ended && states().next().is_some()
}

/// Whether a pod is ready.
pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True")
}

/// Reasons for which a container waits and that no time cures.
const HOPELESS: &[&str] = &["CrashLoopBackOff", "InvalidImageName", "ErrImageNeverPull"];

/// Reasons for which the kubelet tries again soon, and that often pass: a registry that does not answer, a Secret that the node has not
/// heard of yet, a runtime that is busy.
const PASSING: &[&str] = &[
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "ErrImagePull",
    "ImagePullBackOff",
];

/// How long after a pod was made a reason that may pass is waited out.
const PASSES: Span = Span::seconds(30);

/// Says why a pod does not come up, if it does not: which container, and how it ended. What it wrote is not repeated, and what
/// began before a time of the cluster does not count. `now` is the cluster's too.
pub(crate) fn trouble(pod: &Pod, since: Option<Timestamp>, now: Timestamp) -> Option<String> {
    let status = pod.status.as_ref()?;
    let since = Since::of(pod, since);
    let made = pod.metadata.creation_timestamp.as_ref().map(end);
    let is_waited_out = made.is_none_or(|made| now > made + PASSES);
    let is_waited_out = is_waited_out || planted!("passing_reason_is_the_end");
    let of_one = |status: &ContainerStatus| {
        let counts = |reason: &&str| is_waited_out || HOPELESS.contains(reason);
        let reason = does_not_start(status).filter(counts).filter(|_| since.counts(None));
        let waits = reason.map(|it| format!("container `{}` does not start ({it})", status.name));
        ended_badly(status, since).or(waits)
    };
    if let Some(trouble) = lasting(status).find_map(of_one) {
        return Some(trouble);
    }
    let reason = status.reason.as_deref().filter(|reason| is_word(reason));
    let evicted = matches!(reason, Some("Evicted" | "Preempting" | "Terminated" | "NodeShutdown"));
    (status.phase.as_deref() == Some("Failed") && !evicted)
        .then(|| format!("failed ({})", reason.unwrap_or("no reason given")))
}

/// Whether a pod does not run now for a reason that began after a time of the cluster and that its own restarts do not cure.
pub(super) fn is_broken(pod: &Pod, since: Option<Timestamp>) -> bool {
    if planted!("former_crash_is_in_the_way") {
        return trouble(pod, None, Timestamp::from_millis(i64::MAX)).is_some();
    }
    let since = Since::of(pod, since);
    let runs_no_more = |status: &ContainerStatus| {
        let state = status.state.as_ref();
        let has_ended = state.and_then(|state| state.terminated.as_ref());
        has_ended.is_some_and(|it| it.exit_code != 0) || does_not_start(status).is_some()
    };
    let mut broken = pod.status.iter().flat_map(lasting).filter(|status| runs_no_more(status));
    broken.any(|status| since.counts(None) || ended_badly(status, since).is_some())
}

/// Lists what is said of the containers that a pod cannot do without.
fn lasting(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    let prepares = status.init_container_statuses.iter().flatten();
    prepares.chain(status.container_statuses.iter().flatten())
}

/// From when on what befalls a pod counts.
#[derive(Clone, Copy)]
struct Since {
    at: Option<Timestamp>,
    /// Whether the pod was made later: then everything does, whatever its node calls the time.
    is_new: bool,
}

impl Since {
    fn of(pod: &Pod, at: Option<Timestamp>) -> Self {
        let made = pod.metadata.creation_timestamp.as_ref().map(end);
        Self { at, is_new: at.is_none_or(|at| made.is_none_or(|made| made > at)) }
    }

    fn counts(self, begun: Option<&Time>) -> bool {
        self.is_new || begun.map(end).zip(self.at).is_some_and(|(begun, at)| begun > at)
    }
}

/// Returns the end of a second that was noted.
fn end(time: &Time) -> Timestamp {
    Timestamp::from_millis(time.0.as_millisecond() + 999)
}

fn ended_badly(status: &ContainerStatus, since: Since) -> Option<String> {
    let name = &status.name;
    let now = status.state.as_ref().and_then(|state| state.terminated.as_ref());
    let before = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let before = before.filter(|_| status.restart_count > 0);
    let mut ends = now.into_iter().chain(before);
    let ended =
        ends.find(|ended| ended.exit_code != 0 && since.counts(ended.started_at.as_ref()))?;
    let reason = ended.reason.as_deref().filter(|reason| is_word(reason));
    let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    Some(format!("container `{name}` ended with exit code {}{reason}", ended.exit_code))
}

/// Returns why a container waits, where that is no part of a usual start.
fn does_not_start(status: &ContainerStatus) -> Option<&str> {
    let waits = status.state.as_ref().and_then(|state| state.waiting.as_ref());
    let reason = waits.and_then(|waiting| waiting.reason.as_deref());
    reason.filter(|reason| HOPELESS.contains(reason) || PASSING.contains(reason))
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

    fn waiting(name: &str) -> Value {
        json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}})
    }

    fn skew(ahead: i64) -> Skew {
        Skew { ahead, since: Timestamp::from_millis(i64::MIN) }
    }

    fn known(names: Names) -> Known {
        Known { secrets: BTreeMap::from([("keys".into(), names)]) }
    }

    fn proof(pod: &Pod, known: &Known, is_current: bool, before: Option<Timestamp>) -> Proof {
        proof_with(skew(0), pod, known, is_current, before)
    }

    fn proof_with(
        skew: Skew,
        pod: &Pod,
        known: &Known,
        is_current: bool,
        before: Option<Timestamp>,
    ) -> Proof {
        let slots = [SLOT.to_owned()];
        let files = Files::default();
        let look = Look { slots: &slots, known, container: None, skew, files: &files };
        let wanted = [(SLOT.to_owned(), Some(fingerprinter().of(b"new")))];
        let expected = Expected {
            slots: &wanted,
            held_since: Some(at(100)),
            untouched_before: before,
            granularity: GRANULARITY,
        };
        judge(&look.at(pod, is_current), &expected)
    }

    fn reader(made: i64, started: i64) -> Pod {
        pod(made, json!([{"name": "app", "env": env()}]), json!([running("app", started)]))
    }

    #[test]
    fn h42_a_variable_is_held_only_by_a_pod_that_was_made_after_the_write() {
        let known = known(Names::in_place("keys"));
        assert_eq!(proof(&reader(90, 91), &known, true, None), Proof::Unknown);
        assert_eq!(proof(&reader(101, 101), &known, true, None), Proof::Unknown);
        assert_eq!(proof(&reader(102, 102), &known, true, None), Proof::Holds);
        assert_eq!(
            proof(&reader(102, 102), &known, false, None),
            Proof::Unknown,
            "of an older template"
        );
    }

    #[test]
    fn h45_a_start_by_the_clock_of_a_node_proves_nothing() {
        let known = known(Names::in_place("keys"));
        assert_eq!(proof(&reader(90, 500), &known, true, None), Proof::Unknown);
        assert_eq!(proof(&reader(110, 20), &known, true, None), Proof::Holds);
    }

    #[test]
    fn of_two_containers_that_read_each_must_have_begun() {
        let known = known(Names::in_place("keys"));
        let pod = |side: Value| {
            let containers = json!([{"name": "app", "env": env()}, {"name": "side", "env": env()}, {"name": "deaf"}]);
            pod(150, containers, json!([running("app", 151), side, waiting("deaf")]))
        };
        assert_eq!(proof(&pod(running("side", 152)), &known, true, None), Proof::Holds);
        assert_eq!(proof(&pod(waiting("side")), &known, true, None), Proof::Unknown);
    }

    #[test]
    fn h44_a_file_that_may_have_been_mounted_before_the_write_proves_nothing() {
        let known = known(Names::in_place("keys"));
        let mounts = json!([{"name": "app", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]);
        let early = pod(50, mounts.clone(), json!([running("app", 200)]));
        assert_eq!(proof(&early, &known, true, None), Proof::Unknown);
        let late = pod(150, mounts, json!([running("app", 200)]));
        assert_eq!(proof(&late, &known, true, None), Proof::Holds);
    }

    #[test]
    fn h45_a_pod_that_was_there_before_the_rotation_is_untouched_unless_it_started_anew() {
        let known = known(Names::in_place("keys"));
        assert_eq!(proof(&reader(11, 12), &known, true, Some(at(80))), Proof::Holds);
        assert_eq!(proof(&reader(79, 79), &known, true, Some(at(80))), Proof::Unknown);
        let mut again = running("app", 12);
        again["restartCount"] = json!(1);
        let again = pod(11, json!([{"name": "app", "env": env()}]), json!([again]));
        assert_eq!(proof(&again, &known, true, Some(at(80))), Proof::Unknown);
    }

    #[test]
    fn h44_a_pod_whose_files_change_under_it_is_not_untouched() {
        let known = known(Names::in_place("keys"));
        let mounted = |mount: Value| {
            let mounts = json!([{"name": "app", "volumeMounts": [mount]}]);
            pod(11, mounts, json!([running("app", 12)]))
        };
        let file = mounted(json!({"name": "v", "mountPath": "/v"}));
        assert_eq!(proof(&file, &known, true, Some(at(80))), Proof::Unknown);
        let copy = mounted(json!({"name": "v", "mountPath": "/v/a", "subPath": "a"}));
        assert_eq!(proof(&copy, &known, true, Some(at(80))), Proof::Holds);
    }

    #[test]
    fn h32_a_pod_that_was_made_before_the_clock_was_set_proves_nothing() {
        let known = known(Names::in_place("keys"));
        // The clock was set forward by 60 s, so that it seems to have been made after the write.
        let set = skew(-60_000).since(at(165));
        assert_eq!(proof_with(set, &reader(95, 96), &known, true, None), Proof::Unknown);
        assert_eq!(proof_with(set, &reader(110, 111), &known, true, None), Proof::Holds);
    }

    #[test]
    fn a_container_that_waits_to_start_again_proves_nothing() {
        let known = known(Names::in_place("keys"));
        let waits = json!([{"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "startedAt": time(200)}}}]);
        let pod = pod(150, json!([{"name": "app", "env": env()}]), waits);
        assert_eq!(proof(&pod, &known, true, Some(at(1_000))), Proof::Unknown);
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
        assert_eq!(proof(&pod("keys-2"), &known, true, None), Proof::Holds);
        assert_eq!(proof(&pod("keys-1"), &known, true, None), Proof::Other);
        assert_eq!(proof(&pod("keys"), &known, true, None), Proof::Unknown, "it could change");
        assert_eq!(proof(&pod("else"), &known, true, None), Proof::Unknown, "it reads it not");
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
    fn h50_a_pod_counts_while_a_container_beside_the_usual_ones_runs() {
        let status = |state: Value| json!([{"name": "x", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state}]);
        let (runs, ended) =
            (status(json!({"running": {}})), status(json!({"terminated": {"exitCode": 0}})));
        for beside in ["initContainerStatuses", "ephemeralContainerStatuses"] {
            let with = |phase: &str, state: &Value| -> Pod {
                let mut usual = ended.clone();
                usual[0]["name"] = json!("app");
                let status = json!({"phase": phase, "containerStatuses": usual, beside: state});
                let meta = json!({"deletionTimestamp": time(1)});
                serde_json::from_value(json!({"metadata": meta, "status": status})).unwrap()
            };
            for phase in ["Running", "Failed"] {
                assert!(!is_gone(&with(phase, &runs)), "{beside} {phase}");
                assert!(is_gone(&with(phase, &ended)), "{beside} {phase}");
            }
        }
    }

    #[test]
    fn h52_a_pod_is_in_the_way_only_while_it_does_not_run_and_since_the_values_are_there() {
        let broken = |made: i64, state: Value, last: i64| {
            let died = |at: i64| json!({"terminated": {"exitCode": 1, "startedAt": time(at)}});
            let status = json!({"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 1, "state": state, "lastState": died(last)});
            is_broken(&pod(made, json!([{"name": "app"}]), json!([status])), Some(at(100)))
        };
        let waits = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let ended = json!({"terminated": {"exitCode": 1, "startedAt": time(60)}});
        assert!(broken(50, waits.clone(), 150));
        assert!(broken(150, waits.clone(), 60), "its node is slow");
        assert!(broken(150, ended.clone(), 60));
        assert!(!broken(50, waits, 60), "it did not run before either");
        assert!(!broken(50, ended, 60));
        assert!(!broken(50, json!({"running": {}}), 150), "it runs");
        assert!(!broken(150, json!({"running": {}}), 160));
    }

    #[test]
    fn what_keeps_a_pod_from_coming_up_is_named_without_what_it_wrote() {
        let told = |status: Value| {
            let pod = json!({"status": {"containerStatuses": [status]}});
            trouble(&serde_json::from_value(pod).unwrap(), None, at(0))
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
    fn h52_a_reason_that_may_pass_is_waited_out_for_a_while() {
        let told = |reason: &str, now: i64| {
            let waits = json!({"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": reason}}});
            trouble(&pod(100, json!([{"name": "app"}]), json!([waits])), Some(at(90)), at(now))
        };
        for passes in PASSING {
            assert_eq!(told(passes, 110), None);
            assert!(told(passes, 140).unwrap().contains(passes));
        }
        for hopeless in HOPELESS {
            assert!(told(hopeless, 101).unwrap().contains(hopeless));
        }
    }

    #[test]
    fn h45_a_clock_is_compared_by_an_answer_that_came_soon() {
        let skew = |date: i64, asked: i64, answered: i64| {
            Skew::of(date, Timestamp::from_millis(asked), Timestamp::from_millis(answered))
        };
        let ahead = |date, asked, answered| skew(date, asked, answered).unwrap().ahead;
        assert_eq!(ahead(10_000, 10_450, 10_550), 0);
        assert_eq!(ahead(15_000, 10_450, 10_550), 5_000);
        assert_eq!(ahead(5_000, 10_450, 10_550), -5_000);
        assert!(skew(10_000, 10_000, 11_000).is_some());
        assert!(skew(10_000, 10_000, 11_001).is_none());
    }

    #[test]
    fn h45_a_start_is_as_exact_as_is_said_of_it() {
        // Whatever the clocks are, and whenever in a second all of it happens.
        for ahead in [-70_250, -999, -1, 0, 501, 3_600_000] {
            for (asked, takes) in [(0, 0), (999, 1), (250, 1_000), (700, 1_000)] {
                let second = |at: i64| at.div_euclid(1_000) * 1_000;
                for dated in [asked, asked + takes] {
                    let (sent, came) = (Timestamp::from_millis(asked), asked + takes);
                    let skew = Skew::of(second(dated + ahead), sent, Timestamp::from_millis(came));
                    for made in (50_000..52_000).step_by(50) {
                        let there = jiff::Timestamp::from_millisecond(second(made + ahead));
                        let here = skew.unwrap().here(&Time(there.unwrap())).unwrap().millis();
                        assert!(here.abs_diff(made) <= GRANULARITY.as_millis(), "{ahead} {made}");
                    }
                }
            }
        }
    }
}
