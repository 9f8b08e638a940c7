//! `manual`: a person mints and ends versions where no program can, on what keywheel says.
//!
//! It is an issuer as any other. A mint says what to click and under which name, and takes the value on a hidden prompt. The
//! name is the label of the attempt, and the id of the version: a key whose value never came is asked for by that name, and
//! ended before another one is made. A person who does not answer has been told what to do all the same, so what came of it is
//! unknown; where there is nobody to be asked, nothing is told and the rotation waits for one.
//!
//! A name proves nothing. What `verify` says of a value does, and without it nobody can say that a version works or is dead.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::facts::{Authority, IssuerFacts, Observe, ValueOrigin};
use keywheel_core::secret::{Credential, SecretValue};
use keywheel_core::time::Span;
use keywheel_core::version::IssuedId;
use keywheel_driver::duration::Duration;
use keywheel_driver::issuer::{Issuer, Live, Mint, Minted, Verdict};
use keywheel_driver::{CallError, Finding, Refusal, RefusalKind};
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::command;
use crate::guided::{Format, Guided};
use crate::{Build, Context, http, program};

const TARGET: &str = "issuer `manual`";

/// How long one question to the other side may take.
const ANSWER: Span = Span::seconds(30);

/// The shortest time that a person is given.
const SHORTEST: Span = Span::minutes(1);

/// A person, who mints and ends keys by hand on what keywheel says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A provider whose steps, format and way to verify are known; what is said beside it holds instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
    /// Where the API of the provider is, if not at its usual address; HTTPS, or a loopback address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// The page to open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// What to do there to make a key, one line each; that it is named by the label is said by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
    /// What to do there to end a key, one line each; which one is said by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub end: Vec<String>,
    /// How a value begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// How many characters a value has at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_length: Option<usize>,
    /// How many characters a value has at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// How a value is tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verification>,
    /// How long a person is given for one step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<Duration>,
    /// How long a new key may be refused, and an ended one accepted; `5m` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub propagation: Option<Duration>,
}

/// A provider that lets no program make these keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Provider {
    /// An API key of Anthropic. The issuer `anthropic` takes its place; this is read for what was written before there was one.
    Anthropic,
    /// A management key of OpenRouter.
    OpenrouterManagement,
    /// A personal API key of PostHog; `base_url` says in which region.
    PosthogPersonal,
    /// An organisation token of Sentry.
    SentryOrganization,
    /// A personal token of Sentry.
    SentryPersonal,
}

/// How a value is tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verification {
    /// A GET that carries the value in a header: 2xx is accepted, 401 is refused, and anything else tells neither.
    Http(HttpVerification),
    /// A program that is asked as `verify` of the issuer `command` is.
    Command(Vec<String>),
}

/// A GET that carries the value in a header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpVerification {
    /// A page that costs nothing and that only a live key opens; HTTPS, or a loopback address.
    pub url: String,
    /// The header that carries the value; after `Bearer ` where it is `authorization`, and alone elsewhere.
    #[serde(default = "authorization")]
    pub header: String,
    /// Further headers, without secrets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub with: BTreeMap<String, String>,
}

fn authorization() -> String {
    "authorization".into()
}

/// What is known of a provider's keys.
struct Known {
    /// The usual address of its API; none where there are several.
    base: Option<&'static str>,
    steps: &'static [&'static str],
    end: &'static str,
    prefix: &'static str,
    min_length: usize,
    path: &'static str,
    header: &'static str,
    with: &'static [(&'static str, &'static str)],
}

impl Provider {
    fn known(self) -> Known {
        match self {
            Self::Anthropic => Known {
                base: Some("https://api.anthropic.com"),
                steps: &[
                    "open the Console of Anthropic as an administrator of the organisation",
                    "make an API key of the same type, in the same workspace, for the same account and with the same expiry as the one in use",
                ],
                end: "open the Console of Anthropic, find the key by its name and delete it: a disabled key can be enabled again",
                prefix: "sk-ant-",
                min_length: 40,
                path: "/v1/models?limit=1",
                header: "x-api-key",
                with: &[("anthropic-version", "2023-06-01")],
            },
            Self::OpenrouterManagement => Known {
                base: Some("https://openrouter.ai"),
                steps: &[
                    "open the dashboard of OpenRouter: settings, management keys",
                    "make a management key",
                ],
                end: "open the dashboard of OpenRouter: settings, management keys; delete the key",
                prefix: "sk-or-v1-",
                min_length: 40,
                path: "/api/v1/key",
                header: "authorization",
                with: &[],
            },
            Self::PosthogPersonal => Known {
                base: None,
                steps: &[
                    "log in to PostHog, and open your personal API keys (at most 10 per user)",
                    "make a personal API key with the scopes of the one in use",
                ],
                end: "log in to PostHog, open your personal API keys and delete the key",
                prefix: "phx_",
                min_length: 36,
                path: "/api/personal_api_keys/@current",
                header: "authorization",
                with: &[],
            },
            Self::SentryOrganization => Known {
                base: Some("https://sentry.io"),
                steps: &[
                    "log in to Sentry, and open the organisation tokens of the right organisation",
                    "make an organisation token",
                ],
                end: "log in to Sentry, open the organisation tokens and revoke the token",
                prefix: "sntrys_",
                min_length: 50,
                path: "/api/0/organizations/",
                header: "authorization",
                with: &[],
            },
            Self::SentryPersonal => Known {
                base: Some("https://sentry.io"),
                steps: &[
                    "log in to Sentry, and open your personal tokens",
                    "make a personal token with the scopes of the one in use",
                ],
                end: "log in to Sentry, open your personal tokens and revoke the token",
                prefix: "sntryu_",
                min_length: 50,
                path: "/api/0/organizations/",
                header: "authorization",
                with: &[],
            },
        }
    }
}

impl Known {
    fn verification(&self, base: &str) -> HttpVerification {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        HttpVerification {
            url: format!("{}{}", base.trim_end_matches('/'), self.path),
            header: self.header.into(),
            with: self.with.iter().map(owned).collect(),
        }
    }
}

impl Config {
    /// Returns the configuration with what is known of its provider, where it does not say otherwise.
    ///
    /// # Errors
    /// A refusal where the address of the provider's API is missing or means nothing.
    fn whole(&self) -> Result<Self, Refusal> {
        let Some(provider) = self.provider else {
            return match &self.base_url {
                Some(_) => {
                    Err(unsupported("`base_url` needs a `provider`; `verify` names its own URL"))
                }
                None => Ok(self.clone()),
            };
        };
        let known = provider.known();
        let base = self.base_url.as_deref().or(known.base);
        let verify = match (&self.verify, base) {
            (Some(verify), _) => verify.clone(),
            (None, Some(base)) => Verification::Http(known.verification(base)),
            (None, None) => {
                return Err(unsupported(
                    "`base_url` must say in which region the account is, as in `https://eu.posthog.com`",
                ));
            }
        };
        let or = |own: &[String], known: &[&str]| match own {
            [] => known.iter().map(|&line| line.to_owned()).collect(),
            own => own.to_vec(),
        };
        Ok(Self {
            steps: or(&self.steps, known.steps),
            end: or(&self.end, &[known.end]),
            prefix: self.prefix.clone().or_else(|| Some(known.prefix.into())),
            min_length: self.min_length.or(Some(known.min_length)),
            verify: Some(verify),
            ..self.clone()
        })
    }

    fn within(&self) -> Span {
        self.within.map_or(Span::minutes(15), Duration::span)
    }
}

impl Build for Config {
    type Driver = dyn Issuer;

    fn build(&self, context: &Context) -> Result<Arc<dyn Issuer>, Refusal> {
        self.build_as(TARGET, context)
    }
}

impl Config {
    /// Builds it under the name that people know it by, for an issuer that is as manual as this one in a part of its ways.
    pub(crate) fn build_as(
        &self,
        target: &'static str,
        context: &Context,
    ) -> Result<Arc<dyn Issuer>, Refusal> {
        let config = self.whole()?;
        if config.within() < SHORTEST {
            return Err(unsupported("`within` must be at least `1m`: a person needs time"));
        }
        let asks = match &config.verify {
            None => Asks::Nobody,
            Some(Verification::Command(program)) => {
                program::check("verify", program)?;
                Asks::Program(program.clone())
            }
            Some(Verification::Http(http)) => Asks::Page(Box::new(Page::of(target, http)?)),
        };
        let guided = Guided(Arc::clone(&context.guide));
        Ok(Arc::new(Manual { target, config, asks, folder: context.root.clone(), guided }))
    }
}

struct Manual {
    target: &'static str,
    config: Config,
    asks: Asks,
    folder: PathBuf,
    guided: Guided,
}

/// Who is asked whether a value works.
enum Asks {
    Nobody,
    Program(Vec<String>),
    Page(Box<Page>),
}

struct Page {
    target: &'static str,
    url: Url,
    header: HeaderName,
    with: HeaderMap,
}

impl Page {
    fn of(target: &'static str, config: &HttpVerification) -> Result<Self, Refusal> {
        let name = |name: &str| {
            HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| unsupported("`verify` holds a name that is no header's"))
        };
        let header = |(key, value): (&String, &String)| {
            let value = HeaderValue::from_str(value)
                .map_err(|_| unsupported("`verify` holds a text that fits into no header"))?;
            Ok((name(key)?, value))
        };
        let url = Url::parse(&config.url).map_err(|_| unsupported("`verify` holds no URL"))?;
        let named = !url.username().is_empty() || url.password().is_some();
        if named || !http::is_private(&url) {
            return Err(unsupported(
                "`verify` must ask at `https://`, or at a loopback address, without a user",
            ));
        }
        Ok(Self {
            target,
            url,
            header: name(&config.header)?,
            with: config.with.iter().map(header).collect::<Result<_, Refusal>>()?,
        })
    }

    async fn verify(&self, value: &SecretValue) -> Result<Verdict, CallError> {
        let value = match self.header == reqwest::header::AUTHORIZATION {
            true => http::bearer(value),
            false => http::secret_header(value.expose()),
        };
        let Ok(value) = value else { return Ok(Verdict::Refused) };
        let mut request = http::client().get(self.url.clone()).headers(self.with.clone());
        request = request.header(self.header.clone(), value).timeout(ANSWER.into());
        let answer = request.send().await.map_err(|error| http::call_error(self.target, &error))?;
        Ok(match answer.status().as_u16() {
            200..=299 => Verdict::Accepted,
            401 => Verdict::Refused,
            status => Verdict::CannotTell(format!(
                "{}: asked whether a value works, the other side answered {status}",
                self.target
            )),
        })
    }
}

#[async_trait]
impl Issuer for Manual {
    fn facts(&self) -> IssuerFacts {
        let asks = !matches!(self.asks, Asks::Nobody);
        IssuerFacts {
            label: true,
            destroy: true,
            propagation: self.config.propagation.map_or(Span::minutes(5), Duration::span),
            settle_for: Span::ZERO,
            by_hand: Some(self.config.within()),
            ..IssuerFacts::new(
                ValueOrigin::Theirs,
                Observe::Label,
                if asks { Authority::Issuer } else { Authority::None },
            )
        }
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        let what = "you are asked to make a key, and later to end the former one";
        let mut findings = vec![self.guided.finding(what)];
        if self.config.provider == Some(Provider::Anthropic) && self.target == TARGET {
            findings.push(Finding::note(
                "the issuer `anthropic` does the same, and more where it is given an `admin_key`",
            ));
        }
        if matches!(self.asks, Asks::Nobody) {
            findings.push(Finding::note("no one can be asked whether a value works (`verify`)"));
        }
        Ok(findings)
    }

    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        let label = &request.label.0;
        let mut steps = self.at_the_page(&self.config.steps, "make a new key at the provider");
        steps.push(format!("name it exactly `{label}`, and leave the key in use as it is"));
        let format = Format {
            prefix: self.config.prefix.as_deref().unwrap_or_default(),
            min_length: self.config.min_length.unwrap_or(1),
            max_length: self.config.max_length.unwrap_or(usize::MAX),
        };
        let value = self.guided.value(steps, label, &format, request.in_use).await?;
        Ok(Minted {
            issued: Some(IssuedId::new(label)),
            credential: Some(Credential::of_value(value)),
            ..Minted::default()
        })
    }

    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        match (&self.asks, credential.value()) {
            (Asks::Program(program), _) => {
                command::verify(program, &self.folder, ANSWER, credential).await
            }
            (Asks::Page(page), Some(value)) => page.verify(value).await,
            _ => Ok(Verdict::CannotTell("no one can be asked whether a value works".into())),
        }
    }

    /// Asks a person for names. Nobody is asked to copy everything that there is.
    async fn list(&self, prefix: &str) -> Result<Vec<Live>, CallError> {
        if prefix.is_empty() {
            return Ok(Vec::new());
        }
        let steps = self.at_the_page(&[], "look at the list of keys at the provider");
        self.guided.names(steps, prefix).await
    }

    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError> {
        let steps = self.at_the_page(&self.config.end, "open the list of keys at the provider");
        self.guided.ended(steps, &id.id).await
    }
}

impl Manual {
    fn at_the_page(&self, steps: &[String], otherwise: &str) -> Vec<String> {
        let open = self.config.url.iter().map(|url| format!("open {url}"));
        let mut all: Vec<String> = open.chain(steps.iter().cloned()).collect();
        if steps.is_empty() {
            all.push(otherwise.into());
        }
        all
    }
}

fn unsupported(message: &str) -> Refusal {
    Refusal::operator(RefusalKind::Unsupported, message)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use keywheel_core::plan::Label;
    use keywheel_driver::conformance::canary;
    use keywheel_driver::conformance::issuer::{Subject, run};
    use keywheel_driver::guide::{Guide, Question};
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A console, and somebody who clicks in it as they are told.
    #[derive(Default)]
    struct Console {
        keys: Mutex<Vec<(String, String)>>,
        told: Mutex<Vec<String>>,
        /// The next answers, instead of what they would say.
        answers: Mutex<Vec<Option<String>>>,
        forgets: Mutex<bool>,
        away: bool,
    }

    impl Console {
        fn does(&self, steps: &[String], prompt: &str) -> String {
            let text = steps.join("\n");
            let quoted = text.split('`').nth(1).unwrap().to_owned();
            let mut keys = self.keys.lock().unwrap();
            if prompt == "its value" {
                let value = canary("manual");
                keys.push((quoted, value.clone()));
                return value;
            }
            if prompt.starts_with("their names") {
                let names = keys.iter().map(|(name, _)| name.as_str());
                let names: Vec<_> = names.filter(|name| name.starts_with(&quoted)).collect();
                return if names.is_empty() { "none".into() } else { names.join(" ") };
            }
            keys.retain(|(name, _)| *name != quoted);
            "ended".into()
        }

        fn answer(self: Arc<Self>, answers: &[Option<&str>]) -> Arc<Self> {
            let answers = answers.iter().rev().map(|answer| answer.map(str::to_owned));
            *self.answers.lock().unwrap() = answers.collect();
            self
        }

        /// Serves what tells a live key from another, and repeats what it is sent.
        async fn serve(self: &Arc<Self>) -> String {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let base = format!("http://{}", listener.local_addr().unwrap());
            let console = Arc::clone(self);
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let mut request = [0; 4096];
                    let length = stream.read(&mut request).await.unwrap();
                    let request = String::from_utf8_lossy(&request[..length]).into_owned();
                    let known = |(_, value): &(String, String)| request.contains(value.as_str());
                    let live = console.keys.lock().unwrap().iter().any(known);
                    let status = match (live, request.starts_with("GET /odd")) {
                        (_, true) => "403 No",
                        (true, _) => "200 OK",
                        (false, _) => "401 No",
                    };
                    let answer = format!("HTTP/1.1 {status}\r\nconnection: close\r\n\r\n{request}");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
            base
        }
    }

    #[async_trait]
    impl Guide for Console {
        fn absence(&self) -> Option<Refusal> {
            self.away.then(|| Refusal::operator(RefusalKind::NeedsPerson, "needs a person"))
        }

        async fn ask(&self, question: &Question<'_>) -> Option<SecretValue> {
            self.told.lock().unwrap().extend(question.steps.iter().cloned());
            assert_eq!(question.hidden, question.prompt == "its value");
            let told = self.answers.lock().unwrap().pop();
            let said = told.unwrap_or_else(|| Some(self.does(question.steps, question.prompt)));
            let forgets = std::mem::take(&mut *self.forgets.lock().unwrap());
            said.filter(|_| !forgets).map(|said| SecretValue::new(format!(" {said} ").into_bytes()))
        }
    }

    fn issuer(console: &Arc<Console>, config: serde_json::Value) -> Arc<dyn Issuer> {
        let config: Config = serde_json::from_value(config).unwrap();
        let guide: Arc<dyn Guide> = Arc::<Console>::clone(console);
        let context = Context { guide, ..Context::at("/") };
        config.build(&context).unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    fn of(value: &str) -> Credential {
        Credential::of_value(SecretValue::new(value.into()))
    }

    async fn mint(issuer: &dyn Issuer, in_use: Option<&Credential>) -> Result<Minted, CallError> {
        let label = Label("kw-4c1e9a-1".into());
        issuer.mint(&Mint { in_use, ..Mint::new(&label) }).await
    }

    fn page(base: &str) -> serde_json::Value {
        json!({ "verify": { "http": { "url": format!("{base}/models"), "header": "x-api-key" } } })
    }

    #[tokio::test]
    async fn the_issuer_keeps_its_contract() {
        let console = Arc::new(Console::default());
        let base = console.serve().await;
        let nobody = Arc::new(Console { away: true, ..Console::default() });
        let canary = canary("manual");
        let forget = || *console.forgets.lock().unwrap() = true;
        let odd = json!({ "verify": { "http": { "url": format!("{base}/odd") } } });
        let echo = json!({ "verify": { "command": ["/bin/sh", "-c", "cat; exit 1"] } });
        run(&Subject {
            issuer: &*issuer(&console, page(&base)),
            prefix: "kw-suite-",
            garbage: &of("garbage"),
            lose_next_answer: Some(&forget),
            broken: &[
                &*issuer(&nobody, page(&base)),
                &*issuer(&nobody, odd),
                &*issuer(&nobody, echo),
            ],
            canaries: &[&of(&canary)],
        })
        .await;
    }

    #[tokio::test]
    async fn a_person_is_told_where_to_click_and_under_which_name() {
        let console = Arc::new(Console::default());
        let config = json!({ "url": "https://example.com/keys", "steps": ["click New"], "end": ["click Delete"] });
        let issuer = issuer(&console, config);
        let minted = mint(&*issuer, None).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(minted.issued, Some(IssuedId::new("kw-4c1e9a-1")));
        issuer.revoke(&IssuedId::new("kw-4c1e9a-1")).await.unwrap();
        let told = console.told.lock().unwrap().join("\n");
        assert_eq!(
            told,
            "open https://example.com/keys\nclick New\nname it exactly `kw-4c1e9a-1`, and leave the key in use as it is\n\
             open https://example.com/keys\nclick Delete\nend the key named `kw-4c1e9a-1` for good, and no other"
        );
    }

    #[tokio::test]
    async fn a_value_that_cannot_be_is_asked_for_again_and_not_repeated() {
        let used = canary("manual-used");
        let good = format!("kwcanary-{}", "x".repeat(24));
        for wrong in [
            "",
            "kwcanary with a space in it 0123",
            "other-0123456789abcdef0123456",
            "kwcanary-1",
            &used,
        ] {
            let console = Arc::new(Console::default()).answer(&[Some(wrong), Some(&good)]);
            let issuer = issuer(
                &console,
                json!({ "prefix": "kwcanary-", "min_length": 20, "max_length": 40 }),
            );
            let minted =
                mint(&*issuer, Some(&of(&used))).await.unwrap_or_else(|error| panic!("{error}"));
            assert!(minted.credential.unwrap().same_as(&of(&good)), "{wrong}");
            let told = console.told.lock().unwrap().join("\n");
            assert!(told.contains("that is not the value of a new key"), "{wrong}");
            assert!(wrong.is_empty() || !told.contains(wrong), "{told}");
        }
    }

    #[tokio::test]
    async fn h04_a_key_whose_value_never_came_may_exist() {
        for answers in [vec![None], vec![Some("a b"); 3]] {
            let console = Arc::new(Console::default()).answer(&answers);
            let error = mint(&*issuer(&console, json!({})), None).await.err().unwrap();
            let why = "nobody gave the value of `kw-4c1e9a-1`, which may exist";
            assert_eq!(error, CallError::Unknown(why.into()));
        }
    }

    #[tokio::test]
    async fn where_nobody_is_there_nobody_is_told_anything() {
        let console = Arc::new(Console { away: true, ..Console::default() });
        let issuer = issuer(&console, json!({}));
        let id = IssuedId::new("kw-4c1e9a-1");
        let answers = [
            mint(&*issuer, None).await.map(drop),
            issuer.list("kw-4c1e9a-").await.map(drop),
            issuer.revoke(&id).await,
        ];
        for answer in answers {
            let Err(CallError::Refused(refusal)) = answer else { panic!("{answer:?}") };
            assert_eq!(refusal.kind, RefusalKind::NeedsPerson);
        }
        assert!(console.told.lock().unwrap().is_empty());
        assert!(issuer.preflight().await.unwrap()[0].message.contains("needs a person"));
    }

    #[tokio::test]
    async fn only_a_word_ends_a_key_and_silence_tells_nothing() {
        let id = IssuedId::new("kw-4c1e9a-1");
        let console = Arc::new(Console::default()).answer(&[Some("no"), None]);
        let issuer = issuer(&console, json!({}));
        assert!(matches!(issuer.revoke(&id).await, Err(CallError::Refused(_))));
        assert!(matches!(issuer.revoke(&id).await, Err(CallError::Unknown(_))));
    }

    #[tokio::test]
    async fn names_are_those_that_were_asked_for() {
        let answers = [
            Some("sk-secret"),
            Some("kw-4c1e9a-1, kw-4c1e9a-2"),
            Some("none"),
            Some("a"),
            Some("b"),
            Some("c"),
        ];
        let console = Arc::new(Console::default()).answer(&answers);
        let issuer = issuer(&console, json!({}));
        let live = issuer.list("kw-4c1e9a-").await.unwrap();
        assert_eq!(
            live.iter().map(|live| live.issued.id.as_str()).collect::<Vec<_>>(),
            ["kw-4c1e9a-1", "kw-4c1e9a-2"]
        );
        assert_eq!(issuer.list("kw-4c1e9a-").await.unwrap(), []);
        assert!(matches!(issuer.list("kw-4c1e9a-").await, Err(CallError::Refused(_))));
        assert_eq!(issuer.list("").await.unwrap(), []);
    }

    #[tokio::test]
    async fn h88_only_what_is_certain_is_a_verdict() {
        let console = Arc::new(Console::default());
        let base = console.serve().await;
        let canary = canary("manual");
        let odd =
            issuer(&console, json!({ "verify": { "http": { "url": format!("{base}/odd") } } }));
        assert!(
            matches!(odd.verify(&of(&canary)).await, Ok(Verdict::CannotTell(why)) if why.ends_with("403"))
        );
        let nobody = issuer(&console, json!({}));
        assert!(matches!(nobody.verify(&of(&canary)).await, Ok(Verdict::CannotTell(_))));
        assert_eq!(nobody.facts().authority, Authority::None);
        let program = json!({ "verify": { "command": ["/bin/sh", "-c", "echo '{\"verdict\": \"refused\"}'"] } });
        assert_eq!(issuer(&console, program).verify(&of(&canary)).await, Ok(Verdict::Refused));
    }

    #[tokio::test]
    async fn a_known_provider_says_how_a_value_begins_and_is_tried() {
        for (provider, prefix, path) in [
            ("anthropic", "sk-ant-", "/v1/models?limit=1"),
            ("openrouter_management", "sk-or-v1-", "/api/v1/key"),
            ("posthog_personal", "phx_", "/api/personal_api_keys/@current"),
            ("sentry_organization", "sntrys_", "/api/0/organizations/"),
            ("sentry_personal", "sntryu_", "/api/0/organizations/"),
        ] {
            let console = Arc::new(Console::default());
            let base = console.serve().await;
            let config = json!({ "provider": provider, "base_url": base });
            let good = format!("{prefix}{}", canary("manual").repeat(3));
            let config: Config = serde_json::from_value(config).unwrap();
            let Some(Verification::Http(http)) = config.whole().unwrap().verify else { panic!() };
            assert_eq!(http.url, format!("{base}{path}"));
            let issuer = issuer(&console, serde_json::to_value(&config).unwrap());
            console.keys.lock().unwrap().push(("kw".into(), good.clone()));
            assert_eq!(issuer.verify(&of(&good)).await, Ok(Verdict::Accepted), "{provider}");
            assert_eq!(issuer.verify(&of(&canary("manual"))).await, Ok(Verdict::Refused));
            let console = console.answer(&[Some("other"), Some(&good)]);
            assert!(mint(&*issuer, None).await.is_ok());
            let told = console.told.lock().unwrap().join("\n");
            assert!(told.contains(&format!("it does not begin with `{prefix}`")), "{told}");
        }
    }

    #[test]
    fn settings_that_mean_nothing_are_refused() {
        let url = |url: &str| json!({ "verify": { "http": { "url": url } } });
        for config in [
            json!({ "provider": "posthog_personal" }),
            json!({ "base_url": "https://example.com" }),
            json!({ "within": "59s" }),
            json!({ "verify": { "command": [] } }),
            url("http://example.com/models"),
            url("https://user:word@example.com/models"),
            url("ftp://127.0.0.1/models"),
            url("models"),
            json!({ "verify": { "http": { "url": "https://example.com", "header": "a b" } } }),
        ] {
            let read: Config = serde_json::from_value(config.clone()).unwrap();
            assert!(read.build(&Context::at("/")).is_err(), "{config}");
        }
    }
}
