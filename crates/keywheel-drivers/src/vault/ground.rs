//! A server with a database engine, and the PostgreSQL behind it.

use std::io::Write;
use std::sync::Arc;

use keywheel_core::secret::{Credential, Field, SecretValue};
use keywheel_driver::Issuer;
use keywheel_driver::conformance::canary;
use keywheel_ground::openbao::OpenBao;
use keywheel_ground::postgres::Postgres;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Build, Context, IssuerConfig};

/// Both servers, and a folder for tokens.
pub(crate) struct Ground {
    pub(crate) bao: OpenBao,
    pub(crate) postgres: Postgres,
    pub(crate) admin: tokio_postgres::Client,
    pub(crate) folder: TempDir,
}

impl Ground {
    /// Starts both; none where one of them is missing here.
    pub(crate) async fn start() -> Option<Self> {
        let skipped = |why: String| writeln!(std::io::stdout(), "skipped: {why}").unwrap();
        let password = canary("superuser");
        let bao = OpenBao::start().map_err(skipped).ok()?;
        let postgres = Postgres::start_with(&password, None, &["fsync=off", "log_statement=all"]);
        let postgres = postgres.map_err(skipped).ok()?;
        let place =
            format!("host=127.0.0.1 port={} dbname=postgres user=postgres", postgres.port());
        let mut place: tokio_postgres::Config = place.parse().unwrap();
        let (admin, connection) =
            place.password(&password).connect(tokio_postgres::NoTls).await.unwrap();
        drop(tokio::spawn(connection));
        bao.enable_database(postgres.port(), "postgres", &password).unwrap();
        let ground = Self { bao, postgres, admin, folder: tempfile::tempdir().unwrap() };
        let root = ground.bao.token().to_owned();
        ground.keep("root", &root);
        Some(ground)
    }

    pub(crate) fn keep(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// Where logins are tried.
    pub(crate) fn login_at(&self) -> String {
        format!("postgresql://127.0.0.1:{}/postgres", self.postgres.port())
    }

    /// Builds an issuer of this kind, with these settings beside those that all have.
    pub(crate) fn issuer(&self, kind: &str, settings: &Value) -> Arc<dyn Issuer> {
        let mut driver = json!({
            "address": self.bao.address(), "auth": { "token": { "file": "root" } }, "login_at": self.login_at(),
        });
        for (key, value) in settings.as_object().into_iter().flatten() {
            driver[key] = value.clone();
        }
        let config: IssuerConfig = serde_json::from_value(json!({ kind: driver })).unwrap();
        config.build(&Context::at(self.folder.path())).unwrap()
    }

    pub(crate) async fn sql(&self, statements: &str) {
        self.admin.batch_execute(statements).await.unwrap();
    }

    pub(crate) async fn count(&self, question: &str) -> i64 {
        self.admin.query_one(question, &[]).await.unwrap().get(0)
    }
}

/// A login as a credential.
pub(crate) fn login(username: &str, password: &str) -> Credential {
    let value = |text: &str| SecretValue::new(text.into());
    Credential::default()
        .with(Field::new("username"), value(username))
        .with(Field::new("password"), value(password))
}
