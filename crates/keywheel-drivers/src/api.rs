//! JSON over HTTP, as providers speak it: one request, one whole answer, and words for whatever else comes.
//!
//! Nothing here is repeated, and no text of an answer gets into a message: it may hold a key (H115). A name that a person must
//! read goes through `plain`.

use keywheel_core::planted;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::Identity;
use keywheel_driver::{CallError, Refusal, RefusalKind, Remedy};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::http::{self, Effect};

/// The longest list that is read, in pages.
pub(crate) const MOST_PAGES: usize = 1_000;

/// What a body of JSON is called.
pub(crate) const JSON: &str = "application/json";

/// How often a new key is looked for before it counts as one that does not show.
const LOOKS: u64 = 10;

/// The longest time that this takes.
const LOOKING: Span = Span::seconds(10);

/// The API of one provider.
pub(crate) struct Api {
    target: &'static str,
    base: Url,
    http: reqwest::Client,
}

impl Api {
    /// `target` names the other side, such as ``issuer `openai` ``; `base` is where its API begins.
    ///
    /// # Errors
    /// A refusal where a credential cannot be sent to that address; none ever travels in the open.
    pub(crate) fn new(target: &'static str, base: &str) -> Result<Self, Refusal> {
        Self::named(target, "base_url", base)
    }

    /// The same, where the configuration calls the address `key`.
    ///
    /// # Errors
    /// Those of [`Api::new`].
    pub(crate) fn named(target: &'static str, key: &str, base: &str) -> Result<Self, Refusal> {
        Self::at(target, key, base, http::is_private)
    }

    /// The same for who tells a machine what it is: there is no HTTPS there, and nothing leaves the machine.
    ///
    /// # Errors
    /// Those of [`Api::new`].
    pub(crate) fn of_machine(target: &'static str, key: &str, base: &str) -> Result<Self, Refusal> {
        Self::at(target, key, base, |url| http::is_private(url) || http::is_of_machine(url))
    }

    fn at(
        target: &'static str,
        key: &str,
        base: &str,
        is_private: impl Fn(&Url) -> bool,
    ) -> Result<Self, Refusal> {
        let no = |why: &str| unsupported(&format!("`{key}` {why}"));
        let base = Url::parse(base).map_err(|_| no("is not a URL"))?;
        let plain = base.username().is_empty()
            && base.password().is_none()
            && base.query().is_none()
            && base.fragment().is_none();
        match (is_private(&base), plain) {
            (false, _) => Err(no("must begin with `https://`, or name a loopback address")),
            (_, false) => Err(no("must have no user, query or fragment")),
            _ => Ok(Self { target, base, http: http::client() }),
        }
    }

    /// Returns the address of a path below the base; each part is encoded as it needs.
    pub(crate) fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .expect("`new` took HTTP and HTTPS only")
            .pop_if_empty()
            .extend(path);
        url
    }

    /// Makes the header of a bearer token; `what` names the credential for people.
    pub(crate) fn bearer(&self, value: &SecretValue, what: &str) -> Result<HeaderMap, Refusal> {
        let token = SecretValue::new([b"Bearer ", value.expose()].concat());
        self.header(AUTHORIZATION, &token, what)
    }

    /// Makes a header that holds a credential alone; `what` names the credential for people.
    pub(crate) fn header(
        &self,
        name: HeaderName,
        value: &SecretValue,
        what: &str,
    ) -> Result<HeaderMap, Refusal> {
        let no = |_| unsupported(&format!("the {what} holds a character that no header can"));
        let header = http::secret_header(value.expose()).map_err(no)?;
        Ok(HeaderMap::from_iter([(name, header)]))
    }

    /// Asks once. An answer that is not whole is an error only where its status promised something.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: Url,
        headers: &HeaderMap,
        body: Option<&Value>,
    ) -> Result<Answer, CallError> {
        let mut request = self.http.request(method, url).headers(headers.clone());
        if let Some(body) = body {
            request = request.json(body);
        }
        self.answer(request).await
    }

    /// Asks once with a body of this type that holds a value.
    pub(crate) async fn send_secret(
        &self,
        method: Method,
        url: Url,
        headers: &HeaderMap,
        (kind, body): (&'static str, &SecretValue),
    ) -> Result<Answer, CallError> {
        let request = self.http.request(method, url).headers(headers.clone());
        let request = request.header(CONTENT_TYPE, kind);
        self.answer(request.body(body.expose().to_vec())).await
    }

    /// Returns the address of a further page, if it is one of this API: nothing else is sent the credential (H117).
    pub(crate) fn page(&self, address: &str) -> Option<Url> {
        let url = Url::parse(address).ok()?;
        let is_ours = url.origin() == self.base.origin() || planted!("page_of_another_host");
        is_ours.then_some(url)
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<Answer, CallError> {
        let target = self.target;
        let response = request.send().await.map_err(|e| http::call_error(target, &e))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = match http::body(target, response).await {
            Err(error) if status.is_success() => return Err(error),
            body => SecretValue::new(body.unwrap_or_default()),
        };
        Ok(Answer { target, status, headers, body })
    }

    /// Reads one thing.
    pub(crate) async fn read<T: DeserializeOwned>(
        &self,
        headers: &HeaderMap,
        url: Url,
    ) -> Result<T, CallError> {
        let answer = self.send(Method::GET, url, headers, None).await?;
        if answer.status.is_success() { answer.decode() } else { Err(answer.error(Effect::Reads)) }
    }

    /// Reads one thing, or none where it is not there.
    pub(crate) async fn find<T: DeserializeOwned>(
        &self,
        headers: &HeaderMap,
        url: &Url,
    ) -> Result<Option<T>, CallError> {
        match self.read(headers, url.clone()).await {
            Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::NotFound => Ok(None),
            found => found.map(Some),
        }
    }

    /// Looks at the key that the answer to a mint names, before anybody goes by that name: whatever is believed to be the new
    /// version is ended with it one day, and all else under its label is ended at once (H92). `is_new` says of a key whether it
    /// has the label and the ends of the value.
    ///
    /// # Errors
    /// Unknown, whatever it is: a key was made, and is found by its label.
    pub(crate) async fn recognise<T, F>(
        &self,
        label: &str,
        settle_for: Span,
        look: impl Fn() -> F,
        is_new: impl Fn(&T) -> bool,
    ) -> Result<(), CallError>
    where
        F: Future<Output = Result<Option<T>, CallError>>,
    {
        if planted!("answer_to_a_mint_is_believed") {
            return Ok(());
        }
        let mut why = String::new();
        for time in 0..LOOKS {
            if time > 0 {
                tokio::time::sleep(settle_for.min(LOOKING).part(1, LOOKS).into()).await;
            }
            why = match look().await {
                Ok(Some(key)) if is_new(&key) => return Ok(()),
                Ok(Some(_)) => {
                    return Err(self.made_another(label, "the id is that of another one"));
                }
                Ok(None) => "it has none with that id".into(),
                Err(error) if may_pass(&error) && !is_busy(&error) => self.reason(&error),
                Err(error) => return Err(self.made_another(label, &self.reason(&error))),
            };
        }
        Err(self.made_another(label, &why))
    }

    fn made_another(&self, label: &str, why: &str) -> CallError {
        CallError::Unknown(format!(
            "{} made a key `{label}`, and the id that it answered could not be confirmed, so that nothing goes by it: {why}",
            self.target
        ))
    }

    /// Why a look failed, where a key was made before it.
    fn reason(&self, error: &CallError) -> String {
        if *error == self.shows_another() { self.another() } else { error.to_string() }
    }

    /// What it is that a look shows another key: nothing was changed, and nothing is changed by what it says (H92).
    pub(crate) fn shows_another(&self) -> CallError {
        let message = format!(
            "{}, so that nothing was changed: does something on the way mix up answers?",
            self.another()
        );
        Refusal::retry(RefusalKind::Unavailable, None, message).into()
    }

    fn another(&self) -> String {
        format!("{} showed another key than it was asked for", self.target)
    }

    /// What it is that a change is answered with another key.
    pub(crate) fn changed_another(&self) -> CallError {
        CallError::Unknown(format!(
            "{} answered a change with another key than was to be changed, so that neither is known to be changed",
            self.target
        ))
    }

    /// What a list is whose last page does not come.
    pub(crate) fn endless(&self, what: &str) -> CallError {
        CallError::Unknown(format!("{}: {what} does not come to its end", self.target))
    }
}

/// Returns whether a read that failed may succeed within the time that somebody waits. Where the issuer asks for a longer wait,
/// the same call asks no more (H97); what comes after the call does not know of that wait.
pub(crate) fn may_pass(error: &CallError) -> bool {
    match error {
        CallError::Unknown(_) => true,
        CallError::Refused(refusal) => matches!(
            refusal.remedy,
            Remedy::Retry { after } if after.is_none_or(|after| after <= Span::seconds(1))
        ),
    }
}

/// Returns whether the issuer is asked too often, and does not say for how long.
fn is_busy(error: &CallError) -> bool {
    matches!(
        error,
        CallError::Refused(Refusal {
            kind: RefusalKind::RateLimited,
            remedy: Remedy::Retry { after: None },
            ..
        })
    )
}

/// Returns whether an answer is about what was asked for.
pub(crate) fn is_about(named: &str, asked: &str) -> bool {
    named == asked || planted!("answer_about_another_is_believed")
}

/// An answer, whole or with an empty body. The body may hold a key and is shown to no one.
pub(crate) struct Answer {
    target: &'static str,
    /// Its status.
    pub(crate) status: StatusCode,
    /// Its headers.
    pub(crate) headers: HeaderMap,
    /// Its body.
    pub(crate) body: SecretValue,
}

impl Answer {
    /// Reads the body.
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Result<T, CallError> {
        serde_json::from_slice(self.body.expose()).map_err(|_| self.not_understood())
    }

    /// What a success is that does not say what was done.
    pub(crate) fn not_understood(&self) -> CallError {
        let request = http::request_id(&self.headers);
        CallError::Unknown(format!(
            "{} answered {} and something else than expected{request}",
            self.target,
            self.status.as_u16()
        ))
    }

    /// What an answer is that is no success.
    pub(crate) fn error(&self, effect: Effect) -> CallError {
        match http::answer_error(self.target, effect, self.status, &self.headers) {
            CallError::Refused(mut refusal) if planted!("body_repeated") => {
                refusal.message.push_str(&String::from_utf8_lossy(self.body.expose()));
                refusal.into()
            }
            error => error,
        }
    }

    /// What an answer is, in a few words: its status and the id of the request.
    pub(crate) fn in_words(&self) -> String {
        format!("it answered {}{}", self.status.as_u16(), http::request_id(&self.headers))
    }
}

/// A value on its way out of an answer.
pub(crate) struct Shown(pub(crate) SecretValue);

impl<'de> Deserialize<'de> for Shown {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(SecretValue::new(text.into_bytes())))
    }
}

/// Returns whether a redacted value shows the ends of a secret one.
pub(crate) fn shows_secret(redacted: &str, value: &SecretValue) -> bool {
    std::str::from_utf8(value.expose()).is_ok_and(|value| shows(redacted, value))
}

/// Returns whether a redacted value shows the ends of a value, and enough of them to tell it from others.
pub(crate) fn shows(redacted: &str, value: &str) -> bool {
    let hidden = |c: char| matches!(c, '*' | '.' | '…');
    let (Some(start), Some(end)) = (redacted.split(hidden).next(), redacted.rsplit(hidden).next())
    else {
        return false;
    };
    let tells = start.len() >= 3 && end.len() >= 3 && start.len() + end.len() < redacted.len();
    tells
        && value.len() >= start.len() + end.len()
        && value.starts_with(start)
        && value.ends_with(end)
}

/// How values of keys begin that providers make.
const BEGINNINGS: [&str; 8] = ["sk-", "sk_", "phx_", "phs_", "pha_", "sntry", "ghp_", "eyJ"];

/// Repeats a name or an id out of an answer: in one line, 100 characters at most, and with `…` for what may be a key (H115).
pub(crate) fn plain(text: &str) -> String {
    let fits =
        |c: &char| c.is_alphanumeric() || *c == ' ' || (c.is_ascii_punctuation() && *c != '`');
    let line: String = text.chars().filter(fits).collect();
    let shown = |word| if may_be_a_key(word) && !planted!("names_repeated") { "…" } else { word };
    let words: Vec<&str> = line.split(' ').map(shown).collect();
    words.join(" ").chars().take(100).collect()
}

/// Ids are shorter, or have separators.
fn may_be_a_key(word: &str) -> bool {
    let begins = |part: &str| BEGINNINGS.iter().any(|beginning| part.starts_with(beginning));
    let is_mixed = |run: &str| {
        run.len() >= 40
            && run.bytes().any(|b| b.is_ascii_digit())
            && run.bytes().any(|b| b.is_ascii_alphabetic())
    };
    let parts = || word.split(|c: char| !(c.is_alphanumeric() || "-_.".contains(c)));
    parts().any(|part| part.len() >= 16 && begins(part))
        || word.split(|c: char| !c.is_alphanumeric()).any(is_mixed)
}

/// Tells which key a credential is, of those whose ends the list shows to be the credential's; `how` says so for people.
pub(crate) fn known_by_ends(found: &[(IssuedId, Option<Timestamp>)], how: &str) -> Identity {
    match found {
        [] => Identity::Unknown,
        [(issued, created_at)] => {
            Identity::Known { issued: issued.clone(), how: how.to_owned(), created_at: *created_at }
        }
        several => Identity::Candidates(several.iter().map(|(issued, _)| issued.clone()).collect()),
    }
}

/// Returns the time by this machine's clock.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
}

/// Reads a time in seconds since 1970.
pub(crate) fn instant(seconds: i64) -> Timestamp {
    Timestamp::from_millis(seconds.saturating_mul(1_000))
}

/// Reads a time as most APIs write it: RFC 3339.
pub(crate) fn moment(text: &str) -> Option<Timestamp> {
    let at: jiff::Timestamp = text.parse().ok()?;
    Some(Timestamp::from_millis(at.as_millisecond()))
}

/// What a driver cannot do as it is configured, or was asked.
pub(crate) fn unsupported(message: &str) -> Refusal {
    Refusal::operator(RefusalKind::Unsupported, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often a new key is looked for where every look ends so, and what is said in the end.
    async fn looked_for(error: impl Fn(&Api) -> CallError) -> (u64, String) {
        let api = Api::new("issuer `x`", "http://127.0.0.1:1").unwrap();
        let looks = std::cell::Cell::new(0);
        let look = || {
            looks.set(looks.get() + 1);
            std::future::ready(Err::<Option<()>, _>(error(&api)))
        };
        let recognised = api.recognise("kw-1-1", Span::ZERO, look, |()| true).await;
        (looks.get(), recognised.unwrap_err().to_string())
    }

    #[tokio::test]
    async fn h97_a_new_key_is_looked_for_again_unless_the_issuer_is_asked_too_often() {
        let later = |kind, after| move |_: &Api| Refusal::retry(kind, after, "later").into();
        let (busy, away) = (RefusalKind::RateLimited, RefusalKind::Unavailable);
        for (kind, after, looks) in [
            (busy, None, 1),
            (busy, Some(Span::seconds(1)), LOOKS),
            (busy, Some(Span::seconds(2)), 1),
            (away, None, LOOKS),
            (away, Some(Span::seconds(2)), 1),
        ] {
            assert_eq!(looked_for(later(kind, after)).await.0, looks, "{kind:?} {after:?}");
        }
    }

    #[tokio::test]
    async fn a_key_that_was_made_is_not_said_to_have_changed_nothing() {
        let (looks, said) = looked_for(Api::shows_another).await;
        assert_eq!(looks, LOOKS);
        assert!(said.ends_with(": issuer `x` showed another key than it was asked for"), "{said}");
    }

    #[test]
    fn h115_a_name_of_an_answer_is_repeated_without_what_may_be_a_key() {
        for name in
            ["backend (eu) 2", "user_2dHFtVWx2n56w6HkM0000000000", "kw-773afe11d4d1-1", "Büro"]
        {
            assert_eq!(plain(name), name);
        }
        let hex = "0123456789abcdef".repeat(4);
        for (name, shown) in [
            (format!("old sk-or-v1-{hex} key"), "old … key"),
            (format!("key={hex}"), "…"),
            ("sk-ant-api03-kwcanary-5e1f".into(), "…"),
            ("red\u{1b}[31m`\n\u{202e}".into(), "red[31m"),
        ] {
            assert_eq!(plain(&name), shown);
        }
        assert_eq!(plain(&"long ".repeat(50)).len(), 100);
    }
}
