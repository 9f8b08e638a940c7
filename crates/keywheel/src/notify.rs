//! Telling people of what happened to rotations while nobody watched. What they are to be told of stands in the journal since
//! the commit in which it happened, and stays there until a notifier took it. It holds up no rotation and changes no exit code
//! (H122).

use keywheel_core::inventory::{Inventory, News, Topic};
use keywheel_core::planted;
use keywheel_core::secret::SecretName;
use keywheel_driver::Notifier;
use keywheel_engine::EngineError;
use keywheel_journal::JournalError;
use serde_json::json;

use crate::exit::Exit;
use crate::output::{Failure, Output};
use crate::session::{Session, engine_failure, journal_failure};
use crate::words;

/// Delivers what is untold, oldest first, until the notifier takes one no more.
pub(crate) async fn deliver(session: &Session, output: Output) {
    let Some(notifier) = &session.notifier else { return };
    if let Err(failure) = deliver_all(session, notifier.as_ref()).await {
        output.failure(&failure);
    }
}

async fn deliver_all(session: &Session, notifier: &dyn Notifier) -> Result<(), Failure> {
    let rows = session.journal.inventories().await.map_err(journal_failure)?;
    let mut all: Vec<(&SecretName, &News)> = rows.iter().flat_map(untold).collect();
    all.sort_by_key(|(_, news)| news.at);
    for (at, (secret, news)) in all.iter().enumerate() {
        let delivered = notifier.deliver(&message(session, secret, news)).await;
        if let Err(error) = delivered
            && !planted!("lost_message_is_told")
        {
            let left = words::counted(all.len() - at, "message");
            let failure = Failure::new(format!("{left} could not be delivered"))
                .exit(Exit::Done)
                .caused_by(error.to_string());
            return Err(failure
                .now("no rotation was held up; what is not delivered is kept")
                .hint("the next `keywheel resume --all` tries again"));
        }
        match session.engine.told(secret, news).await {
            // Whoever works on it goes on; the message is delivered once more.
            Ok(()) | Err(EngineError::Journal(JournalError::Held { .. })) => {}
            Err(error) => return Err(engine_failure(error)),
        }
    }
    Ok(())
}

fn untold(row: &Inventory) -> impl Iterator<Item = (&SecretName, &News)> {
    row.untold.iter().map(|news| (&row.secret, news))
}

/// One message: who, what, and what to do next. The same news always has the same `id`.
fn message(session: &Session, secret: &SecretName, news: &News) -> String {
    let News { at, rotation, topic } = news;
    let (what, next) = match topic {
        Topic::Emergency => ("its emergency begins", "status"),
        Topic::NeedsOperator => ("its rotation waits for you", "status"),
        Topic::Promoted => {
            ("readers use the new version; the former one is ended later", "resume --all --quiet")
        }
        Topic::Completed => ("its rotation is completed", "rotation show"),
        Topic::Undone => ("its rotation is undone", "rotation show"),
    };
    let next = match next {
        "rotation show" => format!("keywheel rotation show {rotation}"),
        next => format!("keywheel {next} -e {}", secret.environment()),
    };
    let topic = json!(topic);
    json!({
        "schema": 1,
        "id": format!("{rotation}-{}-{}", topic.as_str().unwrap_or_default(), at.millis()),
        "at": words::rfc3339(*at),
        "installation": session.journal.installation().id,
        "secret": secret,
        "rotation": rotation,
        "topic": topic,
        "text": format!("{secret}: {what}"),
        "next": next,
    })
    .to_string()
}
