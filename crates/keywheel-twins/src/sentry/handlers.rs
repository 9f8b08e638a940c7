//! The handlers of the Sentry twin: what each operation answers.

use axum::body::Bytes;
use axum::extract::{Extension, FromRef, FromRequestParts, Path, Query, State as Held};
use axum::http::header::{AUTHORIZATION, LINK};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::state::{By, Issue, Key, Logged, Settings, State};
use super::{
    AUDIT_LOGS, ENVELOPE, ISSUES, KEY, KEYS, ORGANIZATION, PROJECT, PROJECT_ID, PROJECT_PATH,
    STATS, Shared,
};
use crate::fault::Lag;
use crate::life::{as_of, rfc3339};
use crate::query::{Parameters, one};
use crate::{now, random};

/// A day in seconds.
const DAY: i64 = 86_400;

type Answer = Result<Json<Value>, Failure>;

pub(super) fn routes(shared: Shared) -> Router {
    Router::new()
        .route(PROJECT_PATH, get(get_project))
        .route(KEYS, get(list_keys).post(create_key))
        .route(KEY, get(get_key).put(update_key).delete(delete_key))
        .route(STATS, get(key_stats))
        .route(AUDIT_LOGS, get(list_audit_logs))
        .route(ISSUES, get(list_issues))
        .route(ENVELOPE, post(envelope))
        .fallback(nowhere)
        .with_state(shared)
}

/// Words an error as the API does.
pub(super) fn error_body(_: StatusCode, message: &str) -> Value {
    json!({ "detail": message })
}

/// An answer that is no success.
struct Failure {
    status: StatusCode,
    body: Value,
}

impl Failure {
    fn new(status: StatusCode, message: &str) -> Self {
        Self { status, body: error_body(status, message) }
    }

    fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "The requested resource does not exist")
    }

    fn bad(field: &str, why: &str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, body: json!({ field: [why] }) }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

/// A request that came with the token of the API; what it may do.
struct Scopes(Vec<String>);

impl<S> FromRequestParts<S> for Scopes
where
    Shared: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, held: &S) -> Result<Self, Failure> {
        let shared = Shared::from_ref(held);
        let state = shared.state();
        let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header.and_then(|header| header.strip_prefix("Bearer ")).ok_or_else(|| {
            Failure::new(StatusCode::UNAUTHORIZED, "Authentication credentials were not provided.")
        })?;
        if token != state.token {
            return Err(Failure::new(StatusCode::UNAUTHORIZED, "Invalid token"));
        }
        Ok(Self(state.scopes.clone()))
    }
}

impl Scopes {
    /// Checks that one of the scopes is there.
    fn need(&self, scopes: &[&str]) -> Result<(), Failure> {
        if self.0.iter().any(|held| scopes.contains(&held.as_str())) {
            return Ok(());
        }
        let why = "You do not have permission to perform this action.";
        Err(Failure::new(StatusCode::FORBIDDEN, why))
    }
}

const READ: &[&str] = &["project:read", "project:write", "project:admin"];
const WRITE: &[&str] = &["project:write", "project:admin"];
const ADMIN: &[&str] = &["project:admin"];
const ORGANIZATION_WRITE: &[&str] = &["org:write"];
const EVENTS: &[&str] = &["event:read", "event:write", "event:admin"];

async fn nowhere() -> Failure {
    Failure::not_found()
}

async fn get_project(
    scopes: Scopes,
    Path((organization, project)): Path<(String, String)>,
) -> Answer {
    known(&organization, Some(&project))?;
    scopes.need(READ)?;
    Ok(Json(project_json(&scopes.0)))
}

async fn list_keys(
    scopes: Scopes,
    Held(shared): Held<Shared>,
    Path((organization, project)): Path<(String, String)>,
    lag: Option<Extension<Lag>>,
    headers: HeaderMap,
    Query(query): Parameters,
) -> Result<Response, Failure> {
    known(&organization, Some(&project))?;
    scopes.need(READ)?;
    let state = shared.state();
    let mut shown = state.keys_at(as_of(state.options.list_lag, lag));
    match one(&query, "status") {
        None => {}
        Some("active") => shown.retain(|key| key.switch.is_on()),
        Some("inactive") => shown.retain(|key| !key.switch.is_on()),
        Some(_) => shown.clear(),
    }
    let authority = authority(&headers);
    page(&state, shown.into_iter().map(|key| key_json(key, &authority)).collect(), &query)
}

async fn create_key(
    scopes: Scopes,
    Held(shared): Held<Shared>,
    Path((organization, project)): Path<(String, String)>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Result<(StatusCode, Json<Value>), Failure> {
    known(&organization, Some(&project))?;
    scopes.need(WRITE)?;
    check(&body)?;
    let mut state = shared.state();
    let mut settings = Settings::named(&random(b"abcdefghijklmnopqrstuvwxyz", 12));
    let only = |name: &str| matches!(name, "name" | "rateLimit" | "useCase");
    change(&mut settings, &kept(&state, &body, only));
    let id = state.add(settings, By::Token);
    Ok((StatusCode::CREATED, Json(key_json(&state.keys[&id], &authority(&headers)))))
}

async fn get_key(
    scopes: Scopes,
    Held(shared): Held<Shared>,
    Path((organization, project, id)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Answer {
    known(&organization, Some(&project))?;
    scopes.need(READ)?;
    let mut state = shared.state();
    let key = state.live(&id).ok_or_else(Failure::not_found)?;
    Ok(Json(key_json(key, &authority(&headers))))
}

async fn update_key(
    scopes: Scopes,
    Held(shared): Held<Shared>,
    Path((organization, project, id)): Path<(String, String, String)>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Answer {
    known(&organization, Some(&project))?;
    scopes.need(WRITE)?;
    let mut state = shared.state();
    state.live(&id).ok_or_else(Failure::not_found)?;
    check(&body)?;
    let body = kept(&state, &body, |name| name != "useCase");
    let key = state.live(&id).ok_or_else(Failure::not_found)?;
    if let Some(active) = body["isActive"].as_bool() {
        key.switch.set(active);
    }
    change(&mut key.settings, &body);
    state.note("projectkey.edit", &id, By::Token);
    Ok(Json(key_json(&state.keys[&id], &authority(&headers))))
}

async fn delete_key(
    scopes: Scopes,
    Held(shared): Held<Shared>,
    Path((organization, project, id)): Path<(String, String, String)>,
) -> Result<StatusCode, Failure> {
    known(&organization, Some(&project))?;
    scopes.need(ADMIN)?;
    shared.state().end(&id, By::Token).ok_or_else(Failure::not_found)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Counts what came for a key, by the day.
async fn key_stats(
    scopes: Scopes,
    Held(shared): Held<Shared>,
    Path((organization, project, id)): Path<(String, String, String)>,
    lag: Option<Extension<Lag>>,
    Query(query): Parameters,
) -> Answer {
    known(&organization, Some(&project))?;
    scopes.need(READ)?;
    let bad = || Failure::new(StatusCode::BAD_REQUEST, "Invalid request data");
    let second = |name: &str| one(&query, name).and_then(|text| text.parse::<f64>().ok());
    let (Some(since), Some(until)) = (second("since"), second("until")) else { return Err(bad()) };
    if one(&query, "resolution") != Some("1d") {
        return Err(bad());
    }
    let mut state = shared.state();
    let as_of = as_of(state.options.list_lag, lag);
    let key = state.live(&id).ok_or_else(Failure::not_found)?;
    let days = (since as i64).div_euclid(DAY)..=(until as i64).div_euclid(DAY);
    let of_day = |day: i64| {
        let is_of = |at: &&i64| **at <= as_of && at.div_euclid(DAY * 1_000) == day;
        let total = key.taken.iter().filter(is_of).count();
        json!({ "ts": day * DAY, "total": total, "dropped": 0, "filtered": 0, "accepted": total })
    };
    Ok(Json(days.map(of_day).collect()))
}

/// Lists what was done in the organisation, the newest first; an event that nobody knows was never done.
async fn list_audit_logs(
    scopes: Scopes,
    Held(shared): Held<Shared>,
    Path(organization): Path<String>,
    lag: Option<Extension<Lag>>,
    Query(query): Parameters,
) -> Result<Response, Failure> {
    known(&organization, None)?;
    scopes.need(ORGANIZATION_WRITE)?;
    let state = shared.state();
    let until = as_of(state.options.list_lag, lag);
    let event = one(&query, "event");
    let shows = |row: &&Logged| row.at <= until && event.is_none_or(|event| event == row.event);
    let rows: Vec<Value> = state.log.iter().rev().filter(shows).map(logged_json).collect();
    let (link, rows) = cut(&state, rows, &query)?;
    let options = ["projectkey.create", "projectkey.edit", "projectkey.remove", "org.edit"];
    Ok(([(LINK, link)], Json(json!({ "rows": rows, "options": options }))).into_response())
}

/// Finds issues by the words of their titles and by `firstSeen:>=`, which is as much of the search as a probe needs.
async fn list_issues(
    scopes: Scopes,
    Held(shared): Held<Shared>,
    Path(organization): Path<String>,
    lag: Option<Extension<Lag>>,
    Query(query): Parameters,
) -> Result<Response, Failure> {
    known(&organization, None)?;
    scopes.need(EVENTS)?;
    let state = shared.state();
    let mut shown: Vec<&Issue> = state.issues.iter().collect();
    let until = as_of(state.options.list_lag, lag);
    shown.retain(|issue| issue.first_seen <= until);
    for word in one(&query, "query").unwrap_or("is:unresolved").split_whitespace() {
        match word.split_once(':') {
            Some(("firstSeen", since)) => {
                let since = since.strip_prefix(">=").and_then(|time| time.parse().ok());
                let since: jiff::Timestamp = since.ok_or_else(|| {
                    Failure::new(StatusCode::BAD_REQUEST, "Error parsing search query")
                })?;
                shown.retain(|issue| issue.first_seen >= since.as_millisecond());
            }
            Some(_) => {}
            None => shown.retain(|issue| issue.title.contains(word)),
        }
    }
    page(&state, shown.into_iter().map(issue_json).collect(), &query)
}

/// Takes what an SDK sends; the header names the key, and the body is looked at by no one.
async fn envelope(
    Held(shared): Held<Shared>,
    Path(project): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let named = headers.get("x-sentry-auth").and_then(|value| value.to_str().ok());
    let public = named.and_then(public_key).ok_or_else(|| {
        Failure::new(StatusCode::UNAUTHORIZED, "missing authorization information")
    })?;
    if !body.starts_with(b"{") {
        return Err(Failure::new(StatusCode::BAD_REQUEST, "invalid event envelope"));
    }
    let mut state = shared.state();
    if !state.relay_accepts(&public) || project != PROJECT_ID.to_string() {
        let why = "event submission rejected with_reason: ProjectId";
        return Err(Failure::new(StatusCode::FORBIDDEN, why));
    }
    if let Some(key) = state.keys.get_mut(&public) {
        key.taken.push(now());
    }
    Ok(Json(json!({})))
}

fn public_key(header: &str) -> Option<String> {
    let fields = header.strip_prefix("Sentry ")?.split(',');
    let mut named = fields.filter_map(|field| field.trim().strip_prefix("sentry_key="));
    named.next().map(str::to_owned)
}

fn known(organization: &str, project: Option<&str>) -> Result<(), Failure> {
    let project_id = PROJECT_ID.to_string();
    let is_project = project.is_none_or(|named| named == PROJECT || named == project_id);
    (organization == ORGANIZATION && is_project).then_some(()).ok_or_else(Failure::not_found)
}

/// Checks what can be wrong in a body that makes or changes a key.
fn check(body: &Value) -> Result<(), Failure> {
    let one_of = |name: &str, allowed: &[&str]| match &body[name] {
        Value::Null => Ok(()),
        value if value.as_str().is_some_and(|value| allowed.contains(&value)) => Ok(()),
        _ => Err(Failure::bad(name, "This is not a valid choice.")),
    };
    one_of("useCase", &["user", "profiling", "tempest", "demo"])?;
    one_of("browserSdkVersion", &["latest", "7.x"])?;
    if body["name"].as_str().is_some_and(|name| name.is_empty() || name.len() > 64) {
        return Err(Failure::bad("name", "Ensure this field has no more than 64 characters."));
    }
    let window = &body["rateLimit"]["window"];
    if window.as_u64().is_some_and(|window| window > 86_400) {
        return Err(Failure::bad("rateLimit", "Ensure this value is less than or equal to 86400."));
    }
    Ok(())
}

/// Returns what of a body the operation and the plan of the organisation allow.
fn kept(state: &State, body: &Value, only: impl Fn(&str) -> bool) -> Value {
    let mut kept = body.clone();
    if let Some(fields) = kept.as_object_mut() {
        fields
            .retain(|name, _| only(name) && !(state.options.no_rate_limits && name == "rateLimit"));
    }
    kept
}

pub(super) fn change(settings: &mut Settings, body: &Value) {
    let text = |name: &str| body[name].as_str().map(str::to_owned);
    settings.name = text("name").unwrap_or_else(|| settings.name.clone());
    settings.use_case = text("useCase").unwrap_or_else(|| settings.use_case.clone());
    let version = text("browserSdkVersion");
    settings.browser_sdk_version = version.unwrap_or_else(|| settings.browser_sdk_version.clone());
    if let Some(limit) = body.get("rateLimit") {
        let is_limit = limit["count"].is_u64() && limit["window"].is_u64();
        settings.rate_limit = if is_limit { limit.clone() } else { Value::Null };
    }
    for (name, on) in body["dynamicSdkLoaderOptions"].as_object().into_iter().flatten() {
        settings.loader[name] = on.clone();
    }
}

pub(super) fn key_json(key: &Key, authority: &str) -> Value {
    let (id, settings) = (&key.id, &key.settings);
    let at = |path: &str| format!("http://{authority}/api/{PROJECT_ID}/{path}");
    json!({
        "id": id,
        "name": settings.name,
        "label": settings.name,
        "public": id,
        "secret": key.secret,
        "projectId": PROJECT_ID,
        "isActive": key.switch.is_on(),
        "rateLimit": settings.rate_limit,
        "dsn": {
            "secret": format!("http://{id}:{}@{authority}/{PROJECT_ID}", key.secret),
            "public": format!("http://{id}@{authority}/{PROJECT_ID}"),
            "csp": at(&format!("csp-report/?sentry_key={id}")),
            "security": at(&format!("security/?sentry_key={id}")),
            "minidump": at(&format!("minidump/?sentry_key={id}")),
            "nel": at(&format!("nel/?sentry_key={id}")),
            "unreal": at(&format!("unreal/{id}/")),
            "crons": at(&format!("cron/___MONITOR_SLUG___/{id}/")),
            "cdn": format!("http://{authority}/js/{id}.min.js"),
            "playstation": at(&format!("playstation/?sentry_key={id}")),
            "integration": at("integration/"),
            "otlp_traces": at("integration/otlp/v1/traces/"),
            "otlp_logs": at("integration/otlp/v1/logs/"),
        },
        "browserSdkVersion": settings.browser_sdk_version,
        "browserSdk": { "choices": [["latest", "latest"], ["7.x", "7.x"]] },
        "dateCreated": rfc3339(key.life.created),
        "dynamicSdkLoaderOptions": settings.loader,
        "useCase": settings.use_case,
    })
}

fn logged_json(row: &Logged) -> Value {
    let id = row.at.to_string();
    let (actor, address) = match row.by {
        By::Token => ("ci@example.com", "192.0.2.8"),
        By::Person => ("someone@example.com", "192.0.2.7"),
    };
    json!({
        "id": format!("{id}{}", row.event.len()),
        "actor": { "id": "1", "name": actor, "email": actor, "isActive": true },
        "event": row.event,
        "ipAddress": address,
        "note": format!("{} {}", row.event, row.key),
        "targetObject": 7,
        "targetUser": null,
        "data": {
            "label": row.name,
            "public_key": row.key,
            "secret_key": row.secret,
            "roles": 1,
            "status": 0,
        },
        "dateCreated": rfc3339(row.at),
    })
}

fn issue_json(issue: &Issue) -> Value {
    json!({
        "id": issue.id.to_string(),
        "shortId": format!("SHOP-{}", issue.id),
        "title": issue.title,
        "status": "unresolved",
        "level": "error",
        "firstSeen": rfc3339(issue.first_seen),
        "lastSeen": rfc3339(issue.first_seen),
        "count": "1",
    })
}

/// Says of the project what is asked for here, and of everything else that it is not there.
fn project_json(access: &[String]) -> Value {
    let mut project = json!({
        "id": PROJECT_ID.to_string(),
        "slug": PROJECT,
        "name": PROJECT,
        "status": "active",
        "access": access,
        "dateCreated": rfc3339(0),
        "organization": {
            "id": "1",
            "slug": ORGANIZATION,
            "name": ORGANIZATION,
            "status": { "id": "active", "name": "active" },
            "dateCreated": rfc3339(0),
            "allowMemberInvite": false,
            "allowMemberProjectCreation": false,
            "allowSuperuserAccess": false,
            "hasAuthProvider": false,
            "isEarlyAdopter": false,
            "require2FA": false,
            "avatar": {},
            "links": { "organizationUrl": "", "regionUrl": "" },
        },
        "highlightPreset": { "context": {}, "tags": [] },
        "seerNightshiftTweaks": null,
    });
    let fields = project.as_object_mut().expect("it is an object");
    let mut fill = |names: &str, value: Value| {
        let missing = names.split_whitespace().map(|name| (name.to_owned(), value.clone()));
        fields.extend(missing);
    };
    fill(
        "dataScrubber dataScrubberDefaults enableAutoReleaseCreation firstTransactionEvent hasAccess hasFeedbacks hasFlags \
         hasInsightsAgentMonitoring hasInsightsAppStart hasInsightsAssets hasInsightsCaches hasInsightsDb hasInsightsHttp \
         hasInsightsMCP hasInsightsQueues hasInsightsScreenLoad hasInsightsVitals hasLogs hasMinifiedStackTrace hasMonitors \
         hasNewFeedbacks hasProfiles hasReplays hasSessions hasTraceMetrics isBookmarked isDynamicallySampled isInternal \
         isMember isPublic scmSourceContextEnabled scrapeJavaScript scrubIPAddresses seerScannerAutomation \
         tempestFetchScreenshots verifySSL",
        json!(false),
    );
    fill(
        "autofixAutomationTuning color derivedGroupingEnhancements fingerprintingRules groupingConfig groupingEnhancements \
         subjectPrefix subjectTemplate symbolSources securityToken",
        json!(""),
    );
    fill(
        "digestsMaxDelay digestsMinDelay processingIssues resolveAge secondaryGroupingExpiry",
        json!(0),
    );
    fill(
        "allowedDomains builtinSymbolSources dynamicSamplingBiases features highlightTags platforms safeFields \
         sensitiveFields teams",
        json!([]),
    );
    fill("avatar highlightContext options", json!({}));
    fill(
        "debugFilesRole defaultEnvironment firstEvent latestRelease platform relayPiiConfig secondaryGroupingConfig \
         securityTokenHeader storeCrashReports",
        Value::Null,
    );
    project
}

/// Answers one page of a list, and says in the header `link` where the next one begins.
fn page(state: &State, items: Vec<Value>, query: &[(String, String)]) -> Result<Response, Failure> {
    let (link, shown) = cut(state, items, query)?;
    Ok(([(LINK, link)], Json(shown)).into_response())
}

/// Cuts one page out of a list, and returns the header with it.
fn cut(
    state: &State,
    items: Vec<Value>,
    query: &[(String, String)],
) -> Result<(String, Value), Failure> {
    let bad = || Failure::new(StatusCode::BAD_REQUEST, "Invalid cursor parameter.");
    let start = match one(query, "cursor") {
        None => 0,
        Some(cursor) => {
            let number = cursor.split(':').nth(1).and_then(|number| number.parse().ok());
            number.ok_or_else(bad)?
        }
    };
    let end = items.len().min(start + state.options.page);
    let link = |rel: &str, results: bool, at: usize| {
        let cursor = format!("0:{at}:{}", u8::from(rel == "previous"));
        format!(
            "<https://sentry.example.com/?cursor={cursor}>; rel=\"{rel}\"; results=\"{results}\"; cursor=\"{cursor}\""
        )
    };
    let before = start.saturating_sub(state.options.page);
    let links =
        [link("previous", start > 0, before), link("next", end < items.len(), end)].join(", ");
    Ok((links, json!(items.get(start..end).unwrap_or_default())))
}

fn authority(headers: &HeaderMap) -> String {
    let host = headers.get(axum::http::header::HOST).and_then(|host| host.to_str().ok());
    host.unwrap_or_default().to_owned()
}
