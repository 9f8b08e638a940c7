//! Credentials by their format, and by the name under which they stand.

use keywheel_core::secret::SecretValue;

/// What a value is, as far as its format and its name say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A secret that the application signs tokens with.
    Jwt,
    /// A key at OpenAI.
    OpenAi,
    /// A key at OpenRouter.
    OpenRouter,
    /// A key at Anthropic.
    Anthropic,
    /// A key that only a person can make, and the provider as the issuer `manual` knows it.
    Guided(&'static str, &'static str),
    /// A secret by its name alone.
    Unknown,
    /// A credential, and the issuer that mints it once somebody says of which account and project.
    Configured(&'static str, &'static str),
    /// A credential that no issuer of ours can mint.
    NoIssuer(&'static str),
    /// A key of a Secret whose name does not say what it holds.
    Unnamed,
    /// An identifier that may be published.
    Public(&'static str),
}

impl Kind {
    /// Returns it in words.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Jwt => "a signing secret",
            Self::OpenAi => "an OpenAI key",
            Self::OpenRouter => "an OpenRouter key",
            Self::Anthropic => "an Anthropic key",
            Self::Unknown => "a secret, by its name",
            Self::Unnamed => "a key whose name does not say what it holds",
            Self::Guided(what, _)
            | Self::Configured(what, _)
            | Self::NoIssuer(what)
            | Self::Public(what) => what,
        }
    }

    /// Returns the name of the issuer that could mint it as it stands.
    pub(crate) const fn issuer(self) -> Option<&'static str> {
        match self {
            Self::Jwt => Some("jwt_secret"),
            Self::OpenAi => Some("openai"),
            Self::OpenRouter => Some("openrouter"),
            Self::Anthropic => Some("anthropic"),
            Self::Guided(..) => Some("manual"),
            Self::Unknown => Some("random"),
            Self::Configured(..) | Self::NoIssuer(_) | Self::Unnamed | Self::Public(_) => None,
        }
    }

    /// Returns whether a provider ends it, for every place that holds it at once.
    pub(crate) const fn ends_everywhere(self) -> bool {
        matches!(self, Self::OpenAi | Self::OpenRouter | Self::Anthropic)
    }
}

/// A beginning, how many bytes follow at least, and which.
struct Format(&'static str, usize, fn(&u8) -> bool, Kind);

const FORMATS: &[Format] = &[
    Format("sk-ant-api", 30, token, Kind::Anthropic),
    Format("sk-ant-", 20, token, Kind::NoIssuer("a credential of Anthropic that is no API key")),
    Format("sk-or-v1-", 20, token, Kind::OpenRouter),
    Format(
        "sk-admin-",
        20,
        token,
        Kind::NoIssuer("an OpenAI admin key, which no application should hold"),
    ),
    Format("sk-proj-", 16, token, Kind::OpenAi),
    Format("sk-svcacct-", 16, token, Kind::OpenAi),
    Format("sntryu_", 32, token, Kind::Guided("a personal token of Sentry", "sentry_personal")),
    Format(
        "sntrys_",
        20,
        base64,
        Kind::Guided("an organisation token of Sentry", "sentry_organization"),
    ),
    Format("phc_", 20, token, Kind::Public("a PostHog project key, which is made to be published")),
    Format("phx_", 20, token, Kind::Configured("a PostHog personal key", "manual")),
    Format("phs_", 20, token, Kind::Configured("a PostHog secret key", "posthog")),
    Format("sk_live_", 10, token, Kind::NoIssuer("a Stripe key")),
    Format("sk_test_", 10, token, Kind::NoIssuer("a Stripe key")),
    Format("rk_live_", 10, token, Kind::NoIssuer("a Stripe key")),
    Format("rk_test_", 10, token, Kind::NoIssuer("a Stripe key")),
    Format("whsec_", 24, base64, Kind::NoIssuer("a Stripe webhook secret")),
    Format("pk_live_", 10, token, Kind::Public("a Stripe publishable key")),
    Format("pk_test_", 10, token, Kind::Public("a Stripe publishable key")),
    Format("ghp_", 30, token, Kind::NoIssuer("a GitHub token")),
    Format("gho_", 30, token, Kind::NoIssuer("a GitHub token")),
    Format("ghu_", 30, token, Kind::NoIssuer("a GitHub token")),
    Format("ghs_", 30, token, Kind::NoIssuer("a GitHub token")),
    Format("ghr_", 30, token, Kind::NoIssuer("a GitHub token")),
    Format("github_pat_", 30, token, Kind::NoIssuer("a GitHub token")),
    Format("glpat-", 20, dotted, Kind::NoIssuer("a GitLab token")),
    Format(
        "AKIA",
        16,
        upper,
        Kind::Public("the id of an AWS access key, which is no secret by itself"),
    ),
    Format(
        "ASIA",
        16,
        upper,
        Kind::Public("the id of an AWS access key, which is no secret by itself"),
    ),
    Format("xox", 12, token, Kind::NoIssuer("a Slack token")),
    Format("xapp-", 12, token, Kind::NoIssuer("a Slack token")),
    Format("SG.", 40, dotted, Kind::NoIssuer("a SendGrid key")),
    Format("SK", 32, u8::is_ascii_hexdigit, Kind::NoIssuer("a Twilio key")),
    Format("hvs.", 24, token, Kind::NoIssuer("a Vault token")),
    Format("hvb.", 24, token, Kind::NoIssuer("a Vault token")),
    Format("AIza", 35, token, Kind::NoIssuer("a Google key")),
    Format("npm_", 36, token, Kind::NoIssuer("an npm token")),
    Format("dckr_pat_", 20, token, Kind::NoIssuer("a Docker Hub token")),
];

/// Vendors whose credentials are never ours to make up, by a word of the name.
const VENDORS: &[(&str, &str)] = &[
    ("ANTHROPIC", "an Anthropic credential, by its name"),
    ("CLAUDE", "an Anthropic credential, by its name"),
    ("OPENROUTER", "an OpenRouter credential, by its name"),
    ("OPENAI", "an OpenAI credential by its name, in a format that is not known"),
    ("SENTRY", "a Sentry credential, by its name"),
    ("POSTHOG", "a PostHog credential, by its name"),
    ("STRIPE", "a Stripe credential, by its name"),
    ("GITHUB", "a GitHub credential, by its name"),
    ("GITLAB", "a GitLab credential, by its name"),
    ("SLACK", "a Slack credential, by its name"),
    ("TWILIO", "a Twilio credential, by its name"),
    ("SENDGRID", "a SendGrid credential, by its name"),
    ("AWS", "an AWS credential, by its name"),
    ("GOOGLE", "a Google credential, by its name"),
    ("CLOUDFLARE", "a Cloudflare credential, by its name"),
    ("DATADOG", "a Datadog credential, by its name"),
];

/// Beginnings of names whose values a build puts into what browsers get.
const BROWSERS: [&str; 6] =
    ["NEXT_PUBLIC_", "NUXT_PUBLIC_", "EXPO_PUBLIC_", "REACT_APP_", "VITE_", "PUBLIC_"];

/// The endings of the name of a second signing secret that readers accept.
const ACCEPTED: [&str; 2] = ["_ALSO_ACCEPTED", "_PREVIOUS"];

/// Returns what a variable or a file of this name holds; none where nothing says that it is a credential.
pub(crate) fn recognise(name: &str, value: Option<&SecretValue>) -> Option<Kind> {
    by_format(value).or_else(|| by_name(&as_variable(name)))
}

/// Returns what holds a value that nobody saw, by its name alone; none where that does not say that it is a credential.
pub(crate) fn recognise_unseen(name: &str) -> Option<Kind> {
    let name = as_variable(name);
    if name == "TLS_KEY" {
        return Some(Kind::NoIssuer("a private key, by its name"));
    }
    let kind = by_name(&name)?;
    let word = |vendor: &str| name.split('_').any(|part| part == vendor);
    let is_plain = !word("ADMIN") && !word("MANAGEMENT") && name.ends_with("KEY");
    Some(match kind {
        Kind::NoIssuer(_) if is_plain && word("OPENROUTER") => Kind::OpenRouter,
        Kind::NoIssuer(_) if is_plain && word("OPENAI") => Kind::OpenAi,
        Kind::NoIssuer(_) if is_plain && (word("ANTHROPIC") || word("CLAUDE")) => Kind::Anthropic,
        kind => kind,
    })
}

/// Returns a name as a variable would have it.
pub(crate) fn as_variable(name: &str) -> String {
    name.to_ascii_uppercase().replace(['-', '.'], "_")
}

/// Returns whether a name says that browsers get the value.
pub(crate) fn is_for_browsers(name: &str) -> bool {
    BROWSERS.iter().any(|start| name.starts_with(start))
}

/// Returns the name of the signing secret beside which a variable of this name holds the second one.
pub(crate) fn accepted_beside(name: &str) -> Option<&str> {
    ACCEPTED.iter().find_map(|end| name.strip_suffix(end)).filter(|name| !name.is_empty())
}

/// Returns whether a name is that of a signing secret.
pub(crate) fn names_signing_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    name.contains("JWT") && name.contains("SECRET")
}

/// Returns what a value is by its format alone.
pub(crate) fn by_format(value: Option<&SecretValue>) -> Option<Kind> {
    let value = value?.expose().trim_ascii();
    let known = FORMATS.iter().find(|Format(start, least, fits, _)| {
        value
            .strip_prefix(start.as_bytes())
            .is_some_and(|rest| rest.len() >= *least && rest.iter().all(fits) && mixes(rest))
    });
    match known {
        Some(Format(.., kind)) => Some(*kind),
        None => by_shape(value),
    }
}

fn by_shape(value: &[u8]) -> Option<Kind> {
    if value.starts_with(b"sk-") && contains(value, b"T3BlbkFJ") {
        return Some(Kind::OpenAi);
    }
    if value.starts_with(b"-----BEGIN ") && contains(value, b"PRIVATE KEY-----") {
        return Some(Kind::NoIssuer("a private key"));
    }
    if value.starts_with(b"eyJ") && contains(value, b".eyJ") {
        return Some(Kind::NoIssuer("a signed token (JWT)"));
    }
    let (user, host) = authority(value)?;
    match user.iter().position(|b| *b == b':') {
        Some(at) if at + 1 < user.len() => Some(Kind::NoIssuer("a URL with a password")),
        _ if contains(host, b"sentry") => {
            Some(Kind::Public("a Sentry DSN, which is made to be published"))
        }
        _ => None,
    }
}

/// Returns what stands before and after the `@` of a URL.
fn authority(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = value.windows(3).position(|window| window == b"://")?;
    let (scheme, rest) = (&value[..at], &value[at + 3..]);
    let end = rest.iter().position(|b| b"/?#".contains(b)).unwrap_or(rest.len());
    let sign = rest[..end].iter().rposition(|b| *b == b'@')?;
    let named = scheme.first().is_some_and(u8::is_ascii_alphabetic)
        && scheme.iter().all(|b| b.is_ascii_alphanumeric() || b"+.-".contains(b));
    named.then(|| (&rest[..sign], &rest[sign + 1..]))
}

fn by_name(name: &str) -> Option<Kind> {
    if names_signing_secret(name) {
        return Some(Kind::Jwt);
    }
    let tells = ["SECRET", "TOKEN", "PASSWORD", "KEY"].iter().any(|word| {
        name.strip_suffix(word).is_some_and(|rest| rest.is_empty() || rest.ends_with('_'))
    });
    if !tells {
        return None;
    }
    if is_for_browsers(name) {
        return Some(Kind::Public("a variable that browsers get, by its name"));
    }
    if name.ends_with("PUBLIC_KEY") || name.ends_with("PUBLISHABLE_KEY") {
        return Some(Kind::Public("a public key, by its name"));
    }
    let word = |vendor: &str| name.split('_').any(|part| part == vendor);
    let vendor = VENDORS.iter().find(|(vendor, _)| word(vendor));
    Some(vendor.map_or(Kind::Unknown, |(_, what)| Kind::NoIssuer(what)))
}

/// Placeholders are words; what was drawn at random has digits among its letters.
fn mixes(rest: &[u8]) -> bool {
    rest.iter().any(u8::is_ascii_digit)
}

fn contains(value: &[u8], part: &[u8]) -> bool {
    value.windows(part.len()).any(|window| window == part)
}

fn token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-".contains(byte)
}

fn dotted(byte: &u8) -> bool {
    token(byte) || b"=.".contains(byte)
}

fn base64(byte: &u8) -> bool {
    token(byte) || b"+/=".contains(byte)
}

fn upper(byte: &u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str, value: &str) -> Option<Kind> {
        recognise(name, Some(&SecretValue::new(value.as_bytes().to_vec())))
    }

    #[test]
    fn formats_count_before_names() {
        let tail = "kwcanary0123456789abcdefghijABCDEFGHIJklmnopq";
        for (start, expected) in [
            ("sk-proj-", Kind::OpenAi),
            ("sk-svcacct-", Kind::OpenAi),
            ("sk-ant-api03-", Kind::Anthropic),
            ("sk-ant-oat01-", Kind::NoIssuer("a credential of Anthropic that is no API key")),
            ("sntryu_", Kind::Guided("a personal token of Sentry", "sentry_personal")),
            ("sk-or-v1-", Kind::OpenRouter),
            ("phs_", Kind::Configured("a PostHog secret key", "posthog")),
            ("sk_live_", Kind::NoIssuer("a Stripe key")),
            ("ghp_", Kind::NoIssuer("a GitHub token")),
        ] {
            assert_eq!(kind("ANY_PASSWORD", &format!("{start}{tail}")), Some(expected), "{start}");
        }
        assert_eq!(kind("X", &format!("sk-{tail}T3BlbkFJ{tail}")), Some(Kind::OpenAi));
        assert!(matches!(kind("X", &format!("phc_{tail}")), Some(Kind::Public(_))));
        assert!(matches!(kind("X", "https://abc@o1.ingest.sentry.io/2"), Some(Kind::Public(_))));
        assert!(matches!(kind("X", "postgres://kw:canary@db/x"), Some(Kind::NoIssuer(_))));
        assert_eq!(kind("X", "https://shop.example/a@b"), None);
        assert_eq!(kind("X", "sk-proj-your-key-goes-here-please"), None);
    }

    #[test]
    fn names_tell_where_formats_do_not() {
        assert_eq!(kind("JWT_SECRET", "x"), Some(Kind::Jwt));
        assert_eq!(kind("APP_JWT_SIGNING_SECRET", "x"), Some(Kind::Jwt));
        for name in ["SESSION_SECRET", "db-password", "db_password.txt", "API_KEY", "TOKEN"] {
            let told = kind(name.trim_end_matches(".txt"), "x");
            assert_eq!(told, Some(Kind::Unknown), "{name}");
        }
        assert!(matches!(kind("STRIPE_API_KEY", "x"), Some(Kind::NoIssuer(_))));
        assert!(matches!(kind("VITE_MAP_KEY", "x"), Some(Kind::Public(_))));
        for name in ["PORT", "MONKEY", "KEYBOARD", "LOG_LEVEL", "TOKEN_TTL"] {
            assert_eq!(kind(name, "x"), None, "{name}");
        }
    }

    #[test]
    fn a_value_that_nobody_saw_is_guessed_from_its_name() {
        assert_eq!(recognise_unseen("openai-api-key"), Some(Kind::OpenAi));
        assert_eq!(recognise_unseen("OPENROUTER_KEY"), Some(Kind::OpenRouter));
        assert_eq!(recognise_unseen("claude.api.key"), Some(Kind::Anthropic));
        assert_eq!(recognise_unseen("jwt-secret"), Some(Kind::Jwt));
        assert!(matches!(recognise_unseen("OPENAI_ADMIN_KEY"), Some(Kind::NoIssuer(_))));
        assert!(matches!(recognise_unseen("stripe-api-key"), Some(Kind::NoIssuer(_))));
        assert_eq!(recognise_unseen("database-url"), None);
    }

    #[test]
    fn the_second_signing_secret_names_the_first() {
        assert_eq!(accepted_beside("JWT_SECRET_ALSO_ACCEPTED"), Some("JWT_SECRET"));
        assert_eq!(accepted_beside("JWT_SECRET_PREVIOUS"), Some("JWT_SECRET"));
        assert_eq!(accepted_beside("JWT_SECRET"), None);
    }
}
