//! What is looked at before anything is changed: the user, the nodes that belong to those listed, and the rights of the admin.

use keywheel_driver::{CallError, Finding};

use super::cluster::is_clustered;
use super::{At, Persistence, RedisAcl, TARGET, forgets};
use crate::redis::{Trouble, field};

impl RedisAcl {
    /// Returns everything that stands in the way of a rotation, and what is worth knowing.
    pub(super) async fn findings(&self) -> Result<Vec<Finding>, CallError> {
        let mut nodes = Vec::new();
        for (node, asked) in self.wherever().await? {
            match asked {
                Ok(asked) => nodes.push(asked),
                Err(trouble @ Trouble::Said("WRONGPASS" | "NOAUTH" | "NOPERM")) => {
                    let admin = &self.config.admin.user;
                    let words = trouble.in_words(node);
                    return Ok(vec![Finding::blocks(format!(
                        "the admin user `{admin}` is not accepted, or may not do what is needed: {words}"
                    ))]);
                }
                Err(trouble) => return Err(trouble.refusal(TARGET, node).into()),
            }
        }
        let mut findings = Vec::new();
        for at in &mut nodes {
            findings.extend(self.examine(at).await?);
        }
        findings.extend(self.differences(&nodes));
        findings.extend(self.missing_of_cluster(&mut nodes).await?);
        if !self.config.other_nodes {
            findings.extend(missing_nodes(&nodes));
        }
        Ok(findings)
    }

    /// Looks at what one node says of itself and of the user.
    async fn examine(&self, at: &mut At<'_>) -> Result<Vec<Finding>, CallError> {
        let user = &self.config.user;
        let address = at.node.address();
        let mut findings = Vec::new();
        let Some(account) = &at.acl.account else {
            return Ok(vec![Finding::blocks(format!("node `{address}` has no user `{user}`"))]);
        };
        if account.any_password {
            findings.push(Finding::blocks(format!(
                "node `{address}` lets `{user}` log in with any password (`nopass`)"
            )));
        }
        if !account.on {
            findings.push(Finding::blocks(format!("user `{user}` is off at node `{address}`")));
        }
        if at.acl.open {
            findings.push(Finding::note(format!(
                "node `{address}` needs no password of whoever logs in as `default`"
            )));
        }
        match at.persistence {
            Persistence::None => findings.push(Finding::blocks(forgets(at.node))),
            Persistence::Configuration if user == "default" => findings.push(Finding::blocks(format!(
                "`requirepass` at node `{address}` is a password of `default` too; keep users in a file (`aclfile`), or rotate another user"
            ))),
            Persistence::Configuration => findings.push(Finding::note(format!(
                "node `{address}` keeps users in its configuration, which `CONFIG REWRITE` writes as a whole"
            ))),
            Persistence::AclFile => {}
        }
        findings.extend(self.replication(at).await?);
        findings.extend(self.rights(at).await?);
        Ok(findings)
    }

    /// A replica that logs in to its primary as this user would be cut off with the former password.
    async fn replication(&self, at: &mut At<'_>) -> Result<Option<Finding>, CallError> {
        if field(&at.info, "role") != Some("slave") {
            return Ok(None);
        }
        let asked = at.link.ask(redis::cmd("CONFIG").arg("GET").arg("masteruser")).await;
        let asked: Vec<String> = asked.map_err(|trouble| trouble.refusal(TARGET, at.node))?;
        let user = asked.get(1).map(String::as_str).filter(|user| !user.is_empty());
        let is_same = user.unwrap_or("default") == self.config.user;
        Ok(is_same.then(|| {
            Finding::blocks(format!(
                "node `{}` is fed by its primary as `{}` (`masteruser`); give replication a user of its own",
                at.node.address(),
                self.config.user
            ))
        }))
    }

    /// Asks whether the admin may do what a rotation does, where the server can be asked (Redis 7).
    async fn rights(&self, at: &mut At<'_>) -> Result<Vec<Finding>, CallError> {
        let persist = match at.persistence {
            Persistence::AclFile => ["ACL", "SAVE"],
            _ => ["CONFIG", "REWRITE"],
        };
        let needed = [
            &["ACL", "SETUSER", "x"][..],
            &["ACL", "DELUSER", "x"],
            &["ACL", "LOG"],
            &persist,
            &["CLIENT", "LIST"],
            &["CLIENT", "KILL", "ID", "1"],
        ];
        let mut findings = Vec::new();
        for command in needed {
            let mut question = redis::cmd("ACL");
            question.arg("DRYRUN").arg(&self.config.admin.user).arg(command);
            match at.link.ask::<String>(&question).await {
                Ok(answer) if answer == "OK" => {}
                Ok(_) => findings.push(Finding::blocks(format!(
                    "the admin user `{}` may not call `{} {}` at node `{}`",
                    self.config.admin.user,
                    command[0],
                    command[1],
                    at.node.address()
                ))),
                Err(Trouble::Said(_)) => break,
                Err(trouble) => return Err(trouble.refusal(TARGET, at.node).into()),
            }
        }
        Ok(findings)
    }

    /// What nodes say differently of the user, and which passwords nobody labelled.
    fn differences(&self, nodes: &[At<'_>]) -> Vec<Finding> {
        let user = &self.config.user;
        let mut findings = Vec::new();
        let accounts: Vec<_> =
            nodes.iter().filter_map(|at| Some((at, at.acl.account.as_ref()?))).collect();
        let Some((first, known)) = accounts.first() else { return findings };
        for (at, account) in &accounts[1..] {
            let (one, other) = (first.node.address(), at.node.address());
            if account.rules != known.rules {
                findings.push(Finding::note(format!(
                    "`{user}` may do other things at node `{other}` than at `{one}`"
                )));
            }
            if account.hashes != known.hashes {
                findings.push(Finding::note(format!(
                    "`{user}` has other passwords at node `{other}` ({}) than at `{one}` ({})",
                    account.hashes.len(),
                    known.hashes.len()
                )));
            }
        }
        let by_hand = first.acl.by_hand().len();
        if by_hand > 1 {
            findings.push(Finding::note(format!(
                "`{user}` has {by_hand} passwords that keywheel did not make; only the one that the stores hold is ended"
            )));
        }
        findings
    }
}

/// Nodes that belong to those listed, and are not among them.
fn missing_nodes(nodes: &[At<'_>]) -> Vec<Finding> {
    let number = |at: &At<'_>, name| field(&at.info, name).and_then(|n| n.parse::<usize>().ok());
    let mut findings = Vec::new();
    let mut groups: Vec<&str> = Vec::new();
    // A replica that has lost its primary belongs to no group that could be counted.
    let is_linked = |at: &&At<'_>| field(&at.info, "master_link_status").unwrap_or("up") == "up";
    for at in nodes.iter().filter(|at| !is_clustered(at)).filter(is_linked) {
        let Some(group) = field(&at.info, "master_replid").filter(|group| !groups.contains(group))
        else {
            continue;
        };
        groups.push(group);
        let members = || nodes.iter().filter(|at| field(&at.info, "master_replid") == Some(group));
        let replicas: usize = members().filter_map(|at| number(at, "connected_slaves")).sum();
        let has_primary = members().any(|at| field(&at.info, "role") == Some("master"));
        let missing = match has_primary {
            true => (replicas + 1).saturating_sub(members().count()),
            false => 1,
        };
        if missing > 0 {
            let what = if has_primary { "replicas" } else { "primary" };
            findings.push(Finding::blocks(format!(
                "{missing} {what} of node `{}` not listed in `nodes`; each node has users of its own (`other_nodes: true` where nobody logs in to them)",
                at.node.address()
            )));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use keywheel_core::time::Span;
    use keywheel_driver::conformance::canary;
    use keywheel_ground::redis::{Settings, Users};
    use serde_json::json;

    use super::super::acl::{acl_setuser, hash};
    use super::super::bench::{ADMIN_RULES, World, at, mint, of, started};
    use super::*;
    use crate::redis::Node;

    #[test]
    fn the_guide_gives_the_admin_what_it_needs() {
        let guide = include_str!("../../../../../docs/guide/redis.md");
        assert!(guide.contains(ADMIN_RULES));
    }

    #[tokio::test]
    async fn h19_what_would_fail_later_blocks_at_first() {
        let Some(world) = World::start(1) else { return };
        let blocked = async |changes: serde_json::Value, words: &str| {
            let issuer = world.build(changes).unwrap_or_else(|e| panic!("{e}"));
            let blocks = world.blocks(&*issuer).await;
            assert!(blocks.iter().any(|block| block.contains(words)), "{words}: {blocks:?}");
        };
        std::fs::write(world.folder.path().join("other"), &world.other).unwrap();
        let admin = |user: &str, file: &str| json!({ "admin": { "user": user, "password": { "file": file } } });
        blocked(admin("keywheel", "other"), "the admin user `keywheel` is not accepted").await;
        blocked(json!({ "user": "nobody" }), "has no user `nobody`").await;
        let _: () = world.ask(0, &["ACL", "SETUSER", "other", "-client|kill"]).await;
        blocked(admin("other", "other"), "may not call `CLIENT KILL`").await;
        let _: () = world.ask(0, &["ACL", "SETUSER", "other", "-@admin"]).await;
        blocked(admin("other", "other"), "may not do what is needed").await;
        let _: () = world.ask(0, &["ACL", "SETUSER", "other", "off"]).await;
        blocked(json!({ "user": "other" }), "user `other` is off").await;
        let _: () = world.ask(0, &["ACL", "SETUSER", "other", "on", "nopass"]).await;
        blocked(json!({ "user": "other" }), "with any password").await;

        let Some(forgetful) = started(&Settings { users: Users::Nowhere, ..Settings::default() })
        else {
            return;
        };
        let set = |user: &str, password: &str| {
            acl_setuser(user)
                .arg("on")
                .arg(format!("#{}", hash(&of(password))))
                .arg("+@all")
                .clone()
        };
        let address = format!("127.0.0.1:{}", forgetful.port());
        let node = Node::new(&address, None, None, Span::seconds(5)).unwrap();
        let mut link = node.log_in(None).await.unwrap();
        link.ask::<()>(&set("keywheel", &world.admin)).await.unwrap();
        link.ask::<()>(&set("app", &world.first)).await.unwrap();
        let nodes = json!({ "nodes": [address] });
        blocked(nodes.clone(), "keeps users in memory only").await;
        let issuer = world.build(nodes).unwrap_or_else(|e| panic!("{e}"));
        let refused = mint(&*issuer, "kw-1-1", &canary("redis-second"), None).await;
        assert!(matches!(refused, Err(CallError::Refused(_))), "{refused:?}");
    }

    #[tokio::test]
    async fn a_replica_is_not_forgotten() {
        let Some(mut world) = World::start(1) else { return };
        let primary = world.nodes[0].port();
        let feeds = |user: &str, password: &str| {
            vec![format!("masteruser {user}"), format!("masterauth {password}")]
        };
        for (user, password) in [("other", world.other.clone()), ("app", world.first.clone())] {
            let settings = Settings {
                lines: world.lines(),
                replica_of: Some(primary),
                configuration: feeds(user, &password),
                ..Settings::default()
            };
            let Some(replica) = started(&settings) else { return };
            world.nodes.push(replica);
        }
        let since = std::time::Instant::now();
        for replica in [1, 2] {
            let info = async || world.ask::<String>(replica, &["INFO", "replication"]).await;
            while field(&info().await, "master_link_status") != Some("up") {
                assert!(since.elapsed() < std::time::Duration::from_secs(60), "no replica comes");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
        let ports = world.ports();
        let blocks = async |ports: &[u16]| world.blocks(&*world.issuer_at(ports)).await;
        let one = blocks(&ports[..1]).await;
        assert!(one[0].starts_with("2 replicas of node"), "{one:?}");
        let two = blocks(&ports[1..2]).await;
        assert!(two[0].starts_with("1 primary of node"), "{two:?}");
        let all = blocks(&ports).await;
        let [all] = all.as_slice() else { panic!("{all:?}") };
        assert!(all.contains("is fed by its primary as `app`"), "{all}");
        let on_purpose = json!({ "nodes": at(&ports[..1]), "other_nodes": true });
        let on_purpose = world.build(on_purpose).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(world.blocks(&*on_purpose).await, Vec::<String>::new());

        let second = canary("redis-second");
        mint(&*world.issuer(), "kw-1-1", &second, None).await.unwrap();
        assert!(world.accepts(1, "app", &second).await, "a replica has users of its own");
    }
}
