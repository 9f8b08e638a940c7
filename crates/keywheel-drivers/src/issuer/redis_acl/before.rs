//! The password that was there before keywheel came, of which Redis keeps no name.
//!
//! Its hash is kept under a name of ours as soon as it is known. Of several passwords by hand none is guessed, and once it is
//! gone that is kept too, so that no other one is ever taken for it.

use keywheel_core::planted;
use keywheel_core::secret::Credential;
use keywheel_driver::{CallError, Refusal};

use super::acl::{MADE, acl_setuser, hash};
use super::{At, RedisAcl, Stopped, counted, half_done, unsupported};

/// Carries the hash of the password that was there before keywheel came, and none once that is gone.
pub(super) const BEFORE: &str = "keywheel-before";

impl RedisAcl {
    pub(super) fn before(&self) -> String {
        format!("{BEFORE}@{}", self.config.user)
    }

    /// What nodes keep of the password that was there before keywheel came: the hash of the credential in use, or that it is
    /// gone where no node has that. Where nobody told it, the only one by hand.
    pub(super) fn note_of_before(
        &self,
        nodes: &[At<'_>],
        in_use: Option<&Credential>,
    ) -> Option<redis::Cmd> {
        let before = self.before();
        if nodes.iter().any(|at| at.acl.marker(&before).is_some()) {
            return None;
        }
        let password = in_use.and_then(|credential| self.password(credential).ok());
        let is_held = |hash: &str| nodes.iter().any(|at| at.acl.by_hand().contains(&hash));
        match password.map(hash) {
            Some(hash) if is_held(&hash) => Some(marked_before(&before, &hash)),
            Some(_) if !planted!("another_password_taken_for_the_one_in_use") => {
                Some(marked_gone(&before))
            }
            _ => Some(marked_before(&before, &self.guess_before(nodes).ok().flatten()?)),
        }
    }

    /// The one password by hand, where keywheel made none yet and ended none by this name; a refusal where it may be another one.
    pub(super) fn guess_before(&self, nodes: &[At<'_>]) -> Result<Option<String>, Refusal> {
        let is_gone = nodes.iter().any(|at| at.acl.before_is_gone);
        if is_gone && !planted!("another_password_ended_by_a_repeated_revoke") {
            return Ok(None);
        }
        let mut found: Vec<&str> = nodes.iter().flat_map(|at| at.acl.by_hand()).collect();
        found.sort_unstable();
        found.dedup();
        let is_first = is_gone || nodes.iter().all(|at| at.acl.markers.is_empty());
        match found.as_slice() {
            [] => Ok(None),
            [only] if is_first => Ok(Some((*only).to_owned())),
            [first, ..] if planted!("any_password_by_hand_is_meant") => Ok(Some((*first).into())),
            found => Err(unsupported(&format!(
                "`{user}` has {} that keywheel did not make, and which one is meant, if any, is not known; remove it with `ACL SETUSER {user} !<hash>`",
                counted(found.len(), "password"),
                user = self.config.user
            ))),
        }
    }

    /// Nobody could tell a second time which password was there before. Its hash is kept until every node ended it, and from
    /// then on that it is gone.
    pub(super) async fn forget_before(&self, nodes: &mut [At<'_>]) -> Result<(), CallError> {
        for at in nodes {
            let kept = at.keep(&marked_gone(&self.before())).await;
            kept.map_err(|trouble| half_done("ended", &[], at.node, Stopped::Saving(trouble)))?;
        }
        Ok(())
    }
}

pub(super) fn marked_before(id: &str, hash: &str) -> redis::Cmd {
    marked_gone(id).arg(format!("#{hash}")).clone()
}

/// Keeps a name without a hash.
fn marked_gone(id: &str) -> redis::Cmd {
    acl_setuser(id).arg(&["reset", "off"]).arg(format!("{MADE}0")).clone()
}

#[cfg(test)]
mod tests {
    use keywheel_core::version::IssuedId;
    use keywheel_driver::conformance::canary;

    use super::super::bench::{World, mint, of};
    use super::*;

    #[tokio::test]
    async fn h92_a_repeated_revoke_ends_no_other_password_by_hand() {
        let Some(world) = World::start(2) else { return };
        let issuer = world.issuer();
        let by_hand = canary("redis-by-hand");
        let add = async || {
            for node in [0, 1] {
                let added = format!("#{}", hash(&of(&by_hand)));
                let _: () = world.ask(node, &["ACL", "SETUSER", "app", &added]).await;
            }
        };
        add().await;
        let (second, before) = (canary("redis-second"), IssuedId::new("keywheel-before@app"));
        mint(&*issuer, "kw-1-1", &second, world.previous()).await.unwrap();
        for _ in 0..3 {
            assert_eq!(issuer.revoke(&before).await, Ok(()));
            assert!(!world.accepts(0, "app", &world.first).await);
            for node in [0, 1] {
                assert!(world.accepts(node, "app", &by_hand).await, "another one was ended");
            }
        }
        assert_eq!(issuer.list("kw-").await.unwrap().len(), 1);
        assert_eq!(issuer.list("").await.unwrap().len(), 1, "what is gone is not live");
        assert!(issuer.suspend().unwrap().resume(&before).await.is_err());

        // Also where nothing was minted: an emergency may end the suspect first, and make its successor then.
        let Some(world) = World::start(1) else { return };
        let issuer = world.issuer();
        issuer.revoke(&before).await.unwrap();
        let added = format!("#{}", hash(&of(&by_hand)));
        let _: () = world.ask(0, &["ACL", "SETUSER", "app", &added]).await;
        issuer.revoke(&before).await.unwrap();
        mint(&*issuer, "kw-1-1", &second, world.previous()).await.unwrap();
        issuer.revoke(&before).await.unwrap();
        assert!(!world.accepts(0, "app", &world.first).await);
        assert!(world.accepts(0, "app", &by_hand).await && world.accepts(0, "app", &second).await);
        assert_eq!(issuer.list("").await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_node_that_was_down_is_told_later_which_password_was_there_before() {
        let Some(mut world) = World::start(2) else { return };
        let issuer = world.issuer();
        world.nodes[1].kill();
        let before = IssuedId::new("keywheel-before@app");
        let half = issuer.revoke(&before).await;
        assert!(matches!(half, Err(CallError::Unknown(_))), "{half:?}");
        world.nodes[1].begin().unwrap();
        let by_hand = canary("redis-by-hand");
        let added = format!("#{}", hash(&of(&by_hand)));
        let _: () = world.ask(0, &["ACL", "SETUSER", "app", &added]).await;
        for _ in 0..2 {
            issuer.revoke(&before).await.unwrap();
            assert!(!world.accepts(0, "app", &world.first).await);
            assert!(!world.accepts(1, "app", &world.first).await, "it lives where nobody was told");
            assert!(world.accepts(0, "app", &by_hand).await, "another one was ended");
        }
        // One that is adopted afterwards is meant anew.
        let previous = Some(("keywheel-before@app", by_hand.as_str()));
        mint(&*issuer, "kw-1-1", &canary("redis-second"), previous).await.unwrap();
        issuer.revoke(&before).await.unwrap();
        assert!(!world.accepts(0, "app", &by_hand).await);
    }

    #[tokio::test]
    async fn h92_no_other_password_is_taken_for_the_one_in_use() {
        let Some(world) = World::start(2) else { return };
        let issuer = world.issuer();
        let by_hand = canary("redis-by-hand");
        for node in [0, 1] {
            let change = [hash(&of(&by_hand)), hash(&of(&world.first))];
            let [added, removed] = [format!("#{}", change[0]), format!("!{}", change[1])];
            let _: () = world.ask(node, &["ACL", "SETUSER", "app", &added, &removed]).await;
        }
        let before = IssuedId::new("keywheel-before@app");
        mint(&*issuer, "kw-1-1", &canary("redis-second"), world.previous()).await.unwrap();
        assert_eq!(issuer.list("").await.unwrap().len(), 1);
        issuer.suspend().unwrap().suspend(&before).await.unwrap();
        issuer.revoke(&before).await.unwrap();
        for node in [0, 1] {
            assert!(world.accepts(node, "app", &by_hand).await, "another one was ended");
        }
    }

    #[tokio::test]
    async fn after_a_mint_that_was_not_told_the_one_in_use_none_is_guessed() {
        let Some(world) = World::start(1) else { return };
        let issuer = world.issuer();
        mint(&*issuer, "kw-1-1", &canary("redis-second"), None).await.unwrap();
        let before = IssuedId::new("keywheel-before@app");
        let refused = issuer.revoke(&before).await;
        let Err(CallError::Refused(refusal)) = refused else { panic!("{refused:?}") };
        assert!(refusal.message.contains("which one is meant, if any, is not known"), "{refusal}");
        assert!(world.accepts(0, "app", &world.first).await);
        let removed = format!("!{}", hash(&of(&world.first)));
        let _: () = world.ask(0, &["ACL", "SETUSER", "app", &removed]).await;
        assert_eq!(issuer.revoke(&before).await, Ok(()));
    }

    #[tokio::test]
    async fn h92_of_two_passwords_by_hand_none_is_guessed() {
        let Some(world) = World::start(2) else { return };
        let issuer = world.issuer();
        let by_hand = canary("redis-by-hand");
        let added = format!("#{}", hash(&of(&by_hand)));
        let _: () = world.ask(1, &["ACL", "SETUSER", "app", &added]).await;
        mint(&*issuer, "kw-1-1", &canary("redis-second"), None).await.unwrap();
        let refused = issuer.revoke(&IssuedId::new("keywheel-before@app")).await;
        let Err(CallError::Refused(refusal)) = refused else { panic!("{refused:?}") };
        assert!(refusal.message.contains("2 passwords that keywheel did not make"), "{refusal}");
        for node in [0, 1] {
            assert!(world.accepts(node, "app", &world.first).await);
        }
        assert!(world.accepts(1, "app", &by_hand).await);
    }
}
