//! The dates that an open rotation still has before it, as far as nothing goes wrong: the state machine itself, run ahead.

use keywheel_core::event::{Event, Step};
use keywheel_core::forecast::{Coming, continue_forecast};
use keywheel_core::rotation::Rotation;
use keywheel_core::time::Timestamp;
use serde_json::{Value, json};

use crate::words;

/// When the version that a rotation walks away from is touched, and until when there is a way back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outlook {
    /// Whether the version is suspended for a brown-out now.
    is_browned_out: bool,
    /// When soak is over and the version is withdrawn, suspended or ended.
    soak_until: Option<Timestamp>,
    /// When it is revoked; none where its issuer has nothing to revoke.
    revoked_at: Option<Timestamp>,
    /// Until when `undo` has a way back; none where there is none now.
    undo_until: Option<Timestamp>,
}

impl Outlook {
    /// Looks ahead from `now`. Nothing is known of a rotation that a process is working on, or that waits for an operator.
    pub(crate) fn of(rotation: &Rotation, now: Timestamp) -> Self {
        let coming = continue_forecast(vec![rotation.clone()], now);
        let first = |is_it: fn(&Event) -> bool| {
            coming.iter().find(|coming: &&Coming| is_it(&coming.event)).map(|coming| coming.at)
        };
        // A brown-out suspends the version too, and resumes it.
        let resumed = coming.iter().rposition(|coming| resumes(&coming.event));
        let to_stay = &coming[resumed.map_or(0, |last| last + 1)..];
        let soak_over = to_stay.iter().find(|coming| ends_soak(&coming.event));
        let revoked_at =
            first(|event| matches!(event, Event::Intended { step: Step::Revoke(_), .. }));
        let over_at = revoked_at.or_else(|| first(|event| matches!(event, Event::Purged)));
        Self {
            is_browned_out: rotation.is_browned_out(),
            soak_until: soak_over
                .map(|coming| coming.at)
                .filter(|_| rotation.retires() && rotation.ending().soaked_at().is_none()),
            revoked_at,
            undo_until: over_at.filter(|_| rotation.way_back().is_ok()),
        }
    }

    /// Returns whether the version is suspended for a brown-out: it is resumed by the next command that runs.
    pub(crate) fn is_browned_out(&self) -> bool {
        self.is_browned_out
    }

    /// Returns whether `undo` has a way back now.
    pub(crate) fn can_undo(&self) -> bool {
        self.undo_until.is_some()
    }

    /// Returns whether a version is still to be revoked.
    pub(crate) fn revokes(&self) -> bool {
        self.revoked_at.is_some()
    }

    /// Says the dates in words, `; ` before each.
    pub(crate) fn text(&self) -> String {
        let dates = [
            ("soak until", self.soak_until),
            ("undo until", self.undo_until),
            ("revoked", self.revoked_at),
        ];
        let told = dates.iter().filter_map(|(what, at)| Some((what, (*at)?)));
        let dates = told.map(|(what, at)| format!("; {what} {}", words::when(at)));
        let suspended = self.is_browned_out.then(|| "; suspended for a brown-out".to_owned());
        suspended.into_iter().chain(dates).collect()
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "browned_out": self.is_browned_out,
            "soak_until": self.soak_until.map(words::rfc3339),
            "undo_until": self.undo_until.map(words::rfc3339),
            "revoked_at": self.revoked_at.map(words::rfc3339),
        })
    }
}

fn resumes(event: &Event) -> bool {
    matches!(event, Event::Intended { step: Step::Resume(_), .. })
}

fn ends_soak(event: &Event) -> bool {
    match event {
        Event::MoveBegun { .. } | Event::Purged => true,
        Event::Intended { step, .. } => {
            matches!(step, Step::Suspend(_) | Step::Revoke(_) | Step::VerifyDead(_))
        }
        _ => false,
    }
}
