//! What is looked at before a login takes its turn: whether the two differ in anything that the application would notice (H68),
//! whether anything belongs to a login instead of the owner (H69), and whether the admin login may do what it has to.
//!
//! Everything here reads. Each difference is named, since "permission denied" after the switch names none.

use std::collections::{BTreeMap, BTreeSet};

use keywheel_core::planted;
use keywheel_driver::{CallError, Finding};
use postgres_protocol::escape::escape_identifier;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::{Config, nothing_done};

/// How many objects are named before the rest is only counted.
const NAMED: usize = 5;

/// Returns everything that stands in the way of a turn, and what is worth knowing.
pub(super) async fn findings(admin: &Client, config: &Config) -> Result<Vec<Finding>, CallError> {
    let server = admin.query_typed_one(SERVER, &[]).await.map_err(|error| nothing_done(&error))?;
    if server.get("recovering") {
        return Ok(vec![Finding::blocks(
            "the server is a standby: `admin_url` must name the primary",
        )]);
    }
    let look = Look { admin, config, server };
    let mut findings = look.roles().await?;
    if findings.iter().any(|finding| finding.severity == keywheel_driver::Severity::Blocks) {
        return Ok(findings);
    }
    // None waits for the answer to another: all go over the connection at once.
    let looks = tokio::try_join!(
        look.admin_may(),
        look.databases(),
        look.attributes(),
        look.settings(),
        look.memberships(),
        look.belongings(),
        look.host_rules(),
        look.room(),
        look.dormant(),
    )?;
    let (a, b, c, d, e, f, g, h, i) = looks;
    findings.extend([a, b, c, d, e, f, g, h, i].concat());
    Ok(findings)
}

const SERVER: &str = "SELECT pg_is_in_recovery() AS recovering, current_user::text AS admin, \
     current_database()::text AS database, current_setting('server_version_num')::int AS version, \
     pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS reads, \
     (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS super, \
     (SELECT rolcreaterole FROM pg_roles WHERE rolname = current_user) AS creates";

struct Look<'a> {
    admin: &'a Client,
    config: &'a Config,
    server: Row,
}

impl Look<'_> {
    /// Asks with one message: a statement that is prepared first takes two, and a pooler may not have it any more.
    async fn rows(
        &self,
        query: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, CallError> {
        self.admin.query_typed(query, parameters).await.map_err(|error| nothing_done(&error))
    }

    /// Returns the two logins, where there are two.
    fn pair(&self) -> Option<(&str, &str)> {
        match self.config.logins.as_slice() {
            [a, b] => Some((a, b)),
            _ => None,
        }
    }

    /// Every database that the logins use.
    fn used(&self) -> Vec<String> {
        let own: String = self.server.get("database");
        let others = self.config.databases.iter().filter(|name| **name != own).cloned();
        std::iter::once(own.clone()).chain(others).collect()
    }

    /// The owner and the logins are there, and each is what it should be.
    async fn roles(&self) -> Result<Vec<Finding>, CallError> {
        let names: Vec<&String> = self.config.logins.iter().chain([&self.config.owner]).collect();
        let rows = self
            .rows(
                "SELECT rolname::text, rolcanlogin, rolsuper, \
                 coalesce(shobj_description(oid, 'pg_authid'), '') FROM pg_roles WHERE rolname = ANY($1)",
                &[(&names, Type::NAME_ARRAY)],
            )
            .await?;
        let found: BTreeMap<String, &Row> = rows.iter().map(|row| (row.get(0), row)).collect();
        let mut findings = Vec::new();
        for name in &names {
            if !found.contains_key(*name) {
                findings.push(Finding::blocks(format!("there is no role `{name}`")));
            }
        }
        let is = |name: &str, column: usize| found.get(name).is_some_and(|row| row.get(column));
        if is(&self.config.owner, 1) {
            let message = format!(
                "the owner `{}` may log in; a role that owns everything should not: ALTER ROLE {} NOLOGIN",
                self.config.owner,
                escape_identifier(&self.config.owner)
            );
            findings.push(Finding::note(message));
        }
        for login in &self.config.logins {
            if is(login, 2) {
                findings.push(Finding::blocks(format!("login `{login}` is a superuser")));
            }
        }
        let unknown = |login: &&String| {
            let comment = found.get(*login).map(|row| row.get::<_, String>(3)).unwrap_or_default();
            is(login, 1) && super::Mark::read(&comment).1.is_none()
        };
        let unknown: Vec<_> = self.config.logins.iter().filter(unknown).collect();
        if unknown.len() > 1 {
            let message = format!(
                "both logins may log in and neither was given a version: which one rests? (ALTER ROLE … NOLOGIN for `{}` or `{}`)",
                unknown[0], unknown[1]
            );
            findings.push(Finding::blocks(message));
        }
        Ok(findings)
    }

    /// The admin login may change the logins and end their sessions, and is none of them (H76).
    async fn admin_may(&self) -> Result<Vec<Finding>, CallError> {
        let (name, is_super): (String, bool) = (self.server.get("admin"), self.server.get("super"));
        let mut findings = Vec::new();
        if is_super {
            findings.push(Finding::note(format!(
                "the admin login `{name}` is a superuser; CREATEROLE and pg_signal_backend are enough"
            )));
            return Ok(findings);
        }
        if !self.server.get::<_, bool>("creates") {
            let message =
                format!("the admin login `{name}` may not change roles: it lacks CREATEROLE");
            return Ok(vec![Finding::blocks(message)]);
        }
        if !self.server.get::<_, bool>("reads") {
            findings.push(Finding::blocks(format!(
                "the admin login `{name}` may not see the sessions of others: GRANT pg_read_all_stats TO {}",
                escape_identifier(&name)
            )));
        }
        let version: i32 = self.server.get("version");
        for login in &self.config.logins {
            let rights = self
                .rows(
                    "SELECT pg_has_role(current_user, $1, 'MEMBER WITH ADMIN OPTION'), \
                     pg_has_role(current_user, 'pg_signal_backend', 'USAGE') OR pg_has_role(current_user, $1, 'USAGE')",
                    &[(login, Type::NAME)],
                )
                .await?;
            let (grants, signals): (bool, bool) = (rights[0].get(0), rights[0].get(1));
            if version >= 160_000 && !grants {
                findings.push(Finding::blocks(format!(
                    "the admin login `{name}` may not change `{login}`: GRANT {} TO {} WITH ADMIN OPTION",
                    escape_identifier(login),
                    escape_identifier(&name)
                )));
            }
            if !signals {
                findings.push(Finding::blocks(format!(
                    "the admin login `{name}` may not end the sessions of `{login}`: GRANT pg_signal_backend TO {}",
                    escape_identifier(&name)
                )));
            }
        }
        Ok(findings)
    }

    /// In each database the logins may connect and act as the owner.
    async fn databases(&self) -> Result<Vec<Finding>, CallError> {
        let used = self.used();
        let rows = self
            .rows(
                "SELECT d.datname::text, r.rolname::text, has_database_privilege(r.oid, d.oid, 'CONNECT'), \
                 EXISTS (SELECT FROM pg_db_role_setting s WHERE s.setrole = r.oid AND s.setdatabase = d.oid \
                         AND ('role=' || $3) = ANY(s.setconfig)) \
                 FROM pg_database d CROSS JOIN pg_roles r WHERE d.datname = ANY($1) AND r.rolname = ANY($2) ORDER BY 1, 2",
                &[
                    (&used, Type::NAME_ARRAY),
                    (&self.config.logins, Type::NAME_ARRAY),
                    (&self.config.owner, Type::TEXT),
                ],
            )
            .await?;
        let mut findings = Vec::new();
        let there: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
        for missing in used.iter().filter(|name| !there.contains(*name)) {
            findings.push(Finding::blocks(format!("there is no database `{missing}`")));
        }
        for row in &rows {
            let (database, login): (String, String) = (row.get(0), row.get(1));
            if !row.get::<_, bool>(2) {
                findings.push(Finding::blocks(format!(
                    "login `{login}` may not connect to database `{database}`: GRANT CONNECT ON DATABASE {} TO {}",
                    escape_identifier(&database),
                    escape_identifier(&self.config.owner)
                )));
            }
            if !row.get::<_, bool>(3) {
                findings.push(Finding::blocks(format!(
                    "login `{login}` does not act as the owner in database `{database}`: ALTER ROLE {} IN DATABASE {} SET role TO {}",
                    escape_identifier(&login),
                    escape_identifier(&database),
                    escape_identifier(&self.config.owner)
                )));
            }
        }
        Ok(findings)
    }

    /// What a login may do by itself, and how many connections it may have.
    async fn attributes(&self) -> Result<Vec<Finding>, CallError> {
        let Some((a, b)) = self.pair() else { return Ok(Vec::new()) };
        let rows = self
            .rows(
                "SELECT rolname::text, jsonb_build_object('creates databases', rolcreatedb, \
                 'creates roles', rolcreaterole, 'replicates', rolreplication, 'bypasses row security', rolbypassrls, \
                 'connection limit', rolconnlimit)::text, rolvaliduntil < now(), rolinherit FROM pg_roles WHERE rolname = ANY($1)",
                &[(&self.config.logins, Type::NAME_ARRAY)],
            )
            .await?;
        let mut findings = Vec::new();
        let mut attributes = BTreeMap::new();
        for row in &rows {
            let login: String = row.get(0);
            if row.get::<_, Option<bool>>(2) == Some(true) {
                findings.push(Finding::blocks(format!(
                    "the password of login `{login}` is no longer valid (VALID UNTIL)"
                )));
            }
            if !row.get::<_, bool>(3) {
                findings.push(Finding::blocks(format!(
                    "login `{login}` does not inherit the rights of the owner: ALTER ROLE {} INHERIT",
                    escape_identifier(&login)
                )));
            }
            let text: String = row.get(1);
            let all: BTreeMap<String, serde_json::Value> =
                serde_json::from_str(&text).unwrap_or_default();
            attributes.insert(login, all);
        }
        let (Some(of_a), Some(of_b)) = (attributes.get(a), attributes.get(b)) else {
            return Ok(findings);
        };
        for (name, in_a) in of_a {
            let in_b = &of_b[name];
            if in_a != in_b && !planted!("attributes_not_compared") {
                findings.push(Finding::blocks(format!(
                    "`{a}` and `{b}` differ in `{name}`: {in_a} and {in_b}"
                )));
            }
        }
        Ok(findings)
    }

    /// `search_path`, timeouts and the like that hang on a login.
    async fn settings(&self) -> Result<Vec<Finding>, CallError> {
        let Some((a, b)) = self.pair().filter(|_| !planted!("settings_not_compared")) else {
            return Ok(Vec::new());
        };
        let rows = self
            .rows(
                "SELECT r.rolname::text, coalesce(d.datname::text, ''), unnest(s.setconfig) \
                 FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole \
                 LEFT JOIN pg_database d ON d.oid = s.setdatabase WHERE r.rolname = ANY($1)",
                &[(&self.config.logins, Type::NAME_ARRAY)],
            )
            .await?;
        let mut settings: BTreeMap<String, BTreeSet<(String, String, String)>> = BTreeMap::new();
        for row in &rows {
            let (login, database, setting): (String, String, String) =
                (row.get(0), row.get(1), row.get(2));
            let (name, value) = setting.split_once('=').unwrap_or((&setting, ""));
            settings.entry(login).or_default().insert((name.into(), database, value.into()));
        }
        let none = BTreeSet::new();
        let of = |login: &str| settings.get(login).unwrap_or(&none);
        // What is set may be a secret, so it is compared and never shown.
        let differing: BTreeSet<(&str, &str)> = of(a)
            .symmetric_difference(of(b))
            .map(|(name, database, _)| (name.as_str(), database.as_str()))
            .collect();
        let told = differing.into_iter().map(|(name, database)| {
            let place = match database {
                "" => String::new(),
                database => format!(" in database `{database}`"),
            };
            Finding::blocks(format!("`{a}` has another setting of `{name}` than `{b}`{place}"))
        });
        Ok(told.collect())
    }

    /// Both are members of the same roles, of the owner first of all.
    async fn memberships(&self) -> Result<Vec<Finding>, CallError> {
        let rows = self
            .rows(
                "SELECT m.rolname::text, r.rolname::text FROM pg_auth_members a \
                 JOIN pg_roles r ON r.oid = a.roleid JOIN pg_roles m ON m.oid = a.member WHERE m.rolname = ANY($1)",
                &[(&self.config.logins, Type::NAME_ARRAY)],
            )
            .await?;
        let mut roles: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for row in &rows {
            roles.entry(row.get(0)).or_default().insert(row.get(1));
        }
        let mut findings = Vec::new();
        for login in &self.config.logins {
            if !roles.get(login).is_some_and(|of| of.contains(&self.config.owner)) {
                findings.push(Finding::blocks(format!(
                    "login `{login}` is no member of the owner: GRANT {} TO {}",
                    escape_identifier(&self.config.owner),
                    escape_identifier(login)
                )));
            }
        }
        if let Some((a, b)) = self.pair() {
            roles.values_mut().for_each(|of| of.retain(|role| *role != self.config.owner));
            findings.extend(only_one(a, b, &roles, |login, role| {
                format!("only `{login}` is a member of role `{role}`")
            }));
        }
        Ok(findings)
    }

    /// What belongs to a login itself, and rights that were given to one login and not to the owner, in every database of the
    /// server. The other login has neither.
    async fn belongings(&self) -> Result<Vec<Finding>, CallError> {
        if self.pair().is_none() || planted!("belongings_not_compared") {
            return Ok(Vec::new());
        }
        let rows = self
            .rows(
                "SELECT r.rolname::text, s.deptype::text, coalesce(d.datname::text, ''), count(*), \
                 (array_agg(CASE WHEN s.dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) \
                  THEN pg_describe_object(s.classid, s.objid, s.objsubid) END))[1:5] \
                 FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid LEFT JOIN pg_database d ON d.oid = s.dbid \
                 WHERE s.refclassid = 'pg_authid'::regclass AND r.rolname = ANY($1) AND s.deptype IN ('o', 'a', 'r') \
                 GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
                &[(&self.config.logins, Type::NAME_ARRAY)],
            )
            .await?;
        let mut findings = Vec::new();
        for row in &rows {
            let (login, kind, database, count): (String, String, String, i64) =
                (row.get(0), row.get(1), row.get(2), row.get(3));
            let named: Vec<Option<String>> = row.get(4);
            let named: Vec<String> = named.into_iter().flatten().take(NAMED).collect();
            let place = match database.as_str() {
                "" => "the server".to_owned(),
                name => format!("database `{name}`"),
            };
            let which =
                if named.is_empty() { String::new() } else { format!(": {}", named.join(", ")) };
            let what = match kind.as_str() {
                "o" => format!(
                    "`{login}` itself owns {count} objects in {place}{which}; the owner should"
                ),
                "r" => format!("{count} row security policies in {place} name `{login}`{which}"),
                _ => format!(
                    "`{login}` itself was given rights on {count} objects in {place}{which}; the owner should"
                ),
            };
            findings.push(Finding::blocks(what));
        }
        Ok(findings)
    }

    /// Lines of `pg_hba.conf` that name one login and not the other, where the admin login may read them.
    async fn host_rules(&self) -> Result<Vec<Finding>, CallError> {
        let Some((a, b)) = self.pair() else { return Ok(Vec::new()) };
        let rules = "SELECT line_number, user_name @> ARRAY[$1::text], user_name @> ARRAY[$2::text] \
                     FROM pg_hba_file_rules WHERE error IS NULL";
        let rows = match self.admin.query_typed(rules, &[(&a, Type::TEXT), (&b, Type::TEXT)]).await
        {
            Ok(rows) => rows,
            Err(error) if error.code().is_some_and(|code| code.code() == "42501") => {
                return Ok(vec![Finding::note(
                    "the admin login may not read pg_hba.conf; whether both logins are let in shows when each is tried",
                )]);
            }
            Err(error) => return Err(nothing_done(&error)),
        };
        let mut findings = Vec::new();
        for row in &rows {
            let (line, names_a, names_b): (i32, bool, bool) = (row.get(0), row.get(1), row.get(2));
            if names_a != names_b {
                let (named, other) = if names_a { (a, b) } else { (b, a) };
                findings.push(Finding::blocks(format!(
                    "line {line} of pg_hba.conf names `{named}` and not `{other}`"
                )));
            }
        }
        Ok(findings)
    }

    /// While readers move, both logins hold connections.
    async fn room(&self) -> Result<Vec<Finding>, CallError> {
        let rows = self
            .rows(
                "SELECT current_setting('max_connections')::bigint, count(*), count(*) FILTER (WHERE usename = ANY($1)) \
                 FROM pg_stat_activity WHERE backend_type = 'client backend'",
                &[(&self.config.logins, Type::NAME_ARRAY)],
            )
            .await?;
        let (most, all, ours): (i64, i64, i64) = (rows[0].get(0), rows[0].get(1), rows[0].get(2));
        if all + ours <= most {
            return Ok(Vec::new());
        }
        Ok(vec![Finding::note(format!(
            "the logins hold {ours} of {most} connections, and {all} are taken: while readers move, there may be too few"
        ))])
    }

    /// Logins that the server keeps for later, in user mappings of foreign servers and in subscriptions (H74). Only a superuser
    /// may read them; anybody may know that they are there.
    async fn dormant(&self) -> Result<Vec<Finding>, CallError> {
        if planted!("dormant_not_looked_for") {
            return Ok(Vec::new());
        }
        let mappings = self
            .rows("SELECT srvname::text, umoptions FROM pg_user_mappings ORDER BY umid", &[])
            .await?;
        let mut findings = Vec::new();
        for row in &mappings {
            let (server, options): (String, Option<Vec<String>>) = (row.get(0), row.get(1));
            let what = format!("a user mapping of foreign server `{server}`");
            findings.extend(self.keeper(&what, options.map(|options| options.join(" "))));
        }
        let is_super: bool = self.server.get("super");
        let subscriptions = match is_super {
            true => "SELECT subname::text, subconninfo FROM pg_subscription",
            false => "SELECT subname::text, NULL::text FROM pg_subscription",
        };
        for row in &self.rows(subscriptions, &[]).await? {
            let (name, conninfo): (String, Option<String>) = (row.get(0), row.get(1));
            findings.extend(self.keeper(&format!("subscription `{name}`"), conninfo));
        }
        Ok(findings)
    }

    /// Says of something that logs in later whether it keeps a password of ours, as far as its options can be read.
    fn keeper(&self, what: &str, options: Option<String>) -> Option<Finding> {
        let Some(options) = options else {
            let message = format!("{what} may keep a password of a login; a superuser can tell");
            return Some(Finding::note(message));
        };
        let names = |login: &&String| {
            options.split_whitespace().any(|word| word == format!("user={login}"))
        };
        let login = self.config.logins.iter().find(names)?;
        let rest = "and is no store of this secret: it fails when it logs in next";
        Some(Finding::note(format!("{what} keeps the password of `{login}`, {rest}")))
    }
}

/// Names what one of the two has and the other has not.
fn only_one(
    a: &str,
    b: &str,
    all: &BTreeMap<String, BTreeSet<String>>,
    say: impl Fn(&str, &str) -> String,
) -> Vec<Finding> {
    let none = BTreeSet::new();
    let (of_a, of_b) = (all.get(a).unwrap_or(&none), all.get(b).unwrap_or(&none));
    let of = |login: &str, own: &BTreeSet<String>, other: &BTreeSet<String>| {
        own.difference(other).map(|what| Finding::blocks(say(login, what))).collect::<Vec<_>>()
    };
    [of(a, of_a, of_b), of(b, of_b, of_a)].concat()
}
