//! Secrets, their versions, labels and tags.

use std::collections::{BTreeMap, BTreeSet};

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{Failure, Peculiar, VersionState, failure};
use crate::{now, random};

const CURRENT: &str = "AWSCURRENT";
const PREVIOUS: &str = "AWSPREVIOUS";

/// The longest content, in bytes.
const LARGEST: usize = 65_536;

/// The most labels of a version.
const MOST_LABELS: usize = 20;

#[derive(Default)]
pub(super) struct Secrets(BTreeMap<String, Secret>);

struct Secret {
    peculiar: Peculiar,
    versions: Vec<Version>,
    tags: BTreeMap<String, String>,
    changed: i64,
}

struct Version {
    id: String,
    content: String,
    stages: BTreeSet<String>,
    created: i64,
}

/// Words an error as the service does.
pub(super) fn error_body(_: StatusCode, message: &str) -> Value {
    json!({ "__type": "Scripted", "message": message })
}

fn wrong(message: &str) -> Failure {
    failure(400, "InvalidParameterException", message)
}

impl Secrets {
    pub(super) fn make(&mut self, name: &str, content: Option<&str>, peculiar: &Peculiar) {
        let mut secret = Secret {
            peculiar: peculiar.clone(),
            versions: Vec::new(),
            tags: BTreeMap::new(),
            changed: now(),
        };
        if let Some(content) = content {
            secret.add(&id(), content, &[CURRENT.into()]);
        }
        self.0.insert(name.into(), secret);
    }

    pub(super) fn versions(&self, name: &str) -> Vec<VersionState> {
        let versions = self.0[name].versions.iter();
        let stages = |version: &Version| version.stages.iter().cloned().collect();
        versions
            .map(|version| VersionState { id: version.id.clone(), stages: stages(version) })
            .collect()
    }

    pub(super) fn content(&self, name: &str, stage: &str) -> Option<String> {
        self.0[name].with_stage(stage).map(|version| version.content.clone())
    }

    pub(super) fn label(&mut self, name: &str, stage: &str, version: &str) {
        if let Some(secret) = self.0.get_mut(name) {
            secret.attach(stage, version);
        }
    }

    pub(super) fn put_by_hand(&mut self, name: &str, content: &str, stage: &str) -> String {
        let id = id();
        if let Some(secret) = self.0.get_mut(name) {
            secret.add(&id, content, &[stage.into()]);
        }
        id
    }

    pub(super) fn tags(&self, name: &str) -> Vec<(String, String)> {
        self.0[name].tags.clone().into_iter().collect()
    }

    pub(super) fn tag(&mut self, name: &str, key: &str, value: &str) {
        if let Some(secret) = self.0.get_mut(name) {
            secret.tags.insert(key.into(), value.into());
        }
    }

    pub(super) fn answer(&mut self, operation: &str, body: &Value) -> Result<Value, Failure> {
        let wanted = body["SecretId"].as_str().unwrap_or_default();
        let name = wanted.rsplit_once(":secret:").map_or(wanted, |(_, name)| name).to_owned();
        let secret = self.0.get_mut(&name).ok_or_else(|| {
            failure(
                400,
                "ResourceNotFoundException",
                "Secrets Manager can't find the specified secret.",
            )
        })?;
        let arn = format!("arn:aws:secretsmanager:eu-west-1:123456789012:secret:{name}");
        if operation == "DescribeSecret" {
            return Ok(secret.described(&name, &arn));
        }
        if secret.peculiar.deleted {
            let message = "You can't perform this operation on the secret because it was marked for deletion.";
            return Err(failure(400, "InvalidRequestException", message));
        }
        let mut done = match operation {
            "GetSecretValue" => secret.value(body)?,
            "PutSecretValue" => secret.put(body)?,
            "UpdateSecretVersionStage" => secret.update_stage(body)?,
            "TagResource" => secret.tag(body),
            _ => secret.untag(body),
        };
        done["ARN"] = json!(arn);
        done["Name"] = json!(name);
        Ok(done)
    }
}

impl Secret {
    fn with_stage(&self, stage: &str) -> Option<&Version> {
        self.versions.iter().find(|version| version.stages.contains(stage))
    }

    fn described(&self, name: &str, arn: &str) -> Value {
        let labelled = self.versions.iter().filter(|version| !version.stages.is_empty());
        let stages: BTreeMap<_, _> =
            labelled.map(|version| (version.id.clone(), &version.stages)).collect();
        let tags = self.tags.iter().map(|(key, value)| json!({ "Key": key, "Value": value }));
        let mut described = json!({
            "ARN": arn,
            "Name": name,
            "RotationEnabled": self.peculiar.rotates,
            "LastChangedDate": self.changed as f64 / 1_000.0,
            "Tags": tags.collect::<Vec<_>>(),
            "VersionIdsToStages": stages,
        });
        let Peculiar { kind, owning_service, primary_region, .. } = &self.peculiar;
        for (key, value) in
            [("Type", kind), ("OwningService", owning_service), ("PrimaryRegion", primary_region)]
        {
            if let Some(value) = value {
                described[key] = json!(value);
            }
        }
        if self.peculiar.deleted {
            described["DeletedDate"] = json!(self.changed as f64 / 1_000.0);
        }
        described
    }

    fn value(&self, body: &Value) -> Result<Value, Failure> {
        let (id, stage) = (body["VersionId"].as_str(), body["VersionStage"].as_str());
        let version = match (id, stage) {
            (Some(id), _) => self.versions.iter().find(|version| version.id == id),
            (None, stage) => self.with_stage(stage.unwrap_or(CURRENT)),
        };
        let version = version.ok_or_else(|| {
            let message = "Secrets Manager can't find the specified secret value.";
            failure(400, "ResourceNotFoundException", message)
        })?;
        if id.is_some() && stage.is_some_and(|stage| !version.stages.contains(stage)) {
            return Err(failure(400, "InvalidRequestException", "The version has another stage."));
        }
        Ok(json!({
            "VersionId": version.id,
            "SecretString": version.content,
            "VersionStages": version.stages,
            "CreatedDate": version.created as f64 / 1_000.0,
        }))
    }

    fn put(&mut self, body: &Value) -> Result<Value, Failure> {
        let token = body["ClientRequestToken"].as_str().unwrap_or_default();
        let content = body["SecretString"].as_str().unwrap_or_default();
        if !(32..=64).contains(&token.len()) {
            return Err(wrong("ClientRequestToken must have 32 to 64 characters."));
        }
        if content.is_empty() || content.len() > LARGEST {
            return Err(wrong("SecretString must have 1 to 65536 bytes."));
        }
        let stages: Vec<String> = match body["VersionStages"].as_array() {
            Some(stages) => stages.iter().filter_map(Value::as_str).map(Into::into).collect(),
            None => vec![CURRENT.into()],
        };
        if stages.is_empty() || stages.len() > MOST_LABELS {
            return Err(wrong("VersionStages must have 1 to 20 members."));
        }
        // The same request again is ignored: its labels may have moved on since.
        match self.versions.iter().find(|version| version.id == token) {
            Some(known) if known.content == content => {}
            Some(_) => {
                let message = "A version with this token already exists and has another content.";
                return Err(failure(400, "ResourceExistsException", message));
            }
            None => self.add(token, content, &stages),
        }
        Ok(json!({ "VersionId": token, "VersionStages": stages }))
    }

    fn add(&mut self, id: &str, content: &str, stages: &[String]) {
        let (id, content, created) = (id.to_owned(), content.to_owned(), now());
        let is_first = self.versions.is_empty();
        self.versions.push(Version { id: id.clone(), content, stages: BTreeSet::new(), created });
        for stage in stages {
            self.attach(stage, &id);
        }
        if is_first {
            self.attach(CURRENT, &id);
        }
        self.changed = created;
    }

    /// Puts a label where it is to be; what was current becomes the previous one.
    fn attach(&mut self, stage: &str, id: &str) {
        let holder = self.with_stage(stage).map(|version| version.id.clone());
        if holder.as_deref() == Some(id) {
            return;
        }
        for version in &mut self.versions {
            version.stages.remove(stage);
            if version.id == id {
                version.stages.insert(stage.into());
            }
        }
        if let (CURRENT, Some(holder)) = (stage, holder) {
            self.attach(PREVIOUS, &holder);
        }
    }

    fn update_stage(&mut self, body: &Value) -> Result<Value, Failure> {
        let stage = body["VersionStage"].as_str().unwrap_or_default();
        let (from, to) = (body["RemoveFromVersionId"].as_str(), body["MoveToVersionId"].as_str());
        let holder = self.with_stage(stage).map(|version| version.id.clone());
        if from.is_some() && from != holder.as_deref() {
            return Err(wrong(
                "The staging label is not attached to the version to remove it from.",
            ));
        }
        match to {
            Some(to) => {
                if !self.versions.iter().any(|version| version.id == to) {
                    let message = "Secrets Manager can't find the version to move to.";
                    return Err(failure(400, "ResourceNotFoundException", message));
                }
                if from.is_none() && holder.is_some_and(|holder| holder != to) {
                    let message =
                        "RemoveFromVersionId is required: the label is attached elsewhere.";
                    return Err(wrong(message));
                }
                self.attach(stage, to);
            }
            None if stage == CURRENT => {
                return Err(wrong("AWSCURRENT can only be moved to another version."));
            }
            None => {
                for version in &mut self.versions {
                    version.stages.remove(stage);
                }
            }
        }
        self.changed = now();
        Ok(json!({}))
    }

    fn tag(&mut self, body: &Value) -> Value {
        for tag in body["Tags"].as_array().into_iter().flatten() {
            if let (Some(key), Some(value)) = (tag["Key"].as_str(), tag["Value"].as_str()) {
                self.tags.insert(key.into(), value.into());
            }
        }
        json!({})
    }

    fn untag(&mut self, body: &Value) -> Value {
        for key in body["TagKeys"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            self.tags.remove(key);
        }
        json!({})
    }
}

fn id() -> String {
    let part = |length| random(b"0123456789abcdef", length);
    format!("{}-{}-{}-{}-{}", part(8), part(4), part(4), part(4), part(12))
}
