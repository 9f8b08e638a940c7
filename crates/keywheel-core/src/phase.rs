//! The phases of a rotation, in the words that journals, `status` and metrics share. Derived, never stored.

use std::fmt;

use crate::event::{Outcome, Step};
use crate::rotation::Rotation;
use crate::strategy::Side;

/// Where a rotation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(
    missing_docs,
    reason = "the words are the documentation; `design.md` 2 and ARCHITECTURE.md say what each holds"
)]
pub enum Phase {
    Planned,
    Preflight,
    Capturing,
    Minting,
    Verifying,
    Writing,
    Rolling,
    Evidencing,
    Probing,
    Promoted,
    Soaking,
    Suspending,
    RollbackWindow,
    Revoking,
    VerifyingDead,
    Purging,
    Undoing,
    Reversing,
    NeedsOperator,
    Completed,
    Undone,
    Superseded,
}

impl Phase {
    pub(crate) fn of(rotation: &Rotation) -> Self {
        match rotation.outcome {
            Some(Outcome::Completed) => return Self::Completed,
            Some(Outcome::Undone) => return Self::Undone,
            Some(Outcome::Superseded) => return Self::Superseded,
            None => {}
        }
        if rotation.parked.is_some() {
            return Self::NeedsOperator;
        }
        let retiring = rotation.promoted == rotation.toward && rotation.was_promoted;
        match (rotation.toward, retiring) {
            (Side::Previous, false) if rotation.was_promoted => Self::Reversing,
            (Side::Previous, false) => Self::Undoing,
            (Side::Pending, false) => Self::moving(rotation),
            (_, true) => Self::retiring(rotation),
        }
    }

    fn moving(rotation: &Rotation) -> Self {
        if let Some(step) = rotation.open_step().filter(is_of_the_rotation) {
            return Self::of_step(step);
        }
        if rotation.walk.moving_to().is_some() || rotation.walk.position() > 0 {
            Self::Writing
        } else if rotation.minting.done {
            Self::Verifying
        } else if rotation.captured {
            Self::Minting
        } else if rotation.preflighted {
            Self::Capturing
        } else {
            Self::Planned
        }
    }

    fn retiring(rotation: &Rotation) -> Self {
        if let Some(step) =
            rotation.open_step().filter(|step| *step != Step::Visit && is_of_the_rotation(step))
        {
            return Self::of_step(step);
        }
        let ending = &rotation.ending;
        let done = |of: &dyn Fn(_) -> bool| rotation.retiring().into_iter().all(of);
        if !rotation.has_windows() {
            Self::Revoking
        } else if ending.soaked_at().is_none() {
            Self::Soaking
        } else if done(&|version| ending.death(version).is_some()) {
            Self::Purging
        } else if done(&|version| ending.is_revoked(version)) {
            Self::VerifyingDead
        } else {
            Self::RollbackWindow
        }
    }

    fn of_step(step: Step) -> Self {
        match step {
            Step::Preflight => Self::Preflight,
            Step::Capture => Self::Capturing,
            Step::Mint { .. }
            | Step::FindMint { .. }
            | Step::RevokeStray { .. }
            | Step::Extend
            | Step::KeepAlive(_) => Self::Minting,
            Step::Verify(_) => Self::Verifying,
            Step::Write { .. } => Self::Writing,
            Step::Roll { .. } => Self::Rolling,
            Step::Evidence { .. } => Self::Evidencing,
            Step::Probe { .. } => Self::Probing,
            Step::Visit => Self::Soaking,
            Step::Suspend(_) | Step::Resume(_) => Self::Suspending,
            Step::Revoke(_) => Self::Revoking,
            Step::VerifyDead(_) => Self::VerifyingDead,
            Step::Sweep | Step::CleanUp { .. } => Self::Purging,
        }
    }
}

/// A lease is kept alive beside whatever the rotation does.
fn is_of_the_rotation(step: &Step) -> bool {
    !matches!(step, Step::KeepAlive(_))
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Planned => "planned",
            Self::Preflight => "preflight",
            Self::Capturing => "capturing",
            Self::Minting => "minting",
            Self::Verifying => "verifying",
            Self::Writing => "writing",
            Self::Rolling => "rolling",
            Self::Evidencing => "evidencing",
            Self::Probing => "probing",
            Self::Promoted => "promoted",
            Self::Soaking => "soaking",
            Self::Suspending => "suspending",
            Self::RollbackWindow => "rollback_window",
            Self::Revoking => "revoking",
            Self::VerifyingDead => "verifying_dead",
            Self::Purging => "purging",
            Self::Undoing => "undoing",
            Self::Reversing => "reversing",
            Self::NeedsOperator => "needs_operator",
            Self::Completed => "completed",
            Self::Undone => "undone",
            Self::Superseded => "superseded",
        })
    }
}
