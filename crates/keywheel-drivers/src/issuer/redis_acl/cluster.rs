//! Redis Cluster: clients are sent from node to node, and a replica takes over by itself, so that every node must know a password.
//!
//! A node is known by the id that it has in its cluster, whatever it is called in `nodes`.

use std::collections::{BTreeMap, BTreeSet};

use keywheel_core::planted;
use keywheel_driver::{CallError, Finding};

use super::{At, RedisAcl, TARGET};
use crate::redis::{Trouble, field};

/// A node as another one, or it itself, tells of it.
struct Member {
    id: String,
    /// `host:port`; the host may be missing where it tells of itself.
    address: String,
    is_itself: bool,
    is_replica: bool,
    is_down: bool,
}

impl Member {
    /// Reads a line of `CLUSTER NODES`: `<id> <host>:<port>@<bus>[,<name>…] <flag>,<flag>… …`. None for one that is not taken in yet.
    fn read(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (id, address, flags) = (words.next()?, words.next()?, words.next()?);
        let has = |flag| flags.split(',').any(|one| one == flag);
        let address = address.split(['@', ',']).next().unwrap_or_default();
        (!has("handshake")).then(|| Self {
            id: id.into(),
            address: address.into(),
            is_itself: has("myself"),
            is_replica: has("slave"),
            is_down: has("fail") || has("noaddr"),
        })
    }

    fn in_words(&self) -> String {
        let part = if self.is_replica { "replica" } else { "primary" };
        let down = if self.is_down { ", and down: `CLUSTER FORGET` it if for good" } else { "" };
        format!("`{}` ({part}{down})", self.address)
    }
}

/// Returns whether a node belongs to a cluster.
pub(super) fn is_clustered(at: &At<'_>) -> bool {
    field(&at.info, "cluster_enabled") == Some("1") && !planted!("cluster_not_asked")
}

impl RedisAcl {
    /// Names the nodes of a cluster that are not listed. Nobody can say that no client logs in to them.
    pub(super) async fn missing_of_cluster(
        &self,
        nodes: &mut [At<'_>],
    ) -> Result<Option<Finding>, CallError> {
        let (mut listed, mut members) = (BTreeSet::new(), BTreeMap::new());
        for at in nodes.iter_mut().filter(|at| is_clustered(at)) {
            let asked = at.link.ask(redis::cmd("CLUSTER").arg("NODES")).await;
            let told: String = match asked {
                Err(Trouble::Said("NOPERM")) => {
                    return Ok(Some(Finding::blocks(format!(
                        "the admin user `{}` may not call `CLUSTER NODES` at node `{}`, which belongs to a cluster",
                        self.config.admin.user,
                        at.node.address()
                    ))));
                }
                asked => asked.map_err(|trouble| trouble.refusal(TARGET, at.node))?,
            };
            for member in told.lines().filter_map(Member::read) {
                if member.is_itself {
                    listed.insert(member.id.clone());
                }
                members.insert(member.id.clone(), member);
            }
        }
        members.retain(|id, _| !listed.contains(id));
        let missing: Vec<String> = members.values().map(Member::in_words).collect();
        Ok((!missing.is_empty()).then(|| {
            Finding::blocks(format!(
                "`nodes` must list every node of the cluster, since each has users of its own and clients are sent from one to another: add {}",
                missing.join(", ")
            ))
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use keywheel_driver::conformance::canary;
    use keywheel_driver::issuer::Verdict;
    use keywheel_ground::redis::{Redis, Settings};
    use serde_json::json;

    use super::super::bench::{World, at, login, mint, started};
    use super::*;

    /// Three primaries that share the slots, and a replica of the first; none where Redis cannot be had.
    async fn cluster() -> Option<World> {
        let mut world = World::start(0)?;
        let feeds = [("masteruser", "other".to_owned()), ("masterauth", world.other.clone())];
        let settings = Settings {
            lines: world.lines(),
            configuration: feeds.map(|(name, value)| format!("{name} {value}")).into(),
            cluster: true,
            ..Settings::default()
        };
        for _ in 0..4 {
            world.nodes.push(started(&settings)?);
        }
        for (node, slots) in [(0, ["0", "5460"]), (1, ["5461", "10922"]), (2, ["10923", "16383"])] {
            let _: () =
                by_other(&world, node, &["CLUSTER", "ADDSLOTSRANGE", slots[0], slots[1]]).await;
        }
        let bus = |redis: &Redis| redis.bus().unwrap().to_string();
        for node in &world.nodes[1..] {
            let (port, bus) = (node.port().to_string(), bus(node));
            let _: () = by_other(&world, 0, &["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).await;
        }
        let begun = Instant::now();
        let id: String = by_other(&world, 0, &["CLUSTER", "MYID"]).await;
        let mut follows = false;
        while !(follows && settled(&world).await) {
            assert!(begun.elapsed() < Duration::from_secs(60), "the nodes do not find each other");
            tokio::time::sleep(Duration::from_millis(20)).await;
            if !follows {
                let mut link = world.link(3, "other", &world.other).await.unwrap();
                let follow = redis::cmd("CLUSTER").arg(&["REPLICATE", &id]).clone();
                follows = link.ask::<()>(&follow).await.is_ok();
            }
        }
        Some(world)
    }

    async fn by_other<T: redis::FromRedisValue>(world: &World, node: usize, words: &[&str]) -> T {
        let mut link = world.link(node, "other", &world.other).await.unwrap();
        link.ask(redis::cmd(words[0]).arg(&words[1..])).await.unwrap()
    }

    /// Whether every node knows all four, and which of them is the replica.
    async fn settled(world: &World) -> bool {
        for node in 0..4 {
            let told: String = by_other(world, node, &["CLUSTER", "NODES"]).await;
            let members: Vec<Member> = told.lines().filter_map(Member::read).collect();
            let replicas = members.iter().filter(|member| member.is_replica).count();
            let info: String = by_other(world, node, &["CLUSTER", "INFO"]).await;
            if (members.len(), replicas) != (4, 1) || field(&info, "cluster_state") != Some("ok") {
                return false;
            }
        }
        true
    }

    #[tokio::test]
    async fn h89_every_node_of_a_cluster_must_be_listed() {
        let Some(mut world) = cluster().await else { return };
        let ports = world.ports();
        let blocks = async |changes: serde_json::Value| {
            let issuer = world.build(changes).unwrap_or_else(|e| panic!("{e}"));
            world.blocks(&*issuer).await
        };
        for (rule, is_denied) in [("-cluster|nodes", true), ("+cluster|nodes", false)] {
            for node in 0..4 {
                let _: () = by_other(&world, node, &["ACL", "SETUSER", "keywheel", rule]).await;
            }
            let blocks = blocks(json!({})).await;
            let says = |block: &String| block.contains("`keywheel` may not call `CLUSTER NODES`");
            assert_eq!(blocks.iter().any(says), is_denied, "{blocks:?}");
        }
        for (listed, missing) in [(0..1, 1..4), (0..3, 3..4), (1..4, 0..1)] {
            let some = json!({ "nodes": at(&ports[listed]), "other_nodes": true });
            let [found] = &blocks(some).await[..] else { panic!("one finding") };
            for (node, address) in at(&ports).iter().enumerate() {
                assert_eq!(found.contains(address), missing.contains(&node), "{found}");
            }
            let replica = format!("`127.0.0.1:{}` (replica)", ports[3]);
            assert_eq!(found.contains(&replica), missing.contains(&3), "{found}");
        }
        assert_eq!(blocks(json!({})).await, Vec::<String>::new());

        let issuer = world.issuer();
        let second = canary("redis-second");
        mint(&*issuer, "kw-1-1", &second, world.previous()).await.unwrap();
        assert_eq!(issuer.verify(&login(&second)).await, Ok(Verdict::Accepted));
        // One that does not answer is a node all the same, and comes back with the passwords that it had.
        world.nodes[3].kill();
        let three = json!({ "nodes": at(&ports[..3]) });
        let issuer = world.build(three).unwrap_or_else(|e| panic!("{e}"));
        let down = world.blocks(&*issuer).await;
        assert!(down[0].contains(&format!("`127.0.0.1:{}` (replica", ports[3])), "{down:?}");
    }

    #[test]
    fn a_member_is_read_whatever_it_is_called() {
        let read =
            |line: &str| Member::read(line).map(|member| (member.in_words(), member.is_itself));
        let primary = "07c3 10.0.0.1:7000@17000,cache-1.internal,shard-id=69bc myself,master - 0 1 1 connected 0-5460";
        assert_eq!(read(primary), Some(("`10.0.0.1:7000` (primary)".into(), true)));
        let down = "6ec2 [::1]:7001@17001 slave,fail 07c3 1 1 1 disconnected";
        let words = "`[::1]:7001` (replica, and down: `CLUSTER FORGET` it if for good)";
        assert_eq!(read(down), Some((words.into(), false)));
        assert_eq!(read("8f2a 10.0.0.3:7002@17002 handshake - 0 0 0 connected"), None);
        assert_eq!(read(""), None);
    }
}
