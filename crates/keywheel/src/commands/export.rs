//! `keywheel export`: manifests for a cluster that say what this configuration needs there.
//!
//! Nothing is asked of a cluster and nothing is written to one: what is printed is read and applied by people. No value and no
//! credential stands in it.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Args, Subcommand};
use keywheel_core::plan::Role;
use keywheel_driver::{Refusal, Right};
use keywheel_drivers::kubernetes::TAKE_A_CLUSTER;
use keywheel_drivers::store::external_secret::{Config as ExternalSecret, export::Key};
use keywheel_drivers::{Build, Context, StoreConfig, WorkloadConfig};
use serde_json::{Value, json};

use crate::cli::Globals;
use crate::code;
use crate::config::{Config, Environment};
use crate::exit::Exit;
use crate::manifest;
use crate::output::{Failure, Format, Output};
use crate::session::environment;

/// Print manifests for a cluster
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(subcommand)]
    command: ExportCommand,
    /// The environment
    #[arg(long, short, global = true, value_name = "ENV")]
    environment: Option<String>,
}

#[derive(Debug, Subcommand)]
enum ExportCommand {
    /// The roles that allow exactly what this configuration's stores, workloads and claims ask of a cluster
    KubernetesRbac(RbacArgs),
    /// What lets the External Secrets Operator bring the Secrets of `external_secret` stores
    ExternalSecrets,
}

#[derive(Debug, Args)]
struct RbacArgs {
    /// The cluster, where the environment has several: its context, `in-cluster`, or `CONTEXT of KUBECONFIG`
    #[arg(long, value_name = "CONTEXT")]
    context: Option<String>,
    /// The service account that may do it [default: `keywheel` in the first namespace]
    #[arg(long, value_name = "NAMESPACE/NAME", group = "who")]
    account: Option<String>,
    /// The user that may do it, as the cluster knows it
    #[arg(long, value_name = "NAME", group = "who")]
    user: Option<String>,
    /// The group that may do it, as the cluster knows it
    #[arg(long, value_name = "NAME", group = "who")]
    group: Option<String>,
    /// Print the service account too
    #[arg(long, conflicts_with_all = ["user", "group"])]
    with_account: bool,
}

pub(crate) fn run(args: &ExportArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let chosen = environment(&config, args.environment.as_deref())?;
    let output = globals.output();
    match &args.command {
        ExportCommand::KubernetesRbac(args) => rbac(args, &config, chosen, output),
        ExportCommand::ExternalSecrets => external_secrets(&config, chosen, output),
    }
}

/// An object, and what people should know of it.
struct Printed {
    notes: Vec<String>,
    object: Value,
}

fn print(printed: &[Printed], output: Output) -> Result<Exit, Failure> {
    match output.format {
        Format::Json => {
            let objects: Vec<&Value> = printed.iter().map(|one| &one.object).collect();
            let notes: Vec<&String> = printed.iter().flat_map(|one| &one.notes).collect();
            output.json(&json!({ "manifests": objects, "notes": notes }))?;
        }
        Format::Text => {
            let documents: Vec<_> =
                printed.iter().map(|one| (one.notes.clone(), &one.object)).collect();
            output.text(&manifest::documents(&documents))?;
        }
    }
    Ok(Exit::Done)
}

fn rbac(
    args: &RbacArgs,
    config: &Config,
    environment: &Environment,
    output: Output,
) -> Result<Exit, Failure> {
    let rights = of_one_cluster(args, rights(config, environment)?, environment)?;
    let account = args.account(&rights)?;
    let subject = args.subject(&account);
    let mut printed = Vec::new();
    if args.with_account {
        let (namespace, name) = &account;
        let object = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": { "name": name, "namespace": namespace },
        });
        printed.push(Printed { notes: Vec::new(), object });
    }
    let namespaces: BTreeSet<&str> = rights.iter().map(|one| one.namespace.as_str()).collect();
    let name = format!("keywheel-{}-{}", config.project, environment.name);
    for namespace in namespaces {
        let metadata = json!({ "name": name, "namespace": namespace });
        let here: Vec<_> = rights.iter().filter(|right| right.namespace == namespace).collect();
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": metadata,
            "rules": rules(&here),
        });
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
            "subjects": [subject],
        });
        printed.extend([role, binding].map(|object| Printed { notes: Vec::new(), object }));
    }
    print(&printed, output)
}

/// Asks every driver of an environment what it needs.
fn rights(config: &Config, environment: &Environment) -> Result<BTreeSet<Right>, Failure> {
    let context = Context::at(&config.folder);
    let mut rights = BTreeSet::new();
    let mut take = |kind: &str, name: &str, built: Result<Vec<Right>, Refusal>| match built {
        Ok(found) => {
            rights.extend(found);
            Ok(())
        }
        // One that is in no cluster is not asked, whatever it lacks.
        Err(_) if !TAKE_A_CLUSTER.contains(&kind) => Ok(()),
        Err(refusal) => Err(refused(name, &refusal)),
    };
    for store in &environment.stores {
        let built = store.config.build(&context);
        take(store.config.kind(), &store.name, built.map(|store| store.rights()))?;
    }
    for workload in &environment.workloads {
        let built = workload.config.build(&context);
        take(workload.config.kind(), &workload.name, built.map(|it| it.rights()))?;
    }
    Ok(rights)
}

fn refused(name: &str, refusal: &Refusal) -> Failure {
    let failure = Failure::new(format!("nothing can be printed for `{name}`"));
    failure.code(code::DRIVER_REFUSED).exit(Exit::Refused).caused_by(refusal.message.clone())
}

/// Keeps the rights in one cluster: what is applied to a cluster must not name objects of another one.
fn of_one_cluster(
    args: &RbacArgs,
    mut rights: BTreeSet<Right>,
    environment: &Environment,
) -> Result<BTreeSet<Right>, Failure> {
    let all = clusters(&rights);
    if let Some(context) = &args.context {
        let is = |cluster: &str| match all.contains(context) {
            true => named(cluster) == context,
            false => named(cluster)
                .strip_prefix(context.as_str())
                .is_some_and(|it| it.starts_with(" of ")),
        };
        rights.retain(|right| is(&right.cluster));
    }
    let left = clusters(&rights);
    let usage = |message: String| Failure::new(message).code(code::USAGE);
    let name_one = |clusters: &BTreeSet<String>| {
        let names: Vec<_> = clusters.iter().map(|cluster| format!("'{cluster}'")).collect();
        format!("name one by `--context`: {}", names.join(", "))
    };
    match (left.len(), &args.context) {
        (1, _) => Ok(rights),
        (0, _) if all.is_empty() => {
            Err(usage(format!("nothing of `{}` is in a cluster", environment.name)))
        }
        (0, Some(context)) => {
            let message = format!("nothing of `{}` is in a cluster `{context}`", environment.name);
            Err(usage(message).hint(name_one(&all)))
        }
        _ => Err(usage("which cluster?".into()).hint(name_one(&left))),
    }
}

fn clusters(rights: &BTreeSet<Right>) -> BTreeSet<String> {
    rights.iter().map(|right| named(&right.cluster).to_owned()).collect()
}

/// Returns what a cluster is called on the command line.
fn named(cluster: &str) -> &str {
    cluster.strip_prefix("context ").unwrap_or(cluster)
}

impl RbacArgs {
    /// Returns namespace and name of the service account.
    fn account(&self, rights: &BTreeSet<Right>) -> Result<(String, String), Failure> {
        match self.account.as_deref().map(|account| account.split_once('/')) {
            Some(Some((namespace, name))) if !namespace.is_empty() && !name.is_empty() => {
                Ok((namespace.into(), name.into()))
            }
            Some(_) => Err(Failure::new("`--account` is not NAMESPACE/NAME").code(code::USAGE)),
            None => {
                let mut own = rights.iter().map(|right| &right.namespace);
                let own = own.find(|namespace| *namespace != "kube-system");
                let namespace = own.cloned().unwrap_or_else(|| "default".into());
                Ok((namespace, "keywheel".into()))
            }
        }
    }

    fn subject(&self, (namespace, name): &(String, String)) -> Value {
        let outside = |kind: &str, name: &str| json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name });
        match (&self.user, &self.group) {
            (Some(user), _) => outside("User", user),
            (None, Some(group)) => outside("Group", group),
            (None, None) => {
                json!({ "kind": "ServiceAccount", "name": name, "namespace": namespace })
            }
        }
    }
}

/// Puts rights together to as few rules as say the same.
fn rules(rights: &[&Right]) -> Vec<Value> {
    let is_covered = |right: &Right| {
        let allows = |other: &&Right| {
            other.name.is_none()
                && (&other.group, &other.resource, &other.verb)
                    == (&right.group, &right.resource, &right.verb)
        };
        right.name.is_some() && rights.iter().any(allows)
    };
    // By group, resource and name: the verbs.
    let mut verbs: BTreeMap<(&str, &str, Option<&str>), BTreeSet<&str>> = BTreeMap::new();
    for right in rights.iter().filter(|right| !is_covered(right)) {
        let object = (right.group.as_str(), right.resource.as_str(), right.name.as_deref());
        verbs.entry(object).or_default().insert(&right.verb);
    }
    // By group, resource and verbs: the names; apart from what is allowed for all names.
    let mut names: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
    for ((group, resource, name), verbs) in verbs {
        names.entry((group, resource, verbs, name.is_some())).or_default().extend(name);
    }
    // By group, verbs and names: the resources.
    let mut rules: BTreeMap<_, Vec<&str>> = BTreeMap::new();
    for ((group, resource, verbs, _), names) in names {
        rules.entry((group, names, verbs)).or_default().push(resource);
    }
    let mut written = Vec::new();
    for ((group, names, verbs), resources) in rules {
        written.push(match names.is_empty() {
            true => json!({ "apiGroups": [group], "resources": resources, "verbs": verbs }),
            false => json!({
                "apiGroups": [group],
                "resourceNames": names,
                "resources": resources,
                "verbs": verbs,
            }),
        });
    }
    written
}

fn external_secrets(
    config: &Config,
    environment: &Environment,
    output: Output,
) -> Result<Exit, Failure> {
    let mut printed = Vec::new();
    for (store, external) in brought(environment) {
        let keys = keys(environment, &store);
        let keys: Vec<Key<'_>> = keys
            .iter()
            .map(|(key, may_be_absent)| Key { key, may_be_absent: *may_be_absent })
            .collect();
        let made = external.manifests(&keys).map_err(|refusal| refused(&store, &refusal))?;
        let mut notes = made.notes;
        for object in made.objects {
            printed.push(Printed { notes: std::mem::take(&mut notes), object });
        }
    }
    if printed.is_empty() {
        let message = format!(
            "no store of `{}` is an `external_secret`, or one that the operator reads and a workload in a cluster reads from",
            environment.name
        );
        let failure = Failure::new(message).code(code::USAGE);
        return Err(failure.hint(format!("see {}", config.file.display())));
    }
    print(&printed, output)
}

/// Returns the stores whose values the operator brings; where there are none, those upstream from which workloads in a cluster read.
fn brought(environment: &Environment) -> Vec<(String, ExternalSecret)> {
    let declared = environment.stores.iter().filter_map(|store| match &store.config {
        StoreConfig::ExternalSecret(external) => Some((store.name.clone(), external.clone())),
        _ => None,
    });
    let declared: Vec<_> = declared.collect();
    if !declared.is_empty() {
        return declared;
    }
    let mut proposed = Vec::new();
    for store in &environment.stores {
        if TAKE_A_CLUSTER.contains(&store.config.kind()) {
            continue;
        }
        for namespace in namespaces(environment, &store.name) {
            let name = store.name.to_ascii_lowercase().replace('_', "-");
            let external = ExternalSecret::proposed(namespace, &name, &store.config);
            proposed.push((store.name.clone(), external));
        }
    }
    proposed
}

/// Returns the namespaces of the workloads that read secrets from a store.
fn namespaces<'e>(environment: &'e Environment, store: &str) -> BTreeSet<&'e str> {
    let delivers = |secret: &&crate::config::Secret| {
        secret.deliveries.iter().any(|delivery| delivery.store == store)
    };
    let readers = environment.secrets.iter().filter(delivers).flat_map(|secret| &secret.readers);
    let workloads = readers.filter_map(|name| environment.workload(name));
    let reads = workloads.filter(|workload| workload.reads(store));
    reads
        .filter_map(|workload| match &workload.config {
            WorkloadConfig::Kubernetes(config) => Some(config.namespace.as_str()),
            _ => None,
        })
        .collect()
}

/// Returns the keys that secrets own in a store, and whether each may be absent.
fn keys(environment: &Environment, store: &str) -> BTreeMap<String, bool> {
    let deliveries = environment.secrets.iter().flat_map(|secret| &secret.deliveries);
    let slots = deliveries.filter(|delivery| delivery.store == store).flat_map(|it| &it.slots);
    slots.map(|slot| (slot.address.clone(), slot.role == Role::AlsoAccepted)).collect()
}
