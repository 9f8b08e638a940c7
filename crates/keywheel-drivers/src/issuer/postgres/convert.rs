//! From one login that owns everything to an owner and two logins that take turns.
//!
//! The statements are made from what the server has, and are exactly those that are run: one transaction for the roles, and one
//! for each database in which a login owns something or was given a right. Nothing is dropped. An application that works
//! meanwhile keeps its rights, since its login is made a member of the owner before anything is given to it.

use std::collections::BTreeSet;

use keywheel_driver::issuer::{Change, Convert};
use keywheel_driver::{CallError, Refusal, RefusalKind};
use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio_postgres::Client;

use super::{Admin, Postgres, nothing_done};

/// Settings whose value is a list of names, and that keep its quotes.
const LISTS: [&str; 5] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
];

#[async_trait::async_trait]
impl Convert for Postgres {
    async fn changes(&self) -> Result<Vec<Change>, CallError> {
        let admin = self.admin().await?;
        let mut changes =
            Script { admin: &admin, of: self, changes: Vec::new(), made_owner: false };
        let place: String = one(&admin, "SELECT current_database()::text").await?;
        changes.roles(&place).await?;
        for database in self.concerned(&admin, &place).await? {
            let client = match database == place {
                true => None,
                false => Some(self.admin_in(&database).await?),
            };
            changes.database(client.as_deref().unwrap_or(&admin), &database).await?;
        }
        Ok(changes.changes)
    }

    async fn run(&self, changes: &[Change]) -> Result<(), CallError> {
        for together in changes.chunk_by(|a, b| a.place == b.place) {
            let admin = self.admin_in(&together[0].place).await?;
            let change = self.change(admin).await?;
            for one in together {
                change.run(&one.what).await.map_err(|error| failed(error, one))?;
            }
            change.commit().await?;
        }
        Ok(())
    }
}

/// What is done so far stays, and is no longer among the changes when they are made anew.
fn failed(error: CallError, at: &Change) -> CallError {
    match error {
        CallError::Refused(refusal) => {
            let message =
                format!("{}, at `{}` in database `{}`", refusal.message, at.what, at.place);
            Refusal { message, ..refusal }.into()
        }
        unknown @ CallError::Unknown(_) => unknown,
    }
}

async fn one(admin: &Client, query: &str) -> Result<String, CallError> {
    let row = admin.query_one(query, &[]).await.map_err(|error| nothing_done(&error))?;
    Ok(row.get(0))
}

impl Postgres {
    async fn admin_in(&self, database: &str) -> Result<Admin<'_>, CallError> {
        let mut place = self.place().await?;
        place.dbname(database);
        self.connected(&place).await
    }

    /// The databases that the logins use, and all others in which one of them has anything.
    async fn concerned(&self, admin: &Client, own: &str) -> Result<BTreeSet<String>, CallError> {
        let rows = admin
            .query(
                "SELECT DISTINCT d.datname::text FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid \
                 JOIN pg_database d ON d.oid = s.dbid OR (s.dbid = 0 AND s.classid = 'pg_database'::regclass AND s.objid = d.oid) \
                 WHERE s.refclassid = 'pg_authid'::regclass AND r.rolname = ANY($1) AND s.deptype IN ('o', 'a', 'r')",
                &[&self.config.logins],
            )
            .await
            .map_err(|error| nothing_done(&error))?;
        let found = rows.iter().map(|row| row.get(0));
        Ok(found.chain([own.to_owned()]).chain(self.config.databases.iter().cloned()).collect())
    }
}

/// What an application keeps under a name of its own may be a secret: it is copied within the server, and stands in no statement
/// that is shown, logged or sent.
fn copied(other: &str, database: &str, key: &str, set: &str) -> String {
    let (role, database) = (escape_literal(other), escape_literal(database));
    let value = format!(
        "SELECT substr(one, strpos(one, '=') + 1) FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole \
         LEFT JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) one \
         WHERE r.rolname = {role} AND coalesce(d.datname, '') = {database} AND starts_with(one, {})",
        escape_literal(&format!("{key}="))
    );
    let key = escape_literal(key);
    // The names are others' words: the body is a literal, which none of them can end.
    let body = format!("BEGIN PERFORM set_config({key}, ({value}), true); {set} FROM CURRENT; END");
    format!("DO {}", escape_literal(&body))
}

/// Writes a list of names as its parts, each of which may be quoted in the list, or empty.
fn list(value: &str) -> String {
    let (mut parts, mut part, mut quoted) = (Vec::new(), String::new(), false);
    let mut characters = value.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                part.push('"');
                characters.next();
            }
            '"' => quoted = !quoted,
            ',' if !quoted => parts.push(std::mem::take(&mut part)),
            ' ' if !quoted => {}
            other => part.push(other),
        }
    }
    parts.push(part);
    parts.iter().map(|part| escape_literal(part)).collect::<Vec<_>>().join(", ")
}

struct Script<'a> {
    admin: &'a Client,
    of: &'a Postgres,
    changes: Vec<Change>,
    /// Whether the owner is new, so that all that it owns afterwards was given to it here.
    made_owner: bool,
}

impl Script<'_> {
    fn add(&mut self, place: &str, what: String, undo: impl Into<Option<String>>) {
        let change = Change { place: place.to_owned(), what, undo: undo.into() };
        if !self.changes.contains(&change) {
            self.changes.push(change);
        }
    }

    fn owner(&self) -> String {
        escape_identifier(&self.of.config.owner)
    }

    async fn names(&self, query: &str, login: &str) -> Result<Vec<String>, CallError> {
        let rows =
            self.admin.query(query, &[&login]).await.map_err(|error| nothing_done(&error))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    async fn exists(&self, role: &str) -> Result<bool, CallError> {
        Ok(!self
            .names("SELECT rolname::text FROM pg_roles WHERE rolname = $1", role)
            .await?
            .is_empty())
    }

    /// The owner, the second login as the first one is, and both members of the owner.
    async fn roles(&mut self, place: &str) -> Result<(), CallError> {
        let (owner, config) = (self.owner(), &self.of.config);
        if !self.exists(&config.owner).await? {
            self.made_owner = true;
            self.add(place, format!("CREATE ROLE {owner} NOLOGIN"), format!("DROP ROLE {owner}"));
        }
        let mut there = Vec::new();
        for login in &config.logins {
            if self.exists(login).await? {
                there.push(login.as_str());
            }
        }
        for login in &there {
            self.inherits(login).await?;
        }
        let [present, ..] = there.as_slice() else {
            let message = format!("there is no role `{}`", config.logins.join("`, nor `"));
            return Err(Refusal::operator(RefusalKind::NotFound, message).into());
        };
        let missing: Vec<&String> =
            config.logins.iter().filter(|login| !there.contains(&login.as_str())).collect();
        for login in &missing {
            let name = escape_identifier(login);
            let like = self.attributes(present).await?;
            self.add(
                place,
                format!("CREATE ROLE {name} NOLOGIN{like}"),
                format!("DROP ROLE {name}"),
            );
            self.as_the_other(place, present, login).await?;
        }
        for login in &config.logins {
            let of = self.memberships(login).await?;
            if !of.contains(&config.owner) {
                let name = escape_identifier(login);
                self.add(
                    place,
                    format!("GRANT {owner} TO {name}"),
                    format!("REVOKE {owner} FROM {name}"),
                );
            }
        }
        Ok(())
    }

    /// A login that does not inherit would lose what the owner is given.
    async fn inherits(&self, login: &str) -> Result<(), CallError> {
        let query = "SELECT rolname::text FROM pg_roles WHERE rolname = $1 AND rolinherit";
        if !self.names(query, login).await?.is_empty() {
            return Ok(());
        }
        let message = format!(
            "login `{login}` does not inherit the rights of its roles: ALTER ROLE {} INHERIT",
            escape_identifier(login)
        );
        Err(Refusal::operator(RefusalKind::Unsupported, message).into())
    }

    async fn memberships(&self, login: &str) -> Result<Vec<String>, CallError> {
        let query = "SELECT r.rolname::text FROM pg_auth_members a JOIN pg_roles r ON r.oid = a.roleid \
                     JOIN pg_roles m ON m.oid = a.member WHERE m.rolname = $1 ORDER BY 1";
        self.names(query, login).await
    }

    async fn attributes(&self, login: &str) -> Result<String, CallError> {
        let query = "SELECT concat(CASE WHEN rolinherit THEN '' ELSE ' NOINHERIT' END, \
                     CASE WHEN rolcreatedb THEN ' CREATEDB' END, CASE WHEN rolcreaterole THEN ' CREATEROLE' END, \
                     CASE WHEN rolreplication THEN ' REPLICATION' END, CASE WHEN rolbypassrls THEN ' BYPASSRLS' END, \
                     CASE WHEN rolconnlimit >= 0 THEN ' CONNECTION LIMIT ' || rolconnlimit END) \
                     FROM pg_roles WHERE rolname = $1";
        Ok(self.names(query, login).await?.concat())
    }

    /// Gives a new login the memberships and the settings of the other one.
    async fn as_the_other(
        &mut self,
        place: &str,
        other: &str,
        login: &str,
    ) -> Result<(), CallError> {
        let name = escape_identifier(login);
        for role in self.memberships(other).await? {
            let role = escape_identifier(&role);
            self.add(
                place,
                format!("GRANT {role} TO {name}"),
                format!("REVOKE {role} FROM {name}"),
            );
        }
        let query = "SELECT coalesce(d.datname::text, ''), unnest(s.setconfig) FROM pg_db_role_setting s \
                     JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase WHERE r.rolname = $1";
        let rows =
            self.admin.query(query, &[&other]).await.map_err(|error| nothing_done(&error))?;
        for row in &rows {
            let (database, setting): (String, String) = (row.get(0), row.get(1));
            let Some((key, value)) = setting.split_once('=') else { continue };
            if key == "role" {
                continue;
            }
            let within = match database.as_str() {
                "" => String::new(),
                name => format!(" IN DATABASE {}", escape_identifier(name)),
            };
            let of_new = format!("ALTER ROLE {name}{within}");
            let quoted = escape_identifier(key);
            let set = match key.contains('.') {
                true => copied(other, &database, key, &format!("{of_new} SET {quoted}")),
                false if LISTS.contains(&key) => {
                    format!("{of_new} SET {quoted} TO {}", list(value))
                }
                false => format!("{of_new} SET {quoted} TO {}", escape_literal(value)),
            };
            self.add(place, set, format!("{of_new} RESET {quoted}"));
        }
        Ok(())
    }

    /// Everything in one database goes to the owner, and both logins act as the owner there.
    async fn database(&mut self, client: &Client, database: &str) -> Result<(), CallError> {
        let logins = self.of.config.logins.clone();
        for login in &logins {
            self.belongings(client, database, login).await?;
            self.rights(client, database, login).await?;
        }
        for login in &logins {
            let query = "SELECT 'yes' FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole \
                         JOIN pg_database d ON d.oid = s.setdatabase \
                         WHERE r.rolname = $1 AND d.datname = current_database() AND ('role=' || $2) = ANY(s.setconfig)";
            let set = client.query(query, &[login, &self.of.config.owner]).await;
            if set.map_err(|error| nothing_done(&error))?.is_empty() {
                let (name, within) = (escape_identifier(login), escape_identifier(database));
                self.add(
                    database,
                    format!("ALTER ROLE {name} IN DATABASE {within} SET role TO {}", self.owner()),
                    format!("ALTER ROLE {name} IN DATABASE {within} RESET role"),
                );
            }
        }
        Ok(())
    }

    /// What a login owns in a database, or in the server.
    async fn belongings(
        &mut self,
        client: &Client,
        database: &str,
        login: &str,
    ) -> Result<(), CallError> {
        let query = "SELECT 'yes' FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid \
                     WHERE s.refclassid = 'pg_authid'::regclass AND r.rolname = $1 AND s.deptype = 'o' \
                     AND s.dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) LIMIT 1";
        let owns = client.query(query, &[&login]).await.map_err(|error| nothing_done(&error))?;
        if owns.is_empty() {
            return Ok(());
        }
        let (name, owner) = (escape_identifier(login), self.owner());
        // What an owner had before cannot be told from what it is given.
        let undo = self.made_owner.then(|| format!("REASSIGN OWNED BY {owner} TO {name}"));
        self.add(database, format!("REASSIGN OWNED BY {name} TO {owner}"), undo);
        Ok(())
    }

    /// Rights that a login was given on what belongs to others, and what it gives by default.
    async fn rights(
        &mut self,
        client: &Client,
        database: &str,
        login: &str,
    ) -> Result<(), CallError> {
        let rows = client.query(RIGHTS, &[&login]).await.map_err(|error| nothing_done(&error))?;
        let (name, owner) = (escape_identifier(login), self.owner());
        for row in &rows {
            let (right, object, grantable): (String, String, bool) =
                (row.get(0), row.get(1), row.get(2));
            let option = if grantable { " WITH GRANT OPTION" } else { "" };
            self.add(
                database,
                format!("GRANT {right} ON {object} TO {owner}{option}"),
                format!("REVOKE {right} ON {object} FROM {owner}"),
            );
            self.add(
                database,
                format!("REVOKE {right} ON {object} FROM {name}"),
                format!("GRANT {right} ON {object} TO {name}{option}"),
            );
        }
        let rows = client.query(DEFAULTS, &[&login]).await.map_err(|error| nothing_done(&error))?;
        for row in &rows {
            let (within, right, kind, to, is_given): (
                Option<String>,
                String,
                String,
                String,
                bool,
            ) = (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4));
            let within = within.map(|schema| format!(" IN SCHEMA {}", escape_identifier(&schema)));
            let within = within.unwrap_or_default();
            let to = if to.is_empty() { "PUBLIC".to_owned() } else { escape_identifier(&to) };
            let give = |role: &str| {
                let of = format!("ALTER DEFAULT PRIVILEGES FOR ROLE {role}{within}");
                format!("{of} GRANT {right} ON {kind} TO {to}")
            };
            let take = |role: &str| {
                let of = format!("ALTER DEFAULT PRIVILEGES FOR ROLE {role}{within}");
                format!("{of} REVOKE {right} ON {kind} FROM {to}")
            };
            if is_given {
                self.add(database, give(&owner), take(&owner));
                self.add(database, take(&name), give(&name));
            } else {
                self.add(database, take(&owner), give(&owner));
                self.add(database, give(&name), take(&name));
            }
        }
        Ok(())
    }
}

const RIGHTS: &str = "
    SELECT x.privilege_type, o.object, x.is_grantable FROM (
        SELECT relacl AS acl, relowner AS owner, format('%s %I.%I', CASE WHEN relkind = 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, n.nspname, relname) AS object
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
        UNION ALL SELECT nspacl, nspowner, format('SCHEMA %I', nspname) FROM pg_namespace
        UNION ALL SELECT datacl, datdba, format('DATABASE %I', datname) FROM pg_database WHERE datname = current_database()
        UNION ALL SELECT proacl, proowner, format('ROUTINE %s', oid::regprocedure) FROM pg_proc
        UNION ALL SELECT typacl, typowner, format('TYPE %s', oid::regtype) FROM pg_type WHERE typtype <> 'c'
        UNION ALL SELECT lanacl, lanowner, format('LANGUAGE %I', lanname) FROM pg_language
        UNION ALL SELECT srvacl, srvowner, format('FOREIGN SERVER %I', srvname) FROM pg_foreign_server
    ) o CROSS JOIN LATERAL aclexplode(o.acl) x JOIN pg_roles r ON r.oid = x.grantee
    WHERE r.rolname = $1 AND o.owner <> r.oid ORDER BY 2, 1";

/// What a login gives by default beyond the usual, and what it does not give that is usual.
const DEFAULTS: &str = "
    WITH own AS (
        SELECT d.oid, n.nspname::text AS within, d.defaclobjtype AS kind, d.defaclrole AS role, x.grantee, x.privilege_type AS privilege
        FROM pg_default_acl d LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace
        CROSS JOIN LATERAL aclexplode(d.defaclacl) x
    ), usual AS (
        SELECT d.oid, NULL::text AS within, d.defaclobjtype AS kind, d.defaclrole AS role, x.grantee, x.privilege_type AS privilege
        FROM pg_default_acl d
        CROSS JOIN LATERAL aclexplode(acldefault(CASE d.defaclobjtype WHEN 'S' THEN 's' ELSE d.defaclobjtype END::\"char\", d.defaclrole)) x
        WHERE d.defaclnamespace = 0
    ), differ AS (
        SELECT *, true AS given FROM (SELECT * FROM own EXCEPT SELECT * FROM usual) a
        UNION ALL SELECT *, false FROM (SELECT * FROM usual EXCEPT SELECT * FROM own) b
    )
    SELECT d.within, d.privilege,
           CASE d.kind WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'ROUTINES' WHEN 'T' THEN 'TYPES' ELSE 'SCHEMAS' END,
           coalesce(g.rolname::text, ''), d.given
    FROM differ d JOIN pg_roles r ON r.oid = d.role LEFT JOIN pg_roles g ON g.oid = d.grantee
    WHERE r.rolname = $1 AND d.grantee <> d.role ORDER BY 1, 3, 2, 4";

#[cfg(test)]
mod tests {
    use super::list;

    #[test]
    fn a_list_of_names_is_written_part_by_part() {
        assert_eq!(list("public, pg_catalog"), "'public', 'pg_catalog'");
        assert_eq!(list(r#""$user", public"#), "'$user', 'public'");
        assert_eq!(list(r#""""#), "''");
        assert_eq!(list(r#""a, ""b""", c"#), r#"'a, "b"', 'c'"#);
    }
}
