//! The one HTTP client of all drivers: errors keep kind, status and host, and lose URL and body (H109).
//!
//! It follows no redirect, so that no credential goes to a host that nobody named (H117); it asks no proxy that the
//! environment happens to name; and it never repeats a request, since a repeated mint makes a second key (H04).

use keywheel_core::planted;
use std::error::Error as _;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use keywheel_core::secret::SecretValue;
use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::{CallError, Refusal, RefusalKind};
use reqwest::StatusCode;
use reqwest::header::{DATE, HeaderMap, HeaderName, HeaderValue, InvalidHeaderValue, RETRY_AFTER};

/// The most of an answer that is read; no answer that a driver understands is near it.
const LARGEST_BODY: usize = 8 * 1024 * 1024;

/// Returns the client that all drivers share.
///
/// A connection is given up after 10 s and an answer that stalls after 30 s. There is no limit on a whole call: the engine
/// sets that.
pub(crate) fn client() -> reqwest::Client {
    static CLIENT: OnceLock<reqwest::Client> = OnceLock::new();
    CLIENT.get_or_init(build).clone()
}

/// Returns a client that speaks to a socket of this machine. Its answers may take as long as the engine waits.
pub(crate) fn over_socket(socket: &Path) -> reqwest::Client {
    let settings = || settings().unix_socket(socket);
    built(settings)
}

/// Returns a client that trusts whom a file of certificates names, and nobody else.
///
/// # Errors
/// A refusal where the file holds no certificates.
pub(crate) fn trusting(ca: &Path) -> Result<reqwest::Client, Refusal> {
    let no = || {
        let message = format!("`ca`: file `{}` holds no certificates", ca.display());
        Refusal::operator(RefusalKind::Local, message)
    };
    let pem = std::fs::read(ca).map_err(|_| no())?;
    let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|_| no())?;
    if certificates.is_empty() {
        return Err(no());
    }
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = settings().read_timeout(Duration::from_secs(30)).tls_certs_only(certificates);
    client.build().map_err(|_| no())
}

/// Writes a time as APIs over HTTP take it: in seconds since 1970, with three decimals.
pub(crate) fn unix_seconds(at: Timestamp) -> String {
    format!("{}.{:03}", at.millis() / 1_000, at.millis() % 1_000)
}

/// Returns whether what goes to a URL stays unread on its way: HTTPS, or a loopback address.
pub(crate) fn is_private(url: &reqwest::Url) -> bool {
    let loopback = match url.host_str() {
        Some("localhost" | "[::1]") => true,
        Some(host) => host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback()),
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && loopback)
}

/// Returns whether a URL is one at which a cloud tells a machine, a pod or a task who it is. There is no HTTPS there, and what is
/// sent goes no further than the machine.
pub(crate) fn is_of_machine(url: &reqwest::Url) -> bool {
    const NAMED: [&str; 4] =
        ["metadata.google.internal", "[fd00:ec2::254]", "[fd00:ec2::23]", "[fd20:ce::254]"];
    let is_known = |host: &str| {
        let address = host.parse::<std::net::Ipv4Addr>();
        NAMED.contains(&host) || address.is_ok_and(|address| address.is_link_local())
    };
    url.scheme() == "http" && url.host_str().is_some_and(is_known)
}

/// Makes the value of a header that holds a credential; `Debug`, which traces of requests use, does not show it (H110).
pub(crate) fn secret_header(value: &[u8]) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut value = HeaderValue::from_bytes(value)?;
    value.set_sensitive(!planted!("header_shown"));
    Ok(value)
}

/// Makes the value of an `Authorization` header that carries a bearer token.
pub(crate) fn bearer(token: &SecretValue) -> Result<HeaderValue, InvalidHeaderValue> {
    secret_header(SecretValue::new([b"Bearer ", token.expose()].concat()).expose())
}

/// Says what came of a call that got no whole answer; `target` names the other side, such as ``issuer `openai` ``.
///
/// Where no connection came about, nothing was sent and the call is refused. From there on it is unknown.
pub(crate) fn call_error(target: &str, error: &reqwest::Error) -> CallError {
    let host = error
        .url()
        .and_then(reqwest::Url::host_str)
        .map(|host| format!(" at `{host}`"))
        .unwrap_or_default();
    let message = format!("{target}{host}: {}", in_words(error));
    let message = if planted!("error_shows_all") { format!("{error:?}") } else { message };
    if error.is_builder() {
        Refusal::operator(RefusalKind::Unsupported, message).into()
    } else if error.is_connect() || planted!("lost_answer_is_a_refusal") {
        Refusal::retry(RefusalKind::Unavailable, None, message).into()
    } else {
        CallError::Unknown(message)
    }
}

/// Whether a call changes anything on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It only reads, so an answer that says nothing leaves nothing behind.
    Reads,
    /// It changes something, so a 5xx may come from a change that was made or still lands.
    Changes,
}

/// Says what a status means that is not a success, and keeps the wait that the other side asked for.
///
/// A success status that could not be understood is unknown.
pub(crate) fn answer_error(
    target: &str,
    effect: Effect,
    status: StatusCode,
    headers: &HeaderMap,
) -> CallError {
    let message = format!("{target} answered {}{}", status.as_u16(), request_id(headers));
    let no = |kind| Refusal::operator(kind, message.clone()).into();
    let later = |kind| Refusal::retry(kind, retry_after(headers), message.clone()).into();
    match status.as_u16() {
        401 | 403 => no(RefusalKind::Permission),
        404 | 410 if !planted!("gone_is_a_surprise") => no(RefusalKind::NotFound),
        409 | 425 => later(RefusalKind::Unavailable),
        429 => later(RefusalKind::RateLimited),
        408 | 500.. if effect == Effect::Reads => later(RefusalKind::Unavailable),
        300..=407 | 411..=499 => no(RefusalKind::Unsupported),
        _ => CallError::Unknown(message),
    }
}

/// Reads the whole body of an answer, as far as a body is ever that long.
pub(crate) async fn body(
    target: &str,
    mut response: reqwest::Response,
) -> Result<Vec<u8>, CallError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| call_error(target, &e))? {
        if body.len() + chunk.len() > LARGEST_BODY {
            return Err(CallError::Unknown(format!("{target}: the answer is too long")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Returns the id that the other side gave the request, as ` (request 9f2c)`; nothing where it is not an id.
pub(crate) fn request_id(headers: &HeaderMap) -> String {
    let names = ["x-request-id", "request-id", "x-amzn-requestid"];
    let header = names.into_iter().find_map(|name| headers.get(name));
    let id = header.and_then(|id| id.to_str().ok()).unwrap_or_default();
    let fits = (1..=64).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if fits { format!(" (request {id})") } else { String::new() }
}

fn build() -> reqwest::Client {
    built(|| settings().read_timeout(Duration::from_secs(30)))
}

fn settings() -> reqwest::ClientBuilder {
    let redirect = match planted!("redirects_followed") {
        true => reqwest::redirect::Policy::default(),
        false => reqwest::redirect::Policy::none(),
    };
    reqwest::Client::builder()
        .redirect(redirect)
        .retry(reqwest::retry::never())
        .no_proxy()
        .connect_timeout(Duration::from_secs(10))
}

fn built(settings: impl Fn() -> reqwest::ClientBuilder) -> reqwest::Client {
    // An error says that a provider is installed already, which is what is wanted.
    drop(rustls::crypto::ring::default_provider().install_default());
    // A machine without certificates of its own trusts no one: plain HTTP still works, and HTTPS is refused when called.
    settings()
        .build()
        .or_else(|_| settings().tls_certs_only([]).build())
        .expect("a client that needs nothing of the machine is built")
}

/// Returns what the operating system said, where it said anything.
pub(crate) fn io_kind(error: &reqwest::Error) -> Option<std::io::ErrorKind> {
    let mut cause = error.source();
    while let Some(here) = cause {
        if let Some(error) = here.downcast_ref::<std::io::Error>() {
            return Some(error.kind());
        }
        cause = here.source();
    }
    None
}

fn in_words(error: &reqwest::Error) -> &'static str {
    if error.is_builder() {
        "the request could not be built"
    } else if error.is_dns() {
        "the name was not found"
    } else if is_tls(error) {
        "no secure connection: the certificate or protocol was not accepted"
    } else if error.is_connect() && error.is_timeout() {
        "no connection within 10 s"
    } else if error.is_connect() {
        "the connection was refused"
    } else if error.is_timeout() {
        "the answer did not come in time"
    } else if error.is_decode() {
        "the answer could not be read"
    } else {
        "the connection ended before the answer was whole"
    }
}

/// Whether TLS did not come about.
pub(crate) fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(here) = cause {
        if here.is::<rustls::Error>() {
            return true;
        }
        // The `source` of an I/O error leaves out what it wraps.
        let wrapped = here.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = wrapped.map(|wrapped| wrapped as &dyn std::error::Error).or_else(|| here.source());
    }
    false
}

/// Reads the wait that an answer asks for: `retry-after-ms`, or `retry-after` in seconds or as a date.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Span> {
    if planted!("wait_ignored") {
        return None;
    }
    let text =
        |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(millis) =
        text(HeaderName::from_static("retry-after-ms")).and_then(|text| text.parse::<f64>().ok())
    {
        return whole_millis(millis);
    }
    let after = text(RETRY_AFTER)?;
    if let Ok(seconds) = after.parse::<f64>() {
        return whole_millis(seconds * 1_000.0);
    }
    // Both dates are the other side's, so that a difference between the clocks does not matter (H32).
    let date = |text: &str| jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok();
    let now = text(DATE).and_then(date).unwrap_or_else(jiff::Timestamp::now);
    let wait = date(after)?.as_millisecond().saturating_sub(now.as_millisecond());
    Some(Span::millis(u64::try_from(wait).unwrap_or(0)))
}

fn whole_millis(millis: f64) -> Option<Span> {
    // The cast saturates, so an absurd wait stays a long one.
    (millis >= 0.0).then(|| Span::millis(millis.ceil() as u64))
}

#[cfg(test)]
mod tests {
    use keywheel_driver::Remedy;
    use reqwest::header::AUTHORIZATION;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const CANARY: &str = "kwcanary-5e1f";

    /// Answers every connection with these bytes and closes it; nothing at all where there are none.
    async fn server(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    assert!(stream.read(&mut request).await.unwrap() > 0);
                    stream.write_all(answer.as_bytes()).await.unwrap();
                });
            }
        });
        format!("http://{address}")
    }

    async fn failure(base: &str) -> reqwest::Error {
        let url = format!(
            "{}/{CANARY}?key={CANARY}#{CANARY}",
            base.replace("://", &format!("://{CANARY}:{CANARY}@"))
        );
        let asked =
            async { client().get(url).bearer_auth(CANARY).send().await?.json::<u32>().await };
        asked.await.expect_err("every server here fails")
    }

    fn refusal(error: CallError) -> Refusal {
        match error {
            CallError::Refused(refusal) => refusal,
            CallError::Unknown(message) => panic!("unknown: {message}"),
        }
    }

    #[tokio::test]
    async fn h109_no_error_holds_the_url_or_the_body() {
        let refused = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            format!("http://{}", listener.local_addr().unwrap())
        };
        let plain = server("HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\ncanary-5e1f").await;
        let secure = plain.replace("http:", "https:");
        let cut = server("").await;
        let half = server("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\ncanary-5e1f").await;
        let garbage = server("kwcanary-5e1f kwcanary-5e1f\r\n\r\n").await;
        let unknown_name = "http://keywheel.invalid".to_owned();
        for base in
            [refused, plain, secure, cut, half, garbage, unknown_name, "ftp://nowhere".into()]
        {
            let error = call_error("issuer `twin`", &failure(&base).await);
            assert!(!format!("{error} {error:?}").contains(CANARY), "{error}");
        }
    }

    #[test]
    fn h110_a_request_that_is_printed_does_not_show_its_credential() {
        let value = secret_header(format!("Bearer {CANARY}").as_bytes()).unwrap();
        let request = client().get("http://127.0.0.1").header(AUTHORIZATION, value);
        let request = request.build().unwrap();
        assert_eq!(request.headers()[AUTHORIZATION], format!("Bearer {CANARY}"));
        let printed = format!("{request:?} {:?}", request.headers());
        assert!(!printed.contains(CANARY), "{printed}");
    }

    #[tokio::test]
    async fn what_was_never_sent_is_refused_and_the_rest_is_unknown() {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let never =
            refusal(call_error("issuer `twin`", &failure(&format!("http://{address}")).await));
        assert_eq!(never.kind, RefusalKind::Unavailable);
        assert_eq!(never.remedy, Remedy::Retry { after: None });
        assert_eq!(never.message, "issuer `twin` at `127.0.0.1`: the connection was refused");

        let secure = server("HTTP/1.1 200 OK\r\n\r\n").await.replace("http:", "https:");
        let never = refusal(call_error("issuer `twin`", &failure(&secure).await));
        assert!(never.message.ends_with("the certificate or protocol was not accepted"), "{never}");

        for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nhalf"] {
            let error = call_error("issuer `twin`", &failure(&server(answer).await).await);
            assert!(matches!(error, CallError::Unknown(_)), "{error:?}");
        }
    }

    #[tokio::test]
    async fn h117_no_credential_follows_a_redirect() {
        let base = server("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/elsewhere\r\ncontent-length: 0\r\n\r\n").await;
        let response = client().get(&base).bearer_auth(CANARY).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 302);
        let error = refusal(answer_error(
            "issuer `twin`",
            Effect::Reads,
            response.status(),
            response.headers(),
        ));
        assert_eq!((error.kind, error.remedy), (RefusalKind::Unsupported, Remedy::Operator));
    }

    #[test]
    fn h96_each_status_has_one_meaning() {
        use Effect::{Changes, Reads};
        let judge = |status: u16, effect| {
            answer_error("it", effect, StatusCode::from_u16(status).unwrap(), &HeaderMap::new())
        };
        for effect in [Reads, Changes] {
            for (status, kind) in [
                (400, RefusalKind::Unsupported),
                (401, RefusalKind::Permission),
                (403, RefusalKind::Permission),
                (404, RefusalKind::NotFound),
                (409, RefusalKind::Unavailable),
                (410, RefusalKind::NotFound),
                (422, RefusalKind::Unsupported),
                (429, RefusalKind::RateLimited),
            ] {
                assert_eq!(refusal(judge(status, effect)).kind, kind, "{status}");
            }
            assert_eq!(judge(200, effect), CallError::Unknown("it answered 200".into()));
        }
        for status in [408, 500, 502, 503, 504, 529] {
            assert_eq!(refusal(judge(status, Reads)).kind, RefusalKind::Unavailable, "{status}");
            assert!(matches!(judge(status, Changes), CallError::Unknown(_)), "{status}");
        }
    }

    #[test]
    fn h97_the_wait_that_was_asked_for_is_kept() {
        let wait = |headers: &[(&'static str, &'static str)]| {
            let headers = headers.iter().map(|(name, value)| {
                (HeaderName::from_static(name), reqwest::header::HeaderValue::from_static(value))
            });
            retry_after(&headers.collect())
        };
        assert_eq!(wait(&[]), None);
        assert_eq!(wait(&[("retry-after", "3600")]), Some(Span::hours(1)));
        assert_eq!(wait(&[("retry-after", "0.5")]), Some(Span::millis(500)));
        assert_eq!(
            wait(&[("retry-after", "1"), ("retry-after-ms", "250")]),
            Some(Span::millis(250))
        );
        let dates = [
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("retry-after", "Sun, 06 Nov 1994 08:51:37 GMT"),
        ];
        assert_eq!(wait(&dates), Some(Span::minutes(2)));
        assert_eq!(wait(&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")]), Some(Span::ZERO));
        assert_eq!(wait(&[("retry-after", "-1")]), None);
        assert_eq!(wait(&[("retry-after", "soon")]), None);
    }

    #[tokio::test]
    async fn a_body_without_end_is_not_read_to_its_end() {
        let endless = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", endless.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = endless.accept().await.unwrap();
            assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            while stream.write_all(&[b'x'; 65_536]).await.is_ok() {}
        });
        let response = client().get(&base).send().await.unwrap();
        let error = body("it", response).await.expect_err("the body has no end");
        assert_eq!(error, CallError::Unknown("it: the answer is too long".into()));
    }

    #[test]
    fn only_an_id_is_taken_for_a_request_id() {
        let shown = |id: &'static str| {
            request_id(&HeaderMap::from_iter([(
                HeaderName::from_static("x-request-id"),
                reqwest::header::HeaderValue::from_static(id),
            )]))
        };
        assert_eq!(shown("req_9f2c"), " (request req_9f2c)");
        assert_eq!(shown("see https://elsewhere"), "");
        assert_eq!(shown(""), "");
    }
}
