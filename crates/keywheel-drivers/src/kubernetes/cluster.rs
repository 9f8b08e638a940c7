//! Which cluster: the setting, and the client that is made of it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keywheel_driver::{Refusal, RefusalKind};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::unsupported;
use crate::{Context, http};

/// The kinds of stores and workloads whose settings name a `cluster`; that of the environment is taken where they do not.
pub const TAKE_A_CLUSTER: &[&str] = &["external_secret", "kubernetes", "kubernetes_secret"];

/// What it is that nobody logs in.
pub(super) const NO_LOGIN: &str =
    "whoever logs in for this context, such as a program that its user names, gave no login";

/// A cluster: `{ context: prod-eu }`, or `{ in_cluster: {} }`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// The context of a kubeconfig, by name. The current context is never used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// The kubeconfig; without it, `KUBECONFIG`, else `~/.kube/config`. A relative path begins at the folder of the
    /// configuration file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<PathBuf>,
    /// The cluster in which keywheel itself runs, by the service account of its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_cluster: Option<InCluster>,
    /// The id of its namespace `kube-system`, which `keywheel init --cluster` writes. Another cluster that answers is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// The cluster in which keywheel itself runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InCluster {}

/// Where the client's settings come from.
#[derive(Clone)]
pub(super) enum Source {
    /// A context of a kubeconfig.
    Named { context: String, kubeconfig: Option<PathBuf> },
    /// The pod's own service account.
    Here,
}

impl Source {
    pub(super) fn new(setting: Option<&Cluster>, root: &Context) -> Result<Self, Refusal> {
        let Some(Cluster { context, kubeconfig, in_cluster, id: _ }) = setting else {
            let message = "no `cluster` is named; name it as `cluster: { context: NAME }` for the environment, or here";
            return Err(unsupported(message));
        };
        match (context, kubeconfig, in_cluster) {
            (None, None, Some(InCluster {})) => Ok(Self::Here),
            (_, _, Some(_)) => {
                Err(unsupported("`cluster` names `in_cluster` beside a context or kubeconfig"))
            }
            (Some(context), kubeconfig, None) if !context.is_empty() => {
                let kubeconfig = kubeconfig.as_ref().map(|path| root.root.join(path));
                Ok(Self::Named { context: context.clone(), kubeconfig })
            }
            _ => Err(unsupported(
                "`cluster` names no `context`, and the current context is never used",
            )),
        }
    }

    pub(super) fn id(&self) -> String {
        match self {
            Self::Here => "in-cluster".into(),
            Self::Named { context, kubeconfig: None } => format!("context {context}"),
            Self::Named { context, kubeconfig: Some(path) } => {
                format!("context {context} of {}", path.display())
            }
        }
    }

    /// Returns how `kubectl` is called for it, to be printed.
    pub(super) fn kubectl(&self) -> String {
        match self {
            Self::Here => "kubectl".into(),
            Self::Named { context, kubeconfig } => {
                let file = kubeconfig.as_ref().map(|path| path.display().to_string());
                let file = file.map(|path| format!(" --kubeconfig {}", in_shell(&path)));
                format!("kubectl{} --context {}", file.unwrap_or_default(), in_shell(context))
            }
        }
    }

    /// Makes a client. Everything that can go wrong happens before anything is asked of the cluster.
    pub(super) async fn connect(
        &self,
        target: &str,
        within: Duration,
    ) -> Result<kube::Client, Refusal> {
        let (source, named) = (self.clone(), target.to_owned());
        // A kubeconfig may name a program that logs in, which is run here.
        let made = tokio::task::spawn_blocking(move || source.client(&named));
        match tokio::time::timeout(within, made).await {
            Ok(made) => {
                made.unwrap_or_else(|_| Err(local(target, "its settings could not be read")))
            }
            Err(_) => {
                let why = format!(
                    "{target}: {NO_LOGIN} within {} s; does it ask somebody?",
                    within.as_secs()
                );
                Err(Refusal::retry(RefusalKind::Unavailable, None, why))
            }
        }
    }

    /// Whether the certificate of the server is checked.
    pub(super) async fn is_verified(&self, target: &str) -> Result<bool, Refusal> {
        let (source, named) = (self.clone(), target.to_owned());
        let read = tokio::task::spawn_blocking(move || source.config(&named)).await;
        let config = read.unwrap_or_else(|_| Err(local(target, "its settings could not be read")));
        Ok(!config?.accept_invalid_certs)
    }

    fn client(&self, target: &str) -> Result<kube::Client, Refusal> {
        // An error says that a provider is installed already, which is what is wanted.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut config = self.config(target)?;
        // A request that was answered is not sent again, and one without an answer is observed (H04).
        config.default_retry = false;
        config.connect_timeout = Some(Duration::from_secs(10));
        let url = config.cluster_url.to_string();
        if !url.parse().is_ok_and(|url| http::is_private(&url)) {
            let why =
                "its server is spoken to without TLS, so that anybody on the way could read values";
            return Err(local(target, why));
        }
        kube::Client::try_from(config).map_err(|error| match error {
            kube::Error::Auth(_) => {
                Refusal::retry(RefusalKind::Unavailable, None, format!("{target}: {NO_LOGIN}"))
            }
            kube::Error::ProxyProtocolDisabled { .. }
            | kube::Error::ProxyProtocolUnsupported { .. } => {
                local(target, "it is reached by a proxy (`proxy-url`), which is not supported")
            }
            _ => local(target, "its certificates cannot be used"),
        })
    }

    fn config(&self, target: &str) -> Result<kube::Config, Refusal> {
        match self {
            Self::Here => kube::Config::incluster().map_err(|_| {
                local(target, "keywheel does not run in a pod that has a service account")
            }),
            Self::Named { context, kubeconfig } => {
                let read = match kubeconfig {
                    Some(path) => Kubeconfig::read_from(path),
                    None => Kubeconfig::read(),
                };
                let read =
                    read.map_err(|error| local(target, &in_words(&error, kubeconfig.as_deref())))?;
                let proxied = has_proxy(&read, context);
                let options =
                    KubeConfigOptions { context: Some(context.clone()), ..Default::default() };
                let loader = futures_util::FutureExt::now_or_never(
                    kube::Config::from_custom_kubeconfig(read, &options),
                );
                let loaded =
                    loader.ok_or_else(|| local(target, "its settings could not be read"))?;
                let mut config = loaded
                    .map_err(|error| local(target, &in_words(&error, kubeconfig.as_deref())))?;
                if !proxied {
                    // A proxy that the environment happens to name is not asked, as everywhere.
                    config.proxy_url = None;
                }
                Ok(config)
            }
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here => f.write_str("that keywheel runs in"),
            Self::Named { context, .. } => write!(f, "`{context}`"),
        }
    }
}

/// Returns a word as a shell takes it.
fn in_shell(word: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"@%+=:,./_-".contains(&b);
    match !word.is_empty() && word.bytes().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Whether the kubeconfig itself names a proxy for a context.
fn has_proxy(kubeconfig: &Kubeconfig, context: &str) -> bool {
    let named = kubeconfig.contexts.iter().find(|named| named.name == context);
    let cluster = named.and_then(|named| named.context.as_ref()).map(|context| &context.cluster);
    let named = kubeconfig.clusters.iter().find(|named| Some(&named.name) == cluster);
    let cluster = named.and_then(|named| named.cluster.as_ref());
    cluster.is_some_and(|cluster| cluster.proxy_url.as_ref().is_some_and(|url| !url.is_empty()))
}

/// Says what is wrong with a kubeconfig. Its own words may hold a token.
fn in_words(error: &KubeconfigError, kubeconfig: Option<&Path>) -> String {
    let file = match kubeconfig {
        Some(path) => format!("kubeconfig `{}`", path.display()),
        None => "the kubeconfig".into(),
    };
    match error {
        KubeconfigError::LoadContext(_) => {
            format!("{file} has no context of that name; `kubectl config get-contexts` lists them")
        }
        KubeconfigError::LoadClusterOfContext(_) => {
            format!("{file} has a context of that name, and not the cluster that it names")
        }
        KubeconfigError::FindPath => "there is no kubeconfig; name one as `kubeconfig`".into(),
        KubeconfigError::ReadConfig(error, path) => {
            format!("kubeconfig `{}` cannot be read: {}", path.display(), error.kind())
        }
        KubeconfigError::LoadCertificateAuthority(_)
        | KubeconfigError::LoadClientCertificate(_)
        | KubeconfigError::LoadClientKey(_)
        | KubeconfigError::ParseCertificates(_) => {
            format!("{file} names a certificate or key that cannot be read")
        }
        KubeconfigError::MissingClusterUrl | KubeconfigError::ParseClusterUrl(_) => {
            format!("{file} names no server for that context")
        }
        _ => format!("{file} is not one"),
    }
}

fn local(target: &str, why: &str) -> Refusal {
    Refusal::operator(RefusalKind::Local, format!("{target}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(setting: Option<Cluster>) -> String {
        match Source::new(setting.as_ref(), &Context::at("/srv/shop")) {
            Ok(_) => panic!("a cluster is named"),
            Err(refusal) => refusal.message,
        }
    }

    fn named(context: &str, kubeconfig: Option<&str>) -> Cluster {
        let kubeconfig = kubeconfig.map(PathBuf::from);
        Cluster { context: Some(context.into()), kubeconfig, in_cluster: None, id: None }
    }

    #[test]
    fn the_current_context_is_never_used() {
        let none = Cluster { context: None, kubeconfig: None, in_cluster: None, id: None };
        assert!(refusal(Some(none.clone())).contains("the current context is never used"));
        let file = Cluster { kubeconfig: Some("kube".into()), ..none };
        assert!(refusal(Some(file)).contains("the current context is never used"));
        assert!(refusal(Some(named("", None))).contains("the current context is never used"));
        assert!(refusal(None).contains("no `cluster` is named"));
        let both = Cluster { in_cluster: Some(InCluster {}), ..named("prod-eu", None) };
        assert!(refusal(Some(both)).contains("beside"));
    }

    #[test]
    fn a_command_that_is_printed_names_context_and_kubeconfig() {
        let kubectl = |setting: Cluster| {
            Source::new(Some(&setting), &Context::at("/srv/shop")).unwrap().kubectl()
        };
        assert_eq!(kubectl(named("prod-eu", None)), "kubectl --context prod-eu");
        let file = named("it's prod", Some("kube/prod"));
        let expected = r"kubectl --kubeconfig /srv/shop/kube/prod --context 'it'\''s prod'";
        assert_eq!(kubectl(file), expected);
    }

    #[tokio::test]
    async fn a_program_that_logs_in_is_run_and_its_words_are_not_repeated() {
        let twin = keywheel_twins::kubernetes::Cluster::start().unwrap();
        let token = twin.token(keywheel_twins::kubernetes::ADMIN).unwrap();
        let folder = tempfile::TempDir::new().unwrap();
        let write =
            |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
        write(
            "login",
            format!(
                "echo '{{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\"status\":{{\"token\":\"{token}\"}}}}'"
            ),
        );
        write("fails", "echo kwcanary-login; exit 1".into());
        let exec = |program: &str| {
            format!(
                "{{apiVersion: client.authentication.k8s.io/v1, command: sh, args: ['{}'], interactiveMode: Never}}",
                folder.path().join(program).display()
            )
        };
        write(
            "kube",
            format!(
                "apiVersion: v1\nkind: Config\nclusters:\n- {{name: c, cluster: {{server: '{}'}}}}\n\
             contexts:\n- {{name: works, context: {{cluster: c, user: works}}}}\n- {{name: fails, context: {{cluster: c, user: fails}}}}\n\
             users:\n- {{name: works, user: {{exec: {}}}}}\n- {{name: fails, user: {{exec: {}}}}}\n",
                twin.url(),
                exec("login"),
                exec("fails"),
            ),
        );
        let root = Context::at(folder.path());
        let cluster = |context| {
            super::super::Kubernetes::new(Some(&named(context, Some("kube"))), &root).unwrap()
        };
        assert_eq!(cluster("works").identity().await.unwrap().id, twin.identity());
        assert!(cluster("works").is_verified().await.unwrap());
        let refused = cluster("fails").identity().await.unwrap_err().to_string();
        assert!(refused.contains(NO_LOGIN) && !refused.contains("kwcanary"), "{refused}");
    }

    /// Writes a kubeconfig whose one context `works` logs in by this program of a shell.
    fn write_login(folder: &Path, server: &str, program: &str) {
        std::fs::write(folder.join("login"), program).unwrap();
        let exec = format!(
            "{{apiVersion: client.authentication.k8s.io/v1, command: sh, args: ['{}'], interactiveMode: Never}}",
            folder.join("login").display()
        );
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- {{name: c, cluster: {{server: '{server}'}}}}\n\
             contexts:\n- {{name: works, context: {{cluster: c, user: works}}}}\nusers:\n- {{name: works, user: {{exec: {exec}}}}}\n"
        );
        std::fs::write(folder.join("kube"), text).unwrap();
    }

    fn cluster(folder: &Path, context: &str) -> super::super::Kubernetes {
        let setting = named(context, Some("kube"));
        super::super::Kubernetes::new(Some(&setting), &Context::at(folder)).unwrap()
    }

    #[tokio::test]
    async fn a_kubeconfig_that_was_renewed_is_read_again_before_anything_fails() {
        use keywheel_twins::kubernetes::{ADMIN, Cluster, rbac::Rule};
        let twin = Cluster::start().unwrap();
        let folder = tempfile::TempDir::new().unwrap();
        let kube = folder.path().join("kube");
        twin.write_kubeconfig(&kube).unwrap();
        let asked = cluster(folder.path(), ADMIN);
        asked.identity().await.unwrap();
        // Another token, as whoever renews a login leaves it.
        twin.remove_user(ADMIN);
        twin.add_user(ADMIN, vec![Rule::everything()]);
        twin.write_kubeconfig(&kube).unwrap();
        assert_eq!(asked.identity().await.unwrap().id, twin.identity());
        // A server whose certificate is not trusted, and one that is.
        let good = std::fs::read_to_string(&kube).unwrap();
        let (_, port) =
            twin.url().rsplit_once(':').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        std::fs::write(&kube, good.replace(&twin.url(), &format!("https://127.0.0.1:{port}")))
            .unwrap();
        asked.forget();
        let refused = asked.identity().await.unwrap_err();
        assert!(refused.to_string().contains("was not accepted"), "{refused}");
        std::fs::write(&kube, good).unwrap();
        assert_eq!(asked.identity().await.unwrap().id, twin.identity());
    }

    #[tokio::test]
    async fn a_login_that_cannot_be_renewed_is_refused_and_not_unknown() {
        let twin = keywheel_twins::kubernetes::Cluster::start().unwrap();
        let token = twin.token(keywheel_twins::kubernetes::ADMIN).unwrap();
        let folder = tempfile::TempDir::new().unwrap();
        let answer = format!(
            "{{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\"status\":{{\"token\":\"{token}\",\"expirationTimestamp\":\"2020-01-01T00:00:00Z\"}}}}"
        );
        let file = folder.path().join("answer");
        std::fs::write(&file, answer).unwrap();
        write_login(folder.path(), &twin.url(), &format!("cat '{}'", file.display()));
        let asked = cluster(folder.path(), "works");
        asked.identity().await.unwrap();
        std::fs::remove_file(&file).unwrap();
        match asked.identity().await {
            Err(keywheel_driver::CallError::Refused(refusal)) => {
                assert_eq!(refusal.kind, RefusalKind::Unavailable);
                assert!(refusal.message.contains(NO_LOGIN), "{refusal}");
            }
            other => panic!("nothing was sent: {other:?}"),
        }
        assert_eq!(twin.faults().seen().len(), 1);
    }

    #[tokio::test]
    async fn a_certificate_that_ends_is_asked_for_again() {
        let twin = keywheel_twins::kubernetes::Cluster::start().unwrap();
        let folder = tempfile::TempDir::new().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["works".into()]).unwrap();
        let pem = |what: &str, der: &[u8]| {
            use base64::Engine as _;
            let text = base64::engine::general_purpose::STANDARD.encode(der);
            let lines: Vec<&str> =
                (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
            format!("-----BEGIN {what}-----\n{}\n-----END {what}-----\n", lines.join("\n"))
        };
        let answer = serde_json::json!({
            "apiVersion": "client.authentication.k8s.io/v1",
            "kind": "ExecCredential",
            "status": {
                "clientCertificateData": pem("CERTIFICATE", made.cert.der()),
                "clientKeyData": pem("PRIVATE KEY", &made.signing_key.serialize_der()),
                "expirationTimestamp": "2020-01-01T00:00:00Z",
            },
        });
        let (file, runs) = (folder.path().join("answer"), folder.path().join("runs"));
        std::fs::write(&file, answer.to_string()).unwrap();
        let program = format!("echo run >> '{}'; cat '{}'", runs.display(), file.display());
        write_login(folder.path(), &twin.url(), &program);
        let asked = cluster(folder.path(), "works");
        let ran = || std::fs::read_to_string(&runs).unwrap().lines().count();
        asked.client().await.unwrap();
        let once = ran();
        asked.client().await.unwrap();
        assert_eq!(ran(), 2 * once);
    }

    #[tokio::test]
    async fn a_login_that_does_not_end_is_given_up() {
        let folder = tempfile::TempDir::new().unwrap();
        let asks = folder.path().join("asks");
        std::fs::write(&asks, "").unwrap();
        // It ends with the folder at the latest.
        let program = format!("while [ -e '{}' ]; do sleep 0.05; done", asks.display());
        write_login(folder.path(), "http://127.0.0.1:1", &program);
        let setting = named("works", Some("kube"));
        let source = Source::new(Some(&setting), &Context::at(folder.path())).unwrap();
        let waits = source.connect("cluster `x`", Duration::from_millis(100));
        let refused = waits.await.err().unwrap();
        std::fs::remove_file(&asks).unwrap();
        assert_eq!(refused.kind, RefusalKind::Unavailable);
        assert!(refused.message.contains("does it ask somebody?"), "{refused}");
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_kubeconfig_is_said_without_its_words() {
        let folder = tempfile::TempDir::new().unwrap();
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: other\n\
             contexts:\n- {name: other, context: {cluster: c, user: u}}\n- {name: lost, context: {cluster: gone}}\n\
             clusters:\n- {name: c, cluster: {server: 'http://192.0.2.1:8080'}}\n\
             users:\n- {name: u, user: {token: kwcanary-kube}}\n";
        std::fs::write(folder.path().join("kube"), text).unwrap();
        std::fs::write(folder.path().join("broken"), "users: [kwcanary-kube\n  x: {").unwrap();
        for (context, file, says) in [
            ("prod-eu", "kube", "has no context of that name"),
            ("lost", "kube", "not the cluster that it names"),
            ("other", "kube", "without TLS"),
            ("other", "broken", "is not one"),
            ("other", "missing", "cannot be read"),
        ] {
            let setting = named(context, Some(file));
            let source = Source::new(Some(&setting), &Context::at(folder.path())).unwrap();
            let refusal = source.connect("cluster `x`", super::super::LOGIN).await.err().unwrap();
            assert!(refusal.message.contains(says), "{refusal}");
            assert!(!format!("{refusal:?}").contains("kwcanary"), "{refusal}");
        }
    }
}
