//! What the requests of all twins have in common.

use axum::extract::Query;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;

use crate::random;

/// The parameters of a URL, in order and as often as they stand there.
pub(crate) type Parameters = Query<Vec<(String, String)>>;

/// Returns the fields of a form, which is written as the parameters of a URL are.
pub(crate) fn fields(body: &[u8]) -> Vec<(String, String)> {
    let uri = std::str::from_utf8(body).ok().and_then(|body| format!("/?{body}").parse().ok());
    let fields = uri.as_ref().and_then(|uri| Parameters::try_from_uri(uri).ok());
    fields.map(|Query(fields)| fields).unwrap_or_default()
}

/// Returns the value of a parameter.
pub(crate) fn one<'a>(query: &'a [(String, String)], name: &'a str) -> Option<&'a str> {
    many(query, name).next()
}

/// Returns every value of a parameter, with or without the brackets that some clients add.
pub(crate) fn many<'a>(
    query: &'a [(String, String)],
    name: &'a str,
) -> impl Iterator<Item = &'a str> {
    query
        .iter()
        .filter(move |(key, _)| key.strip_suffix("[]").unwrap_or(key) == name)
        .map(|(_, value)| value.as_str())
}

/// Adds the id that a provider gives each request.
pub(crate) fn with_request_id(name: &'static str, mut response: Response) -> Response {
    let id = format!("req_{}", random(b"0123456789abcdef", 32));
    let id = HeaderValue::from_str(&id).expect("an id is letters and digits");
    response.headers_mut().insert(HeaderName::from_static(name), id);
    response
}
