//! Whether a login that an engine made is let in, asked at the database itself: an engine says what it did, and not what holds.

use std::str::FromStr;
use std::time::Duration;

use keywheel_core::secret::{Credential, Field, SecretValue};
use keywheel_driver::issuer::Verdict;
use keywheel_driver::{CallError, Refusal, RefusalKind};

use crate::api::unsupported;
use crate::postgres::{self, Failed};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);

/// A database at which logins are tried.
pub(crate) struct Door {
    place: tokio_postgres::Config,
}

impl Door {
    /// Reads a connection string without a login.
    ///
    /// # Errors
    /// A refusal where it is none, holds a login, or names another machine without TLS.
    pub(crate) fn at(url: &str) -> Result<Self, Refusal> {
        let place = tokio_postgres::Config::from_str(url);
        let mut place = place.map_err(|_| unsupported("`login_at` is no connection string"))?;
        if place.get_password().is_some() || place.get_user().is_some() {
            return Err(unsupported(
                "`login_at` names a login; the one that is tried is put there",
            ));
        }
        place.connect_timeout(CONNECT).application_name("keywheel");
        let is_here = postgres::are_here(&place);
        let place = postgres::guarded(place, is_here)
            .ok_or_else(|| unsupported("`login_at` names another machine, and no TLS"))?;
        Ok(Self { place })
    }

    /// Logs in with a credential, and with nothing else.
    pub(crate) async fn verdict(&self, credential: &Credential) -> Result<Verdict, CallError> {
        let field = |name: &str| credential.field(&Field::new(name));
        let (Some(username), Some(password)) = (field("username"), field("password")) else {
            return Err(unsupported("the credential has no `username` and `password`").into());
        };
        let Some(username) = text(username) else {
            return Err(unsupported("the user name is not text").into());
        };
        let mut place = self.place.clone();
        place.user(username).password(password.expose());
        let code = match postgres::connect(&place, None).await {
            Ok(client) => {
                let asked = client.simple_query("SELECT 1").await;
                return Ok(match asked {
                    Ok(_) => Verdict::Accepted,
                    Err(error) => Verdict::CannotTell(postgres::in_words(&error)),
                });
            }
            Err(Failed::Here(refusal)) => return Err(refusal.into()),
            Err(Failed::There(error)) => match error.code() {
                Some(code) => code.code().to_owned(),
                None => {
                    let message = format!("`login_at`: {}", postgres::in_words(&error));
                    return Err(Refusal::retry(RefusalKind::Unavailable, None, message).into());
                }
            },
        };
        Ok(match code.as_str() {
            // The same to a wrong password and to a login that is not there.
            "28P01" => Verdict::Refused,
            code => {
                Verdict::CannotTell(format!("the server answered with {}", postgres::coded(code)))
            }
        })
    }
}

fn text(value: &SecretValue) -> Option<&str> {
    std::str::from_utf8(value.expose()).ok()
}
