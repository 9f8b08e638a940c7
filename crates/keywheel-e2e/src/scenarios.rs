//! What is tried: each scenario opens a shop of its own, and says in a few words what it saw.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;

use crate::api::{Kind, until};
use crate::ground::Ground;
use crate::manifest::{Reads, SHOP};
use crate::shop::{BAD, GOOD, Plan, Shop, random, unharmed};

/// The names of all scenarios, and what each is about, in the order in which they run.
pub const ALL: [(&str, &str); 11] = [
    ("keyring", "no token refused and no request failed while a signing secret rotates"),
    ("by-hand", "the same users notice a patch and a restart by hand"),
    ("refused", "a value that pods refuse is undone, and no pod that serves is touched"),
    ("versioned", "a Secret kept in versions is rotated, and one that pods refuse is undone"),
    ("stateful-set", "a StatefulSet is rolled, and rid of a broken pod"),
    ("daemon-set", "a DaemonSet is rolled, and rid of a broken pod"),
    (
        "sync",
        "pods that read their files again take a value up and give it back, and none is replaced",
    ),
    ("rivals", "two installations never both win"),
    ("killed", "keywheel is killed in the roll, and resumes"),
    ("emergency", "an emergency ends the old value in every pod"),
    ("foreign-edit", "an edit by somebody else during soak is named, and put right when asked"),
];

/// Runs one scenario, and returns what it saw.
pub(crate) async fn run(name: &str, ground: &Ground) -> anyhow::Result<String> {
    match name {
        "keyring" => keyring(ground).await,
        "by-hand" => by_hand(ground).await,
        "refused" => refused(ground).await,
        "versioned" => versioned(ground).await,
        "stateful-set" => {
            set(ground, Plan { kind: Kind::StatefulSet, replicas: 2, ..Plan::new("queue") }).await
        }
        "daemon-set" => {
            set(ground, Plan { kind: Kind::DaemonSet, replicas: 1, ..Plan::new("agent") }).await
        }
        "sync" => sync(ground).await,
        "rivals" => rivals(ground).await,
        "killed" => killed(ground).await,
        "emergency" => emergency(ground).await,
        "foreign-edit" => foreign_edit(ground).await,
        _ => anyhow::bail!("there is no such scenario"),
    }
}

const ROTATE: &[&str] = &["rotate", "pepper", "--yes", "--soak"];

async fn keyring(ground: &Ground) -> anyhow::Result<String> {
    let shop = Shop::open(ground, Plan::new("keyring")).await?;
    let (first, other, before) =
        (shop.stored("jwt").await?, shop.stored("other").await?, shop.pods().await?);
    let edge = shop.edge().await?;
    let load = shop.load(&edge)?;
    let said = shop.keywheel(&["check"], 0).await?;
    ensure!(said.contains("ready"), "{said}");
    let said = shop.keywheel(&["rotate", "jwt", "--yes", "--soak"], 0).await?;
    ensure!(said.contains("completed; v2 is current"), "{said}");
    let _said = shop.keywheel(&["doctor"], 0).await?;
    let counts = load.stop().await;
    let told = unharmed(&shop, &counts, &edge)?;
    ensure!(shop.stored("jwt").await? != first, "the signing secret is the old one");
    ensure!(shop.stored("jwt-also").await?.is_empty(), "the old signing secret is still accepted");
    ensure!(shop.stored("other").await? == other, "another key of the Secret changed");
    ensure!(before.is_disjoint(&shop.pods().await?), "a pod of before is still there");
    Ok(told)
}

async fn by_hand(ground: &Ground) -> anyhow::Result<String> {
    let shop = Shop::open(ground, Plan::new("by-hand")).await?;
    let before = shop.pods().await?;
    let edge = shop.edge().await?;
    let load = shop.load(&edge)?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    shop.edit("jwt", &format!("kwcanary-by-hand-{}", random())).await?;
    let annotations = json!({ "kubectl.kubernetes.io/restartedAt": "now" });
    let patch = json!({ "spec": { "template": { "metadata": { "annotations": annotations } } } });
    shop.api().patch(shop.plan.kind, shop.plan.name, &patch).await?;
    let replaced = until("the pods are not replaced", Duration::from_secs(180), async || {
        Ok(before.is_disjoint(&shop.pods().await?).then_some(()))
    });
    replaced.await?;
    let counts = load.stop().await;
    ensure!(counts.tokens_refused > 0, "the users noticed nothing: {counts}");
    Ok(format!("{} tokens refused", counts.tokens_refused))
}

async fn refused(ground: &Ground) -> anyhow::Result<String> {
    let shop = Shop::open(ground, Plan::new("refused")).await?;
    let (before, pepper) = (shop.pods().await?, shop.stored("pepper").await?);
    let edge = shop.edge().await?;
    let load = shop.load(&edge)?;
    let took = undone(&shop).await?;
    let counts = load.stop().await;
    let told = unharmed(&shop, &counts, &edge)?;
    ensure!(shop.stored("pepper").await? == pepper, "the old value is not back");
    shop.settle(&before).await?;
    let _said = shop.keywheel(&["doctor"], 0).await?;
    Ok(format!("{}; {told}", in_time(&shop, took)?))
}

/// Rotates to a value that no pod starts with, and returns how long it took from the first crash until everything was as before.
async fn undone(shop: &Shop<'_>) -> anyhow::Result<Duration> {
    // Pods that are older than any doubt about clocks are left alone on the way back.
    tokio::time::sleep(Duration::from_secs(4)).await;
    shop.configure(BAD)?;
    let rotating = async {
        let said = shop.keywheel(&["rotate", "pepper", "--yes"], 2).await?;
        Ok::<_, anyhow::Error>((said, Instant::now()))
    };
    let ((said, ended), crashed) = tokio::try_join!(rotating, shop.crashed())?;
    ensure!(said.contains("exit code 1"), "the reason is not told:\n{said}");
    shop.configure(GOOD)?;
    Ok(ended.saturating_duration_since(crashed))
}

/// Says how long the way back took, which has a bar where pods that served go on; a set has to make its pod anew.
fn in_time(shop: &Shop<'_>, took: Duration) -> anyhow::Result<String> {
    let told = format!("undone {:.1} s after the first crash", took.as_secs_f64());
    let is_late = shop.ground.undone_within.is_some_and(|bar| took > bar);
    ensure!(!is_late, "{told}");
    Ok(told)
}

async fn versioned(ground: &Ground) -> anyhow::Result<String> {
    let plan = Plan { approach: "versioned", ..Plan::new("versioned") };
    let shop = Shop::open(ground, plan).await?;
    let first = shop.stored("pepper").await?;
    let _said = shop.keywheel(&["check"], 0).await?;
    let _said = shop.keywheel(ROTATE, 0).await?;
    ensure!(shop.stored("pepper").await? == first, "the Secret that was there first has changed");
    let secrets = shop.api().list(Kind::Secret, Some(SHOP)).await?;
    let immutable = secrets.iter().filter(|secret| secret["immutable"] == true).count();
    ensure!(
        (secrets.len(), immutable) == (2, 1),
        "there are {} Secrets, {immutable} immutable",
        secrets.len()
    );
    let _said = shop.keywheel(&["doctor"], 0).await?;
    let before = shop.pods().await?;
    let took = undone(&shop).await?;
    ensure!(before.is_subset(&shop.pods().await?), "a pod that served was touched");
    let _said = shop.keywheel(&["doctor"], 0).await?;
    in_time(&shop, took)
}

async fn set(ground: &Ground, plan: Plan) -> anyhow::Result<String> {
    let shop = Shop::open(ground, plan).await?;
    let (first, before) = (shop.stored("pepper").await?, shop.pods().await?);
    let _said = shop.keywheel(&["check"], 0).await?;
    let _said = shop.keywheel(ROTATE, 0).await?;
    let second = shop.stored("pepper").await?;
    ensure!(second != first, "the value is the old one");
    ensure!(before.is_disjoint(&shop.pods().await?), "a pod of before is still there");
    let took = undone(&shop).await?;
    ensure!(shop.stored("pepper").await? == second, "the old value is not back");
    let _said = shop.keywheel(&["doctor"], 0).await?;
    Ok(format!("undone {:.1} s after the first crash", took.as_secs_f64()))
}

async fn sync(ground: &Ground) -> anyhow::Result<String> {
    let plan = Plan { reads: Reads::Again, soak: "1h", ..Plan::new("sync") };
    let shop = Shop::open(ground, plan).await?;
    let (first, before) = (shop.stored("pepper").await?, shop.pods().await?);
    let said = shop.keywheel(&["check"], 0).await?;
    ensure!(said.contains("ready"), "{said}");
    let said = shop.keywheel(&["rotate", "pepper", "--yes"], 0).await?;
    ensure!(said.contains("promoted"), "{said}");
    let new = shop.stored("pepper").await?;
    ensure!(new != first, "the value is the old one");
    ensure!(shop.shown().await? == vec![new; 3], "a pod shows another value than the new one");
    let _said = shop.keywheel(&["undo", "pepper", "--yes"], 0).await?;
    ensure!(shop.shown().await? == vec![first; 3], "a pod shows another value than the former one");
    ensure!(shop.pods().await? == before, "a pod was replaced");
    ensure!(shop.restarts().await? == 0, "a container was started again");
    let annotations = shop.template().await?["metadata"]["annotations"].to_string();
    ensure!(!annotations.contains("keywheel.dev"), "the template was changed: {annotations}");
    let _said = shop.keywheel(&["doctor"], 0).await?;
    Ok(format!("{} pods took it up and gave it back", before.len()))
}

async fn rivals(ground: &Ground) -> anyhow::Result<String> {
    let shop = Shop::open(ground, Plan::new("rivals")).await?;
    let rotate = ["rotate", "pepper", "--yes"];
    let (first, second) = (shop.spawn("", &rotate)?, shop.spawn("-2", &rotate)?);
    let (first, second) = tokio::try_join!(shop.ended(first), shop.ended(second))?;
    let mut codes = [first.code, second.code];
    codes.sort_unstable();
    let said = format!("{}\n{}", first.said, second.said);
    ensure!(codes == [Some(0), Some(4)], "they ended with {codes:?}:\n{said}");
    ensure!(said.contains("another installation"), "the loser does not say why:\n{said}");
    Ok("one won, and one was told who holds the Secret".into())
}

async fn killed(ground: &Ground) -> anyhow::Result<String> {
    let shop = Shop::open(ground, Plan::new("killed")).await?;
    let first = shop.stored("pepper").await?;
    let mut rotating = shop.spawn("", ROTATE)?;
    let stamped = until("nothing is rolled", Duration::from_secs(120), async || {
        let annotations = shop.template().await?["metadata"]["annotations"].to_string();
        Ok(annotations.contains("keywheel.dev/stamp").then_some(()))
    });
    stamped.await?;
    rotating.start_kill()?;
    let ran = shop.ended(rotating).await?;
    ensure!(ran.code.is_none(), "it ended before it was killed:\n{}", ran.said);
    let said = shop.keywheel(&["resume", "--all", "--yes", "--soak"], 0).await?;
    ensure!(said.contains("completed; v2 is current"), "{said}");
    ensure!(shop.stored("pepper").await? != first, "the value is the old one");
    let _said = shop.keywheel(&["doctor"], 0).await?;
    let _said = shop.keywheel(&["audit", "verify"], 0).await?;
    Ok("resumed, and completed".into())
}

async fn emergency(ground: &Ground) -> anyhow::Result<String> {
    let shop = Shop::open(ground, Plan::new("emergency")).await?;
    let (first, before) = (shop.stored("jwt").await?, shop.pods().await?);
    let _said = shop.keywheel(&["adopt", "jwt", "--yes"], 0).await?;
    let rotate =
        ["rotate", "jwt", "--emergency", "--because", "it was pasted into a chat", "--yes"];
    let said = shop.keywheel(&rotate, 0).await?;
    ensure!(said.contains("completed; v2 is current"), "{said}");
    for key in ["jwt", "jwt-also"] {
        ensure!(shop.stored(key).await? != first, "`{key}` still holds the suspect");
    }
    ensure!(before.is_disjoint(&shop.pods().await?), "a pod of before is still there");
    let _said = shop.keywheel(&["doctor"], 0).await?;
    Ok("the old value is nowhere".into())
}

async fn foreign_edit(ground: &Ground) -> anyhow::Result<String> {
    let shop = Shop::open(ground, Plan { soak: "1h", ..Plan::new("foreign-edit") }).await?;
    let first = shop.stored("pepper").await?;
    let said = shop.keywheel(&["rotate", "pepper", "--yes"], 0).await?;
    ensure!(said.contains("promoted"), "{said}");
    let new = shop.stored("pepper").await?;
    let foreign = format!("kwcanary-foreign-{}", random());
    shop.edit("pepper", &foreign).await?;
    let _said = shop.keywheel(&["resume", "--all"], 0).await?;
    ensure!(shop.stored("pepper").await? == foreign, "`resume` fights whoever wrote it");
    let said = shop.keywheel(&["doctor"], 3).await?;
    ensure!(said.contains("keywheel reconcile pepper"), "the way out is not told:\n{said}");
    let _said = shop.keywheel(&["reconcile", "pepper", "--yes"], 0).await?;
    ensure!(shop.stored("pepper").await? == new, "the edit is not put right");
    let _said = shop.keywheel(&["doctor"], 0).await?;
    let _said = shop.keywheel(&["undo", "pepper", "--yes"], 0).await?;
    ensure!(shop.stored("pepper").await? == first, "the former value is not back");
    Ok("named, put right, and undone".into())
}
