//! The manifests of the External Secrets Operator that let it bring what an `external_secret` expects.
//!
//! They hold names and no value. With which account the operator reads is not keywheel's: the manifests name a service account for
//! it, and the notes say what that one needs.

use keywheel_driver::Refusal;
use serde_json::{Value, json};

use super::{Config, StoreConfig};
use crate::api::unsupported;
use crate::kubernetes::Approach;
use crate::store;

/// The version that is served.
const VERSION: &str = "external-secrets.io/v1";

/// The SecretStore and the ExternalSecret of a store, and what people must see to.
#[derive(Debug)]
pub struct Manifests {
    /// The namespace and the name of both.
    pub name: String,
    /// The objects.
    pub objects: Vec<Value>,
    /// What else is needed, a sentence each.
    pub notes: Vec<String>,
}

/// A slot, as far as it matters here.
pub struct Key<'a> {
    /// The key of the Secret.
    pub key: &'a str,
    /// Whether it may be absent upstream.
    pub may_be_absent: bool,
}

/// Where and how the operator reads.
struct Source {
    provider: Value,
    /// What it calls the object that holds the values.
    object: String,
    /// Whether that has keys, or is one value.
    has_keys: bool,
    notes: Vec<String>,
}

impl Config {
    /// Names an ExternalSecret that is not there yet, for a store that readers in a cluster use without one.
    pub fn proposed(namespace: &str, name: &str, upstream: &StoreConfig) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            target: None,
            upstream: Box::new(upstream.clone()),
            synced_within: super::two_minutes(),
            cluster: None,
        }
    }

    /// Returns the manifests with which the operator brings these keys.
    ///
    /// # Errors
    /// A refusal where the operator cannot read this upstream, or not in the way that is configured.
    pub fn manifests(&self, keys: &[Key<'_>]) -> Result<Manifests, Refusal> {
        let reader = format!("{}-reader", self.name);
        let mut source = self.source(&reader)?;
        let (data, data_from) = match source.has_keys && keys.iter().any(|key| key.may_be_absent) {
            // The operator fails where a key is absent that it is told by name.
            true => (Value::Null, json!([{ "extract": { "key": source.object } }])),
            false => (keys.iter().map(|key| source.reference(key.key)).collect(), Value::Null),
        };
        let target = self.target.as_ref().unwrap_or(&self.name);
        let metadata = json!({ "name": self.name, "namespace": self.namespace });
        let mut spec = json!({
            "refreshPolicy": "Periodic",
            "refreshInterval": "1h",
            "secretStoreRef": { "kind": "SecretStore", "name": self.name },
            "target": { "name": target, "creationPolicy": "Owner" },
        });
        for (field, value) in [("data", data), ("dataFrom", data_from)] {
            if !value.is_null() {
                spec[field] = value;
            }
        }
        source.notes.push(format!(
            "a Secret `{target}` that is there already becomes the operator's, and holds afterwards what it brings and nothing else"
        ));
        Ok(Manifests {
            name: format!("{}/{}", self.namespace, self.name),
            objects: vec![
                json!({
                    "apiVersion": VERSION, "kind": "SecretStore", "metadata": metadata,
                    "spec": { "provider": source.provider },
                }),
                json!({
                    "apiVersion": VERSION, "kind": "ExternalSecret", "metadata": metadata,
                    "spec": spec,
                }),
            ],
            notes: source.notes,
        })
    }

    fn source(&self, reader: &str) -> Result<Source, Refusal> {
        match self.upstream.as_ref() {
            StoreConfig::VaultKv(upstream) => Ok(vault(upstream, &self.name, reader)),
            #[cfg(feature = "cloud")]
            StoreConfig::AwsSecretsManager(upstream) => Ok(aws(upstream, reader)),
            StoreConfig::GcpSecretManager(upstream) => gcp(upstream, reader),
            StoreConfig::AzureKeyVault(upstream) => Ok(azure(upstream, reader)),
            StoreConfig::KubernetesSecret(upstream) => self.kubernetes(upstream, reader),
            other => {
                let kind = other.kind();
                Err(unsupported(&format!("the External Secrets Operator reads no `{kind}`")))
            }
        }
    }

    fn kubernetes(
        &self,
        upstream: &store::kubernetes_secret::Config,
        reader: &str,
    ) -> Result<Source, Refusal> {
        if upstream.approach == Approach::Versioned {
            return Err(unsupported("a Secret that is kept in versions has no name to read it by"));
        }
        if upstream.cluster != self.cluster {
            return Err(unsupported("its `upstream` is in another cluster"));
        }
        let (namespace, name) = (&upstream.namespace, &upstream.name);
        Ok(Source {
            provider: json!({ "kubernetes": {
                "remoteNamespace": namespace,
                "server": { "caProvider": {
                    "type": "ConfigMap", "name": "kube-root-ca.crt", "key": "ca.crt",
                } },
                "auth": { "serviceAccount": { "name": reader } },
            } }),
            object: name.clone(),
            has_keys: true,
            notes: vec![format!(
                "service account `{}/{reader}` needs `get` of `secrets/{name}` in namespace `{namespace}`",
                self.namespace
            )],
        })
    }
}

impl Source {
    fn reference(&self, key: &str) -> Value {
        let mut reference = json!({ "key": self.object });
        if self.has_keys {
            reference["property"] = key.into();
        }
        json!({ "secretKey": key, "remoteRef": reference })
    }
}

fn vault(upstream: &store::vault_kv::Config, name: &str, reader: &str) -> Source {
    let (mount, path) = (&upstream.mount, &upstream.path);
    let mut provider = json!({
        "server": upstream.address,
        "path": mount,
        "version": "v2",
        "auth": { "kubernetes": {
            "mountPath": "kubernetes",
            "role": reader,
            "serviceAccountRef": { "name": reader },
        } },
    });
    let mut notes = vec![format!(
        "service account `{reader}` logs in by role `{reader}` of the auth method `kubernetes`; its policy needs `read` of `{mount}/data/{path}`"
    )];
    if let Some(namespace) = &upstream.namespace {
        provider["namespace"] = namespace.as_str().into();
    }
    if upstream.ca.is_some() {
        let name = format!("{name}-ca");
        provider["caProvider"] = json!({ "type": "ConfigMap", "name": name, "key": "ca.crt" });
        notes.push(format!(
            "ConfigMap `{name}` holds under `ca.crt` the certificates that keywheel reads from `ca`"
        ));
    }
    Source { provider: json!({ "vault": provider }), object: path.clone(), has_keys: true, notes }
}

#[cfg(feature = "cloud")]
fn aws(upstream: &store::aws_secrets_manager::Config, reader: &str) -> Source {
    let id = &upstream.secret_id;
    Source {
        provider: json!({ "aws": {
            "service": "SecretsManager",
            "region": upstream.region,
            "auth": { "jwt": { "serviceAccountRef": { "name": reader } } },
        } }),
        object: id.clone(),
        has_keys: upstream.format == store::document::Format::Json,
        notes: vec![format!(
            "service account `{reader}` takes an IAM role that allows `secretsmanager:GetSecretValue` and `secretsmanager:DescribeSecret` of `{id}`"
        )],
    }
}

fn gcp(upstream: &store::gcp_secret_manager::Config, reader: &str) -> Result<Source, Refusal> {
    if upstream.alias.is_some() {
        return Err(unsupported(
            "the operator would read `latest`, and not the version that `alias` names",
        ));
    }
    let (project, secret) = (&upstream.project, &upstream.secret);
    Ok(Source {
        provider: json!({ "gcpsm": {
            "projectID": project,
            "auth": { "workloadIdentity": { "serviceAccountRef": { "name": reader } } },
        } }),
        object: secret.clone(),
        has_keys: upstream.format == store::document::Format::Json,
        notes: vec![format!(
            "service account `{reader}` needs `roles/secretmanager.secretAccessor` on secret `{secret}` of project `{project}`"
        )],
    })
}

fn azure(upstream: &store::azure_key_vault::Config, reader: &str) -> Source {
    let (url, name) = (&upstream.vault_url, &upstream.name);
    Source {
        provider: json!({ "azurekv": {
            "vaultUrl": url,
            "authType": "WorkloadIdentity",
            "serviceAccountRef": { "name": reader },
        } }),
        object: name.clone(),
        has_keys: false,
        notes: vec![format!(
            "service account `{reader}` needs the role `Key Vault Secrets User` on secret `{name}` of `{url}`"
        )],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifests(upstream: Value, keys: &[(&str, bool)]) -> Result<Manifests, Refusal> {
        let config: Config = serde_json::from_value(json!({
            "namespace": "shop", "name": "api-keys", "upstream": upstream,
            "cluster": { "context": "prod" },
        }))
        .unwrap();
        let keys =
            keys.iter().map(|(key, may_be_absent)| Key { key, may_be_absent: *may_be_absent });
        config.manifests(&keys.collect::<Vec<_>>())
    }

    #[test]
    fn the_operator_is_told_where_each_key_is() {
        let vault = json!({ "vault_kv": {
            "address": "https://vault:8200", "auth": { "token": { "env": "VAULT_TOKEN" } },
            "namespace": "eu", "ca": "vault-ca.pem", "path": "shop/api-keys",
        } });
        let made = manifests(vault.clone(), &[("openai", false)]).unwrap();
        let [store, external] = made.objects.as_slice() else { panic!("two objects") };
        let provider = &store["spec"]["provider"]["vault"];
        assert_eq!(provider["server"], "https://vault:8200");
        assert_eq!((&provider["path"], &provider["namespace"]), (&json!("secret"), &json!("eu")));
        assert_eq!(provider["caProvider"]["name"], "api-keys-ca");
        assert_eq!(store["apiVersion"], "external-secrets.io/v1");
        let key = json!([{
            "secretKey": "openai", "remoteRef": { "key": "shop/api-keys", "property": "openai" },
        }]);
        assert_eq!(external["spec"]["data"], key);
        assert_eq!(external["spec"]["secretStoreRef"]["name"], store["metadata"]["name"]);
        assert!(
            made.notes[0].contains("`read` of `secret/data/shop/api-keys`"),
            "{:?}",
            made.notes
        );
        assert!(
            !store.to_string().contains("VAULT_TOKEN"),
            "keywheel's own login is not the operator's"
        );
        // One that is absent for now would make the operator fail.
        let made = manifests(vault, &[("key", false), ("also", true)]).unwrap();
        let extract = json!([{ "extract": { "key": "shop/api-keys" } }]);
        assert_eq!(made.objects[1]["spec"]["dataFrom"], extract);
        assert!(made.objects[1]["spec"].get("data").is_none());
    }

    #[test]
    fn a_secret_of_one_value_has_no_properties() {
        let azure = json!({ "azure_key_vault": {
            "vault_url": "https://shop.vault.azure.net", "name": "openai",
            "credentials": { "token": { "env": "AZURE_TOKEN" } },
        } });
        let made = manifests(azure, &[("content", false)]);
        let made = made.unwrap().objects;
        let key = json!([{ "secretKey": "content", "remoteRef": { "key": "openai" } }]);
        assert_eq!(made[1]["spec"]["data"], key);
        assert_eq!(made[0]["spec"]["provider"]["azurekv"]["authType"], "WorkloadIdentity");
    }

    #[test]
    fn an_upstream_that_the_operator_cannot_read_is_refused() {
        let secret = |approach: &str, context: &str| {
            json!({ "kubernetes_secret": {
                "namespace": "source", "name": "keys", "approach": approach,
                "cluster": { "context": context },
            } })
        };
        assert!(manifests(secret("in_place", "prod"), &[("key", false)]).is_ok());
        for (upstream, why) in [
            (secret("versioned", "prod"), "kept in versions"),
            (secret("in_place", "elsewhere"), "another cluster"),
            (json!({ "env_file": { "path": ".env" } }), "reads no `env_file`"),
        ] {
            let refused = manifests(upstream, &[("key", false)]).unwrap_err();
            assert!(refused.message.contains(why), "{refused}");
        }
    }
}
