//! The stand-in of a Kubernetes cluster: its API server, and the objects that it keeps.
//!
//! It speaks plain HTTP on the loopback address and keeps everything in memory. Clients come by bearer token, each with rights of
//! its own; what goes wrong is a script: see [`faults`]. The server runs no
//! pod: controllers and a kubelet work on [`Objects`], see [`run`].

#![expect(
    clippy::result_large_err,
    reason = "a stand-in makes few of them, and each is a whole answer"
)]

mod api;
mod disclosure;
mod discovery;
mod exec;
pub mod faults;
pub mod fields;
pub mod kinds;
pub mod objects;
mod patch;
mod port_forward;
mod protobuf;
pub mod rbac;
mod reads;
mod request;
mod rival;
mod rules;
pub mod run;
mod selector;
mod shapes;
pub mod status;
mod store;
mod upgrade;
mod watching;
mod workloads;
mod writes;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use self::api::Api;
use crate::server::Server;

pub use self::api::LogOf;
pub use self::faults::{Class, Disclosure, Fault, Faults, Seen};
pub use self::kinds::Kind;
pub use self::objects::{Deletion, Event, EventType, How, Key, Objects};
pub use self::rbac::{Rule, User};
pub use self::rival::Rival;
pub use self::status::Status;

/// The twin's name, as its header says it.
pub const NAME: &str = "kubernetes";

/// The user that may do everything.
pub const ADMIN: &str = "admin";

/// How a cluster is set up.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The port, or 0 for a free one.
    pub port: u16,
    /// Whether `external-secrets.io/v1beta1` is served beside `v1`.
    pub serves_v1beta1: bool,
}

/// A running cluster. It ends when it is dropped.
pub struct Cluster {
    server: Server,
    api: Api,
}

impl Cluster {
    /// Starts a cluster on a free port.
    ///
    /// # Errors
    /// Where no port or thread can be had.
    pub fn start() -> io::Result<Self> {
        Self::start_with(&Options::default())
    }

    /// Starts a cluster with options.
    ///
    /// # Errors
    /// Where the port is taken or no thread can be had.
    pub fn start_with(options: &Options) -> io::Result<Self> {
        let api = Api::new(Objects::new(), options.serves_v1beta1);
        let server = Server::start(options.port, api.router())?;
        let cluster = Self { server, api };
        cluster.add_user(ADMIN, vec![Rule::everything()]);
        Ok(cluster)
    }

    /// Returns where its API begins.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Returns its objects.
    pub fn objects(&self) -> &Objects {
        &self.api.objects
    }

    /// Returns its script of faults, and its recorder.
    pub fn faults(&self) -> &Faults {
        &self.api.faults
    }

    /// Returns what tells this cluster from any other: the uid of its namespace `kube-system`.
    pub fn identity(&self) -> String {
        let key = Key::of_cluster(Kind::Namespace, "kube-system");
        let namespace = self.api.objects.get(&key);
        let uid =
            namespace.and_then(|namespace| Some(namespace["metadata"]["uid"].as_str()?.to_owned()));
        uid.unwrap_or_default()
    }

    /// Adds a user, and returns its token.
    pub fn add_user(&self, name: &str, rules: Vec<Rule>) -> String {
        let token = format!("kwcanary-{name}-{}", crate::random(b"0123456789abcdef", 24));
        let user = User { name: name.into(), token: token.clone(), rules };
        self.api.users().push(user);
        token
    }

    /// Changes what a user may do, from the next request on.
    pub fn set_rules(&self, name: &str, rules: Vec<Rule>) {
        if let Some(user) = self.api.users().iter_mut().find(|user| user.name == name) {
            user.rules = rules;
        }
    }

    /// Forgets a user, so that its token is no longer known.
    pub fn remove_user(&self, name: &str) {
        self.api.users().retain(|user| user.name != name);
    }

    /// Returns the token of a user.
    pub fn token(&self, name: &str) -> Option<String> {
        let users = self.api.users();
        users.iter().find(|user| user.name == name).map(|user| user.token.clone())
    }

    /// Hands over the logs of containers from now on.
    pub fn serve_logs(&self, logs: impl Fn(&LogOf) -> Option<String> + Send + Sync + 'static) {
        self.api.set_logs(Arc::new(logs));
    }

    /// Lets the objects come true from now on, hands over the logs of what runs, and lets programs run beside it.
    ///
    /// # Errors
    /// Where no thread can be had.
    pub fn run(&self, settings: run::Settings) -> io::Result<run::Run> {
        let run = run::Run::start(&self.api.objects, settings)?;
        self.api.set_logs(run.logs());
        self.api.set_insides(run.insides());
        Ok(run)
    }

    /// Lets somebody else change an object again and again, until it is dropped.
    ///
    /// # Errors
    /// Where no thread can be had.
    pub fn rival(
        &self,
        manager: &str,
        key: Key,
        every: Duration,
        edit: impl FnMut(&mut Value) + Send + 'static,
    ) -> io::Result<Rival> {
        Rival::start(self.api.objects.clone(), manager.into(), key, every, edit)
    }

    /// Writes a kubeconfig with one context for each user, named as the user is, and one more that ends in `-kubectl`: kubectl sends
    /// no token over plain HTTP, so that there the path names the user. The current context is another, of a cluster that does not answer.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, format!("{:#}\n", self.kubeconfig()))
    }

    fn kubeconfig(&self) -> Value {
        let cluster =
            |name: &str, server: String| json!({ "name": name, "cluster": { "server": server } });
        let context = |name: &str, cluster: &str, user: &str| json!({ "name": name, "context": { "cluster": cluster, "user": user, "namespace": "default" } });
        let mut clusters =
            vec![cluster("twin", self.url()), cluster("elsewhere", "http://127.0.0.1:1".into())];
        let mut contexts = vec![context("elsewhere", "elsewhere", ADMIN)];
        let mut users = Vec::new();
        for user in self.api.users().iter() {
            let other = format!("{}-kubectl", user.name);
            clusters.push(cluster(&other, format!("{}/as/{}", self.url(), user.name)));
            contexts.push(context(&user.name, "twin", &user.name));
            contexts.push(context(&other, &other, &user.name));
            users.push(json!({ "name": user.name, "user": { "token": user.token } }));
        }
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "elsewhere",
            "clusters": clusters,
            "contexts": contexts,
            "users": users,
        })
    }
}
