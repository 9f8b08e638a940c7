//! `aws_secrets_manager`: one secret of AWS Secrets Manager; a slot is a member of its JSON object, or `content` for all of it.
//!
//! A new version is put under the label `AWSPENDING`, which no reader asks for, and read back. Then `AWSCURRENT` is moved to it,
//! from the version that was read before and from no other: who changes the secret meanwhile is not overwritten (H126). Last,
//! `AWSPENDING` is taken off, since it would stop every rotation after this one (H09).
//!
//! Where a version that still has a label holds what is to be written, `AWSCURRENT` moves to it and nothing is put: that is the
//! way back. The id of a new version follows from what it replaces and what it holds, so that a put whose answer is lost is the
//! same put when it is made again. It is keyed with both contents, and tells neither to anyone who has not both (H118).
//!
//! The first version of a secret is current at once, whatever label it is put under: nothing that fails after that put is a
//! refusal. The id of a version begins with the rotation that made it.
//!
//! A move whose answer is lost can land for as long as its signature is good, which is what `settle_for` covers. What AWS or a
//! partner rotates itself, a copy of another region's secret, and a secret that is to be deleted are refused.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::error::SdkError;
use aws_sdk_secretsmanager::operation::describe_secret::DescribeSecretOutput;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use keywheel_core::facts::{Pickup, ReadBack, Revert, StoreFacts};
use keywheel_core::plan::Pin;
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::store::{Edit, Written};
use keywheel_driver::{
    CallError, Claim, Claims, Duration, Finding, Owner, Refusal, RefusalKind, Store,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::document::{Bad, Document, Format};
use super::mark;
use crate::api::{now, unsupported};
use crate::aws::{Access, Aws, Failed, ago};
use crate::http::Effect;
use crate::{Build, Context, secret_json};

mod tags;

const TARGET: &str = "store `aws_secrets_manager`";

const CURRENT: &str = "AWSCURRENT";
const PENDING: &str = "AWSPENDING";
const PREVIOUS: &str = "AWSPREVIOUS";

/// What the id of a version of ours begins with.
const OURS: &str = "keywheel-";

/// The longest id of a version, and how much of a mark there is in it at most.
const LONGEST_TOKEN: usize = 64;
const MARK: usize = 48;

/// How often a secret may get a new version for long, by AWS's advice.
const BETWEEN_PUTS: Span = Span::minutes(10);

/// One secret of AWS Secrets Manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The region in which it is written: `eu-west-1`.
    pub region: String,
    /// Its name, or its whole ARN.
    pub secret_id: String,
    /// Where the API is, if not at the official address; HTTPS, or a loopback address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// With which credentials it is read and written.
    #[serde(default)]
    pub credentials: Access,
    /// What it holds.
    #[serde(default = "default_format")]
    pub format: Format,
    /// Labels of your own that stay on the version that they are on: their readers are not given the new one.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub leave_stages: BTreeSet<String>,
    /// How long a write without an answer can still take effect.
    #[serde(default = "default_settle_for")]
    pub settle_for: Duration,
}

const fn default_format() -> Format {
    Format::Json
}

/// AWS takes no request whose signature is more than five minutes away from its own time: by a clock that is five minutes fast, one
/// is good for ten.
fn default_settle_for() -> Duration {
    Span::minutes(11).into()
}

impl Build for Config {
    type Driver = dyn Store;

    fn build(&self, context: &Context) -> Result<Arc<dyn Store>, Refusal> {
        let named = Named::of(&self.secret_id)?;
        if named.region.is_some_and(|region| region != self.region) {
            return Err(unsupported("`secret_id` is an ARN of another region than `region`"));
        }
        let container = format!("aws-secrets-manager:{}:{}", self.region, named.name);
        let endpoint = self.endpoint.as_deref();
        let aws = Aws::new(TARGET, &self.region, endpoint, &self.credentials, context)?;
        let client = Client::new(aws.own());
        let Context { claim, rotation, .. } = context.clone();
        let config = self.clone();
        Ok(Arc::new(SecretsManager { config, aws, client, claim, rotation, container }))
    }
}

/// What an id says.
struct Named<'a> {
    region: Option<&'a str>,
    name: &'a str,
}

impl<'a> Named<'a> {
    fn of(id: &'a str) -> Result<Self, Refusal> {
        let wrong = || unsupported("`secret_id` is neither the name of a secret nor its whole ARN");
        if !id.starts_with("arn:") {
            let fits = !id.is_empty()
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_+=.@-".contains(&b));
            return if fits { Ok(Self { region: None, name: id }) } else { Err(wrong()) };
        }
        let parts: Vec<&str> = id.splitn(7, ':').collect();
        let [_, _, "secretsmanager", region, _, "secret", name] = parts[..] else {
            return Err(wrong());
        };
        // AWS adds a hyphen and six random characters to the name.
        let (name, _) =
            name.rsplit_once('-').filter(|(_, end)| end.len() == 6).ok_or_else(wrong)?;
        Ok(Self { region: Some(region), name })
    }
}

struct SecretsManager {
    config: Config,
    aws: Aws,
    client: Client,
    claim: Option<Claim>,
    rotation: Option<String>,
    container: String,
}

#[async_trait]
impl Store for SecretsManager {
    fn facts(&self) -> StoreFacts {
        StoreFacts {
            read_back: ReadBack::Value,
            conditional: true,
            staged: true,
            revert: Revert::Restore,
            history: true,
            pickup: Pickup::Roll,
            settle_for: self.config.settle_for.span(),
            leaves_behind: true,
            answers_logins: false,
            longest_run: None,
        }
    }

    fn container(&self) -> String {
        self.container.clone()
    }

    /// The whole ARN names account and region, and ends otherwise where the secret was deleted and made anew.
    async fn identity(&self) -> Result<Option<Pin>, CallError> {
        let described = self.describe().await?;
        let pin =
            |id: &str| Pin { id: id.to_owned(), machine: String::new(), folder: String::new() };
        Ok(described.arn().map(pin))
    }

    async fn preflight(&self, addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        let described = match self.describe().await {
            Err(CallError::Refused(refusal)) if refusal.is_for_good() => {
                return Ok(vec![Finding::blocks(refusal.message)]);
            }
            described => described?,
        };
        let blocking = |refusal: Refusal| Finding::blocks(refusal.message);
        let mut findings: Vec<_> =
            self.objection(&described).err().into_iter().map(blocking).collect();
        if let Some(claim) = &self.claim {
            let owner = tags::owner(described.tags(), claim);
            findings.extend(owner.objection(&self.name()).map(Finding::blocks));
        }
        match self.read(addresses).await {
            Err(CallError::Refused(refusal)) if refusal.is_for_good() && findings.is_empty() => {
                findings.push(blocking(refusal));
            }
            Err(CallError::Refused(refusal)) if refusal.is_for_good() => {}
            read => drop(read?),
        }
        findings.extend(self.other_readers(&described));
        findings.extend(self.other_writers(&described));
        Ok(findings)
    }

    async fn addresses(&self) -> Result<Option<Vec<String>>, CallError> {
        let Some(held) = self.current().await? else { return Ok(Some(Vec::new())) };
        Ok(Some(self.document().addresses(&held).map_err(|bad| self.unfit(bad))?))
    }

    async fn read(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        let held = self.current().await?;
        let slots = addresses.iter().map(|address| self.document().slot(held.as_ref(), address));
        Ok(slots.collect::<Result<_, _>>().map_err(|bad| self.unfit(bad))?)
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        let described = self.describe().await?;
        self.objection(&described)?;
        if let Some(claim) = &self.claim {
            tags::owner(described.tags(), claim).check(&self.name())?;
        }
        let base = holder(&described, CURRENT);
        let held = match base {
            Some(base) => Some(self.content(base).await?.ok_or_else(|| self.changed_meanwhile())?),
            None => None,
        };
        let edited = self.document().edited(held.as_ref(), edits);
        let Some(new) = edited.map_err(|bad| self.unfit(bad))? else {
            self.take_off(holder(&described, PENDING)).await?;
            return Ok(Written { changed: false });
        };
        let made = self.made(&described, base, held.as_ref(), &new).await?;
        self.give(base, &made, &new).await.map_err(|error| match base {
            None if !planted!("first_version_is_staged") => CallError::Unknown(error.to_string()),
            _ => error,
        })?;
        // From here on readers have it: whatever fails now, it was not refused.
        let cleaned = self.take_off(made.pending.as_deref()).await;
        cleaned.map_err(|error| CallError::Unknown(error.to_string()))?;
        Ok(Written { changed: true })
    }

    /// Takes the pending label off that a write left whose way back put nothing.
    async fn clean_up(&self) -> Result<Vec<String>, CallError> {
        let described = self.describe().await?;
        self.take_off(holder(&described, PENDING)).await?;
        Ok(Vec::new())
    }

    fn claims(&self) -> Option<&dyn Claims> {
        self.claim.as_ref().map(|_| self as &dyn Claims)
    }
}

/// A version that holds what is to be written.
struct Made {
    version: String,
    /// Whether it was put now, and not read since.
    is_new: bool,
    /// Which version has the pending label.
    pending: Option<String>,
}

impl SecretsManager {
    fn name(&self) -> String {
        format!("secret `{}`", self.config.secret_id)
    }

    fn refused(&self, kind: RefusalKind, why: &str) -> Refusal {
        Refusal::operator(kind, format!("{}: {why}", self.name()))
    }

    fn changed_meanwhile(&self) -> Refusal {
        let why = format!("{}: another version became current meanwhile", self.name());
        Refusal::retry(RefusalKind::Unavailable, None, why)
    }

    fn document(&self) -> Document {
        Document { format: self.config.format, only_utf8: true, kept: "secret" }
    }

    fn unfit(&self, (kind, why): Bad) -> Refusal {
        self.refused(kind, &why)
    }

    fn failed<E>(&self, effect: Effect, error: &SdkError<E, HttpResponse>) -> Failed
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        self.aws.failed(effect, error)
    }

    async fn describe(&self) -> Result<DescribeSecretOutput, CallError> {
        let asked = self.client.describe_secret().secret_id(&self.config.secret_id).send().await;
        asked.map_err(|error| self.failed(Effect::Reads, &error).error)
    }

    /// Returns what readers are given; none where the secret is there and has no version yet.
    async fn current(&self) -> Result<Option<SecretValue>, CallError> {
        let asked = self.client.get_secret_value().secret_id(&self.config.secret_id);
        match asked.version_stage(CURRENT).send().await {
            Ok(answer) => self.text(answer.secret_string).map(Some),
            Err(error) => {
                let failed = self.failed(Effect::Reads, &error);
                let is_not_there = failed.is(&["ResourceNotFoundException"]);
                if is_not_there && holder(&self.describe().await?, CURRENT).is_none() {
                    return Ok(None);
                }
                Err(failed.error)
            }
        }
    }

    /// Returns what a version holds; none where it is gone.
    async fn content(&self, version: &str) -> Result<Option<SecretValue>, CallError> {
        let asked = self.client.get_secret_value().secret_id(&self.config.secret_id);
        match asked.version_id(version).send().await {
            Ok(answer) => self.text(answer.secret_string).map(Some),
            Err(error) => match self.failed(Effect::Reads, &error) {
                failed if failed.is(&["ResourceNotFoundException"]) => Ok(None),
                failed => Err(failed.error),
            },
        }
    }

    fn text(&self, content: Option<String>) -> Result<SecretValue, CallError> {
        let content = content.map(|content| SecretValue::new(content.into_bytes()));
        let why = "it holds binary data, which is not read here";
        content.ok_or_else(|| self.refused(RefusalKind::Unsupported, why).into())
    }

    /// Finds the version that holds what is to be written, or puts it.
    async fn made(
        &self,
        described: &DescribeSecretOutput,
        base: Option<&str>,
        held: Option<&SecretValue>,
        new: &SecretValue,
    ) -> Result<Made, CallError> {
        let pending = holder(described, PENDING);
        let before = [pending, holder(described, PREVIOUS)].into_iter().flatten();
        for version in before.filter(|version| Some(*version) != base) {
            if self.content(version).await?.is_some_and(|content| content.same_as(new)) {
                let (version, pending) = (version.to_owned(), pending.map(str::to_owned));
                return Ok(Made { version, is_new: false, pending });
            }
        }
        let version = token(self.rotation.as_deref(), base, held, new);
        self.put(&version, new).await?;
        Ok(Made { pending: Some(version.clone()), is_new: true, version })
    }

    /// Reads a version that was put, and gives it to readers.
    async fn give(
        &self,
        base: Option<&str>,
        made: &Made,
        new: &SecretValue,
    ) -> Result<(), CallError> {
        // The answer to the put proves nothing: the same put again is done without a look at what it holds.
        if made.is_new && !self.content(&made.version).await?.is_some_and(|held| held.same_as(new))
        {
            let why = format!("{}: the new version cannot be read back yet", self.name());
            return Err(Refusal::retry(RefusalKind::Unavailable, None, why).into());
        }
        self.move_current(base, &made.version).await
    }

    async fn put(&self, version: &str, new: &SecretValue) -> Result<(), CallError> {
        let text = secret_json::text(new).unwrap_or_default();
        let put = self.client.put_secret_value().secret_id(&self.config.secret_id);
        let put = put.client_request_token(version).secret_string(text);
        let put = match planted!("current_moves_with_the_put") {
            true => put,
            false => put.version_stages(PENDING),
        };
        let done = put.send().await;
        done.map(drop).map_err(|error| self.failed(Effect::Changes, &error).error)
    }

    /// Gives readers another version, if they still have the one that was read.
    async fn move_current(&self, base: Option<&str>, version: &str) -> Result<(), CallError> {
        let moved = self.client.update_secret_version_stage().secret_id(&self.config.secret_id);
        let moved = moved.version_stage(CURRENT).move_to_version_id(version);
        let from = match (planted!("move_from_anywhere"), base) {
            (true, _) => holder(&self.describe().await?, CURRENT).map(str::to_owned),
            (false, base) => base.map(str::to_owned),
        };
        let Err(error) = moved.set_remove_from_version_id(from).send().await else { return Ok(()) };
        let failed = self.failed(Effect::Changes, &error);
        // The label is on another version: ours, where the request was delivered twice, or somebody else's.
        if !failed.is(&["InvalidParameterException", "ResourceNotFoundException"]) {
            return Err(failed.error);
        }
        let described = self.describe().await;
        let described = described.map_err(|error| CallError::Unknown(error.to_string()))?;
        if holder(&described, CURRENT) == Some(version)
            && !planted!("second_no_to_a_move_is_believed")
        {
            return Ok(());
        }
        Err(self.changed_meanwhile().into())
    }

    /// Takes the pending label off a version of ours.
    async fn take_off(&self, pending: Option<&str>) -> Result<(), CallError> {
        let Some(pending) = pending.filter(|pending| pending.starts_with(OURS)) else {
            return Ok(());
        };
        if planted!("pending_label_left") {
            return Ok(());
        }
        let label = self.client.update_secret_version_stage().secret_id(&self.config.secret_id);
        let label = label.version_stage(PENDING).remove_from_version_id(pending);
        match label.send().await {
            Ok(_) => Ok(()),
            Err(error) => match self.failed(Effect::Changes, &error) {
                // It is on that version no more.
                failed
                    if failed.is(&["InvalidParameterException", "ResourceNotFoundException"]) =>
                {
                    Ok(())
                }
                failed => Err(failed.error),
            },
        }
    }

    /// Says why the secret may not be written by anyone but its owner.
    fn objection(&self, described: &DescribeSecretOutput) -> Result<(), Refusal> {
        let no = |kind, why: &str| Err(self.refused(kind, why));
        let conflict = RefusalKind::Conflict;
        if described.deleted_date().is_some() {
            return no(RefusalKind::NotFound, "it is to be deleted; `restore-secret` keeps it");
        }
        if described.owning_service().is_some() {
            return no(conflict, "a service of AWS owns and rotates it");
        }
        if described.r#type().is_some() {
            return no(conflict, "a partner of AWS rotates it");
        }
        if described.rotation_enabled() == Some(true) && !planted!("rotated_by_aws_too") {
            return no(
                conflict,
                "AWS rotates it itself; `cancel-rotate-secret` ends that, and one of both rotates it",
            );
        }
        if let Some(primary) =
            described.primary_region().filter(|primary| *primary != self.config.region)
        {
            let why = format!("it is a copy; write the secret in its primary region `{primary}`");
            return no(RefusalKind::Unsupported, &why);
        }
        let pending = holder(described, PENDING);
        let is_strange = pending.is_some_and(|pending| {
            !pending.starts_with(OURS) && Some(pending) != holder(described, CURRENT)
        });
        if is_strange && !planted!("pending_of_another_overwritten") {
            return no(
                conflict,
                "another program has staged a version (`AWSPENDING`): its rotation is under way or was broken off; take the label off once that is clear",
            );
        }
        Ok(())
    }

    /// Names the readers that a write does not reach, as far as they can be seen (H65).
    fn other_readers(&self, described: &DescribeSecretOutput) -> Vec<Finding> {
        let name = self.name();
        let mut findings = Vec::new();
        let labels = described.version_ids_to_stages().into_iter().flatten();
        let labels: BTreeSet<&str> =
            labels.flat_map(|(_, stages)| stages).map(String::as_str).collect();
        for label in labels {
            let is_known = label.starts_with("AWS") || self.config.leave_stages.contains(label);
            if !is_known && !planted!("pinned_label_unseen") {
                findings.push(Finding::blocks(format!(
                    "{name}: readers that ask for the label `{label}` keep what they have; let them ask for `{CURRENT}`, or write `leave_stages: [{label}]`"
                )));
            }
        }
        findings.push(Finding::note(format!(
            "{name}: a reader that names a version id keeps what it has, and cannot be seen from here"
        )));
        let copies = described.replication_status().iter().filter_map(|copy| copy.region());
        let copies: Vec<String> = copies.map(|region| format!("`{region}`")).collect();
        if !copies.is_empty() {
            let copies = copies.join(", ");
            findings.push(Finding::note(format!("{name}: readers in {copies} are given it later")));
        }
        findings
    }

    /// Names those who may write the secret too (H49), and what came before.
    fn other_writers(&self, described: &DescribeSecretOutput) -> Vec<Finding> {
        let name = self.name();
        let mut findings = Vec::new();
        for manager in tags::managers(described.tags()) {
            findings.push(Finding::note(format!(
                "{name}: a tag says that {manager} manages it; what that writes back is drift, and nothing is revoked until it is put right"
            )));
        }
        if holder(described, CURRENT).is_none() {
            findings.push(Finding::note(format!(
                "{name}: it has no version yet, and AWS gives readers the first one at once, before it was verified"
            )));
        }
        let pending = holder(described, PENDING);
        if pending.is_some_and(|pending| pending.starts_with(OURS)) {
            findings.push(Finding::note(format!(
                "{name}: `{PENDING}` was left by a write that was broken off; the next one takes it off"
            )));
        }
        let changed = described.last_changed_date().and_then(|at| at.to_millis().ok());
        let changed = changed.map(Timestamp::from_millis);
        if let Some(changed) = changed.filter(|at| now().since(*at) < BETWEEN_PUTS) {
            let ago = ago(changed);
            findings.push(Finding::note(format!(
                "{name}: it was changed {ago}; AWS advises against a new version more often than every {BETWEEN_PUTS} for long"
            )));
        }
        findings
    }
}

#[async_trait]
impl Claims for SecretsManager {
    fn place(&self) -> String {
        format!("the tags `{}…` of {}", tags::PREFIX, self.name())
    }

    async fn owner(&self) -> Result<Owner, CallError> {
        let described = self.describe().await?;
        Ok(self.claim.as_ref().map_or(Owner::Nobody, |ours| tags::owner(described.tags(), ours)))
    }

    async fn take(&self) -> Result<bool, CallError> {
        let owner = self.owner().await?;
        owner.check(&self.name())?;
        if owner == Owner::Us {
            return Ok(false);
        }
        self.take_over().await?;
        // Two may have taken it at once: the later one has it.
        self.owner().await?.check(&self.name())?;
        Ok(true)
    }

    async fn take_over(&self) -> Result<(), CallError> {
        let Some(ours) = &self.claim else { return Ok(()) };
        let tags = tags::of(ours).map_err(|why| self.refused(RefusalKind::Unsupported, &why))?;
        let tagged = self.client.tag_resource().secret_id(&self.config.secret_id);
        let tagged = tagged.set_tags(Some(tags)).send().await;
        tagged.map(drop).map_err(|error| self.failed(Effect::Changes, &error).error)
    }

    async fn release(&self) -> Result<(), CallError> {
        if self.owner().await? != Owner::Us {
            return Ok(());
        }
        let untagged = self.client.untag_resource().secret_id(&self.config.secret_id);
        let untagged = untagged.set_tag_keys(Some(tags::keys())).send().await;
        untagged.map(drop).map_err(|error| self.failed(Effect::Changes, &error).error)
    }
}

/// Returns which version has a label.
fn holder<'a>(described: &'a DescribeSecretOutput, label: &str) -> Option<&'a str> {
    let mut versions = described.version_ids_to_stages()?.iter();
    let (version, _) = versions.find(|(_, stages)| stages.iter().any(|stage| stage == label))?;
    Some(version)
}

/// Names the version that replaces `base`: the same replacement has the same name, and who has not both contents learns nothing
/// of either from it.
fn token(
    rotation: Option<&str>,
    base: Option<&str>,
    held: Option<&SecretValue>,
    new: &SecretValue,
) -> String {
    let fits = |id: &&str| id.len() <= 16 && id.bytes().all(|b| b.is_ascii_alphanumeric());
    let by = rotation.filter(fits).map(|id| format!("{id}-")).unwrap_or_default();
    let mark = hex::encode(mark::of(base.unwrap_or_default(), held, new));
    let left = LONGEST_TOKEN - OURS.len() - by.len();
    format!("{OURS}{by}{}", &mark[..left.min(MARK)])
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use keywheel_driver::conformance::canary;
    use keywheel_driver::conformance::store::{self as conformance, Subject};
    use keywheel_driver::store::Accept;
    use keywheel_driver::{Remedy, SecretReference, Severity};
    use keywheel_ground::ministack::{ADMIN_ID, Ministack};
    use keywheel_twins::aws::{Peculiar, Twin, TwinOptions};
    use keywheel_twins::fault::{Echo, Fault, Faults, Nth, Rule};
    use serde_json::json;
    use tempfile::TempDir;

    use super::super::document::{CONTENT, LARGEST};
    use super::*;

    const NAME: &str = "shop/app";

    /// A secret at a twin, and the store that writes it.
    struct Bench {
        twin: Twin,
        store: Arc<dyn Store>,
        folder: TempDir,
    }

    impl Bench {
        fn new(content: Option<&str>) -> Self {
            Self::with(content, &Peculiar::default(), json!({}))
        }

        fn with(content: Option<&str>, peculiar: &Peculiar, changes: serde_json::Value) -> Self {
            let twin = Twin::start(TwinOptions::default()).unwrap();
            twin.make_secret(NAME, content, peculiar);
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("id.key"), &twin.administrator().id).unwrap();
            std::fs::write(folder.path().join("secret.key"), &twin.administrator().secret).unwrap();
            let store = store(&twin.endpoint(), folder.path(), changes, None);
            Self { twin, store, folder }
        }

        fn claimed(&self, installation: &str) -> Arc<dyn Store> {
            let text = |text: &str| text.to_owned();
            let claim = Claim {
                installation: text(installation),
                folder: text("/srv/shop"),
                environment: text("default"),
                host: text("here"),
                account: text("dana"),
                since: text("2026-01-31T00:00:00Z"),
            };
            store(&self.twin.endpoint(), self.folder.path(), json!({}), Some(claim))
        }

        fn script(&self, operation: &str, fault: Fault) {
            self.twin.faults().set(vec![Rule::first(operation, fault)]).unwrap();
        }

        fn no_faults(&self) {
            assert_eq!(self.twin.faults().unfired(), []);
            self.twin.faults().set(Vec::new()).unwrap();
        }

        async fn until(&self, it_is_so: impl Fn(&Faults) -> bool) {
            while !it_is_so(self.twin.faults()) {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        }

        async fn set(&self, value: &str) -> Result<Written, CallError> {
            set(&*self.store, value).await
        }

        /// What readers have, the labels of the version that they have, and every version of ours that is staged.
        fn state(&self) -> (Option<String>, Vec<String>, usize) {
            let versions = self.twin.versions(NAME);
            let has = |stages: &[String], stage: &str| stages.iter().any(|label| label == stage);
            let current = versions.iter().find(|version| has(&version.stages, CURRENT));
            let staged = versions.iter().filter(|version| has(&version.stages, PENDING)).count();
            let stages = current.map(|version| version.stages.clone()).unwrap_or_default();
            (self.twin.content(NAME, CURRENT), stages, staged)
        }

        async fn messages(&self, severity: Severity) -> Vec<String> {
            let found = self.store.preflight(&["key".into()]).await.unwrap();
            found
                .into_iter()
                .filter(|one| one.severity == severity)
                .map(|one| one.message)
                .collect()
        }
    }

    fn store(
        endpoint: &str,
        folder: &Path,
        changes: serde_json::Value,
        claim: Option<Claim>,
    ) -> Arc<dyn Store> {
        let mut config = json!({
            "region": "eu-west-1",
            "secret_id": NAME,
            "endpoint": endpoint,
            "credentials": {
                "access_key_id": { "file": "id.key" }, "secret_access_key": { "file": "secret.key" },
            },
        });
        let changes = changes.as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(changes);
        let config: Config = serde_json::from_value(config).unwrap();
        let context = Context { claim, ..Context::at(folder) };
        config.build(&context).unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    async fn set(store: &dyn Store, value: &str) -> Result<Written, CallError> {
        write(store, Accept::Anything, value).await
    }

    async fn write(
        store: &dyn Store,
        accept: Accept<'_>,
        value: &str,
    ) -> Result<Written, CallError> {
        let value = SecretValue::new(value.into());
        store.write(&[Edit { address: "key", accept, value: Some(&value) }]).await
    }

    fn refusal<T>(outcome: Result<T, CallError>) -> Refusal {
        match outcome {
            Err(CallError::Refused(refusal)) => refusal,
            Err(CallError::Unknown(message)) => panic!("unknown: {message}"),
            Ok(_) => panic!("it was done"),
        }
    }

    fn subject(content: Option<&str>, format: &str, addresses: &[&str]) -> Subject {
        let bench = Bench::with(content, &Peculiar::default(), json!({ "format": format }));
        let changes = json!({ "format": format });
        let other = store(&bench.twin.endpoint(), bench.folder.path(), changes, None);
        let mut uncarriable = vec![b"latin\xe91".to_vec(), vec![0xff], vec![b'x'; LARGEST + 1]];
        if format == "text" {
            uncarriable.push(Vec::new());
        }
        Subject {
            store: Arc::clone(&bench.store),
            other,
            addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
            uncarriable,
            guard: Box::new(bench),
        }
    }

    #[tokio::test]
    async fn it_conforms_over_a_json_object() {
        let addresses = ["API_KEY", "a \"quoted\" name", "API_KEY_2", ""];
        conformance::every_case(async || subject(Some("{}"), "json", &addresses)).await;
    }

    #[tokio::test]
    async fn it_conforms_before_an_emulator_that_checks_who_calls() {
        let secret = canary("root");
        let ministack = match Ministack::start(&secret) {
            Ok(ministack) => ministack,
            Err(why) => return writeln!(std::io::stdout(), "skipped: ministack ({why})").unwrap(),
        };
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("id.key"), ADMIN_ID).unwrap();
        std::fs::write(folder.path().join("secret.key"), &secret).unwrap();
        let admin = Access {
            access_key_id: Some(SecretReference::File("id.key".into())),
            secret_access_key: Some(SecretReference::File("secret.key".into())),
            ..Access::default()
        };
        let (endpoint, context) = (ministack.endpoint(), Context::at(folder.path()));
        let aws = Aws::new(TARGET, "eu-west-1", Some(&endpoint), &admin, &context).ok().unwrap();
        let client = Client::new(aws.own());
        let made = AtomicUsize::new(0);
        let fresh = async || {
            let name = format!("shop/app-{}", made.fetch_add(1, Ordering::Relaxed));
            client.create_secret().name(&name).secret_string("{}").send().await.unwrap();
            let at = |changes| store(&endpoint, folder.path(), changes, None);
            let changes = json!({ "secret_id": name });
            Subject {
                store: at(changes.clone()),
                other: at(changes),
                addresses: ["API_KEY", "a \"quoted\" name", ""].map(Into::into).into(),
                uncarriable: vec![b"latin\xe91".to_vec(), vec![b'x'; LARGEST + 1]],
                guard: Box::new(()),
            }
        };
        conformance::bytes_come_back_as_they_were_written(fresh().await).await;
        conformance::a_repeated_write_changes_nothing(fresh().await).await;
        conformance::the_new_value_itself_is_always_accepted(fresh().await).await;
        conformance::an_absent_slot_is_none_and_can_be_absent_again(fresh().await).await;
        conformance::a_refused_edit_holds_up_all_edits(fresh().await).await;
        conformance::h106_readers_see_only_whole_values(fresh().await).await;
        conformance::errors_hold_no_value(fresh().await).await;
        conformance::preflight_changes_nothing(fresh().await).await;
        // What another client is given, and which labels are left.
        let Subject { store, addresses, .. } = fresh().await;
        for value in ["new", "newer", "new"] {
            let value = SecretValue::new(value.into());
            let edit =
                Edit { address: &addresses[0], accept: Accept::Anything, value: Some(&value) };
            store.write(&[edit]).await.unwrap_or_else(|e| panic!("{e}"));
        }
        let name = format!("shop/app-{}", made.load(Ordering::Relaxed) - 1);
        let given = client.get_secret_value().secret_id(&name).send().await.unwrap();
        assert_eq!(given.secret_string(), Some(r#"{"API_KEY":"new"}"#));
        let described = client.describe_secret().secret_id(&name).send().await.unwrap();
        assert_eq!(holder(&described, CURRENT), given.version_id());
        assert_eq!(holder(&described, PENDING), None);
        assert!(holder(&described, PREVIOUS).is_some());
    }

    #[tokio::test]
    async fn it_conforms_over_one_text_but_for_a_slot_that_is_empty_again() {
        let fresh = || subject(None, "text", &[CONTENT]);
        conformance::bytes_come_back_as_they_were_written(fresh()).await;
        conformance::a_repeated_write_changes_nothing(fresh()).await;
        conformance::the_new_value_itself_is_always_accepted(fresh()).await;
        conformance::an_unexpected_value_is_refused_with_nothing_written(fresh()).await;
        conformance::an_uncarriable_value_is_refused_with_nothing_written(fresh()).await;
        conformance::h126_of_two_conditional_writers_one_is_refused(fresh()).await;
        conformance::h106_readers_see_only_whole_values(fresh()).await;
        conformance::errors_hold_no_value(fresh()).await;
        conformance::preflight_changes_nothing(fresh()).await;
        conformance::a_list_has_each_slot_that_holds_something(fresh()).await;
        let Subject { store, guard, .. } = fresh();
        let value = SecretValue::new(b"kept".to_vec());
        let edit = |value| Edit { address: CONTENT, accept: Accept::Anything, value };
        store.write(&[edit(Some(&value))]).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(refusal(store.write(&[edit(None)]).await).kind, RefusalKind::Unsupported);
        drop(guard);
    }

    #[tokio::test]
    async fn readers_are_given_a_version_only_after_it_was_read_back() {
        let bench = Bench::new(Some(r#"{"key":"old"}"#));
        bench.script("update_secret_version_stage", Fault::status(400));
        assert!(bench.set("new").await.is_err());
        bench.no_faults();
        let (content, _, staged) = bench.state();
        assert_eq!((content.as_deref(), staged), (Some(r#"{"key":"old"}"#), 1));
        let staged = bench.twin.content(NAME, PENDING);
        assert_eq!(staged.as_deref(), Some(r#"{"key":"new"}"#));
    }

    /// Every fault at every call of a write, and then the same write again.
    #[tokio::test]
    async fn h09_whatever_fails_the_next_write_ends_it_and_leaves_no_label() {
        let faults = [
            Fault::TimeoutAfter,
            Fault::TimeoutBefore,
            Fault::Cut,
            Fault::Twice,
            Fault::LateLanding { after_ms: 20 },
            Fault::status(400),
            Fault::status(500),
            Fault::busy(),
            Fault::Status { code: 500, retry_after: None, body: Echo::EchoKey, applied: true },
            Fault::Status { code: 200, retry_after: None, body: Echo::Html, applied: false },
        ];
        let calls = [
            ("describe_secret", 1),
            ("get_secret_value", 1),
            ("put_secret_value", 1),
            ("get_secret_value", 2),
            ("update_secret_version_stage", 1),
            ("update_secret_version_stage", 2),
        ];
        for fault in faults {
            for (operation, nth) in calls {
                let case = format!("{operation} {nth} {fault:?}");
                let bench = Bench::new(Some(r#"{"key":"old"}"#));
                let rule = Rule { nth: Nth::Number(nth), ..Rule::first(operation, fault.clone()) };
                bench.twin.faults().set(vec![rule]).unwrap();
                let old = SecretValue::new(b"old".to_vec());
                let accept = || Accept::OneOf(vec![Some(&old)]);
                let is_silent = matches!(fault, Fault::TimeoutAfter | Fault::TimeoutBefore);
                let time_is_up = async {
                    bench.until(|faults| is_silent && faults.unfired().is_empty()).await;
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                };
                let written = tokio::select! {
                    biased;
                    written = write(&*bench.store, accept(), "new") => Some(written),
                    () = time_is_up => None,
                };
                let has_now = || bench.state().0.unwrap();
                if let Some(Err(CallError::Refused(refusal))) = &written {
                    assert_eq!(has_now(), r#"{"key":"old"}"#, "{case}: {refusal}");
                }
                if matches!(written, Some(Ok(_))) {
                    assert_eq!(has_now(), r#"{"key":"new"}"#, "{case}");
                }
                bench.until(Faults::has_landed).await;
                bench.no_faults();
                write(&*bench.store, accept(), "new")
                    .await
                    .unwrap_or_else(|e| panic!("{case}: {e}"));
                let left = (Some(r#"{"key":"new"}"#.to_owned()), vec![CURRENT.to_owned()], 0);
                assert_eq!(bench.state(), left, "{case}");
                assert!(bench.twin.versions(NAME).len() <= 2, "{case}: a version was put twice");
            }
        }
    }

    #[tokio::test]
    async fn h09_a_label_of_a_write_that_was_broken_off_does_not_stop_the_next() {
        let bench = Bench::new(Some(r#"{"key":"old"}"#));
        bench.script("update_secret_version_stage", Fault::status(400));
        assert!(bench.set("one").await.is_err());
        bench.no_faults();
        assert!(bench.messages(Severity::Note).await[1].contains("was left by a write"));
        assert_eq!(bench.set("two").await, Ok(Written { changed: true }));
        assert_eq!(bench.state(), (Some(r#"{"key":"two"}"#.into()), vec![CURRENT.into()], 0));
        bench.script("update_secret_version_stage", Fault::status(400));
        assert!(bench.set("three").await.is_err());
        bench.no_faults();
        assert_eq!(bench.set("two").await, Ok(Written { changed: false }));
        assert_eq!(bench.state(), (Some(r#"{"key":"two"}"#.into()), vec![CURRENT.into()], 0));
    }

    #[tokio::test]
    async fn h09_the_end_of_a_rotation_takes_off_what_a_write_left() {
        let bench = Bench::new(Some(r#"{"key":"old"}"#));
        bench.script("update_secret_version_stage", Fault::status(400));
        assert!(bench.set("new").await.is_err());
        bench.no_faults();
        assert_eq!(bench.state().2, 1);
        assert!(bench.store.facts().leaves_behind);
        for _ in 0..2 {
            assert_eq!(bench.store.clean_up().await, Ok(Vec::new()));
            assert_eq!(bench.state(), (Some(r#"{"key":"old"}"#.into()), vec![CURRENT.into()], 0));
        }
        bench.twin.put(NAME, r#"{"key":"theirs"}"#, PENDING);
        assert_eq!(bench.store.clean_up().await, Ok(Vec::new()));
        assert_eq!(bench.state().2, 1, "another program's label stays");
    }

    #[tokio::test]
    async fn it_is_pinned_to_its_whole_arn() {
        let bench = Bench::new(Some("{}"));
        let pin = bench.store.identity().await.unwrap().unwrap();
        assert_eq!(pin.id, "arn:aws:secretsmanager:eu-west-1:123456789012:secret:shop/app");
    }

    #[tokio::test]
    async fn the_way_back_moves_the_label_and_puts_nothing() {
        let bench = Bench::new(Some(r#"{"key":"old","other":1}"#));
        let first = bench.twin.versions(NAME)[0].id.clone();
        for (value, versions) in [("new", 2), ("old", 2), ("new", 2), ("third", 3), ("old", 4)] {
            assert_eq!(bench.set(value).await, Ok(Written { changed: true }), "{value}");
            let content = format!(r#"{{"key":"{value}","other":1}}"#);
            assert_eq!(bench.state(), (Some(content), vec![CURRENT.into()], 0), "{value}");
            assert_eq!(bench.twin.versions(NAME).len(), versions, "{value}");
            if (value, versions) == ("old", 2) {
                assert_eq!(bench.twin.versions(NAME)[0].stages, [CURRENT]);
                assert_eq!(bench.twin.versions(NAME)[0].id, first);
            }
        }
    }

    #[tokio::test]
    async fn h126_a_version_that_became_current_meanwhile_is_not_overwritten() {
        let bench = Bench::new(Some(r#"{"key":"old"}"#));
        // The put is answered late enough for somebody else to be quicker.
        let store = Arc::clone(&bench.store);
        bench.script("put_secret_value", Fault::LateLanding { after_ms: 20 });
        assert!(matches!(set(&*store, "ours").await, Err(CallError::Unknown(_))));
        bench.twin.put(NAME, r#"{"key":"theirs"}"#, CURRENT);
        bench.until(Faults::has_landed).await;
        let old = SecretValue::new(b"old".to_vec());
        let again = write(&*store, Accept::OneOf(vec![Some(&old)]), "ours").await;
        assert_eq!(refusal(again).kind, RefusalKind::Conflict);
        assert_eq!(bench.twin.content(NAME, CURRENT).as_deref(), Some(r#"{"key":"theirs"}"#));
        // Between the look and the move.
        for round in 0..8 {
            let value = format!("ours-{round}");
            let mut ours = std::pin::pin!(set(&*store, &value));
            let hurried = tokio::select! {
                biased;
                done = &mut ours => Some(done),
                () = put_seen(&bench, round) => None,
            };
            if hurried.is_some() {
                continue;
            }
            let theirs = format!(r#"{{"key":"theirs-{round}"}}"#);
            bench.twin.put(NAME, &theirs, CURRENT);
            match ours.await {
                Ok(_) => panic!("what somebody else wrote meanwhile is gone"),
                Err(CallError::Refused(refusal)) => {
                    assert!(matches!(refusal.remedy, Remedy::Retry { .. }), "{refusal}");
                }
                Err(error) => panic!("{error}"),
            }
            assert_eq!(bench.twin.content(NAME, CURRENT), Some(theirs));
        }
    }

    /// Waits until a put has come.
    async fn put_seen(bench: &Bench, round: usize) {
        let puts = || {
            let seen = bench.twin.faults().seen();
            seen.iter().filter(|seen| seen.operation == Some("put_secret_value")).count()
        };
        while puts() < round + 2 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn h40_the_first_version_is_given_at_once_so_that_nothing_after_its_put_is_a_refusal() {
        for (operation, fault) in [
            ("get_secret_value", Fault::status(403)),
            ("get_secret_value", Fault::busy()),
            ("update_secret_version_stage", Fault::status(400)),
        ] {
            let bench = Bench::new(None);
            let notes = bench.messages(Severity::Note).await;
            assert!(notes.iter().any(|note| note.contains("no version yet")), "{notes:?}");
            bench.script(operation, fault);
            let lost = bench.set("new").await;
            assert!(matches!(lost, Err(CallError::Unknown(_))), "{operation}: {lost:?}");
            bench.no_faults();
            assert_eq!(bench.twin.content(NAME, CURRENT).as_deref(), Some(r#"{"key":"new"}"#));
            assert_eq!(bench.set("new").await, Ok(Written { changed: false }));
        }
    }

    #[test]
    fn h04_a_lost_move_is_waited_for_as_long_as_a_fast_clock_keeps_it_good() {
        let config = json!({ "region": "eu-west-1", "secret_id": NAME });
        let config: Config = serde_json::from_value(config).unwrap();
        assert!(config.settle_for.span() > Span::minutes(2 * 5));
    }

    #[tokio::test]
    async fn h25_what_aws_or_a_partner_rotates_is_refused() {
        let yes = || Some("us-east-1".to_owned());
        for (peculiar, why) in [
            (Peculiar { rotates: true, ..Peculiar::default() }, "AWS rotates it itself"),
            (Peculiar { kind: yes(), ..Peculiar::default() }, "a partner of AWS"),
            (Peculiar { owning_service: yes(), ..Peculiar::default() }, "a service of AWS"),
            (Peculiar { primary_region: yes(), ..Peculiar::default() }, "region `us-east-1`"),
            (Peculiar { deleted: true, ..Peculiar::default() }, "to be deleted"),
        ] {
            let bench = Bench::with(Some(r#"{"key":"old"}"#), &peculiar, json!({}));
            let blocks = bench.messages(Severity::Blocks).await;
            assert!(blocks.len() == 1 && blocks[0].contains(why), "{blocks:?}");
            assert!(refusal(bench.set("new").await).message.contains(why));
            assert_eq!(bench.twin.versions(NAME).len(), 1);
        }
    }

    #[tokio::test]
    async fn h25_a_version_that_another_program_has_staged_is_left_alone() {
        let bench = Bench::new(Some(r#"{"key":"old"}"#));
        bench.twin.put(NAME, r#"{"key":"theirs"}"#, PENDING);
        let blocks = bench.messages(Severity::Blocks).await;
        assert!(
            blocks.len() == 1 && blocks[0].contains("another program has staged"),
            "{blocks:?}"
        );
        assert_eq!(refusal(bench.set("new").await).kind, RefusalKind::Conflict);
        assert_eq!(bench.twin.content(NAME, PENDING).as_deref(), Some(r#"{"key":"theirs"}"#));
    }

    #[tokio::test]
    async fn h65_a_label_of_other_readers_is_named_and_stops_the_rotation() {
        let bench = Bench::new(Some(r#"{"key":"old"}"#));
        assert_eq!(bench.messages(Severity::Blocks).await, [""; 0]);
        assert!(bench.messages(Severity::Note).await[0].contains("names a version id"));
        let version = bench.twin.versions(NAME)[0].id.clone();
        bench.twin.label(NAME, "blue", &version);
        let blocks = bench.messages(Severity::Blocks).await;
        assert!(blocks.len() == 1 && blocks[0].contains("the label `blue` keep"), "{blocks:?}");
        let leaves = json!({ "leave_stages": ["blue"] });
        let leaving = store(&bench.twin.endpoint(), bench.folder.path(), leaves, None);
        let found = leaving.preflight(&["key".into()]).await.unwrap();
        assert!(found.iter().all(|one| one.severity == Severity::Note), "{found:?}");
    }

    #[tokio::test]
    async fn h49_preflight_names_what_else_manages_the_secret() {
        let bench = Bench::new(Some(r#"{"key":"old"}"#));
        bench.twin.tag(NAME, "ManagedBy", "Terraform");
        bench.twin.tag(NAME, "team", "terraform-users");
        let notes = bench.messages(Severity::Note).await;
        let named: Vec<_> = notes.iter().filter(|note| note.contains("manages it")).collect();
        assert!(named.len() == 1 && named[0].contains("terraform manages it"), "{notes:?}");
    }

    #[tokio::test]
    async fn preflight_names_what_a_write_would_stumble_over() {
        let bench = Bench::new(Some("no json"));
        assert_eq!(
            bench.messages(Severity::Blocks).await,
            ["secret `shop/app`: it is no JSON object"]
        );
        let notes = bench.messages(Severity::Note).await;
        assert!(notes.iter().any(|note| note.contains("AWS advises against")), "{notes:?}");
        let elsewhere = json!({ "secret_id": "shop/else" });
        let elsewhere = store(&bench.twin.endpoint(), bench.folder.path(), elsewhere, None);
        let found = elsewhere.preflight(&["key".into()]).await.unwrap();
        assert!(found[0].message.contains("answered 400 ResourceNotFoundException"), "{found:?}");
        std::fs::write(bench.folder.path().join("secret.key"), "kwcanary-wrong").unwrap();
        let found = bench.messages(Severity::Blocks).await;
        assert!(found[0].contains("InvalidSignatureException"), "{found:?}");
        std::fs::remove_file(bench.folder.path().join("secret.key")).unwrap();
        let found = bench.messages(Severity::Blocks).await;
        assert!(found[0].contains("secret.key"), "{found:?}");
    }

    #[tokio::test]
    async fn h61_of_two_installations_the_second_is_told_whose_the_secret_is() {
        let bench = Bench::new(Some(r#"{"key":"old"}"#));
        let (ours, theirs) = (bench.claimed("one"), bench.claimed("two"));
        let claims = |store: &Arc<dyn Store>| store.claims().is_some();
        assert!(claims(&ours) && !claims(&bench.store));
        let claim = ours.claims().unwrap();
        assert_eq!(claim.owner().await, Ok(Owner::Nobody));
        assert_eq!(claim.take().await, Ok(true));
        assert_eq!(claim.take().await, Ok(false));
        let other = theirs.claims().unwrap();
        let refused = refusal(other.take().await).message;
        assert!(refused.contains("`/srv/shop`, environment `default`, journal one"), "{refused}");
        assert!(refusal(set(&*theirs, "new").await).message.contains("journal one"));
        let found = theirs.preflight(&["key".into()]).await.unwrap();
        assert!(found[0].severity == Severity::Blocks && found[0].message.contains("journal one"));
        assert_eq!(bench.twin.versions(NAME).len(), 1);
        other.take_over().await.unwrap_or_else(|e| panic!("{e}"));
        assert!(set(&*ours, "new").await.is_err());
        claim.release().await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(other.owner().await, Ok(Owner::Us), "another's claim is not released");
        other.release().await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(bench.twin.tags(NAME), []);
    }

    #[test]
    fn h118_the_id_of_a_version_tells_nothing_without_both_contents() {
        let value = |text: &str| SecretValue::new(text.into());
        let (old, new) = (value("old"), value("new"));
        let one = token(None, Some("base"), Some(&old), &new);
        assert_eq!(one, token(None, Some("base"), Some(&old), &new));
        assert!((32..=64).contains(&one.len()) && one.starts_with(OURS), "{one}");
        let others = [
            token(None, Some("base"), Some(&value("older")), &new),
            token(None, Some("base"), Some(&old), &value("newer")),
            token(None, Some("other"), Some(&old), &new),
            token(None, None, None, &new),
            token(Some("773afe11d4d1"), Some("base"), Some(&old), &new),
            token(None, Some("base"), Some(&value("oldn")), &value("ew")),
        ];
        assert!(!others.contains(&one));
        assert!(others.iter().all(|other| (32..=64).contains(&other.len())), "{others:?}");
        assert!(others[4].starts_with("keywheel-773afe11d4d1-"), "{others:?}");
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused() {
        let build = |changes: serde_json::Value| {
            let mut config = json!({ "region": "eu-west-1", "secret_id": NAME });
            config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let config: Config = serde_json::from_value(config).unwrap();
            config.build(&Context::at("/")).map(|store| store.container())
        };
        let arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:shop/app-Ab12Cd";
        let same = "aws-secrets-manager:eu-west-1:shop/app";
        for right in [json!({}), json!({ "secret_id": arn })] {
            assert_eq!(build(right).as_deref(), Ok(same));
        }
        for wrong in [
            json!({ "secret_id": "" }),
            json!({ "secret_id": "a b" }),
            json!({ "secret_id": "arn:aws:secretsmanager:eu-west-1:123456789012:secret:app" }),
            json!({ "region": "eu-west-2", "secret_id": arn }),
            json!({ "region": "eu west" }),
            json!({ "endpoint": "http://twin:4566" }),
            json!({ "credentials": { "access_key_id": { "env": "ID" } } }),
            json!({ "credentials": { "profile": "a", "session_token": { "env": "TOKEN" } } }),
        ] {
            let refused = build(wrong.clone()).err().map(|refusal| refusal.kind);
            assert_eq!(refused, Some(RefusalKind::Unsupported), "{wrong}");
        }
    }
}
