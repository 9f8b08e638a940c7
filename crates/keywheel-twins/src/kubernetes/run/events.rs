//! Events: what happened to a pod, told once and then counted.

use serde_json::{Value, json};

use super::json::{count, name, namespace, second, uid};
use super::pass::Pass;
use super::template::hash;
use crate::kubernetes::{Key, Kind};

/// How an event is meant.
#[derive(Clone, Copy)]
pub(super) enum Tone {
    Normal,
    Warning,
}

/// Tells what happened to a pod, as the part of the cluster that writes in this pass.
pub(super) fn tell(pass: &Pass<'_>, pod: &Value, tone: Tone, reason: &str, message: &str) {
    let own = format!("{}.{}", name(pod), hash(&json!([uid(pod), reason, message])));
    let key = Key::new(Kind::Event, namespace(pod), &own);
    let now = second();
    let again = |event: &mut Value| {
        event["count"] = (count(event, "/count") + 1).into();
        event["lastTimestamp"] = now.as_str().into();
    };
    if pass.objects.change(&key, pass.manager, again).is_ok() {
        return;
    }
    let event = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "name": own, "namespace": namespace(pod) },
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": name(pod),
            "namespace": namespace(pod),
            "uid": uid(pod),
        },
        "type": match tone {
            Tone::Normal => "Normal",
            Tone::Warning => "Warning",
        },
        "reason": reason,
        "message": message,
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": { "component": pass.manager },
    });
    pass.create(Kind::Event, &event);
}
