//! Pins: a store or a workload is touched where it was found first, and nowhere else: the name by which it is reached may lead to
//! another cluster, or another engine, tomorrow.

use std::future::Future;

use keywheel_core::call::{CallError, Refusal, RefusalKind};
use keywheel_core::plan::Pin;
use keywheel_core::planted;

/// Says why what is pinned may not be touched where it is reached now; none where that is the place of its pin. `identity` is the
/// [store's](crate::Store::identity) or the [workload's](crate::Workload::identity), and is asked only where there is a pin.
///
/// # Errors
/// [`CallError`] where the place gives no answer.
pub async fn elsewhere(
    identity: impl Future<Output = Result<Option<Pin>, CallError>>,
    pinned: Option<&Pin>,
) -> Result<Option<String>, CallError> {
    let Some(pinned) = pinned.filter(|_| !planted!("pin_ignored")) else { return Ok(None) };
    let found = identity.await?;
    if found.as_ref().is_some_and(|found| pinned.admits(found)) {
        return Ok(None);
    }
    let found = found.map_or("one without a name".into(), |found| found.to_string());
    Ok(Some(format!("it is pinned to {pinned}, and another place answers: {found}")))
}

/// Refuses to touch `what`, such as "workload `backend`", at another place than the one it is pinned to, and at a place that has a
/// name, or may have one, where it is pinned to none and was not written by us: what our first write made got its name by it.
///
/// # Errors
/// A refusal that names both, or one that may pass where the place gives no answer.
pub async fn check(
    identity: impl Future<Output = Result<Option<Pin>, CallError>>,
    what: &str,
    pinned: Option<&Pin>,
    is_written: bool,
) -> Result<(), Refusal> {
    let objection = match pinned {
        Some(_) => elsewhere(identity, pinned).await,
        None if is_written && !planted!("made_place_is_another") => return Ok(()),
        None if planted!("unpinned_place_is_touched") => return Ok(()),
        None => identity.await.map(|found| found.map(|found| unpinned(&found))),
    };
    match objection {
        Ok(None) => Ok(()),
        Ok(Some(objection)) => {
            Err(Refusal::operator(RefusalKind::Permission, format!("{what}: {objection}")))
        }
        Err(CallError::Refused(refusal)) => Err(refusal),
        // Nothing was done yet, whatever becomes of the question.
        Err(CallError::Unknown(why)) => {
            Err(Refusal::retry(RefusalKind::Unavailable, None, format!("{what}: {why}")))
        }
    }
}

/// Its place gave no answer when the rotation was planned, so nothing says that it is the one that answers now.
fn unpinned(found: &Pin) -> String {
    format!(
        "{found} answers, and it was not known where it is when this was planned: if that is the place, \
         `keywheel adopt --pin-anew` says so, and `keywheel resume` goes on"
    )
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    fn pin(id: &str) -> Pin {
        Pin { id: id.into(), machine: String::new(), folder: String::new() }
    }

    async fn checked(
        identity: Result<Option<Pin>, CallError>,
        pinned: Option<&Pin>,
    ) -> Result<(), Refusal> {
        check(ready(identity), "store `app`", pinned, false).await
    }

    #[tokio::test]
    async fn i23_a_place_that_got_its_name_by_our_own_write_is_touched_again() {
        let (here, there) = (pin("here"), pin("there"));
        let written = async |found: &Pin, pinned| {
            let found = ready(Ok(Some(found.clone())));
            check(found, "store `app`", pinned, true).await
        };
        assert_eq!(written(&here, None).await, Ok(()));
        assert!(written(&there, Some(&here)).await.is_err());
    }

    #[tokio::test]
    async fn i23_a_place_may_come_to_say_where_it_leads_to_and_is_no_other_one() {
        let (bare, led) = (pin("here"), pin("here").with(&pin("beyond")));
        assert_eq!(checked(Ok(Some(led.clone())), Some(&bare)).await, Ok(()));
        for (found, pinned) in [
            (bare.clone(), &led),
            (pin("here").with(&pin("elsewhere")), &led),
            (pin("there").with(&pin("beyond")), &bare),
            (pin("here, and more"), &bare),
            (Pin { machine: "other".into(), ..led.clone() }, &bare),
        ] {
            assert!(checked(Ok(Some(found)), Some(pinned)).await.is_err());
        }
    }

    #[tokio::test]
    async fn i23_a_place_that_could_not_be_asked_is_not_touched_without_a_pin() {
        let (here, there) = (pin("here"), pin("there"));
        let silent = || Err(CallError::Unknown("nobody is there".into()));
        assert_eq!(checked(Ok(None), None).await, Ok(()), "it has no name of its own");
        assert_eq!(checked(Ok(Some(here.clone())), Some(&here)).await, Ok(()));
        let said = checked(Ok(Some(there.clone())), None).await.expect_err("it is refused");
        let ways_out = ["keywheel adopt --pin-anew", "keywheel resume"];
        assert!(ways_out.iter().all(|way| said.message.contains(way)), "{said}");
        for (identity, pinned, for_good) in [
            (Ok(Some(there.clone())), Some(&here), true),
            (Ok(Some(there)), None, true),
            (silent(), Some(&here), false),
            (silent(), None, false),
        ] {
            let refused = checked(identity, pinned).await.expect_err("it is refused");
            assert_eq!(refused.is_for_good(), for_good, "{refused}");
        }
    }
}
