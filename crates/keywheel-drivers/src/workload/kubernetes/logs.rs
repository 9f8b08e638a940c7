//! Logs of pods: where they are before a roll takes them away (H124), and what stands in them.

use std::time::Duration as StdDuration;

use k8s_openapi::api::core::v1::Pod;
use keywheel_core::incident::LogReference;
use keywheel_core::planted;
use keywheel_driver::CallError;
use keywheel_driver::workload::{ReadLog, Reading};
use tokio::time::Instant;

use super::namespace::Namespace;
use super::pod::statuses;
use crate::http::Effect;
use crate::workload::clock;

/// One log of a pod: what a container writes, or what it wrote before it was started again.
struct Log<'p> {
    pod: &'p Pod,
    container: &'p str,
    is_previous: bool,
}

impl Log<'_> {
    fn pod_name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    fn replica(&self) -> String {
        let before = if self.is_previous { " before its last start" } else { "" };
        format!("{}/{}{before}", self.pod_name(), self.container)
    }
}

fn logs(pod: &Pod) -> Vec<Log<'_>> {
    let mut logs = Vec::new();
    for status in statuses(pod) {
        let container = status.name.as_str();
        if status.restart_count > 0 {
            logs.push(Log { pod, container, is_previous: true });
        }
        logs.push(Log { pod, container, is_previous: false });
    }
    logs
}

/// Says where the log of each container of these pods is, and what the cluster noted about the pod: its events, which go by
/// themselves, an hour later by default.
pub(super) fn references(namespace: &Namespace, pods: &[Pod]) -> Vec<LogReference> {
    let kubectl = namespace.cluster.kubectl(&namespace.name);
    let all = pods.iter().flat_map(logs).map(|log| {
        let previous = if log.is_previous { " --previous" } else { "" };
        let (pod, container) = (log.pod_name(), log.container);
        let events = format!("get events --field-selector involvedObject.name={pod}");
        LogReference {
            replica: log.replica(),
            id: log.pod.metadata.uid.clone(),
            driver: None,
            place: Some(format!(
                "{kubectl} logs {pod} -c {container}{previous}; {kubectl} {events}"
            )),
            file: None,
            since: None,
            until: clock::now(),
            outlives: Some(false),
            kept_in: None,
        }
    });
    all.collect()
}

/// Reads the log of every container of these pods, within the bounds.
pub(super) async fn read(
    namespace: &Namespace,
    pods: &[Pod],
    reading: &mut Reading<'_>,
) -> Vec<ReadLog> {
    let deadline = Instant::now() + StdDuration::from(reading.within);
    let mut read = Vec::new();
    for log in pods.iter().flat_map(logs) {
        let asked = tokio::time::timeout_at(deadline, read_one(namespace, &log, reading)).await;
        let within = reading.within;
        let not_read = match asked {
            Ok(Ok(why)) => why,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("it was not read within {within}: ask for a later time")),
        };
        read.push(ReadLog { replica: log.replica(), id: log.pod.metadata.uid.clone(), not_read });
        if planted!("one_log_stands_for_all") {
            break;
        }
    }
    read
}

async fn read_one(
    namespace: &Namespace,
    log: &Log<'_>,
    reading: &mut Reading<'_>,
) -> Result<Option<String>, CallError> {
    let since = jiff::Timestamp::from_millisecond(reading.since.millis()).unwrap_or_default();
    // One byte more than is read tells a log that ends there from one that goes on.
    let (since, most) = (since.to_string(), (reading.most_bytes + 1).to_string());
    let mut query = vec![
        ("container", log.container),
        ("sinceTime", since.as_str()),
        ("limitBytes", most.as_str()),
    ];
    if log.is_previous {
        query.push(("previous", "true"));
    }
    let place = namespace.place("", "pods").named(log.pod_name()).sub("log");
    let answer = namespace.cluster.ask(&place, &query).await?;
    if !answer.status.is_success() {
        return Err(answer.error(Effect::Reads));
    }
    let bytes = answer.body.expose();
    let most = usize::try_from(reading.most_bytes).unwrap_or(usize::MAX);
    let is_longer = bytes.len() > most;
    let replica = log.replica();
    for line in String::from_utf8_lossy(&bytes[..bytes.len().min(most)]).lines() {
        (reading.take)(&replica, line);
    }
    Ok(is_longer.then(|| {
        format!(
            "it is longer than {} MiB, and later lines were not read: ask for a later time",
            reading.most_bytes >> 20
        )
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn h124_the_log_of_every_kind_of_container_is_one() {
        let status = |name: &str, restarts: i32| json!([{"name": name, "image": "", "imageID": "", "ready": true, "restartCount": restarts}]);
        let pod = json!({"metadata": {"name": "app-1"}, "status": {
            "initContainerStatuses": status("init", 0),
            "containerStatuses": status("app", 1),
            "ephemeralContainerStatuses": status("debug", 0)}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let told: Vec<_> = logs(&pod).iter().map(Log::replica).collect();
        let expected =
            ["app-1/init", "app-1/app before its last start", "app-1/app", "app-1/debug"];
        assert_eq!(told, expected);
    }
}
