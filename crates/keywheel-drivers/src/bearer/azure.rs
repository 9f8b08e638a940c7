//! How keywheel shows Azure who it is.

use std::path::PathBuf;

use async_trait::async_trait;
use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_driver::{CallError, Refusal, RefusalKind, SecretReference};
use reqwest::header::{HeaderMap, HeaderName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Desk, FORM, Granted, Seconds, SignIn, Token, Tokens, decoded, form, header};
use crate::api::{Api, now, unsupported};
use crate::secret_json::Text;
use crate::{Context, reference};

const MICROSOFT: &str = "https://login.microsoftonline.com";

/// Where a machine of Azure is told who it is.
const INSTANCE: &str = "http://169.254.169.254/metadata/identity/oauth2/token";

/// How keywheel shows Azure who it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Azure {
    /// An access token for the vault, read each time it is needed: `{ command: [az, account, get-access-token, …] }`.
    Token(SecretReference),
    /// An application that signs in with its secret.
    Client(Application),
    /// An application that signs in with a token of the cluster or job that keywheel runs in.
    WorkloadIdentity(WorkloadIdentity),
    /// The identity that Azure gives the machine or the app that keywheel runs on.
    ManagedIdentity(ManagedIdentity),
}

/// An application of Entra ID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Application {
    /// The id of its tenant, or one of the tenant's domains.
    pub tenant: String,
    /// The id of the application.
    pub client_id: String,
    /// Where its secret is read.
    pub client_secret: SecretReference,
    /// Where it signs in, if not at the official address; HTTPS, or a loopback address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
}

/// An application of Entra ID that trusts the tokens of a cluster or of a job. What is left out is read from the variables that
/// Azure's own tools read, when keywheel signs in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkloadIdentity {
    /// The id of its tenant, or one of the tenant's domains; else `AZURE_TENANT_ID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The id of the application; else `AZURE_CLIENT_ID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// The file with the token, which is read each time; else `AZURE_FEDERATED_TOKEN_FILE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Where it signs in; else `AZURE_AUTHORITY_HOST`, or the official address. HTTPS, or a loopback address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
}

/// The identity that Azure gives a machine, a pod or an app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ManagedIdentity {
    /// The id of an identity that was assigned by a user, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// Where it is asked for, if not at the machine's own address; HTTPS, or an address that does not leave the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

impl Azure {
    /// Says where tokens for a resource come from, such as `https://vault.azure.net`.
    ///
    /// # Errors
    /// A refusal that names what is wrong with the configuration.
    pub(crate) fn tokens(
        &self,
        target: &'static str,
        resource: &str,
        context: &Context,
    ) -> Result<Tokens, Refusal> {
        let scope = format!("{resource}/.default");
        Ok(match self {
            Self::Token(token) => Tokens::read(token, context),
            Self::Client(application) => {
                let secret = reference::from_root(&application.client_secret, context);
                let Application { tenant, client_id, authority, .. } = application;
                let authority = authority.as_deref().unwrap_or(MICROSOFT);
                let place = Place::new(target, tenant, client_id, authority)?;
                Tokens::sign_in(Client { place, secret, scope })
            }
            Self::WorkloadIdentity(given) => {
                let WorkloadIdentity { tenant, client_id, token_file, authority } = given;
                [tenant, client_id].into_iter().flatten().try_for_each(|name| is_name(name))?;
                if let Some(authority) = authority {
                    Api::named(target, "authority", authority).map(drop)?;
                }
                let token_file = token_file.as_ref().map(|path| context.root.join(path));
                let given = WorkloadIdentity { token_file, ..given.clone() };
                Tokens::sign_in(Workload { target, given, scope, variable: Box::new(variable) })
            }
            Self::ManagedIdentity(given) => {
                if let Some(id) = &given.client_id {
                    is_name(id)?;
                }
                let endpoint = given.endpoint.as_deref().unwrap_or(INSTANCE);
                Api::of_machine(target, "endpoint", endpoint).map(drop)?;
                let resource = resource.to_owned();
                let (given, variable) = (given.clone(), Box::new(variable));
                Tokens::sign_in(Managed { target, given, resource, variable })
            }
        })
    }
}

fn is_name(text: &str) -> Result<(), Refusal> {
    let fits =
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
    let why = "`tenant` or `client_id` is not the id of a tenant or an application";
    if fits { Ok(()) } else { Err(unsupported(why)) }
}

/// The variables of the environment, where they hold something.
type Variables = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Where an application signs in.
struct Place {
    api: Api,
    tenant: String,
    client_id: String,
}

impl Place {
    fn new(
        target: &'static str,
        tenant: &str,
        client_id: &str,
        authority: &str,
    ) -> Result<Self, Refusal> {
        is_name(tenant)?;
        is_name(client_id)?;
        let api = Api::named(target, "authority", authority)?;
        Ok(Self { api, tenant: tenant.into(), client_id: client_id.into() })
    }

    async fn sign_in(&self, scope: &str, known_by: &[(&str, &[u8])]) -> Result<Token, CallError> {
        let Self { api, tenant, client_id } = self;
        let body = form(
            &[
                &[
                    ("grant_type", &b"client_credentials"[..]),
                    ("client_id", client_id.as_bytes()),
                    ("scope", scope.as_bytes()),
                ],
                known_by,
            ]
            .concat(),
        );
        let who = format!("application `{client_id}` of tenant `{tenant}`");
        let url = api.url(&[tenant, "oauth2", "v2.0", "token"]);
        let desk = Desk { api, who: &who };
        let answer = desk.post(url, &HeaderMap::new(), (FORM, &body)).await?;
        Ok(decoded::<Granted>(&answer)?.token())
    }
}

struct Client {
    place: Place,
    secret: SecretReference,
    scope: String,
}

#[async_trait]
impl SignIn for Client {
    async fn sign_in(&self) -> Result<Token, CallError> {
        let secret = reference::read(&self.secret).await?;
        self.place.sign_in(&self.scope, &[("client_secret", secret.expose())]).await
    }
}

struct Workload {
    target: &'static str,
    given: WorkloadIdentity,
    scope: String,
    variable: Variables,
}

impl Workload {
    fn place(&self) -> Result<Place, Refusal> {
        let WorkloadIdentity { tenant, client_id, authority, .. } = &self.given;
        let tenant = self.known(tenant.as_deref(), "tenant", "AZURE_TENANT_ID")?;
        let client_id = self.known(client_id.as_deref(), "client_id", "AZURE_CLIENT_ID")?;
        let authority = authority.clone().or_else(|| (self.variable)("AZURE_AUTHORITY_HOST"));
        let authority = authority.as_deref().unwrap_or(MICROSOFT);
        Place::new(self.target, &tenant, &client_id, authority)
    }

    /// The file is replaced long before its token ends, so it is read each time.
    async fn assertion(&self) -> Result<SecretValue, Refusal> {
        let file = self.given.token_file.as_ref().and_then(|path| path.to_str());
        let file = self.known(file, "token_file", "AZURE_FEDERATED_TOKEN_FILE")?;
        reference::read(&SecretReference::File(file.into())).await
    }

    fn known(&self, given: Option<&str>, key: &str, name: &str) -> Result<String, Refusal> {
        let why = || {
            let why = format!("`{key}` is not given, and environment variable `{name}` is not set");
            Refusal::operator(RefusalKind::Local, why)
        };
        given.map(str::to_owned).or_else(|| (self.variable)(name)).ok_or_else(why)
    }
}

#[async_trait]
impl SignIn for Workload {
    async fn sign_in(&self) -> Result<Token, CallError> {
        let place = self.place()?;
        let assertion = self.assertion().await?;
        let kind = b"urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
        let known_by =
            [("client_assertion_type", &kind[..]), ("client_assertion", assertion.expose())];
        place.sign_in(&self.scope, &known_by).await
    }
}

struct Managed {
    target: &'static str,
    given: ManagedIdentity,
    resource: String,
    variable: Variables,
}

/// A token as a machine or an app is given it; an app is told when it ends, and not for how long it is good.
#[derive(Deserialize)]
struct Assigned {
    access_token: Text,
    expires_in: Option<Seconds>,
    expires_on: Option<Seconds>,
}

impl Assigned {
    fn token(self) -> Token {
        let now = u64::try_from(now().millis() / 1_000).unwrap_or(0);
        let left = self.expires_on.map_or(0, |Seconds(at)| at.saturating_sub(now));
        let Text(token) = self.access_token;
        Token { token, lasts: self.expires_in.map_or(left, |Seconds(lasts)| lasts) }
    }
}

impl Managed {
    /// An app is told by its environment where it asks, and by which secret it is known there; a machine has one address for that.
    fn door(&self) -> Result<(Api, HeaderMap, &'static str), Refusal> {
        let of_app = (self.variable)("IDENTITY_ENDPOINT").zip((self.variable)("IDENTITY_HEADER"));
        match (&self.given.endpoint, of_app) {
            (None, Some((endpoint, secret))) => {
                let api = Api::of_machine(self.target, "IDENTITY_ENDPOINT", &endpoint)?;
                let secret = SecretValue::new(secret.into_bytes());
                let name = HeaderName::from_static("x-identity-header");
                let headers = api.header(name, &secret, "value of `IDENTITY_HEADER`")?;
                Ok((api, headers, "2019-08-01"))
            }
            (endpoint, _) => {
                let endpoint = endpoint.as_deref().unwrap_or(INSTANCE);
                let api = Api::of_machine(self.target, "endpoint", endpoint)?;
                Ok((api, header("metadata", "true"), "2018-02-01"))
            }
        }
    }
}

#[async_trait]
impl SignIn for Managed {
    async fn sign_in(&self) -> Result<Token, CallError> {
        let (api, headers, version) = self.door()?;
        let mut url = api.url(&[]);
        url.query_pairs_mut().append_pair("api-version", version);
        url.query_pairs_mut().append_pair("resource", &self.resource);
        if let Some(id) = &self.given.client_id {
            url.query_pairs_mut().append_pair("client_id", id);
        }
        let desk = Desk { api: &api, who: "the managed identity of this machine" };
        let answer = desk.get(url, &headers).await.map_err(|error| match error {
            // That is what it answers while it is renewed.
            CallError::Refused(no)
                if no.kind == RefusalKind::NotFound && !planted!("renewal_is_for_good") =>
            {
                Refusal::retry(RefusalKind::Unavailable, None, no.message).into()
            }
            error => error,
        })?;
        Ok(decoded::<Assigned>(&answer)?.token())
    }
}

#[cfg(test)]
mod tests {
    use keywheel_driver::Remedy;
    use keywheel_driver::conformance::canary;
    use keywheel_twins::azure::{CLIENT, TENANT, Twin, TwinOptions};
    use keywheel_twins::fault::{Echo, Fault, Rule};
    use reqwest::Method;
    use tempfile::TempDir;

    use super::*;

    const RESOURCE: &str = "https://vault.azure.net";

    struct World {
        twin: Twin,
        folder: TempDir,
        api: Api,
    }

    impl World {
        fn with(options: TwinOptions) -> Self {
            let twin = Twin::start(options).unwrap();
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("token"), format!("{}\n", twin.federated())).unwrap();
            let api = Api::new("store `x`", &twin.url()).unwrap_or_else(|no| panic!("{no}"));
            Self { twin, folder, api }
        }

        fn new() -> Self {
            Self::with(TwinOptions::default())
        }

        /// An application whose variables are set as a cluster sets them.
        fn workload(&self) -> Tokens {
            let file = self.folder.path().join("token").to_str().unwrap().to_owned();
            let url = self.twin.url();
            Tokens::sign_in(Workload {
                target: "store `x`",
                given: WorkloadIdentity::default(),
                scope: format!("{RESOURCE}/.default"),
                variable: Box::new(move |name| match name {
                    "AZURE_TENANT_ID" => Some(TENANT.into()),
                    "AZURE_CLIENT_ID" => Some(CLIENT.into()),
                    "AZURE_FEDERATED_TOKEN_FILE" => Some(file.clone()),
                    "AZURE_AUTHORITY_HOST" => Some(format!("{url}/")),
                    _ => None,
                }),
            })
        }

        fn configured(&self, credentials: serde_json::Value) -> Result<Tokens, Refusal> {
            let given: Azure = serde_json::from_value(credentials).unwrap();
            given.tokens("store `x`", RESOURCE, &Context::at(self.folder.path()))
        }

        fn machine(&self) -> Tokens {
            let given =
                serde_json::json!({ "managed_identity": { "endpoint": self.twin.instance() } });
            self.configured(given).unwrap_or_else(|no| panic!("{no}"))
        }

        fn app(&self) -> Tokens {
            let (endpoint, secret) = self.twin.app();
            Tokens::sign_in(Managed {
                target: "store `x`",
                given: ManagedIdentity::default(),
                resource: RESOURCE.into(),
                variable: Box::new(move |name| match name {
                    "IDENTITY_ENDPOINT" => Some(endpoint.clone()),
                    "IDENTITY_HEADER" => Some(secret.clone()),
                    _ => None,
                }),
            })
        }

        /// Asks the vault for a secret that it does not have.
        async fn is_let_in(&self, tokens: &Tokens) -> Result<bool, CallError> {
            let headers = tokens.headers(&self.api).await?;
            let mut url = self.api.url(&["secrets", "none"]);
            url.query_pairs_mut().append_pair("api-version", "7.4");
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
    async fn a_cluster_a_machine_and_an_app_sign_in_once() {
        let world = World::new();
        for tokens in [world.workload(), world.machine(), world.app()] {
            let before = world.twin.sign_ins();
            for _ in 0..3 {
                assert_eq!(world.is_let_in(&tokens).await, Ok(true));
            }
            assert_eq!(world.twin.sign_ins() - before, 1);
        }
    }

    #[tokio::test]
    async fn a_token_is_kept_as_long_as_it_is_good_and_no_longer() {
        // One that ends at once is asked for each time; one that never does is kept for a while, without a fault in the sum.
        for (lasts, sign_ins) in [(60, 3), (u64::from(u32::MAX), 1)] {
            let world = World::with(TwinOptions { lasts: Some(lasts), ..TwinOptions::default() });
            for tokens in [world.workload(), world.machine(), world.app()] {
                let before = world.twin.sign_ins();
                for _ in 0..3 {
                    assert_eq!(world.is_let_in(&tokens).await, Ok(true));
                }
                assert_eq!(world.twin.sign_ins() - before, sign_ins, "{lasts}");
            }
        }
        let world = World::with(TwinOptions { lasts: Some(u64::MAX), ..TwinOptions::default() });
        for tokens in [world.workload(), world.machine()] {
            assert_eq!(world.is_let_in(&tokens).await, Ok(true));
        }
    }

    #[tokio::test]
    async fn h115_no_fault_of_a_sign_in_is_for_good_or_repeats_what_was_sent() {
        let echo =
            |code, applied| Fault::Status { code, retry_after: None, body: Echo::EchoKey, applied };
        let html = Fault::Status { code: 200, retry_after: None, body: Echo::Html, applied: false };
        let passing = [Fault::Cut, Fault::busy(), echo(500, true), echo(503, false), html];
        let world = World::new();
        let secrets = [world.twin.federated(), world.twin.token(), world.twin.app().1];
        for fault in passing {
            for (operation, tokens) in [
                ("sign_in", world.workload()),
                ("get_token_of_machine", world.machine()),
                ("get_token_of_app", world.app()),
            ] {
                world.twin.faults().set(vec![Rule::first(operation, fault.clone())]).unwrap();
                let refused = world.refusal(&tokens).await;
                assert!(matches!(refused.remedy, Remedy::Retry { .. }), "{operation}: {refused}");
                let said = format!("{refused} {refused:?}");
                assert!(!secrets.iter().any(|secret| said.contains(secret)), "{said}");
                assert!(world.twin.faults().unfired().is_empty());
                assert_eq!(world.is_let_in(&tokens).await, Ok(true));
            }
        }
    }

    #[tokio::test]
    async fn who_is_not_known_is_told_so_and_what_is_renewed_is_asked_again() {
        let world = World::new();
        let machine = world.machine();
        world
            .twin
            .faults()
            .set(vec![Rule::first("get_token_of_machine", Fault::status(410))])
            .unwrap();
        assert!(matches!(world.refusal(&machine).await.remedy, Remedy::Retry { .. }));
        assert_eq!(world.is_let_in(&machine).await, Ok(true));
        let token = canary("federated");
        std::fs::write(world.folder.path().join("token"), &token).unwrap();
        let workload = world.workload();
        let refused = world.refusal(&workload).await;
        assert_eq!((refused.kind, refused.remedy), (RefusalKind::Permission, Remedy::Operator));
        let told =
            format!("application `{CLIENT}` of tenant `{TENANT}` cannot sign in: it answered 401");
        assert!(refused.message.starts_with(&told), "{refused}");
        assert!(!format!("{refused:?}").contains(&token));
        // The cluster replaces the file.
        std::fs::write(world.folder.path().join("token"), world.twin.federated()).unwrap();
        assert_eq!(world.is_let_in(&workload).await, Ok(true));
        let nothing = serde_json::json!({ "workload_identity": { "tenant": TENANT } });
        let refused = world.refusal(&world.configured(nothing).ok().unwrap()).await;
        assert!(refused.message.contains("`AZURE_CLIENT_ID` is not set"), "{refused}");
    }

    #[test]
    fn credentials_that_cannot_work_or_would_go_in_the_open_are_refused() {
        let world = World::new();
        for wrong in [
            serde_json::json!({ "workload_identity": { "tenant": "a/b" } }),
            serde_json::json!({ "workload_identity": { "authority": "http://login.example.com" } }),
            serde_json::json!({ "managed_identity": { "client_id": "a b" } }),
            serde_json::json!({ "managed_identity": { "endpoint": "http://identity.example.com" } }),
        ] {
            let refused = world.configured(wrong.clone()).err().map(|no| no.kind);
            assert_eq!(refused, Some(RefusalKind::Unsupported), "{wrong}");
        }
        for right in [
            serde_json::json!({ "workload_identity": {} }),
            serde_json::json!({ "managed_identity": {} }),
        ] {
            assert!(world.configured(right).is_ok());
        }
    }
}
