//! `prometheus_query`: one number of Prometheus within limits, or no worse than before the rotation.
//!
//! Prometheus keeps the past, so the number of before is asked for each time, at the time at which the rotation began. A query
//! that finds nothing, or something that is no number, proves nothing and is red: `… or vector(0)` says that nothing means none.
//!
//! What Prometheus writes beside the number, such as the text of an error, may repeat the query and is not told.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::duration::Duration;
use keywheel_driver::probe::{Asked, Health, Probe};
use keywheel_driver::{CallError, Refusal, RefusalKind, SecretReference};
use reqwest::{StatusCode, Url};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Number;

use super::http::{Headers, plain_url};
use crate::http::{self, Effect};
use crate::{Build, Context};

const TARGET: &str = "Prometheus";

/// The kinds of errors that Prometheus documents; any other text may hold anything.
const ERRORS: [&str; 8] = [
    "bad_data",
    "canceled",
    "execution",
    "internal",
    "not_acceptable",
    "not_found",
    "timeout",
    "unavailable",
];

/// A query to Prometheus whose one number stays within limits, or is no worse than before the rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where Prometheus is, without a user name or password: `http://prometheus:9090`.
    pub url: String,
    /// The query; it gives one number.
    pub query: String,
    /// The most that is green.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Number>,
    /// The least that is green.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<Number>,
    /// How the number compares with the one of when the rotation began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Before>,
    /// Headers whose values are secret, by name; read anew each time.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub header: BTreeMap<String, SecretReference>,
    /// How long an answer may take.
    #[serde(default = "default_within")]
    pub within: Duration,
}

/// How a number compares with the one of before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Before {
    /// How much worse is still green.
    pub tolerance: Number,
    /// In which direction it becomes worse.
    #[serde(default)]
    pub worse: Worse,
}

/// In which direction a number becomes worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Worse {
    /// As errors and delays do.
    #[default]
    Higher,
    /// As a share of successes does.
    Lower,
}

fn default_within() -> Duration {
    Span::seconds(10).into()
}

impl Build for Config {
    type Driver = dyn Probe;

    fn build(&self, _context: &Context) -> Result<Arc<dyn Probe>, Refusal> {
        if self.query.trim().is_empty() {
            return Err(unsupported("`query` is empty"));
        }
        if self.max.is_none() && self.min.is_none() && self.before.is_none() {
            return Err(unsupported("one of `max`, `min` and `before` says what is green"));
        }
        if self.before.as_ref().is_some_and(|before| float(&before.tolerance) < 0.0) {
            return Err(unsupported("`tolerance` must not be negative"));
        }
        let mut url = plain_url("url", &self.url)?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(unsupported("`url` must have no query; that stands in `query`"));
        }
        url.path_segments_mut()
            .expect("`plain_url` took HTTP and HTTPS only")
            .pop_if_empty()
            .extend(["api", "v1", "query"]);
        let headers = Headers::of(&self.header)?;
        Ok(Arc::new(PrometheusQuery { url, headers, config: self.clone() }))
    }
}

struct PrometheusQuery {
    url: Url,
    headers: Headers,
    config: Config,
}

#[async_trait]
impl Probe for PrometheusQuery {
    async fn ask(&self, asked: &Asked) -> Result<Health, CallError> {
        let now = match self.number(None).await? {
            Found::Number(now) => now,
            Found::Nothing(why) => return Ok(Health::Red(format!("the query finds {why}"))),
        };
        if let Some(why) = self.beyond(now) {
            return Ok(Health::Red(why));
        }
        let Some(before) = &self.config.before else { return Ok(Health::Green) };
        Ok(match self.number(Some(asked.began_at)).await? {
            Found::Nothing(why) => Health::Red(format!(
                "the query finds {why} at the time before the rotation, and nothing can be compared"
            )),
            Found::Number(then) if is_worse(now, then, before) => Health::Red(format!(
                "the query gives {now}, and gave {then} before the rotation, which is more than {} worse",
                before.tolerance
            )),
            Found::Number(_) => Health::Green,
        })
    }
}

/// What a query found.
enum Found {
    Number(f64),
    /// No number, in words.
    Nothing(&'static str),
}

impl PrometheusQuery {
    fn beyond(&self, now: f64) -> Option<String> {
        let Config { max, min, .. } = &self.config;
        let above = max.as_ref().filter(|max| now > float(max));
        let below = min.as_ref().filter(|min| now < float(min));
        above
            .map(|max| format!("the query gives {now}, which is above {max}"))
            .or_else(|| below.map(|min| format!("the query gives {now}, which is below {min}")))
    }

    /// Asks for the number at a time; now by Prometheus' own clock, where none is given.
    async fn number(&self, at: Option<Timestamp>) -> Result<Found, CallError> {
        let headers = self.headers.resolve().await?;
        let mut query = vec![("query", self.config.query.clone())];
        query.extend(at.map(|at| ("time", http::unix_seconds(at))));
        let within = self.config.within.span();
        let request = http::client().get(self.url.clone()).query(&query);
        let response = request.headers(headers).timeout(within.into()).send().await;
        // What was asked changes nothing, so no answer leaves nothing behind.
        let response = response.map_err(|error| {
            let why = http::call_error(TARGET, &error.without_url()).to_string();
            Refusal::retry(RefusalKind::Unavailable, None, why)
        })?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = http::body(TARGET, response).await?;
        let answer: Option<Answer> = serde_json::from_slice(&body).ok();
        match (status, answer) {
            (StatusCode::OK, Some(Answer { status, data: Some(data), .. }))
                if status == "success" =>
            {
                found(data)
            }
            (_, Some(Answer { error_type: Some(kind), .. })) if ERRORS.contains(&kind.as_str()) => {
                Err(failed(&kind).into())
            }
            (StatusCode::OK, _) => {
                Err(unsupported("Prometheus answered what this version cannot read").into())
            }
            (status, _) => Err(http::answer_error(TARGET, Effect::Reads, status, &headers)),
        }
    }
}

fn found(data: Data) -> Result<Found, CallError> {
    let value = match data {
        Data::Scalar(value) => value,
        Data::Vector(series) => match <[Series; 1]>::try_from(series) {
            Ok([one]) => one.value,
            Err(none) if none.is_empty() => return Ok(Found::Nothing("nothing")),
            Err(several) => {
                let why = format!("the query gives {} numbers, and not one", several.len());
                return Err(unsupported(&why).into());
            }
        },
        Data::Other => {
            return Err(unsupported("the query gives something else than a number").into());
        }
    };
    Ok(match value.1.parse::<f64>() {
        Ok(number) if !number.is_nan() => Found::Number(number),
        _ => Found::Nothing("what is not a number"),
    })
}

/// A query that cannot be right stays wrong; the others may be answered later.
fn failed(kind: &str) -> Refusal {
    let message = format!("{TARGET} answered with the error `{kind}`");
    match kind {
        "bad_data" | "execution" | "not_found" | "not_acceptable" => {
            Refusal::operator(RefusalKind::Unsupported, message)
        }
        _ => Refusal::retry(RefusalKind::Unavailable, None, message),
    }
}

fn is_worse(now: f64, then: f64, before: &Before) -> bool {
    let worse_by = match before.worse {
        Worse::Higher => now - then,
        Worse::Lower => then - now,
    };
    // Infinite before and after is as bad as it was.
    worse_by > float(&before.tolerance)
}

fn float(number: &Number) -> f64 {
    number.as_f64().unwrap_or(f64::NAN)
}

fn unsupported(message: &str) -> Refusal {
    Refusal::operator(RefusalKind::Unsupported, message)
}

#[derive(Deserialize)]
struct Answer {
    status: String,
    #[serde(rename = "errorType")]
    error_type: Option<String>,
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "snake_case")]
enum Data {
    Scalar(Value),
    Vector(Vec<Series>),
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Series {
    value: Value,
}

/// A time in seconds, and a number as text.
#[derive(Deserialize)]
struct Value(#[expect(dead_code, reason = "the time is the one that was asked for")] f64, String);

#[cfg(test)]
mod tests {
    use keywheel_driver::Remedy;
    use keywheel_driver::conformance::canary;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const ASKED: Asked = Asked {
        began_at: Timestamp::from_millis(1_769_850_000_250),
        now: Timestamp::from_millis(1_769_850_600_000),
    };

    /// Answers as Prometheus' documentation shows: one body to a query without a time, and one to a query at the time at which
    /// the rotation began.
    async fn serve(status: &'static str, now: String, then: String) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/prometheus/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let query = "GET /prometheus/api/v1/query?query=sum%28up%29";
                let body = if request.starts_with(&format!("{query}&time=1769850000.250 ")) {
                    &then
                } else if request.starts_with(&format!("{query} ")) {
                    &now
                } else {
                    "{}"
                };
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        base
    }

    fn vector(numbers: &[&str]) -> String {
        let series = |number: &&str| json!({ "metric": { "__name__": "up", "job": "shop" }, "value": [1_769_850_600.781, number] });
        let result: Vec<_> = numbers.iter().map(series).collect();
        json!({ "status": "success", "data": { "resultType": "vector", "result": result } })
            .to_string()
    }

    fn build(url: &str, changes: serde_json::Value) -> Result<Arc<dyn Probe>, Refusal> {
        let mut config = json!({ "url": url, "query": "sum(up)", "within": "60s" });
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        serde_json::from_value::<Config>(config).unwrap().build(&Context::at("/"))
    }

    async fn ask(now: &str, then: &str, changes: serde_json::Value) -> Result<Health, CallError> {
        let base = serve("200 OK", now.into(), then.into()).await;
        build(&base, changes).unwrap().ask(&ASKED).await
    }

    async fn now(body: &str) -> Result<Health, CallError> {
        ask(body, "{}", json!({ "max": 1 })).await
    }

    fn red(why: &str) -> Result<Health, CallError> {
        Ok(Health::Red(why.into()))
    }

    #[tokio::test]
    async fn a_number_stays_within_its_limits() {
        for (number, limits, health) in [
            ("1", json!({ "max": 1 }), Ok(Health::Green)),
            ("0.011", json!({ "max": 0.01 }), red("the query gives 0.011, which is above 0.01")),
            ("0.99", json!({ "min": 0.99 }), Ok(Health::Green)),
            (
                "0.5",
                json!({ "min": 0.99, "max": 1 }),
                red("the query gives 0.5, which is below 0.99"),
            ),
            ("+Inf", json!({ "max": 1e300 }), red("the query gives inf, which is above 1e+300")),
        ] {
            assert_eq!(ask(&vector(&[number]), "{}", limits).await, health, "{number}");
        }
        let scalar = json!({ "status": "success", "data": { "resultType": "scalar", "result": [1.5, "2"] }, "warnings": ["stale"], "infos": ["x"] });
        assert_eq!(now(&scalar.to_string()).await, red("the query gives 2, which is above 1"));
    }

    #[tokio::test]
    async fn a_number_is_no_worse_than_before_the_rotation() {
        let higher = json!({ "before": { "tolerance": 0.5 } });
        let lower = json!({ "before": { "tolerance": 0, "worse": "lower" } });
        let worse =
            "the query gives 3, and gave 2 before the rotation, which is more than 0.5 worse";
        for (now, then, how, health) in [
            ("2.5", "2", &higher, Ok(Health::Green)),
            ("3", "2", &higher, red(worse)),
            ("0", "2", &higher, Ok(Health::Green)),
            ("2", "2", &lower, Ok(Health::Green)),
            (
                "1",
                "2",
                &lower,
                red(
                    "the query gives 1, and gave 2 before the rotation, which is more than 0 worse",
                ),
            ),
        ] {
            let health_now = ask(&vector(&[now]), &vector(&[then]), how.clone()).await;
            assert_eq!(health_now, health, "{now} after {then}");
        }
        let unknown =
            "the query finds nothing at the time before the rotation, and nothing can be compared";
        assert_eq!(ask(&vector(&["1"]), &vector(&[]), higher).await, red(unknown));
    }

    #[tokio::test]
    async fn what_is_no_number_is_not_green() {
        assert_eq!(now(&vector(&[])).await, red("the query finds nothing"));
        assert_eq!(now(&vector(&["NaN"])).await, red("the query finds what is not a number"));
        let matrix =
            json!({ "status": "success", "data": { "resultType": "matrix", "result": [] } });
        for body in [vector(&["0", "0"]), matrix.to_string(), "{}".into(), "<html>".into()] {
            let answer = now(&body).await;
            assert!(
                matches!(&answer, Err(CallError::Refused(refusal)) if refusal.remedy == Remedy::Operator),
                "{answer:?}"
            );
        }
    }

    #[tokio::test]
    async fn h115_an_error_is_told_by_its_kind_only() {
        let canary = canary("prometheus");
        for (status, kind, told, retried) in [
            ("400 Bad Request", "bad_data", "error `bad_data`", false),
            ("422 Unprocessable Entity", "execution", "error `execution`", false),
            ("503 Service Unavailable", "timeout", "error `timeout`", true),
            ("503 Service Unavailable", canary.as_str(), "answered 503", true),
            ("401 Unauthorized", "", "answered 401", false),
        ] {
            let body = json!({ "status": "error", "errorType": kind, "error": format!("parse error near {canary}") });
            let base = serve(status, body.to_string(), String::new()).await;
            let answer = build(&base, json!({ "max": 1 })).unwrap().ask(&ASKED).await;
            let Err(CallError::Refused(refusal)) = answer else { panic!("{answer:?}") };
            assert!(
                refusal.message.ends_with(told) && !refusal.message.contains(&canary),
                "{refusal}"
            );
            assert_eq!(matches!(refusal.remedy, Remedy::Retry { .. }), retried, "{refusal}");
        }
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let nobody = build(&format!("http://{closed}/"), json!({ "max": 1 })).unwrap();
        let answer = nobody.ask(&ASKED).await;
        assert!(
            matches!(&answer, Err(CallError::Refused(refusal)) if matches!(refusal.remedy, Remedy::Retry { .. })),
            "{answer:?}"
        );
    }

    #[test]
    fn settings_that_prove_nothing_are_refused() {
        let at = "http://127.0.0.1:9090";
        for (url, changes) in [
            (at, json!({})),
            (at, json!({ "max": 1, "query": " " })),
            (at, json!({ "before": { "tolerance": -1 } })),
            ("http://u:p@127.0.0.1:9090", json!({ "max": 1 })),
            ("http://127.0.0.1:9090?query=up", json!({ "max": 1 })),
            ("127.0.0.1:9090", json!({ "max": 1 })),
            (at, json!({ "max": 1, "header": { "a b": { "env": "X" } } })),
        ] {
            assert!(build(url, changes.clone()).is_err(), "{url} {changes}");
        }
    }
}
