//! How keywheel shows Google who it is.

use std::path::PathBuf;

use async_trait::async_trait;
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_driver::{CallError, Refusal, RefusalKind, SecretReference};
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Desk, FORM, Granted, SignIn, Token, Tokens, decoded, form, header};
use crate::api::{Api, JSON, moment, now, plain, unsupported};
use crate::secret_json::{self, Text};
use crate::{Context, http, reference};

/// Where a machine, a pod or a service of Google is told who it is.
const MACHINE: &str = "http://169.254.169.254";

/// What a token may be used for; the roles of the account say what is allowed.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// For how many seconds a token of a service account is good.
const AN_HOUR: u64 = 3_600;

/// How keywheel shows Google who it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Google {
    /// An access token, read each time it is needed: `{ command: [gcloud, auth, print-access-token] }`.
    Token(SecretReference),
    /// The service account of the machine or the pod that keywheel runs on, as its metadata server knows it.
    Metadata(Metadata),
    /// What keywheel is known by elsewhere, which Google takes by workload identity federation.
    ExternalAccount(ExternalAccount),
}

/// The metadata server of Google.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// The address of another service account of the machine than its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Where it is, if not at its own address; HTTPS, or an address that does not leave the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

/// Workload identity federation, as a file of Google's own tools describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExternalAccount {
    /// The file that `gcloud iam workload-identity-pools create-cred-config` has written. Its token comes from a file or from a URL.
    pub file: PathBuf,
}

impl Google {
    /// Says where tokens come from; `target` names the other side.
    ///
    /// # Errors
    /// A refusal that names what is wrong with the configuration.
    pub(crate) fn tokens(
        &self,
        target: &'static str,
        context: &Context,
    ) -> Result<Tokens, Refusal> {
        Ok(match self {
            Self::Token(token) => Tokens::read(token, context),
            Self::Metadata(Metadata { account, endpoint }) => {
                let fits = |b: u8| b.is_ascii_alphanumeric() || b"-.@_".contains(&b);
                let account = account.clone().unwrap_or_else(|| "default".into());
                if account.is_empty() || !account.bytes().all(fits) {
                    return Err(unsupported("`account` is not the address of a service account"));
                }
                let endpoint = endpoint.as_deref().unwrap_or(MACHINE);
                Tokens::sign_in(Machine {
                    api: Api::of_machine(target, "endpoint", endpoint)?,
                    account,
                })
            }
            Self::ExternalAccount(given) => {
                Tokens::sign_in(External { target, file: context.root.join(&given.file) })
            }
        })
    }
}

struct Machine {
    api: Api,
    account: String,
}

#[async_trait]
impl SignIn for Machine {
    async fn sign_in(&self) -> Result<Token, CallError> {
        let Self { api, account } = self;
        let path = ["computeMetadata", "v1", "instance", "service-accounts", account, "token"];
        let who = format!("service account `{account}` of this machine");
        let desk = Desk { api, who: &who };
        let answer = desk.get(api.url(&path), &header("metadata-flavor", "Google")).await?;
        let flavor = answer.headers.get("metadata-flavor");
        if flavor.is_none_or(|flavor| flavor != "Google") && !planted!("any_flavor_is_googles") {
            let why = "who answers there is no metadata server of Google";
            return Err(unsupported(why).into());
        }
        Ok(decoded::<Granted>(&answer)?.token())
    }
}

struct External {
    target: &'static str,
    file: PathBuf,
}

/// What the file says. What it may say beside that is refused, where a sign-in without it would be another one.
#[derive(Deserialize)]
struct Described {
    r#type: String,
    audience: String,
    subject_token_type: String,
    token_url: String,
    service_account_impersonation_url: Option<String>,
    #[serde(default)]
    service_account_impersonation: Impersonation,
    credential_source: Source,
    client_id: Option<String>,
    workforce_pool_user_project: Option<String>,
}

#[derive(Default, Deserialize)]
struct Impersonation {
    token_lifetime_seconds: Option<u64>,
}

#[derive(Deserialize)]
struct Source {
    file: Option<PathBuf>,
    url: Option<String>,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    format: Format,
}

#[derive(Default, Deserialize)]
struct Format {
    r#type: Option<String>,
    subject_token_field_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Impersonated {
    access_token: Text,
    expire_time: String,
}

#[async_trait]
impl SignIn for External {
    async fn sign_in(&self) -> Result<Token, CallError> {
        let described = self.described().await?;
        let subject = self.subject(&described.credential_source).await?;
        let federated = self.exchanged(&described, &subject).await?;
        match &described.service_account_impersonation_url {
            None => Ok(federated),
            Some(url) => {
                let wanted = described.service_account_impersonation.token_lifetime_seconds;
                self.impersonated(url, &federated.token, wanted.unwrap_or(AN_HOUR)).await
            }
        }
    }
}

impl External {
    fn wrong(&self, why: &str) -> Refusal {
        let message = format!("external account file `{}`: {why}", self.file.display());
        Refusal::operator(RefusalKind::Local, message)
    }

    async fn described(&self) -> Result<Described, Refusal> {
        let text = reference::read(&SecretReference::File(self.file.clone())).await?;
        let described: Option<Described> = secret_json::read(&text);
        let described = described.ok_or_else(|| {
            self.wrong("it does not say all that a token of a file or a URL is exchanged by")
        })?;
        if described.r#type != "external_account" {
            return Err(self.wrong("it is not of type `external_account`"));
        }
        let more = [&described.client_id, &described.workforce_pool_user_project];
        if more.into_iter().any(Option::is_some) {
            return Err(
                self.wrong("it is for people, or for a client of its own, which is not known here")
            );
        }
        Ok(described)
    }

    /// Returns what keywheel is known by where it runs.
    async fn subject(&self, source: &Source) -> Result<SecretValue, CallError> {
        let held = match (&source.file, &source.url) {
            (Some(file), None) => {
                let folder = self.file.parent().unwrap_or(&self.file);
                reference::read(&SecretReference::File(folder.join(file))).await?
            }
            (None, Some(url)) => self.asked(url, source).await?,
            _ => return Err(self.wrong("its token comes from neither a file nor a URL").into()),
        };
        let Format { r#type, subject_token_field_name } = &source.format;
        match (r#type.as_deref(), subject_token_field_name) {
            (None | Some("text"), _) => Ok(held),
            (Some("json"), Some(name)) => {
                let members: Option<std::collections::BTreeMap<String, Member>> =
                    secret_json::read(&held);
                let member = members.and_then(|mut members| members.remove(name));
                let Some(Member::Text(Text(token))) = member else {
                    let why = format!("its token is not the member `{}` of an object", plain(name));
                    return Err(self.wrong(&why).into());
                };
                Ok(token)
            }
            _ => Err(self.wrong("its token has a format that is not known here").into()),
        }
    }

    async fn asked(&self, url: &str, source: &Source) -> Result<SecretValue, CallError> {
        let (api, url) = self.at("credential_source.url", url)?;
        let mut headers = HeaderMap::new();
        for (name, value) in &source.headers {
            let odd = || self.wrong("a header of `credential_source` cannot be one");
            let name: HeaderName = name.parse().map_err(|_| odd())?;
            let mut value: HeaderValue = value.parse().map_err(|_| odd())?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let desk = Desk { api: &api, who: "keywheel, where the token to exchange is given," };
        Ok(desk.get(url, &headers).await?.body)
    }

    async fn exchanged(
        &self,
        described: &Described,
        subject: &SecretValue,
    ) -> Result<Token, CallError> {
        let (api, url) = self.of_google("token_url", &described.token_url)?;
        let body = form(&[
            ("grant_type", b"urn:ietf:params:oauth:grant-type:token-exchange"),
            ("audience", described.audience.as_bytes()),
            ("scope", SCOPE.as_bytes()),
            ("requested_token_type", b"urn:ietf:params:oauth:token-type:access_token"),
            ("subject_token_type", described.subject_token_type.as_bytes()),
            ("subject_token", subject.expose()),
        ]);
        let desk = Desk { api: &api, who: "the external account" };
        let answer = desk.post(url, &HeaderMap::new(), (FORM, &body)).await?;
        Ok(decoded::<Granted>(&answer)?.token())
    }

    async fn impersonated(
        &self,
        url: &str,
        federated: &SecretValue,
        wanted: u64,
    ) -> Result<Token, CallError> {
        let (api, url) = self.of_google("service_account_impersonation_url", url)?;
        let body = json!({ "scope": [SCOPE], "lifetime": format!("{wanted}s") });
        let body = SecretValue::new(body.to_string().into_bytes());
        let headers = api.bearer(federated, "federated token")?;
        let desk = Desk { api: &api, who: "the external account, as its service account," };
        let answer = desk.post(url, &headers, (JSON, &body)).await?;
        let Impersonated { access_token: Text(token), expire_time } = decoded(&answer)?;
        let ends = moment(&expire_time).map_or(0, |ends| ends.since(now()).as_millis() / 1_000);
        Ok(Token { token, lasts: ends.min(wanted) })
    }

    /// An address to which a token goes is one of Google's: whoever may write the file must not be given tokens by it (H117).
    fn of_google(&self, key: &str, url: &str) -> Result<(Api, Url), Refusal> {
        let (api, url) = self.at(key, url)?;
        let host = url.host_str().unwrap_or_default();
        let is_googles = url.scheme() == "http" || host.ends_with(".googleapis.com");
        if is_googles && http::is_private(&url) || planted!("token_goes_where_a_file_says") {
            return Ok((api, url));
        }
        let why = format!("`{key}` is no address of Google's (`….googleapis.com`)");
        Err(self.wrong(&why))
    }

    fn at(&self, key: &str, url: &str) -> Result<(Api, Url), Refusal> {
        let url = Url::parse(url).map_err(|_| self.wrong(&format!("`{key}` is not a URL")))?;
        let origin = url.origin().ascii_serialization();
        let api = Api::of_machine(self.target, key, &origin);
        let api = api.map_err(|refusal| self.wrong(&refusal.message))?;
        Ok((api, url))
    }
}

/// A member of an object beside which others stand.
#[derive(Deserialize)]
#[serde(untagged)]
enum Member {
    Text(Text),
    Other(serde::de::IgnoredAny),
}

#[cfg(test)]
mod tests {
    use keywheel_driver::Remedy;
    use keywheel_twins::fault::{Echo, Fault, Rule};
    use keywheel_twins::gcp::{ACCOUNT, AUDIENCE, PROJECT, Twin, TwinOptions};
    use reqwest::Method;
    use serde_json::Value;
    use tempfile::TempDir;

    use super::*;

    struct World {
        twin: Twin,
        folder: TempDir,
        api: Api,
    }

    impl World {
        fn with(options: TwinOptions) -> Self {
            let twin = Twin::start(options).unwrap();
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("subject"), twin.subject()).unwrap();
            let api = Api::new("store `x`", &twin.endpoint()).unwrap_or_else(|no| panic!("{no}"));
            Self { twin, folder, api }
        }

        fn new() -> Self {
            Self::with(TwinOptions::default())
        }

        fn configured(&self, credentials: Value) -> Result<Tokens, Refusal> {
            let given: Google = serde_json::from_value(credentials).unwrap();
            given.tokens("store `x`", &Context::at(self.folder.path()))
        }

        fn machine(&self) -> Tokens {
            let given = json!({ "metadata": { "endpoint": self.twin.endpoint() } });
            self.configured(given).unwrap_or_else(|no| panic!("{no}"))
        }

        fn source_of_file() -> Value {
            json!({ "file": "subject" })
        }

        fn source_of_url(&self) -> Value {
            json!({
                "url": format!("{}/subject?of=job", self.twin.endpoint()),
                "headers": { "X-Job": "7" },
                "format": { "type": "json", "subject_token_field_name": "value" },
            })
        }

        fn described(&self, source: &Value) -> Value {
            let at = |path: &str| format!("{}{path}", self.twin.endpoint());
            let becomes = format!("/v1/projects/-/serviceAccounts/{ACCOUNT}:generateAccessToken");
            json!({
                "type": "external_account",
                "audience": AUDIENCE,
                "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
                "token_url": at("/v1/token"),
                "service_account_impersonation_url": at(&becomes),
                "credential_source": source,
            })
        }

        fn external(&self, described: &Value) -> Tokens {
            let file = self.folder.path().join("account.json");
            std::fs::write(file, described.to_string()).unwrap();
            let given = json!({ "external_account": { "file": "account.json" } });
            self.configured(given).unwrap_or_else(|no| panic!("{no}"))
        }

        /// Asks for a secret that is not there.
        async fn is_let_in(&self, tokens: &Tokens) -> Result<bool, CallError> {
            let headers = tokens.headers(&self.api).await?;
            let url = self.api.url(&["v1", "projects", PROJECT, "secrets", "none"]);
            let answer = self.api.send(Method::GET, url, &headers, None).await?;
            Ok(answer.status.as_u16() == 404)
        }

        async fn refusal(&self, tokens: &Tokens) -> Refusal {
            match self.is_let_in(tokens).await {
                Err(CallError::Refused(refusal)) => refusal,
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_machine_and_an_external_account_sign_in_once() {
        let world = World::new();
        let machine = world.machine();
        let of_file = world.external(&world.described(&World::source_of_file()));
        for (tokens, sign_ins) in [(machine, 1), (of_file, 2)] {
            let before = world.twin.sign_ins();
            for _ in 0..3 {
                assert_eq!(world.is_let_in(&tokens).await, Ok(true));
            }
            assert_eq!(world.twin.sign_ins() - before, sign_ins);
        }
        let of_url = world.external(&world.described(&world.source_of_url()));
        assert_eq!(world.is_let_in(&of_url).await, Ok(true));
    }

    #[tokio::test]
    async fn a_federated_identity_may_do_all_without_an_account() {
        let world = World::with(TwinOptions { takes_federated: true, ..TwinOptions::default() });
        let mut described = world.described(&World::source_of_file());
        described.as_object_mut().unwrap().remove("service_account_impersonation_url");
        let tokens = world.external(&described);
        assert_eq!(world.is_let_in(&tokens).await, Ok(true));
        assert_eq!(world.twin.sign_ins(), 1);
    }

    #[tokio::test]
    async fn a_token_is_kept_as_long_as_it_is_good_and_no_longer() {
        for (lasts, sign_ins) in [(60, 3), (u64::MAX, 1)] {
            let world = World::with(TwinOptions { lasts: Some(lasts), ..TwinOptions::default() });
            let tokens = world.machine();
            for _ in 0..3 {
                assert_eq!(world.is_let_in(&tokens).await, Ok(true));
            }
            assert_eq!(world.twin.sign_ins(), sign_ins, "{lasts}");
        }
    }

    #[tokio::test]
    async fn who_answers_for_the_metadata_server_and_is_none_is_not_believed() {
        let world = World::with(TwinOptions { has_no_flavor: true, ..TwinOptions::default() });
        let refused = world.refusal(&world.machine()).await;
        assert!(refused.message.contains("no metadata server of Google"), "{refused}");
        let world = World::new();
        let other =
            json!({ "metadata": { "account": "nobody", "endpoint": world.twin.endpoint() } });
        let refused = world.refusal(&world.configured(other).ok().unwrap()).await;
        assert_eq!((refused.kind, refused.remedy), (RefusalKind::NotFound, Remedy::Operator));
    }

    #[tokio::test]
    async fn h117_what_keywheel_is_known_by_goes_to_google_and_nobody_else() {
        let world = World::new();
        for (key, url) in [
            ("token_url", "https://sts.googleapis.com.example.com/v1/token"),
            ("token_url", "http://169.254.169.254/v1/token"),
            ("token_url", "http://sts.googleapis.com/v1/token"),
            ("service_account_impersonation_url", "https://example.com/x:generateAccessToken"),
        ] {
            let mut described = world.described(&World::source_of_file());
            described[key] = url.into();
            let refused = world.refusal(&world.external(&described)).await;
            assert_eq!(refused.remedy, Remedy::Operator, "{refused}");
            assert!(refused.message.contains(&format!("`{key}`")), "{refused}");
        }
        assert_eq!(
            world
                .twin
                .faults()
                .seen()
                .iter()
                .filter(|seen| seen.operation != Some("exchange_token"))
                .count(),
            0
        );
        let mut described = world.described(&world.source_of_url());
        described["credential_source"]["url"] = "http://example.com/subject".into();
        let refused = world.refusal(&world.external(&described)).await;
        assert!(refused.message.contains("`credential_source.url` must begin with"), "{refused}");
    }

    #[tokio::test]
    async fn h115_no_fault_of_a_sign_in_is_for_good_or_repeats_what_was_sent() {
        let echo =
            |code, applied| Fault::Status { code, retry_after: None, body: Echo::EchoKey, applied };
        let html = Fault::Status { code: 200, retry_after: None, body: Echo::Html, applied: false };
        let passing = [Fault::Cut, Fault::busy(), echo(500, true), echo(503, false), html];
        let world = World::new();
        let external = world.external(&world.described(&world.source_of_url()));
        let mut secrets = vec![world.twin.subject(), world.twin.token()];
        for operation in ["get_subject_token", "exchange_token", "generate_access_token"] {
            for fault in &passing {
                let is_html = matches!(fault, Fault::Status { code: 200, .. });
                world.twin.faults().set(vec![Rule::first(operation, fault.clone())]).unwrap();
                let refused = world.refusal(&external).await;
                // What is no JSON where the file says JSON is a wrong file.
                if !(is_html && operation == "get_subject_token") {
                    assert!(
                        matches!(refused.remedy, Remedy::Retry { .. }),
                        "{operation}: {refused}"
                    );
                }
                let said = format!("{refused} {refused:?}");
                assert!(!secrets.iter().any(|secret| said.contains(secret)), "{said}");
                assert!(world.twin.faults().unfired().is_empty());
                external.forget().await;
                assert_eq!(world.is_let_in(&external).await, Ok(true));
                external.forget().await;
            }
        }
        for code in [400, 401, 403] {
            world
                .twin
                .faults()
                .set(vec![Rule::first("exchange_token", echo(code, false))])
                .unwrap();
            let refused = world.refusal(&external).await;
            assert_eq!((refused.kind, refused.remedy), (RefusalKind::Permission, Remedy::Operator));
        }
        let wrong = keywheel_driver::conformance::canary("subject");
        std::fs::write(world.folder.path().join("subject"), &wrong).unwrap();
        secrets.push(wrong);
        let of_file = world.external(&world.described(&World::source_of_file()));
        let refused = world.refusal(&of_file).await;
        assert!(
            refused.message.contains("the external account cannot sign in: it answered 400"),
            "{refused}"
        );
        let said = format!("{refused:?}");
        assert!(!secrets.iter().any(|secret| said.contains(secret)), "{said}");
        // The file is replaced by whoever gives the token.
        std::fs::write(world.folder.path().join("subject"), world.twin.subject()).unwrap();
        assert_eq!(world.is_let_in(&of_file).await, Ok(true));
    }

    #[tokio::test]
    async fn a_file_that_says_something_else_is_refused() {
        let world = World::new();
        let changed = |pointer: &str, value: Value| {
            let mut described = world.described(&world.source_of_url());
            *described.pointer_mut(pointer).unwrap() = value;
            described
        };
        for wrong in [
            changed("/type", json!("service_account")),
            changed("/token_url", json!(7)),
            changed("/token_url", json!("no url")),
            changed("/credential_source", json!({ "executable": { "command": "x" } })),
            changed("/credential_source", json!({ "file": "subject", "url": "https://x.example" })),
            changed("/credential_source/format/type", json!("xml")),
            changed("/credential_source/format/subject_token_field_name", json!("count")),
            changed("/credential_source/format/subject_token_field_name", json!("none")),
        ] {
            let refused = world.refusal(&world.external(&wrong)).await;
            assert_eq!(refused.remedy, Remedy::Operator, "{wrong}: {refused}");
            assert!(!refused.message.contains(&world.twin.subject()));
        }
        let mut more = world.described(&World::source_of_file());
        more["workforce_pool_user_project"] = "7".into();
        assert!(world.refusal(&world.external(&more)).await.message.contains("for people"));
        for wrong in [
            json!({ "metadata": { "account": "a/b" } }),
            json!({ "metadata": { "endpoint": "http://metadata.example.com" } }),
        ] {
            let refused = world.configured(wrong.clone()).err().map(|no| no.kind);
            assert_eq!(refused, Some(RefusalKind::Unsupported), "{wrong}");
        }
        assert!(world.configured(json!({ "metadata": {} })).is_ok());
    }
}
