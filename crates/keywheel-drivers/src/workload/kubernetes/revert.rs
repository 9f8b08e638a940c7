//! Who took away what a roll left on an object, while nobody rolls it.

use keywheel_core::planted;
use keywheel_core::time::Timestamp;
use keywheel_driver::workload::Stamp;
use keywheel_driver::{CallError, Writer};

use super::preflight::routes;
use super::secrets::Known;
use super::stamp;
use super::{Pods, TakeUp};
use crate::api::plain;
use crate::kubernetes::known_as;

impl Pods {
    /// Names whoever wrote the object after the stores held what it was rolled for, where it bears other stamps than that roll's, or
    /// names other versions of a Secret.
    pub(super) async fn reverted_by(
        &self,
        slots: &[String],
        stamps: &[Stamp],
        since: Timestamp,
    ) -> Result<Vec<Writer>, CallError> {
        if matches!(self.config.take_up, TakeUp::Sync(_)) || planted!("reverts_have_no_name") {
            return Ok(Vec::new());
        }
        let (target, skew) = self.object().await?;
        let known = Known::find(&self.namespace, slots).await?;
        let ours = target.ours();
        let bears = stamp::same(&ours, &stamp::stamped(&ours, stamps), stamps);
        if bears && stamp::switched(&target, |name| known.successor(name)).is_none() {
            return Ok(Vec::new());
        }
        let Some(entry) = stamp::rival(target.meta()) else { return Ok(Vec::new()) };
        // Times are cut to whole seconds, and the roll came more than one later.
        let at = entry.time.as_ref().map(|at| at.0);
        let is_later =
            |at: jiff::Timestamp| Timestamp::from_millis(at.as_millisecond()) >= skew.there(since);
        if !at.is_some_and(is_later) {
            return Ok(Vec::new());
        }
        let manager = entry.manager.as_deref().unwrap_or_default();
        let told = routes(self.kind, &self.config.namespace, target.meta());
        let told: Vec<_> = told.into_iter().map(|finding| finding.message).collect();
        let helps = match told.is_empty() {
            true => "let annotations of its template that begin with `keywheel.dev/`, and the names of its Secrets, be as they are".into(),
            false => told.join("; "),
        };
        Ok(vec![Writer {
            name: plain(manager),
            known_as: known_as(manager).map(str::to_owned),
            at: at.map(|at| at.to_string()),
            helps: Some(helps),
        }])
    }
}
