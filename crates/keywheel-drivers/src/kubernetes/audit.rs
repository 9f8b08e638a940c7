//! What the audit log of an API server says about Secrets: who read them, who changed them, and who went into pods beside them or made
//! some.
//!
//! A log is a file of lines, each one an `Event` of `audit.k8s.io/v1`, or a list of them. Of an event only names are kept; bodies,
//! which hold values where the log's policy says so, are skipped as they are read. Names in it are somebody else's text: what a
//! terminal would act upon is left out of them.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read};

use keywheel_core::planted;
use keywheel_core::time::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use super::{Approach, SecretRef, number_of};

/// How long a line may be: a request may hold 3 MiB, which the log repeats in its answer.
const LONGEST_LINE: u64 = 16 << 20;

/// How many different acts are told apart.
const MOST_ACTS: usize = 1_000;

/// How many requests are remembered that go on, of which the log has a line at their begin and one at their end.
const MOST_ONGOING: usize = 10_000;

/// How long a name may be.
const LONGEST_NAME: usize = 100;

/// What makes pods, each of which is given what its template says.
const MAKERS: [&str; 7] = [
    "cronjobs",
    "daemonsets",
    "deployments",
    "jobs",
    "replicasets",
    "replicationcontrollers",
    "statefulsets",
];

/// Who makes pods for controllers, where these have no accounts of their own.
const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";

/// Where the accounts of controllers are, and those of add-ons too.
const SYSTEM: &str = "system:serviceaccount:kube-system:";

/// The controllers by their accounts, and what a cluster lets each of them make or change. Add-ons may be called like them, and every
/// one that is not named here is told.
const CONTROLLERS: [(&str, &[&str]); 8] = [
    ("cronjob-controller", &["cronjobs", "jobs"]),
    ("daemon-set-controller", &["pods"]),
    ("deployment-controller", &["deployments", "replicasets"]),
    ("generic-garbage-collector", &MAKERS),
    ("job-controller", &["jobs", "pods"]),
    ("replicaset-controller", &["replicasets", "pods"]),
    ("replication-controller", &["replicationcontrollers", "pods"]),
    ("statefulset-controller", &["pods"]),
];

/// Secrets of clusters, and the time in which their values were of use.
pub struct Exposed {
    secrets: BTreeMap<String, Vec<(String, Approach)>>,
    from: Timestamp,
    until: Timestamp,
}

impl Exposed {
    /// Takes those containers of slots that are Secrets; none where no one is.
    pub fn of<'a>(
        containers: impl IntoIterator<Item = &'a str>,
        from: Timestamp,
        until: Timestamp,
    ) -> Option<Self> {
        let mut secrets: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for secret in containers.into_iter().filter_map(SecretRef::parse) {
            secrets.entry(secret.namespace).or_default().push((secret.name, secret.approach));
        }
        (!secrets.is_empty()).then_some(Self { secrets, from, until })
    }
}

/// What somebody did, as often as it was done from the same places with the same client.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Act {
    /// What the API calls it, and of what: ``get of Secret `shop/app` ``.
    pub what: String,
    /// The user, and whom they impersonated.
    pub user: String,
    /// The addresses that the request came from.
    pub from: String,
    /// The program, as it calls itself.
    pub client: String,
    /// Whether the API server said no.
    pub refused: bool,
}

/// How often and when something was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// How often.
    pub count: u64,
    /// When it was done first.
    pub first: Timestamp,
    /// When it was done last, or was over.
    pub last: Timestamp,
}

/// What a log says.
#[derive(Debug, Default)]
pub struct Found {
    /// What was done, in the order of what it is.
    pub acts: BTreeMap<Act, Times>,
    /// How many events more there are, of acts that were not told apart any more.
    pub more: u64,
    /// How many events the log holds.
    pub events: u64,
    /// How many lines are no event.
    pub no_event: u64,
    /// When its first event was.
    pub begins: Option<Timestamp>,
    /// When its last event was.
    pub ends: Option<Timestamp>,
    /// Whether it has an event of any Secret at all: where it has none, its policy may leave them out.
    pub tells_secrets: bool,
    /// Whether it repeats bodies of Secrets, so that whoever reads the log has their values.
    pub holds_bodies: bool,
}

/// Reads a log to its end.
///
/// # Errors
/// Where it cannot be read.
pub fn read(log: &mut dyn BufRead, exposed: &Exposed) -> io::Result<Found> {
    let mut found = Found::default();
    let mut ongoing = Ongoing::new();
    // It may hold values.
    let mut line = Zeroizing::new(Vec::new());
    loop {
        line.clear();
        if log.take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
            // Nobody saw them end.
            for (act, at) in ongoing.into_values() {
                found.add(act, at, at);
            }
            return Ok(found);
        }
        if line.last() != Some(&b'\n') && line.len() as u64 == LONGEST_LINE {
            log.skip_until(b'\n')?;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice::<Event>(&line) {
            Ok(Event { items: Some(events), .. }) => {
                events.iter().for_each(|event| found.take(event, exposed, &mut ongoing));
            }
            Ok(event) => found.take(&event, exposed, &mut ongoing),
            Err(_) => found.no_event += 1,
        }
    }
}

/// Requests that were seen to begin, by their id: what each does, and since when.
type Ongoing = BTreeMap<String, (Act, Timestamp)>;

impl Found {
    fn take(&mut self, event: &Event, exposed: &Exposed, ongoing: &mut Ongoing) {
        let (Some(at), Some(_)) = (event.at(), &event.verb) else {
            self.no_event += 1;
            return;
        };
        self.events += 1;
        self.begins = Some(self.begins.map_or(at, |begins| begins.min(at)));
        self.ends = Some(self.ends.map_or(at, |ends| ends.max(at)));
        let of_secrets = event.object.resource.as_deref() == Some("secrets");
        self.tells_secrets |= of_secrets;
        self.holds_bodies |= of_secrets && (event.request.is_some() || event.response.is_some());
        if at > exposed.until {
            return;
        }
        let Some(what) = event.concerns(exposed) else { return };
        let act = Act {
            what,
            user: event.user(),
            from: shown(&event.addresses.join(", ")),
            client: shown(
                event.client.as_deref().unwrap_or_default().split(' ').next().unwrap_or_default(),
            ),
            refused: event.status.code.is_some_and(|code| code >= 400),
        };
        match event.stage.as_deref() {
            // It gives values from its begin on, and its end may be in a later log.
            Some("ResponseStarted") if event.goes_on() && ongoing.len() < MOST_ONGOING => {
                ongoing.insert(event.id.clone(), (act, at));
            }
            Some("ResponseStarted") if event.goes_on() => self.more += 1,
            Some("ResponseComplete" | "Panic") | None => {
                ongoing.remove(&event.id);
                let end = event.over_at().map_or(at, |end| end.max(at));
                if end >= exposed.from {
                    self.add(act, at, end);
                }
            }
            // A request has an event for each of its stages, and counts once.
            Some(_) => {}
        }
    }

    fn add(&mut self, act: Act, begin: Timestamp, end: Timestamp) {
        if let Some(times) = self.acts.get_mut(&act) {
            times.add(begin, end);
        } else if self.acts.len() < MOST_ACTS {
            self.acts.insert(act, Times { count: 1, first: begin, last: end });
        } else {
            self.more += 1;
        }
    }
}

impl Times {
    fn add(&mut self, begin: Timestamp, end: Timestamp) {
        self.count += 1;
        self.first = self.first.min(begin);
        self.last = self.last.max(end);
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    /// The events of a line that is a list.
    items: Option<Vec<Event>>,
    #[serde(default, rename = "auditID")]
    id: String,
    stage: Option<String>,
    #[serde(rename = "requestURI")]
    uri: Option<String>,
    verb: Option<String>,
    #[serde(default)]
    user: User,
    impersonated_user: Option<User>,
    #[serde(default, rename = "sourceIPs")]
    addresses: Vec<String>,
    #[serde(rename = "userAgent")]
    client: Option<String>,
    #[serde(default, rename = "objectRef")]
    object: Object,
    #[serde(default, rename = "responseStatus")]
    status: Status,
    #[serde(rename = "requestReceivedTimestamp")]
    received: Option<jiff::Timestamp>,
    #[serde(rename = "stageTimestamp")]
    reached: Option<jiff::Timestamp>,
    #[serde(rename = "requestObject")]
    request: Option<IgnoredAny>,
    #[serde(rename = "responseObject")]
    response: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
struct User {
    username: Option<String>,
}

#[derive(Default, Deserialize)]
struct Object {
    resource: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    subresource: Option<String>,
}

#[derive(Default, Deserialize)]
struct Status {
    code: Option<u16>,
}

impl Event {
    fn at(&self) -> Option<Timestamp> {
        Some(Timestamp::from_millis(self.received?.as_millisecond()))
    }

    /// Returns when the request was over, of an event that says so.
    fn over_at(&self) -> Option<Timestamp> {
        Some(Timestamp::from_millis(self.reached?.as_millisecond()))
    }

    /// Whether the request lasts until somebody ends it.
    fn goes_on(&self) -> bool {
        let inside = matches!(self.object.subresource.as_deref(), Some("exec" | "attach"));
        self.verb.as_deref() == Some("watch") || inside
    }

    fn user(&self) -> String {
        let name = |user: &User| shown(user.username.as_deref().unwrap_or("nobody"));
        match &self.impersonated_user {
            Some(other) => format!("{} as {}", name(&self.user), name(other)),
            None => name(&self.user),
        }
    }

    /// Says what it does where that concerns the exposed Secrets.
    fn concerns(&self, exposed: &Exposed) -> Option<String> {
        let verb = self.verb.as_deref()?;
        let namespace = self.object.namespace.as_deref().filter(|namespace| !namespace.is_empty());
        match self.object.resource.as_deref()? {
            "secrets" => self.of_secrets(verb, namespace, exposed),
            "pods" => self.of_pods(verb, namespace?, exposed),
            maker if MAKERS.contains(&maker) => self.of_makers(verb, maker, namespace?, exposed),
            _ => None,
        }
    }

    fn of_secrets(&self, verb: &str, namespace: Option<&str>, exposed: &Exposed) -> Option<String> {
        let place = namespace.map_or("every namespace".into(), |namespace| {
            format!("namespace `{}`", shown(namespace))
        });
        let name =
            self.object.name.clone().filter(|name| !name.is_empty()).or_else(|| self.selected());
        let Some(name) = name else {
            let is_near = namespace.is_none_or(|namespace| exposed.secrets.contains_key(namespace));
            let counts = is_near && !planted!("list_is_no_read");
            return counts.then(|| format!("{} of all Secrets of {place}", shown(verb)));
        };
        let (namespace, secrets) = match namespace {
            Some(namespace) => (namespace, exposed.secrets.get(namespace)?),
            None => ("*", exposed.secrets.values().find(|secrets| is_one_of(secrets, &name))?),
        };
        is_one_of(secrets, &name)
            .then(|| format!("{} of Secret `{}/{}`", shown(verb), shown(namespace), shown(&name)))
    }

    /// The one name that a list or a watch was limited to.
    fn selected(&self) -> Option<String> {
        let (_, query) = self.uri.as_deref()?.split_once('?')?;
        let selector = query.split('&').find_map(|pair| pair.strip_prefix("fieldSelector="))?;
        let selector = percent_encoding::percent_decode_str(selector).decode_utf8().ok()?;
        let name = selector.strip_prefix("metadata.name=")?;
        (!name.contains(',')).then(|| name.trim_start_matches('=').to_owned())
    }

    /// Whoever is in a container reads what it was given, and whoever makes a pod gives it what they like.
    fn of_pods(&self, verb: &str, namespace: &str, exposed: &Exposed) -> Option<String> {
        exposed.secrets.get(namespace)?;
        let pod = self.object.name.as_deref().unwrap_or("…");
        let pod = format!("pod `{}/{}`", shown(namespace), shown(pod));
        match self.object.subresource.as_deref() {
            Some(inside @ ("exec" | "attach" | "ephemeralcontainers")) => {
                Some(format!("{inside} in {pod}"))
            }
            None if verb == "create" && !self.is_of_controller("pods") => {
                Some(format!("create of {pod}"))
            }
            _ => None,
        }
    }

    /// Whoever writes the template of pods gives them what they like.
    fn of_makers(
        &self,
        verb: &str,
        maker: &str,
        namespace: &str,
        exposed: &Exposed,
    ) -> Option<String> {
        exposed.secrets.get(namespace)?;
        let writes = matches!(verb, "create" | "update" | "patch");
        let is_whole = self.object.subresource.is_none();
        let counts = writes && is_whole && !self.is_of_controller(maker);
        let name = shown(self.object.name.as_deref().unwrap_or("…"));
        let namespace = shown(namespace);
        (counts && !planted!("makers_of_pods_unseen")).then(|| {
            format!("{verb} of `{maker}/{name}` in namespace `{namespace}`, which makes pods")
        })
    }

    /// Whether a controller of the cluster itself does this, and it is for it to do.
    fn is_of_controller(&self, resource: &str) -> bool {
        let name = self.user.username.as_deref().unwrap_or_default();
        let does = |account: &str| {
            let mut known = CONTROLLERS.iter().filter(|(known, _)| *known == account);
            known.any(|(_, does)| does.contains(&resource))
        };
        let does = |account: &str| does(account) || planted!("add_ons_are_controllers");
        self.impersonated_user.is_none()
            && (name == CONTROLLER_MANAGER || name.strip_prefix(SYSTEM).is_some_and(does))
    }
}

/// Whether a name is that of a Secret, or of a version of it.
fn is_one_of(secrets: &[(String, Approach)], name: &str) -> bool {
    secrets.iter().any(|(secret, approach)| {
        let is_version = || *approach == Approach::Versioned && number_of(name, secret).is_some();
        name == secret || is_version()
    })
}

fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(LONGEST_NAME).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn exposed() -> Exposed {
        let secrets = [
            "kubernetes-secret:admin of /etc/kube/config/shop/app",
            "kubernetes-secret-versions:admin of /etc/kube/config/shop/keys",
            "file:/srv/shop/.env",
        ];
        let until = Timestamp::from_millis(1_000_000);
        Exposed::of(secrets, Timestamp::from_millis(100_000), until).unwrap()
    }

    /// A whole request at a second since the epoch.
    fn event(second: u64, verb: &str, object: &Value) -> Value {
        json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": second.to_string(),
            "stage": "ResponseComplete", "requestURI": "/x", "verb": verb, "objectRef": object,
            "user": {"username": "mallory", "groups": ["system:authenticated"]},
            "sourceIPs": ["192.0.2.7"], "userAgent": "kubectl/v1.33.1 (linux/amd64) kubernetes/abc",
            "responseStatus": {"code": 200},
            "requestReceivedTimestamp": format!("1970-01-01T00:{:02}:{:02}.000000Z", second / 60, second % 60),
        })
    }

    fn secret(namespace: &str, name: &str) -> Value {
        json!({"resource": "secrets", "namespace": namespace, "name": name, "apiVersion": "v1"})
    }

    fn read_all(events: &[Value]) -> Found {
        let log: String = events.iter().map(|event| format!("{event}\n")).collect();
        read(&mut log.as_bytes(), &exposed()).unwrap()
    }

    fn told(found: &Found) -> Vec<(&str, u64)> {
        found.acts.iter().map(|(act, times)| (act.what.as_str(), times.count)).collect()
    }

    #[test]
    fn h124_reads_of_an_exposed_secret_are_told_and_those_of_others_are_not() {
        let found = read_all(&[
            event(200, "get", &secret("shop", "app")),
            event(300, "get", &secret("shop", "app")),
            event(300, "get", &secret("shop", "app-other")),
            event(300, "get", &secret("shop", "app-v1")),
            event(300, "get", &secret("other", "app")),
            event(300, "patch", &secret("shop", "keys-v12")),
            event(300, "list", &json!({"resource": "secrets", "namespace": "shop"})),
            event(300, "list", &json!({"resource": "secrets"})),
            event(300, "list", &json!({"resource": "secrets", "namespace": "other"})),
            event(300, "list", &json!({"resource": "configmaps", "namespace": "shop"})),
        ]);
        let wanted = [
            ("get of Secret `shop/app`", 2),
            ("list of all Secrets of every namespace", 1),
            ("list of all Secrets of namespace `shop`", 1),
            ("patch of Secret `shop/keys-v12`", 1),
        ];
        assert_eq!(told(&found), wanted);
        let (act, times) = found.acts.first_key_value().unwrap();
        assert_eq!((act.user.as_str(), act.from.as_str()), ("mallory", "192.0.2.7"));
        assert_eq!((act.client.as_str(), act.refused), ("kubectl/v1.33.1", false));
        assert_eq!((times.first.millis(), times.last.millis()), (200_000, 300_000));
        assert_eq!((found.events, found.no_event), (10, 0));
        assert!(found.tells_secrets && !found.holds_bodies);
    }

    #[test]
    fn h124_what_was_before_the_exposure_and_after_it_is_left_out() {
        let object = secret("shop", "app");
        let found = read_all(&[99, 100, 1_000, 1_001].map(|at| event(at, "get", &object)));
        assert_eq!(told(&found), [("get of Secret `shop/app`", 2)]);
        assert_eq!(found.begins, Some(Timestamp::from_millis(99_000)));
        assert_eq!(found.ends, Some(Timestamp::from_millis(1_001_000)));
    }

    #[test]
    fn h124_a_request_counts_once_and_a_watch_from_its_begin_on() {
        let staged = |stage: &str, verb: &str, object: &Value| {
            let mut event = event(200, verb, object);
            event["stage"] = stage.into();
            event
        };
        let object = secret("shop", "app");
        let mut named = staged(
            "ResponseStarted",
            "watch",
            &json!({"resource": "secrets", "namespace": "shop"}),
        );
        named["requestURI"] =
            "/api/v1/namespaces/shop/secrets?watch=1&fieldSelector=metadata.name%3Dapp".into();
        named["auditID"] = "of one".into();
        let mut other = named.clone();
        other["requestURI"] =
            "/api/v1/namespaces/shop/secrets?fieldSelector=metadata.name%3Dother".into();
        let found = read_all(&[
            staged("RequestReceived", "get", &object),
            staged("ResponseComplete", "get", &object),
            staged("ResponseStarted", "watch", &json!({"resource": "secrets"})),
            staged("ResponseComplete", "watch", &json!({"resource": "secrets"})),
            named,
            other,
        ]);
        let wanted = [
            ("get of Secret `shop/app`", 1),
            ("watch of Secret `shop/app`", 1),
            ("watch of all Secrets of every namespace", 1),
        ];
        assert_eq!(told(&found), wanted);
    }

    #[test]
    fn h124_what_began_before_the_exposure_and_went_on_after_it_is_told() {
        let time = |second: u64| format!("1970-01-01T00:{:02}:{:02}Z", second / 60, second % 60);
        let long = |id: &str, verb: &str, object: &Value, end: Option<u64>| {
            let mut event = event(50, verb, object);
            event["auditID"] = id.into();
            event["stage"] = end.map_or("ResponseStarted", |_| "ResponseComplete").into();
            event["stageTimestamp"] = time(end.unwrap_or(50)).into();
            event
        };
        let all = json!({"resource": "secrets", "namespace": "shop"});
        let inside = |pod: &str| json!({"resource": "pods", "namespace": "shop", "name": pod, "subresource": "exec"});
        let found = read_all(&[
            long("ended", "watch", &all, None),
            long("ended", "watch", &all, Some(99)),
            long("ended later", "watch", &all, None),
            long("ended later", "watch", &all, Some(300)),
            long("inside", "create", &inside("web-1"), Some(200)),
            long("still inside", "create", &inside("web-2"), None),
        ]);
        let wanted = [
            ("exec in pod `shop/web-1`", 1),
            ("exec in pod `shop/web-2`", 1),
            ("watch of all Secrets of namespace `shop`", 1),
        ];
        assert_eq!(told(&found), wanted);
        let (_, times) = found.acts.last_key_value().unwrap();
        assert_eq!((times.first.millis(), times.last.millis()), (50_000, 300_000));
    }

    #[test]
    fn h124_watches_of_others_take_no_room_from_those_of_the_exposed_secrets() {
        let watch = |id: String, object: Value| {
            let mut event = event(200, "watch", &object);
            (event["auditID"], event["stage"]) = (id.into(), "ResponseStarted".into());
            event
        };
        let foreign = json!({"resource": "configmaps", "namespace": "shop"});
        let mut events: Vec<_> =
            (0..MOST_ONGOING).map(|id| watch(id.to_string(), foreign.clone())).collect();
        events.push(watch("ours".into(), secret("shop", "app")));
        assert_eq!(told(&read_all(&events)), [("watch of Secret `shop/app`", 1)]);
    }

    #[test]
    fn h124_who_went_into_a_pod_or_made_one_beside_the_secret_is_told() {
        let pod = |name: &str, sub: Option<&str>| json!({"resource": "pods", "namespace": "shop", "name": name, "subresource": sub});
        let mut by_controller = event(200, "create", &pod("web-1", None));
        by_controller["user"]["username"] =
            "system:serviceaccount:kube-system:replicaset-controller".into();
        let mut impersonated = event(200, "create", &pod("web-2", Some("exec")));
        impersonated["impersonatedUser"] = json!({"username": "root"});
        impersonated["responseStatus"]["code"] = 403.into();
        let maker = |verb: &str, resource: &str, sub: Option<&str>| {
            let object = json!({"resource": resource, "namespace": "shop", "name": "thief", "subresource": sub});
            event(200, verb, &object)
        };
        let mut by_cron = maker("create", "jobs", None);
        by_cron["user"]["username"] = "system:serviceaccount:kube-system:cronjob-controller".into();
        let found = read_all(&[
            by_controller,
            by_cron,
            maker("create", "jobs", None),
            maker("patch", "deployments", None),
            maker("patch", "deployments", Some("scale")),
            maker("get", "cronjobs", None),
            event(200, "create", &pod("thief", None)),
            event(200, "get", &pod("web-1", None)),
            event(200, "create", &pod("web-1", Some("exec"))),
            impersonated,
        ]);
        let wanted = [
            ("create of `jobs/thief` in namespace `shop`, which makes pods", 1),
            ("create of pod `shop/thief`", 1),
            ("exec in pod `shop/web-1`", 1),
            ("exec in pod `shop/web-2`", 1),
            ("patch of `deployments/thief` in namespace `shop`, which makes pods", 1),
        ];
        assert_eq!(told(&found), wanted);
        let last = found.acts.keys().find(|act| act.what.contains("web-2")).unwrap();
        assert_eq!((last.user.as_str(), last.refused), ("mallory as root", true));
    }

    #[test]
    fn h124_an_add_on_of_the_cluster_is_told_and_its_controllers_are_not() {
        let by = |user: &str, verb: &str, resource: &str| {
            let object = json!({"resource": resource, "namespace": "shop", "name": "thief"});
            let mut event = event(200, verb, &object);
            event["user"]["username"] = user.into();
            event
        };
        let told_of = |event: Value| !read_all(&[event]).acts.is_empty();
        let account = |name: &str| format!("{SYSTEM}{name}");
        for (user, verb, resource) in [
            (CONTROLLER_MANAGER.into(), "create", "pods"),
            (CONTROLLER_MANAGER.into(), "update", "replicasets"),
            (account("daemon-set-controller"), "create", "pods"),
            (account("deployment-controller"), "create", "replicasets"),
            (account("generic-garbage-collector"), "patch", "deployments"),
            (account("job-controller"), "create", "pods"),
            (account("statefulset-controller"), "create", "pods"),
        ] {
            assert!(!told_of(by(&user, verb, resource)), "{verb} of {resource} by {user}");
        }
        for (user, verb, resource) in [
            // Accounts of add-ons, which end as those of controllers do.
            (account("aws-load-balancer-controller"), "create", "pods"),
            (account("cilium-operator"), "patch", "deployments"),
            (account("default"), "create", "jobs"),
            (account("replicaset-controller-2"), "create", "pods"),
            // What is not for a controller to do.
            (account("deployment-controller"), "create", "pods"),
            (account("replicaset-controller"), "patch", "deployments"),
            // Others of the cluster, and those that are called so elsewhere.
            ("system:kube-proxy".into(), "create", "pods"),
            ("system:kube-controller-manager-2".into(), "create", "pods"),
            ("system:node:one".into(), "create", "pods"),
            ("system:serviceaccount:shop:replicaset-controller".into(), "create", "pods"),
            // Whoever reads a Secret, as nodes do for their pods: the log does not say which pods these are.
            (account("replicaset-controller"), "get", "secrets"),
            ("system:node:one".into(), "get", "secrets"),
        ] {
            let mut event = by(&user, verb, resource);
            if resource == "secrets" {
                event["objectRef"] = secret("shop", "app");
            }
            assert!(told_of(event), "{verb} of {resource} by {user}");
        }
    }

    #[test]
    fn h124_a_log_of_any_shape_is_read_to_its_end() {
        let whole = event(200, "get", &secret("shop", "app"));
        let list = json!({"kind": "EventList", "items": [whole, event(201, "get", &secret("shop", "app"))]});
        let long = format!("{{\"a\": \"{}\"}}", "x".repeat(17 << 20));
        let mut bare = whole.clone();
        bare.as_object_mut().unwrap().remove("requestReceivedTimestamp");
        let log = format!("not JSON\n\n{list}\n[]\n{bare}\n{long}\n{whole}");
        let found = read(&mut log.as_bytes(), &exposed()).unwrap();
        assert_eq!(told(&found), [("get of Secret `shop/app`", 3)]);
        assert_eq!((found.events, found.no_event), (3, 4));
    }

    #[test]
    fn h115_a_log_with_bodies_is_named_and_no_name_of_it_moves_a_terminal() {
        let mut event = event(200, "get", &secret("shop", "app"));
        event["responseObject"] = json!({"data": {"key": "a3djYW5hcnk="}});
        event["user"]["username"] = "a\u{1b}[31m".into();
        let found = read_all(&[event]);
        assert!(found.holds_bodies);
        assert!(found.acts.keys().all(|act| act.user == "a[31m"));
        assert!(!format!("{found:?}").contains("a3djYW5hcnk"));
    }

    #[test]
    fn h124_acts_without_end_take_no_memory_without_end() {
        let acts: Vec<_> = (0..1_500)
            .map(|number| {
                let mut event = event(200, "get", &secret("shop", "app"));
                event["user"]["username"] = number.to_string().into();
                event
            })
            .collect();
        let found = read_all(&acts);
        assert_eq!((found.acts.len(), found.more), (MOST_ACTS, 500));
    }
}
