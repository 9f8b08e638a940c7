//! Slots: how a credential becomes the bytes of a slot, and back.

use keywheel_core::call::{Refusal, RefusalKind};
use keywheel_core::plan::{Part, UrlPart};
use keywheel_core::planted;
use keywheel_core::secret::{Credential, Field, SecretValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};

mod login;

use login::Form;

/// Everything but RFC 3986's unreserved characters is encoded.
const USERINFO: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Names a slot among all that a workload reads: two stores may have a slot of the same address.
pub fn name(container: &str, address: &str) -> String {
    format!("{container}\n{address}")
}

/// Returns the container of a slot's [`name`], and the address in it.
pub fn parts(name: &str) -> (&str, &str) {
    name.rsplit_once('\n').unwrap_or(("", name))
}

/// Makes the bytes of a slot from a credential; `present` is what the slot holds now, whose other parts stay. None where the
/// slot stays absent.
///
/// # Errors
/// A [`Refusal`] where the credential lacks a field, or the slot holds nothing to put a part into.
pub fn compose(
    part: &Part,
    credential: &Credential,
    present: Option<&SecretValue>,
) -> Result<Option<SecretValue>, Refusal> {
    Ok(Some(match part {
        Part::Plain(field) => need(credential, field.as_str())?.duplicate(),
        Part::Url(url_part) => compose_url(*url_part, credential, present)?,
        Part::Jdbc(part) => login::compose(Form::Jdbc, *part, credential, present)?,
        Part::Libpq(part) => login::compose(Form::Libpq, *part, credential, present)?,
        Part::Pgpass(part) => login::compose(Form::Pgpass, *part, credential, present)?,
        Part::PasswordOf(login) => {
            if !is_login(credential, login) {
                return Ok(present.map(SecretValue::duplicate));
            }
            need(credential, "password")?.duplicate()
        }
    }))
}

/// Returns whether a credential is one of this login.
pub fn is_login(credential: &Credential, login: &str) -> bool {
    let username = credential.field(&Field::new("username"));
    username.is_some_and(|username| username.expose() == login.as_bytes())
}

fn compose_url(
    url_part: UrlPart,
    credential: &Credential,
    present: Option<&SecretValue>,
) -> Result<SecretValue, Refusal> {
    let present = present.ok_or_else(|| unsupported("the slot is empty; it must hold a URL"))?;
    let url = split(present.expose())?;
    let part = |name: &str| {
        let value = need(credential, name)?;
        let text = std::str::from_utf8(value.expose())
            .map_err(|_| unsupported("a URL part must be UTF-8"))?;
        let encoded = utf8_percent_encode(text, USERINFO).to_string();
        Ok::<_, Refusal>(if planted!("url_not_encoded") { text.to_owned() } else { encoded })
    };
    let (username, password) = match url_part {
        UrlPart::Userinfo => (part("username")?, Some(part("password")?)),
        UrlPart::Username => (part("username")?, url.password.map(str::to_owned)),
        UrlPart::Password => (url.username.to_owned(), Some(part("password")?)),
    };
    let password = password.map(|p| format!(":{p}")).unwrap_or_default();
    let whole = format!("{}://{username}{password}@{}", url.scheme, url.rest);
    Ok(SecretValue::new(whole.into_bytes()))
}

/// Reads a credential's fields out of the bytes of a slot.
///
/// # Errors
/// A [`Refusal`] where the slot should hold a URL or a connection string and does not.
pub fn extract(part: &Part, bytes: &SecretValue) -> Result<Credential, Refusal> {
    let decoded = |text: &str| SecretValue::new(percent_decode(text.as_bytes()).collect());
    match part {
        Part::Plain(field) => Ok(Credential::default().with(field.clone(), bytes.duplicate())),
        Part::Url(url_part) => {
            let url = split(bytes.expose())?;
            let mut credential = Credential::default();
            if matches!(url_part, UrlPart::Userinfo | UrlPart::Username) {
                credential = credential.with(Field::new("username"), decoded(url.username));
            }
            if matches!(url_part, UrlPart::Userinfo | UrlPart::Password) {
                let password = url
                    .password
                    .ok_or_else(|| unsupported("the URL in the slot holds no password"))?;
                credential = credential.with(Field::new("password"), decoded(password));
            }
            Ok(credential)
        }
        Part::Jdbc(part) => login::extract(Form::Jdbc, *part, bytes),
        Part::Libpq(part) => login::extract(Form::Libpq, *part, bytes),
        Part::Pgpass(part) => login::extract(Form::Pgpass, *part, bytes),
        Part::PasswordOf(login) => Ok(Credential::default()
            .with(Field::new("username"), SecretValue::new(login.clone().into_bytes()))
            .with(Field::new("password"), bytes.duplicate())),
    }
}

struct Split<'a> {
    scheme: &'a str,
    username: &'a str,
    password: Option<&'a str>,
    rest: &'a str,
}

/// Splits a URL at its userinfo and leaves every other byte as it is.
fn split(bytes: &[u8]) -> Result<Split<'_>, Refusal> {
    let not_a_url = || unsupported("the slot holds no URL with a user and a password");
    let text = std::str::from_utf8(bytes).map_err(|_| not_a_url())?;
    let (scheme, after) = text.split_once("://").ok_or_else(not_a_url)?;
    let authority_end = after.find(['/', '?', '#']).unwrap_or(after.len());
    let at = after[..authority_end].rfind('@').ok_or_else(not_a_url)?;
    let (userinfo, rest) = (&after[..at], &after[at + 1..]);
    let (username, password) = match userinfo.split_once(':') {
        Some((username, password)) => (username, Some(password)),
        None => (userinfo, None),
    };
    Ok(Split { scheme, username, password, rest })
}

fn need<'a>(credential: &'a Credential, field: &str) -> Result<&'a SecretValue, Refusal> {
    credential
        .field(&Field::new(field))
        .ok_or_else(|| unsupported(&format!("the credential has no field `{field}`")))
}

fn unsupported(message: &str) -> Refusal {
    Refusal::operator(RefusalKind::Unsupported, message)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use keywheel_core::plan::LoginPart;
    use keywheel_ground::postgres::Postgres;
    use proptest::prelude::*;

    use super::*;

    fn login(username: &str, password: &str) -> Credential {
        Credential::default()
            .with(Field::new("username"), SecretValue::new(username.into()))
            .with(Field::new("password"), SecretValue::new(password.into()))
    }

    fn composed(part: &Part, credential: &Credential, present: &str) -> Result<String, Refusal> {
        let present = SecretValue::new(present.into());
        let made = compose(part, credential, Some(&present))?.unwrap();
        assert!(
            extract(part, &made).is_ok_and(|back| match part {
                Part::Plain(_) | Part::PasswordOf(_) => true,
                _ => back.fields().all(|(field, value)| credential
                    .field(field)
                    .is_some_and(|wanted| wanted.same_as(value))),
            }),
            "what was written is read back"
        );
        Ok(String::from_utf8(made.expose().to_vec()).unwrap())
    }

    fn refused(part: &Part, present: &str) -> String {
        match composed(part, &login("new", "n/w"), present) {
            Ok(made) => panic!("`{made}` was made of it"),
            Err(refusal) => refusal.message,
        }
    }

    proptest! {
        #[test]
        fn h75_any_login_survives_its_url(username in ".{1,20}", password in ".{1,40}") {
            let url = SecretValue::new(b"postgres://old:pass@db:5432/app?sslmode=require".to_vec());
            let part = Part::Url(UrlPart::Userinfo);
            let made = compose(&part, &login(&username, &password), Some(&url));
            let made = made.unwrap_or_else(|e| panic!("{e}")).unwrap();
            let text = String::from_utf8(made.expose().to_vec()).unwrap();
            prop_assert!(text.ends_with("@db:5432/app?sslmode=require"));
            let back = extract(&part, &made).unwrap_or_else(|e| panic!("{e}"));
            prop_assert!(back.same_as(&login(&username, &password)));
        }

        #[test]
        fn h75_any_login_survives_its_jdbc_url(username in "[^\0]{1,20}", password in "[^\0]{0,40}") {
            let part = Part::Jdbc(LoginPart::Login);
            let present = "jdbc:postgresql://db:5432/app?ssl=true&password=p%20w&user=old&ApplicationName=a+b";
            let made = composed(&part, &login(&username, &password), present);
            let made = made.unwrap_or_else(|e| panic!("{e}"));
            let (before, query) = made.split_once('?').unwrap();
            prop_assert_eq!(before, "jdbc:postgresql://db:5432/app");
            prop_assert!(query.starts_with("ssl=true&password=") && query.ends_with("&ApplicationName=a+b"));
            let read: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).collect();
            prop_assert_eq!(&read[1].1, &password);
            prop_assert_eq!(&read[2].1, &username);
        }

        #[test]
        fn h75_any_login_survives_its_password_file(username in "[^\0\r\n]{1,20}", password in "[^\0\r\n]{0,40}") {
            let part = Part::Pgpass(LoginPart::Login);
            for present in ["old:p\\:w", "*:x"] {
                let made = composed(&part, &login(&username, &password), present);
                prop_assert!(made.is_ok());
            }
            let made = compose(&part, &login(&username, &password), None).ok().flatten().unwrap();
            prop_assert!(extract(&part, &made).is_ok_and(|back| back.same_as(&login(&username, &password))));
        }

        #[test]
        fn h75_any_login_survives_its_connection_string(
            username in "[^\0]{1,20}",
            password in "[^\0]{0,40}",
            former in "[a-z]{1,4}|'([a-z ]|\\\\\\\\){0,3}'|'it\\\\'s'|a\\\\ b",
        ) {
            let part = Part::Libpq(LoginPart::Login);
            let present = format!("host=db  user = {former}\tpassword={former} dbname='a b'\n");
            let made = composed(&part, &login(&username, &password), &present);
            let made = made.unwrap_or_else(|e| panic!("{e}"));
            prop_assert!(made.starts_with("host=db  user = '") && made.ends_with("' dbname='a b'\n"));
            let read: tokio_postgres::Config = made.parse().unwrap();
            prop_assert_eq!(read.get_user(), Some(username.as_str()));
            prop_assert_eq!(read.get_password(), Some(password.as_bytes()));
            prop_assert_eq!(read.get_dbname(), Some("a b"));
        }
    }

    #[test]
    fn only_the_owned_part_changes() {
        let (url, jdbc, libpq, pgpass) = (
            "redis://app:p%40ss@cache/0#x@y",
            "jdbc:postgresql:app?password=a%26b&user=old+one",
            "user=old password = 'it\\'s' host=/run",
            "it\\:s:p\\\\w:ignored",
        );
        let new = login("new", "n/w");
        for (part, present, wanted) in [
            (Part::Url(UrlPart::Password), url, "redis://app:n%2Fw@cache/0#x@y"),
            (Part::Url(UrlPart::Username), url, "redis://new:p%40ss@cache/0#x@y"),
            (
                Part::Jdbc(LoginPart::Password),
                jdbc,
                "jdbc:postgresql:app?password=n%2Fw&user=old+one",
            ),
            (Part::Jdbc(LoginPart::Username), jdbc, "jdbc:postgresql:app?password=a%26b&user=new"),
            (Part::Libpq(LoginPart::Password), libpq, "user=old password = 'n/w' host=/run"),
            (Part::Libpq(LoginPart::Username), libpq, "user='new' password = 'it\\'s' host=/run"),
            (Part::Pgpass(LoginPart::Password), pgpass, "it\\:s:n/w:ignored"),
            (Part::Pgpass(LoginPart::Username), pgpass, "new:p\\\\w:ignored"),
        ] {
            assert_eq!(composed(&part, &new, present).ok().as_deref(), Some(wanted));
        }
        let read = |part, text: &str| extract(&part, &SecretValue::new(text.into()));
        let former = login("old one", "a&b");
        assert!(read(Part::Jdbc(LoginPart::Login), jdbc).is_ok_and(|read| read.same_as(&former)));
        let former = login("old", "it's");
        assert!(read(Part::Libpq(LoginPart::Login), libpq).is_ok_and(|read| read.same_as(&former)));
    }

    #[test]
    fn a_string_in_which_no_login_is_found_for_certain_is_refused() {
        let (jdbc, libpq) = (Part::Jdbc(LoginPart::Login), Part::Libpq(LoginPart::Login));
        for (part, present) in [
            (&jdbc, "jdbc:postgresql://db/app"),
            (&jdbc, "jdbc:postgresql://db/app?user=kwcanary-slot"),
            (&jdbc, "postgresql://kwcanary-slot:x@db/app?user=a&password=b"),
            (&libpq, "host=db user=kwcanary-slot"),
            (&libpq, "user=kwcanary-slot password='open"),
            (&libpq, "user kwcanary-slot password=x"),
            (&libpq, "postgresql://kwcanary-slot:x@db/app"),
            (&libpq, ""),
        ] {
            let why = refused(part, present);
            assert!(why.contains("does not hold") && !why.contains("kwcanary"), "{why}");
        }
        let twice = refused(&jdbc, "jdbc:postgresql://db/app?user=a&password=b&user=c");
        assert_eq!(twice, "the slot names `user` more than once");
        assert!(refused(&libpq, "password=a user=b password=c").contains("more than once"));
        let pgpass = Part::Pgpass(LoginPart::Login);
        assert!(refused(&pgpass, "no password").contains("does not hold"));
        assert!(compose(&pgpass, &login("a", "one\ntwo"), None).is_err());
        assert!(compose(&jdbc, &login("a", "b"), None).is_err());
        assert!(compose(&libpq, &login("a\0", "b"), None).is_err());
    }

    #[test]
    fn another_login_leaves_the_password_of_a_login_as_it_is() {
        let part = Part::PasswordOf("app_a".into());
        let held = SecretValue::new(b"held".to_vec());
        let made = |login: &Credential, present| compose(&part, login, present).ok().flatten();
        let is = |made: Option<SecretValue>, wanted: &[u8]| made.unwrap().expose() == wanted;
        assert!(is(made(&login("app_a", "new"), Some(&held)), b"new"));
        assert!(is(made(&login("app_a", "new"), None), b"new"));
        assert!(is(made(&login("app_b", "new"), Some(&held)), b"held"));
        assert!(made(&login("app_b", "new"), None).is_none());
        assert!(extract(&part, &held).is_ok_and(|read| read.same_as(&login("app_a", "held"))));
    }

    /// Logs in with a connection string by `psql`, that is by libpq, and returns who it says one is.
    fn who_am_i(postgres: &Postgres, password: &str, conninfo: &str) -> String {
        // In the input, not among the arguments; psql would take double quotes out of it there.
        let quoted = conninfo.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n");
        let script = format!("\\connect -reuse-previous=off '{quoted}'\nSELECT current_user;\n");
        let mut psql = Command::new("psql");
        psql.args(["-X", "-q", "-A", "-t", "-h", "127.0.0.1", "-U", "postgres", "-p"]);
        psql.arg(postgres.port().to_string()).env("PGPASSWORD", password);
        let mut psql = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        psql.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let said = psql.wait_with_output().unwrap().stdout;
        String::from_utf8(said).unwrap().trim_end_matches('\n').to_owned()
    }

    #[tokio::test]
    async fn h75_the_clients_of_postgresql_read_what_is_written() {
        let superuser = "kwcanary-slot-superuser";
        let postgres = match Postgres::start(superuser, None) {
            Ok(postgres) => postgres,
            Err(why) => return writeln!(std::io::stdout(), "skipped: PostgreSQL ({why})").unwrap(),
        };
        let port = postgres.port();
        let at = format!("host=127.0.0.1 port={port} dbname=postgres");
        let admin: tokio_postgres::Config =
            format!("{at} user=postgres password='{superuser}'").parse().unwrap();
        let (admin, connection) = admin.connect(tokio_postgres::NoTls).await.unwrap();
        let served = tokio::spawn(connection);
        for (username, password) in [
            ("app_a", "plain-Value_0"),
            ("App B", "it's \\ a <word> with spaces "),
            ("ü'x\\", "%41+&=?#/:@$HOME `id` 鍵"),
        ] {
            let password = format!("kwcanary-slot{password}");
            let role = format!(
                "CREATE ROLE \"{username}\" LOGIN PASSWORD {}",
                format_args!("E'{}'", password.replace('\\', "\\\\").replace('\'', "\\'"))
            );
            admin.batch_execute(&role).await.unwrap();
            let login = login(username, &password);
            let libpq = Part::Libpq(LoginPart::Login);
            let libpq = composed(&libpq, &login, &format!("{at} user=x password=y")).ok().unwrap();
            assert_eq!(who_am_i(&postgres, superuser, &libpq), username);
            let url = format!("postgresql://x:y@127.0.0.1:{port}/postgres");
            let url = composed(&Part::Url(UrlPart::Userinfo), &login, &url).ok().unwrap();
            assert_eq!(who_am_i(&postgres, superuser, &url), username);
            for text in [libpq, url] {
                let config: tokio_postgres::Config = text.parse().unwrap();
                let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
                let served = tokio::spawn(connection);
                let row = client.query_one("SELECT current_user::text", &[]).await.unwrap();
                assert_eq!(row.get::<_, &str>(0), username);
                served.abort();
            }
        }
        served.abort();
    }
}
