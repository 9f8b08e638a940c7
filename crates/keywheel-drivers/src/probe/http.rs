//! `http`: a URL that answers with the expected status when all is well.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::time::Span;
use keywheel_driver::duration::Duration;
use keywheel_driver::probe::{Asked, Health, Probe};
use keywheel_driver::{CallError, Refusal, RefusalKind, SecretReference};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::{Build, Context, http, reference};

/// A URL that is asked with GET and answers with one status when all is well.
///
/// A health page that never touches the credential proves nothing of it: name a page that uses it (H53).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The URL, without a user name or password.
    pub url: String,
    /// The status that is green.
    #[serde(default = "default_expect")]
    #[schemars(range(min = 100, max = 599))]
    pub expect: u16,
    /// Headers whose values are secret, by name; read anew each time.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub header: BTreeMap<String, SecretReference>,
    /// How long the answer may take before it counts as red.
    #[serde(default = "default_within")]
    pub within: Duration,
}

fn default_expect() -> u16 {
    200
}

fn default_within() -> Duration {
    Span::seconds(5).into()
}

impl Build for Config {
    type Driver = dyn Probe;

    fn build(&self, _context: &Context) -> Result<Arc<dyn Probe>, Refusal> {
        Ok(Arc::new(Http {
            url: plain_url("url", &self.url)?,
            expect: self.expect,
            headers: Headers::of(&self.header)?,
            within: self.within.span(),
        }))
    }
}

/// Reads an HTTP URL that holds no credential; `key` is what the configuration calls it.
///
/// # Errors
/// A refusal that names the key and not the URL.
pub(crate) fn plain_url(key: &str, text: &str) -> Result<Url, Refusal> {
    let refused =
        |why: &str| Err(Refusal::operator(RefusalKind::Unsupported, format!("`{key}` {why}")));
    match Url::parse(text) {
        Ok(url) if !matches!(url.scheme(), "http" | "https") => {
            refused("must begin with `http` or `https`")
        }
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            refused("must not hold a user name or password")
        }
        Ok(url) => Ok(url),
        Err(_) => refused("is not a URL"),
    }
}

fn header_name(name: &str) -> Result<HeaderName, Refusal> {
    let refused = |_| {
        Refusal::operator(RefusalKind::Unsupported, "`header` holds a name that is no header's")
    };
    HeaderName::from_bytes(name.as_bytes()).map_err(refused)
}

struct Http {
    url: Url,
    expect: u16,
    headers: Headers,
    within: Span,
}

#[async_trait]
impl Probe for Http {
    async fn ask(&self, _asked: &Asked) -> Result<Health, CallError> {
        let headers = self.headers.resolve().await?;
        let asked = http::client()
            .get(self.url.clone())
            .headers(headers)
            .timeout(self.within.into())
            .send()
            .await;
        Ok(match asked {
            Ok(response) if response.status().as_u16() == self.expect => Health::Green,
            Ok(response) => Health::Red(format!(
                "answered {} and not {}",
                response.status().as_u16(),
                self.expect
            )),
            Err(error) => Health::Red(http::call_error("probe", &error).to_string()),
        })
    }
}

/// Headers whose values are secret.
#[derive(Clone)]
pub(super) struct Headers(Vec<(HeaderName, SecretReference)>);

impl Headers {
    /// # Errors
    /// A refusal where a name is no header's.
    pub(super) fn of(named: &BTreeMap<String, SecretReference>) -> Result<Self, Refusal> {
        let headers = named.iter().map(|(name, value)| Ok((header_name(name)?, value.clone())));
        headers.collect::<Result<_, _>>().map(Self)
    }

    /// Reads the references.
    pub(super) async fn resolve(&self) -> Result<HeaderMap, Refusal> {
        let mut headers = HeaderMap::new();
        for (name, reference) in &self.0 {
            headers.append(name, value(reference).await?);
        }
        Ok(headers)
    }
}

async fn value(reference: &SecretReference) -> Result<HeaderValue, Refusal> {
    let refused = |_| {
        Refusal::operator(RefusalKind::Local, format!("{reference} does not fit into a header"))
    };
    http::secret_header(reference::read(reference).await?.expose()).map_err(refused)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const CANARY: &str = "kwcanary-77ab";

    /// Answers 200 to a request that holds the canary, 401 with the canary in it to any other, and nothing to `/hang`.
    async fn server() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    let length = stream.read(&mut request).await.unwrap();
                    let request = String::from_utf8_lossy(&request[..length]).into_owned();
                    if request.starts_with("GET /hang") {
                        return std::future::pending().await;
                    }
                    let status = if request.contains(CANARY) { "200 OK" } else { "401 No" };
                    let answer = format!("HTTP/1.1 {status}\r\nconnection: close\r\n\r\n{CANARY}");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                });
            }
        });
        base
    }

    fn config(url: String) -> Config {
        Config { url, expect: 200, header: BTreeMap::new(), within: Span::seconds(60).into() }
    }

    async fn ask(config: &Config) -> Result<Health, CallError> {
        config.build(&Context::at("/")).unwrap().ask(&crate::probe::NOW).await
    }

    #[tokio::test]
    async fn the_status_is_the_answer_and_the_body_is_dropped() {
        let mut config = config(server().await);
        assert_eq!(ask(&config).await, Ok(Health::Red("answered 401 and not 200".into())));
        config.expect = 401;
        assert_eq!(ask(&config).await, Ok(Health::Green));
    }

    #[tokio::test]
    async fn h53_a_secret_header_goes_through_the_workloads_own_path() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, format!("Bearer {CANARY}\n")).unwrap();
        let mut config = config(server().await);
        config.header.insert("authorization".into(), SecretReference::File(file.clone()));
        assert_eq!(ask(&config).await, Ok(Health::Green));

        std::fs::write(&file, format!("{CANARY}\r\nx: y")).unwrap();
        let error = ask(&config).await.expect_err("no header holds two lines").to_string();
        assert!(
            error.ends_with("does not fit into a header") && !error.contains(CANARY),
            "{error}"
        );
    }

    #[tokio::test]
    async fn silence_is_red() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let red = |message: &str| Ok(Health::Red(message.into()));
        let refused = red("probe at `127.0.0.1`: the connection was refused");
        assert_eq!(ask(&config(format!("http://{closed}/{CANARY}"))).await, refused);

        let mut config = config(format!("{}/hang?{CANARY}", server().await));
        config.within = Span::millis(50).into();
        let late = red("no answer: probe at `127.0.0.1`: the answer did not come in time");
        assert_eq!(ask(&config).await, late);
    }

    #[test]
    fn a_url_with_a_credential_in_it_is_refused_unseen() {
        for url in [format!("http://u:{CANARY}@h/"), format!("ftp://h/{CANARY}"), CANARY.into()] {
            let refusal = config(url).build(&Context::at("/")).err().unwrap();
            assert!(!refusal.message.contains(CANARY), "{refusal}");
        }
    }
}
