//! Who else writes a Secret: what makes it, and what deploys it. Whoever has it in Git would write the old value back (H49, H61).

use std::collections::BTreeSet;

use keywheel_core::planted;
use keywheel_driver::{Finding, Writer};

use super::object::{LAST_APPLIED, ManagedFields, Object};
use crate::api::plain;
use crate::kubernetes::{MANAGER, deployer, known_as};

/// The kind by which the External Secrets Operator makes a Secret.
const EXTERNAL: &str = "ExternalSecret";

/// Kinds that make Secrets, and what to do about each.
const MAKERS: [(&str, &str); 7] = [
    (EXTERNAL, "write the value where it comes from, with the store `external_secret`"),
    ("SealedSecret", "seal each new value and commit it, or let another Secret hold this key"),
    ("VaultStaticSecret", "write the value in Vault"),
    ("VaultDynamicSecret", "let Vault issue the value"),
    ("VaultPKISecret", "let Vault issue the value"),
    ("Certificate", "let cert-manager renew it"),
    ("InfisicalSecret", "write the value in Infisical"),
];

/// Marks that deployers leave, as a beginning of a label's or annotation's name.
const MARKS: [(&str, &str); 5] = [
    ("argocd.argoproj.io/", "Argo CD"),
    ("kustomize.toolkit.fluxcd.io/", "Flux"),
    ("helm.toolkit.fluxcd.io/", "Flux"),
    ("meta.helm.sh/", "Helm"),
    ("pulumi.com/", "Pulumi"),
];

/// Other beginnings of names by which a deployer finds what it may delete.
const PRUNED_BY: [&str; 10] = [
    "addonmanager.kubernetes.io/",
    "applyset.kubernetes.io/",
    "config.k8s.io/",
    "config.kubernetes.io/",
    "configmanagement.gke.io/",
    "configsync.gke.io/",
    "kapp.k14s.io/",
    "objectset.rio.cattle.io/",
    "olm.",
    "operators.coreos.com/",
];

/// The annotation by which cert-manager marks what it makes, also without an owner.
const CERT_MANAGER: &str = "cert-manager.io/certificate-name";

/// Whether a label or annotation says who makes or deploys an object, which is not true of a copy: it would be deleted as one too many.
pub(super) fn is_mark(name: &str) -> bool {
    MARKS.iter().any(|(mark, _)| name.starts_with(mark))
        || PRUNED_BY.iter().any(|mark| name.starts_with(mark))
        || name.starts_with("reconcile.external-secrets.io/")
        || name.starts_with("cert-manager.io/")
        || matches!(name, "app.kubernetes.io/managed-by" | "app.kubernetes.io/instance")
        || name == LAST_APPLIED
        || name.starts_with("keywheel.dev/")
}

/// Finds what makes the Secret, whose word is the last one.
pub(super) fn maker(object: &Object, named: &str) -> Option<Finding> {
    if planted!("makers_unseen") {
        return None;
    }
    let owner = object.metadata.owner_references.iter().find_map(|owner| {
        let (kind, advice) = MAKERS.iter().find(|(kind, _)| *kind == owner.kind)?;
        Some((format!("{kind} `{}`", owner.name), *advice))
    });
    let labelled = || {
        if is_brought(object) {
            return Some((format!("an {EXTERNAL}"), advice(EXTERNAL)));
        }
        let certificate = object.annotation(CERT_MANAGER).map(plain)?;
        Some((format!("Certificate `{certificate}`"), advice("Certificate")))
    };
    let (maker, advice) = owner.or_else(labelled)?;
    Some(Finding::blocks(format!(
        "{named} is made by {maker}, which writes its own values back; {advice}"
    )))
}

/// Whether the External Secrets Operator makes the Secret.
pub(super) fn is_brought(object: &Object) -> bool {
    let metadata = &object.metadata;
    let has =
        |name: &str| metadata.labels.contains_key(name) || metadata.annotations.contains_key(name);
    let is_operator = |manager: &str| {
        manager == "external-secrets" || manager.starts_with("externalsecrets.external-secrets.io/")
    };
    metadata.owner_references.iter().any(|owner| owner.kind == EXTERNAL)
        || has("reconcile.external-secrets.io/managed")
        || metadata.managed_fields.iter().any(|field| is_operator(&field.manager))
}

/// Finds who deploys the Secret, or wrote the keys that are to be written.
pub(super) fn writers(object: &Object, named: &str, keys: &[String]) -> Vec<Finding> {
    let deployers = deployers(object);
    let mut findings = Vec::new();
    let mut owned = false;
    for key in keys {
        for manager in object.managers(key).filter(|manager| *manager != MANAGER) {
            if let Some(deployer) = deployer(manager) {
                owned = true;
                findings.push(from_git(named, key, deployer));
            } else if !manager.starts_with("kubectl") {
                let message = format!(
                    "`{key}` of {named} was last written by `{manager}`, which may write it again"
                );
                findings.push(Finding::note(message));
            }
        }
    }
    if !owned {
        findings.extend(deployers.into_iter().map(|deployer| {
            let message = format!(
                "{named} is deployed by {deployer}, which does not set these keys; should it ever, it writes its own value back"
            );
            Finding::note(message)
        }));
    }
    if object.metadata.annotations.contains_key(LAST_APPLIED) {
        findings.push(applied(named));
    }
    findings
}

/// Names who wrote keys last, beside keywheel, and what keeps each from writing them again.
pub(super) fn others(object: &Object, keys: &[String]) -> Vec<Writer> {
    let written = keys.iter().flat_map(|key| object.setters(key));
    let by_others = written.filter(|entry| entry.manager != MANAGER);
    let all: BTreeSet<_> = by_others.map(|entry| writer(object, entry)).collect();
    all.into_iter().collect()
}

fn writer(object: &Object, entry: &ManagedFields) -> Writer {
    let helps = match deployer(&entry.manager) {
        Some(deployer) => format!(
            "a value that is rotated cannot stand in Git: take its key out of what {deployer} deploys, or use `external_secret`"
        ),
        None if object.metadata.annotations.contains_key(LAST_APPLIED) => format!(
            "remove the annotation `{LAST_APPLIED}` and the values from the file that is applied"
        ),
        None => "let nobody else write these keys".into(),
    };
    Writer {
        name: plain(&entry.manager),
        known_as: known_as(&entry.manager).map(str::to_owned),
        at: entry.time.map(|at| at.to_string()),
        helps: Some(helps),
    }
}

fn advice(kind: &str) -> &'static str {
    MAKERS.iter().find(|(maker, _)| *maker == kind).map_or("", |(_, advice)| advice)
}

fn from_git(named: &str, key: &str, deployer: &str) -> Finding {
    let message = format!(
        "`{key}` of {named} is set by {deployer}, which would write the old value back: a value that is rotated cannot stand in Git; take the key out of what {deployer} deploys, or use `external_secret`"
    );
    if planted!("deployers_unseen") { Finding::note(message) } else { Finding::blocks(message) }
}

fn applied(named: &str) -> Finding {
    Finding::note(format!(
        "{named} was made by `kubectl apply`, which keeps a copy of the values that it was given in the annotation `{LAST_APPLIED}`, and writes them back when it is run again; keywheel never writes there, so remove the annotation and the values from the file"
    ))
}

/// Returns who is known to deploy an object, by the marks on it.
fn deployers(object: &Object) -> Vec<&'static str> {
    let metadata = &object.metadata;
    let names = metadata.labels.keys().chain(metadata.annotations.keys());
    let marked = names.filter_map(|name| {
        MARKS.iter().find(|(mark, _)| name.starts_with(mark)).map(|(_, deployer)| *deployer)
    });
    let managers = metadata.managed_fields.iter().filter_map(|entry| deployer(&entry.manager));
    let helm = metadata.labels.get("app.kubernetes.io/managed-by").filter(|by| *by == "Helm");
    let mut found: Vec<_> = marked.chain(managers).chain(helm.map(|_| "Helm")).collect();
    found.sort_unstable();
    found.dedup();
    found
}
